//! The static switch: who gets a frame.
//!
//! The toolstack knows every address, so nothing is learnt: a frame for an address that
//! no port has goes to the NIC if it came from us, and nowhere if it came from the NIC.
//! A port may send with its own address only. Our own stack and the wire hear each other;
//! guests hear neither that stack nor are they heard by it. Each vCPU looks frames up in its
//! own reference to an immutable table; changes make a new table, which the vCPUs take over
//! at their next batch.

use crate::headers;
use crate::port::{Inbox, Limits, Packet, Refused};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use hal::net::{Frame, MacAddr, PacketPool};
use hal::{Node, VcpuId, nearest_queue};
use spin::Mutex;
use xen_abi::DomId;

/// Why a port could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchError {
    /// Another port has this address.
    AddressTaken(MacAddr),
    /// A multicast address cannot be a port's.
    NotUnicast(MacAddr),
    /// The uplink on this vCPU exists.
    UplinkTaken(VcpuId),
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressTaken(mac) => write!(f, "MAC address {mac} is in use"),
            Self::NotUnicast(mac) => write!(f, "{mac} is not a unicast MAC address"),
            Self::UplinkTaken(vcpu) => write!(f, "vCPU {} has an uplink already", vcpu.0),
        }
    }
}

impl core::error::Error for SwitchError {}

#[derive(Clone, Debug)]
struct Station {
    mac: MacAddr,
    inbox: Arc<Inbox>,
    /// Our own stack, not a guest's device.
    ours: bool,
}

impl Station {
    /// Whether it hears what comes from there.
    fn hears(&self, source: Source) -> bool {
        match source {
            Source::Station(mac) => !self.ours && mac != self.mac,
            Source::Ourselves => false,
            Source::Uplink => true,
        }
    }
}

#[derive(Clone, Debug)]
struct Uplink {
    vcpu: VcpuId,
    inbox: Arc<Inbox>,
}

/// One immutable picture of the ports.
#[derive(Clone, Debug, Default)]
struct Table {
    /// Sorted by address.
    stations: Vec<Station>,
    /// Sorted by vCPU.
    uplinks: Vec<Uplink>,
}

impl Table {
    fn station(&self, mac: MacAddr) -> Option<&Station> {
        let at = self
            .stations
            .binary_search_by_key(&mac, |station| station.mac)
            .ok()?;
        self.stations.get(at)
    }
}

#[derive(Debug)]
struct Shared {
    /// Of each vCPU, by its number.
    nodes: Vec<Node>,
    version: AtomicU64,
    table: Mutex<Arc<Table>>,
}

impl Shared {
    fn change<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        let mut current = self.table.lock();
        let mut table = Table::clone(&current);
        let result = change(&mut table);
        *current = Arc::new(table);
        self.version.fetch_add(1, Ordering::Release);
        result
    }
}

/// One network: a switch with its ports. Cheap to clone; for any vCPU.
#[derive(Clone, Debug)]
pub struct Switch(Arc<Shared>);

impl Switch {
    /// A switch without ports. `nodes` has the node of each vCPU, by its number.
    pub fn new(nodes: &[Node]) -> Self {
        Self(Arc::new(Shared {
            nodes: nodes.into(),
            version: AtomicU64::new(1),
            table: Mutex::new(Arc::new(Table::default())),
        }))
    }

    /// Adds the port of a guest device.
    pub fn add_port(&self, mac: MacAddr, limits: Limits) -> Result<Port, SwitchError> {
        self.add(mac, limits, false)
    }

    /// Adds the port of our own stack.
    pub fn add_local_port(&self, mac: MacAddr) -> Result<Port, SwitchError> {
        self.add(mac, Limits::LOCAL, true)
    }

    fn add(&self, mac: MacAddr, limits: Limits, ours: bool) -> Result<Port, SwitchError> {
        if mac.is_multicast() {
            return Err(SwitchError::NotUnicast(mac));
        }
        let inbox = Arc::new(Inbox::new(limits));
        self.0.change(|table| {
            match table
                .stations
                .binary_search_by_key(&mac, |station| station.mac)
            {
                Ok(_) => Err(SwitchError::AddressTaken(mac)),
                Err(at) => {
                    let station = Station {
                        mac,
                        inbox: inbox.clone(),
                        ours,
                    };
                    table.stations.insert(at, station);
                    Ok(())
                }
            }
        })?;
        Ok(Port {
            shared: self.0.clone(),
            mac,
            inbox,
            guest: None,
        })
    }

    /// Adds the NIC queue that serves a vCPU. A vCPU without one uses the queue of
    /// another, on its node if there is one ([`nearest_queue`]).
    pub fn add_uplink(&self, vcpu: VcpuId, limits: Limits) -> Result<UplinkPort, SwitchError> {
        let inbox = Arc::new(Inbox::new(limits));
        self.0.change(|table| {
            match table
                .uplinks
                .binary_search_by_key(&vcpu, |uplink| uplink.vcpu)
            {
                Ok(_) => Err(SwitchError::UplinkTaken(vcpu)),
                Err(at) => {
                    let inbox = inbox.clone();
                    table.uplinks.insert(at, Uplink { vcpu, inbox });
                    Ok(())
                }
            }
        })?;
        Ok(UplinkPort {
            shared: self.0.clone(),
            vcpu,
            inbox,
        })
    }

    /// The addresses of all ports: what the NIC shall accept.
    pub fn addresses(&self) -> Vec<MacAddr> {
        let table = self.0.table.lock().clone();
        table.stations.iter().map(|station| station.mac).collect()
    }

    /// A look-up for tasks of one vCPU.
    pub fn view(&self, vcpu: VcpuId) -> View {
        View {
            shared: self.0.clone(),
            vcpu,
            version: 0,
            table: Arc::default(),
            uplink: None,
        }
    }
}

/// A station's place at the switch. Dropping it takes the station off.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
    mac: MacAddr,
    inbox: Arc<Inbox>,
    guest: Option<DomId>,
}

impl Port {
    /// Says whose device this is: its long frames for other guests can then be copied
    /// from its pages straight into theirs.
    #[must_use]
    pub fn of_guest(mut self, guest: DomId) -> Self {
        self.guest = Some(guest);
        self
    }

    /// The guest, if [`Self::of_guest`] said it.
    pub fn guest(&self) -> Option<DomId> {
        self.guest
    }

    /// Its address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Frames for it.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// A look-up for the task that serves it.
    pub fn view(&self, vcpu: VcpuId) -> View {
        Switch(self.shared.clone()).view(vcpu)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.inbox.set_open(false);
        self.shared
            .change(|table| table.stations.retain(|station| station.mac != self.mac));
        self.inbox.purge();
    }
}

/// A NIC queue's place at the switch. Dropping it takes the queue off.
#[derive(Debug)]
pub struct UplinkPort {
    shared: Arc<Shared>,
    vcpu: VcpuId,
    inbox: Arc<Inbox>,
}

impl UplinkPort {
    /// Frames to be sent.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// The vCPU it serves.
    pub fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    /// A look-up for the task that serves it.
    pub fn view(&self) -> View {
        Switch(self.shared.clone()).view(self.vcpu)
    }
}

impl Drop for UplinkPort {
    fn drop(&mut self) {
        self.inbox.set_open(false);
        self.shared
            .change(|table| table.uplinks.retain(|uplink| uplink.vcpu != self.vcpu));
        self.inbox.purge();
    }
}

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The guest device with this address, which it must send with.
    Station(MacAddr),
    /// Our own stack.
    Ourselves,
    /// The NIC.
    Uplink,
}

/// What became of a frame.
#[derive(Debug)]
pub enum Verdict {
    /// Handed to this many receivers.
    Forwarded(usize),
    /// Nobody has the address, or who has it takes no more: dropped.
    Dropped,
    /// Sent with an address that is not the sender's: dropped.
    Spoofed,
    /// The uplink is full: wait for room in this inbox, though not for long, then try again
    /// with the frame.
    Busy(Frame, Arc<Inbox>),
}

/// One vCPU's look-up.
#[derive(Clone, Debug)]
pub struct View {
    shared: Arc<Shared>,
    vcpu: VcpuId,
    version: u64,
    table: Arc<Table>,
    /// Of the NIC queue that it sends by.
    uplink: Option<Arc<Inbox>>,
}

impl View {
    /// Takes over changes of the ports; once a batch is enough.
    pub fn refresh(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version != self.version {
            self.table = self.shared.table.lock().clone();
            self.version = version;
            let uplinks = &self.table.uplinks;
            let queues = uplinks.iter().map(|uplink| uplink.vcpu);
            let nearest = nearest_queue(self.vcpu, &self.shared.nodes, queues, |_| false);
            self.uplink = uplinks
                .iter()
                .find(|uplink| uplink.vcpu == nearest)
                .map(|uplink| uplink.inbox.clone());
        }
    }

    /// Sends a frame to whom its destination says. Copies for further receivers of a
    /// group come from `pool`, the sender's: who floods pays.
    pub fn forward(&self, source: Source, frame: Frame, pool: &PacketPool) -> Verdict {
        let mut head = [0; headers::ETHERNET];
        if frame.len() < head.len() {
            return Verdict::Dropped;
        }
        frame.read(0, &mut head);
        let Some((to, from)) = headers::addresses(&head) else {
            return Verdict::Dropped;
        };
        if let Source::Station(own) = source
            && from != own
        {
            return Verdict::Spoofed;
        }
        if headers::is_of_the_link(&head) {
            return Verdict::Dropped;
        }
        if to.is_multicast() {
            return self.flood(source, frame, pool);
        }
        if let Some(station) = self.table.station(to) {
            return match station.hears(source).then(|| station.inbox.push(frame)) {
                Some(Ok(())) => Verdict::Forwarded(1),
                _ => Verdict::Dropped,
            };
        }
        match (source, &self.uplink) {
            (Source::Station(_), Some(uplink)) if !uplink.has_room() => {
                Verdict::Busy(frame, uplink.clone())
            }
            (Source::Station(_) | Source::Ourselves, Some(uplink)) => {
                Self::to_uplink(uplink, frame)
            }
            _ => Verdict::Dropped,
        }
    }

    /// The inbox of the one station that a frame starting with `head` is for, if its
    /// reader takes frames in their sender's memory. `None`: [`Self::forward`] decides.
    pub fn direct_target(&self, own: MacAddr, head: &[u8]) -> Option<Arc<Inbox>> {
        let (to, from) = headers::addresses(head)?;
        if from != own || to.is_multicast() {
            return None;
        }
        let station = self.table.station(to)?;
        let takes = station.hears(Source::Station(own)) && station.inbox.takes_direct();
        takes.then(|| station.inbox.clone())
    }

    fn to_uplink(uplink: &Arc<Inbox>, frame: Frame) -> Verdict {
        match uplink.push(frame) {
            Ok(()) => Verdict::Forwarded(1),
            Err(Refused::Full(Packet::Owned(frame))) => Verdict::Busy(frame, uplink.clone()),
            Err(_) => Verdict::Dropped,
        }
    }

    fn flood(&self, source: Source, frame: Frame, pool: &PacketPool) -> Verdict {
        let mut receivers = self
            .table
            .stations
            .iter()
            .filter(|station| station.hears(source))
            .map(|station| &station.inbox)
            .chain(self.uplink.as_ref().filter(|uplink| match source {
                Source::Station(_) => uplink.has_room(),
                Source::Ourselves => true,
                Source::Uplink => false,
            }))
            .peekable();
        let mut count = 0;
        while let Some(inbox) = receivers.next() {
            if receivers.peek().is_none() {
                // The last one gets the frame itself.
                count += usize::from(inbox.push(frame).is_ok());
                break;
            }
            if let Some(copy) = frame.duplicate(pool) {
                count += usize::from(inbox.push(copy).is_ok());
            }
        }
        match count {
            0 => Verdict::Dropped,
            count => Verdict::Forwarded(count),
        }
    }
}
