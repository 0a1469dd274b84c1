//! Names of nodes: what is a good one, and how one is taken apart.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::fmt;
use xen_abi::DomId;
use xen_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX, XsError};

/// A checked name: `/`, `/a/b`, or special (`@releaseDomain`). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Rc<str>);

/// Whether names that start with `@` are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Allowed,
    Refused,
}

/// `/local/domain/<domid>`, where a domain's relative paths start.
pub fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

impl Path {
    /// Fired when a domain is introduced.
    pub const INTRODUCE_DOMAIN: &'static str = "@introduceDomain";
    /// Fired when a domain shuts down or is gone.
    pub const RELEASE_DOMAIN: &'static str = "@releaseDomain";

    /// Checks an absolute or special name. `EINVAL`: not a good name.
    pub fn new(name: &str) -> Result<Self, XsError> {
        if !name.starts_with(['/', '@']) {
            return Err(XsError::EINVAL);
        }
        Self::check(name)?;
        Ok(Self(name.into()))
    }

    /// Checks what a client sent; a relative name starts at `home`.
    pub(crate) fn parse(raw: &[u8], home: &str, special: Special) -> Result<Self, XsError> {
        let name = core::str::from_utf8(raw).map_err(|_| XsError::EINVAL)?;
        match name.as_bytes().first() {
            Some(b'@') if special == Special::Refused => Err(XsError::EINVAL),
            Some(b'/' | b'@') => Self::new(name),
            _ if name.len() > XENSTORE_REL_PATH_MAX => Err(XsError::EINVAL),
            _ => Self::new(&format!("{home}/{name}")),
        }
    }

    fn check(name: &str) -> Result<(), XsError> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b'@');
        let good = name.len() <= XENSTORE_ABS_PATH_MAX
            && name.bytes().all(known)
            && !name.contains("//")
            && (name == "/" || !name.ends_with('/'));
        if good { Ok(()) } else { Err(XsError::EINVAL) }
    }

    /// The path of a node that exists; the root's may be empty.
    pub(crate) fn of_node(path: &str) -> Self {
        if path.is_empty() {
            return Self::root();
        }
        Self(path.into())
    }

    /// The root node.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `@…`: no node of the tree.
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The names on the way down; none for the root, one for a special name.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        let rest = if self.is_special() {
            &self.0
        } else {
            &self.0[1..]
        };
        // A special name is one segment whatever it holds.
        let separator = if self.is_special() { '\0' } else { '/' };
        rest.split(separator).filter(|segment| !segment.is_empty())
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &str {
        match self.0.rfind('/') {
            Some(slash) if !self.is_special() => &self.0[slash + 1..],
            _ if self.is_special() => &self.0,
            _ => "",
        }
    }

    /// The node above; `None` for the root and special names.
    pub fn parent(&self) -> Option<Self> {
        if self.is_special() || &*self.0 == "/" {
            return None;
        }
        match self.0.rfind('/') {
            Some(0) | None => Some(Self::root()),
            Some(slash) => Some(Self(self.0[..slash].into())),
        }
    }

    /// A node below, by its name; the name is not checked here.
    pub(crate) fn child(&self, name: &str) -> Self {
        let base = if &*self.0 == "/" { "" } else { &*self.0 };
        Self(format!("{base}/{name}").into())
    }

    /// Length without a leading `/local/domain/<n>/`: what the path quota counts.
    pub(crate) fn quota_len(&self) -> usize {
        let whole = self.0.len();
        let Some(rest) = self.0.strip_prefix("/local/domain/") else {
            return whole;
        };
        match rest.split_once('/') {
            Some((domid, tail))
                if (1..=5).contains(&domid.len()) && domid.bytes().all(|b| b.is_ascii_digit()) =>
            {
                tail.len()
            }
            _ => whole,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn parse(name: &str) -> Result<Path, XsError> {
        Path::parse(name.as_bytes(), "/local/domain/7", Special::Refused)
    }

    #[test]
    fn relative_names_start_at_home() {
        assert_eq!(
            parse("device/vif").unwrap().as_str(),
            "/local/domain/7/device/vif"
        );
        assert_eq!(parse("/a").unwrap().as_str(), "/a");
    }

    #[test]
    fn bad_names_are_refused() {
        for name in [
            "",
            "/a/",
            "a//b",
            "//",
            "/a b",
            "/a.b",
            "/é",
            "@releaseDomain",
            "/a\0b",
        ] {
            assert_eq!(parse(name), Err(XsError::EINVAL), "{name:?}");
        }
        assert!(parse("/").is_ok());
        assert!(parse("/a@b_c-D9").is_ok());
    }

    #[test]
    fn length_limits_are_those_of_the_header() {
        let long = "/".repeat(0) + "/" + &"a".repeat(XENSTORE_ABS_PATH_MAX - 1);
        assert!(parse(&long).is_ok());
        assert!(parse(&(long + "a")).is_err());
        let relative = "a".repeat(XENSTORE_REL_PATH_MAX);
        assert!(parse(&relative).is_ok());
        assert!(parse(&(relative + "a")).is_err());
    }

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let path = parse("/a/bc").unwrap();
        assert_eq!(path.segments().collect::<Vec<_>>(), ["a", "bc"]);
        assert_eq!(path.name(), "bc");
        assert_eq!(path.parent().unwrap().as_str(), "/a");
        assert_eq!(path.parent().unwrap().parent().unwrap(), Path::root());
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::root().segments().count(), 0);
        assert_eq!(Path::root().child("a").child("bc"), path);
        let special = Path::new("@release/Domain").unwrap();
        assert_eq!(special.segments().collect::<Vec<_>>(), ["@release/Domain"]);
        assert_eq!(special.parent(), None);
    }

    #[test]
    fn the_quota_counts_what_follows_a_domains_home() {
        assert_eq!(Path::new("/local/domain/12/data").unwrap().quota_len(), 4);
        assert_eq!(Path::new("/local/domain/123456/d").unwrap().quota_len(), 22);
        assert_eq!(Path::new("/local/domain/x/d").unwrap().quota_len(), 17);
        assert_eq!(Path::new("/local/domain/12").unwrap().quota_len(), 16);
    }
}
