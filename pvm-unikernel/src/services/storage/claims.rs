//! Who has which volume: one writer, or any number of readers.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::RefCell;
use core::fmt;

use backend_blk::gpt::{Gpt, GptError, VolumeHandle};
use backend_blk::{Extent, QueueDisk};
use toolstack_rpc::RpcError;

use super::{Storage, table_error};
use crate::sync::local::Guard;

/// One who has a volume.
pub(super) struct Claim {
    /// Asked for its name when somebody else wants the volume: a guest may be renamed.
    owner: RefCell<Box<dyn fmt::Display>>,
    writable: bool,
}

/// A volume that somebody has, until dropped.
pub struct VolumeClaim {
    storage: Rc<Storage>,
    handle: VolumeHandle,
    claim: Rc<Claim>,
}

impl VolumeClaim {
    /// The volume's name.
    pub fn name(&self) -> &str {
        self.handle.name()
    }

    /// Where it is on the disk.
    pub fn extent(&self) -> Extent {
        self.handle.extent()
    }

    /// Whether it may be written.
    pub fn writable(&self) -> bool {
        self.claim.writable
    }

    /// Makes it `owner`'s, with no moment in which anybody else could take it.
    pub fn hand_to(&self, owner: impl fmt::Display + 'static) {
        drop(self.claim.owner.replace(Box::new(owner)));
    }

    /// Notes on the disk that the volume's contents are being replaced: until [`Self::filled`],
    /// over a crash too, nobody gets it but to overwrite or remove it.
    pub async fn overwrite(&self) -> Result<(), RpcError> {
        let mut gpt = self.storage.gpt.lock().await;
        gpt.begin_overwrite(&self.handle)
            .await
            .map_err(|error| table_error(error, self.name(), 0, 0))
    }

    /// Makes what was written to a new or an overwritten volume durable, and the volume one
    /// that others can claim.
    pub async fn filled(&self) -> Result<(), RpcError> {
        let mut gpt = self.storage.gpt.lock().await;
        gpt.finish_volume(&self.handle)
            .await
            .map_err(|error| table_error(error, self.name(), 0, 0))
    }
}

impl Drop for VolumeClaim {
    fn drop(&mut self) {
        let mut all = self.storage.claims.borrow_mut();
        if let Some(claims) = all.get_mut(self.handle.name()) {
            claims.retain(|claim| !Rc::ptr_eq(claim, &self.claim));
            if claims.is_empty() {
                all.remove(self.handle.name());
            }
        }
    }
}

impl Storage {
    /// Takes a volume for `owner`, who is named to others who want it. One that is being
    /// filled or overwritten is not to be had, nor one for which that was cut off.
    pub async fn claim(
        self: &Rc<Self>,
        name: &str,
        owner: impl fmt::Display + 'static,
        writable: bool,
    ) -> Result<VolumeClaim, RpcError> {
        let opened = self.settled(name).await.open_volume(name);
        self.enter_opened(opened, name, owner, writable)
    }

    /// The same for one who replaces its contents, whole or not: see
    /// [`VolumeClaim::overwrite`].
    pub async fn claim_to_overwrite(
        self: &Rc<Self>,
        name: &str,
        owner: impl fmt::Display + 'static,
    ) -> Result<VolumeClaim, RpcError> {
        let opened = self.settled(name).await.open_to_overwrite(name);
        self.enter_opened(opened, name, owner, true)
    }

    /// The table, after another try to undo a change of this volume that the disk failed.
    /// Others do not wait for a bad sector.
    async fn settled(&self, name: &str) -> Guard<'_, Gpt<QueueDisk>> {
        let mut gpt = self.gpt.lock().await;
        if gpt.is_in_doubt(name)
            && let Err(error) = gpt.settle().await
        {
            log::warn!("storage: a failed change of volume {name} still cannot be undone: {error}");
        }
        gpt
    }

    fn enter_opened(
        self: &Rc<Self>,
        opened: Result<VolumeHandle, GptError>,
        name: &str,
        owner: impl fmt::Display + 'static,
        writable: bool,
    ) -> Result<VolumeClaim, RpcError> {
        let handle = opened.map_err(|error| match (error, self.owner(name)) {
            (GptError::Filling | GptError::Overwriting, Some(by)) => RpcError::VolumeInUse {
                name: name.into(),
                by,
            },
            (error, _) => table_error(error, name, 0, 0),
        })?;
        self.enter(handle, owner, writable)
    }

    /// Notes who has an open volume, unless somebody else has it already.
    pub(super) fn enter(
        self: &Rc<Self>,
        handle: VolumeHandle,
        owner: impl fmt::Display + 'static,
        writable: bool,
    ) -> Result<VolumeClaim, RpcError> {
        let name = handle.name();
        let mut all = self.claims.borrow_mut();
        let claims = all.entry(name.into()).or_default();
        if let Some(other) = claims.iter().find(|c| c.writable || writable) {
            return Err(RpcError::VolumeInUse {
                name: name.into(),
                by: other.owner.borrow().to_string(),
            });
        }
        let claim = Rc::new(Claim {
            owner: RefCell::new(Box::new(owner)),
            writable,
        });
        claims.push(claim.clone());
        Ok(VolumeClaim {
            storage: self.clone(),
            handle,
            claim,
        })
    }

    /// One who has a volume now.
    pub fn owner(&self, name: &str) -> Option<String> {
        let all = self.claims.borrow();
        let claim = all.get(name)?.first()?;
        Some(claim.owner.borrow().to_string())
    }
}
