//! `closer volume`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use toolstack_rpc::message::{ImportMode, VolumeInfo};
use toolstack_rpc::server::check_name;
use toolstack_rpc::tcp::block_on;
use toolstack_rpc::{Chunk, Request, Response};

use crate::args::{Global, Volume, VolumeCommand};
use crate::cleanup::Guard;
use crate::failure::{Failure, one_line};
use crate::output;
use crate::results::Results;
use crate::session::Session;
use crate::transfer;

/// The command.
pub fn run(arguments: &Volume, global: &Global) -> Result<(), Failure> {
    match &arguments.command {
        VolumeCommand::Create { name, size } => create(name, *size, global),
        VolumeCommand::Import {
            name,
            file,
            size,
            overwrite,
        } => import(name, file, *size, *overwrite, global),
        VolumeCommand::Export { name, file, force } => export(name, file, *force, global),
        VolumeCommand::List => list(global),
        VolumeCommand::Remove { names } => remove(names, global),
    }
}

fn create(name: &str, size: u64, global: &Global) -> Result<(), Failure> {
    let what = format!("volume create {name}");
    check_name(name).map_err(|e| Failure::new(&what, e))?;
    let mut session = Session::open(global)?;
    let request = Request::VolumeCreate {
        name: name.to_owned(),
        size,
    };
    // The host fills all of it with zeros.
    let bar = transfer::busy(format!("{what}: clearing {}", output::size(size)));
    let done = session.call_done(&what, &request);
    bar.finish_and_clear();
    done?;
    if !global.json {
        return Ok(());
    }
    let size = size_of(&mut session, &what, name);
    output::json(&json!({"done": "volume create", "volume": name, "size_bytes": size}))
}

/// How large a volume is that was just filled: what was asked for, rounded up by the host. None
/// if it is not there any more, or the host not: that does not undo what was done.
fn size_of(session: &mut Session, what: &str, name: &str) -> Option<u64> {
    let volumes = fetch(session, what).ok()?;
    volumes.iter().find(|v| v.name == name).map(|v| v.size)
}

fn fetch(session: &mut Session, what: &str) -> Result<Vec<VolumeInfo>, Failure> {
    match session.call(what, &Request::VolumeList)? {
        Response::Volumes(volumes) => Ok(volumes),
        _ => Err(session.odd(what)),
    }
}

fn import(
    name: &str,
    path: &Path,
    size: Option<u64>,
    overwrite: bool,
    global: &Global,
) -> Result<(), Failure> {
    let what = format!("volume import {name}");
    check_name(name).map_err(|e| Failure::new(&what, e))?;
    let file_name = path.display().to_string();
    let (mut file, len) =
        open_image(path).map_err(|why| Failure::new(format_args!("{what}: {file_name}"), why))?;
    let asked = size.unwrap_or(len);
    if asked < len {
        return Err(Failure::Usage(format!(
            "{what}: --size is {asked} bytes, less than the {len} of {file_name}"
        )));
    }
    let mode = if overwrite {
        ImportMode::Overwrite
    } else {
        ImportMode::New
    };
    let mut session = Session::open(global)?;
    let request = Request::VolumeImport {
        name: name.to_owned(),
        size: asked,
        len,
        mode,
    };
    match session.call(&what, &request)? {
        Response::Ready { .. } => {}
        _ => return Err(session.odd(&what)),
    }
    transfer::upload(&mut session, &what, &mut file, &file_name, len)?;
    match block_on(session.client.response()) {
        Ok(Response::Done) => {}
        Ok(_) => return Err(session.odd(&what)),
        Err(e) => return Err(session.failed(&what, e)),
    }
    if global.json {
        let size = size_of(&mut session, &what, name);
        let mut value = json!({
            "done": "volume import",
            "volume": name,
            "size_bytes": size,
            "file_bytes": len,
        });
        if !overwrite {
            value["zeroed_bytes"] = json!(size.map(|size| size.saturating_sub(len)));
        }
        return output::json(&value);
    }
    if asked > len {
        // Whoever mistyped the size, or took the wrong file, sees it here.
        eprintln!(
            "closer: {}",
            one_line(&format!(
                "{what}: {file_name} has {len} bytes of the {asked}, the rest is zeros"
            ))
        );
    }
    Ok(())
}

/// Opens a raw image and finds its length; block devices have one too.
fn open_image(path: &Path) -> Result<(File, u64), String> {
    let open = || {
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut magic = Vec::new();
        (&file).take(4).read_to_end(&mut magic)?;
        file.rewind()?;
        Ok((file, len, magic))
    };
    let (file, len, magic) = open().map_err(|e: io::Error| match e.kind() {
        io::ErrorKind::NotSeekable => "a pipe has no length: a file is needed".into(),
        io::ErrorKind::NotFound if path == Path::new("-") => {
            "standard input has no length: a file is needed".into()
        }
        _ => crate::failure::io_reason(&e),
    })?;
    if len == 0 {
        return Err("the file is empty, or has no length".into());
    }
    // Written to a disk as it is, this would be of no use to any guest.
    if magic == *b"QFI\xfb" {
        return Err("a qcow2 image; a raw one is needed (qemu-img convert -O raw)".into());
    }
    Ok((file, len))
}

fn export(name: &str, path: &Path, force: bool, global: &Global) -> Result<(), Failure> {
    let what = format!("volume export {name}");
    let to_stdout = path == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::Usage(format!("{what}: not to a terminal")));
    }
    if !to_stdout && !force && path.exists() {
        return Err(Failure::new(
            format_args!("{what}: {}", path.display()),
            "exists already (--force replaces it)",
        ));
    }
    let mut session = Session::open(global)?;
    let request = Request::VolumeExport { name: name.into() };
    let len = match session.call(&what, &request)? {
        Response::Ready { len } => len,
        _ => return Err(session.odd(&what)),
    };
    if to_stdout {
        let mut out = io::stdout().lock();
        return receive(&mut session, &what, len, |chunk| match chunk {
            Chunk::Bytes(bytes) => output::bytes(bytes, &mut out),
            Chunk::Zeros(count) => {
                let mut zeros = io::repeat(0).take(count);
                match io::copy(&mut zeros, &mut out) {
                    Ok(_) => Ok(()),
                    Err(e) => Err(output::failed(&e)),
                }
            }
        });
    }
    // Under another name until it is whole, so that nobody takes a part for all.
    let mut part = path.to_owned().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |e: &io::Error| Failure::io(format_args!("{what}: {}", part.display()), e);
    if force {
        // An earlier export may have been killed.
        match fs::remove_file(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&e)),
            _ => {}
        }
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&part)
        .map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Failure::new(
                format_args!("{what}: {}", part.display()),
                "is there already: another export runs, or one was killed (--force replaces it)",
            ),
            _ => failed(&e),
        })?;
    let guard = Guard::partial_file(part.clone(), global.format()).map_err(|e| failed(&e))?;
    receive(&mut session, &what, len, |chunk| {
        match chunk {
            Chunk::Bytes(bytes) => file.write_all(bytes),
            // A hole.
            Chunk::Zeros(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                file.seek(SeekFrom::Current(count)).map(drop)
            }
        }
        .map_err(|e| failed(&e))
    })?;
    file.set_len(len)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&part, path))
        .map_err(|e| failed(&e))?;
    guard.disarm();
    let value = json!({
        "done": "volume export",
        "volume": name,
        "size_bytes": len,
        "file": path.display().to_string(),
    });
    output::done(global.format(), &value)
}

/// Hands the volume's bytes to `sink`.
fn receive(
    session: &mut Session,
    what: &str,
    len: u64,
    mut sink: impl FnMut(Chunk<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let bar = transfer::progress(what.to_owned(), len);
    let mut incoming = session.client.incoming(Some(len));
    let end = loop {
        match block_on(incoming.next()) {
            Ok(Some(chunk)) => {
                sink(chunk)?;
                bar.set_position(incoming.received());
            }
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    bar.finish_and_clear();
    end.map_err(|e| session.failed(what, e))
}

fn list(global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let volumes = fetch(&mut session, "volume list")?;
    if global.json {
        let to_json =
            |v: &VolumeInfo| json!({"name": v.name, "size_bytes": v.size, "used_by": v.used_by});
        return output::json(&volumes.iter().map(to_json).collect());
    }
    let mut rows = vec![["Name", "Size", "Used by"].map(str::to_owned).to_vec()];
    rows.extend(volumes.into_iter().map(|v| {
        let size = output::size(v.size);
        vec![v.name, size, v.used_by.join(", ")]
    }));
    output::table(&rows, &[1])
}

fn remove(names: &[String], global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let mut results = Results::new("volume remove", "volume");
    for name in names {
        let what = format!("volume remove {name}");
        let request = Request::VolumeRemove { name: name.clone() };
        results.push(name, session.call_done(what, &request));
    }
    results.finish(global.format())
}
