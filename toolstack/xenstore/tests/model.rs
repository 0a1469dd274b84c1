//! Random sequences of operations by several clients, with transactions, against a
//! model that is as simple as can be: a map from path to node, cloned whole for each
//! transaction, and conflicts by comparing node against node.
mod common;

use common::{Bed, Op};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use toolstack_xenstore::ConnId;
use xen_abi::DomId;

#[derive(Clone, Debug, PartialEq)]
struct Node {
    value: String,
    /// Domain and letter; the owner's first.
    perms: Vec<(u16, char)>,
    /// Changes whenever the node or its list of children does.
    version: u64,
}

/// Every node by its whole path.
type Tree = BTreeMap<String, Node>;

#[derive(Clone, Debug)]
enum Change {
    Write(String, String),
    Mkdir(String),
    Rm(String),
    Chmod(String, Vec<(u16, char)>),
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Self::Write(path, _) | Self::Mkdir(path) | Self::Rm(path) | Self::Chmod(path, _) => {
                path
            }
        }
    }
}

struct Transaction {
    base: Tree,
    view: Tree,
    reads: BTreeSet<String>,
    /// Nodes whose value it wrote itself, with no removal since.
    own: BTreeSet<String>,
    changes: Vec<Change>,
}

struct Model {
    tree: Tree,
    version: u64,
    transactions: BTreeMap<(usize, u32), Transaction>,
}

fn parent(path: &str) -> Option<String> {
    if path == "/" {
        return None;
    }
    let cut = path.rfind('/').unwrap();
    Some(if cut == 0 {
        "/".into()
    } else {
        path[..cut].into()
    })
}

fn is_below(path: &str, above: &str) -> bool {
    path == above || above == "/" || path.starts_with(&format!("{above}/"))
}

fn may(actor: u16, node: &Node, letter: char) -> bool {
    let (owner, default) = node.perms[0];
    if actor == 0 || actor == owner {
        return true;
    }
    let named = node.perms[1..].iter().find(|(domid, _)| *domid == actor);
    let granted = named.map_or(default, |(_, letter)| *letter);
    granted == 'b' || granted == letter
}

/// Finds a node for somebody, or says why not.
fn look<'a>(
    tree: &'a Tree,
    actor: u16,
    path: &str,
    letter: char,
) -> Result<&'a Node, &'static str> {
    if let Some(node) = tree.get(path) {
        return if may(actor, node, letter) {
            Ok(node)
        } else {
            Err("EACCES")
        };
    }
    let mut above = parent(path).unwrap();
    while !tree.contains_key(&above) {
        above = parent(&above).unwrap();
    }
    Err(if may(actor, &tree[&above], letter) {
        "ENOENT"
    } else {
        "EACCES"
    })
}

fn make(tree: &mut Tree, version: &mut u64, actor: u16, path: &str, value: &str) {
    let above = parent(path).unwrap();
    if !tree.contains_key(&above) {
        make(tree, version, actor, &above, "");
    }
    *version += 1;
    let above = tree.get_mut(&above).unwrap();
    above.version = *version;
    let mut perms = above.perms.clone();
    if actor != 0 {
        perms[0].0 = actor;
    }
    tree.insert(
        path.into(),
        Node {
            value: value.into(),
            perms,
            version: *version,
        },
    );
}

/// Does a change, or says why not; a tree that was refused is as before.
fn change(
    tree: &mut Tree,
    version: &mut u64,
    actor: u16,
    change: &Change,
) -> Result<(), &'static str> {
    let path = change.path();
    match (change, look(tree, actor, path, 'w')) {
        (Change::Rm(_), Err("ENOENT")) => {
            let gone = !tree.contains_key(&parent(path).unwrap());
            if gone { Err("ENOENT") } else { Ok(()) }
        }
        (Change::Chmod(..), Err(error)) | (_, Err(error @ "EACCES")) => Err(error),
        (Change::Rm(_), _) if path == "/" => Err("EINVAL"),
        (Change::Rm(_), _) => {
            tree.retain(|other, _| !is_below(other, path));
            *version += 1;
            tree.get_mut(&parent(path).unwrap()).unwrap().version = *version;
            Ok(())
        }
        (Change::Write(_, value), Ok(_)) => {
            *version += 1;
            let node = tree.get_mut(path).unwrap();
            (node.value, node.version) = (value.clone(), *version);
            Ok(())
        }
        (Change::Write(_, value), Err(_)) => {
            make(tree, version, actor, path, value);
            Ok(())
        }
        (Change::Mkdir(_), Ok(_)) => Ok(()),
        (Change::Mkdir(_), Err(_)) => {
            make(tree, version, actor, path, "");
            Ok(())
        }
        (Change::Chmod(_, perms), Ok(node)) => {
            let owner = node.perms[0].0;
            if actor != 0 && actor != owner {
                return Err("EACCES");
            }
            if actor != 0 && perms[0].0 != owner {
                return Err("EPERM");
            }
            *version += 1;
            let node = tree.get_mut(path).unwrap();
            (node.perms, node.version) = (perms.clone(), *version);
            Ok(())
        }
    }
}

impl Model {
    fn apply(
        &mut self,
        client: usize,
        actor: u16,
        tx: u32,
        what: &Change,
    ) -> Result<(), &'static str> {
        let Some(transaction) = self.transactions.get_mut(&(client, tx)) else {
            return change(&mut self.tree, &mut self.version, actor, what);
        };
        let done = change(&mut transaction.view, &mut self.version, actor, what);
        match (&done, what) {
            (Err(_), _) => {
                transaction.reads.insert(what.path().into());
                return done;
            }
            (_, Change::Write(path, _)) => {
                transaction.own.insert(path.clone());
            }
            (_, Change::Rm(_)) => transaction.own.clear(),
            _ => {}
        }
        transaction.changes.push(what.clone());
        done
    }

    fn read(
        &mut self,
        client: usize,
        actor: u16,
        tx: u32,
        path: &str,
        value_only: bool,
    ) -> Result<(Node, Vec<String>), &'static str> {
        let tree = match self.transactions.get_mut(&(client, tx)) {
            None => &self.tree,
            Some(transaction) => {
                if !(value_only && transaction.own.contains(path)) {
                    transaction.reads.insert(path.into());
                }
                &transaction.view
            }
        };
        let node = look(tree, actor, path, 'r')?.clone();
        let below = tree
            .keys()
            .filter(|other| parent(other).as_deref() == Some(path));
        let names = below.map(|other| other.rsplit('/').next().unwrap().to_owned());
        Ok((node, names.collect()))
    }

    fn end(
        &mut self,
        client: usize,
        actor: u16,
        tx: u32,
        commit: bool,
    ) -> Result<(), &'static str> {
        let transaction = self.transactions.remove(&(client, tx)).ok_or("ENOENT")?;
        if !commit {
            return Ok(());
        }
        for path in &transaction.reads {
            let version = |tree: &Tree| tree.get(path).map(|node| node.version);
            if version(&transaction.base) != version(&self.tree) {
                return Err("EAGAIN");
            }
        }
        let mut tree = self.tree.clone();
        for what in &transaction.changes {
            change(&mut tree, &mut self.version, actor, what).map_err(|_| "EAGAIN")?;
        }
        self.tree = tree;
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(String),
    List(String),
    Perms(String),
    Change(Change),
    Start,
    End(bool),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "1"]);
    prop::collection::vec(name, 1..4).prop_map(|names| format!("/{}", names.join("/")))
}

fn step() -> impl Strategy<Value = Step> {
    let perm = (0u16..4, prop::sample::select(vec!['n', 'r', 'w', 'b']));
    let perms = prop::collection::vec(perm, 1..4);
    prop_oneof![
        4 => path().prop_map(Step::Read),
        2 => path().prop_map(Step::List),
        1 => path().prop_map(Step::Perms),
        6 => (path(), "[a-z]{0,3}").prop_map(|(p, v)| Step::Change(Change::Write(p, v))),
        2 => path().prop_map(|p| Step::Change(Change::Mkdir(p))),
        2 => path().prop_map(|p| Step::Change(Change::Rm(p))),
        3 => (path(), perms).prop_map(|(p, perms)| Step::Change(Change::Chmod(p, perms))),
        2 => Just(Step::Start),
        3 => any::<bool>().prop_map(Step::End),
    ]
}

/// The clients: dom0 twice, and three guests.
const ACTORS: [u16; 5] = [0, 0, 1, 2, 3];

/// What both worlds answered, in words.
type Outcome = Result<String, String>;

fn words(perms: &[(u16, char)]) -> Vec<String> {
    perms
        .iter()
        .map(|(domid, letter)| format!("{letter}{domid}"))
        .collect()
}

fn ask_server(bed: &mut Bed, conn: ConnId, tx: u32, step: &Step) -> Outcome {
    match step {
        Step::Read(path) => bed.read(conn, tx, path),
        Step::List(path) => {
            let mut names = bed.list(conn, tx, path)?;
            names.sort();
            Ok(names.join(","))
        }
        Step::Perms(path) => {
            let perms = bed.call(conn, Op::GET_PERMS, tx, &common::strings(&[path]))?;
            Ok(String::from_utf8(perms).unwrap())
        }
        Step::Change(Change::Write(path, value)) => {
            bed.write(conn, tx, path, value).map(|()| String::new())
        }
        Step::Change(Change::Mkdir(path)) => bed.mkdir(conn, tx, path).map(|()| String::new()),
        Step::Change(Change::Rm(path)) => bed.rm(conn, tx, path).map(|()| String::new()),
        Step::Change(Change::Chmod(path, perms)) => {
            let words = words(perms);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            bed.chmod(conn, tx, path, &words).map(|()| String::new())
        }
        Step::Start | Step::End(_) => unreachable!("handled by the caller"),
    }
}

fn ask_model(model: &mut Model, client: usize, tx: u32, step: &Step) -> Outcome {
    let actor = ACTORS[client];
    let answer = match step {
        Step::Read(path) => model
            .read(client, actor, tx, path, true)
            .map(|(node, _)| node.value),
        Step::List(path) => model
            .read(client, actor, tx, path, false)
            .map(|(_, mut names)| {
                names.sort();
                names.join(",")
            }),
        Step::Perms(path) => model.read(client, actor, tx, path, false).map(|(node, _)| {
            words(&node.perms)
                .iter()
                .map(|word| format!("{word}\0"))
                .collect()
        }),
        Step::Change(what) => model.apply(client, actor, tx, what).map(|()| String::new()),
        Step::Start | Step::End(_) => unreachable!("handled by the caller"),
    };
    answer.map_err(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_server_agrees_with_the_model(
        steps in prop::collection::vec((0..ACTORS.len(), any::<bool>(), step()), 1..120),
    ) {
        let mut bed = Bed::new();
        let conns: Vec<ConnId> = ACTORS
            .iter()
            .map(|domid| match domid {
                0 => bed.tools(),
                _ => bed.server.domain_introduced(DomId(*domid)),
            })
            .collect();
        bed.server.remove("/tool").unwrap();
        let root = Node { value: String::new(), perms: vec![(0, 'n')], version: 0 };
        let mut model = Model {
            tree: [("/".to_owned(), root)].into(),
            version: 0,
            transactions: BTreeMap::new(),
        };
        // Guests may work in the root, or there would be little to see.
        let open = Step::Change(Change::Chmod("/".into(), vec![(0, 'b')]));
        ask_server(&mut bed, conns[0], 0, &open).unwrap();
        ask_model(&mut model, 0, 0, &open).unwrap();
        let mut open: Vec<Option<u32>> = vec![None; ACTORS.len()];
        for (client, inside, step) in steps {
            let conn = conns[client];
            // Time goes on, so that the write rate limit holds nobody up.
            bed.wait(1000);
            match step {
                Step::Start if open[client].is_none() => {
                    let tx = bed.start(conn).unwrap();
                    let (base, view) = (model.tree.clone(), model.tree.clone());
                    let transaction = Transaction {
                        base,
                        view,
                        reads: BTreeSet::new(),
                        own: BTreeSet::new(),
                        changes: Vec::new(),
                    };
                    model.transactions.insert((client, tx), transaction);
                    open[client] = Some(tx);
                }
                Step::Start => {}
                Step::End(commit) => {
                    if let Some(tx) = open[client].take() {
                        let ours = bed.end(conn, tx, commit);
                        let theirs = model.end(client, ACTORS[client], tx, commit);
                        prop_assert_eq!(ours, theirs.map_err(str::to_owned));
                    }
                }
                step => {
                    let tx = if inside { open[client].unwrap_or(0) } else { 0 };
                    let ours = ask_server(&mut bed, conn, tx, &step);
                    let theirs = ask_model(&mut model, client, tx, &step);
                    prop_assert_eq!(ours, theirs, "client {} tx {} {:?}", client, tx, step);
                }
            }
        }
        // Every node, as dom0 sees it.
        for (path, node) in &model.tree {
            prop_assert_eq!(bed.read(conns[0], 0, path), Ok(node.value.clone()));
        }
        let mut owned: BTreeMap<u16, usize> = BTreeMap::new();
        for node in model.tree.values() {
            *owned.entry(node.perms[0].0).or_default() += 1;
        }
        for domid in [1u16, 2, 3] {
            let counted = bed.server.stats(DomId(domid)).unwrap().nodes.now;
            prop_assert_eq!(counted, owned.get(&domid).copied().unwrap_or(0), "d{}", domid);
        }
        bed.check();
    }
}
