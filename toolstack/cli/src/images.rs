//! Kernels and ramdisks: into the host's image area, unless they are there.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::Path;

use toolstack_domain::config::{ImageId, Ramdisk};
use toolstack_rpc::transfer::ImageHasher;
use toolstack_rpc::{Chunk, Request, Response};

use crate::failure::Failure;
use crate::session::Session;
use crate::transfer;

/// The name of an image in memory.
pub fn hash(bytes: &[u8]) -> ImageId {
    let mut hasher = ImageHasher::new();
    hasher.update(Chunk::Bytes(bytes));
    hasher.finish()
}

/// A ramdisk's file, read once for its name.
#[derive(Debug)]
pub struct RamdiskFile {
    file: File,
    /// What the host is told.
    pub ramdisk: Ramdisk,
}

/// Opens and hashes a ramdisk.
pub fn open_ramdisk(path: &Path) -> Result<RamdiskFile, Failure> {
    let failed = |e: io::Error| Failure::io(format_args!("ramdisk {}", path.display()), &e);
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = ImageHasher::new();
    let mut block = vec![0; 64 * 1024];
    let mut len = 0;
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(Chunk::Bytes(&block[..count]));
                len += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    if len == 0 {
        let what = format!("ramdisk {}", path.display());
        return Err(Failure::new(what, "the file is empty"));
    }
    let image = hasher.finish();
    Ok(RamdiskFile {
        file,
        ramdisk: Ramdisk { image, len },
    })
}

/// Sends a ramdisk's file.
pub fn put_ramdisk(
    session: &mut Session,
    path: &Path,
    it: &mut RamdiskFile,
) -> Result<(), Failure> {
    let name = format!("ramdisk {}", path.display());
    it.file.rewind().map_err(|e| Failure::io(&name, &e))?;
    put(
        session,
        &name,
        it.ramdisk.image,
        &mut it.file,
        it.ramdisk.len,
    )
}

/// Sends an image, if the host wants it.
pub fn put(
    session: &mut Session,
    name: &str,
    id: ImageId,
    source: &mut impl Read,
    len: u64,
) -> Result<(), Failure> {
    match session.call(name, &Request::ImagePut { id, len })? {
        Response::Done => return Ok(()),
        Response::Ready { .. } => {}
        _ => return Err(session.odd(name)),
    }
    transfer::upload(session, name, source, name, len)?;
    match toolstack_rpc::tcp::block_on(session.client.response()) {
        Ok(Response::Done) => Ok(()),
        Ok(_) => Err(session.odd(name)),
        Err(e) => Err(session.failed(name, e)),
    }
}

/// Which of these the host has.
pub fn present(session: &mut Session, ids: Vec<ImageId>) -> Result<Vec<bool>, Failure> {
    let asked = ids.len();
    match session.call("images", &Request::ImageHas { ids })? {
        Response::Present(present) if present.len() == asked => Ok(present),
        _ => Err(session.odd("images")),
    }
}
