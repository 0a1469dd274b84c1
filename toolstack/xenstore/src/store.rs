//! The tree of nodes, as a value: a clone is a snapshot, taken in O(1).
//!
//! No permission, quota or watch is known here; see [`crate::ops`].

use crate::children::Iter;
use crate::node::{Node, node_cost};
use crate::path::Path;
use crate::perms::{Access, Perms};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use xen_abi::DomId;

/// The nodes, and the special ones beside them.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: Rc<Node>,
    /// Its children are the special nodes.
    special: Rc<Node>,
    /// Of the youngest change.
    generation: u64,
    /// Bytes ever copied or cut out that a snapshot may hold: bounds from above what a
    /// snapshot keeps alive, by the difference since it was taken.
    copied: u64,
    /// Bytes of nodes ever made, without their values.
    made: u64,
}

/// What is found on the way to a path.
pub(crate) enum Found<'a> {
    Node(&'a Node),
    /// No such node; the deepest that exists above it, and the names still missing.
    /// Special names that do not exist have the root above them.
    Above(&'a Node, usize),
}

fn own<'a>(node: &'a mut Rc<Node>, copied: &mut u64) -> &'a mut Node {
    if Rc::strong_count(node) > 1 {
        // The value is shared with the old state until it is replaced.
        *copied += (node.cost("") - node.data.len()) as u64;
    }
    Rc::make_mut(node)
}

impl Store {
    /// What a xenstored starts with, all owned by `owner`.
    pub(crate) fn new(owner: DomId) -> Self {
        let perms = Perms::owned(owner, Access::NONE);
        let mut store = Self {
            root: Rc::new(Node::new(perms.clone(), 1)),
            special: Rc::new(Node::new(perms.clone(), 1)),
            generation: 1,
            copied: 0,
            made: 0,
        };
        for name in [
            "/tool/xenstored",
            Path::INTRODUCE_DOMAIN,
            Path::RELEASE_DOMAIN,
        ] {
            let path = Path::new(name).expect("a constant that is a good name");
            store.create(&path, &perms, &[]);
        }
        store
    }

    fn top(&self, path: &Path) -> &Rc<Node> {
        if path.is_special() {
            &self.special
        } else {
            &self.root
        }
    }

    pub(crate) fn find(&self, path: &Path) -> Found<'_> {
        let mut node: &Node = self.top(path);
        let mut segments = path.segments();
        while let Some(segment) = segments.next() {
            match node.children.get(segment) {
                Some(child) => node = child,
                None if path.is_special() => return Found::Above(&self.root, 1),
                None => return Found::Above(node, 1 + segments.count()),
            }
        }
        Found::Node(node)
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        match self.find(path) {
            Found::Node(node) => Some(node),
            Found::Above(..) => None,
        }
    }

    /// A node's generation; `None`: no such node.
    pub(crate) fn generation_of(&self, path: &Path) -> Option<u64> {
        self.get(path).map(|node| node.generation)
    }

    /// Of the youngest change: equal numbers mean equal stores.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// See the field.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    /// See the field.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// Takes an earlier state back, without going back in generations: numbers of states that
    /// were given up are never used again. What was copied since is gone with what it was
    /// copied for, and no snapshot was taken in between.
    pub(crate) fn restore(&mut self, state: Self) {
        self.root = state.root;
        self.special = state.special;
        self.copied = state.copied;
    }

    /// The node to write to, which exists; the way to it is made our own.
    fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        self.get(path)?;
        let copied = &mut self.copied;
        let top = if path.is_special() {
            &mut self.special
        } else {
            &mut self.root
        };
        let mut node = own(top, copied);
        for segment in path.segments() {
            node = own(node.children.get_mut(segment, copied)?, copied);
        }
        Some(node)
    }

    /// Sets the value of a node that exists.
    pub(crate) fn set_data(&mut self, path: &Path, data: &[u8]) {
        self.generation += 1;
        let generation = self.generation;
        if let Some(node) = self.get_mut(path) {
            let old = core::mem::replace(&mut node.data, data.into());
            node.generation = generation;
            if Rc::strong_count(&old) > 1 {
                self.copied += old.len() as u64;
            }
        }
    }

    /// Sets the permissions of a node that exists.
    pub(crate) fn set_perms(&mut self, path: &Path, perms: Perms) {
        self.generation += 1;
        let generation = self.generation;
        if let Some(node) = self.get_mut(path) {
            node.perms = perms;
            node.generation = generation;
        }
    }

    /// Makes a node that does not exist, and those missing above it, all with the
    /// same permissions.
    pub(crate) fn create(&mut self, path: &Path, perms: &Perms, data: &[u8]) {
        let copied = &mut self.copied;
        let top = if path.is_special() {
            &mut self.special
        } else {
            &mut self.root
        };
        let mut node = own(top, copied);
        for segment in path.segments() {
            if node.children.get(segment).is_none() {
                self.generation += 1;
                node.generation = self.generation;
                self.generation += 1;
                self.made += node_cost(segment.len(), perms.entries().len(), 0) as u64;
                let child = Node::new(perms.clone(), self.generation);
                node.children.insert(segment, Rc::new(child), copied);
            }
            let child = node
                .children
                .get_mut(segment, copied)
                .expect("just put there");
            node = own(child, copied);
        }
        node.data = data.into();
    }

    /// Cuts a node, with all below it, out of the tree. The root stays. See
    /// [`Self::cut_out`].
    pub(crate) fn remove(&mut self, path: &Path) -> Option<Rc<Node>> {
        self.get(path)?;
        let parent = path.parent()?;
        self.generation += 1;
        let generation = self.generation;
        let parent = self.get_mut(&parent)?;
        parent.generation = generation;
        let mut copied = 0;
        let node = parent.children.remove(path.name(), &mut copied);
        self.copied += copied;
        node
    }

    /// Counts so many bytes of nodes that [`Self::remove`] gave: those that a snapshot
    /// has are alive as long as it is. Which these are would show only node by node.
    pub(crate) fn cut_out(&mut self, bytes: u64) {
        self.copied += bytes;
    }

    /// Every node, parents first, the special ones last.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk {
            root: Some(&self.root),
            special: Some(&self.special),
            path: String::new(),
            open: Vec::new(),
            last: None,
        }
    }
}

/// See [`Store::walk`]. Says where it is only when asked: most nodes pass unnoticed.
pub(crate) struct Walk<'a> {
    /// Not given out yet.
    root: Option<&'a Node>,
    special: Option<&'a Node>,
    /// Of the node that came last; empty for the root.
    path: String,
    /// The children still to come on each level, and how long the path above them is;
    /// `None`: they are special.
    open: Vec<(Iter<'a>, Option<usize>)>,
    /// The node whose children come next.
    last: Option<&'a Node>,
}

impl<'a> Walk<'a> {
    /// Leaves out what is below the node that came last.
    pub(crate) fn skip_below(&mut self) {
        self.last = None;
    }

    /// Where the node that came last is.
    pub(crate) fn path(&self) -> Path {
        Path::of_node(&self.path)
    }
}

impl<'a> Iterator for Walk<'a> {
    /// A node and the length of its name.
    type Item = (&'a Node, usize);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.root.take() {
            self.last = Some(root);
            return Some((root, 0));
        }
        if let Some(node) = self.last.take()
            && node.children.listed() > 0
        {
            self.open
                .push((node.children.iter(), Some(self.path.len())));
        }
        loop {
            let Some((children, above)) = self.open.last_mut() else {
                let special = self.special.take()?;
                self.open.push((special.children.iter(), None));
                continue;
            };
            let Some((name, node)) = children.next() else {
                self.open.pop();
                continue;
            };
            self.path.truncate(above.unwrap_or(0));
            if above.is_some() {
                self.path.push('/');
            }
            self.path.push_str(name);
            self.last = Some(node);
            return Some((node, name.len()));
        }
    }
}

/// Each node of a cut-out tree with its name, for accounts; no particular order.
pub(crate) fn each_removed(name: &str, node: &Rc<Node>, mut each: impl FnMut(&Node, usize)) {
    let mut waiting: Vec<(usize, &Rc<Node>)> = alloc::vec![(name.len(), node)];
    while let Some((name_len, node)) = waiting.pop() {
        let perms = node.perms.entries().len();
        each(node, node_cost(name_len, perms, node.data.len()));
        waiting.extend(node.children.iter().map(|(name, node)| (name.len(), node)));
    }
}
