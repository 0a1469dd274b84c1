//! Volumes and images: requests with streams of data.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use backend_blk::gpt::Contents;
use backend_blk::images::LEASE_TIME;
use backend_blk::{BlockError, ByteIo, Disk, QueueDisk, SECTOR, Volume};
use toolstack_domain::config::ImageId;
use toolstack_rpc::error::Place;
use toolstack_rpc::message::{ImportMode, VolumeInfo};
use toolstack_rpc::transfer::{Incoming, TransferError};
use toolstack_rpc::{Chunk, ConnectionError, Response, RpcError};

use super::{Client, Closed, Ended, Peer};
use crate::services::host::Host;
use crate::services::storage::{CUT_OFF, ImageLease, Storage, UNFINISHED, VolumeClaim, area_error};
use crate::time;

/// Bytes written or read in one go.
const STEP: usize = 64 * 1024;
/// Images that one question may name.
const MAX_QUESTION: usize = 64;
/// What a step of an export may take. Long: one of zeros can take as long as the client
/// takes to write all that is on the way, which can be 15 MiB.
const EXPORT_LIMIT: Duration = Duration::from_secs(600);
/// What the last word to a client that stands still may take.
const FAREWELL_TIME: Duration = Duration::from_secs(5);
const NO_IMAGES: RpcError = RpcError::NoDisk {
    place: Place::Images,
};

fn storage(host: &Host, place: Place) -> Result<&Rc<Storage>, RpcError> {
    host.storage.as_ref().ok_or(RpcError::NoDisk { place })
}

/// Answers an error, or goes on with the value.
macro_rules! or_refuse {
    ($client:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $client.respond_error(error).await,
        }
    };
}

pub async fn image_has(
    client: &mut Client,
    lease: Option<&ImageLease>,
    ids: &[ImageId],
) -> Result<(), Ended> {
    let lease = or_refuse!(client, lease.ok_or(NO_IMAGES));
    let present = ids
        .iter()
        .take(MAX_QUESTION)
        .map(|id| lease.has(id))
        .collect();
    client.respond(&Response::Present(present)).await
}

pub async fn image_put(
    host: &Host,
    client: &mut Client,
    lease: Option<&ImageLease>,
    id: ImageId,
    len: u64,
) -> Result<(), Ended> {
    let storage = or_refuse!(client, storage(host, Place::Images));
    let lease = or_refuse!(client, lease.ok_or(NO_IMAGES));
    if lease.has(&id) {
        return client.respond(&Response::Done).await;
    }
    let needed = host.guests.needed(host);
    let mut put = or_refuse!(client, storage.put_image(&id, len, &needed).await);
    // A client that stands still holds the space no longer than the lease.
    let ready = client.respond(&Response::Ready { len: 0 });
    let ready = time::timeout(ready, LEASE_TIME).await;
    ready.unwrap_or(Err(ConnectionError::Cut))?;
    let mut incoming = client.incoming(Some(len));
    loop {
        let Ok(next) = time::timeout(incoming.next(), LEASE_TIME).await else {
            drop(put);
            return stalled(incoming).await;
        };
        let written = match next {
            Ok(None) => break,
            Ok(Some(Chunk::Bytes(bytes))) => put.write(bytes).await,
            Ok(Some(Chunk::Zeros(count))) => write_zeros(&mut put, count).await,
            Err(error) => return over(error),
        };
        lease.renew();
        if let Err(error) = written {
            drop(put);
            return incoming.reject(&area_error(error, len)).await;
        }
    }
    match put.commit().await {
        Ok(image) => {
            lease.keep(&image);
            // Kept no longer than the lease, if the client does not take the answer.
            drop(image);
            client.respond(&Response::Done).await
        }
        Err(backend_blk::images::ImageError::Mismatch(found)) => {
            client
                .respond_error(RpcError::ImageCorrupt {
                    id,
                    found: ImageId(found.0),
                })
                .await
        }
        Err(error) => client.respond_error(area_error(error, len)).await,
    }
}

async fn write_zeros<D: Disk>(
    put: &mut backend_blk::images::Put<D>,
    mut count: u64,
) -> Result<(), backend_blk::images::ImageError> {
    let zeros = [0; 4096];
    while count > 0 {
        let now = usize::try_from(count).map_or(zeros.len(), |c| c.min(zeros.len()));
        put.write(&zeros[..now]).await?;
        count -= now as u64;
    }
    Ok(())
}

/// Ends a connection whose client is there but sends nothing more, and tells it why in case
/// it wakes. The frame that was waited for may be half read, so nothing else can follow.
async fn stalled(incoming: Incoming<'_, Peer>) -> Result<(), Ended> {
    let why = format!("nothing came for {} s", LEASE_TIME.as_secs());
    let told = time::timeout(incoming.reject(&RpcError::Aborted { why }), FAREWELL_TIME).await;
    log::info!("rpc: an upload is given up: nothing comes any more: {told:?}");
    Err(ConnectionError::Cut)
}

/// A stream that ended early: only a broken connection ends the client's task.
fn over(error: TransferError<super::Closed>) -> Result<(), Ended> {
    match error {
        TransferError::Connection(error) => Err(error),
        TransferError::Aborted(_) | TransferError::Rejected(_) => Ok(()),
    }
}

pub async fn create(host: &Host, client: &mut Client, name: &str, size: u64) -> Result<(), Ended> {
    let storage = or_refuse!(client, storage(host, Place::Volumes));
    let claim = or_refuse!(
        client,
        storage.create_volume(name, size, "its creation").await
    );
    let made = fill_new(storage, &claim).await;
    // Before the answer, after which the client may want the volume.
    drop(claim);
    if made.is_err() {
        discard(storage, name).await;
    }
    client.respond_result(made).await
}

/// Zeroes a new volume: what was on the disk is nobody's business.
async fn fill_new(storage: &Storage, claim: &VolumeClaim) -> Result<(), RpcError> {
    let zeroed = storage
        .bytes_of(claim)?
        .zero(0, claim.extent().sectors)
        .await;
    zeroed.map_err(|error| disk_failed(claim.name(), error))?;
    claim.filled().await
}

async fn discard(storage: &Storage, name: &str) {
    if let Err(error) = storage.remove_volume(name).await {
        log::error!("volume {name}: half made, and stays: {error}");
    }
}

fn disk_failed(name: &str, error: BlockError) -> RpcError {
    RpcError::DiskFailed {
        what: name.into(),
        why: error.to_string(),
    }
}

pub async fn import(
    host: &Host,
    client: &mut Client,
    name: &str,
    size: u64,
    len: u64,
    mode: ImportMode,
) -> Result<(), Ended> {
    let storage = or_refuse!(client, storage(host, Place::Volumes));
    let new = mode == ImportMode::New;
    let owner = "an import";
    let claimed = if new {
        storage.create_volume(name, size.max(len), owner).await
    } else {
        storage.claim_to_overwrite(name, owner).await
    };
    let claim = or_refuse!(client, claimed);
    let outcome = receive(storage, client, &claim, len, new).await;
    drop(claim);
    // A new volume that is not whole is none.
    if new && !matches!(outcome, Ok(Ok(()))) {
        discard(storage, name).await;
    }
    match outcome? {
        Ok(()) => client.respond(&Response::Done).await,
        Err(RpcError::Aborted { .. }) => Ok(()),
        Err(error) => client.respond_error(error).await,
    }
}

/// Takes the stream. The inner error has not been answered yet, but for `Aborted`.
async fn receive(
    storage: &Storage,
    client: &mut Client,
    claim: &VolumeClaim,
    len: u64,
    new: bool,
) -> Result<Result<(), RpcError>, Ended> {
    let capacity = claim.extent().sectors * SECTOR;
    if len > capacity {
        let name = claim.name().into();
        return Ok(Err(RpcError::VolumeTooSmall {
            name,
            asked: len,
            size: capacity,
        }));
    }
    let io = match storage.bytes_of(claim) {
        Ok(io) => io,
        Err(error) => return Ok(Err(error)),
    };
    // From here on it may end half way.
    if !new && let Err(error) = claim.overwrite().await {
        return Ok(Err(error));
    }
    // A client that stands still has the volume no longer than it would have an image's space.
    let ready = client.respond(&Response::Ready { len: 0 });
    let ready = time::timeout(ready, LEASE_TIME).await;
    ready.unwrap_or(Err(ConnectionError::Cut))?;
    let mut writer = Writer {
        io: &io,
        at: 0,
        gathered: Vec::with_capacity(STEP),
    };
    let mut incoming = client.incoming(Some(len));
    let gone = |error| {
        Ok(Err(RpcError::Aborted {
            why: alloc::format!("{error}"),
        }))
    };
    loop {
        let Ok(next) = time::timeout(incoming.next(), LEASE_TIME).await else {
            return stalled(incoming).await.map(Ok);
        };
        let written = match next {
            Ok(None) => break,
            Ok(Some(Chunk::Bytes(bytes))) => writer.write(bytes).await,
            Ok(Some(Chunk::Zeros(count))) => writer.zeros(count).await,
            Err(TransferError::Connection(error)) => return Err(error),
            Err(TransferError::Aborted(error) | TransferError::Rejected(error)) => {
                return gone(error);
            }
        };
        if let Err(error) = written {
            let error = disk_failed(claim.name(), error);
            let told = time::timeout(incoming.reject(&error), LEASE_TIME).await;
            told.unwrap_or(Err(ConnectionError::Cut))?;
            return gone(error);
        }
    }
    let finished = writer.finish(new.then_some(claim.extent().sectors)).await;
    Ok(match finished {
        Ok(()) => claim.filled().await,
        Err(error) => Err(disk_failed(claim.name(), error)),
    })
}

/// Writes a stream from a volume's start on, in whole blocks.
struct Writer<'a> {
    io: &'a ByteIo<Volume<QueueDisk>>,
    /// Sector of the first byte gathered.
    at: u64,
    gathered: Vec<u8>,
}

impl Writer<'_> {
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), BlockError> {
        while !bytes.is_empty() {
            let now = bytes.len().min(STEP - self.gathered.len());
            self.gathered.extend_from_slice(&bytes[..now]);
            bytes = &bytes[now..];
            if self.gathered.len() == STEP {
                self.put_out().await?;
            }
        }
        Ok(())
    }

    async fn put_out(&mut self) -> Result<(), BlockError> {
        let block = self.io.disk().geometry().block_size as usize;
        self.gathered
            .resize(self.gathered.len().next_multiple_of(block), 0);
        self.io.write(self.at, &self.gathered).await?;
        self.at += self.gathered.len() as u64 / SECTOR;
        self.gathered.clear();
        Ok(())
    }

    async fn zeros(&mut self, mut count: u64) -> Result<(), BlockError> {
        let zeros = [0; 4096];
        // Up to a whole step by hand, then at the disk's own pace, then the rest.
        while count > 0 {
            if self.gathered.is_empty() && count >= STEP as u64 {
                let whole = count / STEP as u64 * STEP as u64;
                self.io.zero(self.at, whole / SECTOR).await?;
                self.at += whole / SECTOR;
                count -= whole;
                continue;
            }
            let room = (STEP - self.gathered.len()).min(zeros.len());
            let now = usize::try_from(count).map_or(room, |c| c.min(room));
            self.write(&zeros[..now]).await?;
            count -= now as u64;
        }
        Ok(())
    }

    /// What is beyond the end of the file stays, in its last block, too.
    async fn keep_rest_of_block(&mut self) -> Result<(), BlockError> {
        let mut old = vec![0; self.io.disk().geometry().block_size as usize];
        let used = self.gathered.len() % old.len();
        if used > 0 {
            let whole = self.gathered.len() - used;
            let last = self.at + whole as u64 / SECTOR;
            self.io.read(last, &mut old).await?;
            self.gathered.extend_from_slice(&old[used..]);
        }
        Ok(())
    }

    /// Writes what is gathered, zeroes up to `end` if given, and makes all of it durable.
    async fn finish(mut self, end: Option<u64>) -> Result<(), BlockError> {
        if end.is_none() {
            self.keep_rest_of_block().await?;
        }
        if !self.gathered.is_empty() {
            self.put_out().await?;
        }
        if let Some(end) = end {
            self.io.zero(self.at, end.saturating_sub(self.at)).await?;
        }
        self.io.flush().await
    }
}

pub async fn export(host: &Host, client: &mut Client, name: &str) -> Result<(), Ended> {
    let storage = or_refuse!(client, storage(host, Place::Volumes));
    let claim = or_refuse!(client, storage.claim(name, "an export", false).await);
    let io = or_refuse!(client, storage.bytes_of(&claim));
    let mut left = claim.extent().sectors;
    let ready = Response::Ready { len: left * SECTOR };
    let ready = async {
        let sent = client.respond(&ready).await;
        sent.map_err(TransferError::Connection)
    };
    if let Err(error) = within_limit(name, ready).await {
        return over(error);
    }
    let mut outgoing = client.outgoing();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while left > 0 {
        let now = left.min(STEP as u64 / SECTOR);
        let bytes = usize::try_from(now * SECTOR).unwrap_or(STEP);
        let chunk = &mut buffer[..bytes];
        if let Err(error) = io.read(at, chunk).await {
            let why = disk_failed(name, error);
            let abort = async {
                outgoing
                    .abort(&why)
                    .await
                    .map_err(TransferError::Connection)
            };
            return within_limit(name, abort).await.or_else(over);
        }
        let send = async {
            if chunk.iter().all(|byte| *byte == 0) {
                outgoing.send_zeros(chunk.len() as u64).await
            } else {
                outgoing.send(chunk).await
            }
        };
        if let Err(error) = within_limit(name, send).await {
            return over(error);
        }
        at += now;
        left -= now;
    }
    within_limit(name, outgoing.finish()).await.or_else(over)
}

/// A step of an export, which must not keep the volume from others for ever.
async fn within_limit(
    name: &str,
    step: impl Future<Output = Result<(), TransferError<Closed>>>,
) -> Result<(), TransferError<Closed>> {
    let Ok(done) = time::timeout(step, EXPORT_LIMIT).await else {
        let limit = EXPORT_LIMIT.as_secs();
        log::warn!("volume export {name}: the client does not go on, for {limit} s");
        // Half a frame may be sent: no last word.
        return Err(TransferError::Connection(Ended::Stream(Closed)));
    };
    done
}

pub async fn list(host: &Host) -> Result<Vec<VolumeInfo>, RpcError> {
    let storage = storage(host, Place::Volumes)?;
    let volumes = storage.volumes().await;
    Ok(volumes
        .into_iter()
        .map(|volume| {
            let mut used_by = host.guests.users_of(&volume.name);
            let unfinished = match volume.contents {
                Contents::Whole => None,
                Contents::Filling => Some(UNFINISHED),
                Contents::Overwriting => Some(CUT_OFF),
            };
            if let Some(unfinished) = unfinished {
                let owner = storage.owner(&volume.name);
                used_by.push(owner.unwrap_or_else(|| unfinished.into()));
            }
            VolumeInfo {
                size: volume.extent.sectors * SECTOR,
                used_by,
                name: volume.name,
            }
        })
        .collect())
}

pub async fn remove(host: &Host, name: &str) -> Result<(), RpcError> {
    storage(host, Place::Volumes)?.remove_volume(name).await
}
