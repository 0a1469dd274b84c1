//! The children of a node: an ordered map that costs nothing to copy.
//!
//! A balanced tree (AVL) behind reference counts. A copy shares everything; a
//! change copies only the O(log n) entries on its way, and nothing at all where
//! no copy exists. Each entry knows the bytes of its part of the directory
//! listing, so that DIRECTORY_PART finds an offset in O(log n).

use crate::node::Node;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;

/// What one copied entry is taken to cost, in bytes.
const ENTRY_COST: u64 = 96;

#[derive(Clone, Debug, Default)]
pub(crate) struct Children {
    root: Link,
}

type Link = Option<Rc<Entry>>;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    name: Rc<str>,
    node: Rc<Node>,
    left: Link,
    right: Link,
    height: u8,
    bytes: usize,
}

/// The order of names: numbers first, by value, so that a guest meets its devices as
/// they are numbered (`vif/2` before `vif/10`).
fn order(a: &str, b: &str) -> Ordering {
    let number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    match (number(a), number(b)) {
        (true, true) => (a.len(), a).cmp(&(b.len(), b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

fn height(link: &Link) -> u8 {
    link.as_ref().map_or(0, |entry| entry.height)
}

fn bytes(link: &Link) -> usize {
    link.as_ref().map_or(0, |entry| entry.bytes)
}

/// The entry to write to; adds to `copied` if somebody else holds the old one.
fn own<'a>(entry: &'a mut Rc<Entry>, copied: &mut u64) -> &'a mut Entry {
    if Rc::strong_count(entry) > 1 {
        *copied += ENTRY_COST;
    }
    Rc::make_mut(entry)
}

impl Entry {
    /// Its own part of a listing: the name and a NUL.
    fn listed(&self) -> usize {
        self.name.len() + 1
    }

    fn update(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
        self.bytes = self.listed() + bytes(&self.left) + bytes(&self.right);
    }
}

impl Children {
    /// Bytes of the whole listing.
    pub(crate) fn listed(&self) -> usize {
        bytes(&self.root)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Rc<Node>> {
        let mut link = &self.root;
        while let Some(entry) = link {
            link = match order(name, &entry.name) {
                Ordering::Less => &entry.left,
                Ordering::Greater => &entry.right,
                Ordering::Equal => return Some(&entry.node),
            };
        }
        None
    }

    /// The child, to be changed; the entries on the way are made our own.
    pub(crate) fn get_mut(&mut self, name: &str, copied: &mut u64) -> Option<&mut Rc<Node>> {
        self.get(name)?;
        let mut link = &mut self.root;
        while let Some(entry) = link {
            let entry = own(entry, copied);
            match order(name, &entry.name) {
                Ordering::Less => link = &mut entry.left,
                Ordering::Greater => link = &mut entry.right,
                Ordering::Equal => return Some(&mut entry.node),
            }
        }
        None
    }

    /// Adds a child, or replaces the one of that name.
    pub(crate) fn insert(&mut self, name: &str, node: Rc<Node>, copied: &mut u64) {
        match self.get_mut(name, copied) {
            Some(old) => *old = node,
            None => insert(&mut self.root, name, node, copied),
        }
    }

    pub(crate) fn remove(&mut self, name: &str, copied: &mut u64) -> Option<Rc<Node>> {
        self.get(name)?;
        remove(&mut self.root, name, copied)
    }

    /// By name.
    pub(crate) fn iter(&self) -> Iter<'_> {
        let mut iter = Iter { stack: Vec::new() };
        iter.descend(&self.root);
        iter
    }

    /// Appends the listing from byte `offset` on, as long as whole names fit into
    /// `room` bytes; says whether the end was reached.
    pub(crate) fn list(&self, offset: usize, room: usize, to: &mut Vec<u8>) -> bool {
        let (iter, mut skip) = self.seek(offset);
        let mut left = room;
        for (name, _) in iter {
            let tail = &name.as_bytes()[skip..];
            if tail.len() + 1 > left {
                return false;
            }
            left -= tail.len() + 1;
            skip = 0;
            to.extend_from_slice(tail);
            to.push(0);
        }
        true
    }

    /// The entry that holds byte `offset` of the listing and those after it, and how
    /// far into that entry the byte is.
    fn seek(&self, mut offset: usize) -> (Iter<'_>, usize) {
        let mut stack = Vec::new();
        let mut link = &self.root;
        while let Some(entry) = link {
            let before = bytes(&entry.left);
            if offset < before {
                stack.push(&**entry);
                link = &entry.left;
            } else if offset < before + entry.listed() {
                stack.push(&**entry);
                return (Iter { stack }, offset - before);
            } else {
                offset -= before + entry.listed();
                link = &entry.right;
            }
        }
        (Iter { stack }, 0)
    }

    /// Moves the tree out, for [`drop_all`].
    pub(crate) fn take(&mut self) -> Link {
        self.root.take()
    }
}

/// Frees a tree and all nodes below it that nobody else holds, without recursion:
/// a guest chooses how deep its nodes are, and our stacks are small.
pub(crate) fn drop_all(root: Link) {
    let mut waiting: Vec<Rc<Entry>> = root.into_iter().collect();
    while let Some(entry) = waiting.pop() {
        let Some(entry) = Rc::into_inner(entry) else {
            continue;
        };
        waiting.extend(entry.left);
        waiting.extend(entry.right);
        if let Some(mut node) = Rc::into_inner(entry.node) {
            waiting.extend(node.children.take());
        }
    }
}

/// In order of names.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    stack: Vec<&'a Entry>,
}

impl<'a> Iter<'a> {
    fn descend(&mut self, mut link: &'a Link) {
        while let Some(entry) = link {
            self.stack.push(entry);
            link = &entry.left;
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Rc<str>, &'a Rc<Node>);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.stack.pop()?;
        self.descend(&entry.right);
        Some((&entry.name, &entry.node))
    }
}

fn insert(link: &mut Link, name: &str, node: Rc<Node>, copied: &mut u64) {
    let Some(entry) = link else {
        *link = Some(Rc::new(Entry {
            name: name.into(),
            node,
            left: None,
            right: None,
            height: 1,
            bytes: name.len() + 1,
        }));
        return;
    };
    let entry = own(entry, copied);
    if order(name, &entry.name) == Ordering::Less {
        insert(&mut entry.left, name, node, copied);
    } else {
        insert(&mut entry.right, name, node, copied);
    }
    rebalance(link, copied);
}

/// `name` is there: looked up before, so that a miss copies nothing.
fn remove(link: &mut Link, name: &str, copied: &mut u64) -> Option<Rc<Node>> {
    let entry = own(link.as_mut()?, copied);
    let removed = match order(name, &entry.name) {
        Ordering::Less => remove(&mut entry.left, name, copied),
        Ordering::Greater => remove(&mut entry.right, name, copied),
        Ordering::Equal => {
            let node = entry.node.clone();
            let (left, right) = (entry.left.take(), entry.right.take());
            *link = match (left, right) {
                (None, other) | (other, None) => other,
                (left, mut right) => {
                    let mut heir = take_first(&mut right, copied)?;
                    let new = own(&mut heir, copied);
                    new.left = left;
                    new.right = right;
                    Some(heir)
                }
            };
            Some(node)
        }
    };
    rebalance(link, copied);
    removed
}

/// Unlinks the first entry of a tree.
fn take_first(link: &mut Link, copied: &mut u64) -> Link {
    let entry = own(link.as_mut()?, copied);
    if entry.left.is_some() {
        let first = take_first(&mut entry.left, copied);
        rebalance(link, copied);
        return first;
    }
    let rest = entry.right.take();
    core::mem::replace(link, rest)
}

fn rebalance(link: &mut Link, copied: &mut u64) {
    let Some(entry) = link else { return };
    let entry = own(entry, copied);
    entry.update();
    let (left, right) = (height(&entry.left), height(&entry.right));
    if left > right + 1 {
        if entry
            .left
            .as_ref()
            .is_some_and(|l| height(&l.right) > height(&l.left))
        {
            rotate_left(&mut entry.left, copied);
        }
        rotate_right(link, copied);
    } else if right > left + 1 {
        if entry
            .right
            .as_ref()
            .is_some_and(|r| height(&r.left) > height(&r.right))
        {
            rotate_right(&mut entry.right, copied);
        }
        rotate_left(link, copied);
    }
}

/// Lifts the left child; does nothing where there is none.
fn rotate_right(link: &mut Link, copied: &mut u64) {
    let Some(mut top) = link.take() else { return };
    let old = own(&mut top, copied);
    let Some(mut pivot) = old.left.take() else {
        *link = Some(top);
        return;
    };
    let new = own(&mut pivot, copied);
    old.left = new.right.take();
    old.update();
    new.right = Some(top);
    new.update();
    *link = Some(pivot);
}

/// Lifts the right child; does nothing where there is none.
fn rotate_left(link: &mut Link, copied: &mut u64) {
    let Some(mut top) = link.take() else { return };
    let old = own(&mut top, copied);
    let Some(mut pivot) = old.right.take() else {
        *link = Some(top);
        return;
    };
    let new = own(&mut pivot, copied);
    old.right = new.left.take();
    old.update();
    new.left = Some(top);
    new.update();
    *link = Some(pivot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perms::{Access, Perms};
    use alloc::collections::BTreeMap;
    use alloc::string::{String, ToString};
    use proptest::prelude::*;
    use xen_abi::DomId;

    fn node(mark: u8) -> Rc<Node> {
        let mut node = Node::new(Perms::owned(DomId(0), Access::NONE), 1);
        node.data = [mark].as_slice().into();
        Rc::new(node)
    }

    /// Heights and byte sums are right, and no two sides differ by more than 1.
    fn check(link: &Link) -> (u8, usize) {
        let Some(entry) = link else { return (0, 0) };
        let (lh, lb) = check(&entry.left);
        let (rh, rb) = check(&entry.right);
        assert!(lh.abs_diff(rh) <= 1);
        assert_eq!(entry.height, 1 + lh.max(rh));
        assert_eq!(entry.bytes, entry.name.len() + 1 + lb + rb);
        (entry.height, entry.bytes)
    }

    fn contents(children: &Children) -> Vec<(String, u8)> {
        children
            .iter()
            .map(|(name, node)| (name.to_string(), node.data[0]))
            .collect()
    }

    proptest! {
        #[test]
        fn agrees_with_btreemap_and_leaves_copies_alone(
            steps in proptest::collection::vec((0u16..60, any::<u8>(), 0u8..4), 1..300),
        ) {
            let mut ours = Children::default();
            let mut model = BTreeMap::new();
            let mut copies = Vec::new();
            let mut copied = 0;
            for (key, mark, action) in steps {
                let name = alloc::format!("k{key}");
                match action {
                    0 | 1 => {
                        ours.insert(&name, node(mark), &mut copied);
                        model.insert(name, mark);
                    }
                    2 => {
                        let was = ours.remove(&name, &mut copied).map(|node| node.data[0]);
                        prop_assert_eq!(was, model.remove(&name));
                    }
                    _ => copies.push((ours.clone(), model.clone())),
                }
                check(&ours.root);
            }
            copies.push((ours, model));
            for (children, model) in copies {
                // Names start with a letter here: the model's order is ours.
                prop_assert_eq!(contents(&children), model.into_iter().collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_listing_in_parts_is_the_listing(count in 0usize..80, room in 5usize..40) {
            let mut children = Children::default();
            let mut whole = Vec::new();
            for i in 0..count {
                children.insert(&alloc::format!("n{i:03}"), node(0), &mut 0);
            }
            prop_assert!(children.list(0, usize::MAX, &mut whole));
            prop_assert_eq!(whole.len(), children.listed());
            let mut parts = Vec::new();
            while !children.list(parts.len(), room, &mut parts) {}
            prop_assert_eq!(parts, whole);
        }
    }

    #[test]
    fn a_listing_from_any_byte_is_the_rest_of_it() {
        let mut children = Children::default();
        for i in 0..30 {
            let name = "n".repeat(1 + i % 7) + &i.to_string();
            children.insert(&name, node(0), &mut 0);
        }
        let mut whole = Vec::new();
        children.list(0, usize::MAX, &mut whole);
        for offset in 0..=whole.len() {
            let mut rest = Vec::new();
            assert!(children.list(offset, usize::MAX, &mut rest));
            assert_eq!(rest, whole[offset..], "from {offset}");
        }
    }

    #[test]
    fn numbers_come_first_and_by_value() {
        let mut children = Children::default();
        for name in ["b", "10", "a", "9", "1a", "100", "09"] {
            children.insert(name, node(0), &mut 0);
        }
        let names: Vec<_> = children.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["9", "09", "10", "100", "1a", "a", "b"]);
    }

    #[test]
    fn a_change_without_copies_copies_nothing() {
        let mut children = Children::default();
        let mut copied = 0;
        for i in 0..1000 {
            children.insert(&i.to_string(), node(0), &mut copied);
        }
        assert_eq!(copied, 0);
        let keep = children.clone();
        children.insert("500", node(1), &mut copied);
        // 1000 entries: no way down is longer than 1.44 log2(1000).
        assert!(copied > 0 && copied <= 15 * ENTRY_COST, "{copied}");
        assert_eq!(keep.get("500").unwrap().data[0], 0);
    }
}
