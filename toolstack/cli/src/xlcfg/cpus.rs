//! xl's lists of CPUs: `"0-3,^1"`, `"all"`, `"node:0"`, `"nodes:0-1,^5"`.

use std::collections::BTreeSet;

/// Highest CPU or node number that may be named.
const MAX_NUMBER: u32 = 4095;

/// A list of physical CPUs, as written; nodes become CPUs only where the host's are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList {
    terms: Vec<Term>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    All,
    Cpus { first: u32, last: u32, add: bool },
    Nodes { first: u32, last: u32, add: bool },
}

impl CpuList {
    /// Parses one list.
    pub fn parse(text: &str) -> Result<CpuList, String> {
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (part, add) = match part.strip_prefix('^') {
                Some(rest) => (rest, false),
                None => (part, true),
            };
            let nodes = part.strip_prefix("nodes:").or(part.strip_prefix("node:"));
            let part = nodes.unwrap_or(part);
            if part == "all" {
                if !add {
                    return Err("^ and all cannot stand together".into());
                }
                terms.push(Term::All);
                continue;
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(format!(
                    "'{part}' is not a CPU or a range of CPUs such as 0-3"
                ));
            };
            if last < first {
                return Err(format!("the range {part} is the wrong way round"));
            }
            terms.push(match nodes {
                Some(_) => Term::Nodes { first, last, add },
                None => Term::Cpus { first, last, add },
            });
        }
        Ok(CpuList { terms })
    }

    /// All that this list and another say.
    pub fn join(&mut self, other: CpuList) {
        self.terms.extend(other.terms);
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether CPUs are taken out of the list.
    pub fn excludes(&self) -> bool {
        self.terms.iter().any(|t| {
            matches!(
                t,
                Term::Cpus { add: false, .. } | Term::Nodes { add: false, .. }
            )
        })
    }

    /// Whether only the host's own topology tells which CPUs these are.
    pub fn needs_topology(&self) -> bool {
        let other = self.terms.iter().any(|term| *term != Term::All);
        self.terms.iter().any(|term| match term {
            Term::All => other,
            Term::Cpus { .. } => false,
            Term::Nodes { .. } => true,
        })
    }

    /// The CPUs, in order; empty means all. `node_cpus` holds each node's CPUs, and is
    /// empty if they are not known.
    pub fn resolve(&self, node_cpus: &[Vec<u32>]) -> Result<Vec<u32>, String> {
        if self.terms.iter().all(|term| *term == Term::All) {
            return Ok(Vec::new());
        }
        if self.needs_topology() && node_cpus.is_empty() {
            return Err("the host's nodes are not known".into());
        }
        let mut cpus = BTreeSet::new();
        for term in &self.terms {
            let (named, add): (Vec<u32>, bool) = match *term {
                Term::All => (node_cpus.concat(), true),
                Term::Cpus { first, last, add } => ((first..=last).collect(), add),
                Term::Nodes { first, last, add } => {
                    let mut named = Vec::new();
                    for node in first..=last {
                        let index = usize::try_from(node).unwrap_or(usize::MAX);
                        let Some(cpus) = node_cpus.get(index) else {
                            return Err(format!("the host has no node {node}"));
                        };
                        named.extend_from_slice(cpus);
                    }
                    (named, add)
                }
            };
            for cpu in named {
                if add {
                    cpus.insert(cpu);
                } else {
                    cpus.remove(&cpu);
                }
            }
        }
        if cpus.is_empty() {
            return Err("no CPU is left".into());
        }
        Ok(cpus.into_iter().collect())
    }
}

fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| *n <= MAX_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two CPUs each.
    fn nodes() -> Vec<Vec<u32>> {
        vec![vec![0, 1], vec![2, 3]]
    }

    #[test]
    fn xl_s_examples_mean_what_its_manual_says() {
        let cases: [(&str, &[u32]); 12] = [
            ("2", &[2]),
            ("0-3,5,^1", &[0, 2, 3, 5]),
            ("3,1,2-2", &[1, 2, 3]),
            ("all", &[]),
            ("nodes:all", &[]),
            ("", &[]),
            ("all,^0", &[1, 2, 3]),
            ("node:1", &[2, 3]),
            ("nodes:0-1,^node:0", &[2, 3]),
            ("node:0,^1", &[0]),
            ("1,node:1,^2", &[1, 3]),
            ("^0,0", &[0]),
        ];
        for (text, expected) in cases {
            let list = CpuList::parse(text).unwrap();
            assert_eq!(list.resolve(&nodes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn only_what_depends_on_the_host_needs_its_topology() {
        for (text, needs) in [
            ("0-3,^1", false),
            ("all", false),
            ("all,^1", true),
            ("node:0", true),
        ] {
            let list = CpuList::parse(text).unwrap();
            assert_eq!(list.needs_topology(), needs, "{text}");
            assert_eq!(list.resolve(&[]).is_err(), needs, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "x",
            "1-",
            "-1",
            "3-1",
            "^all",
            "^nodes:all",
            "node:",
            "4096",
            "1 2",
            "0x1",
            "+1",
        ] {
            assert!(CpuList::parse(text).is_err(), "{text}");
        }
        for text in ["node:2", "1,^1"] {
            assert!(
                CpuList::parse(text).unwrap().resolve(&nodes()).is_err(),
                "{text}"
            );
        }
    }
}
