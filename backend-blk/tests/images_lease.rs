//! Creates in a small image area: none loses its own images or another's, and none leaves
//! any behind that the next one cannot have the place of.
#![allow(clippy::cast_possible_truncation, reason = "small made-up numbers")]

mod recorder;

use backend_blk::images::{
    Collected, ImageArea, ImageError, LEASE_TIME, Lease, MAX_NAME, ObjectId,
};
use backend_blk::{BlockError, ByteIo, Disk, Geometry};
use hal::DmaSegment;
use hal::block::Hold;
use recorder::{Recorder, run};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

const BLOCK: usize = 4096;
/// Blocks of a kernel and of a ramdisk.
const KERNEL: usize = 3;
const RAMDISK: usize = 20;
/// Two ramdisks and their kernels, and some blocks that are no use to a third.
const AREA: usize = 2 * (KERNEL + RAMDISK) + 5;
/// Bytes for entries in a catalog: a place for it less its header and counts.
const CATALOG: usize = (256 << 10) - 28 - 8;
/// Bytes of the entries of an image in one piece, and of an empty record with a long name.
const IMAGE_ENTRY: usize = 32 + 8 + 4 + 8;
const RECORD_ENTRY: usize = 4 + MAX_NAME + 4 + 8 + 4;

/// A disk whose flushes take a turn of the executor, as real ones do.
#[derive(Clone, Debug)]
struct Slow(Recorder);

impl Disk for Slow {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    async fn read(&self, at: u64, to: &[DmaSegment], hold: &Hold) -> Result<(), BlockError> {
        self.0.read(at, to, hold).await
    }
    async fn write(&self, at: u64, from: &[DmaSegment], hold: &Hold) -> Result<(), BlockError> {
        self.0.write(at, from, hold).await
    }
    async fn flush(&self) -> Result<(), BlockError> {
        hal::yield_now().await;
        self.0.flush().await
    }
    async fn discard(&self, at: u64, sectors: u64) -> Result<(), BlockError> {
        self.0.discard(at, sectors).await
    }
}

type Area = ImageArea<Slow>;

fn bytes(blocks: usize, seed: u32) -> Vec<u8> {
    let mix = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 11) as u8;
    (0..(blocks * BLOCK) as u32).map(mix).collect()
}

fn id(bytes: &[u8]) -> ObjectId {
    ObjectId(Sha256::digest(bytes).into())
}

/// The host, as its storage service is: an area, and what guests boot from.
struct Host {
    area: Area,
    guests: std::cell::RefCell<BTreeSet<ObjectId>>,
    now: Cell<Duration>,
}

/// An administrator's connection.
struct Client<'a> {
    host: &'a Host,
    lease: Lease<Slow>,
}

impl Host {
    async fn new() -> Self {
        Self::on(Recorder::new((128 + AREA as u64) * 8, 512)).await
    }

    /// With a catalog that has room for two images more: all else of it has guests'
    /// definitions. Made here, since so many take their time one by one.
    async fn with_catalog_almost_full() -> Self {
        let records = (CATALOG - 2 * IMAGE_ENTRY) / RECORD_ENTRY;
        let mut body = [0, records as u32].map(u32::to_le_bytes).concat();
        for n in 0..records {
            body.extend((MAX_NAME as u32).to_le_bytes());
            body.extend(format!("{n:0>MAX_NAME$}").bytes());
            body.extend([0; 4 + 8 + 4]);
        }
        let mut catalog = b"CLOSERIM\x01\0\0\0".to_vec();
        catalog.extend((body.len() as u32).to_le_bytes());
        catalog.extend(1u64.to_le_bytes());
        let sum = crc32fast::hash(&[&catalog[..], &body].concat());
        catalog.extend(sum.to_le_bytes());
        catalog.extend(body);
        let disk = Recorder::new((128 + AREA as u64) * 8, 512);
        for (sector, bytes) in (0..).zip(catalog.chunks(512)) {
            let mut bytes = bytes.to_vec();
            bytes.resize(512, 0);
            disk.put(sector, bytes);
        }
        let host = Self::on(disk).await;
        assert_eq!(host.area.records().len(), records);
        host
    }

    async fn on(disk: Recorder) -> Self {
        let io: ByteIo<Slow> = disk.io().on(Slow(disk));
        Self {
            area: ImageArea::open(io).await.unwrap(),
            guests: std::cell::RefCell::default(),
            // A host that has been up for a while.
            now: Cell::new(Duration::from_secs(100_000)),
        }
    }

    fn connect(&self) -> Client<'_> {
        let lease = self.area.lease();
        Client { host: self, lease }
    }

    async fn collect(&self) -> Collected {
        let needed = |id: &ObjectId| self.guests.borrow().contains(id);
        self.area.collect(self.now.get(), needed).await.unwrap()
    }

    fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    fn destroy_all(&self) {
        self.guests.borrow_mut().clear();
    }
}

impl Client<'_> {
    fn has(&self, image: &[u8]) -> bool {
        self.lease.has(&id(image), self.host.now.get()).is_some()
    }

    async fn upload(&self, image: &[u8]) -> Result<(), ImageError> {
        if self.has(image) {
            return Ok(());
        }
        let put = || self.host.area.put(id(image), image.len() as u64);
        let put = match put().await {
            Err(ImageError::NoSpace(_) | ImageError::CatalogFull) => {
                self.host.collect().await;
                put().await
            }
            other => other,
        };
        let mut put = put?;
        for part in image.chunks(7_000) {
            put.write(part).await?;
            self.lease.renew(self.host.now.get());
        }
        self.lease.keep(&put.commit().await?, self.host.now.get());
        Ok(())
    }

    /// The last step: a guest boots from the images, if they are there.
    fn name(&self, images: &[&[u8]]) -> Result<(), ImageError> {
        let ids: Vec<_> = images.iter().map(|image| id(image)).collect();
        for id in &ids {
            self.host.area.has(id).ok_or(ImageError::NotFound)?;
        }
        self.host.guests.borrow_mut().extend(ids);
        self.lease.release();
        Ok(())
    }

    async fn create(&self, kernel: &[u8], ramdisk: &[u8]) -> Result<(), ImageError> {
        let (_, _) = (self.has(kernel), self.has(ramdisk));
        self.upload(kernel).await?;
        self.upload(ramdisk).await?;
        self.name(&[kernel, ramdisk])
    }
}

fn guest(n: u32) -> (Vec<u8>, Vec<u8>) {
    (bytes(KERNEL, n), bytes(RAMDISK, 1000 + n))
}

#[test]
fn after_all_guests_are_destroyed_the_next_create_can_have_all_space() {
    run(async {
        let host = Host::new().await;
        // Over one connection each, as the program does, and all over one.
        for same in [false, true] {
            let one = host.connect();
            for n in 0..2 {
                let (kernel, ramdisk) = guest(n);
                let own = host.connect();
                let client = if same { &one } else { &own };
                client.create(&kernel, &ramdisk).await.unwrap();
            }
            let (kernel, ramdisk) = guest(2);
            let refused = host.connect().create(&kernel, &ramdisk).await;
            assert!(
                matches!(refused, Err(ImageError::NoSpace(_))),
                "{refused:?}"
            );

            host.destroy_all();
            let large = bytes(AREA - KERNEL, 99);
            host.connect().create(&kernel, &large).await.unwrap();
            host.destroy_all();
        }
    });
}

#[test]
fn a_create_that_failed_or_vanished_leaves_nothing_that_stays() {
    run(async {
        let host = Host::new().await;
        let (large, larger) = (bytes(AREA - KERNEL, 7), bytes(AREA + 1, 8));
        let vanished = host.connect();
        vanished.upload(&large).await.unwrap();
        drop(vanished);
        let failed = host.connect().create(&guest(0).0, &larger).await;
        assert!(matches!(failed, Err(ImageError::NoSpace(_))), "{failed:?}");
        let (kernel, ramdisk) = guest(1);
        host.connect().create(&kernel, &ramdisk).await.unwrap();
        let (kernel, ramdisk) = guest(2);
        host.connect().create(&kernel, &ramdisk).await.unwrap();
    });
}

#[test]
fn a_create_keeps_its_kernel_while_room_is_made_for_its_ramdisk() {
    run(async {
        let host = Host::new().await;
        let old = host.connect();
        let (kernel, ramdisk) = guest(0);
        old.create(&kernel, &bytes(AREA - 2 * KERNEL, 5))
            .await
            .unwrap();
        host.destroy_all();
        // The kernel is found in one case, and put in the other.
        for (kernel, found) in [(kernel, true), (guest(1).0, false)] {
            let client = host.connect();
            assert_eq!(client.has(&kernel), found);
            client.upload(&kernel).await.unwrap();
            let large = bytes(AREA - KERNEL, 6 + u32::from(found));
            client.upload(&large).await.unwrap();
            client.name(&[&kernel]).unwrap();
            host.destroy_all();
        }
        host.connect().create(&guest(2).0, &ramdisk).await.unwrap();
    });
}

#[test]
fn creates_at_once_take_nothing_from_each_other() {
    run(async {
        let host = Host::new().await;
        // Full of what nobody needs: both must make room.
        host.connect().upload(&bytes(AREA, 50)).await.unwrap();
        let guests: Vec<_> = (0..4).map(guest).collect();
        let clients: Vec<_> = guests.iter().map(|_| host.connect()).collect();
        for (client, (kernel, _)) in clients.iter().zip(&guests) {
            client.upload(kernel).await.unwrap();
        }
        // Four kernels leave room for one ramdisk.
        let (first, second) = both(
            clients[0].upload(&guests[0].1),
            clients[1].upload(&guests[1].1),
        )
        .await;
        first.unwrap();
        // What the second is told is free is what the first left.
        let left = AREA - 4 * KERNEL - RAMDISK;
        assert_eq!(second, Err(ImageError::NoSpace((left * BLOCK) as u64)));
        let held = (4 * KERNEL + RAMDISK) * BLOCK;
        assert_eq!(host.collect().await.leased, held as u64);
        clients[0].name(&[&guests[0].0, &guests[0].1]).unwrap();
        // The others give up, and the second tries again.
        drop(clients);
        let again = host.connect();
        again.create(&guests[1].0, &guests[1].1).await.unwrap();
        assert!(host.area.has(&id(&guests[0].1)).is_some());
    });
}

#[test]
fn two_creates_at_once_of_what_fits_both_succeed() {
    run(async {
        let host = Host::new().await;
        host.connect().upload(&bytes(AREA, 50)).await.unwrap();
        let (a, b) = (guest(0), guest(1));
        let clients = (host.connect(), host.connect());
        let created = both(clients.0.create(&a.0, &a.1), clients.1.create(&b.0, &b.1));
        assert_eq!(created.await, (Ok(()), Ok(())));
    });
}

#[test]
fn an_image_that_two_creates_asked_for_stays_until_both_are_over() {
    run(async {
        let host = Host::new().await;
        let (kernel, _) = guest(0);
        let (first, second) = (host.connect(), host.connect());
        first.upload(&kernel).await.unwrap();
        assert!(second.has(&kernel));
        drop(first);
        assert_eq!(host.collect().await.objects, 0);
        second.lease.release();
        assert_eq!(host.collect().await.objects, 1);
    });
}

#[test]
fn a_connection_that_idles_keeps_its_images_for_a_time_only() {
    run(async {
        let host = Host::new().await;
        let large = bytes(AREA - KERNEL, 1);
        let (kernel, ramdisk) = guest(0);
        let idle = host.connect();
        idle.upload(&large).await.unwrap();

        host.pass(LEASE_TIME - Duration::from_millis(1));
        let refused = host.connect().create(&kernel, &ramdisk).await;
        assert!(
            matches!(refused, Err(ImageError::NoSpace(_))),
            "{refused:?}"
        );
        host.pass(Duration::from_millis(1));
        host.connect().create(&kernel, &ramdisk).await.unwrap();
        // It hears of it instead of booting from something else.
        assert_eq!(idle.name(&[&large]), Err(ImageError::NotFound));
        assert!(!idle.has(&large));
    });
}

#[test]
fn an_upload_however_slow_keeps_what_was_put_before_it() {
    run(async {
        let host = Host::new().await;
        let client = host.connect();
        let (kernel, ramdisk) = guest(0);
        client.upload(&kernel).await.unwrap();
        let mut put = host
            .area
            .put(id(&ramdisk), ramdisk.len() as u64)
            .await
            .unwrap();
        for part in ramdisk.chunks(BLOCK) {
            host.pass(LEASE_TIME / 2);
            put.write(part).await.unwrap();
            client.lease.renew(host.now.get());
            assert_eq!(host.collect().await.objects, 0);
        }
    });
}

#[test]
fn what_is_being_collected_is_not_there_for_a_create_that_asks() {
    run(async {
        let host = Host::new().await;
        let (kernel, _) = guest(0);
        host.connect().upload(&kernel).await.unwrap();
        let client = host.connect();
        let asks = async {
            // The new catalog is on its way to the disk.
            assert!(host.area.has(&id(&kernel)).is_none());
            assert!(!client.has(&kernel));
            client.upload(&kernel).await
        };
        let (collected, uploaded) = both(host.collect(), asks).await;
        assert_eq!((collected.objects, uploaded), (1, Ok(())));
        assert_eq!(host.collect().await.objects, 0);
        client.name(&[&kernel]).unwrap();
    });
}

#[test]
fn what_is_being_collected_is_not_opened() {
    run(async {
        let host = Host::new().await;
        let (kernel, _) = guest(0);
        host.connect().upload(&kernel).await.unwrap();
        // The new catalog is on its way to the disk.
        let opens = async { host.area.open_object(&id(&kernel)).map(drop) };
        let (collected, opened) = both(host.collect(), opens).await;
        assert_eq!((collected.objects, opened), (1, Err(ImageError::NotFound)));
    });
}

#[test]
fn where_the_catalog_is_full_of_images_nobody_needs_a_new_one_takes_their_place() {
    run(async {
        let host = Host::with_catalog_almost_full().await;
        for n in 0..5 {
            host.connect().upload(&bytes(1, n)).await.unwrap();
        }
        assert_eq!(host.area.objects().len(), 1);
    });
}

#[test]
fn an_image_that_the_catalog_has_no_room_for_is_refused_before_it_comes() {
    run(async {
        let host = Host::with_catalog_almost_full().await;
        let images: Vec<_> = (0..3).map(|n| bytes(1, n)).collect();
        let begin = |n: usize| host.area.put(id(&images[n]), BLOCK as u64);
        // Those that are still coming count, and one that was given up does not.
        drop(begin(2).await.unwrap());
        let coming = [begin(0).await.unwrap(), begin(1).await.unwrap()];
        let free = host.area.space().free;
        assert_eq!(begin(2).await.unwrap_err(), ImageError::CatalogFull);
        assert_eq!(host.area.space().free, free);
        for (mut put, image) in coming.into_iter().zip(&images) {
            put.write(image).await.unwrap();
            put.commit().await.unwrap();
        }
        assert_eq!(begin(2).await.unwrap_err(), ImageError::CatalogFull);
        host.area.remove(&id(&images[0])).await.unwrap();
        begin(2).await.unwrap();
    });
}

/// Both futures' outputs; the first is polled first.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            first = Some(output);
        }
        if second.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            second = Some(output);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            halves => {
                (first, second) = halves;
                Poll::Pending
            }
        }
    })
    .await
}
