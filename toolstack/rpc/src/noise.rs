//! `Noise_IK_25519_ChaChaPoly_BLAKE2s`: the handshake and the ciphers it ends in.
//!
//! <https://noiseprotocol.org/noise.html>, pattern IK:
//! ```text
//! <- s                       the client knows the host's key beforehand
//! -> e, es, s, ss            96 bytes; the client's key is in it, sealed
//! <- e, ee, se, verdict      49 bytes; the verdict is one byte
//! ```
//! Both messages have an empty payload but for the verdict. A first message can be replayed
//! by somebody who recorded it; that yields a second message nobody can
//! read, and the first frame (which the replayer cannot make) is what proves the client:
//! [`crate::server::accept`] waits for it.

use alloc::boxed::Box;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};

use crate::frame::{Opener, Sealer};
use crate::key::{KEY_LEN, PrivateKey, PublicKey};
use crate::stream::{Entropy, NoEntropy};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";

/// Length of the client's message.
pub const FIRST_LEN: usize = 96;
/// Length of the host's message.
pub const SECOND_LEN: usize = 49;

/// What the host thinks of the client's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An administrator's.
    Welcome,
    /// Not on the list.
    UnknownKey,
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseError {
    /// The peer's message does not open: another key than ours was meant, or somebody
    /// changed it on its way.
    Undecipherable,
    /// No randomness for the ephemeral key.
    Entropy(NoEntropy),
    /// snow refuses its parameters, which are constants here.
    Setup,
}

/// The 32 bytes of one ephemeral key, handed out once.
///
/// snow wants its own `'static` generator; the kernel's lives on one vCPU and can't be
/// that. A second request, which pattern IK has no place for, fails.
struct OneKey(Option<[u8; KEY_LEN]>);

impl Random for OneKey {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        match self.0.take() {
            Some(bytes) if out.len() == KEY_LEN => {
                out.copy_from_slice(&bytes);
                Ok(())
            }
            _ => Err(snow::Error::Rng),
        }
    }
}

/// snow's own primitives with [`OneKey`] for randomness.
struct Resolver([u8; KEY_LEN]);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneKey(Some(self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The ciphers of both directions.
#[derive(Debug)]
pub struct Ciphers {
    /// For what we send.
    pub sealer: Sealer,
    /// For what we get.
    pub opener: Opener,
}

/// A client between its message and the host's.
#[derive(Debug)]
pub struct Initiator(HandshakeState);

/// A host that has read the client's message.
#[derive(Debug)]
pub struct Responder {
    state: HandshakeState,
    client: PublicKey,
}

fn builder<'a>(
    key: &'a PrivateKey,
    prologue: &'a [u8],
    entropy: &mut dyn Entropy,
) -> Result<Builder<'a>, NoiseError> {
    let mut ephemeral = [0; KEY_LEN];
    entropy.fill(&mut ephemeral).map_err(NoiseError::Entropy)?;
    let params: NoiseParams = PATTERN.parse().map_err(|_| NoiseError::Setup)?;
    Builder::with_resolver(params, Box::new(Resolver(ephemeral)))
        .local_private_key(key.as_bytes())
        .and_then(|b| b.prologue(prologue))
        .map_err(|_| NoiseError::Setup)
}

impl Initiator {
    /// Makes the first message, for the host with the key `host`.
    ///
    /// # Errors
    /// [`NoiseError::Entropy`].
    pub fn start(
        key: &PrivateKey,
        host: &PublicKey,
        prologue: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; FIRST_LEN]), NoiseError> {
        let mut state = builder(key, prologue, entropy)?
            .remote_public_key(&host.0)
            .and_then(Builder::build_initiator)
            .map_err(|_| NoiseError::Setup)?;
        let mut message = [0; FIRST_LEN];
        match state.write_message(&[], &mut message) {
            Ok(FIRST_LEN) => Ok((Initiator(state), message)),
            _ => Err(NoiseError::Setup),
        }
    }

    /// Reads the host's message.
    ///
    /// # Errors
    /// [`NoiseError::Undecipherable`].
    pub fn finish(mut self, message: &[u8; SECOND_LEN]) -> Result<(Verdict, Ciphers), NoiseError> {
        // snow decrypts into this with the tag still on it.
        let mut verdict = [0; SECOND_LEN];
        match self.0.read_message(message, &mut verdict) {
            Ok(1) => {}
            _ => return Err(NoiseError::Undecipherable),
        }
        let verdict = if verdict[0] == 0 {
            Verdict::Welcome
        } else {
            Verdict::UnknownKey
        };
        Ok((verdict, split(self.0)?))
    }
}

impl Responder {
    /// Reads the client's message. Nothing is known about who sent it until
    /// [`Responder::client`] has been looked up.
    ///
    /// # Errors
    /// [`NoiseError::Undecipherable`] (most often: the client means another host),
    /// [`NoiseError::Entropy`].
    pub fn read(
        key: &PrivateKey,
        prologue: &[u8],
        message: &[u8; FIRST_LEN],
        entropy: &mut dyn Entropy,
    ) -> Result<Self, NoiseError> {
        let mut state = builder(key, prologue, entropy)?
            .build_responder()
            .map_err(|_| NoiseError::Setup)?;
        match state.read_message(message, &mut [0; FIRST_LEN]) {
            Ok(0) => {}
            _ => return Err(NoiseError::Undecipherable),
        }
        let client = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .map(PublicKey)
            .ok_or(NoiseError::Undecipherable)?;
        Ok(Responder { state, client })
    }

    /// The client's key. Who made the message has the private one; who sent it now may have
    /// recorded it.
    #[must_use]
    pub fn client(&self) -> PublicKey {
        self.client
    }

    /// Makes the second message.
    ///
    /// # Errors
    /// [`NoiseError::Setup`] only.
    pub fn finish(mut self, verdict: Verdict) -> Result<([u8; SECOND_LEN], Ciphers), NoiseError> {
        let mut message = [0; SECOND_LEN];
        let verdict = match verdict {
            Verdict::Welcome => [0],
            Verdict::UnknownKey => [1],
        };
        match self.state.write_message(&verdict, &mut message) {
            Ok(SECOND_LEN) => Ok((message, split(self.state)?)),
            _ => Err(NoiseError::Setup),
        }
    }
}

/// `Split()` of the specification (section 5.2): the first cipher is the initiator's.
///
/// Ours are not snow's `TransportState`, which holds both directions in one object: a
/// console's two directions run on two threads, and frames authenticate their headers.
fn split(mut state: HandshakeState) -> Result<Ciphers, NoiseError> {
    if !state.is_handshake_finished() {
        return Err(NoiseError::Setup);
    }
    let (initiator, responder) = state.dangerously_get_raw_split();
    let (ours, theirs) = if state.is_initiator() {
        (initiator, responder)
    } else {
        (responder, initiator)
    };
    Ok(Ciphers {
        sealer: Sealer::new(cipher(&ours)?),
        opener: Opener::new(cipher(&theirs)?),
    })
}

fn cipher(key: &[u8; KEY_LEN]) -> Result<Box<dyn Cipher>, NoiseError> {
    let mut cipher = DefaultResolver
        .resolve_cipher(&CipherChoice::ChaChaPoly)
        .ok_or(NoiseError::Setup)?;
    cipher.set(key);
    Ok(cipher)
}

/// Two ciphers that fit each other, without a handshake.
///
/// For tests and fuzzers.
#[must_use]
pub fn ciphers_for_tests(key: [u8; KEY_LEN]) -> Option<Ciphers> {
    Some(Ciphers {
        sealer: Sealer::new(cipher(&key).ok()?),
        opener: Opener::new(cipher(&key).ok()?),
    })
}
