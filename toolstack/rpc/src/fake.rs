//! A host that is none: answers requests as a real one does, from memory, over real TCP.
//!
//! For the tests of both ends. It is strict: what a real host refuses it refuses, and what
//! a cut transfer leaves behind can be looked at.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use toolstack_domain::config::{DomainState, GuestConfig, ImageId};

use crate::connection::ConnectionError;
use crate::error::{Place, RpcError};
use crate::hello::{OURS, Versions};
use crate::key::{PrivateKey, PublicKey};
use crate::message::{
    DomainInfo, GuestRef, HostInfo, ImportMode, LogSource, NodeInfo, OwnMemory, Request, Response,
    ShutdownKind, Space, VolumeInfo,
};
use crate::server::{ServerConnection, ServerKeys, accept_versions, check_devices, check_name};
use crate::tcp::{SystemEntropy, Tcp, block_on};
use crate::transfer::{Chunk, ImageHasher, TransferError};

/// Bytes of all volumes.
pub const DISK: u64 = 64 << 20;
/// Physical CPUs.
pub const CPUS: u32 = 4;
/// Free memory of each of the two nodes at first, in MiB.
pub const NODE_MIB: u64 = 1024;

/// A guest of the fake host.
#[derive(Clone, Debug)]
pub struct Guest {
    /// What it was made from.
    pub config: GuestConfig,
    /// Its domid, unless it is being built.
    pub domid: u16,
    /// Its state.
    pub state: DomainState,
    /// What it has printed.
    pub console: Vec<u8>,
}

/// All that the host has.
#[derive(Debug, Default)]
pub struct State {
    /// Guests, by name.
    pub guests: BTreeMap<String, Guest>,
    /// Volumes, by name.
    pub volumes: BTreeMap<String, Vec<u8>>,
    /// Images.
    pub images: BTreeMap<ImageId, Vec<u8>>,
    /// Image uploads that were begun.
    pub uploads: u32,
    /// Transfers that ended early.
    pub broken: u32,
    /// Why connections were refused or lost.
    pub log: Vec<String>,
    /// Refuse all connections.
    pub busy: bool,
    /// Reset so many connections that have sent something.
    pub resets: u32,
    /// Refuse imports after so many bytes.
    pub fail_import_at: Option<u64>,
    last_domid: u16,
}

/// The host. It lives until the test ends.
#[derive(Clone, Debug)]
pub struct FakeHost {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its key.
    pub key: PublicKey,
    /// What it has.
    state: Arc<Mutex<State>>,
}

impl FakeHost {
    /// Starts a host that serves `administrators` and speaks this crate's version.
    ///
    /// # Errors
    /// No port.
    pub fn start(administrators: Vec<PublicKey>) -> io::Result<FakeHost> {
        Self::start_speaking(administrators, OURS)
    }

    /// Starts a host that speaks other versions.
    ///
    /// # Errors
    /// No port, no randomness.
    pub fn start_speaking(
        administrators: Vec<PublicKey>,
        versions: Versions,
    ) -> io::Result<FakeHost> {
        let private = PrivateKey::generate(&mut SystemEntropy).map_err(io::Error::other)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let host = FakeHost {
            address: listener.local_addr()?,
            key: private.public(),
            state: Arc::default(),
        };
        let keys = Arc::new(ServerKeys {
            private,
            administrators,
        });
        let server = host.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (server, keys) = (server.clone(), keys.clone());
                thread::spawn(move || server.serve(stream, &keys, versions));
            }
        });
        Ok(host)
    }

    /// What it has.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream, keys: &ServerKeys, versions: Versions) {
        // A peer that says nothing must not keep a thread for ever.
        let limit = Some(Duration::from_secs(20));
        let ready = stream
            .set_read_timeout(limit)
            .and_then(|()| stream.set_nodelay(true));
        let stream = Tcp(stream);
        let result = match ready {
            Err(e) => Err(ConnectionError::Stream(e)),
            // With bytes of the peer unread, its system is told so by a reset.
            Ok(()) if self.reset_this() => stream
                .0
                .peek(&mut [0])
                .map(drop)
                .map_err(ConnectionError::Stream),
            Ok(()) => block_on(async {
                let mut peer = accept_versions(stream, keys, versions, &mut SystemEntropy).await?;
                if self.state().busy {
                    let what = "it serves 12 clients, and none is idle".into();
                    return peer.respond_error(RpcError::Busy { what }).await;
                }
                while let Some(request) = peer.next_request().await? {
                    self.answer(&mut peer, request).await?;
                }
                Ok(())
            }),
        };
        if let Err(e) = result {
            self.state().log.push(e.to_string());
        }
    }

    fn reset_this(&self) -> bool {
        let resets = &mut self.state().resets;
        let reset = *resets > 0;
        *resets -= u32::from(reset);
        reset
    }

    async fn answer(
        &self,
        peer: &mut ServerConnection<Tcp>,
        request: Request,
    ) -> Result<(), ConnectionError<io::Error>> {
        match request {
            Request::ImagePut { id, len } => {
                if self.state().images.contains_key(&id) {
                    return peer.respond(&Response::Done).await;
                }
                self.state().uploads += 1;
                peer.respond(&Response::Ready { len: 0 }).await?;
                let Some(bytes) = self.receive(peer, len, None).await? else {
                    return Ok(());
                };
                let mut hasher = ImageHasher::new();
                hasher.update(Chunk::Bytes(&bytes));
                let found = hasher.finish();
                if found != id {
                    return peer
                        .respond_error(RpcError::ImageCorrupt { id, found })
                        .await;
                }
                self.state().images.insert(id, bytes);
                peer.respond(&Response::Done).await
            }
            Request::VolumeImport {
                name,
                size,
                len,
                mode,
            } => {
                let prepared = self.state().prepare_import(&name, size, len, mode);
                if let Err(e) = prepared {
                    return peer.respond_error(e).await;
                }
                peer.respond(&Response::Ready { len: 0 }).await?;
                let fail_at = self.state().fail_import_at;
                match self.receive(peer, len, fail_at).await {
                    Ok(Some(bytes)) => {
                        if let Some(volume) = self.state().volumes.get_mut(&name) {
                            volume[..bytes.len()].copy_from_slice(&bytes);
                        }
                        peer.respond(&Response::Done).await
                    }
                    other => {
                        if mode == ImportMode::New {
                            self.state().volumes.remove(&name);
                        }
                        other.map(drop)
                    }
                }
            }
            Request::VolumeExport { name } => {
                let volume = self.state().volumes.get(&name).cloned();
                let Some(volume) = volume else {
                    return peer.respond_error(RpcError::NoSuchVolume { name }).await;
                };
                let len = volume.len() as u64;
                peer.respond(&Response::Ready { len }).await?;
                let mut outgoing = peer.outgoing();
                for block in volume.chunks(4096) {
                    let sent = if block.iter().all(|b| *b == 0) {
                        outgoing.send_zeros(block.len() as u64).await
                    } else {
                        outgoing.send(block).await
                    };
                    match sent {
                        Ok(()) => {}
                        Err(TransferError::Connection(e)) => return Err(e),
                        Err(_) => return Ok(()),
                    }
                }
                match outgoing.finish().await {
                    Err(TransferError::Connection(e)) => Err(e),
                    _ => Ok(()),
                }
            }
            Request::ConsoleAttach { guest, replay } => {
                let found = self.state().find(&guest).map(|g| g.console.clone());
                let kept = match found {
                    Ok(kept) => kept,
                    Err(e) => return peer.respond_error(e).await,
                };
                peer.respond(&Response::Ready { len: 0 }).await?;
                if replay {
                    peer.write_console(&kept).await?;
                }
                // A guest that says what it hears, and halts at "halt".
                while let Some(bytes) = peer.read_console().await? {
                    let bytes = bytes.to_vec();
                    if let Ok(guest) = self.state().find(&guest) {
                        guest.console.extend_from_slice(&bytes);
                    }
                    peer.write_console(&bytes).await?;
                    if bytes.windows(4).any(|w| w == b"halt") {
                        peer.end_console().await?;
                    }
                }
                Ok(())
            }
            Request::ConsoleLog { guest } => {
                let found = self.state().find(&guest).map(|g| g.console.clone());
                match found {
                    Ok(kept) => peer.respond_stream(&kept).await,
                    Err(e) => peer.respond_error(e).await,
                }
            }
            Request::HostLog { source } => {
                let text: &[u8] = match source {
                    LogSource::Closer => b"closer: ready\n",
                    LogSource::Xen => b"(XEN) ready\n",
                };
                peer.respond_stream(text).await
            }
            Request::XenstoreList { path } if path == "/local" => {
                peer.respond_stream(b"/local/domain = \"\"\n").await
            }
            simple => {
                let response = self.state().simple(simple);
                peer.respond(&response.unwrap_or_else(Response::Error))
                    .await
            }
        }
    }

    /// All bytes of a stream, or none if it ended early in order.
    async fn receive(
        &self,
        peer: &mut ServerConnection<Tcp>,
        len: u64,
        fail_at: Option<u64>,
    ) -> Result<Option<Vec<u8>>, ConnectionError<io::Error>> {
        let mut bytes = Vec::new();
        let mut incoming = peer.incoming(Some(len));
        loop {
            match incoming.next().await {
                Ok(Some(Chunk::Bytes(more))) => bytes.extend_from_slice(more),
                Ok(Some(Chunk::Zeros(count))) => {
                    let count = usize::try_from(count).map_err(|_| ConnectionError::Malformed)?;
                    bytes.resize(bytes.len() + count, 0);
                }
                Ok(None) => return Ok(Some(bytes)),
                Err(e) => {
                    self.state().broken += 1;
                    return match e {
                        TransferError::Connection(e) => Err(e),
                        TransferError::Aborted(_) | TransferError::Rejected(_) => Ok(None),
                    };
                }
            }
            if fail_at.is_some_and(|at| incoming.received() >= at) {
                self.state().broken += 1;
                let why = RpcError::DiskFailed {
                    what: "write".to_string(),
                    why: "NVMe status 0x280".to_string(),
                };
                incoming.reject(&why).await?;
                return Ok(None);
            }
        }
    }
}

impl State {
    fn find(&mut self, guest: &GuestRef) -> Result<&mut Guest, RpcError> {
        let missing = || RpcError::NoSuchGuest {
            guest: guest.to_string(),
        };
        self.guests
            .values_mut()
            .find(|g| match guest {
                GuestRef::Name(name) => g.config.name == *name,
                GuestRef::Id(id) => g.domain() == Some(*id),
            })
            .ok_or_else(missing)
    }

    /// A guest that has a domain.
    fn find_domain(&mut self, guest: &GuestRef) -> Result<&mut Guest, RpcError> {
        let guest = self.find(guest)?;
        match guest.domain() {
            Some(_) => Ok(guest),
            None => Err(RpcError::WrongState {
                name: guest.config.name.clone(),
                state: guest.state,
            }),
        }
    }

    fn user_of(&self, volume: &str) -> Option<String> {
        let uses = |g: &&Guest| g.config.disks.iter().any(|d| d.volume == volume);
        self.guests
            .values()
            .find(uses)
            .map(|g| g.config.name.clone())
    }

    fn disk_free(&self) -> u64 {
        DISK - self.volumes.values().map(|v| v.len() as u64).sum::<u64>()
    }

    fn free_mib(&self) -> u64 {
        let used: u64 = self
            .guests
            .values()
            .map(|g| u64::from(g.config.memory_mib))
            .sum();
        2 * NODE_MIB - used
    }

    fn make_volume(&mut self, name: &str, size: u64) -> Result<(), RpcError> {
        check_name(name)?;
        if self.volumes.contains_key(name) {
            return Err(RpcError::VolumeExists { name: name.into() });
        }
        let free = self.disk_free();
        let no_space = RpcError::NoSpace {
            place: Place::Volumes,
            asked: size,
            free,
        };
        match usize::try_from(size) {
            Ok(bytes) if size <= free => {
                self.volumes.insert(name.into(), vec![0; bytes]);
                Ok(())
            }
            _ => Err(no_space),
        }
    }

    fn prepare_import(
        &mut self,
        name: &str,
        size: u64,
        len: u64,
        mode: ImportMode,
    ) -> Result<(), RpcError> {
        let name = name.to_string();
        match (self.volumes.get(&name), mode) {
            (None, _) => self.make_volume(&name, size.max(len)),
            (Some(_), ImportMode::New) => Err(RpcError::VolumeExists { name }),
            (Some(volume), ImportMode::Overwrite) => {
                let size = volume.len() as u64;
                if let Some(by) = self.user_of(&name) {
                    return Err(RpcError::VolumeInUse { name, by });
                }
                if len > size {
                    let asked = len;
                    return Err(RpcError::VolumeTooSmall { name, asked, size });
                }
                Ok(())
            }
        }
    }

    fn create(&mut self, config: GuestConfig, paused: bool) -> Result<Response, RpcError> {
        check_name(&config.name)?;
        if self.guests.contains_key(&config.name) {
            return Err(RpcError::GuestExists { name: config.name });
        }
        check_devices(&config, self.guests.values().map(|guest| &guest.config))?;
        let ramdisk = config.ramdisk.map(|r| r.image);
        for id in [Some(config.kernel.image), ramdisk].into_iter().flatten() {
            if !self.images.contains_key(&id) {
                return Err(RpcError::NoSuchImage { id });
            }
        }
        if config.max_vcpus > CPUS {
            return Err(RpcError::NotEnoughCpus {
                asked: config.max_vcpus,
                present: CPUS,
            });
        }
        if let Some(cpu) = config.cpus.iter().copied().find(|c| *c >= CPUS) {
            return Err(RpcError::NoSuchCpu { cpu, present: CPUS });
        }
        let free = self.free_mib();
        if u64::from(config.memory_mib) > free {
            return Err(RpcError::NotEnoughMemory {
                asked_mib: config.memory_mib.into(),
                free_mib: vec![free / 2, free - free / 2],
            });
        }
        for disk in &config.disks {
            let name = disk.volume.clone();
            if !self.volumes.contains_key(&name) {
                return Err(RpcError::NoSuchVolume { name });
            }
            if let Some(by) = self.user_of(&name) {
                return Err(RpcError::VolumeInUse { name, by });
            }
        }
        self.last_domid += 1;
        let domid = self.last_domid;
        let state = if paused {
            DomainState::Paused
        } else {
            DomainState::Blocked
        };
        let console = format!("Hello from {}\r\n", config.name).into_bytes();
        let guest = Guest {
            config,
            domid,
            state,
            console,
        };
        self.guests.insert(guest.config.name.clone(), guest);
        Ok(Response::Created {
            domid,
            node: Some(0),
        })
    }

    fn simple(&mut self, request: Request) -> Result<Response, RpcError> {
        match request {
            Request::HostInfo => Ok(Response::HostInfo(self.info().into())),
            Request::ImageHas { ids } => Ok(Response::Present(
                ids.iter().map(|id| self.images.contains_key(id)).collect(),
            )),
            Request::DomainCreate { config, paused } => self.create(*config, paused),
            Request::DomainList { only: None } => {
                let mut domains: Vec<_> = self.guests.values().map(domain_info).collect();
                domains.sort_by_key(|d| (d.domid.is_none(), d.domid));
                Ok(Response::Domains(domains))
            }
            Request::DomainList { only: Some(guest) } => {
                Ok(Response::Domains(vec![domain_info(self.find(&guest)?)]))
            }
            Request::DomainShutdown { guest, kind } => {
                let name = self.find_domain(&guest)?.config.name.clone();
                match kind {
                    ShutdownKind::PowerOff => {
                        self.guests.remove(&name);
                    }
                    ShutdownKind::Reboot => {
                        self.last_domid += 1;
                        let domid = self.last_domid;
                        self.find(&GuestRef::Name(name))?.domid = domid;
                    }
                }
                Ok(Response::Done)
            }
            Request::DomainDestroy { guest } => {
                let name = self.find(&guest)?.config.name.clone();
                self.guests.remove(&name);
                Ok(Response::Done)
            }
            Request::DomainPause { guest } => {
                self.find_domain(&guest)?.state = DomainState::Paused;
                Ok(Response::Done)
            }
            Request::DomainUnpause { guest } => {
                let guest = self.find_domain(&guest)?;
                if guest.state != DomainState::Paused {
                    let name = guest.config.name.clone();
                    let state = guest.state;
                    return Err(RpcError::WrongState { name, state });
                }
                guest.state = DomainState::Running;
                Ok(Response::Done)
            }
            Request::DomainRename { guest, name } => {
                check_name(&name)?;
                if self.guests.contains_key(&name) {
                    return Err(RpcError::GuestExists { name });
                }
                let old = self.find(&guest)?.config.name.clone();
                if let Some(mut guest) = self.guests.remove(&old) {
                    guest.config.name.clone_from(&name);
                    self.guests.insert(name, guest);
                }
                Ok(Response::Done)
            }
            Request::VolumeCreate { name, size } => {
                self.make_volume(&name, size)?;
                Ok(Response::Done)
            }
            Request::VolumeList => Ok(Response::Volumes(
                self.volumes
                    .iter()
                    .map(|(name, volume)| VolumeInfo {
                        name: name.clone(),
                        size: volume.len() as u64,
                        used_by: self.user_of(name).into_iter().collect(),
                    })
                    .collect(),
            )),
            Request::VolumeRemove { name } => {
                if let Some(by) = self.user_of(&name) {
                    return Err(RpcError::VolumeInUse { name, by });
                }
                match self.volumes.remove(&name) {
                    Some(_) => Ok(Response::Done),
                    None => Err(RpcError::NoSuchVolume { name }),
                }
            }
            Request::Ping | Request::HostPower { .. } => Ok(Response::Done),
            Request::XenstoreList { path } => Err(RpcError::NoSuchNode { path }),
            other => Err(RpcError::Unsupported {
                what: format!("{other:?}"),
            }),
        }
    }

    fn info(&self) -> HostInfo {
        let node = |id, cpus: [u32; 2]| NodeInfo {
            id,
            memory: NODE_MIB << 20,
            free: (self.free_mib() / 2) << 20,
            cpus: cpus.to_vec(),
            own_used: 6 << 20,
        };
        HostInfo {
            name: "fake".into(),
            closer_version: env!("CARGO_PKG_VERSION").into(),
            xen_version: "4.20.0".into(),
            uptime_s: 3723,
            wall_clock_s: 1_800_000_000,
            cpus: CPUS,
            mc_cpus: vec![0],
            memory: (2 * NODE_MIB) << 20,
            free_memory: self.free_mib() << 20,
            nodes: vec![node(0, [0, 1]), node(1, [2, 3])],
            own: OwnMemory {
                total: 64 << 20,
                used: 12 << 20,
                packets_idle: 1 << 20,
                heap_held: 3 << 20,
                heap_used: 2 << 20,
            },
            guests: u32::try_from(self.guests.len()).unwrap_or(u32::MAX),
            volumes: Some(Space {
                total: DISK,
                free: self.disk_free(),
            }),
            images: Some(Space {
                total: 1 << 30,
                free: 1 << 29,
            }),
            vcpu_ns: vec![1_500_000_000, 2_000, 0, 0],
        }
    }
}

impl Guest {
    /// Its domid, if it has a domain now.
    fn domain(&self) -> Option<u16> {
        (self.state != DomainState::Building).then_some(self.domid)
    }
}

fn domain_info(guest: &Guest) -> DomainInfo {
    let config = &guest.config;
    let info = DomainInfo {
        name: config.name.clone(),
        domid: guest.domain(),
        uuid: config.uuid,
        kind: config.kind,
        state: guest.state,
        memory_kib: 0,
        vcpus: 0,
        max_vcpus: config.max_vcpus,
        cpus: vec![1],
        node: Some(0),
        cpu_ns: 0,
        served_ns: 98_765_432,
        uptime_s: 0,
    };
    match info.domid {
        None => info,
        Some(_) => DomainInfo {
            memory_kib: u64::from(config.memory_mib) * 1024,
            vcpus: config.vcpus,
            cpu_ns: 1_234_567_890,
            uptime_s: 61,
            ..info
        },
    }
}
