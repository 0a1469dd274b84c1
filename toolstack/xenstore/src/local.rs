//! The store for the pVM's own tasks: no wire, no quota, every right.

use crate::account::Usage;
use crate::events::EventQueue;
use crate::ops::{Change, Op, Work};
use crate::path::Path;
use crate::perms::{Actor, Perm, Perms};
use crate::server::Server;
use crate::store::Store;
use alloc::string::String;
use alloc::vec::Vec;
use xen_abi::io::xs_wire::XsError;

/// Several changes that happen together or not at all; see [`Server::transaction`].
#[derive(Debug)]
pub struct LocalTransaction<'a> {
    server: &'a mut Server,
    before: Store,
    usage: Usage,
    changes: Vec<Change>,
}

impl LocalTransaction<'_> {
    /// A node's value. `ENOENT`: no such node.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, XsError> {
        self.server.read(path)
    }

    /// [`Self::read`] as text. `EINVAL`: it is none.
    pub fn read_text(&self, path: &str) -> Result<String, XsError> {
        self.server.read_text(path)
    }

    /// Whether there is such a node.
    pub fn exists(&self, path: &str) -> bool {
        self.server.exists(path)
    }

    /// Names of a node's children.
    pub fn directory(&self, path: &str) -> Result<Vec<String>, XsError> {
        self.server.directory(path)
    }

    /// Sets a value; makes the node, and those above it, with the permissions of the
    /// nearest node above.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), XsError> {
        self.apply(&Op::Write(Path::new(path)?, value.into()))
    }

    /// Makes a node unless it is there.
    pub fn mkdir(&mut self, path: &str) -> Result<(), XsError> {
        self.apply(&Op::Mkdir(Path::new(path)?))
    }

    /// Removes a node and all below. One that is not there is no error, if the node
    /// above is.
    pub fn remove(&mut self, path: &str) -> Result<(), XsError> {
        self.apply(&Op::Remove(Path::new(path)?))
    }

    /// A node's permissions, the owner's first.
    pub fn perms(&self, path: &str) -> Result<Vec<Perm>, XsError> {
        self.server.perms(path)
    }

    /// Replaces a node's permissions; domains they name are taken to exist.
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), XsError> {
        self.server.know_named(perms);
        self.apply(&Op::SetPerms(Path::new(path)?, Perms::new(perms)?))
    }

    fn apply(&mut self, op: &Op) -> Result<(), XsError> {
        let mut work = Work {
            store: &mut self.server.store,
            domains: &self.server.domains,
            watches: &self.server.index,
            actor: Actor::LOCAL,
            usage: &mut self.usage,
            charged: false,
            changes: &mut self.changes,
        };
        work.apply(op)
    }
}

impl Server {
    /// A node's value. `ENOENT`: no such node. `EINVAL`: no such name can be.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, XsError> {
        let node = self.store.get(&Path::new(path)?).ok_or(XsError::ENOENT)?;
        Ok(node.data.to_vec())
    }

    /// [`Self::read`] as text. `EINVAL`: it is none.
    pub fn read_text(&self, path: &str) -> Result<String, XsError> {
        String::from_utf8(self.read(path)?).map_err(|_| XsError::EINVAL)
    }

    /// Whether there is such a node.
    pub fn exists(&self, path: &str) -> bool {
        Path::new(path).is_ok_and(|path| self.store.get(&path).is_some())
    }

    /// Names of a node's children, in order.
    pub fn directory(&self, path: &str) -> Result<Vec<String>, XsError> {
        let node = self.store.get(&Path::new(path)?).ok_or(XsError::ENOENT)?;
        Ok(node
            .children
            .iter()
            .map(|(name, _)| String::from(&**name))
            .collect())
    }

    /// A node's permissions, the owner's first.
    pub fn perms(&self, path: &str) -> Result<Vec<Perm>, XsError> {
        let node = self.store.get(&Path::new(path)?).ok_or(XsError::ENOENT)?;
        Ok(node.perms.entries().to_vec())
    }

    /// [`LocalTransaction::write`] by itself.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), XsError> {
        self.change_locally(&Op::Write(Path::new(path)?, value.into()))
    }

    /// [`LocalTransaction::mkdir`] by itself.
    pub fn mkdir(&mut self, path: &str) -> Result<(), XsError> {
        self.change_locally(&Op::Mkdir(Path::new(path)?))
    }

    /// [`LocalTransaction::remove`] by itself.
    pub fn remove(&mut self, path: &str) -> Result<(), XsError> {
        self.change_locally(&Op::Remove(Path::new(path)?))
    }

    /// [`LocalTransaction::set_perms`] by itself.
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), XsError> {
        self.know_named(perms);
        self.change_locally(&Op::SetPerms(Path::new(path)?, Perms::new(perms)?))
    }

    /// One change, which happens whole or not at all by itself: no snapshot is needed.
    fn change_locally(&mut self, op: &Op) -> Result<(), XsError> {
        let (mut usage, mut changes) = (Usage::default(), Vec::new());
        let mut work = Work {
            store: &mut self.store,
            domains: &self.domains,
            watches: &self.index,
            actor: Actor::LOCAL,
            usage: &mut usage,
            charged: false,
            changes: &mut changes,
        };
        work.apply(op)?;
        self.finish_locally(&usage, &changes);
        Ok(())
    }

    fn finish_locally(&mut self, usage: &Usage, changes: &[Change]) {
        self.domains.settle(usage);
        self.fire(changes, None);
        self.bound_snapshots();
    }

    /// Does what `work` does, all of it or (if it gives an error back) nothing.
    /// Nobody comes in between, so there is no conflict; guests' open transactions
    /// that read what it changes have to be tried again. Watches fire at the end.
    ///
    /// ```
    /// use toolstack_xenstore::{Server, XsError};
    /// let mut server = Server::new(Default::default());
    /// let refused = server.transaction(|t| {
    ///     t.write("/vm/7/name", b"web")?;
    ///     t.write("/vm//", b"")
    /// });
    /// assert_eq!(refused, Err(XsError::EINVAL));
    /// assert!(!server.exists("/vm/7/name"));
    /// ```
    pub fn transaction<R, E>(
        &mut self,
        work: impl FnOnce(&mut LocalTransaction<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut transaction = LocalTransaction {
            before: self.store.clone(),
            usage: Usage::default(),
            changes: Vec::new(),
            server: self,
        };
        let result = work(&mut transaction);
        let LocalTransaction {
            before,
            usage,
            changes,
            ..
        } = transaction;
        if result.is_err() {
            self.store.restore(before);
            return result;
        }
        drop(before);
        self.finish_locally(&usage, &crate::ops::merge(changes));
        result
    }

    /// Asks for events of `path` (a node, or a special name) and of all below it, into
    /// `queue`, marked with `token`. One comes at once. Ends with the queue.
    pub fn watch(&mut self, queue: &EventQueue, path: &str, token: u64) -> Result<(), XsError> {
        let path = Path::new(path)?;
        self.bury();
        let id = self.watch_locally(path, queue.handle(), token);
        queue.adopt(id, &self.graveyard);
        self.fire_first(id);
        Ok(())
    }

    /// Ends a watch; events of it that still wait are dropped. `ENOENT`: the queue has
    /// no watch on that path with that token.
    pub fn unwatch(&mut self, queue: &EventQueue, path: &str, token: u64) -> Result<(), XsError> {
        let path = Path::new(path)?;
        let mine = queue.watches();
        let found = mine
            .into_iter()
            .find(|id| self.is_local_watch(*id, &path, token));
        let id = found.ok_or(XsError::ENOENT)?;
        self.forget_watch(id);
        queue.abandon(id);
        Ok(())
    }
}
