//! Keys of a bed: the host's and its administrator's.

use crate::paths::Paths;
use crate::process::output;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pair of X25519 keys, each in a file as `closer keygen` writes it.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// File with the private key.
    pub private: PathBuf,
    /// The public key, base64.
    pub public: String,
}

/// The pair `NAME.key` of a folder, made if it is not there.
pub fn pair(paths: &Paths, folder: &Path, name: &str) -> Result<KeyPair> {
    let private = folder.join(format!("{name}.key"));
    let public = folder.join(format!("{name}.key.pub"));
    if !private.exists() || !public.exists() {
        for old in [&private, &public] {
            if old.exists() {
                fs::remove_file(old).context("cannot remove half a key pair")?;
            }
        }
        output(Command::new(paths.cli()).arg("keygen").arg(&private))?;
    }
    let text = fs::read_to_string(&public)
        .with_context(|| format!("closer keygen left no {}", public.display()))?;
    let public = text
        .split_whitespace()
        .next()
        .context("the public key file is empty")?;
    Ok(KeyPair {
        private,
        public: public.to_owned(),
    })
}
