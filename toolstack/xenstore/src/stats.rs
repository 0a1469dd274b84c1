//! What one can see of a domain's use of the store.

use crate::account::Meter;
use crate::domains::Domain;

/// A number now, and the highest it has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Now.
    pub now: usize,
    /// The highest so far.
    pub max: usize,
}

impl From<&Meter> for Level {
    fn from(meter: &Meter) -> Self {
        Self {
            now: meter.get(),
            max: meter.max(),
        }
    }
}

/// What a domain holds, and what was done for it since it was first heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Nodes it owns.
    pub nodes: Level,
    /// Bytes of nodes, watches, transactions and queued packets.
    pub memory: Level,
    /// Watches.
    pub watches: Level,
    /// Open transactions.
    pub transactions: Level,
    /// Requests whose answer or events were not read yet.
    pub outstanding: Level,
    /// Requests served.
    pub requests: u64,
    /// Of those, answered with an error.
    pub refused: u64,
    /// Commits that had to be tried again.
    pub conflicts: u64,
    /// Watch events sent to it.
    pub events: u64,
    /// Watch events it lost: it did not read, or had no memory left.
    pub events_dropped: u64,
    /// Times its requests had to wait: quota used up, answers not read, writing too fast.
    pub stalls: u64,
}

impl DomainStats {
    pub(crate) fn of(domain: &Domain) -> Self {
        let account = &domain.account;
        Self {
            nodes: (&account.nodes).into(),
            memory: (&account.memory).into(),
            watches: (&account.watches).into(),
            transactions: (&account.transactions).into(),
            outstanding: (&account.outstanding).into(),
            requests: account.requests.get(),
            refused: account.refused.get(),
            conflicts: account.conflicts.get(),
            events: account.events.get(),
            events_dropped: account.events_dropped.get(),
            stalls: account.stalls.get(),
        }
    }
}
