//! From settings to an [`XlConfig`].

use std::path::PathBuf;

use toolstack_domain::config::{Action, GuestType, TscMode};
use toolstack_domain::vdev::device_number;
use toolstack_rpc::server::check_name;

use super::cpus::CpuList;
use super::syntax::{Kind, Setting, Value};
use super::{
    ConfigError, MAX_DISKS, MAX_MEMORY_MIB, MAX_VCPUS, MAX_VIFS, Warning, XlConfig, disk, keys, vif,
};

/// Where Debian's package grub-xen-host puts GRUB for PV guests.
const GRUB_PV: &str = "/usr/lib/grub-xen/grub-x86_64-xen.bin";
/// And for PVH guests.
const GRUB_PVH: &str = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin";

/// Longest command line, in bytes without the NUL: `MAX_GUEST_CMDLINE` in Xen's public
/// xen.h for PV; what Linux takes (`COMMAND_LINE_SIZE`) for PVH.
const MAX_CMDLINE_PV: usize = 1023;
const MAX_CMDLINE_PVH: usize = 2047;

pub(super) struct Reader<'a> {
    source: &'a str,
    settings: &'a [Setting],
    warnings: Vec<Warning>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a str, settings: &'a [Setting]) -> Self {
        Reader {
            source,
            settings,
            warnings: Vec::new(),
        }
    }

    pub(super) fn read(mut self, strict: bool) -> (Result<XlConfig, ConfigError>, Vec<Warning>) {
        let config = self.config(strict);
        self.warnings.sort_by_key(|w| w.at.line);
        (config, self.warnings)
    }

    fn config(&mut self, strict: bool) -> Result<XlConfig, ConfigError> {
        self.check_keys(strict)?;
        let kind = self.kind()?;
        let (memory_mib, vcpus) = (self.memory()?, self.vcpus()?);
        Ok(XlConfig {
            name: self.name()?,
            kind,
            kernel: self.kernel(kind)?,
            ramdisk: self.path("ramdisk")?,
            cmdline: self.cmdline(kind)?,
            memory_mib,
            vcpus: vcpus.0,
            max_vcpus: vcpus.1,
            cpus: self.cpus(vcpus.1)?,
            cpus_at: self.get("cpus").map(|setting| setting.value.at.clone()),
            disks: self.disks()?,
            vifs: self.vifs()?,
            on_poweroff: self.action("on_poweroff", Action::Destroy)?,
            on_reboot: self.action("on_reboot", Action::Restart)?,
            on_crash: self.action("on_crash", Action::Destroy)?,
            tsc_mode: self.tsc_mode()?,
            uuid: self.uuid()?,
        })
    }

    fn get(&self, key: &str) -> Option<&'a Setting> {
        self.settings.iter().find(|s| s.key == key)
    }

    fn missing(&self, what: impl Into<String>) -> ConfigError {
        ConfigError::Whole {
            source: self.source.to_owned(),
            what: what.into(),
        }
    }

    fn warn(&mut self, setting: &Setting, what: impl Into<String>) {
        self.warnings.push(Warning {
            at: setting.at.clone(),
            key: setting.key.clone(),
            what: what.into(),
        });
    }

    fn check_keys(&mut self, strict: bool) -> Result<(), ConfigError> {
        for setting in self.settings {
            if let Some(replaced) = &setting.replaced {
                let what = format!("replaces the value of line {}", replaced.line);
                self.warn(setting, what);
            }
            if keys::READ.contains(&setting.key.as_str()) {
                continue;
            }
            if let Some(why) = keys::no_effect(&setting.key) {
                self.warn(setting, format!("{why}; ignored"));
                continue;
            }
            let hint = keys::near(&setting.key)
                .map(|near| format!(" (is {near} meant?)"))
                .unwrap_or_default();
            if strict {
                let what = format!("unknown key {}{hint}", setting.key);
                return Err(ConfigError::at(&setting.at, what));
            }
            self.warn(setting, format!("unknown key{hint}; ignored"));
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Result<Option<(&'a Setting, &'a str)>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(setting) => match &setting.value.kind {
                Kind::Text(text) => Ok(Some((setting, text))),
                Kind::List(_) => {
                    let what = format!("{key} is one value, not a list");
                    Err(ConfigError::at(&setting.value.at, what))
                }
            },
        }
    }

    /// The entries of a list of strings, with their places.
    fn list(&self, key: &str, most: usize) -> Result<Vec<(&'a Value, &'a str)>, ConfigError> {
        let Some(setting) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Kind::List(values) = &setting.value.kind else {
            let what = format!("{key} is a list: {key} = [ '...', ]");
            return Err(ConfigError::at(&setting.value.at, what));
        };
        if values.len() > most {
            let what = format!("more than {most} entries in {key}");
            return Err(ConfigError::at(&values[most].at, what));
        }
        values
            .iter()
            .map(|value| match &value.kind {
                Kind::Text(text) => Ok((value, text.as_str())),
                Kind::List(_) => {
                    let what = format!("the entries of {key} are strings, not lists");
                    Err(ConfigError::at(&value.at, what))
                }
            })
            .collect()
    }

    /// A number as `strtol(3)` with base 0 reads it, between 1 and `most`.
    fn number(&self, key: &str, most: u32) -> Result<Option<u32>, ConfigError> {
        let Some((setting, text)) = self.text(key)? else {
            return Ok(None);
        };
        let wrong = |what: String| ConfigError::at(&setting.value.at, what);
        let number = strtol(text)
            .ok_or_else(|| wrong(format!("{key}: '{}' is not a number", text.escape_debug())))?;
        match u32::try_from(number) {
            Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => Err(wrong(format!("{key}: {text} is not 1 to {most}"))),
        }
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self
            .text(key)?
            .filter(|(_, text)| !text.is_empty())
            .map(|(_, text)| PathBuf::from(text)))
    }

    fn kind(&self) -> Result<GuestType, ConfigError> {
        let hvm = "HVM guests need a device model, which this host does not have; \
                   most Linux guests run with type = \"pvh\"";
        let kind = match self.text("type")? {
            None => None,
            Some((_, "pv")) => Some(GuestType::Pv),
            Some((_, "pvh")) => Some(GuestType::Pvh),
            Some((setting, "hvm")) => return Err(ConfigError::at(&setting.value.at, hvm)),
            Some((setting, other)) => {
                let what = format!("type: '{}' is neither pv nor pvh", other.escape_debug());
                return Err(ConfigError::at(&setting.value.at, what));
            }
        };
        // Deprecated since Xen 4.10, and PV is what it means if it is not hvm.
        match self.text("builder")? {
            None => {}
            Some((_, "generic")) if kind != Some(GuestType::Pvh) => {}
            Some((setting, "generic")) => {
                let what = "builder = \"generic\" contradicts type = \"pvh\"";
                return Err(ConfigError::at(&setting.value.at, what));
            }
            Some((setting, "hvm")) => return Err(ConfigError::at(&setting.value.at, hvm)),
            Some((setting, other)) => {
                let what = format!("builder: '{}' is unknown", other.escape_debug());
                return Err(ConfigError::at(&setting.value.at, what));
            }
        }
        Ok(kind.unwrap_or(GuestType::Pv))
    }

    fn name(&self) -> Result<String, ConfigError> {
        let Some((setting, name)) = self.text("name")? else {
            return Err(self.missing("name is not set"));
        };
        // As xl does, `Domain-0` is kept for the host itself.
        let what = match check_name(name) {
            Ok(()) if name != "Domain-0" => return Ok(name.to_owned()),
            Ok(()) => "name: Domain-0 is the host's own".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(ConfigError::at(&setting.value.at, what))
    }

    fn kernel(&mut self, kind: GuestType) -> Result<PathBuf, ConfigError> {
        let kernel = self.path("kernel")?;
        let grub = match kind {
            GuestType::Pv => GRUB_PV,
            GuestType::Pvh => GRUB_PVH,
        };
        if let Some((setting, bootloader)) = self.text("bootloader")?
            && !bootloader.is_empty()
        {
            if kernel.is_none() {
                let what = format!(
                    "bootloader: the host runs no program on a guest's disk; boot GRUB inside \
                     the guest with kernel = \"{grub}\" (Debian's grub-xen-host)"
                );
                return Err(ConfigError::at(&setting.value.at, what));
            }
            self.warn(setting, "the host runs none; ignored, kernel is booted");
        }
        match self.text("firmware")? {
            None => {}
            Some((setting, "pvgrub64")) => {
                if kernel.is_some() {
                    let what = "firmware and kernel cannot both be set";
                    return Err(ConfigError::at(&setting.value.at, what));
                }
                self.warn(setting, format!("boots {grub} (Debian's grub-xen-host)"));
                return Ok(PathBuf::from(grub));
            }
            Some((setting, other)) => {
                let what = format!(
                    "firmware: '{}' is not supported; only pvgrub64 is",
                    other.escape_debug()
                );
                return Err(ConfigError::at(&setting.value.at, what));
            }
        }
        kernel.ok_or_else(|| {
            self.missing(format!(
                "kernel is not set (to boot what is on the guest's disk: kernel = \"{grub}\")"
            ))
        })
    }

    fn cmdline(&mut self, kind: GuestType) -> Result<String, ConfigError> {
        let root = self.text("root")?;
        let extra = self.text("extra")?;
        let (setting, line) = if let Some((setting, line)) = self.text("cmdline")? {
            for (ignored, _) in [root, extra].into_iter().flatten() {
                self.warn(ignored, "ignored, because cmdline is set");
            }
            (setting, line.to_owned())
        } else {
            match (root, extra) {
                (None, None) => return Ok(String::new()),
                (Some((setting, root)), None) => (setting, format!("root={root}")),
                (None, Some((setting, extra))) => (setting, extra.to_owned()),
                (Some((_, root)), Some((setting, extra))) => {
                    (setting, format!("root={root} {extra}"))
                }
            }
        };
        let most = match kind {
            GuestType::Pv => MAX_CMDLINE_PV,
            GuestType::Pvh => MAX_CMDLINE_PVH,
        };
        let what = if line.len() > most {
            format!(
                "the command line has {} bytes, more than {most}",
                line.len()
            )
        } else if line.chars().any(char::is_control) {
            "the command line holds a control character".to_owned()
        } else {
            return Ok(line);
        };
        Err(ConfigError::at(&setting.value.at, what))
    }

    fn memory(&mut self) -> Result<u32, ConfigError> {
        let memory = self.number("memory", MAX_MEMORY_MIB)?;
        let most = self.number("maxmem", MAX_MEMORY_MIB)?;
        match (memory, most, self.get("maxmem")) {
            (Some(memory), Some(most), Some(setting)) if most < memory => {
                let what = format!("maxmem ({most}) is less than memory ({memory})");
                Err(ConfigError::at(&setting.value.at, what))
            }
            (Some(memory), Some(most), Some(setting)) if most > memory => {
                let what = format!("a guest cannot grow yet; it has its {memory} MiB");
                self.warn(setting, what);
                Ok(memory)
            }
            (Some(memory), ..) | (None, Some(memory), _) => Ok(memory),
            // xl would give 32 MiB, in which nothing boots that is used today.
            (None, None, _) => Err(self.missing("memory is not set (in MiB)")),
        }
    }

    fn vcpus(&self) -> Result<(u32, u32), ConfigError> {
        let vcpus = self.number("vcpus", MAX_VCPUS)?.unwrap_or(1);
        let most = self.number("maxvcpus", MAX_VCPUS)?.unwrap_or(vcpus);
        match self.get("maxvcpus") {
            Some(setting) if most < vcpus => {
                let what = format!("maxvcpus ({most}) is less than vcpus ({vcpus})");
                Err(ConfigError::at(&setting.value.at, what))
            }
            _ => Ok((vcpus, most)),
        }
    }

    fn cpus(&mut self, max_vcpus: u32) -> Result<CpuList, ConfigError> {
        let Some(setting) = self.get("cpus") else {
            return Ok(CpuList::default());
        };
        let parse = |value: &Value, text: &str| {
            CpuList::parse(text).map_err(|why| ConfigError::at(&value.at, format!("cpus: {why}")))
        };
        let Kind::List(_) = setting.value.kind else {
            let (_, text) = self.text("cpus")?.unwrap_or((setting, ""));
            return parse(&setting.value, text);
        };
        // One entry a vCPU. The host pins each vCPU itself, to one of all these.
        let mut entries = self.list("cpus", usize::try_from(MAX_VCPUS).unwrap_or(usize::MAX))?;
        entries.truncate(usize::try_from(max_vcpus).unwrap_or(usize::MAX));
        if entries.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            self.warn(
                setting,
                "the host spreads the vCPUs over all the CPUs named",
            );
        }
        let mut cpus = CpuList::default();
        for (value, text) in entries {
            let list = parse(value, text)?;
            // An entry's ^ must not take a CPU from the entry before it.
            if list.excludes() {
                let what = "cpus: ^ is not supported in a list with one entry a vCPU";
                return Err(ConfigError::at(&value.at, what));
            }
            cpus.join(list);
        }
        Ok(cpus)
    }

    fn disks(&mut self) -> Result<Vec<disk::XlDisk>, ConfigError> {
        let mut disks: Vec<disk::XlDisk> = Vec::new();
        for (value, spec) in self.list("disk", MAX_DISKS)? {
            let mut ignored = Vec::new();
            let wrong = |why| ConfigError::at(&value.at, format!("disk: {why}"));
            let disk = disk::parse(spec, &mut ignored).map_err(wrong)?;
            // xvda and d0p0 are one.
            let number = device_number(&disk.vdev);
            if disks.iter().any(|d| device_number(&d.vdev) == number) {
                return Err(wrong(format!("vdev {} is given twice", disk.vdev)));
            }
            if let Some(other) = disks.iter().find(|d| d.volume == disk.volume)
                && (disk.writable || other.writable)
            {
                return Err(wrong(format!("volume {} is given twice", disk.volume)));
            }
            self.ignored("disk", value, &ignored);
            disks.push(disk);
        }
        Ok(disks)
    }

    fn vifs(&mut self) -> Result<Vec<vif::XlVif>, ConfigError> {
        let mut vifs: Vec<vif::XlVif> = Vec::new();
        for (value, spec) in self.list("vif", MAX_VIFS)? {
            let mut ignored = Vec::new();
            let wrong = |why| ConfigError::at(&value.at, format!("vif: {why}"));
            let vif = vif::parse(spec, &mut ignored).map_err(wrong)?;
            if vif.mac.is_some() && vifs.iter().any(|v| v.mac == vif.mac) {
                return Err(wrong("the same mac is given twice".into()));
            }
            self.ignored("vif", value, &ignored);
            vifs.push(vif);
        }
        Ok(vifs)
    }

    fn ignored(&mut self, key: &str, value: &Value, ignored: &[String]) {
        if !ignored.is_empty() {
            self.warnings.push(Warning {
                at: value.at.clone(),
                key: key.to_owned(),
                what: format!("no effect here: {}", ignored.join(", ")),
            });
        }
    }

    fn tsc_mode(&self) -> Result<TscMode, ConfigError> {
        let Some((setting, text)) = self.text("tsc_mode")? else {
            return Ok(TscMode::Default);
        };
        match text {
            "default" => Ok(TscMode::Default),
            "always_emulate" => Ok(TscMode::AlwaysEmulate),
            "native" => Ok(TscMode::Native),
            other => {
                let what = format!(
                    "tsc_mode: '{}' is none of default, always_emulate, native",
                    other.escape_debug()
                );
                Err(ConfigError::at(&setting.value.at, what))
            }
        }
    }

    fn action(&mut self, key: &str, default: Action) -> Result<Action, ConfigError> {
        let Some((setting, text)) = self.text(key)? else {
            return Ok(default);
        };
        let core_dump = "no core is dumped";
        Ok(match text {
            "destroy" => Action::Destroy,
            "restart" => Action::Restart,
            "preserve" => Action::Preserve,
            "rename-restart" => Action::RenameRestart,
            "coredump-destroy" => {
                self.warn(setting, core_dump);
                Action::Destroy
            }
            "coredump-restart" => {
                self.warn(setting, core_dump);
                Action::Restart
            }
            other => {
                let what = format!(
                    "{key}: '{}' is none of destroy, restart, rename-restart, preserve",
                    other.escape_debug()
                );
                return Err(ConfigError::at(&setting.value.at, what));
            }
        })
    }

    fn uuid(&self) -> Result<Option<[u8; 16]>, ConfigError> {
        let Some((setting, text)) = self.text("uuid")? else {
            return Ok(None);
        };
        match uuid(text) {
            Some(uuid) => Ok(Some(uuid)),
            None => {
                let what = format!(
                    "uuid: '{}' is not of the form 01234567-89ab-cdef-0123-456789abcdef",
                    text.escape_debug()
                );
                Err(ConfigError::at(&setting.value.at, what))
            }
        }
    }
}

/// `strtol(3)` with base 0, but all of `text` must be the number.
fn strtol(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let (digits, base) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    // What is too large for 64 bits is too large for any key.
    Some(u64::from_str_radix(digits, base).unwrap_or(u64::MAX))
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    if lengths != [8, 4, 4, 4, 12]
        || !groups
            .iter()
            .all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return None;
    }
    let digits = groups.concat();
    for (index, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(uuid)
}
