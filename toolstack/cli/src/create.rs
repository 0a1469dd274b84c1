//! `closer create`: from an xl.cfg file to a guest.

use std::path::Path;
use std::time::Instant;

use closer::kernel_image::{self, KernelImage};
use closer::xlcfg::{self, XlConfig};
use serde_json::{Value, json};
use toolstack_domain::config::{Action, GuestConfig, GuestType, TscMode};
use toolstack_rpc::message::GuestRef;
use toolstack_rpc::server::check_name;
use toolstack_rpc::{Request, Response};

use crate::args::{Create, Global};
use crate::console;
use crate::failure::{Failure, warn, without_number};
use crate::host;
use crate::images::{self, RamdiskFile};
use crate::output;
use crate::session::Session;

/// All that comes from this machine, checked.
struct Local {
    config: XlConfig,
    kernel: KernelImage,
    ramdisk: Option<RamdiskFile>,
}

/// The command.
pub fn run(arguments: &Create, global: &Global) -> Result<(), Failure> {
    let local = read(arguments, global)?;
    if arguments.dry_run {
        return dry_run(&local, global);
    }
    let Local {
        config,
        kernel,
        mut ramdisk,
    } = local;
    let started = Instant::now();
    // Before the session: a host waits no longer than some seconds for the first request.
    let id = images::hash(kernel.bytes());
    let mut session = Session::open(global)?;
    let what = format!("create {}", config.name);

    // What needs no upload to be refused is refused before one.
    let nodes = if config.cpus.needs_topology() {
        let info = host::fetch(&mut session)?;
        info.nodes.into_iter().map(|n| n.cpus).collect()
    } else {
        Vec::new()
    };
    let guest = config
        .to_guest(
            kernel.kernel(id),
            ramdisk.as_ref().map(|r| r.ramdisk),
            &nodes,
        )
        .map_err(|e| Failure::Line(e.to_string()))?;
    refuse_duplicate(&mut session, &what, &guest.name)?;

    let mut ids = vec![id];
    ids.extend(ramdisk.as_ref().map(|r| r.ramdisk.image));
    let present = images::present(&mut session, ids)?;
    if !present[0] {
        let name = format!("kernel {}", config.kernel.display());
        let bytes = kernel.bytes();
        images::put(&mut session, &name, id, &mut &bytes[..], bytes.len() as u64)?;
    }
    if let (Some(path), Some(file)) = (&config.ramdisk, &mut ramdisk)
        && !present[1]
    {
        images::put_ramdisk(&mut session, path, file)?;
    }
    // Not needed any more, and a console may stay for days.
    drop((kernel, ramdisk));

    let name = guest.name.clone();
    let request = Request::DomainCreate {
        config: guest.into(),
        paused: arguments.paused,
    };
    let (domid, node) = match session.call(&what, &request)? {
        Response::Created { domid, node } => (domid, node),
        _ => return Err(session.odd(&what)),
    };
    if global.json {
        let seconds = started.elapsed().as_secs_f64();
        output::json(&json!({"name": name, "domid": domid, "node": node, "seconds": seconds}))?;
    } else if !arguments.quiet {
        output::line(&format!("created {name}, domid {domid}"))?;
    }
    if arguments.console {
        return console::attach(session, GuestRef::Id(domid), true, None, global.format());
    }
    Ok(())
}

/// Reads and checks what is on this machine.
fn read(arguments: &Create, global: &Global) -> Result<Local, Failure> {
    let (config, warnings) = xlcfg::load(&arguments.file, &arguments.overrides, arguments.strict);
    for warning in warnings {
        warn(warning, global.format());
    }
    let config = config.map_err(|e| Failure::Line(without_number(&e.to_string())))?;
    let file = arguments.file.display();
    check_name(&config.name).map_err(|e| Failure::new(format_args!("{file}: name"), e))?;
    let kernel = open_kernel(&config.kernel, config.kind)?;
    let ramdisk = config
        .ramdisk
        .as_deref()
        .map(images::open_ramdisk)
        .transpose()?;
    Ok(Local {
        config,
        kernel,
        ramdisk,
    })
}

fn open_kernel(path: &Path, kind: GuestType) -> Result<KernelImage, Failure> {
    let kernel = kernel_image::open(path)
        .map_err(|e| Failure::Line(without_number(&format!("kernel {e}"))))?;
    kernel
        .check(kind)
        .map_err(|e| Failure::new(format_args!("kernel {}", path.display()), e))?;
    Ok(kernel)
}

/// A name that is taken is not worth an upload. The host checks again.
fn refuse_duplicate(session: &mut Session, what: &str, name: &str) -> Result<(), Failure> {
    let request = Request::DomainList { only: None };
    match session.call(what, &request)? {
        Response::Domains(domains) if domains.iter().any(|d| d.name == name) => {
            let name = name.to_owned();
            Err(Failure::new(
                what,
                toolstack_rpc::RpcError::GuestExists { name },
            ))
        }
        Response::Domains(_) => Ok(()),
        _ => Err(session.odd(what)),
    }
}

/// Says what would be created, without asking the host.
fn dry_run(local: &Local, global: &Global) -> Result<(), Failure> {
    let Local {
        config,
        kernel,
        ramdisk,
    } = local;
    let id = images::hash(kernel.bytes());
    let mut config = config.clone();
    let cpus_known = !config.cpus.needs_topology();
    if !cpus_known {
        config.cpus = xlcfg::cpus::CpuList::default();
    }
    let guest = config
        .to_guest(kernel.kernel(id), ramdisk.as_ref().map(|r| r.ramdisk), &[])
        .map_err(|e| Failure::Line(e.to_string()))?;
    let mut value = describe(&guest);
    if !cpus_known {
        value["cpus"] = json!("depend on the host");
    }
    if global.json {
        return output::json(&value);
    }
    let Value::Object(fields) = value else {
        return Ok(());
    };
    for (key, value) in fields {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        output::line(&format!("{key:<12} {text}"))?;
    }
    Ok(())
}

fn describe(guest: &GuestConfig) -> Value {
    let action = |action| match action {
        Action::Destroy => "destroy",
        Action::Restart => "restart",
        Action::Preserve => "preserve",
        Action::RenameRestart => "rename-restart",
    };
    let disks: Vec<_> = guest
        .disks
        .iter()
        .map(|d| json!({"volume": d.volume, "vdev": d.vdev, "writable": d.writable}))
        .collect();
    let vifs: Vec<_> = guest
        .vifs
        .iter()
        .map(|v| {
            let mac = v.mac.map(|byte| format!("{byte:02x}")).join(":");
            json!({"mac": mac, "mtu": v.mtu})
        })
        .collect();
    json!({
        "name": guest.name,
        "uuid": output::uuid(&guest.uuid),
        "type": type_name(guest.kind),
        "kernel": output::hex(&guest.kernel.image.0),
        "ramdisk": guest.ramdisk.map(|r| output::hex(&r.image.0)),
        "cmdline": guest.cmdline,
        "memory_mb": guest.memory_mib,
        "vcpus": guest.vcpus,
        "maxvcpus": guest.max_vcpus,
        "cpus": guest.cpus,
        "disk": disks,
        "vif": vifs,
        "on_poweroff": action(guest.on_poweroff),
        "on_reboot": action(guest.on_reboot),
        "on_crash": action(guest.on_crash),
        "tsc_mode": tsc_mode(guest.tsc_mode),
    })
}

fn tsc_mode(mode: TscMode) -> &'static str {
    match mode {
        TscMode::Default => "default",
        TscMode::AlwaysEmulate => "always_emulate",
        TscMode::Native => "native",
    }
}

/// `type` of xl.cfg.
pub fn type_name(kind: GuestType) -> &'static str {
    match kind {
        GuestType::Pv => "pv",
        GuestType::Pvh => "pvh",
    }
}
