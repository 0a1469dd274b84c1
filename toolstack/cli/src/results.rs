//! What a command did to each of the guests or volumes it was given.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{self, Format};

/// The results so far, in the order of the command line.
#[derive(Debug)]
pub struct Results {
    verb: &'static str,
    /// What the names are names of: the key in JSON.
    kind: &'static str,
    all: Vec<(String, Result<(), Failure>)>,
}

impl Results {
    /// None yet.
    pub fn new(verb: &'static str, kind: &'static str) -> Self {
        let all = Vec::new();
        Results { verb, kind, all }
    }

    /// What became of one of them.
    pub fn push(&mut self, name: &str, result: Result<(), Failure>) {
        self.all.push((name.to_owned(), result));
    }

    /// Says all of it to programs, and to people what failed. The command has failed if
    /// anything has.
    pub fn finish(self, format: Format) -> Result<(), Failure> {
        let printed = output::done(format, &self.to_json());
        let failures: Vec<_> = self.all.into_iter().filter_map(|(_, r)| r.err()).collect();
        if failures.is_empty() {
            return printed;
        }
        Err(Failure::Several(failures))
    }

    fn to_json(&self) -> Value {
        let element = |(name, result): &(String, Result<(), Failure>)| match result {
            Ok(()) => json!({"done": self.verb, self.kind: name}),
            Err(failure) => json!({"error": failure.lines().join("; "), self.kind: name}),
        };
        self.all.iter().map(element).collect()
    }
}
