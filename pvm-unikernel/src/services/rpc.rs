//! The management RPC: one task for each connection, on an MC vCPU.

mod console;
mod volumes;

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use toolstack_domain::placement;
use toolstack_rpc::clients::{self, Full};
use toolstack_rpc::message::{HostInfo, LogSource, NodeInfo, OwnMemory};
use toolstack_rpc::server::{self, ServerKeys};
use toolstack_rpc::strangers;
use toolstack_rpc::stream::{ByteStream, Entropy, NoEntropy};
use toolstack_rpc::{
    ConnectionError, PrivateKey, PublicKey, Request, Response, RpcError, ServerConnection,
};

use super::host::{ANSWER_TIME, Host};
use super::stack::{Closed, Connection, ConnectionId, PeerName, Stack};
use super::storage::ImageLease;
use crate::{exec, log as host_log, rng, time};

/// Administrators served at once. A further one takes the place of who has been idle for
/// longest ([`clients::Clients`]), or is told that the host is busy.
const MAX_CLIENTS: usize = placement::CLIENTS;
/// For how long we have waited for who makes room: for its next request, for bytes of it, or
/// for it to take ours. Output of a guest's console does not count; that also goes to
/// consoles that somebody forgot.
const CLIENT_IDLE_NS: u64 = 60_000_000_000;
/// Strangers at once: peers that have not yet sent a frame that opens. For a further one,
/// the address with most of them loses its oldest ([`strangers::Strangers`]), so that those
/// from fewer addresses than this push nobody else's out.
const MAX_STRANGERS: usize = placement::STRANGERS;
/// What hello, handshake and the first frame may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Why a connection ended.
type Ended = ConnectionError<Closed>;
/// A client that proved to be an administrator.
type Client = ServerConnection<Peer>;

/// The kernel's generator, for handshakes.
struct KernelEntropy;

impl Entropy for KernelEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        rng::fill(out);
        Ok(())
    }
}

/// A connection, and since when we wait for its other end.
struct Peer {
    connection: Connection,
    clients: Rc<RefCell<clients::Clients<ConnectionId>>>,
    console: Cell<bool>,
}

impl Peer {
    /// Takes a place among the clients, until it is dropped.
    fn admit(&self, stack: &Stack) -> Result<(), Full> {
        let mut clients = self.clients.borrow_mut();
        if let Some(gone) = clients.admit(self.connection.id(), time::now_ns())? {
            log::info!("rpc: a client that was idle makes room for {}", self.name());
            // Its task hears of the end of the connection.
            stack.reset(gone);
        }
        Ok(())
    }

    /// We wait for it from now on.
    fn waited_for(&self) {
        self.set_idle(Some(time::now_ns()));
    }

    /// It has done its part, and now waits for us; or is on a console, where it may wait for
    /// nothing.
    fn heard_of(&self) {
        self.set_idle(self.console.get().then(time::now_ns));
    }

    fn set_idle(&self, since: Option<u64>) {
        let mut clients = self.clients.borrow_mut();
        clients.set_idle(&self.connection.id(), since);
    }

    fn name(&self) -> PeerName {
        self.connection.peer()
    }

    /// As [`Connection::ended`].
    async fn ended(&self) {
        self.connection.ended().await;
    }
}

impl ByteStream for Peer {
    type Error = Closed;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Closed> {
        // A console begins to read anew with each byte of output.
        if !self.console.get() {
            self.waited_for();
        }
        let count = self.connection.read(buf).await?;
        self.heard_of();
        Ok(count)
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        if self.console.get() {
            return self.connection.write_all(bytes).await;
        }
        self.waited_for();
        self.connection.write_all(bytes).await?;
        self.heard_of();
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Before its connection, whose name may then be another's.
        self.clients.borrow_mut().remove(&self.connection.id());
    }
}

/// Connections that have proved nothing yet.
#[derive(Clone)]
struct Strangers(Rc<RefCell<strangers::Strangers<ConnectionId, PeerName>>>);

/// One of them, until it is dropped.
struct Stranger(Strangers, ConnectionId);

impl Strangers {
    fn admit(&self, stack: &Stack, connection: &Connection) -> Stranger {
        let id = connection.id();
        let gone = self.0.borrow_mut().admit(id, connection.peer());
        if let Some(gone) = gone {
            // Its task hears of the end of the connection.
            stack.reset(gone);
        }
        Stranger(self.clone(), id)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.0.borrow_mut().remove(&self.1);
    }
}

/// Serves connections for ever.
pub async fn serve(host: Rc<Host>, stack: Stack) {
    let Some(key) = &host.config.host_key else {
        return log::error!("rpc: the host has no key");
    };
    let keys = Rc::new(ServerKeys {
        private: PrivateKey::from_bytes(key.0),
        administrators: host
            .config
            .administrators
            .iter()
            .map(|admin| PublicKey(admin.key.0))
            .collect(),
    });
    let clients = clients::Clients::new(MAX_CLIENTS, CLIENT_IDLE_NS);
    let clients = Rc::new(RefCell::new(clients));
    let strangers = strangers::Strangers::new(MAX_STRANGERS);
    let strangers = Strangers(Rc::new(RefCell::new(strangers)));
    loop {
        let connection = stack.accept().await;
        let stranger = strangers.admit(&stack, &connection);
        let connection = Peer {
            connection,
            clients: clients.clone(),
            console: Cell::new(false),
        };
        let (host, keys, stack) = (host.clone(), keys.clone(), stack.clone());
        exec::spawn_local(async move {
            let peer = connection.name();
            let accepted = time::timeout(
                server::accept(connection, &keys, &mut KernelEntropy),
                HANDSHAKE_TIME,
            )
            .await;
            let mut client = match accepted {
                Ok(Ok(client)) => client,
                // A stranger makes these at will: nothing above debug. Its slot goes in the
                // same breath as its connection, whose name may then be another's.
                Ok(Err(why)) => return log::debug!("rpc: {peer}: {why}"),
                Err(elapsed) => return log::debug!("rpc: {peer}: handshake {elapsed}"),
            };
            if client.stream().admit(&stack) == Err(Full) {
                // It still counts as a stranger.
                let what = format!("it serves {MAX_CLIENTS} clients, and none is idle");
                let busy = client.respond_error(RpcError::Busy { what });
                let told = time::timeout(busy, HANDSHAKE_TIME).await;
                drop(stranger);
                return log::info!("rpc: {peer}: refused, too many clients{}", heard(&told));
            }
            drop(stranger);
            let mut task = String::new();
            if let Err(why) = serve_client(&host, &mut client, &mut task).await {
                // An administrator's doing: who has not proved to be one does not get here.
                let key = client.peer();
                let mut all = host.config.administrators.iter();
                let who = all.find(|admin| admin.key.0 == key.0);
                let who = who.map_or("?", |admin| &admin.name);
                log::info!("rpc: {peer}: {who}: {task}{why}");
            }
        });
    }
}

/// Whether who was refused was told so, for the log.
fn heard(told: &Result<Result<(), Ended>, time::Elapsed>) -> &'static str {
    match told {
        Ok(Ok(())) => "",
        _ => "; it did not hear of it",
    }
}

/// `task`: what was asked for and is not done, if the connection ends before it is.
async fn serve_client(
    host: &Rc<Host>,
    client: &mut Client,
    task: &mut String,
) -> Result<(), Ended> {
    let lease = host.storage.as_ref().map(|storage| storage.image_lease());
    while let Some(request) = client.next_request().await? {
        *task = long_task(&request);
        serve_request(host, client, lease.as_ref(), request).await?;
        task.clear();
    }
    Ok(())
}

/// What takes long enough to be cut off, for the log; empty for other requests.
fn long_task(request: &Request) -> String {
    let (what, name) = match request {
        Request::ConsoleAttach { guest, .. } => ("console", guest.to_string()),
        Request::DomainCreate { config, .. } => ("create", config.name.clone()),
        Request::DomainDestroy { guest } => ("destroy", guest.to_string()),
        Request::ImagePut { .. } => ("upload of", String::from("an image")),
        Request::VolumeCreate { name, .. } => ("volume create", name.clone()),
        Request::VolumeExport { name } => ("volume export", name.clone()),
        Request::VolumeImport { name, .. } => ("volume import", name.clone()),
        _ => return String::new(),
    };
    // The name is not checked yet, and the line is to stay one.
    format!("{what} {}: ", name.escape_default())
}

async fn serve_request(
    host: &Rc<Host>,
    client: &mut Client,
    lease: Option<&ImageLease>,
    request: Request,
) -> Result<(), Ended> {
    match request {
        Request::HostInfo => {
            let response = host_info(host)
                .await
                .map(|info| Response::HostInfo(Box::new(info)));
            answer(client, response).await
        }
        Request::DomainCreate { config, paused } => {
            let created = host.guests.create(host, *config, paused).await;
            if let Some(lease) = lease {
                lease.release();
            }
            let response = created.map(|c| Response::Created {
                domid: c.domid.0,
                node: c.node.map(|n| n.0),
            });
            answer(client, response).await
        }
        Request::DomainList { only } => {
            answer(
                client,
                host.guests.list(only.as_ref()).map(Response::Domains),
            )
            .await
        }
        Request::DomainShutdown { guest, kind } => {
            let asked = host.guests.ask_to_shut_down(host, &guest, kind);
            client.respond_result(asked).await
        }
        Request::DomainDestroy { guest } => {
            let done = host.guests.destroy(host, &guest).await;
            client.respond_result(done).await
        }
        Request::DomainPause { guest } => client.respond_result(host.guests.pause(&guest)).await,
        Request::DomainUnpause { guest } => {
            client.respond_result(host.guests.unpause(&guest)).await
        }
        Request::DomainRename { guest, name } => {
            client
                .respond_result(host.guests.rename_for_good(host, &guest, name).await)
                .await
        }
        Request::ConsoleAttach { guest, replay } => {
            client.stream().console.set(true);
            client.stream().heard_of();
            let left = console::attach(host, client, &guest, replay).await;
            client.stream().console.set(false);
            left
        }
        Request::ConsoleLog { guest } => console::log(host, client, &guest).await,
        Request::HostLog {
            source: LogSource::Closer,
        } => client.respond_stream(&host_log::tail(usize::MAX)).await,
        Request::HostLog {
            source: LogSource::Xen,
        } => match host.xen_log() {
            Ok(bytes) => client.respond_stream(&bytes).await,
            Err(error) => client.respond_error(error).await,
        },
        Request::HostPower { action, force } => {
            let (asking, begun) = host.go_down(action, force);
            client.respond_result(begun).await?;
            // A client that has the answer ends the connection; one that does not may go on.
            let _ended: bool = time::timeout(client.stream().ended(), ANSWER_TIME)
                .await
                .is_ok();
            drop(asking);
            Ok(())
        }
        Request::XenstoreList { path } => match host.store.dump(&path) {
            Ok(text) => client.respond_stream(text.as_bytes()).await,
            Err(error) => client.respond_error(error).await,
        },
        Request::ImageHas { ids } => volumes::image_has(client, lease, &ids).await,
        Request::ImagePut { id, len } => volumes::image_put(host, client, lease, id, len).await,
        Request::VolumeCreate { name, size } => volumes::create(host, client, &name, size).await,
        Request::VolumeImport {
            name,
            size,
            len,
            mode,
        } => volumes::import(host, client, &name, size, len, mode).await,
        Request::VolumeExport { name } => volumes::export(host, client, &name).await,
        Request::VolumeList => {
            let list = volumes::list(host).await.map(Response::Volumes);
            answer(client, list).await
        }
        Request::Ping => client.respond(&Response::Done).await,
        Request::VolumeRemove { name } => {
            let removed = volumes::remove(host, &name).await;
            client.respond_result(removed).await
        }
    }
}

async fn answer(client: &mut Client, response: Result<Response, RpcError>) -> Result<(), Ended> {
    match response {
        Ok(response) => client.respond(&response).await,
        Err(error) => client.respond_error(error).await,
    }
}

async fn host_info(host: &Host) -> Result<HostInfo, RpcError> {
    let facts = host.facts()?;
    let counts = crate::mem::counts();
    let page = xen_abi::PAGE_SIZE as u64;
    let used = |c: &crate::mem::NodeCount| (c.total - c.free) * page;
    let own_used = |node: u32| counts.get(node as usize).map_or(0, used);
    let (volumes, images) = match &host.storage {
        Some(storage) => (
            Some(storage.volume_space().await),
            Some(storage.image_space()),
        ),
        None => (None, None),
    };
    Ok(HostInfo {
        name: host.config.hostname.clone(),
        closer_version: env!("CARGO_PKG_VERSION").to_string(),
        xen_version: host.xen_version.clone(),
        uptime_s: (time::now_ns() - host.started_ns) / 1_000_000_000,
        wall_clock_s: time::wall_clock() / 1_000_000_000,
        cpus: u32::try_from(facts.cpus.len()).unwrap_or(u32::MAX),
        mc_cpus: host.mc_cpus.clone(),
        memory: facts.memory,
        free_memory: facts.free,
        nodes: facts
            .nodes
            .iter()
            .map(|node| NodeInfo {
                id: node.id.0,
                memory: crate::mem::pages_of_node(node.id.0)
                    .map_or(node.memory, |pages| pages * page),
                free: node.free,
                cpus: facts
                    .cpus
                    .iter()
                    .filter(|c| c.node == node.id)
                    .map(|c| c.id)
                    .collect(),
                own_used: own_used(node.id.0),
            })
            .collect::<Vec<_>>(),
        own: OwnMemory {
            total: counts.iter().map(|c| c.total * page).sum(),
            used: counts.iter().map(used).sum(),
            packets_idle: super::network::idle_packet_bytes() as u64,
            heap_held: crate::mem::heap_held_bytes() as u64,
            heap_used: crate::mem::heap_used_bytes() as u64,
        },
        guests: host.guests.count(),
        volumes,
        images,
        vcpu_ns: host.vcpu_times()?,
    })
}
