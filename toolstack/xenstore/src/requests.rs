//! The wire's operations, one function each.

use crate::account::{Ticket, Usage, count};
use crate::ops::{Op, Work, lookup};
use crate::path::{Path, Special};
use crate::perms::{Access, Actor, Perms, parse_domid};
use crate::server::{Action, ConnId, Server};
use crate::store::Store;
use crate::transaction::{TRANSACTION_COST, Transaction};
use crate::watches::WatchId;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use xen_abi::io::xs_wire::{MessageType, SockMsg, XENSTORE_PAYLOAD_MAX, XsError};
use xen_abi::{DomId, EvtchnPort};

/// One request, taken apart as far as every operation needs it.
pub(crate) struct Request<'a> {
    pub id: ConnId,
    pub actor: Actor,
    /// Transaction it is part of; 0: none.
    pub tx_id: u32,
    pub payload: &'a [u8],
    pub ticket: Option<Rc<Ticket>>,
    home: alloc::string::String,
}

impl<'a> Request<'a> {
    /// The payload as one string: one NUL, at its end.
    fn one(&self) -> Result<&'a [u8], XsError> {
        match self.payload.split_last() {
            Some((0, string)) if !string.contains(&0) => Ok(string),
            _ => Err(XsError::EINVAL),
        }
    }

    /// The strings of the payload; what follows the last NUL is left out.
    pub(crate) fn strings(&self) -> Vec<&'a [u8]> {
        let mut strings: Vec<_> = self.payload.split(|byte| *byte == 0).collect();
        strings.pop();
        strings
    }

    fn domid(&self) -> Result<DomId, XsError> {
        parse_domid(self.one()?)
    }
}

const OK: &[u8] = b"OK\0";

impl Server {
    /// Answers one request. Every request gets exactly one reply.
    pub(crate) fn request(&mut self, id: ConnId, header: &SockMsg, payload: &[u8]) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let account = connection.account.clone();
        let request = Request {
            id,
            actor: self.actor(connection),
            tx_id: header.tx_id,
            payload,
            ticket: (!connection.privileged).then(|| Ticket::new(&account)),
            home: connection.home.clone(),
        };
        count(&account.requests, 1);
        self.work += 1;
        let mut first_event = None;
        let operation = MessageType(header.message_type);
        let mut answer = self.dispatch(operation, &request, &mut first_event);
        if answer
            .as_ref()
            .is_ok_and(|payload| payload.len() > XENSTORE_PAYLOAD_MAX)
        {
            answer = Err(XsError::E2BIG);
        }
        if self.trace.io() {
            let (domid, len) = (request.actor.domid, payload.len());
            log::info!(
                "xenstore: d{domid} operation {} tx {} len {len}: {}",
                operation.0,
                header.tx_id,
                answer.as_ref().err().map_or("ok", |error| error.name()),
            );
        }
        let ticket = request.ticket;
        if let Some(connection) = self.connections.get_mut(&id) {
            match answer {
                Ok(payload) => connection.reply(header, operation, &payload, ticket),
                Err(error) => {
                    count(&account.refused, 1);
                    let name = format!("{}\0", error.name());
                    connection.reply(header, MessageType::ERROR, name.as_bytes(), ticket);
                }
            }
        }
        if let Some(watch) = first_event {
            self.fire_first(watch);
        }
        self.bound_snapshots();
    }

    fn dispatch(
        &mut self,
        operation: MessageType,
        request: &Request<'_>,
        first_event: &mut Option<WatchId>,
    ) -> Result<Vec<u8>, XsError> {
        type O = MessageType;
        let privileged_only = [
            O::CONTROL,
            O::INTRODUCE,
            O::RELEASE,
            O::IS_DOMAIN_INTRODUCED,
            O::RESUME,
            O::SET_TARGET,
        ];
        if privileged_only.contains(&operation) && !request.actor.privileged {
            return Err(XsError::EACCES);
        }
        // These two are part of no transaction, whatever number they carry.
        let outside = [O::WATCH, O::UNWATCH];
        if request.tx_id != 0 && !outside.contains(&operation) {
            self.transaction_of(request)?;
        }
        match operation {
            O::DIRECTORY => self.do_directory(request),
            O::READ => self.do_read(request),
            O::GET_PERMS => self.do_get_perms(request),
            O::WATCH => {
                *first_event = Some(self.do_watch(request)?);
                Ok(OK.to_vec())
            }
            O::UNWATCH => self.do_unwatch(request),
            O::TRANSACTION_START => self.do_transaction_start(request),
            O::TRANSACTION_END => self.do_transaction_end(request),
            O::INTRODUCE => self.do_introduce(request),
            O::RELEASE => self.do_release(request),
            O::GET_DOMAIN_PATH => {
                let home = crate::path::home(request.domid()?);
                Ok(format!("{home}\0").into_bytes())
            }
            O::WRITE => self.do_write(request),
            O::MKDIR => {
                let path = self.path(request, request.one()?, Special::Refused)?;
                self.change(request, Op::Mkdir(path))
            }
            O::RM => {
                let path = self.path(request, request.one()?, Special::Refused)?;
                self.change(request, Op::Remove(path))
            }
            O::SET_PERMS => self.do_set_perms(request),
            O::IS_DOMAIN_INTRODUCED => {
                let domid = request.domid()?;
                let known = domid == DomId::SELF || self.domains.introduced(domid).is_some();
                Ok(if known { b"T\0" } else { b"F\0" }.to_vec())
            }
            O::RESUME => {
                self.other_domain(request)?.shutdown = false;
                Ok(OK.to_vec())
            }
            O::SET_TARGET => self.do_set_target(request),
            O::RESET_WATCHES => {
                self.forget_watches_and_transactions(request.id);
                Ok(OK.to_vec())
            }
            O::DIRECTORY_PART => self.do_directory_part(request),
            O::CONTROL => self.do_control(request),
            _ => Err(XsError::ENOSYS),
        }
    }

    /// Checks a path that a client names.
    fn path(&self, request: &Request<'_>, raw: &[u8], special: Special) -> Result<Path, XsError> {
        let path = Path::parse(raw, &request.home, special)?;
        let quota = self.domains.quotas_of(request.actor.domid).path_max;
        if !request.actor.privileged && path.quota_len() > quota {
            return Err(XsError::EINVAL);
        }
        if let Some(domain) = self.domains.get(request.actor.domid) {
            domain.account.path_max.seen(path.quota_len());
        }
        Ok(path)
    }

    fn transaction_of(&mut self, request: &Request<'_>) -> Result<&mut Transaction, XsError> {
        let connection = self.connections.get_mut(&request.id);
        let found = connection.and_then(|c| c.transactions.get_mut(&request.tx_id));
        found
            .map(|(_, transaction)| transaction)
            .ok_or(XsError::ENOENT)
    }

    /// The store that a request looks at.
    fn view(&self, request: &Request<'_>) -> &Store {
        let connection = self.connections.get(&request.id);
        connection
            .and_then(|connection| connection.transactions.get(&request.tx_id))
            .map_or(&self.store, |(_, transaction)| {
                transaction.view(&self.store)
            })
    }

    /// Whether another node (or change) fits into the request's transaction.
    fn check_accessed(&mut self, request: &Request<'_>, path: &Path) -> Result<(), XsError> {
        if request.tx_id == 0 || request.actor.privileged {
            return Ok(());
        }
        let quotas = *self.domains.quotas_of(request.actor.domid);
        if self.transaction_of(request)?.accessed() >= quotas.transaction_nodes {
            return Err(XsError::ENOSPC);
        }
        self.check_memory(request, Transaction::read_cost(path))
    }

    /// Whether the client may hold that much more for longer than an answer takes. Who
    /// is at his quota is not read any more, so nothing lasting may bring him there.
    fn check_memory(&self, request: &Request<'_>, more: usize) -> Result<(), XsError> {
        let quota = self.domains.quotas_of(request.actor.domid).memory;
        let domain = self.domains.get(request.actor.domid);
        let now = domain.map_or(0, |domain| domain.account.memory.get());
        if !request.actor.privileged && now + more >= quota {
            return Err(XsError::ENOMEM);
        }
        Ok(())
    }

    fn note_read(&mut self, request: &Request<'_>, path: &Path, own_data: bool) {
        if request.tx_id != 0
            && let Ok(transaction) = self.transaction_of(request)
        {
            transaction.note_read(path, own_data);
        }
    }

    // ---- reading ---------------------------------------------------------------------

    fn do_read(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let path = self.path(request, request.one()?, Special::Refused)?;
        self.check_accessed(request, &path)?;
        self.note_read(request, &path, true);
        let node = lookup(self.view(request), &request.actor, &path, Access::READ)?;
        Ok(node.data.to_vec())
    }

    fn do_directory(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let path = self.path(request, request.one()?, Special::Refused)?;
        self.check_accessed(request, &path)?;
        self.note_read(request, &path, false);
        let node = lookup(self.view(request), &request.actor, &path, Access::READ)?;
        if node.children.listed() > XENSTORE_PAYLOAD_MAX {
            return Err(XsError::E2BIG);
        }
        let mut listing = Vec::with_capacity(node.children.listed());
        node.children.list(0, usize::MAX, &mut listing);
        Ok(listing)
    }

    /// A path and an offset; answers the node's generation, names from the offset on,
    /// and an empty name at the end of the list.
    fn do_directory_part(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let [path, offset] = request.strings()[..] else {
            return Err(XsError::EINVAL);
        };
        let path = self.path(request, path, Special::Refused)?;
        let offset = core::str::from_utf8(offset).map_err(|_| XsError::EINVAL)?;
        let offset: usize = offset.parse().map_err(|_| XsError::EINVAL)?;
        self.check_accessed(request, &path)?;
        self.note_read(request, &path, false);
        let node = lookup(self.view(request), &request.actor, &path, Access::READ)?;
        let mut part = format!("{}\0", node.generation).into_bytes();
        let room = XENSTORE_PAYLOAD_MAX - part.len() - 1;
        if node.children.list(offset, room, &mut part) {
            part.push(0);
        }
        Ok(part)
    }

    fn do_get_perms(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let path = self.path(request, request.one()?, Special::Allowed)?;
        self.check_accessed(request, &path)?;
        self.note_read(request, &path, false);
        let node = lookup(self.view(request), &request.actor, &path, Access::READ)?;
        let mut perms = Vec::new();
        node.perms.encode(&mut perms);
        Ok(perms)
    }

    // ---- changing --------------------------------------------------------------------

    fn do_write(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let end = request
            .payload
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(XsError::EINVAL)?;
        let (path, data) = (&request.payload[..end], &request.payload[end + 1..]);
        let path = self.path(request, path, Special::Refused)?;
        self.change(request, Op::Write(path, data.into()))
    }

    fn do_set_perms(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let strings = request.strings();
        let (path, entries) = strings.split_first().ok_or(XsError::EINVAL)?;
        let perms = Perms::parse(entries.iter().copied())?;
        let path = self.path(request, path, Special::Allowed)?;
        if request.actor.privileged {
            self.know_named(perms.entries());
        }
        if let Some(domain) = self.domains.get(request.actor.domid) {
            domain.account.node_permissions.seen(perms.entries().len());
        }
        self.change(request, Op::SetPerms(path, perms))
    }

    /// Carries out a change: in the request's transaction, or at once.
    fn change(&mut self, request: &Request<'_>, op: Op) -> Result<Vec<u8>, XsError> {
        if request.tx_id != 0 {
            self.change_in_transaction(request, op)?;
            return Ok(OK.to_vec());
        }
        let (mut usage, mut changes) = (Usage::default(), Vec::new());
        let (generation, copied) = (self.store.generation(), self.store.copied());
        let mut work = Work {
            store: &mut self.store,
            domains: &self.domains,
            watches: &self.index,
            actor: request.actor,
            usage: &mut usage,
            charged: false,
            changes: &mut changes,
        };
        work.apply(&op)?;
        if self.store.generation() != generation {
            self.pay_write(&request.actor, copied);
        }
        self.domains.settle(&usage);
        self.fire(&changes, request.ticket.as_ref());
        Ok(OK.to_vec())
    }

    fn change_in_transaction(&mut self, request: &Request<'_>, op: Op) -> Result<(), XsError> {
        let connection = self.connections.get_mut(&request.id);
        let found = connection.and_then(|c| c.transactions.get_mut(&request.tx_id));
        let (_, transaction) = found.ok_or(XsError::ENOENT)?;
        if !request.actor.privileged && !transaction.replaces(&op) {
            let quotas = self.domains.quotas_of(request.actor.domid);
            if transaction.accessed() >= quotas.transaction_nodes {
                return Err(XsError::ENOSPC);
            }
        }
        let account = self
            .domains
            .get(request.actor.domid)
            .map(|domain| &domain.account);
        let memory = account.map_or(0, |account| account.memory.get());
        let quotas = self.domains.quotas_of(request.actor.domid);
        if !request.actor.privileged && memory + op.cost() >= quotas.memory {
            return Err(XsError::ENOMEM);
        }
        // An expired transaction's change is checked and goes nowhere.
        let (mut scratch, mut scratch_usage) = (self.store.clone(), Usage::default());
        let (store, usage) = transaction
            .view_mut()
            .unwrap_or((&mut scratch, &mut scratch_usage));
        let mut changes = Vec::new();
        let mut work = Work {
            store,
            domains: &self.domains,
            watches: &self.index,
            actor: request.actor,
            usage,
            charged: true,
            changes: &mut changes,
        };
        let result = work.apply(&op);
        match &result {
            Ok(()) => transaction.note_change(op),
            // The client was told something about the node.
            Err(_) => transaction.note_read(op.path(), false),
        }
        let memory = account.map_or(0, |account| account.memory.get());
        if !request.actor.privileged && memory >= quotas.memory {
            // Or the client would not be read any more, and could never end it.
            transaction.give_up(XsError::ENOMEM);
            return Err(XsError::ENOMEM);
        }
        result
    }

    // ---- transactions ----------------------------------------------------------------

    fn do_transaction_start(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        if request.tx_id != 0 {
            return Err(XsError::EBUSY);
        }
        self.check_memory(request, TRANSACTION_COST)?;
        let connection = self.connections.get_mut(&request.id).ok_or(XsError::EIO)?;
        let quota = self.domains.quotas_of(request.actor.domid).transactions;
        if !request.actor.privileged && connection.account.transactions.get() >= quota {
            return Err(XsError::ENOSPC);
        }
        let releases = self.domains.releases;
        let transaction = Transaction::start(&self.store, releases, &connection.account);
        let number = connection.new_transaction_id();
        let age = self.next_age;
        self.next_age += 1;
        connection.transactions.insert(number, (age, transaction));
        self.open.insert(age, (request.id, number));
        Ok(format!("{number}\0").into_bytes())
    }

    fn do_transaction_end(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let commit = match request.one()? {
            b"T" => true,
            b"F" => false,
            _ => return Err(XsError::EINVAL),
        };
        let connection = self.connections.get_mut(&request.id).ok_or(XsError::EIO)?;
        let ended = connection.transactions.remove(&request.tx_id);
        let (age, transaction) = ended.ok_or(XsError::ENOENT)?;
        let account = connection.account.clone();
        self.open.remove(&age);
        if commit {
            let committed = self.commit(request, transaction);
            if committed == Err(XsError::EAGAIN) {
                count(&account.conflicts, 1);
            }
            committed?;
        }
        Ok(OK.to_vec())
    }

    fn commit(&mut self, request: &Request<'_>, transaction: Transaction) -> Result<(), XsError> {
        let ops = transaction.into_changes(&self.store, self.domains.releases)?;
        if ops.is_empty() {
            return Ok(());
        }
        self.work += ops.len();
        let (before, copied) = (self.store.clone(), self.store.copied());
        let (mut usage, mut changes) = (Usage::default(), Vec::new());
        let mut work = Work {
            store: &mut self.store,
            domains: &self.domains,
            watches: &self.index,
            actor: request.actor,
            usage: &mut usage,
            charged: false,
            changes: &mut changes,
        };
        if let Err(error) = ops.iter().try_for_each(|op| work.apply(op)) {
            self.store.restore(before);
            // A quota stays exceeded however often the client tries; all else is
            // somebody's change since, which it sees when it tries again.
            return Err(match error {
                XsError::ENOSPC | XsError::ENOMEM => error,
                _ => XsError::EAGAIN,
            });
        }
        drop(before);
        self.pay_write(&request.actor, copied);
        self.domains.settle(&usage);
        let changes = crate::ops::merge(changes);
        self.fire(&changes, request.ticket.as_ref());
        Ok(())
    }

    // ---- watches ---------------------------------------------------------------------

    fn do_watch(&mut self, request: &Request<'_>) -> Result<WatchId, XsError> {
        let [path, token] = request.strings()[..] else {
            return Err(XsError::EINVAL);
        };
        let relative = !path.starts_with(b"/") && !path.starts_with(b"@");
        let path = self.path(request, path, Special::Allowed)?;
        self.watch_for(request.id, path, token, relative)
    }

    fn do_unwatch(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let [path, token] = request.strings()[..] else {
            return Err(XsError::EINVAL);
        };
        let path = self.path(request, path, Special::Allowed)?;
        let connection = self.connections.get(&request.id).ok_or(XsError::EIO)?;
        let watch = connection.watches.get(&(path, token.into())).copied();
        self.forget_watch(watch.ok_or(XsError::ENOENT)?);
        Ok(OK.to_vec())
    }

    // ---- domains ---------------------------------------------------------------------

    /// The introduced domain, not dom0, that a request names.
    fn other_domain(
        &mut self,
        request: &Request<'_>,
    ) -> Result<&mut crate::domains::Domain, XsError> {
        let domid = request.domid()?;
        if domid == DomId(0) {
            return Err(XsError::EINVAL);
        }
        self.domain_mut(domid)
    }

    /// domid, frame (no longer used: the ring is a grant), event channel.
    fn do_introduce(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let strings = request.strings();
        let [domid, _frame, port, ..] = strings[..] else {
            return Err(XsError::EINVAL);
        };
        let domid = parse_domid(domid)?;
        let port = core::str::from_utf8(port).map_err(|_| XsError::EINVAL)?;
        let port: u32 = port.parse().map_err(|_| XsError::EINVAL)?;
        if port == 0 || domid == DomId(0) || domid >= DomId::FIRST_RESERVED {
            return Err(XsError::EINVAL);
        }
        self.domain_introduced(domid);
        let port = EvtchnPort(port);
        self.actions.push_back(Action::Introduce { domid, port });
        Ok(OK.to_vec())
    }

    fn do_release(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        self.other_domain(request)?;
        let domid = request.domid()?;
        self.domain_released(domid);
        self.actions.push_back(Action::Release { domid });
        Ok(OK.to_vec())
    }

    fn do_set_target(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let strings = request.strings();
        let [domid, target, ..] = strings[..] else {
            return Err(XsError::EINVAL);
        };
        let (domid, target) = (parse_domid(domid)?, parse_domid(target)?);
        self.domain_mut(target)?;
        self.domain_mut(domid)?.target = Some(target);
        Ok(OK.to_vec())
    }
}
