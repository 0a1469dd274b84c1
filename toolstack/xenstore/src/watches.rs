//! Which watches a change fires.
//!
//! A trie over the names of paths: firing a change walks down the changed path and
//! meets only the watches on it, however many others there are.

use crate::path::Path;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Names one registered watch; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WatchId(pub u64);

/// A place in the trie, for walking down beside the tree of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

#[derive(Debug, Default)]
struct Branch {
    parent: usize,
    name: Box<str>,
    /// By name.
    children: Vec<usize>,
    watches: Vec<WatchId>,
}

/// What a watch may add to the index, in bytes: a branch for each name of its path.
pub(crate) const BRANCH_COST: usize = 192;

/// The watches by path. An arena, so that nothing recurses however deep a path is.
#[derive(Debug)]
pub(crate) struct WatchIndex {
    branches: Vec<Branch>,
    free: Vec<usize>,
}

const ROOT: usize = 0;
const SPECIAL: usize = 1;

fn top(path: &Path) -> usize {
    if path.is_special() { SPECIAL } else { ROOT }
}

impl WatchIndex {
    pub(crate) fn new() -> Self {
        Self {
            branches: alloc::vec![Branch::default(), Branch::default()],
            free: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, path: &Path, id: WatchId) {
        let mut at = top(path);
        for segment in path.segments() {
            at = match self.find(at, segment) {
                Ok(child) => child,
                Err(rank) => self.grow(at, segment, rank),
            };
        }
        self.branches[at].watches.push(id);
    }

    /// The child of that name, or where it would be among the children.
    fn find(&self, at: usize, name: &str) -> Result<usize, usize> {
        let children = &self.branches[at].children;
        children
            .binary_search_by(|child| (*self.branches[*child].name).cmp(name))
            .map(|rank| children[rank])
    }

    fn grow(&mut self, parent: usize, name: &str, rank: usize) -> usize {
        let branch = Branch {
            parent,
            name: name.into(),
            ..Branch::default()
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.branches[at] = branch;
                at
            }
            None => {
                self.branches.push(branch);
                self.branches.len() - 1
            }
        };
        self.branches[parent].children.insert(rank, at);
        at
    }

    pub(crate) fn remove(&mut self, path: &Path, id: WatchId) {
        let Some(Place(mut at)) = self.place(path) else {
            return;
        };
        self.branches[at].watches.retain(|other| *other != id);
        while at > SPECIAL
            && self.branches[at].watches.is_empty()
            && self.branches[at].children.is_empty()
        {
            let dead = core::mem::take(&mut self.branches[at]);
            self.branches[dead.parent]
                .children
                .retain(|child| *child != at);
            self.free.push(at);
            at = dead.parent;
        }
    }

    /// Where `path` is in the trie; `None`: no watch there or below.
    pub(crate) fn place(&self, path: &Path) -> Option<Place> {
        path.segments()
            .try_fold(top(path), |at, segment| self.find(at, segment).ok())
            .map(Place)
    }

    /// One step down.
    pub(crate) fn below(&self, place: Place, name: &str) -> Option<Place> {
        self.find(place.0, name).ok().map(Place)
    }

    /// The watches on exactly this place.
    pub(crate) fn at(&self, place: Place) -> &[WatchId] {
        &self.branches[place.0].watches
    }

    /// The watches that a change of `path` fires: on it and on all above it, or only
    /// on it if `exact`.
    pub(crate) fn matching(&self, path: &Path, exact: bool, out: &mut Vec<WatchId>) {
        if exact {
            if let Some(place) = self.place(path) {
                out.extend_from_slice(self.at(place));
            }
            return;
        }
        let mut at = top(path);
        out.extend_from_slice(&self.branches[at].watches);
        for segment in path.segments() {
            match self.find(at, segment) {
                Ok(child) => at = child,
                Err(_) => return,
            }
            out.extend_from_slice(&self.branches[at].watches);
        }
    }

    /// Branches in use, the two tops apart.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.branches.len() - self.free.len() - 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Path {
        Path::new(name).unwrap()
    }

    fn fired(index: &WatchIndex, name: &str, exact: bool) -> Vec<u64> {
        let mut out = Vec::new();
        index.matching(&path(name), exact, &mut out);
        out.iter().map(|id| id.0).collect()
    }

    #[test]
    fn a_change_fires_what_is_on_it_and_above_it() {
        let mut index = WatchIndex::new();
        for (i, name) in ["/", "/a", "/a/b", "/a/b/c", "/ab", "@x"]
            .iter()
            .enumerate()
        {
            index.insert(&path(name), WatchId(i as u64));
        }
        assert_eq!(fired(&index, "/a/b", false), [0, 1, 2]);
        assert_eq!(fired(&index, "/a/b", true), [2]);
        assert_eq!(fired(&index, "/a/z/z", false), [0, 1]);
        assert_eq!(fired(&index, "@x", false), [5]);
        assert_eq!(fired(&index, "@y", false), []);
    }

    #[test]
    fn a_removed_watch_leaves_nothing_behind() {
        let mut index = WatchIndex::new();
        index.insert(&path("/a/b/c"), WatchId(1));
        index.insert(&path("/a"), WatchId(2));
        index.remove(&path("/a/b/c"), WatchId(1));
        assert_eq!(index.len(), 1);
        index.remove(&path("/a"), WatchId(2));
        assert_eq!(index.len(), 0);
        index.insert(&path("/x/y"), WatchId(3));
        assert_eq!(fired(&index, "/x/y", false), [3]);
    }
}
