//! Counters of a task: written by it, readable from any vCPU.

use core::sync::atomic::{AtomicU64, Ordering};

/// Defines `Counters`, a set of named counters, and `Snapshot`, their values at one moment,
/// which prints as `name 1, other 2`.
#[macro_export]
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Written by one task, readable from any vCPU.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: ::core::sync::atomic::AtomicU64,)*
        }

        /// [`Counters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All of them; each is right, but they are not of the same instant.
            pub fn snapshot(&self) -> Snapshot {
                use ::core::sync::atomic::Ordering::Relaxed;
                Snapshot { $($name: self.$name.load(Relaxed),)* }
            }
        }

        impl ::core::fmt::Display for Snapshot {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                let values = [$((stringify!($name), self.$name),)*];
                for (at, (name, value)) in values.into_iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{name} {value}")?;
                }
                Ok(())
            }
        }
    };
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    extern crate std;

    counters! {
        /// Some.
        frames,
        /// Others.
        bytes,
    }

    #[test]
    fn a_snapshot_names_its_values() {
        let counters = Counters::default();
        super::add(&counters.frames, 2);
        super::add(&counters.bytes, 120);
        super::add(&counters.bytes, 1);
        let text = std::format!("{}", counters.snapshot());
        assert_eq!(text, "frames 2, bytes 121");
    }
}
