//! What `cargo xtask abi-check` compares with Xen's own headers.
//!
//! Each module lists its structures and constants once, with [`abi_check!`]; the
//! check prints the lists as C `_Static_assert`s and compiles them against the
//! headers of every supported Xen.

/// A structure: its C name, and the size and field offsets that Rust gave it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// As C spells it: `struct evtchn_send`.
    pub c_name: &'static str,
    /// Bytes.
    pub size: usize,
    /// C field designator and byte offset.
    pub fields: &'static [(&'static str, usize)],
}

/// A constant: the C expression, and its value here.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// `EVTCHNOP_send`
    pub c_name: &'static str,
    /// Its value, sign-extended.
    pub value: i128,
}

/// One header's part of the ABI.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Path under `xen/`: `event_channel.h`, `io/blkif.h`.
    pub path: &'static str,
    /// The Xen versions whose header it is compared with; empty: all.
    pub versions: &'static [&'static str],
    /// Its structures.
    pub layouts: &'static [Layout],
    /// Its constants.
    pub constants: &'static [Constant],
}

/// Declares `pub const CHECK: Header` for the module it stands in.
///
/// ```
/// use zerocopy::{FromBytes, IntoBytes};
/// #[repr(C)]
/// pub struct Send { pub port: u32 }
/// pub const EVTCHNOP_SEND: u32 = 4;
/// xen_abi::abi_check! {
///     header "event_channel.h";
///     struct "struct evtchn_send" = Send { "port" => port };
///     const "EVTCHNOP_send" = EVTCHNOP_SEND;
/// }
/// # assert_eq!(CHECK.layouts[0].size, 4);
/// ```
#[macro_export]
macro_rules! abi_check {
    (
        header $path:literal $(for $($version:literal),+)?;
        $(struct $c:literal = $ty:ty { $($cf:literal => $($field:ident).+),* $(,)? };)*
        $(const $cc:literal = $value:expr;)*
    ) => {
        /// What `cargo xtask abi-check` compares with the header.
        pub const CHECK: $crate::check::Header = $crate::check::Header {
            path: $path,
            versions: &[$($($version),+)?],
            layouts: &[$($crate::check::Layout {
                c_name: $c,
                size: ::core::mem::size_of::<$ty>(),
                fields: &[$(($cf, ::core::mem::offset_of!($ty, $($field).+))),*],
            }),*],
            constants: &[$($crate::check::Constant { c_name: $cc, value: $value as i128 }),*],
        };
    };
}
