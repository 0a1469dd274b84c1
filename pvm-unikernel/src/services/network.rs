//! The network: one NIC as uplink with a queue for each vCPU, the switch, the port of our
//! own stack.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::fmt;
use core::time::Duration;

use backend_net::switch::SwitchError;
use backend_net::uplink::{self, Uplink};
use backend_net::{Limits, LocalPort, Port, Stopper, Switch, stop_pair};
use driver_igb::Igb;
use driver_pci::Function;
use hal::Node;
use hal::net::{
    BUFFER_SIZE, Filtering, Link, MacAddr, NetDevice, PacketPool, PoolGauge, Statistics,
};
use toolstack_boot::nic::{Found, FoundState, NoNic};
use toolstack_boot::{Nic, PciAddress};

use crate::arch::{MAX_VCPUS, PerCpu, SpinLock};
use crate::clock::VcpuTimer;
use crate::event::Port as EventPort;
use crate::exec;
use crate::mem::NodeFrames;
use crate::pci::{Ecam, XenPciFunction};
use crate::time;
use crate::topology::Topology;

/// Payload of a frame on the wire.
const MTU: u16 = 1500;
/// Packet buffers (pages) that a vCPU's tasks may hold at most: its NIC queue's receive
/// ring, and what its guests have in flight. Allocated as traffic needs them.
const POOL_PAGES: usize = toolstack_domain::placement::PACKETS;

/// How often losses are told, if there are new ones.
const REPORT: Duration = Duration::from_secs(60);

/// Each vCPU's packet memory, on its node.
static POOLS: PerCpu<OnceCell<PacketPool>> = PerCpu::new([const { OnceCell::new() }; MAX_VCPUS]);

/// Of all vCPUs' packet memory.
static GAUGES: SpinLock<Vec<PoolGauge>> = SpinLock::new(Vec::new());

/// The running vCPU's packet memory.
pub fn pool(topology: &Topology) -> PacketPool {
    let node = topology.node_of(exec::current());
    let new = || {
        let pool = PacketPool::new(Rc::new(NodeFrames), node, POOL_PAGES);
        GAUGES.lock().push(pool.gauge());
        pool
    };
    POOLS.here().get_or_init(new).clone()
}

/// Bytes of packet memory that holds no packet and waits for the next one.
pub fn idle_packet_bytes() -> usize {
    let free = |gauge: &PoolGauge| gauge.usage().free * BUFFER_SIZE;
    GAUGES.lock().iter().map(free).sum()
}

/// The host's network.
pub struct Network {
    switch: Switch,
    nic: Arc<Igb>,
    function: Rc<XenPciFunction>,
    /// Ends the NIC queues' tasks when dropped.
    stoppers: Vec<Stopper>,
    /// What each queue moved.
    counters: Vec<Arc<uplink::Counters>>,
    topology: Arc<Topology>,
}

impl Network {
    /// Starts the NIC that carries the management address, and its queues' tasks.
    ///
    /// # Errors
    /// There is none such. Another one is not taken for it: it may be in a network where
    /// nobody expects the host, and that must not reach it.
    pub async fn start(
        ecam: &Rc<Ecam>,
        functions: &[Function],
        wanted: Nic,
        topology: &Arc<Topology>,
    ) -> Result<Self, NoNic> {
        let candidates = functions
            .iter()
            .filter(|f| driver_igb::IDS.contains(&(f.vendor, f.device)));
        let mut chosen = None;
        let mut found = Vec::new();
        for (index, function) in candidates.enumerate() {
            let address = pci_address(function);
            let state = if chosen.is_some() || !wanted.may_be(index, address) {
                log::info!("network: NIC {address} is not the management NIC: left alone");
                FoundState::NotTried
            } else {
                match start_nic(ecam, *function, topology).await {
                    Ok((_, nic)) if matches!(wanted, Nic::Mac(mac) if mac != nic.mac().0) => {
                        FoundState::Other(nic.mac().0)
                    }
                    Ok(started) => {
                        chosen = Some(started);
                        continue;
                    }
                    Err(error) => {
                        log::error!("network: NIC {address}: {error}");
                        FoundState::Broken
                    }
                }
            };
            found.push(Found { address, state });
        }
        let (function, nic) = chosen.ok_or(NoNic { wanted, found })?;
        Ok(Self::attach(function, nic, topology))
    }

    fn attach(function: XenPciFunction, nic: Igb, topology: &Arc<Topology>) -> Self {
        let address = function.function().address;
        let queues = match nic.queues() {
            1 => "1 queue".into(),
            many => format!("{many} queues"),
        };
        log::info!("network: NIC {address}, MAC {}, {queues}", nic.mac());
        let (function, nic) = (Rc::new(function), Arc::new(nic));
        match function.bind_vector(nic.link_vector(), exec::current()) {
            Ok(line) => drop(exec::spawn_local(follow_link(nic.clone(), line))),
            Err(error) => log::error!("network: NIC {address}: link interrupt: {error}"),
        }
        let switch = Switch::new(topology.nodes());
        let mut stoppers = Vec::new();
        let counters: Vec<Arc<uplink::Counters>> =
            (0..nic.queues()).map(|_| Arc::default()).collect();
        let report = report_losses(nic.clone(), counters.clone());
        drop(exec::spawn_local(report));
        for queue in 0..nic.queues() {
            let vcpu = nic.queue_vcpu(queue);
            let line = match function.bind_vector(nic.queue_vector(queue), vcpu) {
                Ok(line) => line,
                Err(error) => {
                    log::error!("network: NIC {address}: queue {queue}: {error}");
                    continue;
                }
            };
            let (stopper, stop) = stop_pair();
            stoppers.push(stopper);
            let (nic, switch, topology) = (nic.clone(), switch.clone(), topology.clone());
            let counters = counters[queue].clone();
            exec::spawn_on(vcpu, move || async move {
                let pool = pool(&topology);
                let port = match switch.add_uplink(vcpu, Limits::UPLINK) {
                    Ok(port) => port,
                    Err(error) => return log::error!("network: queue {queue}: {error}"),
                };
                let Some(taken) = nic.take_queue(queue, Box::new(line), pool.clone()) else {
                    return log::error!("network: queue {queue} is taken");
                };
                let uplink = Uplink {
                    queue: taken,
                    offloads: nic.offloads(),
                    max_frame: nic.max_frame(),
                    port,
                    pool,
                    timer: VcpuTimer::default(),
                    counters,
                };
                uplink::serve(uplink, stop).await;
            });
        }
        Self {
            switch,
            nic,
            function,
            stoppers,
            counters,
            topology: topology.clone(),
        }
    }

    /// Whether a guest device may have this address: somebody else may have it already.
    pub fn check_free(&self, mac: MacAddr) -> Result<(), SwitchError> {
        self.switch.add_port(mac, Limits::VIF).map(drop)
    }

    /// A place at the switch for a guest device.
    pub fn add_guest(&self, mac: MacAddr) -> Result<Port, SwitchError> {
        let port = self.switch.add_port(mac, Limits::VIF)?;
        self.set_filters();
        Ok(port)
    }

    /// The place of our own stack, on the running vCPU, with the NIC's address.
    pub fn local_port(&self) -> Result<LocalPort, SwitchError> {
        let port = self.switch.add_local_port(self.nic.mac())?;
        self.set_filters();
        Ok(LocalPort::new(port, exec::current(), pool(&self.topology)))
    }

    /// Has the NIC accept frames for every port. To be called again after a port went.
    pub fn set_filters(&self) {
        match self.nic.set_unicast_filters(&self.switch.addresses()) {
            Filtering::Exact => log::debug!("network: the NIC takes frames by address"),
            Filtering::Promiscuous => log::debug!("network: the NIC takes all frames"),
        }
    }

    /// Stops the NIC's DMA, before the machine is turned off, and says what it did.
    pub fn quiesce(&self) {
        log::info!("network: NIC: {}", self.nic.statistics());
        for (queue, counters) in self.counters.iter().enumerate() {
            log::info!("network: queue {queue}: {}", counters.snapshot());
        }
        for stopper in &self.stoppers {
            stopper.stop();
        }
        self.function.quiesce();
    }
}

/// A PCI function's place as options name it.
fn pci_address(function: &Function) -> PciAddress {
    let at = function.address;
    PciAddress {
        segment: at.segment,
        bus: at.bus,
        device: at.devfn >> 3,
        function: at.devfn & 7,
    }
}

async fn start_nic(
    ecam: &Rc<Ecam>,
    function: Function,
    topology: &Topology,
) -> Result<(XenPciFunction, Igb), driver_igb::IgbError> {
    let claimed = XenPciFunction::claim(ecam.clone(), function, Node(0))?;
    // No queue for the main container, so that its load does not follow the guests' traffic.
    let mut vcpus = topology.service_vcpus();
    if vcpus.iter().any(|(vcpu, _)| !topology.is_mc(*vcpu)) {
        vcpus.retain(|(vcpu, _)| !topology.is_mc(*vcpu));
    }
    let config = driver_igb::Config { vcpus, mtu: MTU };
    let nic = Igb::start(&claimed, &NodeFrames, &VcpuTimer::default(), &config).await?;
    Ok((claimed, nic))
}

/// What was lost between the switch and the wire.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Losses {
    nic: Statistics,
    queues: uplink::Snapshot,
}

impl Losses {
    fn so_far(nic: &Igb, queues: &[Arc<uplink::Counters>]) -> Self {
        let Statistics {
            rx_missed,
            rx_errors,
            tx_unsent,
            ..
        } = nic.statistics();
        let mut losses = Self {
            nic: Statistics {
                rx_missed,
                rx_errors,
                tx_unsent,
                ..Statistics::default()
            },
            ..Self::default()
        };
        for counters in queues {
            let queue = counters.snapshot();
            losses.queues.tx_dropped += queue.tx_dropped;
            losses.queues.tx_no_link += queue.tx_no_link;
            losses.queues.rx_dropped += queue.rx_dropped;
        }
        losses
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nic, queues) = (&self.nic, &self.queues);
        write!(
            f,
            "missed {}, damaged {}, not taken {}; not sent: unfit {}, no link {}",
            nic.rx_missed,
            nic.rx_errors,
            queues.rx_dropped,
            queues.tx_dropped,
            queues.tx_no_link + nic.tx_unsent,
        )
    }
}

/// Says what is lost, which somebody on the network or a guest can bring about: a line a
/// minute at most.
async fn report_losses(nic: Arc<Igb>, queues: Vec<Arc<uplink::Counters>>) {
    let mut told = Losses::default();
    loop {
        time::sleep(REPORT).await;
        let losses = Losses::so_far(&nic, &queues);
        if losses != told {
            log::info!("network: frames lost so far: {losses}");
            told = losses;
        }
    }
}

async fn follow_link(nic: Arc<Igb>, line: EventPort) {
    let mut before = None;
    loop {
        let link = nic.service_link();
        if before != Some(link) {
            match link {
                Link::Up { mbps, full_duplex } => {
                    let duplex = if full_duplex { "full" } else { "half" };
                    log::info!("network: link up, {mbps} Mbit/s, {duplex} duplex");
                }
                Link::Down => log::warn!("network: link down"),
            }
            before = Some(link);
        }
        line.wait().await;
    }
}
