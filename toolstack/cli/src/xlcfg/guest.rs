//! From an [`XlConfig`] to what the host is sent.

use std::io::Read as _;

use toolstack_domain::config::{Disk, GuestConfig, Kernel, Ramdisk, Vif};

use super::{ConfigError, XlConfig};

/// The first half of the MAC addresses of Xen's guests (the Xen project's OUI).
const XEN_OUI: [u8; 3] = [0x00, 0x16, 0x3e];

impl XlConfig {
    /// The guest, with the images that the host will keep. `node_cpus` holds the CPUs of
    /// each of the host's nodes; it may be empty unless [`needs_topology`] says so.
    ///
    /// An identifier and MAC addresses are made up where the definition has none.
    ///
    /// # Errors
    /// If `cpus` does not fit the host, or there is no source of randomness.
    ///
    /// [`needs_topology`]: super::cpus::CpuList::needs_topology
    pub fn to_guest(
        &self,
        kernel: Kernel,
        ramdisk: Option<Ramdisk>,
        node_cpus: &[Vec<u32>],
    ) -> Result<GuestConfig, ConfigError> {
        let wrong = |what: String| ConfigError::Whole {
            source: self.name.clone(),
            what,
        };
        let cpus = self
            .cpus
            .resolve(node_cpus)
            .map_err(|why| match &self.cpus_at {
                Some(at) => ConfigError::at(at, format!("cpus: {why}")),
                None => wrong(format!("cpus: {why}")),
            })?;
        let uuid = match self.uuid {
            Some(uuid) => uuid,
            None => random_uuid().map_err(|why| wrong(format!("/dev/urandom: {why}")))?,
        };
        let mut vifs: Vec<Vif> = Vec::with_capacity(self.vifs.len());
        for vif in &self.vifs {
            let mac = match vif.mac {
                Some(mac) => mac,
                None => self
                    .fresh_mac(&vifs)
                    .map_err(|why| wrong(format!("/dev/urandom: {why}")))?,
            };
            vifs.push(Vif { mac, mtu: vif.mtu });
        }
        Ok(GuestConfig {
            name: self.name.clone(),
            uuid,
            kind: self.kind,
            kernel,
            ramdisk,
            cmdline: self.cmdline.clone(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            max_vcpus: self.max_vcpus,
            cpus,
            disks: self
                .disks
                .iter()
                .map(|disk| Disk {
                    volume: disk.volume.clone(),
                    vdev: disk.vdev.clone(),
                    writable: disk.writable,
                })
                .collect(),
            vifs,
            on_poweroff: self.on_poweroff,
            on_reboot: self.on_reboot,
            on_crash: self.on_crash,
            tsc_mode: self.tsc_mode,
        })
    }

    /// A made-up address that no other interface of this guest has.
    fn fresh_mac(&self, made: &[Vif]) -> std::io::Result<[u8; 6]> {
        loop {
            let [a, b, c] = random()?;
            // libxl keeps the top bit clear too.
            let mac = [XEN_OUI[0], XEN_OUI[1], XEN_OUI[2], a & 0x7f, b, c];
            let set = self.vifs.iter().any(|vif| vif.mac == Some(mac));
            if !set && made.iter().all(|vif| vif.mac != mac) {
                return Ok(mac);
            }
        }
    }
}

/// A version 4 UUID (RFC 9562).
fn random_uuid() -> std::io::Result<[u8; 16]> {
    let mut uuid: [u8; 16] = random()?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
