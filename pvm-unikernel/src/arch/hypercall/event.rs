//! `event_channel_op`.

use super::{Errno, address, raw};
use xen_abi::event_channel as abi;
use xen_abi::xen::hypercall::EVENT_CHANNEL_OP;
use xen_abi::{DomId, EvtchnPort};

fn op<T>(command: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: every caller below pairs the command with its own structure, which Xen
    // copies in and out whole.
    let answer = unsafe {
        raw(
            EVENT_CHANNEL_OP,
            [u64::from(command), address(argument), 0, 0, 0],
        )
    };
    answer.map(|_| ())
}

/// A new port of `dom` that `remote` may bind to.
///
/// # Errors
/// `ENOSPC`: no port left; `ESRCH`: no such domain.
pub fn alloc_unbound(dom: DomId, remote: DomId) -> Result<EvtchnPort, Errno> {
    let mut argument = abi::AllocUnbound {
        dom: dom.0,
        remote_dom: remote.0,
        port: 0,
    };
    op(abi::EVTCHNOP_ALLOC_UNBOUND, &mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// Binds to the port that `remote` keeps for us.
///
/// # Errors
/// `EINVAL`: that port is not ours to bind; `ENOSPC`, `ESRCH` as above.
pub fn bind_interdomain(remote: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno> {
    let mut argument = abi::BindInterdomain {
        remote_dom: remote.0,
        pad: 0,
        remote_port: port.0,
        local_port: 0,
    };
    op(abi::EVTCHNOP_BIND_INTERDOMAIN, &mut argument)?;
    Ok(EvtchnPort(argument.local_port))
}

/// A port for a virtual interrupt; global ones want `vcpu` 0.
///
/// # Errors
/// `EEXIST`: already bound.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<EvtchnPort, Errno> {
    let mut argument = abi::BindVirq {
        virq,
        vcpu,
        port: 0,
    };
    op(abi::EVTCHNOP_BIND_VIRQ, &mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// A port for a device interrupt.
///
/// # Errors
/// `EINVAL`: not mapped; `EEXIST`: already bound.
pub fn bind_pirq(pirq: u32) -> Result<EvtchnPort, Errno> {
    let mut argument = abi::BindPirq {
        pirq,
        flags: 0,
        port: 0,
    };
    op(abi::EVTCHNOP_BIND_PIRQ, &mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// A port by which any vCPU kicks `vcpu`.
///
/// # Errors
/// `ENOENT`: no such vCPU.
pub fn bind_ipi(vcpu: u32) -> Result<EvtchnPort, Errno> {
    let mut argument = abi::BindIpi { vcpu, port: 0 };
    op(abi::EVTCHNOP_BIND_IPI, &mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// Moves a port's notifications to `vcpu`; not for IPIs and per-vCPU interrupts.
///
/// # Errors
/// `EINVAL`: such a port.
pub fn bind_vcpu(port: EvtchnPort, vcpu: u32) -> Result<(), Errno> {
    op(
        abi::EVTCHNOP_BIND_VCPU,
        &mut abi::BindVcpu { port: port.0, vcpu },
    )
}

/// Kicks the peer of `port`.
///
/// # Errors
/// `EINVAL`: the port is closed, or unbound at the other end for good.
pub fn send(port: EvtchnPort) -> Result<(), Errno> {
    op(abi::EVTCHNOP_SEND, &mut abi::Port { port: port.0 })
}

/// Clears the mask bit and delivers what is pending. Does nothing if the bit was clear.
///
/// # Errors
/// `EINVAL`: no such port.
pub fn unmask(port: EvtchnPort) -> Result<(), Errno> {
    op(abi::EVTCHNOP_UNMASK, &mut abi::Port { port: port.0 })
}

/// Closes a port.
///
/// # Errors
/// `EINVAL`: no such port.
pub fn close(port: EvtchnPort) -> Result<(), Errno> {
    op(abi::EVTCHNOP_CLOSE, &mut abi::Port { port: port.0 })
}

/// What `port` of `dom` is.
///
/// # Errors
/// `EINVAL`: beyond the last port; `ESRCH`: no such domain.
pub fn status(dom: DomId, port: EvtchnPort) -> Result<abi::Status, Errno> {
    let mut argument = abi::Status {
        dom: dom.0,
        port: port.0,
        ..abi::Status::default()
    };
    op(abi::EVTCHNOP_STATUS, &mut argument)?;
    Ok(argument)
}
