//! What we link: licences, sources, and what may never get into the kernel.

use crate::build::{TARGET, cargo};
use crate::paths::Paths;
use crate::process::output;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// Licences that anything may have.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BlueOak-1.0.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that may have another licence, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "option-ext",
    "MPL-2.0",
    "unchanged, file-level copyleft, in host programs only",
)];

/// Packages that never get into the kernel: they call an operating system that is not
/// there, and would link all the same, because our target is named linux-gnu.
const NOT_IN_KERNEL: &[&str] = &[
    "libc",
    "getrandom",
    "rustix",
    "nix",
    "std",
    "ring",
    "openssl-sys",
];

/// Checks every package of the workspace's lock file.
pub fn check(paths: &Paths) -> Result<String> {
    let text = output(cargo(paths).args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read cargo's metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo's metadata lists no packages")?;
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if let Some(source) = package["source"].as_str()
            && !source.starts_with("registry+")
        {
            wrong.push(format!("{name} comes from {source}, not from the registry"));
        }
        let Some(licence) = package["license"].as_str() else {
            wrong.push(format!("{name} names no licence"));
            continue;
        };
        let excepted = EXCEPTIONS.iter().find(|(package, ..)| *package == name);
        let extra = excepted.map(|(_, licence, _)| *licence);
        match is_allowed(licence, extra) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{name}: licence {licence} is not allowed")),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    let kernel = kernel_packages(paths)?;
    for (package, features) in &kernel {
        if NOT_IN_KERNEL.contains(&package.as_str()) {
            wrong.push(format!("{package} is in the kernel's dependencies"));
        }
        if features.iter().any(|feature| feature == "std") {
            wrong.push(format!("{package} has its feature `std` on in the kernel"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(format!(
        "{} packages, {} of them in the kernel",
        packages.len(),
        kernel.len()
    ))
}

/// The kernel's normal dependencies with their features, as they are built for it alone.
fn kernel_packages(paths: &Paths) -> Result<BTreeMap<String, Vec<String>>> {
    let text = output(cargo(paths).args([
        "tree",
        "--locked",
        "--package",
        "pvm-unikernel",
        "--edges",
        "normal,no-proc-macro",
        "--target",
        TARGET,
        "--prefix",
        "none",
        "--no-dedupe",
        "--format",
        "{p}|{f}",
    ]))?;
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let (package, features) = line
            .split_once('|')
            .context("cargo tree prints otherwise")?;
        let name = package
            .split_whitespace()
            .next()
            .context("cargo tree names no package")?;
        let features = features.split(',').map(str::to_owned).collect();
        all.insert(name.to_owned(), features);
    }
    ensure!(
        all.contains_key("pvm-unikernel"),
        "cargo tree does not show the kernel"
    );
    Ok(all)
}

/// Whether an SPDX expression can be met by what is allowed.
fn is_allowed(expression: &str, extra: Option<&str>) -> Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let allowed = any_of(&mut rest, extra)?;
    ensure!(rest.is_empty(), "{expression} is no SPDX expression");
    Ok(allowed)
}

fn any_of(words: &mut &[&str], extra: Option<&str>) -> Result<bool> {
    let mut allowed = all_of(words, extra)?;
    while let ["OR", rest @ ..] = words {
        *words = rest;
        allowed |= all_of(words, extra)?;
    }
    Ok(allowed)
}

fn all_of(words: &mut &[&str], extra: Option<&str>) -> Result<bool> {
    let mut allowed = one(words, extra)?;
    while let ["AND", rest @ ..] = words {
        *words = rest;
        allowed &= one(words, extra)?;
    }
    Ok(allowed)
}

fn one(words: &mut &[&str], extra: Option<&str>) -> Result<bool> {
    match words {
        ["(", rest @ ..] => {
            *words = rest;
            let allowed = any_of(words, extra)?;
            let [")", rest @ ..] = words else {
                bail!("a parenthesis is not closed")
            };
            *words = rest;
            Ok(allowed)
        }
        [licence, "WITH", exception, rest @ ..] => {
            let whole = format!("{licence} WITH {exception}");
            *words = rest;
            Ok(ALLOWED.contains(&whole.as_str()))
        }
        [licence, rest @ ..] => {
            *words = rest;
            Ok(ALLOWED.contains(licence) || extra == Some(licence))
        }
        [] => bail!("a licence expression ends early"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn expressions_are_met_as_spdx_says() {
        for (expression, allowed) in [
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("GPL-3.0-only AND MIT", false),
            ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
            ("MIT AND (GPL-2.0 OR LGPL-2.1)", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
            ("MPL-2.0", false),
        ] {
            assert_eq!(
                is_allowed(expression, None).unwrap(),
                allowed,
                "{expression}"
            );
        }
        assert!(is_allowed("MPL-2.0", Some("MPL-2.0")).unwrap());
        for broken in ["", "(MIT", "MIT OR", "MIT Apache-2.0"] {
            assert!(is_allowed(broken, None).is_err(), "{broken}");
        }
    }
}
