//! A guest's domain: starting it, ending it, and what follows when it ends by itself.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

use hal::VcpuId;
use toolstack_domain::build::{self, BuildError, Built, Placement};
use toolstack_domain::config::{GuestConfig, GuestType};
use toolstack_domain::destroy;
use toolstack_domain::hypercalls::NodeId;
use toolstack_domain::info::ShutdownReason;
use toolstack_domain::lifecycle::{Next, RestartBrake, after_shutdown};
use toolstack_domain::placement::{self, Own, PlacementError, Request};
use toolstack_rpc::RpcError;
use xen_abi::xen::virq;
use xen_abi::{DomId, EvtchnPort, PAGE_SIZE};

use super::{Created, Guest, Heritage, Running, one_node};
use crate::event::Port;
use crate::exec;
use crate::grants;
use crate::mem::{self, ForeignMap};
use crate::services::devices::{Devices, StillHeld};
use crate::services::host::{Host, failed, refused};
use crate::services::nodes;
use crate::time;

/// How long Xen may take to end a domain whose memory nobody maps any more.
const END_LIMIT_MS: u32 = 30_000;

/// Builds the guest's domain, its devices and rings, and lets it run unless `paused`.
/// Whatever fails, nothing of the domain is left; what the guest has of its volumes it keeps.
pub(super) async fn start(
    host: &Rc<Host>,
    guest: &Rc<Guest>,
    paused: bool,
) -> Result<Created, RpcError> {
    // Its name stays while we have the guest's turn.
    let config = &guest.config.borrow().clone();
    let began = time::now_ns();
    let storage = host.storage.as_ref().ok_or(RpcError::NoDisk {
        place: toolstack_rpc::error::Place::Images,
    })?;
    // One that restarts has them already.
    let claimed = guest.claims.borrow().len();
    for disk in config.disks.iter().skip(claimed) {
        let claim = storage.claim(&disk.volume, guest.clone(), disk.writable);
        let claim = claim.await?;
        guest.claims.borrow_mut().push(claim);
    }
    let placing = host.guests.placing.lock().await;
    let placement = place(host, config)?;
    *guest.placement.borrow_mut() = Some(placement.clone());
    let mut images = storage.images();
    let built = build::build(host.xen, config, &placement, &mut images, placing).await;
    if built.is_err() {
        *guest.placement.borrow_mut() = None;
    }
    let built = built.map_err(unbuilt)?;
    let domid = built.domain;
    log::info!("{guest}: domain {domid} built: {placement}");
    let node = one_node(&placement);
    *guest.running.borrow_mut() = Some(Running {
        domid,
        rings: Vec::new(),
        devices: Devices::default(),
        ended: false,
    });
    guest.started_ns.set(time::now_ns());
    let joined = join(host, guest, config, &built, &placement);
    let started = joined.and_then(|()| {
        if paused {
            Ok(())
        } else {
            host.xen.unpause_domain(domid).map_err(refused)
        }
    });
    if let Err(error) = started {
        if let Err(more) = end(host, guest).await {
            log::error!("{guest}: half made, and: {more}");
        }
        return Err(error);
    }
    log::info!(
        "{guest}: domain {domid} started, {} ms",
        (time::now_ns() - began) / 1_000_000
    );
    Ok(Created { domid, node })
}

/// Finds the place for a guest, for who has [`Guests::placing`](super::Guests).
fn place(host: &Host, config: &GuestConfig) -> Result<Placement, RpcError> {
    let facts = host.facts()?;
    let usable = facts.cpus.len() - host.mc_cpus.len();
    let present = u32::try_from(usable).unwrap_or(u32::MAX);
    if config.max_vcpus > present {
        return Err(RpcError::NotEnoughCpus {
            asked: config.max_vcpus,
            present,
        });
    }
    if config.kind == GuestType::Pvh && !facts.pvh {
        let what = "PVH guests: no hardware virtualisation with nested paging";
        return Err(RpcError::Unsupported { what: what.into() });
    }
    let guests = host.guests.all();
    let placed: Vec<_> = guests.iter().map(|g| g.placement.borrow()).collect();
    let pins = placed.iter().flat_map(|p| p.iter()).flat_map(|p| &p.pins);
    let own = mem::counts();
    let heap = host.guests.heap_pages();
    let free = placement::Host::new(&facts, &host.mc_cpus, pins.map(Vec::as_slice))
        .without(|node| own_on(host, &own, heap, node));
    placement::place(&free, &Request::of(config)).map_err(|error| unplaced(error, config, present))
}

/// What we have and may need on a node. The heap is on the first, if it can be.
fn own_on(host: &Host, counts: &[mem::NodeCount], heap: u64, node: NodeId) -> Own {
    let here = |vcpu: &(VcpuId, hal::Node)| vcpu.1.0 == node.0;
    Own {
        vcpus: host
            .topology
            .service_vcpus()
            .iter()
            .filter(|v| here(v))
            .count() as u64,
        heap: if node.0 == 0 { heap } else { 0 },
        pages: counts.get(node.0 as usize).map_or(0, |count| count.total),
    }
}

/// Makes the domain known to xenstore, serves its rings, adds its devices.
fn join(
    host: &Rc<Host>,
    guest: &Rc<Guest>,
    config: &GuestConfig,
    built: &Built,
    placement: &Placement,
) -> Result<(), RpcError> {
    let domid = built.domain;
    nodes::write(host, config, built)?;
    let open = |frame: u64, port: EvtchnPort| -> Result<_, RpcError> {
        let map =
            ForeignMap::new(domid, &[frame], true).map_err(|e| failed("mapping a ring", e))?;
        let port =
            Port::bind_interdomain(domid, port).map_err(|e| failed("binding a ring's port", e))?;
        Ok((map.into_shared(), port))
    };
    let mut guard = guest.running.borrow_mut();
    let running = guard
        .as_mut()
        .ok_or_else(|| failed("joining", "the domain is gone"))?;
    let (page, port) = open(built.store_frame, built.store_port)?;
    let store = host.store.clone().serve(domid, page, port);
    running
        .rings
        .push(exec::spawn_local_for(&guest.account, store));
    let (page, port) = open(built.console_frame, built.console_port)?;
    let console = guest.console.clone().serve(page, port, domid);
    running
        .rings
        .push(exec::spawn_local_for(&guest.account, console));
    let claims = guest.claims.borrow();
    running
        .devices
        .start(host, config, domid, placement, &claims, &guest.account)
}

/// Ends the guest's domain, if it has one: devices first, then its memory, then Xen's part.
pub(super) async fn end(host: &Rc<Host>, guest: &Rc<Guest>) -> Result<(), RpcError> {
    let Some(domid) = guest.domid() else {
        return Ok(());
    };
    // A guest that still runs would see its devices go.
    if let Err(error) = host.xen.pause_domain(domid) {
        log::warn!("{guest}: {error}");
    }
    // It stays listed, and its name taken, until nothing of it is left.
    if let Some(running) = guest.running.borrow_mut().as_mut() {
        running.ended = true;
    }
    end_devices(guest)
        .await
        .map_err(|held| failed(&format!("destroying {guest}"), held))?;
    let take = |running: &mut Running| core::mem::take(&mut running.rings);
    let rings = guest.running.borrow_mut().as_mut().map(take);
    for ring in rings.into_iter().flatten() {
        ring.cancel();
        if let Ok(()) = ring.await {
            log::debug!("domain {domid}: a ring had been given up before");
        }
    }
    // If Xen does not let go of it, it stays listed, and can be destroyed again.
    end_domain(host, domid)
        .await
        .map_err(|error| failed("destroy", error))?;
    host.store.with(|server| server.domain_released(domid));
    nodes::remove(host, domid);
    *guest.running.borrow_mut() = None;
    *guest.placement.borrow_mut() = None;
    Ok(())
}

/// Ends the devices of the guest's domain. Those that do not end stay its devices, and it can
/// be tried again.
async fn end_devices(guest: &Guest) -> Result<(), StillHeld> {
    let take = |running: &mut Running| core::mem::take(&mut running.devices);
    let Some(mut devices) = guest.running.borrow_mut().as_mut().map(take) else {
        return Ok(());
    };
    let ended = devices.end().await;
    if let Some(running) = guest.running.borrow_mut().as_mut() {
        running.devices = devices;
    }
    ended
}

/// Takes the domain down and waits until Xen has let go of it. Its memory is free then, and
/// Xen erases each page of it before anybody gets it.
///
/// Clearing a PVH guest's memory ourselves and giving it back page by page
/// ([`destroy::clear_node`]) leaves nothing to be erased later; but it cost 200 us a page on
/// the test bed, 10 s for 192 MiB, where this takes a fraction of a second.
async fn end_domain(host: &Host, domid: DomId) -> Result<(), destroy::DestroyError> {
    let began = time::now_ns();
    destroy::end(&host.xen, domid, END_LIMIT_MS).await?;
    log::info!(
        "domain {domid} ended, {} ms; {} grants mapped for all others",
        (time::now_ns() - began) / 1_000_000,
        grants::mapped()
    );
    Ok(())
}

/// Waits for Xen to say that some domain ended, and deals with those that did.
pub(super) async fn follow(host: Rc<Host>) {
    let port = match Port::bind_virq(virq::DOM_EXC) {
        Ok(port) => port,
        Err(errno) => return log::error!("guests: no news of their end: VIRQ_DOM_EXC: {errno}"),
    };
    loop {
        for guest in host.guests.all() {
            let Some(domid) = guest.domid() else { continue };
            let reason = match host.xen.domain_info(domid) {
                Ok(Some(info)) => info.shutdown,
                // Ended behind our back: clear up as after a crash.
                Ok(None) => Some(ShutdownReason::Crash),
                Err(error) => {
                    log::error!("domain {domid}: {error}");
                    continue;
                }
            };
            let Some(reason) = reason else { continue };
            let fresh = guest
                .running
                .borrow_mut()
                .as_mut()
                .is_some_and(|r| !core::mem::replace(&mut r.ended, true));
            if fresh {
                exec::spawn_local(ended(host.clone(), guest, domid, reason));
            }
        }
        port.wait().await;
    }
}

async fn ended(host: Rc<Host>, guest: Rc<Guest>, domid: DomId, reason: ShutdownReason) {
    let mut turn = guest.turn.lock().await;
    // An administrator may have ended or restarted it in the meantime.
    if *turn || guest.domid() != Some(domid) {
        return;
    }
    let next = after_shutdown(reason, &guest.config.borrow());
    log::info!("{guest}: domain {domid} ended: {reason:?}; {next:?}");
    host.store.with(|server| server.domain_shutdown(domid));
    if next == Next::Preserve {
        return;
    }
    if next == Next::RenameRestart {
        if host.guests.is_leaving() || !may_restart(&guest) {
            // Each would leave a domain behind: the last one is kept as it is.
            return;
        }
        return rename_and_restart(&host, &guest, domid).await;
    }
    // Before the end, which may take time that the guest did not live.
    let restart = next == Next::Restart && !host.guests.is_leaving() && may_restart(&guest);
    if let Err(error) = end(&host, &guest).await {
        return log::error!("{guest}: {error}");
    }
    if restart {
        guest.console.note(&format!("closer: {guest} restarts"));
        match start(&host, &guest, false).await {
            Ok(_) => return,
            Err(error) => log::error!("{guest}: cannot be restarted: {error}"),
        }
    }
    if guest.domid().is_some() {
        // Half made, and Xen did not let go of it: it stays listed, to be destroyed.
        return;
    }
    // While the name is still taken.
    host.guests.forget_definition(&host, &guest.name()).await;
    *turn = true;
    host.guests.forget(&host, &guest);
}

/// Asks the guest's brake.
fn may_restart(guest: &Guest) -> bool {
    let lived = time::now_ns() - guest.started_ns.get();
    let mut brake = guest.brake.get();
    let may = brake.may_restart(lived);
    guest.brake.set(brake);
    if !may {
        let why = format!(
            "{guest} ended {} times within {} s of its start: it is not started again",
            RestartBrake::MOST_SHORT_LIVES,
            RestartBrake::SHORT_LIFE_NS / 1_000_000_000
        );
        log::error!("{why}");
        guest.console.note(&format!("closer: {why}"));
    }
    may
}

/// Keeps a domain that ended under another name, for somebody to look at, without its
/// devices and volumes, which the new one needs; and starts the configuration anew.
async fn rename_and_restart(host: &Rc<Host>, guest: &Rc<Guest>, domid: DomId) {
    let config = guest.config.borrow().clone();
    let name = &config.name;
    if let Err(held) = end_devices(guest).await {
        return log::error!("guest {name}: not restarted: {held}");
    }
    guest.kept.set(true);
    // Nobody comes between the choice of the name, its use, and the new guest's.
    let kept_as = host.guests.kept_name(name, domid);
    if let Err(error) = host.guests.rename(host, guest, kept_as) {
        guest.kept.set(false);
        return log::error!("guest {name}: not restarted: {error}");
    }
    let heritage = Heritage {
        brake: guest.brake.get(),
        claims: guest.claims.take(),
    };
    let made = host
        .guests
        .create_with(host, config.clone(), false, Some(heritage));
    if let Err(error) = made.await {
        log::error!("guest {name}: cannot be restarted: {error}");
    }
}

fn unplaced(error: PlacementError, config: &GuestConfig, present: u32) -> RpcError {
    let mib = |pages: u64| (pages * PAGE_SIZE as u64) >> 20;
    match error {
        PlacementError::Memory { asked, free } => RpcError::NotEnoughMemory {
            asked_mib: mib(asked),
            free_mib: free.iter().map(|(_, pages)| mib(*pages)).collect(),
        },
        PlacementError::NoCpu => RpcError::NoSuchCpu {
            cpu: config.cpus.first().copied().unwrap_or(0),
            present,
        },
    }
}

fn unbuilt(error: BuildError) -> RpcError {
    match error {
        BuildError::Call(call) => refused(call),
        BuildError::Image(build::ImageError::Missing(id)) => RpcError::NoSuchImage { id },
        BuildError::NoteMissing(_)
        | BuildError::BadNote(_)
        | BuildError::AutoTranslated
        | BuildError::BadSegment { .. } => RpcError::BadKernel {
            why: format!("{error}"),
        },
        BuildError::DoesNotFit { .. } => RpcError::BadConfig {
            key: "memory".into(),
            why: format!("{error}"),
        },
        BuildError::CommandLine { .. } => RpcError::BadConfig {
            key: "cmdline".into(),
            why: format!("{error}"),
        },
        BuildError::Vcpus { .. } => RpcError::BadConfig {
            key: "vcpus".into(),
            why: format!("{error}"),
        },
        other => failed("building the domain", other),
    }
}
