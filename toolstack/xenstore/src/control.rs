//! CONTROL: what `xenstore-control` asks of the server itself.

use crate::requests::Request;
use crate::server::Server;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use xen_abi::DomId;
use xen_abi::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsError};

const COMMANDS: [(&str, &str); 7] = [
    ("check", ""),
    ("log", "[on|off|+<switch>|-<switch>]"),
    ("memreport", ""),
    ("print", "<string>"),
    ("quota", "[set <name> <val>|<domid>|max [-r]]"),
    ("quota-soft", "[set <name> <val>]"),
    ("help", ""),
];

const MEMORY_WARNING: &str = "Total Xenstore memory per domain (warning level)";

impl Server {
    pub(crate) fn do_control(&mut self, request: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let strings = request.strings().into_iter().map(core::str::from_utf8);
        let words = strings
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| XsError::EINVAL)?;
        let text = match words[..] {
            ["check"] => self.control_check(),
            ["log"] => self.trace.settings(),
            ["log", switch] => {
                self.trace.switch(switch)?;
                "OK".into()
            }
            ["memreport"] => self.memory_report(),
            ["print", text] => {
                log::info!("xenstore control: {}", text.escape_default());
                "OK".into()
            }
            ["quota"] => self.quota_settings(),
            ["quota", "set", name, value] => self.set_quota(name, value)?,
            ["quota", "max"] => self.quota_max(),
            ["quota", "max", "-r"] => {
                for (_, domain) in self.domains.iter() {
                    domain.account.meters(|_, meter| meter.reset_max());
                }
                self.quota_max()
            }
            ["quota", domid] => self.domain_quota(domid)?,
            ["quota-soft"] => {
                let value = self.domains.quotas.memory_soft;
                alloc::format!(
                    "Quota settings:\n{:<17}: {value:8} {MEMORY_WARNING}\n",
                    "memory"
                )
            }
            ["quota-soft", "set", "memory", value] => {
                self.domains.quotas.memory_soft = parse_limit(value)?;
                "OK".into()
            }
            ["help"] => {
                let mut text = String::new();
                for (name, parameters) in COMMANDS {
                    writeln!(text, "{name:<15} {parameters}").expect("a string takes all");
                }
                text
            }
            _ => return Err(XsError::EINVAL),
        };
        let mut reply = text.into_bytes();
        reply.truncate(XENSTORE_PAYLOAD_MAX - 1);
        reply.push(0);
        Ok(reply)
    }

    /// Says in the log what does not agree; the answer itself is always OK.
    fn control_check(&mut self) -> String {
        match self.check() {
            Ok(()) => "OK".into(),
            Err(what) => {
                log::error!("xenstore: check: {what}");
                what
            }
        }
    }

    fn quota_settings(&mut self) -> String {
        let mut text = String::from("Quota settings:\n");
        for (name, words, value) in self.domains.quotas.by_name() {
            writeln!(text, "{name:<17}: {value:8} {words}").expect("a string takes all");
        }
        text
    }

    fn set_quota(&mut self, name: &str, value: &str) -> Result<String, XsError> {
        let value = parse_limit(value)?;
        let mut quotas = self.domains.quotas.by_name();
        let quota = quotas.iter_mut().find(|(other, _, _)| *other == name);
        *quota.ok_or(XsError::EINVAL)?.2 = value;
        self.unstall();
        Ok("OK".into())
    }

    fn quota_max(&self) -> String {
        let mut text = String::from("Max. seen accounting values:\n");
        let mut highest: Vec<(&str, usize)> = Vec::new();
        for (domid, domain) in self.domains.iter() {
            domain.account.meters(|name, meter| {
                let value = if domid == DomId(0) { 0 } else { meter.max() };
                match highest.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, max)) => *max = value.max(*max),
                    None => highest.push((name, value)),
                }
            });
        }
        for (name, max) in highest {
            writeln!(text, "{name:<17}: {max:8}").expect("a string takes all");
        }
        text
    }

    fn domain_quota(&self, domid: &str) -> Result<String, XsError> {
        let domid = crate::perms::parse_domid(domid.as_bytes())?;
        let domain = self.domains.get(domid).ok_or(XsError::ENOENT)?;
        let mut text = alloc::format!("Domain {domid}:\n");
        domain.account.meters(|name, meter| {
            let (now, max) = (meter.get(), meter.max());
            writeln!(text, "{name:<17}: {now:8} (max {max:8})").expect("a string takes all");
        });
        Ok(text)
    }

    /// Where the memory is, by domain.
    fn memory_report(&self) -> String {
        let mut text = alloc::format!(
            "connections {} watches {} transactions {}\n",
            self.connections.len(),
            self.watches.len(),
            self.open.len(),
        );
        for (domid, domain) in self.domains.iter() {
            let account = &domain.account;
            writeln!(
                text,
                "d{domid}: {} bytes, {} nodes, {} watches, {} transactions, {} outstanding",
                account.memory.get(),
                account.nodes.get(),
                account.watches.get(),
                account.transactions.get(),
                account.outstanding.get(),
            )
            .expect("a string takes all");
        }
        text
    }
}

/// A new limit: at least 1, as with xenstored.
fn parse_limit(value: &str) -> Result<usize, XsError> {
    let value: u32 = value.parse().map_err(|_| XsError::EINVAL)?;
    if value == 0 {
        return Err(XsError::EINVAL);
    }
    usize::try_from(value).map_err(|_| XsError::EINVAL)
}
