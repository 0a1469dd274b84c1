//! Integration tests: stock Xen, Closer, stock Linux guests.
//!
//! A group shares one bed; its tests run in sequence, each leaves the host empty. A test
//! may restart the host. Groups whose machine differs have a bed of their own.

mod badinput;
mod boot;
mod console;
mod data;
mod idle;
mod kernel;
mod leak;
mod life;
mod machines;
mod network;
mod store;

use crate::bed::free_port;
use crate::lab::Lab;
use crate::qemu::{BedOptions, Forward};
use crate::report::Outcome;
use anyhow::Result;

/// Tests that share a bed.
#[derive(Debug)]
pub struct Group {
    /// For `--only` and the logs' folder.
    pub name: &'static str,
    /// The machine.
    pub options: fn() -> Result<BedOptions>,
    /// In the order they are run.
    pub tests: &'static [Test],
}

/// One test.
#[derive(Debug)]
pub struct Test {
    /// For `--only`.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Lab) -> Result<Outcome>,
}

/// All groups, those that take longest first: two beds run side by side.
pub const GROUPS: &[Group] = &[
    Group {
        name: "leak",
        options: ordinary,
        tests: leak::TESTS,
    },
    Group {
        name: "boot",
        options: ordinary,
        tests: boot::TESTS,
    },
    Group {
        name: "life",
        options: ordinary,
        tests: life::TESTS,
    },
    Group {
        name: "badinput",
        options: ordinary,
        tests: badinput::TESTS,
    },
    Group {
        name: "idle",
        options: ordinary,
        tests: idle::TESTS,
    },
    Group {
        name: "network",
        options: network::options,
        tests: network::TESTS,
    },
    Group {
        name: "data",
        options: ordinary,
        tests: data::TESTS,
    },
    Group {
        name: "console",
        options: ordinary,
        tests: console::TESTS,
    },
    Group {
        name: "iommu",
        options: machines::iommu,
        tests: machines::TESTS,
    },
    Group {
        name: "xen-4.17",
        options: machines::old_xen,
        tests: machines::OLD_XEN_TESTS,
    },
    Group {
        name: "one-socket",
        options: machines::one_socket,
        tests: machines::ONE_SOCKET_TESTS,
    },
    Group {
        name: "store",
        options: ordinary,
        tests: store::TESTS,
    },
    Group {
        name: "kernel",
        options: unpinned,
        tests: kernel::TESTS,
    },
];

/// Two sockets of two cores.
fn ordinary() -> Result<BedOptions> {
    Ok(BedOptions::default())
}

/// The same with Closer's vCPUs where Xen likes, as a host boots whose administrator says
/// nothing of them: the kernel pins them itself.
fn unpinned() -> Result<BedOptions> {
    Ok(BedOptions {
        xen_args: UNPINNED.into(),
        ..BedOptions::default()
    })
}

/// Takes back what the bed tells Xen before.
const UNPINNED: &str = "dom0_vcpus_pin=0";

/// The same with a port of this machine that reaches port `port` of `address`.
fn forwarding(address: &str, port: u16) -> Result<BedOptions> {
    let forward = Forward {
        host_port: free_port()?,
        address: address.to_owned(),
        port,
    };
    Ok(BedOptions {
        forward: vec![forward],
        ..BedOptions::default()
    })
}

/// A pass without a remark.
fn passed() -> Result<Outcome> {
    Ok(Outcome::Passed(String::new()))
}
