//! Commands about guests that are there.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use toolstack_domain::config::DomainState;
use toolstack_rpc::message::{DomainInfo, GuestRef, ShutdownKind};
use toolstack_rpc::{Request, Response, RpcError};

use crate::args::{Global, List, Rename, Shutdown};
use crate::create::type_name;
use crate::failure::Failure;
use crate::output;
use crate::results::Results;
use crate::session::Session;

/// Between two looks at whether a guest is gone.
const POLL: Duration = Duration::from_millis(200);

/// `closer list`
pub fn list(arguments: &List, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let domains = match &arguments.guest {
        None => fetch(&mut session, "list", None)?,
        Some(guest) => {
            vec![one(&mut session, &format!("list {guest}"), guest)?]
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

/// Its domain, for what is asked of that.
fn domid_of(what: &str, domain: &DomainInfo) -> Result<u16, Failure> {
    let (name, state) = (domain.name.clone(), domain.state);
    domain
        .domid
        .ok_or_else(|| Failure::new(what, RpcError::WrongState { name, state }))
}

/// For a person: a guest that is being built has none.
fn id(domain: &DomainInfo) -> String {
    domain.domid.map_or("-".into(), |domid| domid.to_string())
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
            id(domain),
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
        DomainState::Building => "building",
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
        DomainState::Building => "------",
    }
}

/// Sends a request about each of these guests. One that fails stops nothing.
fn each(
    verb: &'static str,
    guests: &[String],
    global: &Global,
    request: impl Fn(GuestRef) -> Request,
) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let mut results = Results::new(verb, "guest");
    for guest in guests {
        let what = format!("{verb} {guest}");
        let result = session.call_done(what, &request(GuestRef::parse(guest)));
        results.push(guest, result);
    }
    results.finish(global.format())
}

/// `closer destroy`
pub fn destroy(guests: &[String], global: &Global) -> Result<(), Failure> {
    each("destroy", guests, global, |guest| Request::DomainDestroy {
        guest,
    })
}

/// `closer pause`
pub fn pause(guests: &[String], global: &Global) -> Result<(), Failure> {
    each("pause", guests, global, |guest| Request::DomainPause {
        guest,
    })
}

/// `closer unpause`
pub fn unpause(guests: &[String], global: &Global) -> Result<(), Failure> {
    each("unpause", guests, global, |guest| Request::DomainUnpause {
        guest,
    })
}

/// `closer rename`
pub fn rename(arguments: &Rename, global: &Global) -> Result<(), Failure> {
    let Rename { guest, name } = arguments;
    let request = Request::DomainRename {
        guest: GuestRef::parse(guest),
        name: name.clone(),
    };
    Session::open(global)?.call_done(format!("rename {guest}"), &request)?;
    let value = json!({"done": "rename", "guest": guest, "name": name});
    output::done(global.format(), &value)
}

/// `closer shutdown`
pub fn shutdown(arguments: &Shutdown, global: &Global) -> Result<(), Failure> {
    ask(arguments, global, "shutdown", ShutdownKind::PowerOff)
}

/// `closer reboot`
pub fn reboot(arguments: &Shutdown, global: &Global) -> Result<(), Failure> {
    ask(arguments, global, "reboot", ShutdownKind::Reboot)
}

/// A guest as it was named, and its domain, or why it was not asked or not seen to go.
type Asked = (String, Result<u16, Failure>);

fn ask(
    arguments: &Shutdown,
    global: &Global,
    verb: &'static str,
    kind: ShutdownKind,
) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    // Domids now: a guest that reboots has the same name afterwards.
    let mut guests: Vec<Asked> = Vec::new();
    if arguments.all {
        let domains = fetch(&mut session, verb, None)?;
        let lives = |d: &DomainInfo| {
            !matches!(
                d.state,
                DomainState::Shutdown | DomainState::Crashed | DomainState::Dying
            )
        };
        let domains = domains.into_iter().filter(lives);
        guests.extend(domains.map(|d| {
            let domid = domid_of(&format!("{verb} {}", d.name), &d);
            (d.name, domid)
        }));
    } else {
        for guest in &arguments.guests {
            let what = format!("{verb} {guest}");
            let domain = one(&mut session, &what, guest);
            guests.push((guest.clone(), domain.and_then(|d| domid_of(&what, &d))));
        }
    }
    for (guest, domid) in &mut guests {
        if let Ok(id) = *domid {
            let guest_ref = GuestRef::Id(id);
            let request = Request::DomainShutdown {
                guest: guest_ref,
                kind,
            };
            if let Err(failure) = session.call_done(format!("{verb} {guest}"), &request) {
                *domid = Err(failure);
            }
        }
    }
    if arguments.wait {
        let limit = arguments.timeout.map(Duration::from_secs);
        wait(&mut session, verb, &mut guests, limit);
    }
    let mut results = Results::new(verb, "guest");
    for (guest, domid) in guests {
        results.push(&guest, domid.map(drop));
    }
    results.finish(global.format())
}

/// Waits until none of these domains lives; those that may still do so have failed.
fn wait(session: &mut Session, verb: &str, guests: &mut [Asked], limit: Option<Duration>) {
    let started = Instant::now();
    let mut left: Vec<_> = guests.iter_mut().filter(|(_, id)| id.is_ok()).collect();
    while !left.is_empty() {
        let domains = match fetch(session, verb, None) {
            Ok(domains) => domains,
            Err(failure) => {
                left.iter_mut().for_each(|g| g.1 = Err(failure.clone()));
                return;
            }
        };
        let lives = |domid: u16| {
            domains.iter().any(|d| {
                // One that is preserved does not go away, and does not live either.
                d.domid == Some(domid)
                    && !matches!(d.state, DomainState::Shutdown | DomainState::Crashed)
            })
        };
        left.retain(|(_, domid)| domid.as_ref().is_ok_and(|domid| lives(*domid)));
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            for (guest, domid) in left {
                let why = format!("still running after {} s", started.elapsed().as_secs());
                *domid = Err(Failure::new(format_args!("{verb} {guest}"), why));
            }
            return;
        }
        if !left.is_empty() {
            thread::sleep(POLL);
        }
    }
}

/// `closer domid`
pub fn domid(guest: &str, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let what = format!("domid {guest}");
    let domid = domid_of(&what, &one(&mut session, &what, guest)?)?;
    if global.json {
        return output::json(&json!(domid));
    }
    output::line(&domid.to_string())
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
        let id = id(&d);
        vec![d.name, id, uptime]
    }));
    output::table(&rows, &[1])
}
