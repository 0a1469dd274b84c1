//! What xenstore's clients send: two guests and dom0's tools on one server.

use toolstack_xenstore::{Config, ConnId, Server};
use xen_abi::DomId;
use xen_abi::io::xs_wire::SockMsg;
use zerocopy::{FromBytes, IntoBytes};

/// Longest payload of an answer: `XENSTORE_PAYLOAD_MAX`.
const PAYLOAD_MAX: u32 = 4096;

struct Bed {
    server: Server,
    clients: [ConnId; 3],
    /// What each client got that is not a whole packet yet.
    got: [Vec<u8>; 3],
}

impl Bed {
    fn new() -> Self {
        let mut server = Server::new(Config::default());
        let tools = server.connect(DomId(0), true);
        let guests = [1, 2].map(|domid| {
            server.domain_created(DomId(domid));
            server.domain_introduced(DomId(domid))
        });
        Bed {
            server,
            clients: [tools, guests[0], guests[1]],
            got: [const { Vec::new() }; 3],
        }
    }

    /// Sends bytes as one client, as far as the server takes them.
    fn send(&mut self, client: usize, bytes: &[u8]) {
        let mut rest = bytes;
        // Each turn takes something, or the client has to wait.
        while !rest.is_empty() {
            let Ok(input) = self.server.input(self.clients[client], rest) else {
                return;
            };
            assert!(input.consumed <= rest.len());
            rest = &rest[input.consumed..];
            self.receive();
            if input.consumed == 0 && !input.more {
                return;
            }
        }
    }

    /// Takes what there is for the clients, which must be whole packets.
    fn receive(&mut self) {
        while self.server.next_action().is_some() {}
        for (&id, got) in self.clients.iter().zip(&mut self.got) {
            loop {
                let output = self.server.output(id);
                if output.is_empty() {
                    break;
                }
                let count = output.len();
                got.extend_from_slice(output);
                self.server.sent(id, count);
            }
            while let Ok((header, rest)) = SockMsg::read_from_prefix(got) {
                assert!(header.len <= PAYLOAD_MAX);
                let Some(rest) = usize::try_from(header.len).ok().and_then(|n| rest.get(n..))
                else {
                    break;
                };
                *got = rest.to_vec();
            }
        }
    }

    /// Ends everybody. Nothing of the guests may be left.
    fn end(mut self) {
        for domid in [1, 2].map(DomId) {
            self.server.domain_released(domid);
            assert!(self.server.connection_of(domid).is_none());
        }
        self.server.disconnect(self.clients[0]);
        while self.server.next_action().is_some() {}
    }
}

/// A guest's bytes as they are.
pub fn wire(data: &[u8]) {
    let mut bed = Bed::new();
    bed.send(1, data);
    bed.end();
}

/// Well-formed packets with any operation: client, operation, transaction and length in a
/// byte each, then the payload.
pub fn operations(data: &[u8]) {
    let mut bed = Bed::new();
    let mut rest = data;
    let mut now_ms = 0;
    while let [client, operation, transaction, length, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        now_ms += u64::from(*client);
        bed.server.advance(now_ms);
        let header = SockMsg {
            // Past the last operation too.
            message_type: u32::from(operation % 26),
            req_id: 7,
            tx_id: u32::from(*transaction),
            len: u32::try_from(payload.len()).unwrap_or(0),
        };
        let packet = [header.as_bytes(), payload].concat();
        bed.send(usize::from(client % 3), &packet);
    }
    bed.end();
}
