//! The image area: what was put is there, what was cut is not, whenever the power goes.
#![allow(clippy::cast_possible_truncation, reason = "small made-up numbers")]

mod recorder;

use backend_blk::BlockError;
use backend_blk::images::{Collected, ImageArea, ImageError, ObjectHandle, ObjectId};
use proptest::prelude::*;
use recorder::{Recorder, run};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

/// 128 blocks of catalogs and so many of data.
fn disk(data_blocks: u64) -> Recorder {
    Recorder::new((128 + data_blocks) * 8, 512)
}

fn open(disk: &Recorder) -> Result<ImageArea<Recorder>, ImageError> {
    let io = disk.io();
    run(async move { ImageArea::open(io).await })
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mix = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 11) as u8;
    (0..len as u32).map(mix).collect()
}

fn id(bytes: &[u8]) -> ObjectId {
    ObjectId(Sha256::digest(bytes).into())
}

async fn put(area: &ImageArea<Recorder>, data: &[u8], chunk: usize) -> Result<(), ImageError> {
    let mut put = area.put(id(data), data.len() as u64).await?;
    for part in data.chunks(chunk) {
        put.write(part).await?;
    }
    put.commit().await.map(drop)
}

/// Collects what is neither open nor wanted, with nobody's lease.
async fn collect(
    area: &ImageArea<Recorder>,
    wanted: impl Fn(&ObjectId) -> bool,
) -> Result<(usize, u64), ImageError> {
    let collected = area.collect(Duration::ZERO, wanted).await?;
    let Collected {
        objects,
        bytes,
        leased,
    } = collected;
    assert_eq!(leased, 0);
    Ok((objects, bytes))
}

async fn read(area: &ImageArea<Recorder>, id: &ObjectId) -> Result<Vec<u8>, ImageError> {
    let object = area.open_object(id)?;
    let mut data = vec![0; object.len() as usize];
    object.read(area.io(), 0, &mut data).await?;
    Ok(data)
}

#[test]
fn what_was_put_is_read_back_at_any_offset_after_opening_again() {
    let disk = disk(200);
    let area = open(&disk).unwrap();
    let sizes = [0, 1, 4095, 4096, 4097, 65_536, 65_537, 300_000];
    run(async move {
        for (n, len) in sizes.into_iter().enumerate() {
            put(&area, &bytes(len, n as u32), 10_000).await.unwrap();
        }
    });
    let area = open(&disk).unwrap();
    assert_eq!(area.objects().len(), sizes.len());
    run(async move {
        for (n, len) in sizes.into_iter().enumerate() {
            let data = bytes(len, n as u32);
            assert_eq!(area.has(&id(&data)), Some(len as u64));
            assert!(read(&area, &id(&data)).await.unwrap() == data);
            let object = area.open_object(&id(&data)).unwrap();
            for (from, to) in [
                (0, 1),
                (1, 5000),
                (4095, 4097),
                (60_000, 140_001),
                (299_999, 300_000),
            ] {
                let mut part = vec![0; to - from];
                let result = object.read(area.io(), from as u64, &mut part).await;
                if to <= len {
                    result.unwrap();
                    assert!(part == data[from..to]);
                } else {
                    assert_eq!(result, Err(ImageError::OutOfRange));
                }
            }
        }
    });
}

#[test]
fn a_put_that_is_cut_or_wrong_leaves_nothing_and_takes_no_space() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    let all = area.space();
    assert_eq!((all.total, all.free), (64 * 4096, 64 * 4096));
    let ours = area.clone();
    run(async move {
        let data = bytes(100_000, 1);
        let mut cut = ours.put(id(&data), 100_000).await.unwrap();
        cut.write(&data[..70_000]).await.unwrap();
        assert_eq!(ours.space().free, all.free - 25 * 4096);
        assert_eq!(
            cut.commit().await.unwrap_err(),
            ImageError::TooShort(70_000)
        );

        let mut dropped = ours.put(id(&data), 100_000).await.unwrap();
        dropped.write(&data).await.unwrap();
        drop(dropped);

        let mut wrong = ours.put(id(&data), 100_000).await.unwrap();
        wrong.write(&bytes(100_000, 2)).await.unwrap();
        let found = id(&bytes(100_000, 2));
        assert_eq!(
            wrong.commit().await.unwrap_err(),
            ImageError::Mismatch(found)
        );

        let mut long = ours.put(id(&data), 10).await.unwrap();
        assert_eq!(long.write(&data[..11]).await, Err(ImageError::TooLong));
    });
    assert_eq!((area.space(), area.objects().len()), (all, 0));
    assert!(open(&disk).unwrap().objects().is_empty());
}

#[test]
fn a_full_area_says_so_and_free_pieces_are_joined() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        let objects: Vec<_> = (0..8).map(|n| bytes(8 * 4096, n)).collect();
        for object in &objects {
            put(&area, object, 65_536).await.unwrap();
        }
        assert_eq!(area.space().free, 0);
        let refused = put(&area, &bytes(1, 9), 1).await;
        assert_eq!(refused, Err(ImageError::NoSpace(0)));
        for n in [1, 3, 6] {
            area.remove(&id(&objects[n])).await.unwrap();
        }
        let large = bytes(24 * 4096 - 7, 50);
        assert_eq!(
            put(&area, &bytes(25 * 4096, 51), 65_536).await,
            Err(ImageError::NoSpace(24 * 4096))
        );
        put(&area, &large, 7_777).await.unwrap();
        assert!(read(&area, &id(&large)).await.unwrap() == large);
        for n in [0, 2, 4, 5, 7] {
            assert!(read(&area, &id(&objects[n])).await.unwrap() == objects[n]);
        }
        assert_eq!(
            area.put(id(&large), 1).await.unwrap_err(),
            ImageError::Exists
        );
        assert_eq!(
            area.put(ObjectId([0; 32]), u64::MAX).await.unwrap_err(),
            ImageError::NoSpace(0)
        );
    });
}

#[test]
fn open_objects_stay_and_collecting_takes_the_rest() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        let (a, b, c) = (bytes(5000, 1), bytes(6000, 2), bytes(7000, 3));
        for data in [&a, &b, &c] {
            put(&area, data, 4096).await.unwrap();
        }
        let held = area.open_object(&id(&a)).unwrap();
        let second = held.clone();
        assert_eq!(area.remove(&id(&a)).await, Err(ImageError::InUse(2)));
        let wanted = id(&b);
        assert_eq!(collect(&area, |id| *id == wanted).await, Ok((1, 7000)));
        assert_eq!(area.objects().len(), 2);
        drop((held, second));
        assert_eq!(collect(&area, |id| *id == wanted).await, Ok((1, 5000)));
        assert_eq!(collect(&area, |id| *id == wanted).await, Ok((0, 0)));
        assert_eq!(area.remove(&id(&a)).await, Err(ImageError::NotFound));
        assert_eq!(area.open_object(&id(&a)).unwrap_err(), ImageError::NotFound);
    });
}

#[test]
fn a_fresh_put_is_held_until_its_handle_goes() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        let data = bytes(5000, 1);
        let mut put = area.put(id(&data), 5000).await.unwrap();
        put.write(&data).await.unwrap();
        let handle = put.commit().await.unwrap();
        assert_eq!(collect(&area, |_| false).await, Ok((0, 0)));
        drop(handle);
        assert_eq!(collect(&area, |_| false).await, Ok((1, 5000)));
    });
}

/// Begins both before it ends the first.
async fn put_twice(area: &ImageArea<Recorder>, data: &[u8]) -> (ObjectHandle, ObjectHandle) {
    let len = data.len() as u64;
    let mut first = area.put(id(data), len).await.unwrap();
    let mut second = area.put(id(data), len).await.unwrap();
    first.write(data).await.unwrap();
    second.write(data).await.unwrap();
    let first = first.commit().await.unwrap();
    (first, second.commit().await.unwrap())
}

#[test]
fn two_puts_of_the_same_bytes_make_one_object() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        let (first, second) = put_twice(&area, &bytes(5000, 1)).await;
        assert_eq!(first.id(), second.id());
        assert_eq!(area.space().free, 62 * 4096);
    });
}

#[test]
fn a_second_put_of_the_same_bytes_takes_no_blocks_from_who_reads_the_first() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        let data = bytes(5000, 1);
        let (reader, second) = put_twice(&area, &data).await;
        drop(second);
        // Takes every block that is free.
        put(&area, &bytes(62 * 4096, 2), 65_536).await.unwrap();
        let mut seen = vec![0; 5000];
        reader.read(area.io(), 0, &mut seen).await.unwrap();
        assert!(seen == data);
    });
}

#[test]
fn records_are_replaced_whole_and_checked() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    let ours = area.clone();
    run(async move {
        ours.put_record("guest/a", &bytes(65_536, 1)).await.unwrap();
        ours.put_record("guest/a", &bytes(10, 2)).await.unwrap();
        ours.put_record("empty", &[]).await.unwrap();
        assert_eq!(ours.record("guest/a").await.unwrap().unwrap(), bytes(10, 2));
        assert_eq!(ours.record("empty").await, Ok(Some(vec![])));
        assert_eq!(ours.record("none").await, Ok(None));
        assert_eq!(ours.space().free, 63 * 4096);
        for (name, len) in [("", 1), ("a b", 1), ("ü", 1), ("a\n", 1), ("big", 65_537)] {
            assert_eq!(
                ours.put_record(name, &bytes(len, 1)).await,
                Err(ImageError::BadRecord)
            );
        }
        assert_eq!(
            ours.put_record(&"n".repeat(129), &[]).await,
            Err(ImageError::BadRecord)
        );
        assert_eq!(ours.remove_record("none").await, Err(ImageError::NotFound));
    });
    let again = open(&disk).unwrap();
    assert_eq!(again.records(), ["empty", "guest/a"]);
    // One bit of the record's only block.
    let sector = (128 * 8..)
        .find(|sector| disk.get(*sector)[..10] == bytes(10, 2)[..])
        .unwrap();
    disk.flip(sector, 3);
    let ours = again.clone();
    let damaged = run(async move { ours.record("guest/a").await });
    assert_eq!(damaged, Err(ImageError::RecordDamaged));
    run(async move { again.remove_record("guest/a").await }).unwrap();
    assert_eq!(open(&disk).unwrap().records(), ["empty"]);
}

#[test]
fn the_other_catalog_is_there_when_one_is_damaged() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    run(async move {
        put(&area, &bytes(10, 1), 10).await.unwrap();
        put(&area, &bytes(10, 2), 10).await.unwrap();
    });
    let (first, second) = (disk.fork(), disk.fork());
    first.flip(0, 30);
    assert_eq!(open(&first).unwrap().objects().len(), 2);
    second.flip(512, 30);
    assert_eq!(open(&second).unwrap().objects().len(), 2);
    // Opening wrote it anew.
    second.flip(0, 30);
    assert_eq!(open(&second).unwrap().objects().len(), 2);
    first.flip(0, 30);
    first.flip(512, 30);
    assert_eq!(open(&first).unwrap_err(), ImageError::Damaged);
    let io = first.io();
    let empty = run(async move { ImageArea::format(io).await }).unwrap();
    assert!(empty.objects().is_empty() && open(&first).unwrap().objects().is_empty());
}

#[test]
fn an_area_without_room_for_data_is_refused() {
    assert_eq!(open(&disk(0)).unwrap_err(), ImageError::TooSmall);
}

/// One step of a history, by number.
async fn step(area: &ImageArea<Recorder>, n: u32) -> Result<(), ImageError> {
    match n {
        0 => put(area, &bytes(20_000, 100), 7_000).await,
        1 => area.put_record("r", &bytes(5_000, 200)).await,
        2 => put(area, &bytes(30_000, 101), 70_000).await,
        3 => area.put_record("r", &bytes(9_000, 201)).await,
        4 => area.remove(&id(&bytes(20_000, 100))).await,
        // Takes the place of what was just removed.
        5 => put(area, &bytes(40_000, 102), 4_096).await,
        6 => area.remove(&id(&bytes(30_000, 101))).await,
        _ => area.remove_record("r").await,
    }
}

type Seen = (BTreeMap<ObjectId, Vec<u8>>, BTreeMap<String, Vec<u8>>);

/// All that can be read, which must be what its hash or checksum says.
fn contents(disk: &Recorder) -> Seen {
    let area = open(disk).unwrap();
    run(async move {
        let mut seen = Seen::default();
        for (id, len) in area.objects() {
            let data = read(&area, &id).await.unwrap();
            assert_eq!((self::id(&data), data.len() as u64), (id, len));
            seen.0.insert(id, data);
        }
        for name in area.records() {
            let data = area.record(&name).await.unwrap().unwrap();
            seen.1.insert(name, data);
        }
        seen
    })
}

#[test]
fn a_power_cut_in_any_step_leaves_the_state_before_it_or_after() {
    let disk = disk(40);
    let area = open(&disk).unwrap();
    disk.take_log();
    for n in 0..8 {
        let (before, old) = (disk.fork(), contents(&disk.fork()));
        let ours = area.clone();
        run(async move { step(&ours, n).await }).unwrap();
        let new = contents(&disk.fork());
        assert!(old != new);
        let (mut was_old, mut was_new) = (0, 0);
        before.each_cut(&disk.take_log(), |cut| {
            let seen = contents(&cut);
            if seen == old {
                was_old += 1;
            } else {
                assert!(seen == new, "step {n}");
                was_new += 1;
            }
        });
        assert!(was_old > 0 && was_new > 0, "step {n}");
    }
}

#[test]
fn a_power_cut_while_the_area_is_made_leaves_an_empty_one() {
    let disk = disk(40);
    let before = disk.fork();
    open(&disk).unwrap();
    before.each_cut(&disk.take_log(), |cut| {
        assert!(open(&cut).unwrap().objects().is_empty());
    });
}

#[test]
fn a_write_that_fails_anywhere_leaves_one_state_and_the_area_usable() {
    for n in 0..8 {
        for broken_after in 0..30 {
            let disk = disk(40);
            let area = open(&disk).unwrap();
            let ours = area.clone();
            run(async move {
                for earlier in 0..n {
                    step(&ours, earlier).await.unwrap();
                }
            });
            let old = contents(&disk.fork());
            disk.writes_left.set(broken_after);
            let ours = area.clone();
            let result = run(async move { step(&ours, n).await });
            disk.writes_left.set(u64::MAX);
            if result.is_ok() {
                break;
            }
            assert_eq!(result, Err(ImageError::Disk(BlockError::Media(0x280))));
            assert!(contents(&disk.fork()) == old);
            // Something else is kept, then the same again works.
            let ours = area.clone();
            run(async move {
                ours.put_record("other", &bytes(3_000, 7)).await.unwrap();
                step(&ours, n).await.unwrap();
            });
            assert_eq!(contents(&disk).1["other"], bytes(3_000, 7));
            assert!(broken_after < 29, "never got through");
        }
    }
}

#[test]
fn after_two_failed_changes_and_a_power_cut_no_image_has_another_ones_bytes() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    let (first, other) = (bytes(40_000, 1), bytes(100_000, 2));
    let (ours, d, put_first) = (area.clone(), disk.clone(), first.clone());
    run(async move {
        ours.put_record("r", b"x").await.unwrap();
        // The catalog that names the first image reaches the disk, but nobody says so: the
        // flush of its data works, its own does not.
        d.flushes_left.set(1);
        let failed = Err(ImageError::Disk(BlockError::Device(6)));
        assert_eq!(put(&ours, &put_first, 40_000).await, failed);
        d.flushes_left.set(u64::MAX);
        // Another change, that never gets there.
        d.writes_left.set(0);
        let failed = Err(ImageError::Disk(BlockError::Media(0x280)));
        assert_eq!(ours.remove_record("r").await, failed);
        d.writes_left.set(u64::MAX);
        // The next image begins to come, and the power goes.
        let mut next = ours.put(id(&other), other.len() as u64).await.unwrap();
        next.write(&other).await.unwrap();
    });
    let (objects, _) = contents(&disk);
    assert_eq!(objects.get(&id(&first)), Some(&first));
}

#[test]
fn while_changes_fail_no_space_is_lost_for_good() {
    let disk = disk(64);
    let area = open(&disk).unwrap();
    let (ours, d) = (area.clone(), disk.clone());
    run(async move {
        for n in 0..20 {
            // The data's flush works, the catalog's does not.
            d.flushes_left.set(1);
            put(&ours, &bytes(9_000, n), 9_000).await.unwrap_err();
        }
        d.flushes_left.set(u64::MAX);
        ours.put_record("r", b"x").await.unwrap();
        assert_eq!(ours.space().free, 63 * 4096);
    });
}

#[test]
fn whichever_catalog_cannot_be_read_nothing_is_lost_or_has_other_bytes() {
    let disk = disk(40);
    let area = open(&disk).unwrap();
    for n in 0..8 {
        let ours = area.clone();
        run(async move { step(&ours, n).await }).unwrap();
        let now = contents(&disk.fork());
        for sector in [0, 512] {
            let bad = disk.fork();
            bad.unreadable.borrow_mut().insert(sector);
            assert!(contents(&bad) == now, "step {n}, sector {sector}");
            assert!(
                bad.unreadable.borrow().is_empty(),
                "it was not written anew"
            );
            bad.unreadable.borrow_mut().insert(512 - sector);
            assert!(contents(&bad) == now, "step {n}, then the other");
        }
        let gone = disk.fork();
        gone.unreadable.borrow_mut().extend([0, 512]);
        let refused = open(&gone).unwrap_err();
        assert_eq!(refused, ImageError::Disk(BlockError::Media(0x281)));
    }
}

#[test]
fn a_catalog_that_cannot_be_written_again_leaves_an_area_that_can_be_read() {
    let disk = disk(40);
    let area = open(&disk).unwrap();
    run(async move { step(&area, 0).await }).unwrap();
    let now = contents(&disk.fork());
    disk.unreadable.borrow_mut().insert(0);
    disk.writes_left.set(0);
    assert!(contents(&disk) == now);
}

#[test]
fn a_change_whose_second_copy_fails_is_made_and_nothing_of_before_is_overwritten() {
    let disk = disk(40);
    let area = open(&disk).unwrap();
    let (ours, d) = (area.clone(), disk.clone());
    run(async move {
        step(&ours, 0).await.unwrap();
        let space = ours.space().free;
        d.writes_left.set(1);
        step(&ours, 4).await.unwrap();
        d.writes_left.set(u64::MAX);
        assert_eq!(ours.space().free, space);
        let data = bytes(30_000, 101);
        let mut next = ours.put(id(&data), 30_000).await.unwrap();
        next.write(&data).await.unwrap();
    });
    // One place has the removal, the other the catalog from before.
    let seen = [0, 512].map(|sector| {
        let bad = disk.fork();
        bad.unreadable.borrow_mut().insert(sector);
        contents(&bad).0.len()
    });
    assert_eq!(seen, [1, 0]);
}

#[test]
fn while_a_catalog_cannot_be_written_the_disk_is_at_fault_and_never_the_space() {
    for place in [0, 512] {
        let disk = disk(64);
        let area = open(&disk).unwrap();
        let kept = bytes(5_000, 99);
        let (ours, d, data) = (area.clone(), disk.clone(), kept.clone());
        run(async move {
            put(&ours, &data, 4_096).await.unwrap();
            d.unwritable.borrow_mut().insert(place);
            // One change may still be made: the one that goes to the other place.
            ours.put_record("r", b"x").await.ok();
            for n in 0..40 {
                let refused = put(&ours, &bytes(20_000, n), 4_096).await;
                let failed = Err(ImageError::Disk(BlockError::Media(0x280)));
                assert_eq!(refused, failed, "put {n}");
            }
            // What there would be no room for on any disk.
            let large = put(&ours, &bytes(65 * 4_096, 7), 4_096).await;
            assert!(matches!(large, Err(ImageError::NoSpace(_))), "{large:?}");
        });
        assert_eq!(contents(&disk.fork()).0[&id(&kept)], kept);
        // The disk works again: so does the area, and all of it.
        disk.unwritable.borrow_mut().clear();
        let ours = area.clone();
        run(async move {
            let record = u64::from(ours.record("r").await.unwrap().is_some());
            put(&ours, &bytes(60_000, 50), 4_096).await.unwrap();
            assert_eq!(ours.space().free, (64 - 2 - record - 15) * 4_096);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Any history agrees with two maps, and space is neither lost nor used twice.
    #[test]
    fn random_histories_agree_with_a_model(
        ops in proptest::collection::vec((0u8..5, 0u32..6, 0usize..60_000), 1..40)
    ) {
        let disk = disk(48);
        let mut area = open(&disk).unwrap();
        let (mut objects, mut records) = (BTreeMap::new(), BTreeMap::new());
        for (op, n, len) in ops {
            let ours = area.clone();
            match op {
                0 => {
                    let data = bytes(len, n);
                    let kept = data.clone();
                    let result = run(async move { put(&ours, &data, 9_999).await });
                    match result {
                        Ok(()) => prop_assert!(objects.insert(id(&kept), kept).is_none()),
                        Err(ImageError::Exists) => prop_assert!(objects.contains_key(&id(&kept))),
                        Err(error) => prop_assert!(matches!(error, ImageError::NoSpace(_)), "{}", error),
                    }
                }
                1 => {
                    let (name, data) = (format!("r{n}"), bytes(len, n));
                    let (key, kept) = (name.clone(), data.clone());
                    if run(async move { ours.put_record(&name, &data).await }).is_ok() {
                        records.insert(key, kept);
                    }
                }
                2 => {
                    if let Some(key) = objects.keys().nth(n as usize).copied() {
                        run(async move { ours.remove(&key).await }).unwrap();
                        objects.remove(&key);
                    }
                }
                3 => {
                    let name = format!("r{n}");
                    let removed = records.remove(&name).is_some();
                    let result = run(async move { ours.remove_record(&name).await });
                    prop_assert_eq!(result.is_ok(), removed);
                }
                _ => area = open(&disk).unwrap(),
            }
            let lens = objects.values().chain(records.values()).map(Vec::len);
            let used: usize = lens.map(|len| len.div_ceil(4096)).sum();
            prop_assert_eq!(area.space().free, (48 - used as u64) * 4096);
        }
        prop_assert!(contents(&disk) == (objects, records));
    }

    /// Whatever fails, and whichever catalog is read after a power cut: all it names has the
    /// right bytes.
    #[test]
    fn random_failures_give_no_image_other_bytes(
        ops in proptest::collection::vec((0u32..8, 0u64..8, any::<bool>()), 1..40)
    ) {
        let disk = disk(40);
        let area = open(&disk).unwrap();
        for (n, works, writes) in ops {
            let (ours, d) = (area.clone(), disk.clone());
            run(async move {
                let left = if writes { &d.writes_left } else { &d.flushes_left };
                // Seven are enough for any step.
                left.set(if works < 7 { works } else { u64::MAX });
                // Done or not: what counts is what is on the disk.
                step(&ours, n).await.ok();
                left.set(u64::MAX);
                // The next image begins to come.
                if let Ok(mut next) = ours.put(id(&[]), 50_000).await {
                    next.write(&bytes(50_000, n)).await.unwrap();
                }
            });
            for unreadable in [None, Some(0), Some(512)] {
                let cut = disk.fork();
                cut.unreadable.borrow_mut().extend(unreadable);
                contents(&cut);
            }
        }
    }
}
