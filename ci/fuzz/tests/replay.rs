//! The committed corpora, and a fixed set of changes to them, through every target.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fuzz::TARGETS;

/// Changes made to each file of a corpus, and fewer where each run costs several X25519
/// operations, a tenth of a second without optimisation.
const CHANGES: u64 = 150;
const CHANGES_OF_HANDSHAKES: u64 = 1;
/// No input of a corpus may take longer than this, on a busy machine and unoptimised.
const LIMIT: Duration = Duration::from_secs(30);

/// Vigna's splitmix64: enough to make changes that are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Extremes break more than the rest does.
        match self.below(4) {
            0 => [0, 1, 0x7f, 0x80, 0xff, b'\n', b',', b'/'][self.below(8)],
            _ => u8::try_from(self.below(256)).unwrap(),
        }
    }
}

fn changed(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.byte()),
            2 => {
                let to = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..to);
            }
            3 => {
                let to = (at + random.below(64)).min(bytes.len());
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.byte();
                }
            }
        }
    }
    bytes
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn every_target_survives_its_corpus_and_changes_to_it() {
    for (name, run) in TARGETS {
        let changes = if name.ends_with("_handshake") {
            CHANGES_OF_HANDSHAKES
        } else {
            CHANGES
        };
        let mut inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        inputs.push((format!("{name}: nothing"), Vec::new()));
        for (number, (file, seed)) in (0u64..).zip(inputs) {
            let mut random = Random(number);
            for change in 0..=changes {
                let input = match change {
                    0 => seed.clone(),
                    _ => changed(&seed, &mut random),
                };
                let started = Instant::now();
                let outcome = std::panic::catch_unwind(|| run(&input));
                assert!(outcome.is_ok(), "{file}, change {change}: {input:x?}");
                assert!(
                    started.elapsed() < LIMIT,
                    "{file}, change {change} takes too long"
                );
            }
        }
    }
}

#[test]
fn corpora_and_libfuzzer_s_programs_are_those_of_the_list() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut expected: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.sort();
    for part in ["corpus", "libfuzzer/fuzz_targets"] {
        let mut names: Vec<String> = fs::read_dir(folder.join(part))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, expected, "{part}");
    }
    let manifest = fs::read_to_string(folder.join("libfuzzer/Cargo.toml")).unwrap();
    for name in expected {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
    }
}
