//! A transaction: a snapshot, what was read from it, and the changes so far.
//!
//! The client works on its own copy of the store. A commit looks whether any node it
//! read has changed since (then EAGAIN) and does the changes again on the store as it
//! is now, so that two transactions that made different children of one node do not
//! conflict. What was only written cannot conflict.

use crate::account::{Account, Charge, Usage};
use crate::ops::Op;
use crate::path::Path;
use crate::store::Store;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use xen_abi::io::xs_wire::XsError;

/// What an open transaction costs by itself, in bytes.
pub(crate) const TRANSACTION_COST: usize = 256;
/// And each node read, beside its path.
const READ_COST: usize = 112;

#[derive(Debug)]
pub(crate) struct Transaction {
    /// The store as it was, and as it would be; or why the transaction cannot commit
    /// any more, while it goes on on the current state.
    snapshot: Result<(Store, Store), XsError>,
    /// Generation of each node read, as it was at the start.
    reads: BTreeMap<Path, Option<u64>>,
    log: Vec<Op>,
    /// The last change in `log` of a path's value, if nothing since could have
    /// removed the node.
    written: BTreeMap<Path, usize>,
    pub usage: Usage,
    /// [`Store::copied`] at the start.
    pub copied_at_start: u64,
    /// How many domains had been released.
    pub releases_at_start: u64,
    /// Bytes of `reads` and `log`.
    recorded: usize,
    charge: Charge,
    account: Rc<Account>,
}

impl Transaction {
    pub(crate) fn start(store: &Store, releases: u64, account: &Rc<Account>) -> Self {
        account.transactions.add(1);
        Self {
            snapshot: Ok((store.clone(), store.clone())),
            reads: BTreeMap::new(),
            log: Vec::new(),
            written: BTreeMap::new(),
            usage: Usage::default(),
            copied_at_start: store.copied(),
            releases_at_start: releases,
            recorded: 0,
            charge: Charge::new(account, TRANSACTION_COST),
            account: account.clone(),
        }
    }

    /// Lets go of the old state; a commit will fail with `why`.
    pub(crate) fn give_up(&mut self, why: XsError) {
        self.snapshot = Err(why);
        self.reads.clear();
        self.log.clear();
        self.written.clear();
        self.usage = Usage::default();
        self.charge.set(TRANSACTION_COST);
    }

    /// The store as the client sees it; `now` if its own is gone.
    pub(crate) fn view<'a>(&'a self, now: &'a Store) -> &'a Store {
        self.snapshot.as_ref().map_or(now, |(_, view)| view)
    }

    /// Its own store to work on, with the usage that goes with it.
    pub(crate) fn view_mut(&mut self) -> Option<(&mut Store, &mut Usage)> {
        Some((&mut self.snapshot.as_mut().ok()?.1, &mut self.usage))
    }

    /// Bytes that noting a read of `path` takes.
    pub(crate) fn read_cost(path: &Path) -> usize {
        READ_COST + path.as_str().len()
    }

    /// Nodes read and changes made: what the quota counts.
    pub(crate) fn accessed(&self) -> usize {
        self.reads.len() + self.log.len()
    }

    /// Notes that the outcome depends on a node. `own_data`: only on its value, which
    /// is not another's if it was written here.
    pub(crate) fn note_read(&mut self, path: &Path, own_data: bool) {
        let Ok((base, _)) = &self.snapshot else {
            return;
        };
        if (own_data && self.written.contains_key(path)) || self.reads.contains_key(path) {
            return;
        }
        self.reads.insert(path.clone(), base.generation_of(path));
        self.recorded += Self::read_cost(path);
        self.recharge();
        self.account.transaction_nodes.seen(self.accessed());
    }

    /// Notes a change that worked on the view.
    pub(crate) fn note_change(&mut self, op: Op) {
        if self.snapshot.is_err() {
            return;
        }
        match &op {
            Op::Write(path, _) => {
                if let Some(at) = self.written.get(path) {
                    // Nothing between the two depends on the value in between.
                    self.recorded -= self.log[*at].cost();
                    self.recorded += op.cost();
                    self.log[*at] = op;
                    self.recharge();
                    return;
                }
                self.written.insert(path.clone(), self.log.len());
            }
            Op::Remove(_) => self.written.clear(),
            Op::SetPerms(..) | Op::Mkdir(_) => {}
        }
        self.recorded += op.cost();
        self.log.push(op);
        self.recharge();
        self.account.transaction_nodes.seen(self.accessed());
    }

    /// Charges what is recorded, and what the view holds beside the base: not less for what
    /// it has no longer, which the base still has. New values are among what is recorded.
    fn recharge(&mut self) {
        let view = self.snapshot.as_ref().map_or(0, |(base, view)| {
            (view.copied() - base.copied()) + (view.made() - base.made())
        });
        let view = usize::try_from(view).unwrap_or(usize::MAX);
        let all = TRANSACTION_COST + self.recorded;
        self.charge.set(all.saturating_add(view));
    }

    /// Whether a change that is noted next replaces one that is there.
    pub(crate) fn replaces(&self, op: &Op) -> bool {
        matches!(op, Op::Write(path, _) if self.written.contains_key(path))
    }

    /// The changes to do again on `now`. `EAGAIN`: a node that was read has changed,
    /// or a domain that permissions here name may be another one by now.
    pub(crate) fn into_changes(mut self, now: &Store, releases: u64) -> Result<Vec<Op>, XsError> {
        self.snapshot.as_ref().map_err(|why| *why)?;
        let unchanged =
            |(path, generation): (&Path, &Option<u64>)| now.generation_of(path) == *generation;
        if !self.reads.iter().all(unchanged) {
            return Err(XsError::EAGAIN);
        }
        let names_domains = |op: &Op| matches!(op, Op::SetPerms(..));
        if releases != self.releases_at_start && self.log.iter().any(names_domains) {
            return Err(XsError::EAGAIN);
        }
        Ok(core::mem::take(&mut self.log))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.account.transactions.sub(1);
    }
}
