//! Guests: the table of them, and what administrators ask of it.
//!
//! A guest outlives its domain: a reboot gives it a new one, with the same name,
//! configuration and console. What is done to one guest is done one thing at a time
//! ([`Guest::turn`]). Different guests wait for each other only to be placed: from the look at
//! what is free until Xen has given the new domain its memory ([`Guests::placing`]).

mod life;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::time::Duration;

use toolstack_domain::build::Placement;
use toolstack_domain::config::{DomainState, GuestConfig, ImageId};
use toolstack_domain::hypercalls::NodeId;
use toolstack_domain::info::DomainInfo;
use toolstack_domain::lifecycle::RestartBrake;
use toolstack_domain::placement;
use toolstack_domain::xen::Xen;
use toolstack_rpc::RpcError;
use toolstack_rpc::message::{self, GuestRef, ShutdownKind};
use toolstack_rpc::server::{check_devices, check_name, kept_name};
use xen_abi::DomId;

use super::console::GuestConsole;
use super::devices::Devices;
use super::host::{CALLS, Host, refused};
use super::nodes;
use super::storage::{Needed, Storage, VolumeClaim};
use crate::exec::{self, Account, Task};
use crate::sync::local::Mutex;
use crate::time;
use crate::xen_calls::XenCalls;

/// How often the end of guests is looked for while somebody waits for it. Their end is
/// noticed by Xen's event at once; this is only how fast the waiter hears of it.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// One guest.
pub struct Guest {
    /// How to make its domain. The name in it is the guest's: a rename changes it.
    config: RefCell<GuestConfig>,
    console: Rc<GuestConsole>,
    /// Its domain; none while it is being built, or rebooted.
    running: RefCell<Option<Running>>,
    /// Where its domain is, also while it is being built: others are placed elsewhere.
    placement: RefCell<Option<Placement>>,
    /// Its disks' volumes, in their order: its own from its first start until it is forgotten,
    /// also while it restarts. They refer back to it.
    claims: RefCell<Vec<VolumeClaim>>,
    /// What is done to it is done in turn. `true`: it is being ended for good.
    turn: Mutex<bool>,
    /// System time of its last start, against reboot loops.
    started_ns: Cell<u64>,
    /// Ended, and kept only to be looked at: another guest has its configuration.
    kept: Cell<bool>,
    /// Against a guest that does nothing but reboot.
    brake: Cell<RestartBrake>,
    /// CPU time of ours that was spent for it.
    account: Account,
}

/// A guest's domain.
struct Running {
    domid: DomId,
    /// Serve its xenstore ring and its console ring.
    rings: Vec<Task<()>>,
    devices: Devices,
    /// Its end has been noticed and is being dealt with, or it is kept as it is.
    ended: bool,
}

/// What `create` made.
#[derive(Clone, Copy, Debug)]
pub struct Created {
    /// The new domain.
    pub domid: DomId,
    /// The node that holds all of its memory.
    pub node: Option<NodeId>,
}

/// What a guest that is made again takes over from the one that ended.
struct Heritage {
    brake: RestartBrake,
    claims: Vec<VolumeClaim>,
}

/// The table.
pub struct Guests {
    table: RefCell<BTreeMap<String, Rc<Guest>>>,
    /// Who has it reads what is free and takes it, and nobody else does. Nobody waits for a
    /// disk, a guest or a client with it.
    placing: Mutex<()>,
    /// The host is going down: guests end because of it.
    leaving: Cell<bool>,
}

impl Default for Guests {
    fn default() -> Self {
        Self {
            table: RefCell::default(),
            placing: Mutex::new(()),
            leaving: Cell::new(false),
        }
    }
}

impl Guests {
    /// The host is going down: from now on nothing is started.
    pub fn leave(&self) {
        self.leaving.set(true);
    }

    fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// That it is, for who wants it to do something else.
    pub fn going_down(&self) -> RpcError {
        let guests = self.all();
        let guests = guests.iter().filter(|guest| guest.is_waited_for()).count();
        RpcError::GoingDown {
            guests: u32::try_from(guests).unwrap_or(u32::MAX),
        }
    }

    fn check_staying(&self) -> Result<(), RpcError> {
        match self.leaving.get() {
            true => Err(self.going_down()),
            false => Ok(()),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.table.borrow().len()).unwrap_or(u32::MAX)
    }

    fn all(&self) -> Vec<Rc<Guest>> {
        self.table.borrow().values().cloned().collect()
    }

    fn find(&self, wanted: &GuestRef) -> Result<Rc<Guest>, RpcError> {
        let table = self.table.borrow();
        let found = match wanted {
            GuestRef::Name(name) => table.get(name),
            GuestRef::Id(id) => table.values().find(|g| g.domid() == Some(DomId(*id))),
        };
        found.cloned().ok_or_else(|| RpcError::NoSuchGuest {
            guest: wanted.to_string(),
        })
    }

    /// Does something to a guest when it is its turn. A name may have become another guest's
    /// by then, and a domid nobody's: it is done to the one that `wanted` means then.
    async fn in_turn<T>(
        &self,
        wanted: &GuestRef,
        act: impl AsyncFnOnce(&Rc<Guest>, &mut bool) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        loop {
            let guest = self.find(wanted)?;
            let mut turn = guest.turn.lock().await;
            // Who has the turn keeps name and domain as they are.
            if Rc::ptr_eq(&guest, &self.find(wanted)?) {
                return act(&guest, &mut turn).await;
            }
        }
    }

    /// The guest and its domain.
    fn find_domain(&self, wanted: &GuestRef) -> Result<(Rc<Guest>, DomId), RpcError> {
        let guest = self.find(wanted)?;
        let domid = guest
            .domid()
            .ok_or_else(|| guest.in_state(DomainState::Building))?;
        Ok((guest, domid))
    }

    /// Puts a guest into the table, if neither name, UUID nor an address of its network
    /// devices is taken: they are its own then, also while it restarts.
    fn reserve(&self, config: GuestConfig) -> Result<Rc<Guest>, RpcError> {
        check_guest_name(&config.name)?;
        let mut table = self.table.borrow_mut();
        if table.contains_key(&config.name) {
            return Err(RpcError::GuestExists { name: config.name });
        }
        if let Some(other) = table
            .values()
            .find(|g| !g.kept.get() && g.config.borrow().uuid == config.uuid)
        {
            return Err(RpcError::UuidExists { name: other.name() });
        }
        let others = table.values().filter(|guest| !guest.kept.get());
        let others: Vec<_> = others.map(|guest| guest.config.borrow()).collect();
        check_devices(&config, others.iter().map(|config| &**config))?;
        drop(others);
        let name = config.name.clone();
        let guest = Rc::new(Guest {
            console: GuestConsole::new(),
            running: RefCell::new(None),
            placement: RefCell::new(None),
            claims: RefCell::default(),
            turn: Mutex::new(false),
            started_ns: Cell::new(0),
            kept: Cell::new(false),
            brake: Cell::new(RestartBrake::default()),
            account: Account::new(),
            config: RefCell::new(config),
        });
        table.insert(name, guest.clone());
        Ok(guest)
    }

    /// Takes a guest out of the table, for good. Its volumes are anybody's then, and what its
    /// configuration has in xenstore goes with the last that has it.
    fn forget(&self, host: &Host, guest: &Guest) {
        let is_last = !self.has_twin(guest);
        self.table.borrow_mut().remove(&guest.name());
        if is_last {
            nodes::remove_vm(host, &guest.config.borrow());
        }
        drop(guest.claims.take());
        guest.console.note(&format!("closer: {guest} is gone"));
        guest.console.end();
    }

    /// Whether another guest has this one's configuration: it is kept after its end, and the
    /// other was made in its place.
    fn has_twin(&self, guest: &Guest) -> bool {
        let uuid = guest.config.borrow().uuid;
        let all = self.table.borrow();
        let with_uuid = all.values().filter(|g| g.config.borrow().uuid == uuid);
        with_uuid.count() > 1
    }

    /// Pages of our heap that the guests of the table can make it hold.
    fn heap_pages(&self) -> u64 {
        let guests = self.all();
        let configs: Vec<_> = guests.iter().map(|guest| guest.config.borrow()).collect();
        placement::heap_pages(configs.iter().map(|config| &**config))
    }

    /// Makes a guest. Whatever fails, nothing of it is left.
    pub async fn create(
        &self,
        host: &Rc<Host>,
        config: GuestConfig,
        paused: bool,
    ) -> Result<Created, RpcError> {
        self.create_with(host, config, paused, None).await
    }

    /// The same, or a guest made again: it takes over from one that ended.
    async fn create_with(
        &self,
        host: &Rc<Host>,
        config: GuestConfig,
        paused: bool,
        heritage: Option<Heritage>,
    ) -> Result<Created, RpcError> {
        self.check_staying()?;
        let guest = self.reserve(config)?;
        let is_made_again = heritage.is_some();
        if let Some(Heritage { brake, claims }) = heritage {
            guest.brake.set(brake);
            for claim in &claims {
                claim.hand_to(guest.clone());
            }
            *guest.claims.borrow_mut() = claims;
        }
        let mut turn = guest.turn.lock().await;
        let made = async {
            let created = life::start(host, &guest, paused).await?;
            if let Some(storage) = &host.storage
                && let Err(error) = self.keep_definition(host, storage, &guest).await
            {
                life::end(host, &guest).await?;
                return Err(error);
            }
            Ok(created)
        };
        let made = made.await;
        // A domain that cannot be ended stays listed.
        if made.is_err() && guest.domid().is_none() {
            if is_made_again {
                self.forget_definition(host, &guest.name()).await;
            }
            *turn = true;
            self.forget(host, &guest);
        }
        made
    }

    /// Keeps how to make a guest, under the name that it has now.
    async fn keep_definition(
        &self,
        host: &Host,
        storage: &Storage,
        guest: &Guest,
    ) -> Result<(), RpcError> {
        let config = guest.config.borrow().clone();
        storage.keep_definition(&config, &self.needed(host)).await
    }

    /// Forgets how to make a guest that ended or has another name now, unless it is one of
    /// those that the host starts when it boots, or the host is going down.
    async fn forget_definition(&self, host: &Host, name: &String) {
        if self.leaving.get() || host.config.guests.contains(name) {
            return;
        }
        if let Some(storage) = &host.storage
            && let Err(error) = storage.forget_definition(name).await
        {
            log::warn!("guest {name}: its definition stays: {error}");
        }
    }

    /// Lists guests as Xen sees them now.
    pub fn list(&self, only: Option<&GuestRef>) -> Result<Vec<message::DomainInfo>, RpcError> {
        let guests = match only {
            Some(wanted) => Vec::from([self.find(wanted)?]),
            None => self.all(),
        };
        let domains = xen()?.domains().map_err(refused)?;
        let mut list: Vec<_> = guests
            .iter()
            .map(|guest| {
                let domid = guest.domid();
                let info = domains.iter().find(|info| Some(info.id) == domid);
                guest.describe(domid, info)
            })
            .collect();
        list.sort_by_key(|info| (info.domid.is_none(), info.domid));
        Ok(list)
    }

    /// Pauses a guest's vCPUs. Xen counts: twice would have to be undone twice.
    pub fn pause(&self, wanted: &GuestRef) -> Result<(), RpcError> {
        let (guest, domid) = self.find_domain(wanted)?;
        guest.check_runs(domid)?;
        xen()?.pause_domain(domid).map_err(refused)
    }

    /// Lets a guest's vCPUs go on.
    pub fn unpause(&self, wanted: &GuestRef) -> Result<(), RpcError> {
        let (guest, domid) = self.find_domain(wanted)?;
        if guest.check_alive(domid)? != DomainState::Paused {
            return Err(RpcError::NotPaused { name: guest.name() });
        }
        self.check_staying()?;
        xen()?.unpause_domain(domid).map_err(refused)
    }

    /// Asks the guest to shut down or reboot. One that is paused would not hear it.
    pub fn ask_to_shut_down(
        &self,
        host: &Host,
        wanted: &GuestRef,
        kind: ShutdownKind,
    ) -> Result<(), RpcError> {
        let (guest, domid) = self.find_domain(wanted)?;
        guest.check_runs(domid)?;
        let word = match kind {
            ShutdownKind::PowerOff => "poweroff",
            ShutdownKind::Reboot => {
                self.check_staying()?;
                "reboot"
            }
        };
        let path = format!("/local/domain/{domid}/control/shutdown");
        host.store
            .with(|server| server.write(&path, word.as_bytes()))
            .map_err(|error| super::host::failed("shutdown", format!("{error:?}")))?;
        // Somebody wants it: not one of those that end as soon as they begin.
        guest.brake.set(RestartBrake::default());
        Ok(())
    }

    /// Ends a guest now.
    pub async fn destroy(&self, host: &Rc<Host>, wanted: &GuestRef) -> Result<(), RpcError> {
        self.in_turn(wanted, async |guest, ended| {
            self.destroy_now(host, guest, ended).await
        })
        .await
    }

    /// The same for who has its turn.
    async fn destroy_now(
        &self,
        host: &Rc<Host>,
        guest: &Rc<Guest>,
        ended: &mut bool,
    ) -> Result<(), RpcError> {
        life::end(host, guest).await?;
        // While the name is still taken.
        self.forget_definition(host, &guest.name()).await;
        *ended = true;
        self.forget(host, guest);
        Ok(())
    }

    /// Gives a guest another name, on its domain and in xenstore, for who has its turn.
    fn rename(&self, host: &Host, guest: &Guest, name: String) -> Result<(), RpcError> {
        check_guest_name(&name)?;
        let keep_vm = guest.kept.get() && self.has_twin(guest);
        let mut table = self.table.borrow_mut();
        if table.contains_key(&name) {
            return Err(RpcError::GuestExists { name });
        }
        if let Some(domid) = guest.domid() {
            nodes::rename(host, &guest.config.borrow(), domid, &name, keep_vm)?;
        }
        let old = core::mem::replace(&mut guest.config.borrow_mut().name, name.clone());
        if let Some(guest) = table.remove(&old) {
            table.insert(name, guest);
        }
        Ok(())
    }

    /// A name that nobody has, for a domain that ended and is kept.
    fn kept_name(&self, name: &str, domid: DomId) -> String {
        let table = self.table.borrow();
        kept_name(name, domid.0, |name| table.contains_key(name))
    }

    /// The same for an administrator: the definition goes with the name.
    pub async fn rename_for_good(
        &self,
        host: &Host,
        wanted: &GuestRef,
        name: String,
    ) -> Result<(), RpcError> {
        self.in_turn(wanted, async |guest, _| {
            let old = guest.name();
            self.rename(host, guest, name)?;
            // One that is kept for inspection has no definition.
            if let Some(storage) = host.storage.as_ref().filter(|_| !guest.kept.get()) {
                if let Err(error) = self.keep_definition(host, storage, guest).await {
                    self.rename(host, guest, old)?;
                    return Err(error);
                }
                // Unless somebody has taken the name since.
                if !self.table.borrow().contains_key(&old) {
                    self.forget_definition(host, &old).await;
                }
            }
            Ok(())
        })
        .await
    }

    /// A guest's console.
    pub fn console(&self, wanted: &GuestRef) -> Result<Rc<GuestConsole>, RpcError> {
        Ok(self.find(wanted)?.console.clone())
    }

    /// What the image area must not forget.
    pub fn needed<'a>(&'a self, host: &'a Host) -> Needed<'a> {
        let image = |image: &ImageId| {
            self.all().iter().any(|g| {
                let config = g.config.borrow();
                let ramdisk = config.ramdisk.map(|r| r.image);
                config.kernel.image == *image || ramdisk == Some(*image)
            })
        };
        let guest = |name: &str| {
            host.config.guests.iter().any(|g| g == name) || self.table.borrow().contains_key(name)
        };
        Needed {
            image: Box::new(image),
            guest: Box::new(guest),
        }
    }

    /// Names of the guests that use a volume.
    pub fn users_of(&self, volume: &str) -> Vec<String> {
        self.all()
            .iter()
            .filter(|g| !g.kept.get())
            .map(|g| g.config.borrow())
            .filter(|config| config.disks.iter().any(|d| d.volume == volume))
            .map(|config| config.name.clone())
            .collect()
    }

    /// Asks every guest to shut down and waits until none runs: also those that were just
    /// being made, or made anew.
    pub async fn shut_down_all(&self, host: &Rc<Host>) {
        let mut asked = BTreeSet::new();
        loop {
            let guests = self.all();
            for guest in &guests {
                let Some(domid) = guest.domid() else { continue };
                if asked.insert(domid)
                    && let Err(error) =
                        self.ask_to_shut_down(host, &GuestRef::Id(domid.0), ShutdownKind::PowerOff)
                {
                    log::warn!("{guest}: not asked to shut down: {error}");
                }
            }
            if !guests.iter().any(|guest| guest.is_waited_for()) {
                return;
            }
            time::sleep(WAIT_STEP).await;
        }
    }

    /// Ends every guest, all at once: one that does not end keeps nobody else from it.
    pub async fn destroy_all(&self, host: &Rc<Host>) {
        let destroy = |guest: Rc<Guest>| {
            let host = host.clone();
            exec::spawn_local(async move {
                // Under whatever name it has by its turn.
                let mut ended = guest.turn.lock().await;
                if !*ended
                    && let Err(error) = host.guests.destroy_now(&host, &guest, &mut ended).await
                {
                    log::error!("{guest}: {error}");
                }
            })
        };
        let tasks: Vec<_> = self.all().into_iter().map(destroy).collect();
        for task in tasks {
            if let Err(cancelled) = task.await {
                log::error!("guests: the end of one: {cancelled}");
            }
        }
    }

    /// The names of all, for logs.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.all().iter().map(|guest| guest.name()).collect();
        names.join(", ")
    }

    /// Starts the guests that the host shall start at boot, from their stored definitions.
    pub async fn start_stored(host: &Rc<Host>) {
        for name in &host.config.guests {
            let Some(storage) = &host.storage else {
                log::error!("guest {name}: not started: no disk");
                continue;
            };
            let started = match storage.definition(name).await {
                Ok(config) => host.guests.create(host, config, false).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = started {
                log::error!("guest {name}: not started at boot: {error}");
            }
        }
    }

    /// Notices the end of guests, for ever.
    pub async fn follow(host: Rc<Host>) {
        life::follow(host).await;
    }
}

impl Guest {
    fn name(&self) -> String {
        self.config.borrow().name.clone()
    }

    fn domid(&self) -> Option<DomId> {
        self.running.borrow().as_ref().map(|r| r.domid)
    }

    /// Its domain's end has been noticed, or begun.
    fn has_ended(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(|r| r.ended)
    }

    /// Its domain's state; an error if that is one without return.
    fn check_alive(&self, domid: DomId) -> Result<DomainState, RpcError> {
        let info = xen()?.domain_info(domid).map_err(refused)?;
        let state = info.map_or(DomainState::Dying, |info| info.state());
        match state {
            // Paused by us, to be taken down.
            DomainState::Paused if self.has_ended() => Err(self.in_state(DomainState::Dying)),
            DomainState::Running | DomainState::Blocked | DomainState::Paused => Ok(state),
            _ => Err(self.in_state(state)),
        }
    }

    /// The same, and it is not paused.
    fn check_runs(&self, domid: DomId) -> Result<(), RpcError> {
        match self.check_alive(domid)? {
            DomainState::Paused => Err(self.in_state(DomainState::Paused)),
            _ => Ok(()),
        }
    }

    fn in_state(&self, state: DomainState) -> RpcError {
        let name = self.name();
        RpcError::WrongState { name, state }
    }

    /// Whether a host that goes down waits for it: not for one that ended and is preserved,
    /// nor for one that is paused, which cannot shut down.
    fn is_waited_for(&self) -> bool {
        let paused = |domid| matches!(self.check_alive(domid), Ok(DomainState::Paused));
        !self.has_ended() && !self.domid().is_some_and(paused)
    }

    /// With its domain, if it has one, and what Xen says of that.
    fn describe(&self, domid: Option<DomId>, info: Option<&DomainInfo>) -> message::DomainInfo {
        let config = self.config.borrow();
        let placement = self.placement.borrow();
        let mut cpus: Vec<u32> = placement
            .iter()
            .flat_map(|p| p.pins.iter().flatten().copied())
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        let uptime_ns = domid.map_or(0, |_| time::now_ns() - self.started_ns.get());
        message::DomainInfo {
            name: config.name.clone(),
            domid: domid.map(|domid| domid.0),
            uuid: config.uuid,
            kind: config.kind,
            state: match (domid, info) {
                (None, _) => DomainState::Building,
                // Ended behind our back.
                (Some(_), None) => DomainState::Dying,
                (Some(_), Some(info)) => info.state(),
            },
            memory_kib: info.map_or(0, |info| info.pages * 4),
            vcpus: info.map_or(0, |info| info.vcpus_online),
            max_vcpus: info.map_or(config.max_vcpus, |info| info.vcpus),
            cpus,
            node: placement.as_ref().and_then(one_node).map(|n| n.0),
            cpu_ns: info.map_or(0, |info| info.cpu_time_ns),
            uptime_s: uptime_ns / 1_000_000_000,
            served_ns: self.account.cpu_ns(),
        }
    }
}

/// As it is named to administrators: under its name now, however long ago the one who asks
/// got hold of it.
impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {}", self.config.borrow().name)
    }
}

/// The node that holds all memory of a placement.
fn one_node(placement: &Placement) -> Option<NodeId> {
    match placement.memory.as_slice() {
        [(node, _)] => Some(*node),
        _ => None,
    }
}

/// Checks a name that a guest shall get: what can be a name, but for the host's own.
fn check_guest_name(name: &str) -> Result<(), RpcError> {
    check_name(name)?;
    if toolstack_boot::is_guest_name(name) {
        return Ok(());
    }
    Err(RpcError::BadName {
        name: name.into(),
        why: "it is the host's own".into(),
    })
}

fn xen() -> Result<Xen<'static, XenCalls>, RpcError> {
    Xen::new(&CALLS).map_err(|error| super::host::failed("Xen", error))
}
