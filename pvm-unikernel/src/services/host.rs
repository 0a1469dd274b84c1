//! The host as its services share it: on the MC vCPU that started them.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use toolstack_boot::HostConfig;
use toolstack_domain::hypercalls::Hypercalls;
use toolstack_domain::xen::{CallError, HostFacts, Xen};
use toolstack_rpc::RpcError;
use toolstack_rpc::message::PowerAction;

use super::guests::Guests;
use super::network::Network;
use super::storage::Storage;
use super::store::Store;
use crate::power::Power;
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
}

/// How long guests may take to shut down before the host goes anyway.
const SHUTDOWN_TIME: Duration = Duration::from_secs(120);
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

    /// Ends all guests, quiesces the devices and turns the host off, or resets it.
    pub async fn power_down(self: &Rc<Self>, action: PowerAction, force: bool) -> ! {
        log::info!(
            "host: going down: {action:?}{}",
            if force { ", by force" } else { "" }
        );
        if !force {
            let all = self.guests.shut_down_all(self);
            if time::timeout(all, SHUTDOWN_TIME).await.is_err() {
                log::warn!("host: guests did not shut down in {SHUTDOWN_TIME:?}: destroying them");
            }
        }
        self.guests.destroy_all(self).await;
        if let Some(storage) = &self.storage {
            storage.shut_down().await;
        }
        self.network.quiesce();
        match action {
            PowerAction::PowerOff => self.power.off(),
            PowerAction::Reboot => self.power.reboot(),
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
