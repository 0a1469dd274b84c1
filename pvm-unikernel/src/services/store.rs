//! The xenstore server on its MC vCPU: one task for each guest's ring, one that wakes
//! them, and direct access for the pVM's own tasks.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use core::future::poll_fn;
use core::pin::pin;
use core::time::Duration;

use futures_util::future::select;
use toolstack_rpc::RpcError;
use toolstack_xenstore::{ConnId, RingConnection, Server};
use xen_abi::DomId;
use xen_ring::SharedPages;

use crate::event::Port;
use crate::sync::Notify;
use crate::{exec, time};

/// Nodes that one dump lists at most.
const MAX_DUMP: usize = 4096;
/// Text after which it ends: guests write long values, and the text is made in one piece.
const MAX_DUMP_BYTES: usize = 1 << 20;

/// The xenstore of this host.
pub struct Store {
    server: RefCell<Server>,
    /// Tells the task of a connection that it has output, or takes input again.
    rings: RefCell<BTreeMap<u32, Rc<Notify>>>,
}

impl Store {
    /// An empty store; starts the task that wakes rings and keeps its time.
    pub fn start() -> Rc<Self> {
        let store = Rc::new(Self {
            server: RefCell::new(Server::new(toolstack_xenstore::Config::default())),
            rings: RefCell::new(BTreeMap::new()),
        });
        exec::spawn_local(store.clone().wake_rings());
        store
    }

    /// Uses the server. Not to be called from within itself.
    ///
    /// The server is told the time before: an event queued by a clock that stands still
    /// would be born with its deadline behind it, and be dropped unread.
    pub fn with<R>(&self, work: impl FnOnce(&mut Server) -> R) -> R {
        let mut server = self.server.borrow_mut();
        server.advance(time::now_ns() / 1_000_000);
        work(&mut server)
    }

    async fn wake_rings(self: Rc<Self>) {
        loop {
            let deadline = self.with(Server::next_deadline_ms);
            let ready = poll_fn(|cx| self.server.borrow_mut().poll_ready(cx));
            // A new deadline comes only with output or input, which make a ring ready.
            let woken = match deadline {
                None => Some(ready.await),
                Some(ms) => {
                    let now_ms = time::now_ns() / 1_000_000;
                    time::timeout(
                        ready,
                        Duration::from_millis(ms.saturating_sub(now_ms).max(1)),
                    )
                    .await
                    .ok()
                }
            };
            if let Some(ConnId(conn)) = woken
                && let Some(ring) = self.rings.borrow().get(&conn)
            {
                ring.notify_all();
            }
            exec::checkpoint().await;
        }
    }

    /// Introduces a domain and serves its ring until cancelled.
    pub async fn serve(self: Rc<Self>, domid: DomId, page: SharedPages, port: Port) {
        let mut ring = self.with(|server| RingConnection::attach(server, domid, page));
        let wake = Rc::new(Notify::new());
        self.rings.borrow_mut().insert(ring.conn().0, wake.clone());
        let _listed = Listed {
            store: self.clone(),
            conn: ring.conn(),
        };
        loop {
            let seen = wake.generation();
            let pumped = self.with(|server| {
                let pumped = ring.pump(server);
                // Only privileged clients cause actions, and no guest is privileged.
                while let Some(action) = server.next_action() {
                    log::error!("xenstore: nobody may ask for {action:?}");
                }
                pumped
            });
            match pumped {
                Ok(pumped) => {
                    if pumped.notify {
                        port.notify();
                    }
                    if pumped.more {
                        exec::yield_now().await;
                        continue;
                    }
                }
                Err(fault) => {
                    // Once in a domain's life: `pump` has no fault after the first.
                    log::warn!("domain {domid}: {fault}; ignored from now on");
                    port.notify();
                }
            }
            select(pin!(port.wait()), pin!(wake.changed(seen))).await;
            exec::checkpoint().await;
        }
    }

    /// A part of the tree as text, a line `path = "value"` for each node.
    pub fn dump(&self, path: &str) -> Result<String, RpcError> {
        let server = self.server.borrow();
        if !server.exists(path) {
            return Err(RpcError::NoSuchNode { path: path.into() });
        }
        let mut text = String::new();
        let mut left = MAX_DUMP;
        let mut waiting = alloc::vec![String::from(path)];
        while let Some(path) = waiting.pop() {
            let value = server.read(&path).unwrap_or_default();
            text += &format!("{path} = \"{}\"\n", value.escape_ascii());
            left -= 1;
            if left == 0 || text.len() > MAX_DUMP_BYTES {
                text += "... and more\n";
                break;
            }
            let children = server.directory(&path).unwrap_or_default();
            let above = if path == "/" { "" } else { &path };
            waiting.extend(children.iter().rev().map(|name| format!("{above}/{name}")));
        }
        Ok(text)
    }
}

/// Takes a ring off the list when its task is cancelled.
struct Listed {
    store: Rc<Store>,
    conn: ConnId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.store.rings.borrow_mut().remove(&self.conn.0);
    }
}
