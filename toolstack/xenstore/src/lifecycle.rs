//! Domains come and go.

use crate::account::{Quotas, Usage, signed};
use crate::connection::Connection;
use crate::domains::Domain;
use crate::node::node_cost;
use crate::ops::Work;
use crate::path::Path;
use crate::perms::{Actor, Perm};
use crate::server::{ConnId, Server};
use crate::stats::DomainStats;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use xen_abi::DomId;
use xen_abi::io::xs_wire::XsError;

impl Server {
    /// A domain exists and may be named in permissions, before it is introduced.
    pub fn domain_created(&mut self, domid: DomId) {
        self.domains.know(domid);
    }

    /// A domain's ring is there: gives its connection, reset if it had one already,
    /// and tells those who watch `@introduceDomain` the first time.
    pub fn domain_introduced(&mut self, domid: DomId) -> ConnId {
        if let Some(id) = self.domains.get(domid).and_then(|domain| domain.conn) {
            self.reset_connection(id);
            return id;
        }
        let id = self.connect(domid, domid == DomId(0));
        let domain = self.domains.know(domid);
        domain.conn = Some(id);
        domain.shutdown = false;
        let first = !core::mem::replace(&mut domain.introduced, true);
        if first {
            self.domains.start_share(domid, self.now_ms);
            self.fire_special(Path::INTRODUCE_DOMAIN);
        }
        id
    }

    /// Whether a domain was introduced and not released since.
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.domains.introduced(domid).is_some()
    }

    /// A domain is gone: its connection ends, its nodes and all permissions that name
    /// it go, and those who watch `@releaseDomain` hear of it. dom0 is never gone.
    pub fn domain_released(&mut self, domid: DomId) {
        if domid == DomId(0) || !self.domains.knows(domid) {
            return;
        }
        let mine = |connection: &Connection| connection.domid == domid;
        let connections: Vec<ConnId> = (self.connections.iter())
            .filter_map(|(id, connection)| mine(connection).then_some(*id))
            .collect();
        // First, so that nobody hears of his own nodes' end.
        for id in connections {
            self.disconnect(id);
        }
        self.remove_traces_of(domid);
        let domain = self.domains.forget(domid);
        if domain.is_some_and(|domain| domain.introduced) {
            self.fire_special(Path::RELEASE_DOMAIN);
        }
    }

    /// A domain has shut down (or crashed) and still exists: tells those who watch
    /// `@releaseDomain`, once until it is resumed.
    pub fn domain_shutdown(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(domid)
            && domain.introduced
            && !core::mem::replace(&mut domain.shutdown, true)
        {
            self.fire_special(Path::RELEASE_DOMAIN);
        }
    }

    /// Gives a domain limits of its own; `None`: those of everybody.
    pub fn set_quotas(&mut self, domid: DomId, quotas: Option<Quotas>) {
        self.domains.know(domid).quotas = quotas;
        self.unstall();
    }

    /// The connection of a domain's ring, if it has one.
    pub fn connection_of(&self, domid: DomId) -> Option<ConnId> {
        self.domains.get(domid)?.conn
    }

    /// Every domain known, introduced or not: the caller releases those that do not
    /// exist any longer.
    pub fn known_domains(&self) -> Vec<DomId> {
        self.domains.iter().map(|(domid, _)| domid).collect()
    }

    /// What a domain holds and was served; `None`: not known.
    pub fn stats(&self, domid: DomId) -> Option<DomainStats> {
        Some(DomainStats::of(self.domains.get(domid)?))
    }

    pub(crate) fn domain_mut(&mut self, domid: DomId) -> Result<&mut Domain, XsError> {
        let domain = self
            .domains
            .get_mut(domid)
            .filter(|domain| domain.introduced);
        domain.ok_or(XsError::ENOENT)
    }

    /// Makes sure that permissions about to be set name domains that are known, when
    /// somebody who must know sets them.
    pub(crate) fn know_named(&mut self, perms: &[Perm]) {
        for perm in perms {
            if perm.domid < DomId::FIRST_RESERVED {
                self.domains.know(perm.domid);
            }
        }
    }

    /// Removes the nodes a domain owns, with all below, and its name from the
    /// permissions of all others.
    pub(crate) fn remove_traces_of(&mut self, domid: DomId) {
        let (mut owned, mut named) = (Vec::new(), Vec::new());
        let mut walk = self.store.walk();
        while let Some((node, _)) = walk.next() {
            if node.perms.owner() == domid {
                let path = walk.path();
                if path.parent().is_some() {
                    walk.skip_below();
                }
                owned.push(path);
            } else if node.perms.names(domid) {
                let perms = node.perms.without(|other| other == domid);
                named.push((walk.path(), perms));
            }
        }
        let (mut usage, mut changes) = (Usage::default(), Vec::new());
        for (path, perms) in named {
            let gone = self.store.get(&path).map_or(0, |node| {
                let entries = node.perms.entries().len() - perms.entries().len();
                node_cost(0, entries, 0) - node_cost(0, 0, 0)
            });
            usage.add(perms.owner(), 0, -signed(gone));
            self.store.set_perms(&path, perms);
        }
        let mut work = Work {
            store: &mut self.store,
            domains: &self.domains,
            watches: &self.index,
            actor: Actor::LOCAL,
            usage: &mut usage,
            charged: false,
            changes: &mut changes,
        };
        let mut kept = Vec::new();
        for path in owned {
            if work.remove_tree(&path).is_err() {
                kept.push(path);
            }
        }
        // The root and the special nodes stay, and are dom0's again.
        for path in kept {
            if let Some(node) = self.store.get(&path) {
                let (name, data) = (path.name().len(), node.data.len());
                usage.add(domid, -1, -signed(node.cost(path.name())));
                let perms = node.perms.with_owner(DomId(0));
                let perms = perms.without(|other| other == domid);
                let cost = node_cost(name, perms.entries().len(), data);
                usage.add(DomId(0), 1, signed(cost));
                self.store.set_perms(&path, perms);
            }
        }
        self.domains.settle(&usage);
        self.fire(&changes, None);
        self.bound_snapshots();
    }

    /// What every owner's account should hold for its nodes.
    pub(crate) fn owned_usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (node, name_len) in self.store.walk() {
            let cost = node_cost(name_len, node.perms.entries().len(), node.data.len());
            usage.add(node.perms.owner(), 1, signed(cost));
        }
        usage
    }

    /// Counts everything anew: the first line that does not agree, if any.
    pub(crate) fn check(&self) -> Result<(), String> {
        let owned = self.owned_usage();
        for (domid, domain) in self.domains.iter() {
            let (nodes, bytes) = owned.of(domid);
            let account = &domain.account;
            let counted = signed(account.nodes.get());
            if nodes != counted {
                return Err(format!(
                    "d{domid} owns {nodes} nodes, its account says {counted}"
                ));
            }
            let held = signed(account.memory.get());
            if bytes > held {
                return Err(format!(
                    "d{domid} owns {bytes} bytes, its account says {held}"
                ));
            }
        }
        let mut unknown = String::new();
        for (domid, _) in owned
            .iter()
            .filter(|(domid, _)| !self.domains.knows(*domid))
        {
            write!(unknown, "nodes of the unknown d{domid} ").expect("a string takes all");
        }
        if unknown.is_empty() {
            Ok(())
        } else {
            Err(unknown)
        }
    }
}
