//! Closer's kernel: the privileged VM of a Xen host. This file only wires things together.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod boot;
mod clock;
mod event;
mod exec;
mod firmware;
mod grants;
mod log;
mod mem;
mod panic;
mod pci;
mod pinning;
mod power;
mod rng;
mod selftest;
mod services;
mod sync;
mod time;
mod topology;
mod xen_calls;

use alloc::format;
use alloc::rc::Rc;
use alloc::sync::Arc;

use boot::BootInfo;
use services::guests::Guests;
use services::host::{CALLS, End, Host};
use services::network::Network;
use services::stack::Stack;
use services::storage::Storage;
use services::store::Store;
use toolstack_domain::xen::Xen;
use topology::Topology;
use xen_abi::xen::StartInfo;

/// Where `arch::entry` jumps with Xen's start-info page.
///
/// # Safety
/// Called once by the entry code.
#[expect(unsafe_code, reason = "the entry point's name is the linker's")]
#[unsafe(no_mangle)]
unsafe extern "C" fn kernel_entry(start_info: *const StartInfo) -> ! {
    // SAFETY: passed on from the entry code.
    unsafe { boot::start(start_info, main) }
}

/// The first task, on vCPU 0: brings the host up and leaves its services running.
async fn main(boot: BootInfo) {
    let started_ns = time::now_ns();
    if boot::asks_for_selftest(&boot.command_line) {
        return selftest::run(&boot).await;
    }
    let archive = (!boot.initrd.is_empty()).then_some(boot.initrd);
    let line = boot.command_line.as_bytes();
    let (config, diagnostics) = toolstack_boot::parse_for(boot.vcpus, line, archive);
    for diagnostic in &diagnostics {
        log::announce(format_args!("{diagnostic}"));
    }
    if diagnostics.iter().any(toolstack_boot::Diagnostic::is_fatal) {
        return log::announce(format_args!(
            "halted: the host cannot be managed as it is configured"
        ));
    }
    log::set_level(config.log_level);
    panic::set_action(config.panic_action);
    if !boot.is_dom0 {
        return log::announce(format_args!("halted: driver domains are not supported yet"));
    }
    if !rng::init() {
        return log::announce(format_args!("halted: this processor has no working RDRAND"));
    }
    let xen = match Xen::new(&CALLS) {
        Ok(xen) => xen,
        Err(error) => return log::announce(format_args!("halted: {error}")),
    };
    let facts = match xen.host_facts() {
        Ok(facts) => facts,
        Err(error) => {
            return log::announce(format_args!(
                "halted: Xen says nothing of the host: {error}"
            ));
        }
    };
    let topology = Arc::new(Topology::new(&facts, boot.vcpus, config.mc_cores));

    let acpi = firmware::load();
    mem::set_node_ranges(&firmware::node_map(&acpi).ranges);
    let ecam = Rc::new(pci::Ecam::new(acpi.ecam_ranges()));
    let functions = ecam.functions();
    ::log::info!("pci: {} functions", functions.len());

    let store = Store::start();
    let network = match Network::start(&ecam, &functions, config.nic, &topology).await {
        Ok(network) => network,
        Err(error) => return log::announce(format_args!("halted: {error}")),
    };
    let port = match network.local_port() {
        Ok(port) => port,
        Err(error) => {
            return log::announce(format_args!(
                "halted: nobody could manage this host: its port of the switch: {error}"
            ));
        }
    };
    let storage = Storage::start(&ecam, &functions, &topology).await;
    let (major, minor) = boot.xen_version;
    let host = Rc::new(Host {
        xen,
        xen_version: format!("{major}.{minor}"),
        started_ns,
        mc_cpus: topology.reserved_cpus(),
        topology,
        power: power::Power::from_firmware(&acpi),
        store,
        guests: Guests::default(),
        storage,
        network,
        config,
        end: End::default(),
    });
    exec::spawn_local(Guests::follow(host.clone()));
    let stack = Stack::start(port, host.config.address, host.config.rpc_port, rng::u64());
    exec::spawn_local(services::rpc::serve(host.clone(), stack.clone()));
    stack.up().await;
    log::announce(format_args!("ready"));
    Guests::start_stored(&host).await;
}
