//! The xenstore nodes of a guest and its devices, as data.
//!
//! What stock libxl writes (libxl__domain_make, libxl__build_post,
//! libxl__device_generic_add) and docs/misc/xenstore-paths.pandoc describes, without
//! `/libxl`, which is that program's own. Write them in order, in one transaction;
//! a guest that was there before under the same number must be gone.

use crate::build::Built;
use crate::config::{Disk, GuestConfig, GuestType, Vif};
use crate::vdev;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use xen_abi::DomId;

/// Who may do what with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAccess {
    /// The pVM owns it; the guest may read.
    GuestReads,
    /// The guest owns it; the pVM may read (it may anyway, as dom0).
    GuestOwns,
}

impl NodeAccess {
    /// As xenstore has them: the owner with what everybody else may do, then the others;
    /// `n` none, `r` read.
    pub fn entries(self, pvm: DomId, guest: DomId) -> [(DomId, char); 2] {
        match self {
            Self::GuestReads => [(pvm, 'n'), (guest, 'r')],
            Self::GuestOwns => [(guest, 'n'), (pvm, 'r')],
        }
    }
}

/// A node to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Absolute.
    pub path: String,
    /// Empty for mere directories, too.
    pub value: String,
    /// Its permissions; set them even if it exists.
    pub access: NodeAccess,
}

/// `/local/domain/<id>`
pub fn home(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}

/// `/vm/<uuid>`
pub fn vm_path(uuid: &[u8; 16]) -> String {
    format!("/vm/{}", uuid_text(uuid))
}

/// A UUID as xl prints it.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Collects nodes below one directory.
struct Dir {
    path: String,
    access: NodeAccess,
    nodes: Vec<Node>,
}

impl Dir {
    fn new(path: String, access: NodeAccess) -> Self {
        let mut dir = Self {
            path,
            access,
            nodes: Vec::new(),
        };
        dir.nodes.push(Node {
            path: dir.path.clone(),
            value: String::new(),
            access,
        });
        dir
    }

    fn put_as(&mut self, access: NodeAccess, name: &str, value: impl ToString) {
        self.nodes.push(Node {
            path: format!("{}/{name}", self.path),
            value: value.to_string(),
            access,
        });
    }

    fn put(&mut self, name: &str, value: impl ToString) {
        self.put_as(self.access, name, value);
    }
}

/// The nodes of a guest that was just built; those of its devices are in
/// [`vbd_nodes`] and [`vif_nodes`].
pub fn guest_nodes(config: &GuestConfig, built: &Built) -> Vec<Node> {
    const OWNED_BY_GUEST: [&str; 5] = [
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
    ];
    let vm = vm_path(&config.uuid);
    let memory_kib = u64::from(config.memory_mib) * 1024;

    let mut vm_dir = Dir::new(vm.clone(), NodeAccess::GuestReads);
    vm_dir.put("uuid", uuid_text(&config.uuid));
    vm_dir.put("name", &config.name);
    vm_dir.put("image", "");
    vm_dir.put(
        "image/ostype",
        match config.kind {
            GuestType::Pv => "linux",
            GuestType::Pvh => "pvh",
        },
    );
    vm_dir.put("image/cmdline", &config.cmdline);

    let mut dir = Dir::new(home(built.domain), NodeAccess::GuestReads);
    dir.put("vm", &vm);
    dir.put("name", &config.name);
    dir.put("domid", built.domain);
    dir.put("cpu", "");
    for vcpu in 0..config.max_vcpus {
        dir.put(&format!("cpu/{vcpu}"), "");
        dir.put(
            &format!("cpu/{vcpu}/availability"),
            if vcpu < config.vcpus {
                "online"
            } else {
                "offline"
            },
        );
    }
    dir.put("memory", "");
    dir.put("memory/static-max", memory_kib);
    dir.put("memory/target", memory_kib);
    dir.put("memory/videoram", 0);
    dir.put("device", "");
    dir.put_as(NodeAccess::GuestOwns, "device/suspend/event-channel", "");
    dir.put("control", "");
    for name in OWNED_BY_GUEST {
        dir.put_as(NodeAccess::GuestOwns, name, "");
    }
    dir.put("control/platform-feature-multiprocessor-suspend", 1);
    dir.put("control/platform-feature-xs_reset_watches", 1);
    for name in ["data", "drivers", "feature", "attr", "error"] {
        dir.put_as(NodeAccess::GuestOwns, name, "");
    }
    dir.put("store", "");
    dir.put("store/port", built.store_port);
    dir.put("store/ring-ref", built.store_frame);
    // The primary console: no state machine, and nothing in it is the guest's.
    dir.put("console", "");
    dir.put("console/port", built.console_port);
    dir.put("console/ring-ref", built.console_frame);
    dir.put("console/limit", 1_048_576);
    dir.put("console/type", "xenconsoled");
    dir.put("console/output", "pty");
    dir.put("console/tty", "");

    let mut nodes = vm_dir.nodes;
    nodes.append(&mut dir.nodes);
    nodes
}

/// Both ends of a device: the paths of its directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePaths {
    /// In the guest's home.
    pub frontend: String,
    /// In the home of the domain that serves it.
    pub backend: String,
}

impl DevicePaths {
    /// Of device `number` of a kind (`vbd`, `vif`).
    pub fn new(kind: &str, backend: DomId, guest: DomId, number: u32) -> Self {
        Self {
            frontend: format!("{}/device/{kind}/{number}", home(guest)),
            backend: format!("{}/backend/{kind}/{guest}/{number}", home(backend)),
        }
    }

    /// Its two directories with what every device has.
    fn dirs(&self, backend: DomId, guest: DomId) -> (Dir, Dir) {
        // XenbusStateInitialising
        const INITIALISING: u32 = 1;
        let mut front = Dir::new(self.frontend.clone(), NodeAccess::GuestOwns);
        front.put("backend", &self.backend);
        front.put("backend-id", backend);
        front.put("state", INITIALISING);
        let mut back = Dir::new(self.backend.clone(), NodeAccess::GuestReads);
        back.put("frontend", &self.frontend);
        back.put("frontend-id", guest);
        back.put("online", 1);
        back.put("state", INITIALISING);
        (front, back)
    }
}

/// Nodes of a disk, served by `backend`. `None`: its `vdev` is no name of a disk.
///
/// What the backend finds out itself (`sectors`, `feature-*`) it writes itself.
pub fn vbd_nodes(backend: DomId, guest: DomId, disk: &Disk) -> Option<Vec<Node>> {
    let number = vdev::device_number(&disk.vdev)?;
    let (mut front, mut back) =
        DevicePaths::new("vbd", backend, guest, number).dirs(backend, guest);
    front.put("virtual-device", number);
    front.put("device-type", "disk");
    // A frontend need not bounce its data because of us.
    front.put_as(NodeAccess::GuestReads, "trusted", 1);
    back.put("removable", 0);
    back.put("bootable", 1);
    back.put("dev", &disk.vdev);
    back.put("type", "phy");
    back.put("params", &disk.volume);
    back.put("mode", if disk.writable { "w" } else { "r" });
    back.put("device-type", "disk");
    Some(both(front, back))
}

/// Nodes of network device `handle` (its place in the configuration), served by
/// `backend`.
pub fn vif_nodes(backend: DomId, guest: DomId, handle: u32, vif: &Vif) -> Vec<Node> {
    let (mut front, mut back) =
        DevicePaths::new("vif", backend, guest, handle).dirs(backend, guest);
    let [a, b, c, d, e, f] = vif.mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    front.put("handle", handle);
    front.put("mac", &mac);
    front.put_as(NodeAccess::GuestReads, "mtu", vif.mtu);
    front.put_as(NodeAccess::GuestReads, "trusted", 1);
    back.put("mac", &mac);
    back.put("handle", handle);
    back.put("mtu", vif.mtu);
    back.put("type", "vif");
    both(front, back)
}

/// Backend first: a frontend that sees its own directory must find the other.
fn both(front: Dir, mut back: Dir) -> Vec<Node> {
    back.nodes.extend(front.nodes);
    back.nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(nodes: &'a [Node], path: &str) -> Option<&'a str> {
        nodes
            .iter()
            .find(|node| node.path == path)
            .map(|node| node.value.as_str())
    }

    #[test]
    fn both_ends_of_a_disk_point_at_each_other() {
        let disk = Disk {
            volume: String::from("root"),
            vdev: String::from("xvda"),
            writable: false,
        };
        let nodes = vbd_nodes(DomId(0), DomId(7), &disk).unwrap();
        let front = "/local/domain/7/device/vbd/51712";
        let back = "/local/domain/0/backend/vbd/7/51712";
        assert_eq!(value(&nodes, &format!("{front}/backend")), Some(back));
        assert_eq!(value(&nodes, &format!("{back}/frontend")), Some(front));
        assert_eq!(value(&nodes, &format!("{back}/mode")), Some("r"));
        assert_eq!(value(&nodes, &format!("{back}/frontend-id")), Some("7"));
        assert_eq!(value(&nodes, &format!("{front}/backend-id")), Some("0"));
        let bad = Disk {
            vdev: String::from("nothing"),
            ..disk
        };
        assert_eq!(vbd_nodes(DomId(0), DomId(7), &bad), None);
    }

    #[test]
    fn a_guest_owns_its_frontends_and_nothing_of_a_backend() {
        let vif = Vif {
            mac: [0, 0x16, 0x3e, 1, 2, 0xff],
            mtu: 1500,
        };
        let nodes = vif_nodes(DomId(3), DomId(7), 1, &vif);
        for node in &nodes {
            if node.path.starts_with("/local/domain/3/") {
                assert_eq!(node.access, NodeAccess::GuestReads, "{}", node.path);
            }
        }
        let state = nodes
            .iter()
            .find(|node| node.path == "/local/domain/7/device/vif/1/state");
        assert_eq!(state.unwrap().access, NodeAccess::GuestOwns);
        let mac = "/local/domain/7/device/vif/1/mac";
        assert_eq!(value(&nodes, mac), Some("00:16:3e:01:02:ff"));
    }

    #[test]
    fn parents_come_before_children_and_no_node_twice() {
        let disk = Disk {
            volume: String::from("v"),
            vdev: String::from("xvdb"),
            writable: true,
        };
        let nodes = vbd_nodes(DomId(0), DomId(1), &disk).unwrap();
        for (i, node) in nodes.iter().enumerate() {
            assert!(!nodes[..i].iter().any(|other| other.path == node.path));
            assert!(
                !nodes[..i]
                    .iter()
                    .any(|other| other.path.starts_with(&format!("{}/", node.path)))
            );
        }
    }

    #[test]
    fn a_uuid_is_printed_in_groups() {
        let uuid = core::array::from_fn(|i| u8::try_from(i * 16).unwrap());
        assert_eq!(uuid_text(&uuid), "00102030-4050-6070-8090-a0b0c0d0e0f0");
    }
}
