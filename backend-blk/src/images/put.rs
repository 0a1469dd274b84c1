//! An object on its way into the area.

use super::catalog::Place;
use super::{BLOCK, BLOCK_SECTORS, ImageArea, ImageError, ObjectHandle, ObjectId, Reserved};
use crate::disk::Disk;
use alloc::vec::Vec;
use core::fmt;
use sha2::{Digest, Sha256};

/// Bytes gathered before they are written.
const STEP: usize = 64 << 10;

/// Takes an object piece by piece. Nothing of it is there before [`Put::commit`];
/// dropping it gives its space back.
pub struct Put<D: Disk> {
    id: ObjectId,
    place: Place,
    reserved: Reserved<D>,
    hash: Sha256,
    buffer: Vec<u8>,
    /// Bytes taken, and of these, written.
    taken: u64,
    written: u64,
}

impl<D: Disk> fmt::Debug for Put<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Put({}: {} of {})", self.id, self.taken, self.place.len)
    }
}

impl<D: Disk> Put<D> {
    pub(super) fn new(area: ImageArea<D>, id: ObjectId, place: Place) -> Self {
        area.0.state.borrow_mut().puts.push((id, place.clone()));
        let reserved = Reserved {
            area,
            runs: place.runs.clone(),
        };
        Self {
            id,
            place,
            reserved,
            hash: Sha256::new(),
            buffer: Vec::new(),
            taken: 0,
            written: 0,
        }
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes the next bytes. After an error the put can only be dropped.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), ImageError> {
        if bytes.len() as u64 > self.place.len - self.taken {
            return Err(ImageError::TooLong);
        }
        while !bytes.is_empty() {
            let now = bytes.len().min(STEP - self.buffer.len());
            let (part, rest) = bytes.split_at(now);
            self.hash.update(part);
            self.buffer.extend_from_slice(part);
            self.taken += now as u64;
            bytes = rest;
            if self.buffer.len() == STEP {
                self.flush_buffer().await?;
            }
        }
        Ok(())
    }

    /// Writes what is gathered, padded to whole blocks.
    async fn flush_buffer(&mut self) -> Result<(), ImageError> {
        self.buffer
            .resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        let io = self.reserved.area.io();
        let mut done = 0;
        let mut base = 0;
        for run in &self.place.runs {
            let len = u64::from(run.count) * BLOCK as u64;
            let at = self.written + done as u64;
            if at < base + len && done < self.buffer.len() {
                let room = usize::try_from(base + len - at).unwrap_or(usize::MAX);
                let now = room.min(self.buffer.len() - done);
                let sector = u64::from(run.first) * BLOCK_SECTORS + (at - base) / crate::SECTOR;
                io.write(sector, &self.buffer[done..done + now]).await?;
                done += now;
            }
            base += len;
        }
        self.written += done as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the object part of the area, if all bytes came and have the right hash. The
    /// handle keeps it from being collected before somebody wants it.
    pub async fn commit(mut self) -> Result<ObjectHandle, ImageError> {
        if self.taken < self.place.len {
            return Err(ImageError::TooShort(self.taken));
        }
        let found = ObjectId(core::mem::take(&mut self.hash).finalize().into());
        if found != self.id {
            return Err(ImageError::Mismatch(found));
        }
        self.flush_buffer().await?;
        let area = self.reserved.area.clone();
        area.io().flush().await?;
        let _guard = area.lock().await;
        // Another put of the same bytes may have been faster: then this one's go.
        if area.has(&self.id).is_none() {
            let (id, place) = (self.id, self.place.clone());
            area.commit(|catalog| {
                catalog.objects.insert(id, place);
            })
            .await?;
        }
        area.open_object(&self.id)
    }
}

impl<D: Disk> Drop for Put<D> {
    fn drop(&mut self) {
        let puts = &mut self.reserved.area.0.state.borrow_mut().puts;
        // Of those that are alike, whichever.
        let this = |(id, place): &(ObjectId, Place)| *id == self.id && *place == self.place;
        if let Some(n) = puts.iter().position(this) {
            puts.swap_remove(n);
        }
    }
}
