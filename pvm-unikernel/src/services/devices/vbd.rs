//! A guest's disk.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use backend_blk::{
    Counters, Device, End, Extent, FrontendNodes, Geometry, MapLimit, Stop, Told, Volume,
    backend_nodes, serve,
};
use hal::VcpuId;
use toolstack_domain::config;
use toolstack_domain::nodes::{DevicePaths, Node, vbd_nodes};
use toolstack_domain::vdev;
use toolstack_rpc::RpcError;
use xen_abi::DomId;

use super::{BACKEND, Backend, Kind};
use crate::event::Port;
use crate::exec::{self, Account};
use crate::grants::GuestGrants;
use crate::mem::NodeFrames;
use crate::services::host::Host;
use crate::services::storage;
use crate::sync::Notify;

/// Pages that all disks' requests together may have mapped: half of what Xen lets dom0 map
/// (`gnttab_max_maptrack_frames`, by default 1024 frames of 256 mappings), so that the other
/// half is there for everybody's rings, of which a guest has a few dozen pages.
static MAPS: MapLimit = MapLimit::new(1024 * 256 / 2);

/// One vbd.
pub struct Vbd {
    name: String,
    guest: DomId,
    config: config::Disk,
    paths: DevicePaths,
    /// Where its volume is, which stays the guest's own for longer than this lives.
    extent: Extent,
    geometry: Geometry,
    vcpu: VcpuId,
    node: hal::Node,
    account: Account,
    counters: Arc<Counters>,
    told: Arc<Told>,
}

impl Vbd {
    pub fn open(
        host: &Rc<Host>,
        guest: DomId,
        config: &config::Disk,
        extent: Extent,
        vcpu: VcpuId,
        account: &Account,
    ) -> Result<Self, RpcError> {
        let number = vdev::device_number(&config.vdev).ok_or_else(|| RpcError::BadConfig {
            key: "disk".into(),
            why: format!("vdev {:?} is no name of a disk", config.vdev),
        })?;
        let place = toolstack_rpc::error::Place::Volumes;
        let storage = host.storage.as_ref().ok_or(RpcError::NoDisk { place })?;
        let geometry = storage.geometry_of(extent);
        // The task must be where the disk has a queue.
        let vcpu = storage.nearest_queue(vcpu, &host.topology);
        Ok(Self {
            name: format!("d{guest}/{}", config.vdev),
            guest,
            config: config.clone(),
            paths: DevicePaths::new("vbd", BACKEND, guest, number),
            extent,
            geometry,
            vcpu,
            node: host.topology.node_of(vcpu),
            account: account.clone(),
            counters: Arc::new(Counters::default()),
            told: Arc::default(),
        })
    }
}

/// Asks a task on another vCPU to stop.
#[derive(Default)]
struct Signal {
    given: AtomicBool,
    changed: Notify,
}

impl Signal {
    fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    async fn wait(&self) {
        loop {
            let seen = self.changed.generation();
            if self.given.load(Ordering::Acquire) {
                return;
            }
            self.changed.changed(seen).await;
        }
    }
}

impl Kind for Vbd {
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
        // `open` checked the name that this depends on.
        vbd_nodes(BACKEND, self.guest, &self.config).unwrap_or_default()
    }

    fn features(&self) -> Vec<(String, String)> {
        strings(backend_nodes(&self.geometry, !self.config.writable).features)
    }

    fn connect(&mut self, read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<Backend, String> {
        let nodes = FrontendNodes::parse(read).map_err(|e| e.to_string())?;
        let signal = Arc::new(Signal::default());
        let (guest, node, name) = (self.guest, self.node, self.name.clone());
        let (extent, read_only) = (self.extent, !self.config.writable);
        let (counters, told) = (self.counters.clone(), self.told.clone());
        let asked = signal.clone();
        let task = exec::spawn_on_for(self.vcpu, &self.account, move || async move {
            let events = Port::bind_interdomain(guest, nodes.event_channel)
                .map_err(|e| format!("event channel {}: {e}", nodes.event_channel))?;
            let disk = storage::disk_here().ok_or("this vCPU has no queue of the disk")?;
            let disk = Volume::new(disk, extent, read_only).map_err(|e| e.to_string())?;
            let stop = Stop::new();
            let device = Device {
                name,
                grants: GuestGrants::new(guest),
                events,
                disk,
                ring: nodes.ring,
                protocol: nodes.protocol,
                dma: Rc::new(NodeFrames),
                node,
                counters,
                told,
                maps: &MAPS,
                stop: stop.clone(),
            };
            // The backend's stop is its vCPU's own.
            let relay = exec::spawn_local(async move {
                asked.wait().await;
                stop.request();
            });
            let end = serve(device).await;
            relay.cancel();
            match end {
                End::Stopped => Ok(()),
                End::Map(status) => Err(format!("its ring cannot be mapped: {status}")),
                End::Ring(error) => Err(error.to_string()),
                End::NoMemory => Err("no memory".into()),
            }
        });
        Ok(Backend {
            stop: Box::new(move || signal.give()),
            task,
        })
    }

    fn details(&self) -> Vec<(String, String)> {
        strings(backend_nodes(&self.geometry, !self.config.writable).disk)
    }

    fn gone(&mut self) {
        log::info!("{}: {}", self.name, self.counters.snapshot());
    }
}

fn strings(nodes: Vec<(&'static str, String)>) -> Vec<(String, String)> {
    nodes
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect()
}
