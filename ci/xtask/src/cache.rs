//! Pieces that are fetched or made once and kept.
//!
//! A piece is a folder that appears whole or not at all: it is made under another
//! name, stamped with the size of each of its files, and renamed. A piece whose files
//! are not as its stamp says (a disk that was full, a copy that was cut) is made again.

use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Name of the stamp in a piece.
const STAMP: &str = ".stamp";

/// The cache's folder, locked: only one process fetches and makes at a time.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    /// What is made is told to nobody.
    quiet: bool,
    _lock: Arc<File>,
}

impl Cache {
    /// Opens it, waiting for another process that is filling it.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let root = root
            .canonicalize()
            .context("the cache's folder went away")?;
        let lock = File::create(root.join("lock")).context("cannot create the cache's lock")?;
        if lock.try_lock().is_err() {
            println!(
                "waiting for another cargo xtask, which uses {}",
                root.display()
            );
            lock.lock().context("cannot lock the cache")?;
        }
        let lock = Arc::new(lock);
        Ok(Self {
            root,
            quiet: false,
            _lock: lock,
        })
    }

    /// The same for a thread that runs beside something that prints.
    #[must_use]
    pub fn quietly(&self) -> Self {
        Self {
            quiet: true,
            ..self.clone()
        }
    }

    /// Prints a line about a piece.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            println!("  {line}");
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A piece by its name, made now if it is missing or spoilt. `recipe` is the number
    /// of the way it is made: a piece made in an older way is made again.
    pub fn piece(
        &self,
        name: &str,
        recipe: u32,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.root.join(name);
        match is_whole(&path, recipe) {
            Ok(()) => return Ok(path),
            Err(why) if path.exists() => self.say(&format!("{name}: made again: {why}")),
            Err(_) => {}
        }
        let started = Instant::now();
        let making = self.root.join(format!("{name}.making"));
        remove(&making)?;
        fs::create_dir(&making).with_context(|| format!("cannot create {}", making.display()))?;
        make(&making).with_context(|| format!("cannot make {name}"))?;
        fs::write(making.join(STAMP), stamp(&making, recipe)?).context("cannot write the stamp")?;
        remove(&path)?;
        fs::rename(&making, &path).with_context(|| format!("cannot put {name} in place"))?;
        let time = started.elapsed().as_secs_f32();
        self.say(&format!("{name}: made in {time:.0} s"));
        Ok(path)
    }
}

/// Removes a folder and all in it, files of root's included.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    crate::process::run(crate::process::as_root("rm")?.arg("-rf").arg(path))
}

/// Every file with its size, one a line.
fn stamp(folder: &Path, recipe: u32) -> Result<String> {
    let mut files = Vec::new();
    list(folder, Path::new(""), &mut files)?;
    files.sort();
    let mut text = format!("recipe {recipe}\n");
    for (name, size) in files {
        writeln!(text, "{size} {name}").context("cannot format the stamp")?;
    }
    Ok(text)
}

fn list(root: &Path, below: &Path, files: &mut Vec<(String, u64)>) -> Result<()> {
    let folder = root.join(below);
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let entry = entry.context("cannot list the piece")?;
        let name = below.join(entry.file_name());
        let kind = entry.file_type().context("a file of the piece went away")?;
        if kind.is_dir() {
            list(root, &name, files)?;
        } else if kind.is_file() && entry.file_name() != STAMP {
            let size = entry
                .metadata()
                .context("a file of the piece went away")?
                .size();
            files.push((name.to_string_lossy().into_owned(), size));
        }
    }
    Ok(())
}

/// Whether the files are still there with the stamped sizes.
fn is_whole(path: &Path, recipe: u32) -> Result<(), String> {
    let text = fs::read_to_string(path.join(STAMP)).map_err(|_| "it has no stamp".to_owned())?;
    let mut lines = text.lines();
    if lines.next() != Some(format!("recipe {recipe}").as_str()) {
        return Err("the recipe is newer".to_owned());
    }
    for line in lines {
        let (size, name) = line.split_once(' ').ok_or("its stamp is broken")?;
        let found = fs::symlink_metadata(path.join(name)).map(|meta| meta.size().to_string());
        if found.as_deref().ok() != Some(size) {
            return Err(format!("{name} is missing or cut"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xtask-cache-{}-{name}", std::process::id()));
        remove(&path).unwrap();
        path
    }

    #[test]
    fn a_whole_piece_is_not_made_again() {
        let root = fresh("whole");
        let cache = Cache::open(&root).unwrap();
        cache
            .piece("a", 1, |dir| Ok(fs::write(dir.join("x"), "12")?))
            .unwrap();
        let path = cache
            .piece("a", 1, |_| anyhow::bail!("made twice"))
            .unwrap();
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "12");
        remove(&root).unwrap();
    }

    #[test]
    fn a_cut_file_an_old_recipe_and_a_failed_making_are_repaired() {
        let root = fresh("cut");
        let cache = Cache::open(&root).unwrap();
        let make = |dir: &Path| Ok(fs::write(dir.join("x"), "12")?);
        let path = cache.piece("a", 1, make).unwrap();
        fs::write(path.join("x"), "1").unwrap();
        cache.piece("a", 1, make).unwrap();
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "12");
        assert!(cache.piece("a", 2, |_| anyhow::bail!("full disk")).is_err());
        let path = cache
            .piece("a", 2, |dir| Ok(fs::write(dir.join("y"), "3")?))
            .unwrap();
        assert!(!path.join("x").exists() && path.join("y").exists());
        remove(&root).unwrap();
    }
}
