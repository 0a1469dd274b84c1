//! The host as its services share it: on the MC vCPU that started them.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::pin::pin;
use core::time::Duration;

use futures_util::future::select;
use toolstack_boot::HostConfig;
use toolstack_domain::hypercalls::Hypercalls;
use toolstack_domain::xen::{CallError, HostFacts, Xen};
use toolstack_rpc::RpcError;
use toolstack_rpc::message::PowerAction;

use super::guests::Guests;
use super::network::Network;
use super::storage::Storage;
use super::store::Store;
use crate::exec;
use crate::power::Power;
use crate::sync::Notify;
use crate::time;
use crate::topology::Topology;
use crate::xen_calls::XenCalls;

/// The hypercalls; they have no state.
pub static CALLS: XenCalls = XenCalls;

/// What all services know.
pub struct Host {
    /// What the host was told at boot.
    pub config: HostConfig,
    /// The running Xen.
    pub xen: Xen<'static, XenCalls>,
    /// As in "4.20".
    pub xen_version: String,
    /// System time when the kernel started.
    pub started_ns: u64,
    /// Where our vCPUs are.
    pub topology: Arc<Topology>,
    /// Physical CPUs of the main container.
    pub mc_cpus: Vec<u32>,
    /// How the machine is turned off.
    pub power: Power,
    /// The xenstore.
    pub store: Rc<Store>,
    /// Guests.
    pub guests: Guests,
    /// Volumes and images; none without a usable disk.
    pub storage: Option<Rc<Storage>>,
    /// Switch and NIC.
    pub network: Network,
    /// How the host ends.
    pub end: End,
}

/// How the host ends, once an administrator has asked for it.
#[derive(Default)]
pub struct End {
    /// What was asked for.
    asked: Cell<Option<PowerAction>>,
    /// Without waiting for guests.
    force: Cell<bool>,
    /// `force` was set while guests were waited for.
    hurry: Notify,
    /// Answers to those who asked that may not have reached them.
    answers: Cell<u32>,
    /// There is one less of them.
    answered: Notify,
}

/// An administrator's request to end the host, until he has the answer.
pub struct Asking(Rc<Host>);

impl Drop for Asking {
    fn drop(&mut self) {
        let end = &self.0.end;
        end.answers.set(end.answers.get() - 1);
        end.answered.notify_all();
    }
}

/// How long guests may take to shut down before the host goes anyway.
const SHUTDOWN_TIME: Duration = Duration::from_secs(120);
/// How long guests may then take to be destroyed: one whose disk was given up never is.
const DESTROY_TIME: Duration = Duration::from_secs(30);
/// How long the host stays for its answer to reach who asked for its end.
pub const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The most of Xen's console ring that is read: its default size is far below.
const MAX_XEN_LOG: usize = 1 << 20;

impl Host {
    /// What Xen says of the machine now.
    pub fn facts(&self) -> Result<HostFacts, RpcError> {
        self.xen.host_facts().map_err(refused)
    }

    /// For how long each of our vCPUs has run, in nanoseconds.
    pub fn vcpu_times(&self) -> Result<Vec<u64>, RpcError> {
        let own = self.xen.calls().own_domid();
        (0..crate::exec::vcpu_count())
            .map(|vcpu| self.xen.vcpu_info(own, vcpu).map(|info| info.cpu_time))
            .collect::<Result<_, _>>()
            .map_err(refused)
    }

    /// What is in Xen's console ring.
    pub fn xen_log(&self) -> Result<Vec<u8>, RpcError> {
        let mut log = Vec::new();
        let mut index = 0;
        let mut chunk = vec![0; 16 * 1024];
        while log.len() < MAX_XEN_LOG {
            let (count, next) = self
                .xen
                .read_console(Some(index), &mut chunk)
                .map_err(refused)?;
            if count == 0 {
                break;
            }
            log.extend_from_slice(&chunk[..count]);
            index = next;
        }
        Ok(log)
    }

    /// Turns the host off, or resets it: begins with it at once. Asked again it goes on, but
    /// `force` counts, and what is asked for with it. It does not go before the result is
    /// dropped, or [`ANSWER_TIME`] is over.
    pub fn go_down(
        self: &Rc<Self>,
        action: PowerAction,
        force: bool,
    ) -> (Asking, Result<(), RpcError>) {
        let end = &self.end;
        end.answers.set(end.answers.get() + 1);
        let asking = Asking(self.clone());
        let first = end.asked.get().is_none();
        if !first && (!force || end.force.get()) {
            return (asking, Err(self.guests.going_down()));
        }
        log::info!(
            "host: going {}{}",
            match action {
                PowerAction::PowerOff => "to power off",
                PowerAction::Reboot => "to reboot",
            },
            if force { ", without waiting" } else { "" }
        );
        end.asked.set(Some(action));
        end.force.set(force);
        self.guests.leave();
        if first {
            exec::spawn_local(self.clone().power_down());
        } else {
            end.hurry.notify_all();
        }
        (asking, Ok(()))
    }

    /// Ends all guests, quiesces the devices and does what was asked for.
    async fn power_down(self: Rc<Self>) {
        if !self.end.force.get() {
            let hurry = pin!(self.end.hurry.changed(self.end.hurry.generation()));
            let all = pin!(self.guests.shut_down_all(&self));
            if time::timeout(select(all, hurry), SHUTDOWN_TIME)
                .await
                .is_err()
            {
                log::warn!(
                    "host: guests did not shut down in {} s: destroying them",
                    SHUTDOWN_TIME.as_secs()
                );
            }
        }
        let destroyed = time::timeout(self.guests.destroy_all(&self), DESTROY_TIME).await;
        if destroyed.is_err() {
            log::error!(
                "host: going without the end of {}: not destroyed in {} s",
                self.guests.names(),
                DESTROY_TIME.as_secs()
            );
        }
        if let Some(storage) = &self.storage {
            storage.shut_down().await;
        }
        if time::timeout(self.answered(), ANSWER_TIME).await.is_err() {
            log::warn!("host: going without knowing that the answer arrived");
        }
        self.network.quiesce();
        match self.end.asked.get() {
            Some(PowerAction::PowerOff) => self.power.off(),
            Some(PowerAction::Reboot) | None => self.power.reboot(),
        }
    }

    /// Waits until all who asked for the host's end have their answers.
    async fn answered(&self) {
        loop {
            let seen = self.end.answered.generation();
            if self.end.answers.get() == 0 {
                return;
            }
            self.end.answered.changed(seen).await;
        }
    }
}

/// Xen's refusal, for the administrator.
pub fn refused(error: CallError) -> RpcError {
    RpcError::Hypervisor {
        operation: error.call.into(),
        errno: error.errno.0.unsigned_abs(),
    }
}

/// A failure of ours, for the administrator.
pub fn failed(what: &str, why: impl core::fmt::Display) -> RpcError {
    RpcError::Failed {
        what: what.into(),
        why: format!("{why}"),
    }
}
