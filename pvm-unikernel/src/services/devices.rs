//! Guests' devices: for each a task on the MC that follows the xenbus handshake, and,
//! while the guest is connected, the backend task on one of the guest's own cores.

mod vbd;
mod vif;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;

use hal::VcpuId;
use log::Level;
use toolstack_domain::build::Placement;
use toolstack_domain::config::GuestConfig;
use toolstack_domain::nodes::{DevicePaths, Node};
use toolstack_domain::xenbus::{State, Step, step};
use toolstack_rpc::RpcError;
use toolstack_xenstore::EventQueue;
use xen_abi::DomId;

use super::host::Host;
use super::nodes;
use super::storage::VolumeClaim;
use super::store::Store;
use crate::exec::{self, Account, Task};
use crate::sync::Notify;
use crate::time;

/// The domid that serves devices: ours.
pub const BACKEND: DomId = DomId(0);

/// How long devices may take to end: a disk that stops to answer is reset after 30 s, and
/// lets go of everything then.
const END_TIME: Duration = Duration::from_secs(60);

/// The devices of a domain.
#[derive(Default)]
pub struct Devices(Vec<Device>);

struct Device {
    /// For logs: `d3/xvda`.
    name: String,
    end: Rc<End>,
    task: Task<()>,
}

/// Asks a device's task to end.
#[derive(Default)]
struct End {
    asked: Cell<bool>,
    changed: Notify,
}

impl Devices {
    /// Writes the devices' nodes and starts their tasks. After an error those that were
    /// started are to be ended. `claims`: the disks' volumes, which the caller keeps until
    /// [`Self::end`] has returned.
    pub fn start(
        &mut self,
        host: &Rc<Host>,
        config: &GuestConfig,
        domid: DomId,
        placement: &Placement,
        claims: &[VolumeClaim],
        account: &Account,
    ) -> Result<(), RpcError> {
        // Each device on a core of the guest, in turn.
        let mut cores = placement
            .pins
            .iter()
            .filter_map(|pin| pin.first())
            .map(|cpu| host.topology.vcpu_on(*cpu))
            .cycle();
        for (disk, claim) in config.disks.iter().zip(claims) {
            let vcpu = cores.next().unwrap_or(VcpuId(0));
            let kind = vbd::Vbd::open(host, domid, disk, claim.extent(), vcpu, account)?;
            self.add(host, kind, account);
        }
        for (handle, vif) in (0..).zip(&config.vifs) {
            let vcpu = cores.next().unwrap_or(VcpuId(0));
            let kind = vif::Vif::open(host, domid, handle, vif, vcpu, account)?;
            self.add(host, kind, account);
        }
        Ok(())
    }

    fn add<K: Kind + 'static>(&mut self, host: &Rc<Host>, kind: K, account: &Account) {
        if let Err(error) = nodes::write_all(&host.store, &kind.nodes(), kind.guest()) {
            log::error!("{}: its nodes: {error:?}", kind.name());
        }
        let end = Rc::new(End::default());
        let name = kind.name().into();
        let manager = Manager {
            told: 0,
            store: host.store.clone(),
            kind,
            ours: State::Initialising,
            backend: None,
            end: end.clone(),
        };
        self.0.push(Device {
            name,
            end,
            task: exec::spawn_local_for(account, manager.run()),
        });
    }

    /// Ends all of them: when this returns nothing of the guest is mapped for a device.
    ///
    /// # Errors
    /// [`StillHeld`]: some do not end in time. They stay, to be ended another time: a disk
    /// that was given up may still write into pages of the guest, and keeps them for ever.
    pub async fn end(&mut self) -> Result<(), StillHeld> {
        for device in &self.0 {
            device.end.asked.set(true);
            device.end.changed.notify_all();
        }
        let all = async {
            while let Some(device) = self.0.last_mut() {
                if let Err(cancelled) = (&mut device.task).await {
                    log::error!("{}: its task: {cancelled}", device.name);
                }
                self.0.pop();
            }
        };
        if time::timeout(all, END_TIME).await.is_ok() {
            return Ok(());
        }
        self.0.retain(|device| !device.task.is_finished());
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(StillHeld {
                devices: self.0.iter().map(|device| device.name.clone()).collect(),
            }),
        }
    }
}

/// Devices that do not let go of their guest's memory.
#[derive(Debug)]
pub struct StillHeld {
    devices: Vec<String>,
}

impl fmt::Display for StillHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} did not let go of its memory in {} s",
            self.devices.join(", "),
            END_TIME.as_secs()
        )
    }
}

/// What differs between kinds of device.
trait Kind {
    /// For logs: `d3/xvda`.
    fn name(&self) -> &str;
    /// Whose.
    fn guest(&self) -> DomId;
    /// Its directories.
    fn paths(&self) -> &DevicePaths;
    /// What the toolstack writes for it.
    fn nodes(&self) -> Vec<Node>;
    /// What the backend offers, before InitWait.
    fn features(&self) -> Vec<(String, String)>;
    /// Reads what the frontend wrote, and starts the backend's task.
    fn connect(&mut self, read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<Backend, String>;
    /// What the backend says before Connected.
    fn details(&self) -> Vec<(String, String)>;
    /// The device is gone.
    fn gone(&mut self) {}
}

/// A running backend task.
struct Backend {
    /// Asks it to finish.
    stop: alloc::boxed::Box<dyn FnOnce()>,
    /// Says how it ended, if it was not asked.
    task: Task<Result<(), String>>,
}

/// Lines about one device: a guest may connect and disconnect as often as it likes.
const MAX_TOLD: u32 = 32;

struct Manager<K> {
    /// Lines about it so far.
    told: u32,
    store: Rc<Store>,
    kind: K,
    ours: State,
    backend: Option<Backend>,
    end: Rc<End>,
}

impl<K: Kind> Manager<K> {
    async fn run(mut self) {
        let events = EventQueue::new();
        let state = format!("{}/state", self.kind.paths().frontend);
        if let Err(error) = self.store.with(|server| server.watch(&events, &state, 0)) {
            return log::error!("{}: no watch on its frontend: {error:?}", self.kind.name());
        }
        loop {
            let seen = self.end.changed.generation();
            if self.end.asked.get() {
                self.disconnect().await;
                break;
            }
            let theirs = State::parse(self.store.with(|s| s.read(&state)).ok().as_deref());
            match step(self.ours, theirs, true) {
                Step::Wait => self.wait(&events, seen).await,
                Step::Advertise => {
                    self.write(self.kind.features());
                    self.set(State::InitWait);
                }
                Step::Connect => self.connect(),
                Step::Disconnect => {
                    self.disconnect().await;
                    self.set(State::Closing);
                }
                Step::Close => {
                    self.disconnect().await;
                    self.set(State::Closed);
                }
                Step::Remove => {
                    self.disconnect().await;
                    break;
                }
            }
            exec::checkpoint().await;
        }
        self.kind.gone();
        let backend = &self.kind.paths().backend;
        if let Err(error) = self.store.with(|server| server.remove(backend)) {
            log::warn!("{}: its nodes stay: {error:?}", self.kind.name());
        }
    }

    fn connect(&mut self) {
        let front = self.kind.paths().frontend.clone();
        let store = self.store.clone();
        let read = move |name: &str| {
            store
                .with(|server| server.read(&format!("{front}/{name}")))
                .ok()
        };
        match self.kind.connect(&read) {
            Ok(backend) => {
                self.backend = Some(backend);
                self.write(self.kind.details());
                self.set(State::Connected);
                self.tell(Level::Info, format_args!("connected"));
            }
            Err(why) => {
                self.tell(Level::Warn, format_args!("{why}; closed"));
                self.set(State::Closing);
            }
        }
    }

    /// Waits until the frontend changed, the backend ended, or the end was asked for.
    async fn wait(&mut self, events: &EventQueue, seen: u64) {
        let end = self.end.clone();
        let mut asked = pin!(end.changed.changed(seen));
        let ended = poll_fn(|cx| {
            if asked.as_mut().poll(cx).is_ready() || events.poll_next(cx).is_ready() {
                return Poll::Ready(None);
            }
            match &mut self.backend {
                Some(backend) => Pin::new(&mut backend.task).poll(cx).map(Some),
                None => Poll::Pending,
            }
        })
        .await;
        if let Some(ended) = ended {
            self.backend = None;
            match ended {
                Ok(Ok(())) => self.tell(Level::Warn, format_args!("its task ended")),
                Ok(Err(why)) => self.tell(Level::Warn, format_args!("{why}; closed")),
                Err(cancelled) => self.tell(Level::Error, format_args!("{cancelled}")),
            }
            self.set(State::Closing);
        }
    }

    /// Ends the backend's task, with all it maps.
    async fn disconnect(&mut self) {
        let Some(backend) = self.backend.take() else {
            return;
        };
        (backend.stop)();
        match backend.task.await {
            Ok(Ok(())) => self.tell(Level::Info, format_args!("disconnected")),
            Ok(Err(why)) => self.tell(Level::Warn, format_args!("disconnected: {why}")),
            Err(cancelled) => self.tell(Level::Error, format_args!("{cancelled}")),
        }
    }

    /// Logs what the guest can bring about, so often.
    fn tell(&mut self, level: Level, what: fmt::Arguments<'_>) {
        self.told = self.told.saturating_add(1);
        if self.told <= MAX_TOLD {
            log::log!(level, "{}: {what}", self.kind.name());
        }
        if self.told == MAX_TOLD {
            log::warn!("{}: no more is told of it", self.kind.name());
        }
    }

    fn set(&mut self, state: State) {
        self.ours = state;
        self.write(Vec::from([(
            String::from("state"),
            String::from(state.text()),
        )]));
    }

    fn write(&self, nodes: Vec<(String, String)>) {
        let back = &self.kind.paths().backend;
        let written = self.store.with(|server| {
            server.transaction(|t| {
                nodes.iter().try_for_each(|(name, value)| {
                    t.write(&format!("{back}/{name}"), value.as_bytes())
                })
            })
        });
        if let Err(error) = written {
            log::error!("{}: its nodes: {error:?}", self.kind.name());
        }
    }
}
