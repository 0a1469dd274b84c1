//! A guest's network device.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use backend_net::nodes::QueueEvents;
use backend_net::vif::{self, VifEvents};
use backend_net::{Counters, FrontendNodes, backend_nodes, stop_pair};
use hal::VcpuId;
use hal::net::MacAddr;
use toolstack_domain::config;
use toolstack_domain::nodes::{DevicePaths, Node, vif_nodes};
use toolstack_rpc::RpcError;
use xen_abi::DomId;

use super::{BACKEND, Backend, Kind};
use crate::clock::VcpuTimer;
use crate::event::Port;
use crate::exec::{self, Account};
use crate::grants::GuestGrants;
use crate::services::host::Host;
use crate::services::network;

/// One vif.
pub struct Vif {
    host: Rc<Host>,
    name: String,
    guest: DomId,
    handle: u32,
    config: config::Vif,
    paths: DevicePaths,
    vcpu: VcpuId,
    account: Account,
    counters: Arc<Counters>,
}

impl Vif {
    pub fn open(
        host: &Rc<Host>,
        guest: DomId,
        handle: u32,
        config: &config::Vif,
        vcpu: VcpuId,
        account: &Account,
    ) -> Result<Self, RpcError> {
        // No other guest has it, but the host may. Taken when the frontend connects; but said
        // at once.
        host.network
            .check_free(MacAddr(config.mac))
            .map_err(|error| RpcError::BadConfig {
                key: "vif".into(),
                why: error.to_string(),
            })?;
        Ok(Self {
            host: host.clone(),
            name: format!("d{guest}/vif{handle}"),
            guest,
            handle,
            config: *config,
            paths: DevicePaths::new("vif", BACKEND, guest, handle),
            vcpu,
            account: account.clone(),
            counters: Arc::new(Counters::default()),
        })
    }
}

impl Kind for Vif {
    fn name(&self) -> &str {
        &self.name
    }

    fn guest(&self) -> DomId {
        self.guest
    }

    fn paths(&self) -> &DevicePaths {
        &self.paths
    }

    fn nodes(&self) -> Vec<Node> {
        vif_nodes(BACKEND, self.guest, self.handle, &self.config)
    }

    fn features(&self) -> Vec<(String, String)> {
        backend_nodes()
            .into_iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    fn connect(&mut self, read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<Backend, String> {
        let nodes = FrontendNodes::parse(read).map_err(|e| e.to_string())?;
        let queue = nodes.queues[0];
        let port = self
            .host
            .network
            .add_guest(MacAddr(self.config.mac))
            .map_err(|e| e.to_string())?
            .of_guest(self.guest);
        let (stopper, stop) = stop_pair();
        let (guest, vcpu, features) = (self.guest, self.vcpu, nodes.features);
        let (counters, topology) = (self.counters.clone(), self.host.topology.clone());
        let task = exec::spawn_on_for(vcpu, &self.account, move || async move {
            let bind = |port| {
                Port::bind_interdomain(guest, port)
                    .map_err(|e| format!("event channel {port}: {e}"))
            };
            let events = match queue.events {
                QueueEvents::Shared(port) => VifEvents {
                    tx: bind(port)?,
                    rx: None,
                },
                QueueEvents::Split { tx, rx } => VifEvents {
                    tx: bind(tx)?,
                    rx: Some(bind(rx)?),
                },
            };
            let device = vif::Vif {
                grants: GuestGrants::new(guest),
                events,
                queue,
                features,
                port,
                vcpu,
                pool: network::pool(&topology),
                timer: VcpuTimer::default(),
                counters,
            };
            vif::serve(device, stop).await.map_err(|e| e.to_string())
        });
        Ok(Backend {
            stop: Box::new(move || stopper.stop()),
            task,
        })
    }

    fn details(&self) -> Vec<(String, String)> {
        Vec::from([(String::from("hotplug-status"), String::from("connected"))])
    }

    fn gone(&mut self) {
        log::info!("{}: {}", self.name, self.counters.snapshot());
        self.host.network.set_filters();
    }
}
