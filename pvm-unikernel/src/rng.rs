//! Random numbers: ChaCha20 seeded and reseeded by the processor's generator.
#![expect(
    unsafe_code,
    reason = "RDRAND and CPUID are instructions; the intrinsics want a target feature \
              that the build does not assume"
)]

use core::arch::asm;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spin::Mutex;

/// Bytes given out between two reseedings.
const RESEED_AFTER: usize = 1 << 20;
/// Intel's SDM: a working RDRAND does not fail ten times in a row.
const TRIES: usize = 10;

struct State {
    generator: ChaCha20Rng,
    left: usize,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Seeds the generator. `false`: this processor has no working RDRAND, and nothing
/// that needs secrets may start.
#[must_use]
pub fn init() -> bool {
    let seed = seed();
    let ok = seed.is_some();
    *STATE.lock() = seed.map(State::new);
    ok
}

/// Fills `to` with unpredictable bytes.
///
/// # Panics
/// If [`init`] failed or was not called: better no host than a guessable key.
pub fn fill(to: &mut [u8]) {
    let mut guard = STATE.lock();
    let state = guard.as_mut().expect("the random generator is not seeded");
    if state.left < to.len() {
        // What was there is mixed in, so a generator that fails now makes things no worse.
        let mut fresh = seed().unwrap_or_default();
        let mut old = [0; 32];
        state.generator.fill_bytes(&mut old);
        fresh.iter_mut().zip(old).for_each(|(f, o)| *f ^= o);
        *state = State::new(fresh);
    }
    state.left = state.left.saturating_sub(to.len());
    state.generator.fill_bytes(to);
}

/// One unpredictable number.
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

impl State {
    fn new(seed: [u8; 32]) -> Self {
        Self {
            generator: ChaCha20Rng::from_seed(seed),
            left: RESEED_AFTER,
        }
    }
}

fn seed() -> Option<[u8; 32]> {
    // CPUID.1:ECX bit 30.
    if core::arch::x86_64::__cpuid(1).ecx >> 30 & 1 == 0 {
        return None;
    }
    let mut seed = [0; 32];
    for word in seed.chunks_exact_mut(8) {
        word.copy_from_slice(&(0..TRIES).find_map(|_| rdrand())?.to_le_bytes());
    }
    // A generator stuck at one value (seen on processors after suspend) is no generator.
    (seed[..8] != seed[8..16]).then_some(seed)
}

fn rdrand() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: `seed` found the instruction in CPUID; it touches registers and flags only.
    unsafe {
        asm!("rdrand {value}", "setc {ok}", value = out(reg) value, ok = out(reg_byte) ok,
             options(nomem, nostack));
    }
    (ok == 1).then_some(value)
}
