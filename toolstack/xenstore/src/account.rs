//! What each domain holds here, how much it may hold, and handles that give it back.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::Cell;
use xen_abi::DomId;

/// What an unprivileged domain may hold. Exactly as many as these are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Nodes it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Requests whose answer, or whose events at others, were not read yet.
    pub outstanding: usize,
    /// Bytes of nodes, watches, transactions and queued packets.
    pub memory: usize,
    /// Bytes from which on the log carries a warning.
    pub memory_soft: usize,
    /// Transactions open at once.
    pub transactions: usize,
    /// Nodes read and changes made in one transaction.
    pub transaction_nodes: usize,
    /// Entries in a node's permissions.
    pub node_permissions: usize,
    /// Bytes of a path, not counting the domain's home.
    pub path_max: usize,
    /// Bytes of a node: value, permissions, names of children.
    pub node_size: usize,
}

impl Quotas {
    /// What xenstored 4.20 gives every domain.
    pub const GUEST: Self = Self {
        nodes: 1000,
        watches: 128,
        outstanding: 20,
        memory: 2_560 * 1024,
        memory_soft: 2_048 * 1024,
        transactions: 10,
        transaction_nodes: 1024,
        node_permissions: 5,
        path_max: 2048,
        node_size: 2048,
    };
    /// For a driver domain, which holds nodes and watches for every device it serves
    /// (the most frequent complaint about the plain limits).
    pub const DRIVER_DOMAIN: Self = Self {
        nodes: 16_000,
        watches: 2_048,
        outstanding: 64,
        memory: 16 * 1024 * 1024,
        memory_soft: 12 * 1024 * 1024,
        transactions: 64,
        ..Self::GUEST
    };

    /// By the names that `xenstore-control quota` uses, with its words for each.
    pub(crate) fn by_name(&mut self) -> [(&'static str, &'static str, &mut usize); 9] {
        [
            ("nodes", "Nodes per domain", &mut self.nodes),
            ("watches", "Watches per domain", &mut self.watches),
            (
                "outstanding",
                "Outstanding requests per domain",
                &mut self.outstanding,
            ),
            (
                "memory",
                "Total Xenstore memory per domain (error level)",
                &mut self.memory,
            ),
            (
                "transactions",
                "Active transactions per domain",
                &mut self.transactions,
            ),
            (
                "transaction-nodes",
                "Max. number of accessed nodes per transaction",
                &mut self.transaction_nodes,
            ),
            (
                "node-permissions",
                "Max. number of permissions per node",
                &mut self.node_permissions,
            ),
            ("path-max", "Max. length of a node path", &mut self.path_max),
            ("node-size", "Max. size of a node", &mut self.node_size),
        ]
    }
}

/// A number, and the highest it has been.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    now: Cell<usize>,
    max: Cell<usize>,
}

impl Meter {
    pub(crate) fn get(&self) -> usize {
        self.now.get()
    }

    pub(crate) fn max(&self) -> usize {
        self.max.get()
    }

    pub(crate) fn add(&self, amount: usize) {
        self.set(self.now.get().saturating_add(amount));
    }

    pub(crate) fn sub(&self, amount: usize) {
        self.now.set(self.now.get().saturating_sub(amount));
    }

    pub(crate) fn adjust(&self, by: isize) {
        self.set(self.now.get().saturating_add_signed(by));
    }

    /// Notes something that is only ever measured, not held.
    pub(crate) fn seen(&self, value: usize) {
        self.max.set(self.max.get().max(value));
    }

    fn set(&self, value: usize) {
        self.now.set(value);
        self.seen(value);
    }

    pub(crate) fn reset_max(&self) {
        self.max.set(self.now.get());
    }
}

/// What one domain holds, and what was done for it.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub nodes: Meter,
    pub memory: Meter,
    pub watches: Meter,
    pub transactions: Meter,
    pub outstanding: Meter,
    pub transaction_nodes: Meter,
    pub node_permissions: Meter,
    pub path_max: Meter,
    pub node_size: Meter,
    pub requests: Cell<u64>,
    pub refused: Cell<u64>,
    pub conflicts: Cell<u64>,
    pub events: Cell<u64>,
    pub events_dropped: Cell<u64>,
    pub stalls: Cell<u64>,
}

impl Account {
    /// Each quantity that has a quota, by the quota's name.
    pub(crate) fn meters(&self, mut each: impl FnMut(&'static str, &Meter)) {
        each("nodes", &self.nodes);
        each("watches", &self.watches);
        each("outstanding", &self.outstanding);
        each("memory", &self.memory);
        each("transactions", &self.transactions);
        each("transaction-nodes", &self.transaction_nodes);
        each("node-permissions", &self.node_permissions);
        each("path-max", &self.path_max);
        each("node-size", &self.node_size);
    }
}

/// Adds to a counter that only grows.
pub(crate) fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

/// Bytes charged to a domain until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Rc<Account>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(account: &Rc<Account>, bytes: usize) -> Self {
        account.memory.add(bytes);
        Self {
            account: account.clone(),
            bytes,
        }
    }

    /// Charges another amount.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.account.memory.sub(self.bytes);
        self.account.memory.add(bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.memory.sub(self.bytes);
    }
}

/// A request counts as outstanding until its answer and every event it caused were
/// read: each of those holds a clone.
#[derive(Debug)]
pub(crate) struct Ticket(Rc<Account>);

impl Ticket {
    pub(crate) fn new(account: &Rc<Account>) -> Rc<Self> {
        account.outstanding.add(1);
        Rc::new(Self(account.clone()))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.outstanding.sub(1);
    }
}

/// Nodes and bytes that domains will own more (or fewer) of, once a change is final.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage(BTreeMap<DomId, (isize, isize)>);

impl Usage {
    pub(crate) fn add(&mut self, owner: DomId, nodes: isize, bytes: isize) {
        let entry = self.0.entry(owner).or_default();
        entry.0 += nodes;
        entry.1 += bytes;
    }

    pub(crate) fn of(&self, owner: DomId) -> (isize, isize) {
        self.0.get(&owner).copied().unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DomId, (isize, isize))> + '_ {
        self.0.iter().map(|(domid, usage)| (*domid, *usage))
    }
}

/// A length as a change of a [`Usage`]; no store comes near the limit.
pub(crate) fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}
