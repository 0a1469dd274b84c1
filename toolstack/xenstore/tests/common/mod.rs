//! Clients that speak the wire with a server in the same process.
#![allow(dead_code, reason = "each test file uses its own part")]

use toolstack_xenstore::{Config, ConnId, Server};
use xen_abi::DomId;
use xen_abi::io::xs_wire::{MessageType, SockMsg};
use zerocopy::{FromBytes, IntoBytes};

pub type Op = MessageType;

/// One packet.
pub fn packet(op: Op, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = SockMsg {
        message_type: op.0,
        req_id,
        tx_id,
        len: payload.len().try_into().unwrap(),
    };
    [header.as_bytes(), payload].concat()
}

/// A packet that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub op: Op,
    pub req_id: u32,
    pub tx_id: u32,
    pub payload: Vec<u8>,
}

/// Takes whole packets off the front of a byte stream.
pub fn parse(stream: &mut Vec<u8>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Ok((header, rest)) = SockMsg::read_from_prefix(stream) {
        let len = header.len as usize;
        if rest.len() < len {
            break;
        }
        answers.push(Answer {
            op: MessageType(header.message_type),
            req_id: header.req_id,
            tx_id: header.tx_id,
            payload: rest[..len].to_vec(),
        });
        let whole = stream.len() - rest.len() + len;
        stream.drain(..whole);
    }
    answers
}

/// A server with clients.
pub struct Bed {
    pub server: Server,
    req_id: u32,
    now_ms: u64,
    events: Vec<(ConnId, String, Vec<u8>)>,
}

/// Strings as the wire has them: each with its NUL.
pub fn strings(parts: &[&str]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .collect()
}

impl Bed {
    pub fn new() -> Self {
        Self {
            server: Server::new(Config::default()),
            req_id: 0,
            now_ms: 0,
            events: Vec::new(),
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.server.advance(self.now_ms);
    }

    /// dom0's tools.
    pub fn tools(&mut self) -> ConnId {
        self.server.connect(DomId(0), true)
    }

    /// A guest with a home of its own, as the toolstack makes it.
    pub fn guest(&mut self, domid: u16) -> ConnId {
        use toolstack_xenstore::{Access, Perm, home};
        let path = home(DomId(domid));
        self.server.domain_created(DomId(domid));
        self.server.mkdir(&path).unwrap();
        let perms = [Perm {
            domid: DomId(domid),
            access: Access::NONE,
        }];
        self.server.set_perms(&path, &perms).unwrap();
        self.server.domain_introduced(DomId(domid))
    }

    /// Sends one request and gives its answer; events that come with it are kept.
    pub fn call(
        &mut self,
        conn: ConnId,
        op: Op,
        tx: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        self.send(conn, op, tx, payload);
        let req_id = self.req_id;
        let mut answers = self.receive(conn);
        assert_eq!(answers.len(), 1, "one answer for one request: {answers:?}");
        let answer = answers.remove(0);
        assert_eq!((answer.req_id, answer.tx_id), (req_id, tx));
        if answer.op == Op::ERROR {
            let name = answer
                .payload
                .strip_suffix(b"\0")
                .expect("errors end with a NUL");
            return Err(String::from_utf8(name.to_vec()).unwrap());
        }
        assert_eq!(answer.op, op);
        Ok(answer.payload)
    }

    /// Sends without reading the answer; all of it is taken.
    pub fn send(&mut self, conn: ConnId, op: Op, tx: u32, payload: &[u8]) {
        self.req_id += 1;
        let bytes = packet(op, self.req_id, tx, payload);
        let input = self.server.input(conn, &bytes).unwrap();
        assert_eq!(
            input.consumed,
            bytes.len(),
            "the request was not taken whole"
        );
    }

    /// Reads all output: answers are given back, events kept.
    pub fn receive(&mut self, conn: ConnId) -> Vec<Answer> {
        let mut stream = Vec::new();
        while !self.server.output(conn).is_empty() {
            stream.extend_from_slice(self.server.output(conn));
            let count = self.server.output(conn).len();
            self.server.sent(conn, count);
        }
        let mut answers = parse(&mut stream);
        assert!(stream.is_empty());
        answers.retain(|answer| {
            if answer.op != Op::WATCH_EVENT {
                return true;
            }
            let (path, token) = answer
                .payload
                .split_at(answer.payload.iter().position(|byte| *byte == 0).unwrap());
            let token = token[1..].strip_suffix(b"\0").unwrap();
            let path = String::from_utf8(path.to_vec()).unwrap();
            self.events.push((conn, path, token.to_vec()));
            false
        });
        answers
    }

    /// The paths of the events that a client got since it was last asked.
    pub fn events(&mut self, conn: ConnId) -> Vec<String> {
        let stray = self.receive(conn);
        assert_eq!(stray, [], "answers to nothing");
        let mine = self.events.iter().filter(|(to, _, _)| *to == conn);
        let paths = mine.map(|(_, path, _)| path.clone()).collect();
        self.events.retain(|(to, _, _)| *to != conn);
        paths
    }

    pub fn read(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, String> {
        let value = self.call(conn, Op::READ, tx, &strings(&[path]))?;
        Ok(String::from_utf8(value).unwrap())
    }

    pub fn write(&mut self, conn: ConnId, tx: u32, path: &str, value: &str) -> Result<(), String> {
        let payload = [path.as_bytes(), b"\0", value.as_bytes()].concat();
        self.ok(conn, Op::WRITE, tx, &payload)
    }

    pub fn list(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<Vec<String>, String> {
        let listing = self.call(conn, Op::DIRECTORY, tx, &strings(&[path]))?;
        let text = String::from_utf8(listing).unwrap();
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    }

    pub fn rm(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), String> {
        self.ok(conn, Op::RM, tx, &strings(&[path]))
    }

    pub fn mkdir(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), String> {
        self.ok(conn, Op::MKDIR, tx, &strings(&[path]))
    }

    pub fn chmod(
        &mut self,
        conn: ConnId,
        tx: u32,
        path: &str,
        perms: &[&str],
    ) -> Result<(), String> {
        let parts = [&[path], perms].concat();
        self.ok(conn, Op::SET_PERMS, tx, &strings(&parts))
    }

    pub fn watch(&mut self, conn: ConnId, path: &str, token: &str) -> Result<(), String> {
        self.ok(conn, Op::WATCH, 0, &strings(&[path, token]))
    }

    pub fn start(&mut self, conn: ConnId) -> Result<u32, String> {
        let id = self.call(conn, Op::TRANSACTION_START, 0, b"\0")?;
        let text = String::from_utf8(id).unwrap();
        Ok(text.strip_suffix('\0').unwrap().parse().unwrap())
    }

    pub fn end(&mut self, conn: ConnId, tx: u32, commit: bool) -> Result<(), String> {
        self.ok(
            conn,
            Op::TRANSACTION_END,
            tx,
            if commit { b"T\0" } else { b"F\0" },
        )
    }

    /// A request whose only answer is OK.
    pub fn ok(&mut self, conn: ConnId, op: Op, tx: u32, payload: &[u8]) -> Result<(), String> {
        let answer = self.call(conn, op, tx, payload)?;
        assert_eq!(answer, b"OK\0");
        Ok(())
    }

    /// The server's own count of everything agrees.
    pub fn check(&mut self) {
        let tools = self.tools();
        let report = self.call(tools, Op::CONTROL, 0, b"check\0").unwrap();
        assert_eq!(String::from_utf8(report).unwrap(), "OK\0");
        self.server.disconnect(tools);
    }
}

pub fn refused<T: core::fmt::Debug>(result: Result<T, String>) -> String {
    result.expect_err("should be refused")
}
