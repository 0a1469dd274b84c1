//! The file that says which host is meant, and who we are to it.
//!
//! ```toml
//! address = "192.0.2.1:8006"             # or a name; the port may be left out
//! host_key = "aP4PDDLMd+I3KzZhHfxN0FQCq7rxqFu2gfOUOcJl/BA="   # public; or hexadecimal
//! identity = "admin.key"                 # file (relative to this one), or the key itself
//! ```

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toolstack_boot::DEFAULT_RPC_PORT;
use toolstack_rpc::{PrivateKey, PublicKey};

use crate::args::Global;
use crate::failure::{Failure, io_reason, warn};
use crate::output::Format;

/// A host, and our key.
#[derive(Debug)]
pub struct HostFile {
    /// Where all this stands.
    pub path: PathBuf,
    /// Host and port.
    pub address: String,
    /// The key it must have.
    pub host_key: PublicKey,
    /// Ours.
    pub identity: PrivateKey,
    /// Where ours stands.
    pub identity_name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    address: String,
    host_key: String,
    identity: String,
}

/// Where the program's files are, unless somebody says otherwise.
pub fn config_folder() -> Result<PathBuf, Failure> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    match (from("XDG_CONFIG_HOME"), from("HOME")) {
        (Some(folder), _) => Ok(Path::new(&folder).join("closer")),
        (None, Some(home)) => Ok(Path::new(&home).join(".config/closer")),
        (None, None) => Err(Failure::Usage(
            "which host? Give --host-file FILE (neither HOME nor CLOSER_HOST_FILE is set)".into(),
        )),
    }
}

/// Reads the file that was named, or the usual one.
pub fn load(global: &Global) -> Result<HostFile, Failure> {
    let path = match &global.host_file {
        Some(path) => path.clone(),
        None => config_folder()?.join("host.toml"),
    };
    let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::new(
            path.display(),
            "no such host file (give --host-file FILE, or set CLOSER_HOST_FILE)",
        ),
        io::ErrorKind::InvalidData => Failure::new(path.display(), "not text"),
        _ => Failure::io(path.display(), &e),
    })?;
    let fields: Fields = toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| {
            1 + text
                .bytes()
                .take(span.start)
                .filter(|c| *c == b'\n')
                .count()
        });
        Failure::new(
            format_args!("{}:{line}", path.display()),
            e.message().trim(),
        )
    })?;
    let host_key = fields
        .host_key
        .parse()
        .map_err(|e| Failure::new(format_args!("{}: host_key", path.display()), e))?;
    let (identity, identity_name) = identity(&fields.identity, &path, global.format())?;
    let address = with_port(&fields.address)
        .ok_or_else(|| Failure::new(format_args!("{}: address", path.display()), "is empty"))?;
    Ok(HostFile {
        path,
        address,
        host_key,
        identity,
        identity_name,
    })
}

/// The private key in the text, or in the file it names.
fn identity(text: &str, host_file: &Path, format: Format) -> Result<(PrivateKey, String), Failure> {
    if let Ok(key) = text.parse() {
        return Ok((key, host_file.display().to_string()));
    }
    let path = match (text.strip_prefix("~/"), env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => host_file.parent().unwrap_or(Path::new(".")).join(text),
    };
    let key = read_private(&path, format).map_err(|why| {
        Failure::new(
            format_args!("{}: identity {}", host_file.display(), path.display()),
            why,
        )
    })?;
    Ok((key, path.display().to_string()))
}

/// The private key in a file.
pub fn read_private(path: &Path, format: Format) -> Result<PrivateKey, String> {
    let text = fs::read_to_string(path).map_err(|e| io_reason(&e))?;
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        let what = format_args!("{}: others can read this private key", path.display());
        warn(what, format);
    }
    text.parse::<PrivateKey>().map_err(|e| e.to_string())
}

/// `address` with a port: what has a colon has one, unless it is a bare IPv6 address.
fn with_port(address: &str) -> Option<String> {
    let address = address.trim();
    if address.is_empty() {
        return None;
    }
    Some(if address.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{address}]:{DEFAULT_RPC_PORT}")
    } else if address.ends_with(']') || !address.contains(':') {
        format!("{address}:{DEFAULT_RPC_PORT}")
    } else {
        address.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_usual_port() {
        let port = DEFAULT_RPC_PORT;
        for (given, expected) in [
            ("host", format!("host:{port}")),
            ("192.0.2.1:7", "192.0.2.1:7".into()),
            ("2001:db8::1", format!("[2001:db8::1]:{port}")),
            ("[2001:db8::1]", format!("[2001:db8::1]:{port}")),
            (" [2001:db8::1]:9 ", "[2001:db8::1]:9".into()),
        ] {
            assert_eq!(with_port(given), Some(expected));
        }
        assert_eq!(with_port(" "), None);
    }
}
