//! Xen's error numbers, `xen/include/public/errno.h`.

use core::fmt;

/// A negative answer of a hypercall, as the positive number of `errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $c:literal;)*) => {
        impl Errno {
            $(#[doc = concat!("`", $c, "`.")] pub const $name: Self = Self($value);)*

            /// The name in `errno.h`, if it is one of those that Xen commonly gives.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        crate::abi_check! {
            header "errno.h";
            $(const $c = $value;)*
        }
    };
}

errnos! {
    EPERM = 1, "XEN_EPERM";
    ENOENT = 2, "XEN_ENOENT";
    ESRCH = 3, "XEN_ESRCH";
    EIO = 5, "XEN_EIO";
    ENXIO = 6, "XEN_ENXIO";
    E2BIG = 7, "XEN_E2BIG";
    EAGAIN = 11, "XEN_EAGAIN";
    ENOMEM = 12, "XEN_ENOMEM";
    EACCES = 13, "XEN_EACCES";
    EFAULT = 14, "XEN_EFAULT";
    EBUSY = 16, "XEN_EBUSY";
    EEXIST = 17, "XEN_EEXIST";
    ENODEV = 19, "XEN_ENODEV";
    EINVAL = 22, "XEN_EINVAL";
    ENOSPC = 28, "XEN_ENOSPC";
    ERANGE = 34, "XEN_ERANGE";
    ENOSYS = 38, "XEN_ENOSYS";
    ENODATA = 61, "XEN_ENODATA";
    ETIME = 62, "XEN_ETIME";
    EOVERFLOW = 75, "XEN_EOVERFLOW";
    EOPNOTSUPP = 95, "XEN_EOPNOTSUPP";
    ENOBUFS = 105, "XEN_ENOBUFS";
}

impl Errno {
    /// Reads a hypercall's answer: negative values are errors.
    ///
    /// # Errors
    /// The error number that `answer` holds.
    pub fn check(answer: i64) -> Result<u64, Self> {
        u64::try_from(answer).map_err(|_| {
            // Xen's numbers fit easily; anything else is shown as the largest.
            Self(i32::try_from(answer.unsigned_abs()).unwrap_or(i32::MAX))
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_answers_are_errors_and_all_others_are_values() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
        assert_eq!(Errno::check(i64::MIN), Err(Errno(i32::MAX)));
    }
}
