//! The program, a folder, and a host that is none.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use toolstack_rpc::fake::FakeHost;
use toolstack_rpc::hello::{OURS, Versions};
use toolstack_rpc::key::Exposed;
use toolstack_rpc::tcp::SystemEntropy;
use toolstack_rpc::{PrivateKey, PublicKey};

pub struct Bed {
    pub folder: TempDir,
    pub host: FakeHost,
    pub key: PublicKey,
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// It went well, and said nothing but this.
    #[track_caller]
    pub fn says(&self, stdout: &str) {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{self:?}");
        assert_eq!(self.stdout, stdout);
    }

    /// It failed with exactly this line, and printed nothing else.
    #[track_caller]
    pub fn fails(&self, line: &str) {
        assert_eq!(self.stderr, format!("closer: {line}\n"));
        assert_eq!((self.code, &*self.stdout), (Some(1), ""), "{self:?}");
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

impl Bed {
    pub fn new() -> Bed {
        Bed::speaking(OURS)
    }

    pub fn speaking(versions: Versions) -> Bed {
        let private = PrivateKey::generate(&mut SystemEntropy).unwrap();
        let key = private.public();
        let host = FakeHost::start_speaking(vec![key], versions).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bed = Bed { folder, host, key };
        bed.write("admin.key", format!("{}\n", Exposed(&private)).as_bytes());
        fs::set_permissions(
            bed.path("admin.key"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        bed.write_host_file(bed.host.address, &bed.host.key);
        bed
    }

    pub fn write_host_file(&self, address: SocketAddr, key: &PublicKey) {
        let text =
            format!("address = \"{address}\"\nhost_key = \"{key}\"\nidentity = \"admin.key\"\n");
        self.write("host.toml", text.as_bytes());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// The program in the bed's folder, so that its messages name files shortly.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_closer"));
        command
            .current_dir(self.folder.path())
            .env_remove("CLOSER_HOST_FILE")
            .args(["--host-file", "host.toml"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs it with something on standard input.
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// A kernel and a definition that are good; `web.cfg` makes the guest `web`.
    pub fn with_guest_files(self) -> Bed {
        self.write("vmlinux", &kernel());
        self.write("initrd", &[0x5a; 200_000]);
        self.write(
            "web.cfg",
            b"name = \"web\"\ntype = \"pvh\"\nkernel = \"vmlinux\"\nramdisk = \"initrd\"\nmemory = 128\n",
        );
        self
    }

    /// A way to the host that ends after so many bytes of either side.
    pub fn cut_after(&self, from_client: usize, from_host: usize) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let target = self.host.address;
        thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let host = TcpStream::connect(target).unwrap();
            let (client2, host2) = (client.try_clone().unwrap(), host.try_clone().unwrap());
            thread::spawn(move || forward(client2, host2, from_client));
            forward(host, client, from_host);
        });
        self.write_host_file(address, &self.host.key);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, limit: usize) {
    let mut left = limit;
    let mut buf = [0; 4096];
    while left > 0 {
        let want = buf.len().min(left);
        match from.read(&mut buf[..want]) {
            Ok(count @ 1..) if to.write_all(&buf[..count]).is_ok() => left -= count,
            _ => break,
        }
    }
    // Each may be down already.
    from.shutdown(Shutdown::Both).unwrap_or(());
    to.shutdown(Shutdown::Both).unwrap_or(());
}

pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(Instant::now() < limit, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The least ELF file that is a PVH kernel: a segment, and Xen's note PHYS32_ENTRY.
pub fn kernel() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x10_0000u32.to_le_bytes());

    let (header, entry) = (64u64, 56u64);
    let code_at = header + 2 * entry;
    let code = [0x90; 4096];
    let note_at = code_at + code.len() as u64;

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for long in [0x10_0000u64, header, 0] {
        elf.extend(long.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let segments = [
        (1u32, code_at, 0x10_0000u64, code.len() as u64),
        (4, note_at, 0, note.len() as u64),
    ];
    for (kind, offset, address, len) in segments {
        elf.extend(kind.to_le_bytes());
        elf.extend(5u32.to_le_bytes());
        for long in [offset, address, address, len, len, 4] {
            elf.extend(long.to_le_bytes());
        }
    }
    elf.extend(code);
    elf.extend(note);
    elf
}
