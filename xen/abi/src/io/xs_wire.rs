//! `io/xs_wire.h`: packets between a xenstore server and its clients, and the page
//! that a domain's connection lives in.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum xsd_sockmsg_type`. A newtype: clients send any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MessageType(pub u32);

impl MessageType {
    /// `XS_CONTROL` (once `XS_DEBUG`): a command to the server itself; privileged.
    pub const CONTROL: Self = Self(0);
    /// `XS_DIRECTORY`: names of a node's children.
    pub const DIRECTORY: Self = Self(1);
    /// `XS_READ`: a node's value.
    pub const READ: Self = Self(2);
    /// `XS_GET_PERMS`: a node's permissions.
    pub const GET_PERMS: Self = Self(3);
    /// `XS_WATCH`: ask for events.
    pub const WATCH: Self = Self(4);
    /// `XS_UNWATCH`: ask for no more of them.
    pub const UNWATCH: Self = Self(5);
    /// `XS_TRANSACTION_START`.
    pub const TRANSACTION_START: Self = Self(6);
    /// `XS_TRANSACTION_END`: commit or drop.
    pub const TRANSACTION_END: Self = Self(7);
    /// `XS_INTRODUCE`: serve a domain's ring; privileged.
    pub const INTRODUCE: Self = Self(8);
    /// `XS_RELEASE`: serve it no more; privileged.
    pub const RELEASE: Self = Self(9);
    /// `XS_GET_DOMAIN_PATH`: a domain's home.
    pub const GET_DOMAIN_PATH: Self = Self(10);
    /// `XS_WRITE`: set a value, making the node if need be.
    pub const WRITE: Self = Self(11);
    /// `XS_MKDIR`: make a node unless it is there.
    pub const MKDIR: Self = Self(12);
    /// `XS_RM`: remove a node and all below.
    pub const RM: Self = Self(13);
    /// `XS_SET_PERMS`: replace a node's permissions.
    pub const SET_PERMS: Self = Self(14);
    /// `XS_WATCH_EVENT`: from the server only.
    pub const WATCH_EVENT: Self = Self(15);
    /// `XS_ERROR`: from the server only.
    pub const ERROR: Self = Self(16);
    /// `XS_IS_DOMAIN_INTRODUCED`; privileged.
    pub const IS_DOMAIN_INTRODUCED: Self = Self(17);
    /// `XS_RESUME`: a shut-down domain runs again; privileged.
    pub const RESUME: Self = Self(18);
    /// `XS_SET_TARGET`: give one domain another's rights; privileged.
    pub const SET_TARGET: Self = Self(19);
    /// `XS_RESET_WATCHES`: forget the connection's watches and transactions.
    pub const RESET_WATCHES: Self = Self(21);
    /// `XS_DIRECTORY_PART`: a piece of a long directory.
    pub const DIRECTORY_PART: Self = Self(22);
}

/// `struct xsd_sockmsg`: the header before each packet's payload.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SockMsg {
    /// A [`MessageType`].
    pub message_type: u32,
    /// The client's number for the request, echoed in the reply.
    pub req_id: u32,
    /// Transaction; 0: none.
    pub tx_id: u32,
    /// Bytes of payload that follow, at most [`XENSTORE_PAYLOAD_MAX`].
    pub len: u32,
}
const _: () = assert!(size_of::<SockMsg>() == 16);

/// `XENSTORE_RING_SIZE`: bytes in each of the two streams.
pub const XENSTORE_RING_SIZE: usize = 1024;

/// `struct xenstore_domain_interface`: the page shared with a domain.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct XenstoreDomainInterface {
    /// Requests.
    pub req: [u8; XENSTORE_RING_SIZE],
    /// Replies and watch events.
    pub rsp: [u8; XENSTORE_RING_SIZE],
    /// How far the server has read.
    pub req_cons: u32,
    /// How far the domain has written.
    pub req_prod: u32,
    /// How far the domain has read.
    pub rsp_cons: u32,
    /// How far the server has written.
    pub rsp_prod: u32,
    /// `XENSTORE_SERVER_FEATURE_*`.
    pub server_features: u32,
    /// [`XENSTORE_CONNECTED`] or [`XENSTORE_RECONNECT`].
    pub connection: u32,
    /// `XENSTORE_ERROR_*`.
    pub error: u32,
}
const _: () = assert!(core::mem::offset_of!(XenstoreDomainInterface, error) == 2072);

/// Longest payload; a longer one ends the connection.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// Longest absolute path, without the NUL.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// Longest relative path, without the NUL.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// The ring can be reconnected.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// The page has an `error` word.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// Value of `connection`: the steady state.
pub const XENSTORE_CONNECTED: u32 = 0;
/// Value of `connection`: the domain asks for a reconnect.
pub const XENSTORE_RECONNECT: u32 = 1;
/// Value of `error`: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// Value of `error`: the event channel does not work.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// Value of `error`: an index that cannot be.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// Value of `error`: a payload that is too long.
pub const XENSTORE_ERROR_PROTO: u32 = 3;

/// `xsd_errors[]`: errors cross the wire as these names, which are errno's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XsError {
    EINVAL,
    EACCES,
    EEXIST,
    EISDIR,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EIO,
    ENOTEMPTY,
    ENOSYS,
    EROFS,
    EBUSY,
    EAGAIN,
    EISCONN,
    E2BIG,
    EPERM,
}

impl XsError {
    /// The name sent on the wire, without its NUL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EINVAL => "EINVAL",
            Self::EACCES => "EACCES",
            Self::EEXIST => "EEXIST",
            Self::EISDIR => "EISDIR",
            Self::ENOENT => "ENOENT",
            Self::ENOMEM => "ENOMEM",
            Self::ENOSPC => "ENOSPC",
            Self::EIO => "EIO",
            Self::ENOTEMPTY => "ENOTEMPTY",
            Self::ENOSYS => "ENOSYS",
            Self::EROFS => "EROFS",
            Self::EBUSY => "EBUSY",
            Self::EAGAIN => "EAGAIN",
            Self::EISCONN => "EISCONN",
            Self::E2BIG => "E2BIG",
            Self::EPERM => "EPERM",
        }
    }
}

impl core::fmt::Display for XsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for XsError {}

crate::abi_check! {
    header "io/xs_wire.h";
    struct "struct xsd_sockmsg" = SockMsg {
        "type" => message_type, "req_id" => req_id, "tx_id" => tx_id, "len" => len,
    };
    struct "struct xenstore_domain_interface" = XenstoreDomainInterface {
        "req" => req, "rsp" => rsp, "req_cons" => req_cons, "req_prod" => req_prod,
        "rsp_cons" => rsp_cons, "rsp_prod" => rsp_prod,
        "server_features" => server_features, "connection" => connection, "error" => error,
    };
    const "XS_CONTROL" = MessageType::CONTROL.0;
    const "XS_DIRECTORY" = MessageType::DIRECTORY.0;
    const "XS_READ" = MessageType::READ.0;
    const "XS_GET_PERMS" = MessageType::GET_PERMS.0;
    const "XS_WATCH" = MessageType::WATCH.0;
    const "XS_UNWATCH" = MessageType::UNWATCH.0;
    const "XS_TRANSACTION_START" = MessageType::TRANSACTION_START.0;
    const "XS_TRANSACTION_END" = MessageType::TRANSACTION_END.0;
    const "XS_INTRODUCE" = MessageType::INTRODUCE.0;
    const "XS_RELEASE" = MessageType::RELEASE.0;
    const "XS_GET_DOMAIN_PATH" = MessageType::GET_DOMAIN_PATH.0;
    const "XS_WRITE" = MessageType::WRITE.0;
    const "XS_MKDIR" = MessageType::MKDIR.0;
    const "XS_RM" = MessageType::RM.0;
    const "XS_SET_PERMS" = MessageType::SET_PERMS.0;
    const "XS_WATCH_EVENT" = MessageType::WATCH_EVENT.0;
    const "XS_ERROR" = MessageType::ERROR.0;
    const "XS_IS_DOMAIN_INTRODUCED" = MessageType::IS_DOMAIN_INTRODUCED.0;
    const "XS_RESUME" = MessageType::RESUME.0;
    const "XS_SET_TARGET" = MessageType::SET_TARGET.0;
    const "XS_RESET_WATCHES" = MessageType::RESET_WATCHES.0;
    const "XS_DIRECTORY_PART" = MessageType::DIRECTORY_PART.0;
    const "XENSTORE_RING_SIZE" = XENSTORE_RING_SIZE;
    const "XENSTORE_PAYLOAD_MAX" = XENSTORE_PAYLOAD_MAX;
    const "XENSTORE_ABS_PATH_MAX" = XENSTORE_ABS_PATH_MAX;
    const "XENSTORE_REL_PATH_MAX" = XENSTORE_REL_PATH_MAX;
    const "XENSTORE_SERVER_FEATURE_RECONNECTION" = XENSTORE_SERVER_FEATURE_RECONNECTION;
    const "XENSTORE_SERVER_FEATURE_ERROR" = XENSTORE_SERVER_FEATURE_ERROR;
    const "XENSTORE_CONNECTED" = XENSTORE_CONNECTED;
    const "XENSTORE_RECONNECT" = XENSTORE_RECONNECT;
    const "XENSTORE_ERROR_NONE" = XENSTORE_ERROR_NONE;
    const "XENSTORE_ERROR_COMM" = XENSTORE_ERROR_COMM;
    const "XENSTORE_ERROR_RINGIDX" = XENSTORE_ERROR_RINGIDX;
    const "XENSTORE_ERROR_PROTO" = XENSTORE_ERROR_PROTO;
}
