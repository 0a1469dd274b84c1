//! Watches: who asked to hear of which nodes, and telling them.

use crate::account::{Charge, Ticket, count};
use crate::connection::PACKET_COST;
use crate::events::Queue;
use crate::ops::Change;
use crate::path::Path;
use crate::perms::Access;
use crate::server::{ConnId, Server};
use crate::watches::{BRANCH_COST, WatchId};
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::RefCell;
use xen_abi::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsError};

/// Bytes of unread output from which on a privileged client's events are dropped.
const PRIVILEGED_OUTPUT_MAX: usize = 8 * 1024 * 1024;

/// Who hears of a watch.
#[derive(Debug)]
enum Listener {
    Connection(ConnId),
    Local {
        queue: Weak<RefCell<Queue>>,
        token: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Watch {
    pub path: Path,
    pub token: Box<[u8]>,
    listener: Listener,
    /// How much of a path to leave out for a relative watch.
    prefix: usize,
    _charge: Option<Charge>,
}

impl Server {
    fn add_watch(&mut self, watch: Watch) -> WatchId {
        let id = WatchId(self.next_watch);
        self.next_watch += 1;
        self.index.insert(&watch.path, id);
        self.watches.insert(id, watch);
        id
    }

    /// Registers a client's watch, without its first event.
    pub(crate) fn watch_for(
        &mut self,
        id: ConnId,
        path: Path,
        token: &[u8],
        relative: bool,
    ) -> Result<WatchId, XsError> {
        let connection = self.connections.get(&id).ok_or(XsError::EIO)?;
        let key = (path.clone(), Box::from(token));
        if connection.watches.contains_key(&key) {
            return Err(XsError::EEXIST);
        }
        let (account, privileged) = (connection.account.clone(), connection.privileged);
        let quotas = self.domains.quotas_of(connection.domid);
        // The watch, the connection's list, and what it may add to the index.
        let cost = 256
            + 2 * (path.as_str().len() + token.len())
            + path
                .segments()
                .map(|name| name.len() + BRANCH_COST)
                .sum::<usize>();
        if !privileged && account.watches.get() >= quotas.watches {
            return Err(XsError::E2BIG);
        }
        if !privileged && account.memory.get() + cost >= quotas.memory {
            return Err(XsError::ENOMEM);
        }
        let prefix = if relative {
            connection.home.len() + 1
        } else {
            0
        };
        account.watches.add(1);
        let watch = self.add_watch(Watch {
            path,
            token: token.into(),
            listener: Listener::Connection(id),
            prefix,
            _charge: Some(Charge::new(&account, cost)),
        });
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.watches.insert(key, watch);
        }
        Ok(watch)
    }

    /// Registers a watch of one of the pVM's own tasks.
    pub(crate) fn watch_locally(
        &mut self,
        path: Path,
        queue: Weak<RefCell<Queue>>,
        token: u64,
    ) -> WatchId {
        self.add_watch(Watch {
            path,
            token: Box::default(),
            listener: Listener::Local { queue, token },
            prefix: 0,
            _charge: None,
        })
    }

    pub(crate) fn is_local_watch(&self, id: WatchId, path: &Path, token: u64) -> bool {
        self.watches.get(&id).is_some_and(|watch| {
            watch.path == *path
                && matches!(watch.listener, Listener::Local { token: other, .. } if other == token)
        })
    }

    pub(crate) fn forget_watch(&mut self, watch: WatchId) {
        if let Some(watch_entry) = self.watches.remove(&watch) {
            self.index.remove(&watch_entry.path, watch);
            if let Listener::Connection(id) = watch_entry.listener
                && let Some(connection) = self.connections.get_mut(&id)
            {
                connection.account.watches.sub(1);
                connection
                    .watches
                    .remove(&(watch_entry.path, watch_entry.token));
            }
        }
    }

    pub(crate) fn forget_watches_and_transactions(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        for (age, _) in core::mem::take(&mut connection.transactions).into_values() {
            self.open.remove(&age);
        }
        let watches: Vec<WatchId> = connection.watches.values().copied().collect();
        for watch in watches {
            self.forget_watch(watch);
        }
    }

    pub(crate) fn fire_special(&mut self, name: &str) {
        let path = Path::new(name).expect("a constant that is a good name");
        self.fire(
            &[Change {
                exact: true,
                ..Change::of(&path)
            }],
            None,
        );
    }

    /// The first event of a watch, which does not depend on anything having changed.
    pub(crate) fn fire_first(&mut self, watch: WatchId) {
        if let Some(path) = self.watches.get(&watch).map(|watch| watch.path.clone()) {
            self.deliver(watch, &path, None);
        }
    }

    /// Tells everybody who watches and may know of it that nodes have changed.
    pub(crate) fn fire(&mut self, changes: &[Change], ticket: Option<&Rc<Ticket>>) {
        self.bury();
        let mut matching = Vec::new();
        for change in changes {
            matching.clear();
            self.index
                .matching(&change.path, change.exact, &mut matching);
            self.work += 1 + matching.len();
            if matching.is_empty() {
                continue;
            }
            let node = self.store.get(&change.path).map(|node| node.perms.clone());
            let parent = change.path.parent();
            let parent = parent
                .and_then(|path| self.store.get(&path))
                .map(|n| n.perms.clone());
            let readable = [&node, &change.before, &parent, &change.above];
            for watch in &matching {
                let may_know = match self.watches.get(watch).map(|watch| &watch.listener) {
                    Some(Listener::Local { .. }) => true,
                    Some(Listener::Connection(id)) => {
                        self.connections.get(id).is_some_and(|connection| {
                            let actor = self.actor(connection);
                            let reads = |perms| actor.access(perms).covers(Access::READ);
                            readable
                                .iter()
                                .filter_map(|perms| perms.as_ref())
                                .any(reads)
                        })
                    }
                    None => false,
                };
                if may_know {
                    self.deliver(*watch, &change.path, ticket);
                }
            }
        }
    }

    /// Forgets the watches of queues that were dropped.
    pub(crate) fn bury(&mut self) {
        let dead = self.graveyard.take();
        for watch in dead {
            self.forget_watch(watch);
        }
    }

    fn deliver(&mut self, id: WatchId, path: &Path, ticket: Option<&Rc<Ticket>>) {
        let Some(watch) = self.watches.get(&id) else {
            return;
        };
        let to = match &watch.listener {
            Listener::Local { queue, token } => {
                if let Some(queue) = queue.upgrade() {
                    queue.borrow_mut().push(id, *token, &watch.path, path);
                }
                return;
            }
            Listener::Connection(to) => *to,
        };
        let Some(connection) = self.connections.get_mut(&to) else {
            return;
        };
        let name = &path.as_str()[watch.prefix.min(path.as_str().len())..];
        let len = name.len() + watch.token.len() + 2;
        if len > XENSTORE_PAYLOAD_MAX || connection.failed {
            return;
        }
        let account = connection.account.clone();
        let room = if connection.privileged {
            connection.output_bytes() < PRIVILEGED_OUTPUT_MAX
        } else {
            let quota = self.domains.quotas_of(connection.domid).memory;
            account.memory.get() + 2 * len + PACKET_COST < quota
        };
        if !room {
            count(&account.events_dropped, 1);
            return;
        }
        let payload = [name.as_bytes(), b"\0", &watch.token, b"\0"].concat();
        let deadline = self.now_ms.saturating_add(self.event_timeout_ms);
        let deadline = (!connection.privileged).then_some(deadline);
        if connection.event(id, path, &payload, ticket.cloned(), deadline) {
            count(&account.events, 1);
            self.set_ready(to);
        }
    }
}
