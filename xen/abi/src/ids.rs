//! The identifiers that Xen hands out, as types that cannot be swapped.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $raw);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// `domid_t`, xen.h.
    DomId(u16)
}
id! {
    /// `grant_ref_t`, grant_table.h.
    GrantRef(u32)
}
id! {
    /// `evtchn_port_t`, event_channel.h.
    EvtchnPort(u32)
}

impl DomId {
    /// `DOMID_SELF`: the caller, whatever its number.
    pub const SELF: Self = Self(0x7ff0);
    /// `DOMID_IO`: owner of I/O memory.
    pub const IO: Self = Self(0x7ff1);
    /// `DOMID_XEN`: owner of Xen's own shared pages.
    pub const XEN: Self = Self(0x7ff2);
    /// `DOMID_FIRST_RESERVED`: ids from here up never name a guest.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}
