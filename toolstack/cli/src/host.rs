//! Commands about the host itself.

use serde_json::json;
use toolstack_rpc::message::{HostInfo, PowerAction, Space};
use toolstack_rpc::{Request, Response, hello};

use crate::args::{Global, Host, HostCommand};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// Asks the host about itself.
pub fn fetch(session: &mut Session) -> Result<HostInfo, Failure> {
    match session.call("info", &Request::HostInfo)? {
        Response::HostInfo(info) => Ok(*info),
        _ => Err(session.odd("info")),
    }
}

/// `closer info`
pub fn info(global: &Global) -> Result<(), Failure> {
    let info = fetch(&mut Session::open(global)?)?;
    if global.json {
        let space = |space: Option<Space>| {
            space.map(|s| json!({"total_bytes": s.total, "free_bytes": s.free}))
        };
        let nodes: Vec<_> = info
            .nodes
            .iter()
            .map(|n| {
                json!({
                    "node": n.id,
                    "memory_bytes": n.memory,
                    "free_bytes": n.free,
                    "cpus": n.cpus,
                    "closer_used_bytes": n.own_used,
                })
            })
            .collect();
        return output::json(&json!({
            "name": info.name,
            "closer_version": info.closer_version,
            "xen_version": info.xen_version,
            "uptime_s": info.uptime_s,
            "wall_clock_s": info.wall_clock_s,
            "cpus": info.cpus,
            "mc_cpus": info.mc_cpus,
            "memory_bytes": info.memory,
            "free_bytes": info.free_memory,
            "nodes": nodes,
            "closer_memory": {
                "total_bytes": info.own.total,
                "used_bytes": info.own.used,
                "packets_idle_bytes": info.own.packets_idle,
                "heap_held_bytes": info.own.heap_held,
                "heap_used_bytes": info.own.heap_used,
            },
            "closer_cpu": { "vcpu_ns": info.vcpu_ns },
            "guests": info.guests,
            "volumes": space(info.volumes),
            "images": space(info.images),
        }));
    }
    let field = |name: &str, value: String| output::line(&format!("{name:<16} {value}"));
    let space = |space: Option<Space>| {
        space.map_or("no disk".into(), |s| {
            format!("{} free of {}", output::size(s.free), output::size(s.total))
        })
    };
    field("host", info.name)?;
    field("closer", info.closer_version)?;
    field("xen", info.xen_version)?;
    field("uptime", output::duration(info.uptime_s))?;
    field("guests", info.guests.to_string())?;
    field(
        "cpus",
        match &*info.mc_cpus {
            [] => format!("{} (Closer's own work on the guests')", info.cpus),
            own => format!(
                "{} (Closer's own work on {})",
                info.cpus,
                output::cpu_list(own)
            ),
        },
    )?;
    field(
        "memory",
        format!(
            "{} free of {}",
            output::size(info.free_memory),
            output::size(info.memory)
        ),
    )?;
    field(
        "closer's memory",
        format!(
            "{} used of {}; heap {} of {}, kept for packets {}",
            output::size(info.own.used),
            output::size(info.own.total),
            output::size(info.own.heap_used),
            output::size(info.own.heap_held),
            output::size(info.own.packets_idle)
        ),
    )?;
    let ran = info.vcpu_ns.iter();
    let ran: Vec<_> = ran
        .map(|ns| format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1000))
        .collect();
    field("closer's cpu s", ran.join(" "))?;
    field("volumes", space(info.volumes))?;
    field("images", space(info.images))?;
    for node in info.nodes {
        field(
            &format!("node {}", node.id),
            format!(
                "cpus {}, {} free of {}, Closer uses {}",
                output::cpu_list(&node.cpus),
                output::size(node.free),
                output::size(node.memory),
                output::size(node.own_used)
            ),
        )?;
    }
    Ok(())
}

/// `closer host poweroff|reboot`
pub fn power(arguments: &Host, global: &Global) -> Result<(), Failure> {
    let (what, action, force) = match arguments.command {
        HostCommand::Poweroff { force } => ("host poweroff", PowerAction::PowerOff, force),
        HostCommand::Reboot { force } => ("host reboot", PowerAction::Reboot, force),
    };
    let request = Request::HostPower { action, force };
    let mut session = Session::open(global)?;
    session.call_done(what, &request)?;
    let value = json!({"done": what, "host": session.address});
    output::done(global.format(), &value)
}

/// `closer version`
pub fn version(global: &Global) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = hello::VERSION;
    if global.json {
        return output::json(&json!({"closer": version, "protocol": protocol}));
    }
    output::line(&format!("closer {version}, protocol {protocol}"))
}
