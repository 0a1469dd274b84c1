//! `event_channel.h`: event channels.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `EVTCHNOP_bind_interdomain`.
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// `EVTCHNOP_bind_virq`.
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// `EVTCHNOP_bind_pirq`.
pub const EVTCHNOP_BIND_PIRQ: u32 = 2;
/// `EVTCHNOP_close`.
pub const EVTCHNOP_CLOSE: u32 = 3;
/// `EVTCHNOP_send`.
pub const EVTCHNOP_SEND: u32 = 4;
/// `EVTCHNOP_status`.
pub const EVTCHNOP_STATUS: u32 = 5;
/// `EVTCHNOP_alloc_unbound`.
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
/// `EVTCHNOP_bind_ipi`.
pub const EVTCHNOP_BIND_IPI: u32 = 7;
/// `EVTCHNOP_bind_vcpu`.
pub const EVTCHNOP_BIND_VCPU: u32 = 8;
/// `EVTCHNOP_unmask`.
pub const EVTCHNOP_UNMASK: u32 = 9;
/// `EVTCHNOP_reset`.
pub const EVTCHNOP_RESET: u32 = 10;
/// `EVTCHN_2L_NR_CHANNELS`: ports of the two-level ABI.
pub const EVTCHN_2L_NR_CHANNELS: usize = 4096;
/// `EVTCHNSTAT_closed`.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// `EVTCHNSTAT_unbound`.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// `EVTCHNSTAT_interdomain`.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// `EVTCHNSTAT_pirq`.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// `EVTCHNSTAT_virq`.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// `EVTCHNSTAT_ipi`.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// `struct evtchn_alloc_unbound`: a port that a remote domain may bind to.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct AllocUnbound {
    /// Whose port.
    pub dom: u16,
    /// Who may bind.
    pub remote_dom: u16,
    /// Out.
    pub port: u32,
}

/// `struct evtchn_bind_interdomain`: the other end of an unbound port.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BindInterdomain {
    /// Peer.
    pub remote_dom: u16,
    /// Unused.
    pub pad: u16,
    /// Its port.
    pub remote_port: u32,
    /// Out.
    pub local_port: u32,
}

/// `struct evtchn_bind_virq`: a port for a virtual interrupt.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BindVirq {
    /// `VIRQ_*`.
    pub virq: u32,
    /// 0 for a global one.
    pub vcpu: u32,
    /// Out.
    pub port: u32,
}

/// `struct evtchn_bind_pirq`: a port for a device interrupt.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BindPirq {
    /// From `PHYSDEVOP_map_pirq`.
    pub pirq: u32,
    /// `BIND_PIRQ__*`.
    pub flags: u32,
    /// Out.
    pub port: u32,
}

/// `struct evtchn_bind_ipi`: a port by which vCPUs kick one of them.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BindIpi {
    /// The one kicked.
    pub vcpu: u32,
    /// Out.
    pub port: u32,
}

/// `struct evtchn_bind_vcpu`: which vCPU a port notifies.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BindVcpu {
    /// The port.
    pub port: u32,
    /// The vCPU.
    pub vcpu: u32,
}

/// `struct evtchn_send`: the argument of send, close and unmask.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Port {
    /// The port.
    pub port: u32,
}

/// `struct evtchn_status`: what a port is.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Status {
    /// Whose port.
    pub dom: u16,
    /// Unused.
    pub pad0: u16,
    /// The port.
    pub port: u32,
    /// `EVTCHNSTAT_*`, out.
    pub status: u32,
    /// Out.
    pub vcpu: u32,
    /// Peer domain (low 16 bits), pirq or virq; out.
    pub u0: u32,
    /// Peer port; out.
    pub u1: u32,
}

const _: () = assert!(size_of::<AllocUnbound>() == 8);
const _: () = assert!(size_of::<BindInterdomain>() == 12);
const _: () = assert!(size_of::<BindVirq>() == 12);
const _: () = assert!(size_of::<BindPirq>() == 12);
const _: () = assert!(size_of::<BindIpi>() == 8);
const _: () = assert!(size_of::<BindVcpu>() == 8);
const _: () = assert!(size_of::<Port>() == 4);
const _: () = assert!(size_of::<Status>() == 24);

abi_check! {
    header "event_channel.h";
    struct "struct evtchn_alloc_unbound" = AllocUnbound { "dom" => dom, "remote_dom" => remote_dom, "port" => port };
    struct "struct evtchn_bind_interdomain" = BindInterdomain { "remote_dom" => remote_dom, "remote_port" => remote_port, "local_port" => local_port };
    struct "struct evtchn_bind_virq" = BindVirq { "virq" => virq, "vcpu" => vcpu, "port" => port };
    struct "struct evtchn_bind_pirq" = BindPirq { "pirq" => pirq, "flags" => flags, "port" => port };
    struct "struct evtchn_bind_ipi" = BindIpi { "vcpu" => vcpu, "port" => port };
    struct "struct evtchn_bind_vcpu" = BindVcpu { "port" => port, "vcpu" => vcpu };
    struct "struct evtchn_send" = Port { "port" => port };
    struct "struct evtchn_status" = Status { "dom" => dom, "port" => port, "status" => status, "vcpu" => vcpu, "u" => u0, "u.interdomain.port" => u1 };
    const "EVTCHNOP_bind_interdomain" = EVTCHNOP_BIND_INTERDOMAIN;
    const "EVTCHNOP_bind_virq" = EVTCHNOP_BIND_VIRQ;
    const "EVTCHNOP_bind_pirq" = EVTCHNOP_BIND_PIRQ;
    const "EVTCHNOP_close" = EVTCHNOP_CLOSE;
    const "EVTCHNOP_send" = EVTCHNOP_SEND;
    const "EVTCHNOP_status" = EVTCHNOP_STATUS;
    const "EVTCHNOP_alloc_unbound" = EVTCHNOP_ALLOC_UNBOUND;
    const "EVTCHNOP_bind_ipi" = EVTCHNOP_BIND_IPI;
    const "EVTCHNOP_bind_vcpu" = EVTCHNOP_BIND_VCPU;
    const "EVTCHNOP_unmask" = EVTCHNOP_UNMASK;
    const "EVTCHNOP_reset" = EVTCHNOP_RESET;
    const "EVTCHN_2L_NR_CHANNELS" = EVTCHN_2L_NR_CHANNELS;
    const "EVTCHNSTAT_closed" = EVTCHNSTAT_CLOSED;
    const "EVTCHNSTAT_unbound" = EVTCHNSTAT_UNBOUND;
    const "EVTCHNSTAT_interdomain" = EVTCHNSTAT_INTERDOMAIN;
    const "EVTCHNSTAT_pirq" = EVTCHNSTAT_PIRQ;
    const "EVTCHNSTAT_virq" = EVTCHNSTAT_VIRQ;
    const "EVTCHNSTAT_ipi" = EVTCHNSTAT_IPI;
}
