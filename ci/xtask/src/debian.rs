//! Debian's packages: those of this machine, and those of other suites that are only
//! unpacked into the cache.

use crate::cache::Cache;
use crate::process::{as_root, output, run, run_logged};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const FETCH_LIMIT: Duration = Duration::from_secs(300);

/// A release of Debian that pieces are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 13.
    Trixie,
    /// Debian 12.
    Bookworm,
}

impl Suite {
    /// Its code name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }
}

/// The mirror this machine is set up with; it is never written down in the checkout.
pub fn mirror() -> Result<String> {
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    targets
        .lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian") && !uri.contains("security"))
        .map(str::to_owned)
        .context("this machine's apt has no Debian mirror (apt-get indextargets shows none)")
}

/// The line of an apt source list for a suite.
pub fn source_line(suite: &str) -> Result<String> {
    Ok(format!(
        "deb [signed-by={KEYRING}] {} {suite} main\n",
        mirror()?
    ))
}

/// apt with its own lists, for one suite, beside this machine's.
#[derive(Debug)]
pub struct Apt {
    suite: Suite,
    dir: PathBuf,
}

impl Apt {
    /// Prepares it and fetches the suite's package lists.
    pub fn open(cache: &Cache, suite: Suite) -> Result<Self> {
        let dir = cache.root().join(format!("apt-{}", suite.name()));
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(folder)).context("cannot create apt's folders")?;
        }
        fs::write(dir.join("sources.list"), source_line(suite.name())?)
            .context("cannot write apt's source list")?;
        let apt = Self { suite, dir };
        run_logged(
            apt.command().args(["-q", "update"]),
            &apt.dir.join("update.log"),
            FETCH_LIMIT,
        )
        .with_context(|| format!("cannot fetch the package lists of {}", suite.name()))?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let dir = self.dir.display();
        for option in [
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Downloads a package's newest version in the suite and unpacks it into `to`.
    pub fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let deb = self.download(package)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(to))?;
        fs::remove_file(&deb).context("cannot remove the package file")
    }

    /// A field of a package's control data.
    pub fn field(&self, package: &str, field: &str) -> Result<String> {
        let deb = self.download(package)?;
        let value = output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg(field))?;
        fs::remove_file(&deb).context("cannot remove the package file")?;
        Ok(value.trim().to_owned())
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let folder = self.dir.join("download");
        crate::cache::remove(&folder)?;
        fs::create_dir_all(&folder).context("cannot create the download folder")?;
        let mut command = self.command();
        command.current_dir(&folder).args([
            "-q",
            "download",
            &format!("{package}/{}", self.suite.name()),
        ]);
        run_logged(&mut command, &self.dir.join("download.log"), FETCH_LIMIT)?;
        let mut debs = fs::read_dir(&folder)
            .context("cannot list the download folder")?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "deb"));
        let deb = debs
            .next()
            .with_context(|| format!("apt gave no file for {package}"))?;
        ensure!(
            debs.next().is_none(),
            "apt gave several files for {package}"
        );
        Ok(deb)
    }
}

/// `VERSION_CODENAME` of this machine.
pub fn this_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release has no VERSION_CODENAME")?;
    Ok(value.trim_matches('"').to_owned())
}

/// Whether a package is installed on this machine.
pub fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs packages on this machine, from a suite other than its own if one is given.
pub fn install(packages: &[&str], from: Option<&str>, log: &Path) -> Result<()> {
    println!("installing {}", packages.join(" "));
    if let Some(suite) = from {
        // A name of its own, so that a second run finds and keeps it.
        let list = format!("/etc/apt/sources.list.d/closer-{suite}.list");
        if !Path::new(&list).exists() {
            let local = log.with_extension("list");
            fs::write(&local, source_line(suite)?).context("cannot write the source list")?;
            run(as_root("install")?
                .args(["-m", "644"])
                .arg(&local)
                .arg(&list))?;
        }
    }
    run_logged(as_root("apt-get")?.args(["-q", "update"]), log, FETCH_LIMIT)?;
    let mut command = as_root("env")?;
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-q",
        "-y",
        "install",
    ]);
    command.arg("--no-install-recommends");
    if let Some(suite) = from {
        command.args(["-t", suite]);
    }
    run_logged(command.args(packages), log, FETCH_LIMIT)
        .with_context(|| format!("cannot install {}", packages.join(" ")))?;
    match packages.iter().find(|package| !is_installed(package)) {
        Some(package) => bail!("{package} is still not installed"),
        None => Ok(()),
    }
}
