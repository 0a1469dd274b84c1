//! The test bed's machine as a typed QEMU command.
//!
//! A two-socket q35 under TCG with a NUMA node a socket, an NVMe disk, an igb NIC on
//! user networking, and Xen's serial console in a file. PCI addresses are fixed, so
//! that a boot archive may name a NIC by its address; an igb takes the slot behind its
//! own as well (its virtual functions' numbers follow from its own).

use crate::setup::XenVersion;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum, value_parser};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// Network that QEMU's user networking makes: the outside is `10.0.2.2`.
pub const HOST_ADDRESS: &str = "10.0.2.2";
/// The pVM's management address.
pub const PVM_ADDRESS: &str = "10.0.2.10";

/// The NIC's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Nic {
    /// Intel 82576.
    Igb,
    /// Intel 82574L; Closer has no driver for it, and halts saying so.
    E1000e,
    /// virtio-net over PCI; no driver either.
    Virtio,
}

/// The disk's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiskModel {
    /// NVMe.
    Nvme,
    /// virtio-blk over PCI; Closer has no driver for it, and is up without storage.
    Virtio,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// There.
    On,
    /// Not there.
    Off,
}

/// A port of this machine that reaches a guest: `HOSTPORT:GUESTIP:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Port on this machine's 127.0.0.1.
    pub host_port: u16,
    /// Address of the guest on the bed's network.
    pub address: String,
    /// The guest's port.
    pub port: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [host_port, address, port] = parts.as_slice() else {
            bail!("{text} is not HOSTPORT:GUESTIP:PORT");
        };
        ensure!(
            address.parse::<std::net::Ipv4Addr>().is_ok(),
            "{address} is not an IPv4 address"
        );
        Ok(Self {
            host_port: host_port
                .parse()
                .with_context(|| format!("{host_port} is not a port"))?,
            address: (*address).to_owned(),
            port: port
                .parse()
                .with_context(|| format!("{port} is not a port"))?,
        })
    }
}

/// What the bed's machine is made of.
#[derive(Clone, Debug, Args)]
pub struct BedOptions {
    /// Processor sockets, each a NUMA node
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=16))]
    pub sockets: u32,
    /// Cores of each socket
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=16))]
    pub cores: u32,
    /// Memory of each node, in MiB
    #[arg(long, default_value_t = 3072, value_parser = value_parser!(u32).range(256..=65536))]
    pub node_mb: u32,
    /// Model of the first NIC
    #[arg(long, value_enum, default_value_t = Nic::Igb)]
    pub nic: Nic,
    /// A second NIC, on a network of its own (10.0.3.0/24)
    #[arg(long, value_enum)]
    pub nic2: Option<Nic>,
    /// Model of the disk
    #[arg(long, value_enum, default_value_t = DiskModel::Nvme)]
    pub disk: DiskModel,
    /// Size of the disk, in MiB; a disk that is there keeps its size and contents
    #[arg(long, default_value_t = 8192)]
    pub disk_size: u64,
    /// One more NVMe disk, of this many MiB (may be given again)
    #[arg(long)]
    pub extra_disk: Vec<u64>,
    /// An AMD IOMMU with interrupt remapping
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub iommu: Switch,
    /// Version of Xen
    #[arg(long, value_enum, default_value_t = XenVersion::V4_20)]
    pub xen: XenVersion,
    /// dom0_mem= of Xen's command line
    #[arg(long, default_value = "64M")]
    pub dom0_mem: String,
    /// More of Xen's command line
    #[arg(long, default_value = "")]
    pub xen_args: String,
    /// More of the pVM's command line
    #[arg(long, default_value = "")]
    pub pvm_args: String,
    /// A guest that the boot archive names to be started (may be given again)
    #[arg(long, value_name = "NAME")]
    pub guest: Vec<String>,
    /// A port of this machine that reaches a guest (may be given again)
    #[arg(long, value_name = "HOSTPORT:GUESTIP:PORT")]
    pub forward: Vec<Forward>,
    /// Another pVM image than the one that is built
    #[arg(long, hide = true)]
    pub pvm: Option<PathBuf>,
    /// Let the machine reset when Xen asks for it, instead of ending QEMU
    #[arg(long)]
    pub allow_reset: bool,
}

impl Default for BedOptions {
    fn default() -> Self {
        Self {
            sockets: 2,
            cores: 2,
            node_mb: 3072,
            nic: Nic::Igb,
            nic2: None,
            disk: DiskModel::Nvme,
            disk_size: 8192,
            extra_disk: Vec::new(),
            iommu: Switch::Off,
            xen: XenVersion::V4_20,
            dom0_mem: "64M".to_owned(),
            xen_args: String::new(),
            pvm_args: String::new(),
            guest: Vec::new(),
            forward: Vec::new(),
            pvm: None,
            allow_reset: false,
        }
    }
}

/// Files that one running machine uses, all in its folder.
#[derive(Clone, Debug)]
pub struct BedFiles {
    /// The folder.
    pub dir: PathBuf,
}

impl BedFiles {
    /// Xen's and the pVM's console.
    pub fn serial(&self) -> PathBuf {
        self.dir.join("xen.log")
    }
    /// Where one can type to Xen's console.
    pub fn serial_socket(&self) -> PathBuf {
        self.dir.join("serial")
    }
    /// QEMU's control socket.
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp")
    }
    /// QEMU's process number.
    pub fn pid(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }
    /// What QEMU itself printed.
    pub fn qemu_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }
    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }
    /// Another disk, from 1.
    pub fn extra_disk(&self, number: usize) -> PathBuf {
        self.dir.join(format!("disk{number}.img"))
    }
    /// The CLI's connection file.
    pub fn host_file(&self) -> PathBuf {
        self.dir.join("closer.toml")
    }
    /// The pVM's boot archive.
    pub fn archive(&self) -> PathBuf {
        self.dir.join("boot-archive")
    }
}

/// What Xen boots.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The hypervisor.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// dom0's command line.
    pub cmdline: String,
    /// dom0's one boot module.
    pub module: Option<PathBuf>,
}

/// The whole QEMU command. `rpc` is the port of this machine that reaches the pVM's
/// port `rpc_port`.
pub fn command(
    options: &BedOptions,
    files: &BedFiles,
    boot: &Boot,
    rpc: Option<(u16, u16)>,
) -> Result<Command> {
    let mut qemu = Command::new("qemu-system-x86_64");
    let nodes = options.sockets;
    let cores = options.cores;
    qemu.args(["-accel", "tcg,thread=multi", "-machine", "q35"]);
    // With RDTSCP a PVH domain dies: TCG's SVM gives Xen no instruction length for it.
    qemu.args(["-cpu", "max,-rdtscp"]);
    qemu.arg("-m").arg(format!("{}M", nodes * options.node_mb));
    qemu.arg("-smp").arg(format!(
        "{},sockets={nodes},cores={cores},threads=1",
        nodes * cores
    ));
    for node in 0..nodes {
        let (first, last) = (node * cores, node * cores + cores - 1);
        qemu.arg("-object").arg(format!(
            "memory-backend-ram,id=m{node},size={}M",
            options.node_mb
        ));
        qemu.arg("-numa").arg(format!(
            "node,nodeid={node},cpus={first}-{last},memdev=m{node}"
        ));
    }
    for from in 0..nodes {
        for to in (0..nodes).filter(|to| *to != from) {
            qemu.arg("-numa")
                .arg(format!("dist,src={from},dst={to},val=21"));
        }
    }
    qemu.args([
        "-display",
        "none",
        "-monitor",
        "none",
        "-parallel",
        "none",
        "-nic",
        "none",
    ]);
    qemu.args([
        "-action",
        if options.allow_reset {
            "reboot=reset"
        } else {
            "reboot=shutdown"
        },
    ]);
    // Everything goes to the log; whoever connects to the socket may type to Xen.
    qemu.arg("-chardev").arg(format!(
        "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=off",
        path(&files.serial_socket())?,
        path(&files.serial())?
    ));
    qemu.args(["-serial", "chardev:serial"]);
    qemu.arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", path(&files.qmp())?));
    if options.iommu == Switch::On {
        qemu.args(["-device", "amd-iommu,intremap=on"]);
    }
    add_disks(&mut qemu, options, files)?;
    add_nics(&mut qemu, options, rpc);
    // TCG's XSAVE and XRSTOR do not fault when CR0.TS is set, so that Xen's lazy switching
    // of the FPU, its default on AMD, lets guests take each other's registers.
    let mut xen = format!(
        "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all bootscrub=0 \
         sched_ratelimit_us=0 dom0_mem={mem} dom0_max_vcpus={vcpus} dom0_vcpus_pin \
         spec-ctrl=eager-fpu",
        mem = options.dom0_mem,
        vcpus = nodes * cores,
    );
    for extra in [options.xen_args.as_str()] {
        if !extra.is_empty() {
            xen.push(' ');
            xen.push_str(extra);
        }
    }
    let mut modules = format!(
        "{} {}",
        path(&boot.kernel)?,
        boot.cmdline.replace(',', ",,")
    );
    if let Some(module) = &boot.module {
        modules.push(',');
        modules.push_str(path(module)?);
    }
    qemu.arg("-kernel")
        .arg(&boot.xen)
        .arg("-append")
        .arg(xen)
        .arg("-initrd")
        .arg(modules);
    Ok(qemu)
}

fn add_disks(qemu: &mut Command, options: &BedOptions, files: &BedFiles) -> Result<()> {
    let mut disk = |file: &Path, id: &str, model: DiskModel, slot: usize| -> Result<()> {
        let file = path(file)?;
        qemu.arg("-drive").arg(format!(
            "file={file},if=none,id={id},format=raw,cache=writeback,discard=unmap,detect-zeroes=unmap"
        ));
        let addr = format!("addr={slot:#x}");
        qemu.arg("-device").arg(match model {
            DiskModel::Nvme => format!("nvme,serial={id},drive={id},{addr}"),
            DiskModel::Virtio => format!("virtio-blk-pci,serial={id},drive={id},{addr}"),
        });
        Ok(())
    };
    disk(&files.disk(), "disk0", options.disk, 5)?;
    for number in 1..=options.extra_disk.len() {
        disk(
            &files.extra_disk(number),
            &format!("disk{number}"),
            DiskModel::Nvme,
            9 + number,
        )?;
    }
    Ok(())
}

fn add_nics(qemu: &mut Command, options: &BedOptions, rpc: Option<(u16, u16)>) {
    let mut net = "user,id=n0,net=10.0.2.0/24".to_owned();
    if let Some((here, there)) = rpc {
        net.push_str(&format!(
            ",hostfwd=tcp:127.0.0.1:{here}-{PVM_ADDRESS}:{there}"
        ));
    }
    for Forward {
        host_port,
        address,
        port,
    } in &options.forward
    {
        net.push_str(&format!(
            ",hostfwd=tcp:127.0.0.1:{host_port}-{address}:{port}"
        ));
    }
    let device = |nic: Nic, id: &str, mac: &str, slot: u32| {
        let name = match nic {
            Nic::Igb => "igb",
            Nic::E1000e => "e1000e",
            Nic::Virtio => "virtio-net-pci",
        };
        format!("{name},netdev={id},mac={mac},addr={slot:#x}")
    };
    qemu.arg("-netdev").arg(net);
    qemu.arg("-device")
        .arg(device(options.nic, "n0", "52:54:00:12:34:56", 6));
    if let Some(nic) = options.nic2 {
        qemu.args(["-netdev", "user,id=n1,net=10.0.3.0/24"]);
        qemu.arg("-device")
            .arg(device(nic, "n1", "52:54:00:12:34:57", 8));
    }
}

/// QEMU splits its option strings at commas.
fn path(path: &Path) -> Result<&str> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    ensure!(
        !text.contains([',', ' ']),
        "QEMU cannot take the comma or space in {text}"
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_needs_three_good_parts() {
        let good: Forward = "8080:10.0.2.20:80".parse().unwrap();
        assert_eq!(
            good,
            Forward {
                host_port: 8080,
                address: "10.0.2.20".to_owned(),
                port: 80
            }
        );
        for bad in [
            "",
            "8080:80",
            "8080:guest:80",
            "x:10.0.2.20:80",
            "8080:10.0.2.20:70000",
        ] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }

    #[test]
    fn commas_of_the_pvm_command_line_are_doubled_for_qemu() {
        let files = BedFiles {
            dir: PathBuf::from("/b"),
        };
        let boot = Boot {
            xen: "/xen".into(),
            kernel: "/pvm".into(),
            cmdline: "a=1,2".to_owned(),
            module: Some("/archive".into()),
        };
        let command = command(&BedOptions::default(), &files, &boot, None).unwrap();
        let args: Vec<String> = command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        assert!(
            args.contains(&"/pvm a=1,,2,/archive".to_owned()),
            "{args:?}"
        );
    }
}
