//! One node of the store.

use crate::children::{self, Children};
use crate::perms::Perms;
use alloc::rc::Rc;

/// What a node is taken to cost beside its name, value and permissions, in bytes.
const NODE_COST: usize = 224;
/// Bytes of an entry in the permissions.
const PERM_COST: usize = 8;
/// What xenstored counts for a node's header against the node-size quota.
const HEADER_SIZE: usize = 16;

/// A value, permissions, and children.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub data: Rc<[u8]>,
    pub perms: Perms,
    /// Unique to this state of the node: changes with its value, its permissions and
    /// its list of children.
    pub generation: u64,
    pub children: Children,
}

impl Node {
    pub(crate) fn new(perms: Perms, generation: u64) -> Self {
        Self {
            data: Rc::from([]),
            perms,
            generation,
            children: Children::default(),
        }
    }

    /// Size as the node-size quota counts it.
    pub(crate) fn size(&self) -> usize {
        node_size(
            self.perms.entries().len(),
            self.data.len(),
            self.children.listed(),
        )
    }

    /// Bytes charged to the owner; the name is its own, not its parent's.
    pub(crate) fn cost(&self, name: &str) -> usize {
        node_cost(name.len(), self.perms.entries().len(), self.data.len())
    }
}

/// [`Node::size`] of a node to be.
pub(crate) fn node_size(perms: usize, data: usize, listed: usize) -> usize {
    HEADER_SIZE + perms * PERM_COST + data + listed
}

/// [`Node::cost`] of a node to be.
pub(crate) fn node_cost(name: usize, perms: usize, data: usize) -> usize {
    NODE_COST + name + perms * PERM_COST + data
}

impl Drop for Node {
    fn drop(&mut self) {
        children::drop_all(self.children.take());
    }
}
