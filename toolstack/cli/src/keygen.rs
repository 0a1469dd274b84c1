//! Key pairs, of hosts and of administrators.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use toolstack_rpc::PrivateKey;
use toolstack_rpc::key::Exposed;
use toolstack_rpc::tcp::SystemEntropy;

use crate::args::{Global, Keygen, Pubkey};
use crate::failure::Failure;
use crate::host_file;
use crate::output;

/// `closer keygen`
pub fn keygen(arguments: &Keygen, global: &Global) -> Result<(), Failure> {
    let path = match &arguments.file {
        Some(path) => path.clone(),
        None => {
            let folder = host_file::config_folder()?;
            fs::create_dir_all(&folder).map_err(|e| Failure::io(folder.display(), &e))?;
            folder.join("identity.key")
        }
    };
    let mut public_path = path.clone().into_os_string();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);

    let private =
        PrivateKey::generate(&mut SystemEntropy).map_err(|e| Failure::new("keygen", e))?;
    let public = private.public();
    write(
        &path,
        &format!("{}\n", Exposed(&private)),
        0o600,
        arguments.force,
    )?;
    if let Err(failure) = write(&public_path, &format!("{public}\n"), 0o644, arguments.force) {
        // Half a pair would be in the way of the next attempt.
        fs::remove_file(&path).map_err(|e| Failure::io(path.display(), &e))?;
        return Err(failure);
    }
    if global.json {
        let private_file = path.display().to_string();
        let public = public.to_string();
        return output::json(&json!({"private_file": private_file, "public": public}));
    }
    output::line(&public.to_string())
}

/// Writes a new file, never into one that others can read or that is a link elsewhere.
fn write(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), Failure> {
    if replace {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::io(path.display(), &e));
            }
            _ => {}
        }
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(path.display(), "exists already (--force replaces it)")
        }
        _ => Failure::io(path.display(), &e),
    })
}

/// `closer pubkey`
pub fn pubkey(arguments: &Pubkey, global: &Global) -> Result<(), Failure> {
    let private = host_file::read_private(&arguments.file, global.format())
        .map_err(|why| Failure::new(arguments.file.display(), why))?;
    let public = private.public().to_string();
    if global.json {
        return output::json(&json!({"public": public}));
    }
    output::line(&public)
}
