//! Storage: one NVMe disk with a queue for each vCPU, its volumes, its image area.
//!
//! The table of volumes and the image area are managed on the MC vCPU; guests' tasks use
//! the disk through their own vCPU's queue ([`disk_here`]).

mod claims;
mod images;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{OnceCell, RefCell};

use backend_blk::gpt::{Gpt, GptError, Guid, Health, Overwrite, VolumeInfo};
use backend_blk::images::{ImageArea, area_size};
use backend_blk::{ByteIo, Disk, Extent, Geometry, QueueDisk, SECTOR, Volume};
use driver_nvme::Nvme;
use driver_pci::Function;
use hal::block::{self, BlockDevice};
use hal::{Node, VcpuId};
use toolstack_rpc::RpcError;
use toolstack_rpc::error::Place;
use toolstack_rpc::message::Space;

use crate::arch::{MAX_VCPUS, PerCpu};
use crate::clock::VcpuTimer;
use crate::mem::NodeFrames;
use crate::pci::{Ecam, XenPciFunction};
use crate::sync::local::Mutex;
use crate::topology::Topology;
use crate::{exec, rng};

pub use claims::VolumeClaim;
pub use images::{ImageLease, Needed, area_error};

/// PCI class of an NVMe controller.
const NVME_CLASS: u32 = 0x01_0802;

/// Who has a volume whose filling failed, and which could not be removed then.
pub const UNFINISHED: &str = "its unfinished creation";
/// Who has a volume whose contents were being replaced when that was cut off, by the
/// administrator's end or the host's.
pub const CUT_OFF: &str = "an import that was cut off";

/// Each vCPU's queue of the disk.
static DISKS: PerCpu<OnceCell<QueueDisk>> = PerCpu::new([const { OnceCell::new() }; MAX_VCPUS]);

/// The disk through the running vCPU's queue; none: the disk had too few queues.
pub fn disk_here() -> Option<QueueDisk> {
    DISKS.here().get().cloned()
}

/// The host's disk.
pub struct Storage {
    nvme: Arc<Nvme>,
    function: XenPciFunction,
    geometry: Geometry,
    gpt: Mutex<Gpt<QueueDisk>>,
    area: ImageArea<Volume<QueueDisk>>,
    /// Who has which volume.
    claims: RefCell<BTreeMap<String, Vec<Rc<claims::Claim>>>>,
}

impl Storage {
    /// Starts the first NVMe disk. A blank disk becomes ours, and one with an empty partition
    /// table; one that holds something else, and nothing of ours, is left alone. `None`: there
    /// is no disk to be used, and the log says why.
    pub async fn start(
        ecam: &Rc<Ecam>,
        functions: &[Function],
        topology: &Arc<Topology>,
    ) -> Option<Rc<Self>> {
        let mut disks = functions.iter().filter(|f| f.class == NVME_CLASS);
        let Some(function) = disks.next() else {
            log::warn!("storage: no NVMe disk");
            return None;
        };
        for other in disks {
            log::info!("storage: disk {} is not used", other.address);
        }
        match Self::open(ecam, *function, topology).await {
            Ok(storage) => Some(Rc::new(storage)),
            Err(why) => {
                log::error!("storage: disk {}: {why}", function.address);
                None
            }
        }
    }

    async fn open(
        ecam: &Rc<Ecam>,
        function: Function,
        topology: &Topology,
    ) -> Result<Self, String> {
        let text = |e: &dyn core::fmt::Display| e.to_string();
        let function =
            XenPciFunction::claim(ecam.clone(), function, Node(0)).map_err(|e| text(&e))?;
        // The MC's queue first: without it nothing could be managed.
        let mut places = topology.service_vcpus();
        places.sort_by_key(|(vcpu, _)| !topology.is_mc(*vcpu));
        let timer = Rc::new(VcpuTimer::default());
        let (nvme, supervisor) =
            driver_nvme::start(&function, exec::current(), &places, &NodeFrames, timer)
                .await
                .map_err(|e| text(&e))?;
        exec::spawn_local(supervisor.run());
        let mut taken = Vec::new();
        for queue in 0..nvme.queues() {
            let vcpu = nvme.queue_vcpu(queue);
            let line = function
                .bind_vector(nvme.queue_vector(queue), vcpu)
                .map_err(|e| text(&e))?;
            let nvme = nvme.clone();
            taken.push(exec::spawn_on(vcpu, move || async move {
                let timer = Rc::new(VcpuTimer::default());
                let Some(rings) = nvme.take_queue(queue, Box::new(line), timer) else {
                    return log::error!("storage: queue {queue} is taken");
                };
                let disk = QueueDisk(rings.clone());
                if DISKS.here().set(disk).is_err() {
                    log::error!("storage: vCPU {} has a queue already", vcpu.0);
                }
                exec::spawn_local(async move {
                    block::service(&*rings).await;
                    log::error!("storage: the disk has failed for good");
                });
            }));
        }
        for task in taken {
            task.await.map_err(|e| text(&e))?;
        }
        let disk = disk_here().ok_or("no queue for the main container")?;
        let geometry = disk.geometry();
        let node = topology.node_of(exec::current());
        let io = ByteIo::new(disk.clone(), Rc::new(NodeFrames), node);
        let mut gpt = open_table(io.clone()).await.map_err(|e| text(&e))?;
        let no_area = |e: &dyn core::fmt::Display| format!("no image area: {e}");
        let (extent, new) = gpt
            .image_area(area_size(geometry.sectors), new_guid())
            .await
            .map_err(|e| no_area(&e))?;
        let io = io.on(Volume::new(disk, extent, false).map_err(|e| text(&e))?);
        let area = if new {
            ImageArea::format(io).await
        } else {
            ImageArea::open(io).await
        };
        let area = area.map_err(|e| no_area(&e))?;
        log::info!(
            "storage: {} volumes, {} images",
            gpt.volumes().len(),
            area.objects().len()
        );
        Ok(Self {
            nvme,
            function,
            geometry,
            gpt: Mutex::new(gpt),
            area,
            claims: RefCell::default(),
        })
    }

    /// The vCPU whose queue a task that should be on `vcpu` can use: if not its own, one on its
    /// node rather than elsewhere, and a guest's core rather than the main container's.
    pub fn nearest_queue(&self, vcpu: VcpuId, topology: &Topology) -> VcpuId {
        let queues = (0..self.nvme.queues()).map(|q| self.nvme.queue_vcpu(q));
        hal::nearest_queue(vcpu, topology.nodes(), queues, |to| topology.is_mc(to))
    }

    /// Size and habits of a part of the disk.
    pub fn geometry_of(&self, extent: Extent) -> Geometry {
        Geometry {
            sectors: extent.sectors,
            ..self.geometry
        }
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Vec<VolumeInfo> {
        self.gpt.lock().await.volumes()
    }

    /// Makes a volume for `owner`. What it holds is unspecified until it was written, so
    /// nobody else gets it before [`VolumeClaim::filled`], and a crash before that removes it.
    pub async fn create_volume(
        self: &Rc<Self>,
        name: &str,
        bytes: u64,
        owner: &'static str,
    ) -> Result<VolumeClaim, RpcError> {
        let mut gpt = self.gpt.lock().await;
        let free = gpt.free().1 * SECTOR;
        let created = gpt
            .create_volume(name, bytes.div_ceil(SECTOR), new_guid())
            .await;
        let handle = created.map_err(|error| table_error(error, name, bytes, free))?;
        self.enter(handle, owner, true)
    }

    /// Removes a volume that nobody has.
    pub async fn remove_volume(&self, name: &str) -> Result<(), RpcError> {
        if let Some(by) = self.owner(name) {
            return Err(RpcError::VolumeInUse {
                name: name.into(),
                by,
            });
        }
        let mut gpt = self.gpt.lock().await;
        gpt.remove_volume(name)
            .await
            .map_err(|error| table_error(error, name, 0, 0))
    }

    /// Bytes of a claimed volume, on the running (MC) vCPU.
    pub fn bytes_of(&self, claim: &VolumeClaim) -> Result<ByteIo<Volume<QueueDisk>>, RpcError> {
        let failed = |why: String| RpcError::DiskFailed {
            what: claim.name().into(),
            why,
        };
        let disk = disk_here().ok_or_else(|| failed("no queue on this vCPU".into()))?;
        let volume = Volume::new(disk, claim.extent(), !claim.writable())
            .map_err(|e| failed(e.to_string()))?;
        Ok(ByteIo::new(volume, Rc::new(NodeFrames), Node(0)))
    }

    /// The space for volumes.
    pub async fn volume_space(&self) -> Space {
        let free = self.gpt.lock().await.free().0;
        Space {
            total: self.geometry.sectors * SECTOR,
            free: free * SECTOR,
        }
    }

    /// Empties the disk's caches and ends its DMA, before the machine is turned off.
    pub async fn shut_down(&self) {
        if let Err(error) = self.nvme.shutdown(&VcpuTimer::default()).await {
            log::error!("storage: the disk does not shut down: {error}");
        }
        self.function.quiesce();
    }
}

async fn open_table(io: ByteIo<QueueDisk>) -> Result<Gpt<QueueDisk>, GptError> {
    match Gpt::open(io.clone()).await {
        Ok((gpt, Health::Good)) => Ok(gpt),
        Ok((gpt, Health::OneCopy(error))) => {
            log::error!("storage: only one copy of the table of volumes can be used: {error}");
            Ok(gpt)
        }
        Ok((gpt, health)) => {
            log::warn!("storage: the table of volumes was repaired: {health:?}");
            Ok(gpt)
        }
        Err(GptError::Blank) => {
            log::info!("storage: the disk is blank: it gets a table of volumes");
            Gpt::create(io, new_guid(), Overwrite::No).await
        }
        Err(error) => Err(error),
    }
}

fn new_guid() -> Guid {
    let mut bytes = [0; 16];
    rng::fill(&mut bytes);
    Guid::from_random(bytes)
}

/// An error of the table, for the administrator.
fn table_error(error: GptError, name: &str, asked: u64, free: u64) -> RpcError {
    let name = || String::from(name);
    match error {
        GptError::NoSuchVolume => RpcError::NoSuchVolume { name: name() },
        GptError::Exists => RpcError::VolumeExists { name: name() },
        GptError::Filling => RpcError::VolumeInUse {
            name: name(),
            by: UNFINISHED.into(),
        },
        GptError::Overwriting => RpcError::VolumeInUse {
            name: name(),
            by: format!("{CUT_OFF}; import it again with --overwrite, or remove it"),
        },
        GptError::InDoubt => RpcError::DiskFailed {
            what: format!("volume {}", name()),
            why: error.to_string(),
        },
        GptError::InUse(_) => RpcError::VolumeInUse {
            name: name(),
            by: "another request".into(),
        },
        GptError::NoSpace(_) => RpcError::NoSpace {
            place: Place::Volumes,
            asked,
            free,
        },
        GptError::BadName => RpcError::BadName {
            name: name(),
            why: error.to_string(),
        },
        other => RpcError::DiskFailed {
            what: "the table of volumes".into(),
            why: other.to_string(),
        },
    }
}
