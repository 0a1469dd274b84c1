//! Where things are: the checkout, the build's output, the cache.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};

/// The folders that every command works in.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
    /// `target/`, or `$CARGO_TARGET_DIR`.
    pub target: PathBuf,
    /// What was fetched from Debian, or made from it: `$CLOSER_CACHE`, or
    /// `~/.cache/closer`.
    pub cache: PathBuf,
}

impl Paths {
    /// Finds them from the environment that `cargo xtask` gives, or from the current
    /// folder when the program is run by itself.
    pub fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("no current folder")?,
        };
        let root = start
            .ancestors()
            .find(|dir| dir.join("pvm-unikernel").is_dir() && dir.join("Cargo.lock").is_file())
            .with_context(|| format!("{} is not in a checkout of Closer", start.display()))?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        let cache = match (env::var_os("CLOSER_CACHE"), env::var_os("HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(home)) => Path::new(&home).join(".cache/closer"),
            (None, None) => bail!("neither CLOSER_CACHE nor HOME is set"),
        };
        Ok(Self {
            root,
            target,
            cache,
        })
    }

    /// The kernel that Xen boots.
    pub fn pvm(&self) -> PathBuf {
        self.target.join("closer/closer-pvm")
    }

    /// The administrator's program.
    pub fn cli(&self) -> PathBuf {
        self.target.join("release/closer")
    }

    /// The bed that `up` leaves running.
    pub fn bed(&self) -> PathBuf {
        self.target.join("bed")
    }

    /// Logs of `test`, `demo` and `bench`; one folder for each run.
    pub fn logs(&self, run: &str) -> PathBuf {
        self.target.join("logs").join(run)
    }
}
