//! What the command line `closer` and a Closer host say to each other, and how.
//!
//! One TCP connection carries, in this order:
//!
//! 1. a cleartext hello ([`hello`]): magic and protocol versions, so that programs of
//!    different ages part with one clear message;
//! 2. a Noise IK handshake ([`noise`]) with keys that both sides know beforehand: the
//!    client has the host's public key, the host has a list of administrators' keys. Who
//!    has sent no frame after it may have replayed a recording, and is still a stranger;
//! 3. encrypted frames ([`frame`]): messages ([`message`]: one [`Request`], one
//!    [`Response`], again and again) and, where a request asks for it, a stream of data
//!    ([`transfer`]) or a console ([`connection::Connection::read_console`]).
//!
//! The crate is `no_std` and knows neither sockets nor time: the kernel implements
//! [`ByteStream`] over its TCP sockets, and puts deadlines around what it awaits. With the
//! feature `std`, [`tcp`] does it for the command line.
//!
//! ```ignore
//! // A host, one task per connection:
//! let mut peer = deadline(5_s, server::accept(socket, &keys, &mut rng)).await??;
//! while let Some(request) = peer.next_request().await? {
//!     match request {
//!         Request::HostInfo => peer.respond(&Response::HostInfo(info())).await?,
//!         Request::VolumeImport { .. } => {
//!             peer.respond(&Response::Ready { len: 0 }).await?;
//!             let mut incoming = peer.incoming();
//!             loop {
//!                 match incoming.next().await {
//!                     Ok(Some(Chunk::Bytes(bytes))) => { /* write them, or: */
//!                         incoming.reject(&RpcError::NoSpace { .. }).await?; break }
//!                     Ok(Some(Chunk::Zeros(count))) => { /* a hole */ }
//!                     Ok(None) => { /* all is there: keep it */
//!                         peer.respond(&Response::Done).await?; break }
//!                     Err(e) => { /* cut or given up: drop the half volume */ }
//!                 }
//!             }
//!         }
//!         Request::ConsoleAttach { .. } => {
//!             peer.respond(&Response::Ready { len: 0 }).await?;
//!             loop {
//!                 match select(peer.read_console(), console.output()).await {
//!                     Left(input) => match input? { Some(bytes) => .., None => break },
//!                     Right(output) => peer.write_console(output).await?,
//!                 }
//!             }
//!         }
//!         ..
//!     }
//! }
//! ```
//!
//! # Compatibility
//! Enums of [`message`] and [`error`] are coded by the position of their variants: new
//! ones are added at the end only, and fields of old ones never change. What cannot be done that way
//! raises [`hello::VERSION`]. A host answers a request it does not know with
//! [`RpcError::UnknownRequest`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod client;
pub mod clients;
pub mod connection;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod frame;
pub mod fuzz;
pub mod hello;
pub mod key;
pub mod message;
pub mod noise;
pub mod server;
pub mod strangers;
pub mod stream;
#[cfg(feature = "std")]
pub mod tcp;
pub mod transfer;

pub use client::ClientConnection;
pub use connection::{Connection, ConnectionError, HandshakeError};
pub use error::RpcError;
pub use key::{PrivateKey, PublicKey};
pub use message::{Request, Response};
pub use server::{ServerConnection, ServerKeys};
pub use stream::{ByteStream, Entropy, NoEntropy};
pub use transfer::Chunk;
