//! The image area as the services use it: kernels, ramdisks, guests' definitions.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use backend_blk::images::{Collected, ImageArea, ImageError, Lease, ObjectHandle, ObjectId, Put};
use backend_blk::{QueueDisk, Volume};
use toolstack_domain::build::{ImageError as SourceError, ImageSource};
use toolstack_domain::config::{GuestConfig, ImageId};
use toolstack_rpc::RpcError;
use toolstack_rpc::error::Place;
use toolstack_rpc::message::Space;

use super::Storage;
use crate::time;

type Area = ImageArea<Volume<QueueDisk>>;

/// The images that a guest is built from.
pub struct Images {
    area: Area,
    /// The last one used: a build reads one image after the other.
    open: Option<ObjectHandle>,
}

impl ImageSource for Images {
    async fn read(
        &mut self,
        image: ImageId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), SourceError> {
        let id = ObjectId(image.0);
        let handle = match self.open.take().filter(|open| open.id() == id) {
            Some(open) => open,
            None => self
                .area
                .open_object(&id)
                .map_err(|_| SourceError::Missing(image))?,
        };
        let handle = self.open.insert(handle);
        handle
            .read(self.area.io(), offset, buf)
            .await
            .map_err(|error| match error {
                ImageError::OutOfRange => SourceError::TooShort { image, offset },
                _ => SourceError::Io { image, offset },
            })
    }
}

/// What a connection's create keeps until guests need it: the images that it asked for and
/// those that it sent. It is the connection's, and ends with it.
pub struct ImageLease(Lease<Volume<QueueDisk>>);

/// The leases' time.
fn now() -> Duration {
    Duration::from_nanos(time::now_ns())
}

impl ImageLease {
    /// Whether an image is there; it stays then.
    pub fn has(&self, id: &ImageId) -> bool {
        self.0.has(&ObjectId(id.0), now()).is_some()
    }

    /// Keeps an image that was just sent.
    pub fn keep(&self, image: &ObjectHandle) {
        self.0.keep(image, now());
    }

    /// The next piece of an image came.
    pub fn renew(&self) {
        self.0.renew(now());
    }

    /// The create is over: a guest needs the images now, or nobody does.
    pub fn release(&self) {
        self.0.release();
    }
}

/// What a full area must not forget.
pub struct Needed<'a> {
    /// Whether a guest boots from it.
    pub image: Box<dyn Fn(&ImageId) -> bool + 'a>,
    /// Whether a guest of this name is there or is to be started when the host boots.
    pub guest: Box<dyn Fn(&str) -> bool + 'a>,
}

/// Of names of records with guests' definitions.
const GUEST: &str = "guest/";

fn record(name: &str) -> String {
    format!("{GUEST}{name}")
}

/// An error of the image area, for the administrator.
pub fn area_error(error: ImageError, asked: u64) -> RpcError {
    match error {
        ImageError::NoSpace(free) => RpcError::NoSpace {
            place: Place::Images,
            asked,
            free,
        },
        other => failed(other),
    }
}

fn failed(error: impl fmt::Display) -> RpcError {
    RpcError::DiskFailed {
        what: "the image area".into(),
        why: error.to_string(),
    }
}

impl Storage {
    /// For a build.
    pub fn images(&self) -> Images {
        Images {
            area: self.area.clone(),
            open: None,
        }
    }

    /// For a connection.
    pub fn image_lease(&self) -> ImageLease {
        ImageLease(self.area.lease())
    }

    /// Begins to take an image. A full area or catalog first forgets what is not `needed`.
    pub async fn put_image(
        &self,
        id: &ImageId,
        len: u64,
        needed: &Needed<'_>,
    ) -> Result<Put<Volume<QueueDisk>>, RpcError> {
        let put = || self.area.put(ObjectId(id.0), len);
        let begun = match put().await {
            Err(ImageError::NoSpace(_) | ImageError::CatalogFull) => {
                self.make_room(needed).await?;
                put().await
            }
            other => other,
        };
        begun.map_err(|error| area_error(error, len))
    }

    /// Forgets definitions of guests that are not needed, which a host leaves behind that
    /// went down under them, then images that no guest, no definition and no create in
    /// progress needs.
    async fn make_room(&self, needed: &Needed<'_>) -> Result<(), RpcError> {
        let mut stored = BTreeSet::new();
        for name in self.area.records() {
            let guest = name.strip_prefix(GUEST);
            if guest.is_some_and(|guest| !(needed.guest)(guest)) {
                match self.area.remove_record(&name).await {
                    // Another call was faster.
                    Ok(()) | Err(ImageError::NotFound) => {}
                    Err(error) => return Err(failed(error)),
                }
                log::info!("storage: {name} forgotten: there is no such guest");
                continue;
            }
            let bytes = match self.area.record(&name).await {
                Err(ImageError::RecordDamaged) => Vec::new(),
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => return Err(failed(error)),
            };
            match postcard::from_bytes::<GuestConfig>(&bytes) {
                Ok(config) => {
                    stored.insert(config.kernel.image);
                    stored.extend(config.ramdisk.map(|ramdisk| ramdisk.image));
                }
                // Such a guest cannot be started either.
                Err(error) => log::warn!("storage: {name} cannot be read: {error}"),
            }
        }
        let keep = |id: &ImageId| (needed.image)(id) || stored.contains(id);
        let collected = self.area.collect(now(), |id| keep(&ImageId(id.0))).await;
        let Collected {
            objects,
            bytes,
            leased,
        } = collected.map_err(failed)?;
        log::info!(
            "storage: {objects} images of {bytes} bytes forgotten: no guest needs them; {leased} \
             bytes kept for creates in progress"
        );
        Ok(())
    }

    /// Keeps a guest's definition, for a start at boot. A full area first forgets what is
    /// not `needed`.
    pub async fn keep_definition(
        &self,
        config: &GuestConfig,
        needed: &Needed<'_>,
    ) -> Result<(), RpcError> {
        let bytes = postcard::to_allocvec(config).map_err(failed)?;
        let name = record(&config.name);
        let kept = match self.area.put_record(&name, &bytes).await {
            Err(ImageError::NoSpace(_) | ImageError::CatalogFull) => {
                self.make_room(needed).await?;
                self.area.put_record(&name, &bytes).await
            }
            other => other,
        };
        kept.map_err(|error| area_error(error, bytes.len() as u64))
    }

    /// Forgets a guest's definition, if there is one.
    pub async fn forget_definition(&self, name: &str) -> Result<(), RpcError> {
        match self.area.remove_record(&record(name)).await {
            Err(ImageError::NotFound) => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// A guest's definition as it was last kept.
    pub async fn definition(&self, name: &str) -> Result<GuestConfig, RpcError> {
        let bytes = self.area.record(&record(name)).await.map_err(failed)?;
        let bytes = bytes.ok_or_else(|| RpcError::NoSuchGuest { guest: name.into() })?;
        postcard::from_bytes(&bytes).map_err(failed)
    }

    /// The image area's space.
    pub fn image_space(&self) -> Space {
        let space = self.area.space();
        Space {
            total: space.total,
            free: space.free,
        }
    }
}
