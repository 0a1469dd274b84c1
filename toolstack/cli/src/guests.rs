//! Commands about guests that are there.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use toolstack_domain::config::DomainState;
use toolstack_rpc::message::{DomainInfo, GuestRef, ShutdownKind};
use toolstack_rpc::{Request, Response};

use crate::args::{Global, List, Rename, Shutdown};
use crate::create::type_name;
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// Between two looks at whether a guest is gone.
const POLL: Duration = Duration::from_millis(200);

/// `closer list`
pub fn list(arguments: &List, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let domains = match &arguments.guest {
        None => fetch(&mut session, "list", None)?,
        Some(guest) => {
            let what = format!("list {guest}");
            fetch(&mut session, &what, Some(GuestRef::parse(guest)))?
        }
    };
    if global.json {
        return output::json(&domains.iter().map(to_json).collect());
    }
    print(&domains, arguments.long)
}

fn fetch(
    session: &mut Session,
    what: &str,
    only: Option<GuestRef>,
) -> Result<Vec<DomainInfo>, Failure> {
    match session.call(what, &Request::DomainList { only })? {
        Response::Domains(domains) => Ok(domains),
        _ => Err(session.odd(what)),
    }
}

/// The one guest that is meant.
fn one(session: &mut Session, what: &str, guest: &str) -> Result<DomainInfo, Failure> {
    match fetch(session, what, Some(GuestRef::parse(guest)))?.pop() {
        Some(domain) => Ok(domain),
        None => Err(session.odd(what)),
    }
}

/// `xl list`'s columns, and the node.
fn print(domains: &[DomainInfo], long: bool) -> Result<(), Failure> {
    let mut head = vec!["Name", "ID", "Mem", "VCPUs", "State", "Time(s)", "Node"];
    if long {
        head.extend(["CPUs", "Type", "UUID"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for domain in domains {
        let mut row = vec![
            domain.name.clone(),
            domain.domid.to_string(),
            (domain.memory_kib / 1024).to_string(),
            domain.vcpus.to_string(),
            letters(domain.state).to_owned(),
            format!("{:.1}", seconds(domain.cpu_ns)),
            node(domain),
        ];
        if long {
            row.extend([
                output::cpu_list(&domain.cpus),
                type_name(domain.kind).to_owned(),
                output::uuid(&domain.uuid),
            ]);
        }
        rows.push(row);
    }
    output::table(&rows, &[1, 2, 3, 5])
}

fn node(domain: &DomainInfo) -> String {
    domain
        .node
        .map_or("several".into(), |node| node.to_string())
}

fn to_json(domain: &DomainInfo) -> Value {
    json!({
        "name": domain.name,
        "domid": domain.domid,
        "state": state_name(domain.state),
        "mem_mb": domain.memory_kib / 1024,
        "vcpus": domain.vcpus,
        "cpus": domain.cpus,
        "node": domain.node,
        "cpu_s": seconds(domain.cpu_ns),
        "served_s": seconds(domain.served_ns),
        "uuid": output::uuid(&domain.uuid),
        "type": type_name(domain.kind),
        "max_vcpus": domain.max_vcpus,
        "uptime_s": domain.uptime_s,
    })
}

/// To a millisecond.
fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_millis(nanoseconds / 1_000_000).as_secs_f64()
}

fn state_name(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "running",
        DomainState::Blocked => "blocked",
        DomainState::Paused => "paused",
        DomainState::Shutdown => "shutdown",
        DomainState::Crashed => "crashed",
        DomainState::Dying => "dying",
    }
}

/// As in xl's list.
fn letters(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "r-----",
        DomainState::Blocked => "-b----",
        DomainState::Paused => "--p---",
        DomainState::Shutdown => "---s--",
        DomainState::Crashed => "----c-",
        DomainState::Dying => "-----d",
    }
}

/// Sends a request about each of these guests. One that fails stops nothing: each failure has
/// its line, and the last one is the command's.
fn each(
    session: &mut Session,
    verb: &str,
    guests: &[String],
    request: impl Fn(GuestRef) -> Request,
) -> Result<(), Failure> {
    let mut result = Ok(());
    for guest in guests {
        let what = format!("{verb} {guest}");
        if let Err(failure) = session.call_done(&what, &request(GuestRef::parse(guest)))
            && let Err(earlier) = std::mem::replace(&mut result, Err(failure))
        {
            // Its line; the exit code comes from the last.
            earlier.report();
        }
    }
    result
}

/// `closer destroy`
pub fn destroy(guests: &[String], global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    each(&mut session, "destroy", guests, |guest| {
        Request::DomainDestroy { guest }
    })
}

/// `closer pause`
pub fn pause(guests: &[String], global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    each(&mut session, "pause", guests, |guest| {
        Request::DomainPause { guest }
    })
}

/// `closer unpause`
pub fn unpause(guests: &[String], global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    each(&mut session, "unpause", guests, |guest| {
        Request::DomainUnpause { guest }
    })
}

/// `closer rename`
pub fn rename(arguments: &Rename, global: &Global) -> Result<(), Failure> {
    let what = format!("rename {}", arguments.guest);
    let request = Request::DomainRename {
        guest: GuestRef::parse(&arguments.guest),
        name: arguments.name.clone(),
    };
    Session::open(global)?.call_done(what, &request)
}

/// `closer shutdown`
pub fn shutdown(arguments: &Shutdown, global: &Global) -> Result<(), Failure> {
    ask(arguments, global, "shutdown", ShutdownKind::PowerOff)
}

/// `closer reboot`
pub fn reboot(arguments: &Shutdown, global: &Global) -> Result<(), Failure> {
    ask(arguments, global, "reboot", ShutdownKind::Reboot)
}

fn ask(
    arguments: &Shutdown,
    global: &Global,
    verb: &str,
    kind: ShutdownKind,
) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    // Domids now: a guest that reboots has the same name afterwards.
    let mut domids = Vec::new();
    if arguments.all {
        let domains = fetch(&mut session, verb, None)?;
        let lives = |d: &DomainInfo| {
            !matches!(
                d.state,
                DomainState::Shutdown | DomainState::Crashed | DomainState::Dying
            )
        };
        let domains = domains.into_iter().filter(lives);
        domids.extend(domains.map(|d| (d.name, d.domid)));
    } else {
        for guest in &arguments.guests {
            let what = format!("{verb} {guest}");
            let domain = one(&mut session, &what, guest)?;
            domids.push((domain.name, domain.domid));
        }
    }
    let names: Vec<_> = domids.iter().map(|(name, _)| name.clone()).collect();
    each(&mut session, verb, &names, |guest| {
        Request::DomainShutdown { guest, kind }
    })?;
    if arguments.wait {
        let limit = arguments.timeout.map(Duration::from_secs);
        wait(&mut session, verb, domids, limit)?;
    }
    Ok(())
}

/// Waits until none of these domains lives.
fn wait(
    session: &mut Session,
    verb: &str,
    mut domids: Vec<(String, u16)>,
    limit: Option<Duration>,
) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        let domains = fetch(session, verb, None)?;
        domids.retain(|(_, domid)| {
            domains.iter().any(|d| {
                // One that is preserved does not go away, and does not live either.
                d.domid == *domid
                    && !matches!(d.state, DomainState::Shutdown | DomainState::Crashed)
            })
        });
        let Some((name, _)) = domids.first() else {
            return Ok(());
        };
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            return Err(Failure::new(
                format_args!("{verb} {name}"),
                format_args!("still running after {} s", started.elapsed().as_secs()),
            ));
        }
        thread::sleep(POLL);
    }
}

/// `closer domid`
pub fn domid(guest: &str, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let domain = one(&mut session, &format!("domid {guest}"), guest)?;
    if global.json {
        return output::json(&json!(domain.domid));
    }
    output::line(&domain.domid.to_string())
}

/// `closer domname`
pub fn domname(domid: u16, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let domain = one(
        &mut session,
        &format!("domname {domid}"),
        &domid.to_string(),
    )?;
    if global.json {
        return output::json(&json!(domain.name));
    }
    output::line(&domain.name)
}

/// `closer uptime`
pub fn uptime(guests: &[String], global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let mut domains = Vec::new();
    if guests.is_empty() {
        domains = fetch(&mut session, "uptime", None)?;
    }
    for guest in guests {
        domains.push(one(&mut session, &format!("uptime {guest}"), guest)?);
    }
    if global.json {
        let value = domains
            .iter()
            .map(|d| json!({"name": d.name, "domid": d.domid, "uptime_s": d.uptime_s}))
            .collect();
        return output::json(&value);
    }
    let mut rows = vec![["Name", "ID", "Uptime"].map(str::to_owned).to_vec()];
    rows.extend(domains.into_iter().map(|d| {
        let uptime = output::duration(d.uptime_s);
        vec![d.name, d.domid.to_string(), uptime]
    }));
    output::table(&rows, &[1])
}
