//! What a request does to nodes: permissions and quotas first, then the change.
//!
//! Each operation happens whole or not at all. The same code serves a request outside
//! a transaction, one inside it (on the transaction's own store), its commit, and
//! Closer's toolstack.

use crate::account::{Usage, signed};
use crate::domains::Domains;
use crate::node::{Node, node_cost, node_size};
use crate::path::Path;
use crate::perms::{Access, Actor, Perms};
use crate::store::{Found, Store, each_removed};
use crate::watches::{Place, WatchIndex};
use alloc::rc::Rc;
use alloc::vec::Vec;
use xen_abi::io::xs_wire::XsError;

/// Names in the path of a node that a guest makes: each change of a node may copy all above
/// it. Nothing that devices or guests keep is a quarter as deep.
const DEPTH_MAX: usize = 64;

/// A change to one node, which a transaction remembers for its commit.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write(Path, Rc<[u8]>),
    Mkdir(Path),
    Remove(Path),
    SetPerms(Path, Perms),
}

impl Op {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Write(path, _)
            | Self::Mkdir(path)
            | Self::Remove(path)
            | Self::SetPerms(path, _) => path,
        }
    }

    /// Bytes that remembering it takes.
    pub(crate) fn cost(&self) -> usize {
        96 + self.path().as_str().len()
            + match self {
                // Here, and in the transaction's view.
                Self::Write(_, data) => 2 * data.len(),
                Self::SetPerms(_, perms) => perms.entries().len() * 4,
                Self::Mkdir(_) | Self::Remove(_) => 0,
            }
    }
}

/// A node changed: who watches it may have to hear.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub path: Path,
    /// Only for watches on this very node.
    pub exact: bool,
    /// Its permissions before, if they are others now or the node is gone: who could
    /// read it then hears of it.
    pub before: Option<Perms>,
    /// Those of the node above, if that is gone too.
    pub above: Option<Perms>,
}

impl Change {
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            path: path.clone(),
            exact: false,
            before: None,
            above: None,
        }
    }
}

/// Looks a node up for somebody who needs `need` on it. Who may not even see the
/// nodes above learns nothing of whether it exists.
pub(crate) fn lookup<'a>(
    store: &'a Store,
    actor: &Actor,
    path: &Path,
    need: Access,
) -> Result<&'a Node, XsError> {
    match store.find(path) {
        Found::Node(node) if actor.access(&node.perms).covers(need) => Ok(node),
        Found::Node(_) => Err(XsError::EACCES),
        Found::Above(node, _) if actor.access(&node.perms).covers(need) => Err(XsError::ENOENT),
        Found::Above(..) => Err(XsError::EACCES),
    }
}

/// Somebody at work on a store.
pub(crate) struct Work<'a> {
    pub store: &'a mut Store,
    pub domains: &'a Domains,
    pub watches: &'a WatchIndex,
    pub actor: Actor,
    /// What owners will have more or fewer of.
    pub usage: &'a mut Usage,
    /// The actor's account has the bytes of `usage` already: its transaction's charge.
    pub charged: bool,
    pub changes: &'a mut Vec<Change>,
}

impl Work<'_> {
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), XsError> {
        match op {
            Op::Write(path, data) => self.write(path, data),
            Op::Mkdir(path) => self.mkdir(path),
            Op::Remove(path) => self.remove(path),
            Op::SetPerms(path, perms) => self.set_perms(path, perms),
        }
    }

    fn write(&mut self, path: &Path, data: &[u8]) -> Result<(), XsError> {
        match lookup(self.store, &self.actor, path, Access::WRITE) {
            Ok(node) => {
                let owner = node.perms.owner();
                let size = node.size() - node.data.len() + data.len();
                let growth = signed(data.len()) - signed(node.data.len());
                self.check_size(size)?;
                self.check_memory(owner, growth)?;
                self.usage.add(owner, 0, growth);
                self.store.set_data(path, data);
            }
            Err(XsError::ENOENT) => self.create(path, data)?,
            Err(error) => return Err(error),
        }
        self.changes.push(Change::of(path));
        Ok(())
    }

    fn mkdir(&mut self, path: &Path) -> Result<(), XsError> {
        match lookup(self.store, &self.actor, path, Access::WRITE) {
            Ok(_) => Ok(()),
            Err(XsError::ENOENT) => {
                self.create(path, &[])?;
                self.changes.push(Change::of(path));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a node and what is missing above it; `lookup` allowed it.
    fn create(&mut self, path: &Path, data: &[u8]) -> Result<(), XsError> {
        let Found::Above(above, missing) = self.store.find(path) else {
            return Err(XsError::EEXIST);
        };
        // A special node is made by nobody: it has nothing above.
        if path.is_special() {
            return Err(XsError::ENOENT);
        }
        let perms = if self.actor.privileged {
            above.perms.clone()
        } else {
            above.perms.with_owner(self.actor.domid)
        };
        let (owner, entries) = (perms.owner(), perms.entries().len());
        let names: Vec<usize> = path.segments().map(str::len).collect();
        let new = &names[names.len() - missing..];
        let cost: usize = new.iter().map(|name| node_cost(*name, entries, 0)).sum();
        let growth = signed(cost + data.len());
        if !self.actor.privileged {
            let quota = self.domains.quotas_of(self.actor.domid).nodes;
            if self.nodes_of(owner).saturating_add(missing) > quota {
                return Err(XsError::ENOSPC);
            }
            if names.len() > DEPTH_MAX {
                return Err(XsError::ENOSPC);
            }
            self.check_size(above.size() + new[0] + 1)?;
            for name in &new[1..] {
                self.check_size(node_size(entries, 0, name + 1))?;
            }
            self.check_size(node_size(entries, data.len(), 0))?;
            self.check_memory(owner, growth)?;
        }
        self.usage.add(owner, signed(missing), growth);
        self.store.create(path, &perms, data);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), XsError> {
        match lookup(self.store, &self.actor, path, Access::WRITE) {
            Ok(_) => {}
            // Gone already is fine, if there is a place where it could be.
            Err(XsError::ENOENT) => {
                let parent = path.parent().ok_or(XsError::ENOENT)?;
                self.store.get(&parent).ok_or(XsError::ENOENT)?;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.remove_tree(path)
    }

    /// Removes a node and all below, whoever owns what is there.
    pub(crate) fn remove_tree(&mut self, path: &Path) -> Result<(), XsError> {
        let parent = path.parent().ok_or(XsError::EINVAL)?;
        let above = self.store.get(&parent).map(|node| node.perms.clone());
        let node = self.store.remove(path).ok_or(XsError::ENOENT)?;
        let mut all = 0;
        each_removed(path.name(), &node, |node, cost| {
            self.usage.add(node.perms.owner(), -1, -signed(cost));
            all += cost as u64;
        });
        // What a transaction removes from its own view is still in the store.
        if !self.charged {
            self.store.cut_out(all);
        }
        if let Some(place) = self.watches.place(path) {
            self.removed_below(path, &node, place);
        }
        self.changes.push(Change {
            path: path.clone(),
            exact: false,
            before: Some(node.perms.clone()),
            above,
        });
        Ok(())
    }

    /// Notes the removed nodes that carry a watch of their own, walking down the
    /// nodes and the watches side by side.
    fn removed_below(&mut self, path: &Path, node: &Rc<Node>, place: Place) {
        let mut waiting = alloc::vec![(path.clone(), node, place)];
        while let Some((path, node, place)) = waiting.pop() {
            for (name, child) in node.children.iter() {
                let Some(place) = self.watches.below(place, name) else {
                    continue;
                };
                let path = path.child(name);
                if !self.watches.at(place).is_empty() {
                    self.changes.push(Change {
                        path: path.clone(),
                        exact: true,
                        before: Some(child.perms.clone()),
                        above: Some(node.perms.clone()),
                    });
                }
                waiting.push((path, child, place));
            }
        }
    }

    fn set_perms(&mut self, path: &Path, perms: &Perms) -> Result<(), XsError> {
        let quotas = self.domains.quotas_of(self.actor.domid);
        if !self.actor.privileged && perms.entries().len() > quotas.node_permissions {
            return Err(XsError::ENOSPC);
        }
        let node = lookup(self.store, &self.actor, path, Access::WRITE)?;
        if !self.actor.owns(&node.perms) {
            return Err(XsError::EACCES);
        }
        let (was, is) = (node.perms.owner(), perms.owner());
        if !self.actor.privileged && was != is {
            return Err(XsError::EPERM);
        }
        // What names nobody must not come to name a later domain.
        let perms = perms.without(|domid| !self.domains.knows(domid));
        if !self.domains.knows(is) {
            return Err(XsError::ENOENT);
        }
        let before = node.perms.clone();
        let (old, new) = (before.entries().len(), perms.entries().len());
        let name = path.name();
        let old_cost = node.cost(name);
        let new_cost = node_cost(name.len(), new, node.data.len());
        self.check_size(node.size() + node_size(new, 0, 0) - node_size(old, 0, 0))?;
        self.check_memory(is, signed(new_cost) - signed(old_cost))?;
        self.usage.add(was, -1, -signed(old_cost));
        self.usage.add(is, 1, signed(new_cost));
        self.store.set_perms(path, perms);
        self.changes.push(Change {
            before: Some(before),
            ..Change::of(path)
        });
        Ok(())
    }

    fn nodes_of(&self, domid: xen_abi::DomId) -> usize {
        let now = self
            .domains
            .get(domid)
            .map_or(0, |domain| domain.account.nodes.get());
        now.saturating_add_signed(self.usage.of(domid).0)
    }

    fn check_size(&self, size: usize) -> Result<(), XsError> {
        let Some(domain) = self.domains.get(self.actor.domid) else {
            return Ok(());
        };
        if !self.actor.privileged && size > self.domains.quotas_of(self.actor.domid).node_size {
            return Err(XsError::ENOSPC);
        }
        domain.account.node_size.seen(size);
        Ok(())
    }

    /// Whether `owner` may hold that much more.
    fn check_memory(&self, owner: xen_abi::DomId, growth: isize) -> Result<(), XsError> {
        if self.actor.privileged || growth <= 0 {
            return Ok(());
        }
        let now = self
            .domains
            .get(owner)
            .map_or(0, |domain| domain.account.memory.get());
        let pending = if self.charged && owner == self.actor.domid {
            0
        } else {
            self.usage.of(owner).1
        };
        let then = now
            .saturating_add_signed(pending)
            .saturating_add_signed(growth);
        // Privileged domains own nodes without limit that guests may write to; each is
        // bounded by the node-size quota.
        if owner != xen_abi::DomId(0) && then >= self.domains.quotas_of(owner).memory {
            return Err(XsError::ENOMEM);
        }
        Ok(())
    }
}

/// One change for each node, in the order in which nodes first changed: what a commit
/// tells of. What was said of a node before its first change is kept.
pub(crate) fn merge(changes: Vec<Change>) -> Vec<Change> {
    let mut at = alloc::collections::BTreeMap::new();
    let mut merged: Vec<Change> = Vec::with_capacity(changes.len());
    for change in changes {
        match at.get(&change.path) {
            None => {
                at.insert(change.path.clone(), merged.len());
                merged.push(change);
            }
            Some(first) => {
                let first: &mut Change = &mut merged[*first];
                first.exact &= change.exact;
                first.before = first.before.take().or(change.before);
                first.above = first.above.take().or(change.above);
            }
        }
    }
    merged
}
