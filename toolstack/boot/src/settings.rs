//! The keys of `closer.conf` and of the command line.
//!
//! | key        | value                                                       | default  |
//! |------------|-------------------------------------------------------------|----------|
//! | `hostname` | letters, digits, `-`, `.`; at most 63                        | `closer` |
//! | `nic`      | number from 0 in PCI order, MAC address, or PCI address       | `0`      |
//! | `ip`       | `dhcp`, or ADDRESS/PREFIX such as `10.0.2.15/24`              | `dhcp`   |
//! | `gateway`  | another host's address in the network of `ip`                | none     |
//! | `dns`      | an address                                                   | none     |
//! | `port`     | TCP port of the management RPC, 1 to 65535                    | `8006`   |
//! | `mc`       | vCPUs of the main container, 1 to 64, below the number of all | `1`      |
//! | `loglevel` | `error`, `warn`, `info`, `debug` or `trace`                   | `info`   |
//! | `panic`    | `halt`, or seconds until the reboot, at most 86400; 0: at once | `10`     |
//! | `guests`   | on the command line only: names with commas, or `none`        |          |

use alloc::format;
use alloc::string::String;
use core::net::Ipv4Addr;

use crate::diagnostic::Log;
use crate::{
    Address, Decision, HostConfig, LogLevel, MAX_COMMAND_LINE, MAX_MC_CORES, MAX_NAME,
    MAX_PANIC_REBOOT_S, Nic, PanicAction, PciAddress, Problem, Source, archive,
};

const KEYS: [&str; 10] = [
    "hostname", "nic", "ip", "gateway", "dns", "port", "mc", "loglevel", "panic", "guests",
];
/// What Xen adds to a dom0's command line for Linux (`create_dom0`, xen/arch/x86/setup.c).
const FROM_XEN: [&str; 2] = ["noapic", "acpi"];
/// Keys that would put a secret where `xl dmesg` shows it.
const SECRETS: [&str; 3] = ["host.key", "hostkey", "key"];

/// Last value of each key, and where it stood.
#[derive(Default)]
pub(crate) struct Settings<'a> {
    values: [Option<(Source, &'a str)>; KEYS.len()],
}

impl<'a> Settings<'a> {
    pub(crate) fn read_file(&mut self, text: &'a str, log: &mut Log) {
        for (number, line) in archive::lines(text) {
            let source = Source::Line(archive::CONF, number);
            match line.split_once('=') {
                Some((key, value)) => self.set(source, key.trim(), unquoted(value.trim()), log),
                None => log.push(source, line, "", Problem::NoValue, Decision::Ignored),
            }
        }
    }

    pub(crate) fn read_command_line(&mut self, line: &'a [u8], log: &mut Log) {
        let line = line.split(|&b| b == 0).next().unwrap_or(&[]);
        let source = Source::CommandLine;
        if line.len() > MAX_COMMAND_LINE {
            let problem = Problem::TooMuch("4096 bytes");
            log.push(source, "", "", problem, Decision::Ignored);
            return;
        }
        for word in line
            .split(u8::is_ascii_whitespace)
            .filter(|w| !w.is_empty())
        {
            let Ok(word) = core::str::from_utf8(word) else {
                log.push(source, "", "", Problem::NotText, Decision::Ignored);
                continue;
            };
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word, None),
            };
            match value {
                _ if FROM_XEN.contains(&key) => {}
                Some(value) => self.set(source, key, value, log),
                None => log.push(source, word, "", Problem::NoValue, Decision::Ignored),
            }
        }
    }

    fn set(&mut self, source: Source, key: &str, value: &'a str, log: &mut Log) {
        if SECRETS.contains(&key) {
            log.push(source, key, "", Problem::SecretInTheOpen, Decision::Ignored);
            return;
        }
        let Some(index) = KEYS.iter().position(|k| *k == key) else {
            log.push(source, key, value, Problem::UnknownKey, Decision::Ignored);
            return;
        };
        if let Some((earlier, _)) = self.values[index]
            && matches!(earlier, Source::CommandLine) == matches!(source, Source::CommandLine)
        {
            log.push(
                source,
                key,
                value,
                Problem::DuplicateKey,
                Decision::LaterUsed,
            );
        }
        self.values[index] = Some((source, value));
    }

    fn get(&self, key: &str) -> Option<(Source, &'a str)> {
        let index = KEYS.iter().position(|k| *k == key)?;
        self.values[index]
    }

    /// A key's value through `parse`; `None` if it is not set or not good.
    fn value<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&'a str) -> Option<T>,
        expected: &'static str,
        default: Decision,
        log: &mut Log,
    ) -> Option<T> {
        let (source, text) = self.get(key)?;
        let value = parse(text);
        if value.is_none() {
            log.push(source, key, text, Problem::Expected(expected), default);
        }
        value
    }

    /// The options of the log and of a panic, where they are good.
    pub(crate) fn early(&self) -> (Option<LogLevel>, Option<PanicAction>) {
        let level = self.get("loglevel").and_then(|(_, text)| log_level(text));
        let action = self.get("panic").and_then(|(_, text)| panic_action(text));
        (level, action)
    }

    /// Puts what is set and good into `config`.
    pub(crate) fn apply(&self, config: &mut HostConfig, vcpus: u32, log: &mut Log) {
        if self.get("hostname").is_none() {
            let default = Decision::Default("closer");
            log.push(
                Source::File(archive::CONF),
                "hostname",
                "",
                Problem::MissingKey,
                default,
            );
        }
        if let Some(hostname) = self.value(
            "hostname",
            hostname,
            "letters, digits, - and ., at most 63",
            Decision::Default("closer"),
            log,
        ) {
            config.hostname = hostname;
        }
        if let Some(nic) = self.value(
            "nic",
            nic,
            "a number, a MAC address or a PCI address",
            Decision::Default("the first"),
            log,
        ) {
            config.nic = nic;
        }
        if let Some(port) = self.value(
            "port",
            |text| number(text, 1, u32::from(u16::MAX)).and_then(|n| u16::try_from(n).ok()),
            "a number from 1 to 65535",
            Decision::Default("8006"),
            log,
        ) {
            config.rpc_port = port;
        }
        if let Some(mc) = self.value(
            "mc",
            |text| number(text, 1, MAX_MC_CORES),
            "a number from 1 to 64",
            Decision::Default("1"),
            log,
        ) && self.leaves_a_core(mc, vcpus, log)
        {
            config.mc_cores = mc;
        }
        if let Some(level) = self.value(
            "loglevel",
            log_level,
            "error, warn, info, debug or trace",
            Decision::Default("info"),
            log,
        ) {
            config.log_level = level;
        }
        if let Some(action) = self.value(
            "panic",
            panic_action,
            "halt, or seconds up to 86400",
            Decision::Default("10"),
            log,
        ) {
            config.panic_action = action;
        }
        if let Some(address) = self.address(log) {
            config.address = address;
        }
        match self.get("guests") {
            Some((Source::CommandLine, "none")) => config.guests.clear(),
            Some((Source::CommandLine, names)) => {
                let names = names.split(',').map(|name| (Source::CommandLine, name));
                config.guests = archive::guest_list(names, log);
            }
            Some((source, value)) => {
                let problem = Problem::Needs("to stand in the file guests");
                log.push(source, "guests", value, problem, Decision::Ignored);
            }
            None => {}
        }
    }

    /// Whether guests keep a core of the host, if it has more than one.
    fn leaves_a_core(&self, mc: u32, vcpus: u32, log: &mut Log) -> bool {
        let most = vcpus.saturating_sub(1).max(1);
        if mc > most
            && let Some((source, text)) = self.get("mc")
        {
            let problem = Problem::TooManyCores { most, vcpus };
            log.push(source, "mc", text, problem, Decision::Default("1"));
        }
        mc <= most
    }

    fn address(&self, log: &mut Log) -> Option<Address> {
        let expected = "dhcp or ADDRESS/PREFIX";
        let fixed = match self.get("ip") {
            Some(_) => self.value("ip", ip, expected, Decision::Default("dhcp"), log)?,
            None => None,
        };
        let Some((address, prefix)) = fixed else {
            return self.without_fixed(log);
        };
        let gateway = self.value(
            "gateway",
            |text| {
                text.parse()
                    .ok()
                    .filter(|g| may_be_gateway(*g, address, prefix))
            },
            "another host's address in the network of ip",
            Decision::Default("none"),
            log,
        );
        let dns = self.value(
            "dns",
            |text| text.parse().ok().filter(is_host_address),
            "an address",
            Decision::Default("none"),
            log,
        );
        Some(Address::Static {
            address,
            prefix,
            gateway,
            dns,
        })
    }

    /// `gateway` and `dns` come from the DHCP server, if there is no fixed address.
    fn without_fixed(&self, log: &mut Log) -> Option<Address> {
        for key in ["gateway", "dns"] {
            if let Some((source, value)) = self.get(key) {
                let problem = Problem::Needs("ip=ADDRESS/PREFIX");
                log.push(source, key, value, problem, Decision::Ignored);
            }
        }
        Some(Address::Dhcp)
    }
}

/// A value without the quotes that people put around it.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
        {
            return inner;
        }
    }
    value
}

/// A decimal number from `min` to `max`, digits only.
fn number(text: &str, min: u32, max: u32) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| (min..=max).contains(n))
}

fn hostname(text: &str) -> Option<String> {
    let good = text.len() <= MAX_NAME
        && text.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
    good.then(|| String::from(text))
}

fn nic(text: &str) -> Option<Nic> {
    if text.contains('.') {
        pci(text).map(Nic::Pci)
    } else if text.contains(':') {
        mac(text).map(Nic::Mac)
    } else {
        number(text, 0, 255).map(Nic::Index)
    }
}

/// Hexadecimal digits only, at most `digits` of them.
fn hex(text: &str, digits: usize) -> Option<u32> {
    if text.len() > digits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::try_from(hex(parts.next()?, 2)?).ok()?;
    }
    // A group address is nobody's own.
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn pci(text: &str) -> Option<PciAddress> {
    let (place, function) = text.split_once('.')?;
    let (place, device) = place.rsplit_once(':')?;
    let (segment, bus) = place.rsplit_once(':').unwrap_or(("0", place));
    Some(PciAddress {
        segment: u16::try_from(hex(segment, 4)?).ok()?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok().filter(|d| *d < 32)?,
        function: u8::try_from(hex(function, 1)?).ok().filter(|f| *f < 8)?,
    })
}

fn log_level(text: &str) -> Option<LogLevel> {
    Some(match text {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    })
}

fn panic_action(text: &str) -> Option<PanicAction> {
    match text {
        "halt" => Some(PanicAction::Halt),
        text => number(text, 0, MAX_PANIC_REBOOT_S).map(|after_s| PanicAction::Reboot { after_s }),
    }
}

/// `Some(None)` is DHCP.
fn ip(text: &str) -> Option<Option<(Ipv4Addr, u8)>> {
    if text == "dhcp" {
        return Some(None);
    }
    let (address, prefix) = text.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix = u8::try_from(number(prefix, 1, 32)?).ok()?;
    is_host_in_network(&address, prefix).then_some(Some((address, prefix)))
}

const fn mask(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        prefix => u32::MAX << (32 - prefix),
    }
}

/// Whether a host can have this address: what a DHCP server says is no better than what an
/// administrator types.
pub fn is_host_address(address: &Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this network", 240.0.0.0/4 is reserved.
    let first = address.octets()[0];
    first != 0 && first < 240 && !address.is_loopback() && !address.is_multicast()
}

/// Whether a host can have this address in its network.
fn is_host_in_network(address: &Ipv4Addr, prefix: u8) -> bool {
    // In a network with room for them, the first and the last address are nobody's.
    let host = address.to_bits() & !mask(prefix);
    let taken = prefix <= 30 && (host == 0 || host == !mask(prefix));
    is_host_address(address) && !taken
}

fn may_be_gateway(gateway: Ipv4Addr, address: Ipv4Addr, prefix: u8) -> bool {
    let differ = gateway.to_bits() ^ address.to_bits();
    is_host_in_network(&gateway, prefix) && differ != 0 && differ & mask(prefix) == 0
}

/// `closer.conf` for a configuration.
pub(crate) fn to_text(config: &HostConfig) -> String {
    let mut text = format!("hostname = {}\nnic = {}\n", config.hostname, config.nic);
    match config.address {
        Address::Dhcp => text += "ip = dhcp\n",
        Address::Static {
            address,
            prefix,
            gateway,
            dns,
        } => {
            text += &format!("ip = {address}/{prefix}\n");
            for (key, value) in [("gateway", gateway), ("dns", dns)] {
                if let Some(value) = value {
                    text += &format!("{key} = {value}\n");
                }
            }
        }
    }
    let level = match config.log_level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    text += &format!(
        "port = {}\nmc = {}\nloglevel = {level}\n",
        config.rpc_port, config.mc_cores
    );
    text += &match config.panic_action {
        PanicAction::Reboot { after_s } => format!("panic = {after_s}\n"),
        PanicAction::Halt => String::from("panic = halt\n"),
    };
    text
}
