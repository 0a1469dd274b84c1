//! Who has which volume: one writer, or any number of readers.

use alloc::rc::Rc;
use alloc::string::String;

use backend_blk::Extent;
use backend_blk::gpt::{GptError, VolumeHandle};
use toolstack_rpc::RpcError;

use super::{Storage, table_error};

/// One who has a volume.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    owner: String,
    writable: bool,
}

/// A volume that somebody has, until dropped.
pub struct VolumeClaim {
    storage: Rc<Storage>,
    handle: VolumeHandle,
    claim: Claim,
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

    /// Makes what was written to a new volume durable, and the volume one that others can
    /// claim.
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
            let mine = claims
                .iter()
                .position(|c| c.owner == self.claim.owner && c.writable == self.claim.writable);
            if let Some(at) = mine {
                claims.swap_remove(at);
            }
            if claims.is_empty() {
                all.remove(self.handle.name());
            }
        }
    }
}

impl Storage {
    /// Takes a volume for `owner`, who is named to others who want it. One that is being
    /// filled is not to be had.
    pub async fn claim(
        self: &Rc<Self>,
        name: &str,
        owner: &str,
        writable: bool,
    ) -> Result<VolumeClaim, RpcError> {
        let opened = self.gpt.lock().await.open_volume(name);
        let handle = opened.map_err(|error| match (error, self.owner(name)) {
            (GptError::Filling, Some(by)) => RpcError::VolumeInUse {
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
        owner: &str,
        writable: bool,
    ) -> Result<VolumeClaim, RpcError> {
        let name = handle.name();
        let mut all = self.claims.borrow_mut();
        let claims = all.entry(name.into()).or_default();
        if let Some(other) = claims.iter().find(|c| c.writable || writable) {
            return Err(RpcError::VolumeInUse {
                name: name.into(),
                by: other.owner.clone(),
            });
        }
        let claim = Claim {
            owner: owner.into(),
            writable,
        };
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
        all.get(name)?.first().map(|claim| claim.owner.clone())
    }
}
