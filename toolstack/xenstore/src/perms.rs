//! Who may do what to a node.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt::Write as _;
use xen_abi::DomId;
use xen_abi::io::xs_wire::XsError;

/// Reading and writing, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Nothing: `n`.
    pub const NONE: Self = Self(0);
    /// Read and list: `r`.
    pub const READ: Self = Self(1);
    /// Write, make children, remove: `w`.
    pub const WRITE: Self = Self(2);
    /// Both: `b`.
    pub const BOTH: Self = Self(3);

    /// Whether every right of `need` is there.
    pub fn covers(self, need: Self) -> bool {
        self.0 & need.0 == need.0
    }

    /// Its letter on the wire.
    pub fn letter(self) -> char {
        match self {
            Self::READ => 'r',
            Self::WRITE => 'w',
            Self::BOTH => 'b',
            _ => 'n',
        }
    }

    fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'n' => Self::NONE,
            b'r' => Self::READ,
            b'w' => Self::WRITE,
            b'b' => Self::BOTH,
            _ => return None,
        })
    }
}

/// One entry of a node's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Perm {
    /// For whom; in the first entry: the owner, who may do everything.
    pub domid: DomId,
    /// What; in the first entry: what all that no other entry names may do.
    pub access: Access,
}

/// A node's permissions: never empty, shared between nodes that inherited them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Perms(Rc<[Perm]>);

impl Perms {
    /// `EINVAL`: no entry, so no owner.
    pub fn new(entries: &[Perm]) -> Result<Self, XsError> {
        if entries.is_empty() {
            return Err(XsError::EINVAL);
        }
        Ok(Self(entries.into()))
    }

    /// Only an owner, and what everybody else may do.
    pub fn owned(owner: DomId, others: Access) -> Self {
        Self(
            [Perm {
                domid: owner,
                access: others,
            }]
            .into(),
        )
    }

    /// Entries, the owner's first.
    pub fn entries(&self) -> &[Perm] {
        &self.0
    }

    /// The owner, whom the node is charged to.
    pub fn owner(&self) -> DomId {
        self.0[0].domid
    }

    /// The same with another owner.
    pub(crate) fn with_owner(&self, owner: DomId) -> Self {
        if self.owner() == owner {
            return self.clone();
        }
        let mut entries: Vec<Perm> = self.0.to_vec();
        entries[0].domid = owner;
        Self(entries.into())
    }

    /// The same without the entries (the owner's apart) that `gone` picks.
    pub(crate) fn without(&self, gone: impl Fn(DomId) -> bool) -> Self {
        let kept: Vec<Perm> = (self.0.iter().enumerate())
            .filter(|(i, perm)| *i == 0 || !gone(perm.domid))
            .map(|(_, perm)| *perm)
            .collect();
        Self(kept.into())
    }

    /// Whether an entry after the owner's names `domid`.
    pub(crate) fn names(&self, domid: DomId) -> bool {
        self.0[1..].iter().any(|perm| perm.domid == domid)
    }

    /// Reads the wire's form: one string for each entry, `r5`.
    pub(crate) fn parse<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Result<Self, XsError> {
        let entries = strings
            .map(|string| {
                let (letter, number) = string.split_first().ok_or(XsError::EINVAL)?;
                Ok(Perm {
                    access: Access::from_letter(*letter).ok_or(XsError::EINVAL)?,
                    domid: parse_domid(number)?,
                })
            })
            .collect::<Result<Vec<_>, XsError>>()?;
        Self::new(&entries)
    }

    /// Appends the wire's form.
    pub(crate) fn encode(&self, to: &mut Vec<u8>) {
        let mut text = alloc::string::String::new();
        for perm in self.entries() {
            write!(text, "{}{}\0", perm.access.letter(), perm.domid).expect("a string takes all");
        }
        to.extend_from_slice(text.as_bytes());
    }
}

/// A decimal domain number. Stricter than `atoi`: what is no number is an error.
pub(crate) fn parse_domid(digits: &[u8]) -> Result<DomId, XsError> {
    let text = core::str::from_utf8(digits).map_err(|_| XsError::EINVAL)?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(XsError::EINVAL);
    }
    text.parse().map(DomId).map_err(|_| XsError::EINVAL)
}

/// Somebody who asks for something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    pub domid: DomId,
    /// Has this domain's rights as well (SET_TARGET).
    pub target: Option<DomId>,
    /// Everything is allowed, and no quota holds.
    pub privileged: bool,
}

impl Actor {
    /// Closer's own toolstack.
    pub(crate) const LOCAL: Self = Self {
        domid: DomId(0),
        target: None,
        privileged: true,
    };

    fn is(&self, domid: DomId) -> bool {
        self.domid == domid || self.target == Some(domid)
    }

    /// Whether the permissions themselves may be changed.
    pub(crate) fn owns(&self, perms: &Perms) -> bool {
        self.privileged || self.is(perms.owner())
    }

    pub(crate) fn access(&self, perms: &Perms) -> Access {
        if self.owns(perms) {
            return Access::BOTH;
        }
        let named = perms.entries()[1..].iter().find(|perm| self.is(perm.domid));
        named.unwrap_or(&perms.entries()[0]).access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perms(text: &str) -> Result<Perms, XsError> {
        Perms::parse(text.split(' ').map(str::as_bytes))
    }

    fn guest(domid: u16) -> Actor {
        Actor {
            domid: DomId(domid),
            target: None,
            privileged: false,
        }
    }

    #[test]
    fn the_wire_form_goes_there_and_back() {
        let mut out = Vec::new();
        perms("n0 r1 w22 b333").unwrap().encode(&mut out);
        assert_eq!(out, b"n0\0r1\0w22\0b333\0");
    }

    #[test]
    fn malformed_entries_are_refused() {
        for text in ["", "x1", "r", "r-1", "r+1", "r65536", "r1x", "1"] {
            assert_eq!(perms(text), Err(XsError::EINVAL), "{text}");
        }
    }

    #[test]
    fn the_first_entry_is_owner_and_default_the_first_match_decides() {
        let perms = perms("r1 n2 b3 b2").unwrap();
        assert_eq!(guest(1).access(&perms), Access::BOTH);
        assert_eq!(guest(2).access(&perms), Access::NONE);
        assert_eq!(guest(3).access(&perms), Access::BOTH);
        assert_eq!(guest(4).access(&perms), Access::READ);
        assert!(!guest(3).owns(&perms));
        assert_eq!(Actor::LOCAL.access(&perms), Access::BOTH);
    }

    #[test]
    fn a_target_lends_its_rights() {
        let perms = perms("n1 r2").unwrap();
        let stub = Actor {
            target: Some(DomId(1)),
            ..guest(9)
        };
        assert!(stub.owns(&perms));
        assert_eq!(guest(9).access(&perms), Access::NONE);
    }
}
