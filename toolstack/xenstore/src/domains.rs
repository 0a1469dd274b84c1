//! The domains the store knows of.

use crate::account::{Account, Quotas, Usage};
use crate::rate::{RateLimit, Share};
use crate::server::ConnId;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use xen_abi::DomId;

/// One domain, from when it is first heard of until it is gone.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    /// Has a ring, or had one.
    pub introduced: bool,
    /// Shut down, and told so to those who watch `@releaseDomain`.
    pub shutdown: bool,
    pub conn: Option<ConnId>,
    /// Whose rights it has as well.
    pub target: Option<DomId>,
    pub account: Rc<Account>,
    /// Its own limits, if not everybody's.
    pub quotas: Option<Quotas>,
    pub share: Option<Share>,
    pub soft_reported: bool,
    pub hard_reported: bool,
    /// Lines about its memory so far.
    pub told: u32,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Domains {
    map: BTreeMap<DomId, Domain>,
    /// Everybody's limits.
    pub quotas: Quotas,
    pub rate: RateLimit,
    /// How many were released so far.
    pub releases: u64,
}

impl Domains {
    pub(crate) fn new() -> Self {
        let mut map = BTreeMap::new();
        map.insert(
            DomId(0),
            Domain {
                introduced: true,
                ..Domain::default()
            },
        );
        Self {
            map,
            quotas: Quotas::GUEST,
            rate: RateLimit::default(),
            releases: 0,
        }
    }

    pub(crate) fn get(&self, domid: DomId) -> Option<&Domain> {
        self.map.get(&domid)
    }

    pub(crate) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        self.map.get_mut(&domid)
    }

    pub(crate) fn introduced(&self, domid: DomId) -> Option<&Domain> {
        self.get(domid).filter(|domain| domain.introduced)
    }

    pub(crate) fn knows(&self, domid: DomId) -> bool {
        self.map.contains_key(&domid)
    }

    /// The domain, heard of for the first time if need be.
    pub(crate) fn know(&mut self, domid: DomId) -> &mut Domain {
        self.map.entry(domid).or_default()
    }

    /// Forgets one; gives back what it was.
    pub(crate) fn forget(&mut self, domid: DomId) -> Option<Domain> {
        let domain = self.map.remove(&domid)?;
        if let Some(share) = domain.share {
            self.rate.leave(share);
        }
        for other in self.map.values_mut() {
            // A later domain of that number is not the target that was meant.
            if other.target == Some(domid) {
                other.target = None;
            }
        }
        self.releases += 1;
        Some(domain)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DomId, &Domain)> {
        self.map.iter().map(|(domid, domain)| (*domid, domain))
    }

    pub(crate) fn account(&mut self, domid: DomId) -> Rc<Account> {
        self.know(domid).account.clone()
    }

    pub(crate) fn quotas_of(&self, domid: DomId) -> &Quotas {
        self.get(domid)
            .and_then(|domain| domain.quotas.as_ref())
            .unwrap_or(&self.quotas)
    }

    /// Makes a change of usage final.
    pub(crate) fn settle(&mut self, usage: &Usage) {
        for (domid, (nodes, bytes)) in usage.iter() {
            let account = &self.know(domid).account;
            account.nodes.adjust(nodes);
            account.memory.adjust(bytes);
        }
    }

    /// Starts a domain's share of the write rate.
    pub(crate) fn start_share(&mut self, domid: DomId, now_ms: u64) {
        let share = self.rate.join(now_ms);
        let domain = self.know(domid);
        if let Some(old) = domain.share.replace(share) {
            self.rate.leave(old);
        }
    }

    /// Takes a write out of a domain's share, which had so many bytes copied.
    pub(crate) fn pay_write(&mut self, domid: DomId, copied: u64, now_ms: u64) {
        if let Some(share) = self.map.get_mut(&domid).and_then(|d| d.share.as_mut()) {
            self.rate.pay(share, copied, now_ms);
        }
    }

    /// Milliseconds until a domain may write again; `None`: now.
    pub(crate) fn write_wait_ms(&mut self, domid: DomId, now_ms: u64) -> Option<u64> {
        let share = self.map.get_mut(&domid)?.share.as_mut()?;
        self.rate.earn(share, now_ms);
        self.rate.wait_ms(share)
    }
}
