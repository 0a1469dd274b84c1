//! Volumes: layout, refusals, and a power cut at every sector of every update.
#![allow(clippy::cast_possible_truncation, reason = "small made-up numbers")]

mod recorder;

use backend_blk::gpt::format::BadTable;
use backend_blk::gpt::{Contents, Gpt, GptError, Guid, Health, Overwrite, VolumeHandle};
use backend_blk::{BlockError, Extent};
use proptest::prelude::*;
use recorder::{Recorder, run};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

const MIB: u64 = 2048;

fn guid(n: u8) -> Guid {
    Guid::from_random([n; 16])
}

fn create(disk: &Recorder) -> Gpt<Recorder> {
    let io = disk.io();
    run(async move { Gpt::create(io, guid(1), Overwrite::No).await }).unwrap()
}

fn open(disk: &Recorder) -> Result<(Gpt<Recorder>, Health), GptError> {
    let io = disk.io();
    run(async move { Gpt::open(io).await })
}

/// Runs an operation on a table and gives both back.
fn with<T: 'static>(
    mut gpt: Gpt<Recorder>,
    f: impl AsyncFnOnce(&mut Gpt<Recorder>) -> T + 'static,
) -> (Gpt<Recorder>, T) {
    run(async move {
        let result = f(&mut gpt).await;
        (gpt, result)
    })
}

fn add(
    gpt: Gpt<Recorder>,
    name: &'static str,
    sectors: u64,
    n: u8,
) -> (Gpt<Recorder>, Result<Extent, GptError>) {
    with(gpt, async move |gpt| {
        let volume = gpt.create_volume(name, sectors, guid(n)).await?;
        gpt.finish_volume(&volume).await?;
        Ok(volume.extent())
    })
}

/// Makes a volume and does not fill it.
fn begin(gpt: Gpt<Recorder>, name: &'static str, sectors: u64) -> (Gpt<Recorder>, VolumeHandle) {
    let (gpt, volume) = with(gpt, async move |gpt| {
        gpt.create_volume(name, sectors, guid(7)).await
    });
    (gpt, volume.unwrap())
}

fn names(gpt: &Gpt<Recorder>) -> Vec<String> {
    gpt.volumes()
        .into_iter()
        .map(|volume| volume.name)
        .collect()
}

#[test]
fn volumes_are_aligned_apart_and_found_again() {
    for block_size in [512, 4096] {
        let disk = Recorder::new(64 * MIB, block_size);
        assert_eq!(open(&disk).unwrap_err(), GptError::Blank);
        let (gpt, a) = add(create(&disk), "a", 3 * MIB - 5, 2);
        let (gpt, b) = add(gpt, "b.disk-1", 1, 3);
        assert_eq!(
            a.unwrap(),
            Extent {
                first: MIB,
                sectors: 3 * MIB
            }
        );
        assert_eq!(
            b.unwrap(),
            Extent {
                first: 4 * MIB,
                sectors: MIB
            }
        );
        assert_eq!(gpt.free(), (58 * MIB, 58 * MIB));
        let (again, health) = open(&disk).unwrap();
        assert_eq!(health, Health::Good);
        assert_eq!(again.volumes(), gpt.volumes());
        assert_eq!(again.disk(), guid(1));
    }
}

#[test]
fn a_hole_is_used_again_and_a_full_disk_says_how_much_is_left() {
    let disk = Recorder::new(16 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", 4 * MIB, 2);
    let (gpt, _) = add(gpt, "b", 4 * MIB, 3);
    let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("a").await);
    removed.unwrap();
    let (gpt, refused) = add(gpt, "c", 7 * MIB, 4);
    assert_eq!(refused, Err(GptError::NoSpace(6 * MIB)));
    let (gpt, huge) = add(gpt, "c", u64::MAX, 4);
    assert_eq!(huge, Err(GptError::NoSpace(6 * MIB)));
    let (gpt, c) = add(gpt, "c", 4 * MIB, 4);
    assert_eq!(c.unwrap().first, MIB);
    assert_eq!(names(&gpt), ["b", "c"]);
}

#[test]
fn names_are_checked_and_unique() {
    let disk = Recorder::new(64 * MIB, 512);
    let mut gpt = create(&disk);
    for bad in [
        "",
        ".",
        "-x",
        "a b",
        "a/b",
        "ü",
        "0123456789012345678901234567890123456",
    ] {
        let (next, result) = add(gpt, bad, MIB, 2);
        assert_eq!(result, Err(GptError::BadName), "{bad}");
        gpt = next;
    }
    let (gpt, long) = add(gpt, "012345678901234567890123456789012345", MIB, 2);
    long.unwrap();
    let (gpt, twice) = add(gpt, "012345678901234567890123456789012345", MIB, 3);
    assert_eq!(twice, Err(GptError::Exists));
    let (_, nothing) = add(gpt, "n", 0, 3);
    assert_eq!(nothing, Err(GptError::BadSize));
    assert_eq!(open(&disk).unwrap().0.volumes().len(), 1);
}

#[test]
fn an_open_volume_is_not_removed() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, extent) = add(create(&disk), "a", MIB, 2);
    let handle = gpt.open_volume("a").unwrap();
    let second = handle.clone();
    assert_eq!(handle.extent(), extent.unwrap());
    let (gpt, refused) = with(gpt, async |gpt| gpt.remove_volume("a").await);
    assert_eq!(refused, Err(GptError::InUse(2)));
    drop((handle, second));
    let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("a").await);
    removed.unwrap();
    assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::NoSuchVolume);
    let (_, again) = with(gpt, async |gpt| gpt.remove_volume("a").await);
    assert_eq!(again, Err(GptError::NoSuchVolume));
}

#[test]
fn only_a_blank_disk_is_taken_unasked() {
    for dirty in [0, 1, 5, 2047, 64 * MIB - 2048, 64 * MIB - 1] {
        let disk = Recorder::new(64 * MIB, 512);
        disk.flip(dirty, 100);
        assert!(
            matches!(open(&disk), Err(GptError::NoTable(_, _))),
            "{dirty}"
        );
        let io = disk.io();
        let refused = run(async move { Gpt::create(io, guid(1), Overwrite::No).await });
        assert_eq!(refused.unwrap_err(), GptError::NotBlank);
        let io = disk.io();
        run(async move { Gpt::create(io, guid(1), Overwrite::Yes).await }).unwrap();
        assert_eq!(open(&disk).unwrap().1, Health::Good);
    }
    let tiny = Recorder::new(40, 512);
    let io = tiny.io();
    let refused = run(async move { Gpt::create(io, guid(1), Overwrite::Yes).await });
    assert_eq!(refused.unwrap_err(), GptError::TooSmall);
}

#[test]
fn the_table_gets_full() {
    let disk = Recorder::new(200 * MIB, 4096);
    let mut gpt = create(&disk);
    for n in 0..128 {
        let name: &'static str = format!("v{n}").leak();
        let (next, result) = add(gpt, name, 1, n);
        result.unwrap();
        gpt = next;
    }
    assert_eq!(add(gpt, "more", 1, 200).1, Err(GptError::TableFull));
}

#[test]
fn a_new_volume_does_not_begin_with_old_data() {
    let disk = Recorder::new(64 * MIB, 512);
    let gpt = create(&disk);
    for sector in [MIB, 2 * MIB - 1, 4 * MIB, 5 * MIB - 1] {
        disk.flip(sector, 0);
    }
    disk.flip(3 * MIB, 0);
    let (_, extent) = add(gpt, "a", 4 * MIB, 2);
    assert_eq!(extent.unwrap().first, MIB);
    for sector in [MIB, 2 * MIB - 1, 4 * MIB, 5 * MIB - 1] {
        assert_eq!(disk.get(sector), vec![0; 512]);
    }
}

#[test]
fn the_image_area_is_made_once_and_is_no_volume() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, made) = with(create(&disk), async |gpt| {
        gpt.image_area(8 * MIB, guid(9)).await
    });
    let (extent, new) = made.unwrap();
    assert!(new && extent.sectors == 8 * MIB);
    let (gpt, found) = with(gpt, async |gpt| gpt.image_area(20 * MIB, guid(8)).await);
    assert_eq!(found, Ok((extent, false)));
    assert!(gpt.volumes().is_empty());
    let (_, removed) = with(gpt, async |gpt| gpt.remove_volume("closer-images").await);
    assert_eq!(removed, Err(GptError::NoSuchVolume));
}

#[test]
fn any_broken_sector_of_one_copy_is_restored_from_the_other() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", MIB, 2);
    let (gpt, _) = add(gpt, "b", MIB, 3);
    let last = 64 * MIB - 1;
    let primary = (1..34).map(|sector| (sector, Health::PrimaryRestored));
    let backup = (last - 32..=last).map(|sector| (sector, Health::BackupRestored));
    for (sector, expected) in primary.chain(backup) {
        // Beyond the header's 92 bytes nothing is summed.
        for at in [0, 17, 60, 91] {
            let broken = disk.fork();
            broken.flip(sector, at);
            let (found, health) = open(&broken).unwrap();
            assert_eq!(health, expected, "sector {sector} byte {at}");
            assert_eq!(found.volumes(), gpt.volumes());
            assert_eq!(open(&broken).unwrap().1, Health::Good);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_table_or_the_new_one() {
    for block_size in [512, 4096] {
        let disk = Recorder::new(16 * MIB, block_size);
        let (gpt, _) = add(create(&disk), "old", MIB, 2);
        let before = disk.fork();
        disk.take_log();
        let (gpt, _) = add(gpt, "new", MIB, 3);
        let (mut old, mut new) = (0, 0);
        before.each_cut(&disk.take_log(), |cut| {
            let (found, _) = open(&cut).unwrap();
            match names(&found).join(" ").as_str() {
                "old" => old += 1,
                "new old" => new += 1,
                other => panic!("a table with {other:?}"),
            }
            // And from there on all is well.
            assert_eq!(open(&cut).unwrap().1, Health::Good);
            let (_, more) = add(found, "more", MIB, 4);
            more.unwrap();
        });
        assert!(old > 1 && new > 1);

        let before = disk.fork();
        let (_, removed) = with(gpt, async |gpt| gpt.remove_volume("old").await);
        removed.unwrap();
        before.each_cut(&disk.take_log(), |cut| {
            let found = names(&open(&cut).unwrap().0);
            assert!(found == ["new"] || found == ["new", "old"], "{found:?}");
        });
    }
}

#[test]
fn a_volume_cannot_be_opened_until_it_is_finished() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, volume) = begin(create(&disk), "a", MIB);
    assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::Filling);
    assert_eq!(gpt.volume("a").unwrap().contents, Contents::Filling);
    let (gpt, refused) = with(gpt, async |gpt| gpt.remove_volume("a").await);
    assert_eq!(refused, Err(GptError::InUse(1)));
    let (gpt, finished) = with(gpt, async move |gpt| gpt.finish_volume(&volume).await);
    finished.unwrap();
    assert_eq!(gpt.volume("a").unwrap().contents, Contents::Whole);
    gpt.open_volume("a").unwrap();
    // One that is given up can be removed.
    let (gpt, volume) = begin(gpt, "b", MIB);
    drop(volume);
    let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("b").await);
    removed.unwrap();
    assert_eq!(names(&gpt), ["a"]);
}

#[test]
fn a_power_cut_before_a_volume_is_finished_leaves_no_such_volume_and_its_space_free() {
    for block_size in [512, 4096] {
        let disk = Recorder::new(16 * MIB, block_size);
        let (gpt, _) = add(create(&disk), "old", MIB, 2);
        let free = gpt.free();
        let (gpt, volume) = begin(gpt, "new", 4 * MIB);
        let at = volume.extent().first + 2 * MIB;

        let cut = disk.fork();
        let (found, health) = open(&cut).unwrap();
        assert_eq!((names(&found), health), (vec!["old".into()], Health::Good));
        assert_eq!(found.free(), free);
        // The second entry is gone from the disk too, in the primary, which is at block 2.
        let entries = u64::from(block_size) / 512 * 2;
        assert_eq!(cut.get(entries)[128..256], [0; 128]);
        assert_eq!(open(&cut).unwrap().1, Health::Good);
        let (_, again) = add(found, "new", 4 * MIB, 4);
        assert_eq!(again.unwrap(), volume.extent());
        // Nor does a cut during the removal bring it back.
        let begun = disk.fork();
        let removing = begun.fork();
        open(&removing).unwrap();
        begun.each_cut(&removing.take_log(), |cut| {
            assert_eq!(names(&open(&cut).unwrap().0), ["old"]);
        });

        // While it is filled and finished: no volume, or a whole one.
        disk.take_log();
        let contents = vec![0x5a; block_size as usize];
        let (io, bytes) = (disk.io(), contents.clone());
        run(async move { io.write(at, &bytes).await }).unwrap();
        let (_, finished) = with(gpt, async move |gpt| gpt.finish_volume(&volume).await);
        finished.unwrap();
        let (mut gone, mut there) = (0, 0);
        begun.each_cut(&disk.take_log(), |cut| {
            let (found, _) = open(&cut).unwrap();
            if names(&found) == ["old"] {
                assert_eq!(found.free(), free);
                gone += 1;
            } else {
                assert_eq!(names(&found), ["new", "old"]);
                found.open_volume("new").unwrap();
                assert_eq!(cut.get(at), contents[..512]);
                there += 1;
            }
        });
        assert!(gone > 1 && there > 1);
        let (found, _) = open(&disk).unwrap();
        assert_eq!(names(&found), ["new", "old"]);
        assert_eq!(open(&disk).unwrap().0.volumes(), found.volumes());
    }
}

/// Opens a volume and begins to replace its contents.
fn overwrite(gpt: Gpt<Recorder>, name: &'static str) -> (Gpt<Recorder>, VolumeHandle) {
    let (gpt, volume) = with(gpt, async move |gpt| {
        let volume = gpt.open_to_overwrite(name)?;
        gpt.begin_overwrite(&volume).await?;
        Ok::<_, GptError>(volume)
    });
    (gpt, volume.unwrap())
}

#[test]
fn a_half_overwritten_volume_can_only_be_overwritten_again_or_removed() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", MIB, 2);
    let (gpt, _) = add(gpt, "b", MIB, 3);
    let (gpt, a) = overwrite(gpt, "a");
    assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::Overwriting);
    let (gpt, b) = overwrite(gpt, "b");
    // Cut off: as the table is in memory, and as it is after a restart.
    drop((a, b));
    for gpt in [gpt, open(&disk).unwrap().0] {
        assert_eq!(gpt.volume("a").unwrap().contents, Contents::Overwriting);
        assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::Overwriting);
    }
    let (gpt, _) = open(&disk).unwrap();
    let (gpt, again) = overwrite(gpt, "a");
    let (gpt, done) = with(gpt, async move |gpt| gpt.finish_volume(&again).await);
    done.unwrap();
    gpt.open_volume("a").unwrap();
    let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("b").await);
    removed.unwrap();
    assert_eq!(names(&gpt), ["a"]);
    let (found, _) = open(&disk).unwrap();
    assert_eq!(found.volume("a").unwrap().contents, Contents::Whole);
}

#[test]
fn what_was_never_filled_cannot_be_overwritten() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _volume) = begin(create(&disk), "a", MIB);
    assert_eq!(gpt.open_to_overwrite("a").unwrap_err(), GptError::Filling);
    assert_eq!(
        gpt.open_to_overwrite("b").unwrap_err(),
        GptError::NoSuchVolume
    );
}

#[test]
fn a_power_cut_while_a_volume_is_overwritten_never_shows_a_mixture_as_whole() {
    for block_size in [512, 4096] {
        let disk = Recorder::new(16 * MIB, block_size);
        let (gpt, extent) = add(create(&disk), "a", MIB, 2);
        let extent = extent.unwrap();
        let (first, last) = (extent.first, extent.first + MIB / 2);
        let before = disk.fork();
        disk.take_log();
        let (gpt, volume) = overwrite(gpt, "a");
        for at in [first, last] {
            let (io, bytes) = (disk.io(), vec![0x5a; block_size as usize]);
            run(async move { io.write(at, &bytes).await }).unwrap();
        }
        let (_, done) = with(gpt, async move |gpt| gpt.finish_volume(&volume).await);
        done.unwrap();
        let (mut old, mut half, mut new) = (0, 0, 0);
        before.each_cut(&disk.take_log(), |cut| {
            let (found, _) = open(&cut).unwrap();
            let written = [cut.get(first)[0], cut.get(last)[0]];
            match (found.volume("a").unwrap().contents, written) {
                (Contents::Whole, [0, 0]) => old += 1,
                (Contents::Overwriting, _) => half += 1,
                (Contents::Whole, [0x5a, 0x5a]) => new += 1,
                other => panic!("after a cut it is {other:?}"),
            }
        });
        assert!(old > 1 && half > 1 && new > 1);
    }
}

#[test]
fn a_power_cut_while_a_table_is_made_leaves_a_disk_that_is_taken_at_the_next_start() {
    for block_size in [512, 4096] {
        let disk = Recorder::new(16 * MIB, block_size);
        let before = disk.fork();
        create(&disk);
        let mbr = disk.get(0);
        let (mut blank, mut taken) = (0, 0);
        before.each_cut(&disk.take_log(), |cut| {
            let gpt = match open(&cut) {
                Ok((gpt, _)) => {
                    taken += 1;
                    gpt
                }
                Err(GptError::Blank) => {
                    blank += 1;
                    create(&cut)
                }
                Err(other) => panic!("{other}"),
            };
            add(gpt, "a", MIB, 2).1.unwrap();
            let (gpt, health) = open(&cut).unwrap();
            assert_eq!((names(&gpt), health), (vec!["a".into()], Health::Good));
            assert_eq!(cut.get(0), mbr);
        });
        assert!(blank > 0 && taken > 0);
    }
}

#[test]
fn the_first_block_of_a_disk_with_a_table_is_kept() {
    let disk = Recorder::new(16 * MIB, 512);
    create(&disk);
    // A boot loader.
    disk.flip(0, 10);
    let found = disk.get(0);
    open(&disk).unwrap();
    assert_eq!(disk.get(0), found);
}

#[test]
fn a_write_that_fails_anywhere_leaves_one_of_both_tables_and_the_next_update_works() {
    for broken_after in 0..44 {
        let disk = Recorder::new(16 * MIB, 512);
        let (gpt, _) = add(create(&disk), "old", MIB, 2);
        disk.writes_left.set(broken_after);
        let (gpt, result) = add(gpt, "new", MIB, 3);
        let failed = disk.writes_left.get() == 0 && result.is_err();
        if failed {
            let error = result.unwrap_err();
            let disk_failed = GptError::Disk(BlockError::Media(0x280));
            assert!([disk_failed, GptError::InDoubt].contains(&error), "{error}");
            // If only finishing it failed, it is there, but nobody can have it.
            let refused = gpt.open_volume("new").unwrap_err();
            assert!(matches!(
                refused,
                GptError::NoSuchVolume | GptError::Filling | GptError::InDoubt
            ));
        }
        disk.writes_left.set(u64::MAX);
        let found = names(&open(&disk.fork()).unwrap().0);
        assert!(found == ["old"] || found == ["new", "old"], "{found:?}");
        let before = disk.fork();
        disk.take_log();
        let (_, next) = add(gpt, "next", MIB, 5);
        next.unwrap();
        before.each_cut(&disk.take_log(), |cut| {
            let found = names(&open(&cut).unwrap().0);
            assert!(found.contains(&"old".to_string()), "{found:?}");
        });
        let found = names(&open(&disk).unwrap().0);
        assert!(found.contains(&"next".to_string()));
        if !failed {
            break;
        }
        assert!(broken_after < 43, "never got through");
    }
}

/// Block of the primary's header and first block of its entries, then the backup's, on a
/// disk of 64 MiB with blocks of 512 bytes.
const COPIES: [(u64, u64); 2] = [(1, 2), (64 * MIB - 1, 64 * MIB - 33)];

/// Makes the partition of this entry Linux's, in both copies.
fn give_to_linux(disk: &Recorder, entry: usize) {
    const LINUX: [u8; 16] = [
        0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d,
        0xe4,
    ];
    for (header, entries) in COPIES {
        let mut sector = disk.get(entries);
        sector[entry * 128..][..16].copy_from_slice(&LINUX);
        disk.put(entries, sector);
        let all: Vec<u8> = (0..32).flat_map(|n| disk.get(entries + n)).collect();
        let mut sector = disk.get(header);
        sector[88..92].copy_from_slice(&crc32fast::hash(&all).to_le_bytes());
        sector[16..20].fill(0);
        let sum = crc32fast::hash(&sector[..92]);
        sector[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.put(header, sector);
    }
}

#[test]
fn a_disk_of_another_system_is_left_alone_even_when_its_table_is_damaged() {
    let disk = Recorder::new(64 * MIB, 512);
    add(create(&disk), "a", 8 * MIB, 2).1.unwrap();
    give_to_linux(&disk, 0);
    let damages: [fn(&Recorder); 5] = [
        |_| (),
        |disk| disk.flip(COPIES[0].0, 17),
        |disk| disk.flip(COPIES[1].1, 3),
        |disk| disk.unreadable.borrow_mut().extend([COPIES[0].1]),
        // The primary is an empty one.
        |disk| {
            let empty = Recorder::new(64 * MIB, 512);
            create(&empty);
            (0..34).for_each(|sector| disk.put(sector, empty.get(sector)));
        },
    ];
    for damage in damages {
        let disk = disk.fork();
        damage(&disk);
        let refused = open(&disk).unwrap_err();
        assert_eq!(refused, GptError::Foreign);
        assert_eq!(disk.take_log().len(), 0, "it was written to");
        let why = refused.to_string();
        assert!(
            why.contains("left alone") && why.contains("c105e401-"),
            "{why}"
        );
    }
}

#[test]
fn a_disk_with_a_partition_of_ours_beside_others_is_ours() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", 8 * MIB, 2);
    add(gpt, "b", 8 * MIB, 3).1.unwrap();
    give_to_linux(&disk, 0);
    let (gpt, health) = open(&disk).unwrap();
    assert_eq!((names(&gpt), health), (vec!["b".into()], Health::Good));
    // The other's space is not touched.
    let (_, area) = with(gpt, async |gpt| gpt.image_area(8 * MIB, guid(9)).await);
    assert_eq!(area.unwrap().0.first, 17 * MIB);
}

#[test]
fn a_disk_without_room_for_the_image_area_says_so() {
    let disk = Recorder::new(64 * MIB, 512);
    let gpt = create(&disk);
    let (_, largest) = gpt.free();
    let (gpt, _) = add(gpt, "a", largest, 2);
    let (_, area) = with(gpt, async |gpt| gpt.image_area(8 * MIB, guid(9)).await);
    assert_eq!(area, Err(GptError::NoSpace(0)));
}

#[test]
fn a_copy_that_cannot_be_read_is_restored_from_the_other() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", MIB, 2);
    for ((header, entries), restored) in COPIES
        .into_iter()
        .zip([Health::PrimaryRestored, Health::BackupRestored])
    {
        for sector in [header, entries, entries + 31] {
            let bad = disk.fork();
            bad.unreadable.borrow_mut().insert(sector);
            let (found, health) = open(&bad).unwrap();
            assert_eq!(health, restored, "sector {sector}");
            assert_eq!(found.volumes(), gpt.volumes());
            assert_eq!(open(&bad).unwrap().1, Health::Good);
        }
    }
    disk.unreadable.borrow_mut().extend([1, 64 * MIB - 1]);
    let bad = BadTable::Unreadable(BlockError::Media(0x281));
    assert_eq!(open(&disk).unwrap_err(), GptError::NoTable(bad, bad));
}

#[test]
fn a_copy_that_cannot_be_written_anew_leaves_a_table_that_can_be_used() {
    for (header, _) in COPIES {
        let disk = Recorder::new(64 * MIB, 512);
        add(create(&disk), "a", MIB, 2).1.unwrap();
        disk.unreadable.borrow_mut().insert(header);
        disk.writes_left.set(0);
        let failed = BlockError::Media(0x280);
        let (gpt, health) = open(&disk).unwrap();
        assert_eq!(health, Health::OneCopy(failed));
        gpt.open_volume("a").unwrap();
        let (gpt, refused) = add(gpt, "b", MIB, 3);
        assert_eq!(refused, Err(GptError::Disk(failed)));
        disk.writes_left.set(u64::MAX);
        let before = disk.fork();
        disk.take_log();
        add(gpt, "b", MIB, 3).1.unwrap();
        before.unreadable.borrow_mut().insert(header);
        before.each_cut(&disk.take_log(), |cut| {
            let found = names(&open(&cut).unwrap().0);
            assert!(found == ["a"] || found == ["a", "b"], "{found:?}");
        });
    }
}

/// What the disk says after a restart, whichever copy is read.
fn after_restart(disk: &Recorder) -> Vec<Vec<String>> {
    let copies = COPIES.map(|(header, _)| {
        let disk = disk.fork();
        disk.flip(header, 17);
        names(&open(&disk).unwrap().0)
    });
    [names(&open(&disk.fork()).unwrap().0)]
        .into_iter()
        .chain(copies)
        .collect()
}

#[test]
fn a_volume_whose_removal_failed_is_still_there_after_a_restart() {
    // Entries and header of the backup, then of the primary; one of them fails.
    for fails in 0..4 {
        let disk = Recorder::new(64 * MIB, 512);
        let (gpt, _) = add(create(&disk), "a", MIB, 2);
        disk.fails_at.set(fails);
        let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("a").await);
        assert_eq!(removed, Err(GptError::Disk(BlockError::Media(0x280))));
        // A guest starts from it.
        gpt.open_volume("a").unwrap();
        assert_eq!(after_restart(&disk), [["a"]; 3], "write {fails}");
    }
}

#[test]
fn a_volume_whose_change_is_in_doubt_is_refused_until_the_table_can_be_written() {
    // Writes that work: of the backup's entries, its header, the primary's entries. Without
    // the header no copy holds the new table, and nothing is in doubt.
    for broken_after in 0..4 {
        let disk = Recorder::new(64 * MIB, 512);
        let (gpt, _) = add(create(&disk), "a", MIB, 2);
        let (gpt, _) = add(gpt, "b", MIB, 3);
        disk.writes_left.set(broken_after);
        let failed = BlockError::Media(0x280);
        let (gpt, removed) = with(gpt, async |gpt| gpt.remove_volume("a").await);
        if broken_after < 2 {
            assert_eq!(removed, Err(GptError::Disk(failed)));
            assert!(!gpt.is_in_doubt("a"));
            gpt.open_volume("a").unwrap();
        } else {
            assert_eq!(removed, Err(GptError::InDoubt));
            assert!(gpt.is_in_doubt("a") && !gpt.is_in_doubt("b"));
            assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::InDoubt);
            assert_eq!(gpt.open_to_overwrite("a").unwrap_err(), GptError::InDoubt);
            let (found, _) = open(&disk.fork()).unwrap();
            assert_eq!(names(&found).len(), if broken_after == 2 { 2 } else { 1 });
        }
        // Of others nothing is in doubt.
        let b = gpt.open_volume("b").unwrap();
        let (gpt, settled) = with(gpt, async |gpt| gpt.settle().await);
        // Nothing was written at all, so nothing is to be put back.
        let expected = if broken_after == 0 {
            Ok(())
        } else {
            Err(failed)
        };
        assert_eq!(settled, expected);
        let (gpt, refused) = with(gpt, async move |gpt| gpt.begin_overwrite(&b).await);
        assert_eq!(refused, Err(GptError::Disk(failed)));
        disk.writes_left.set(u64::MAX);
        let (gpt, settled) = with(gpt, async |gpt| gpt.settle().await);
        assert_eq!(settled, Ok(()));
        gpt.open_volume("a").unwrap();
        gpt.open_volume("b").unwrap();
        assert_eq!(after_restart(&disk), [["a", "b"]; 3]);
    }
}

/// Tries to remove volume `a`, or to overwrite it.
fn remove_or_overwrite(gpt: Gpt<Recorder>, remove: bool) -> (Gpt<Recorder>, Result<(), GptError>) {
    with(gpt, async move |gpt| {
        if remove {
            return gpt.remove_volume("a").await;
        }
        let volume = gpt.open_to_overwrite("a")?;
        gpt.begin_overwrite(&volume).await
    })
}

#[test]
fn a_change_refused_for_a_sector_that_can_only_be_read_is_not_made_when_it_dies() {
    for remove in [true, false] {
        for bad in COPIES.into_iter().flat_map(<[u64; 2]>::from) {
            let disk = Recorder::new(64 * MIB, 512);
            let (gpt, _) = add(create(&disk), "a", MIB, 2);
            disk.unwritable.borrow_mut().insert(bad);
            let (gpt, refused) = remove_or_overwrite(gpt, remove);
            assert_eq!(refused, Err(GptError::Disk(BlockError::Media(0x280))));
            // What the disk did write of the old table made both copies whole again.
            gpt.open_volume("a").unwrap();
            disk.unreadable.borrow_mut().insert(bad);
            let (found, _) = open(&disk).unwrap();
            found.open_volume("a").unwrap();
        }
    }
}

#[test]
fn a_change_that_may_be_made_at_a_restart_though_it_failed_says_so() {
    for remove in [true, false] {
        let disk = Recorder::new(64 * MIB, 512);
        let (gpt, _) = add(create(&disk), "a", MIB, 2);
        // It dies under the change: the backup's new table is the only one left.
        disk.unwritable.borrow_mut().insert(1);
        disk.unreadable.borrow_mut().insert(1);
        let (gpt, refused) = remove_or_overwrite(gpt, remove);
        assert_eq!(refused, Err(GptError::InDoubt));
        assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::InDoubt);
        let (found, health) = open(&disk).unwrap();
        assert_eq!(health, Health::OneCopy(BlockError::Media(0x280)));
        let made = if remove {
            GptError::NoSuchVolume
        } else {
            GptError::Overwriting
        };
        assert_eq!(found.open_volume("a").unwrap_err(), made);
    }
}

#[test]
fn nothing_is_in_doubt_where_both_copies_agree() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", MIB, 2);
    // A cut between both copies of a removal.
    let removed = disk.fork();
    with(gpt, async |gpt| gpt.remove_volume("a").await)
        .1
        .unwrap();
    for sector in 64 * MIB - 33..64 * MIB {
        removed.put(sector, disk.get(sector));
    }
    // The primary's header can only be read. It need not be written.
    removed.unwritable.borrow_mut().insert(1);
    let (gpt, health) = open(&removed).unwrap();
    assert_eq!(health, Health::BackupRestored);
    gpt.open_volume("a").unwrap();
    assert_eq!(after_restart(&removed), [["a"]; 3]);
}

#[test]
fn a_change_that_is_dropped_in_the_middle_is_in_doubt() {
    let disk = Recorder::new(64 * MIB, 512);
    let (gpt, _) = add(create(&disk), "a", MIB, 2);
    disk.hangs.set(true);
    let (gpt, ()) = with(gpt, async |gpt| {
        let mut removal = pin!(gpt.remove_volume("a"));
        let polled = poll_fn(|cx| Poll::Ready(removal.as_mut().poll(cx).is_ready())).await;
        assert!(!polled);
    });
    disk.hangs.set(false);
    assert_eq!(gpt.open_volume("a").unwrap_err(), GptError::InDoubt);
    let (gpt, settled) = with(gpt, async |gpt| gpt.settle().await);
    settled.unwrap();
    gpt.open_volume("a").unwrap();
    assert_eq!(after_restart(&disk), [["a"]; 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever fails, at every cut there is a table, and what can be opened now can be opened
    /// after a restart, whichever copy that reads.
    #[test]
    fn random_failures_never_take_a_volume_that_can_be_opened(
        ops in proptest::collection::vec((0u8..3, 0usize..2, 0u64..10, any::<bool>()), 1..10),
        bad in proptest::option::of(0usize..4),
    ) {
        let disk = Recorder::new(64 * MIB, 512);
        let mut gpt = create(&disk);
        for name in ["a", "b"] {
            gpt = add(gpt, name, MIB, 2).0;
        }
        let sectors: Vec<_> = COPIES.into_iter().flat_map(<[u64; 2]>::from).collect();
        disk.unwritable.borrow_mut().extend(bad.map(|n| sectors[n]));
        for (op, n, works, writes) in ops {
            let before = disk.fork();
            disk.take_log();
            let left = if writes { &disk.writes_left } else { &disk.flushes_left };
            left.set(if works < 9 { works } else { u64::MAX });
            let name = ["a", "b"][n];
            // Done or not: what counts is what is on the disk.
            gpt = match op {
                0 => add(gpt, name, MIB, 3).0,
                1 => with(gpt, async move |gpt| gpt.remove_volume(name).await).0,
                _ => with(gpt, async move |gpt| {
                    let volume = gpt.open_to_overwrite(name)?;
                    gpt.begin_overwrite(&volume).await?;
                    gpt.finish_volume(&volume).await
                }).0,
            };
            left.set(u64::MAX);
            before.each_cut(&disk.take_log(), |cut| drop(open(&cut).unwrap()));
            let whole = |gpt: &Gpt<_>| {
                let mut names = names(gpt);
                names.retain(|name| gpt.open_volume(name).is_ok());
                names
            };
            let now = whole(&gpt);
            for damaged in [None, Some(1), Some(64 * MIB - 1)] {
                let cut = disk.fork();
                damaged.into_iter().for_each(|header| cut.flip(header, 17));
                match open(&cut) {
                    Ok((found, _)) => {
                        let later = whole(&found);
                        prop_assert!(now.iter().all(|name| later.contains(name)), "{:?} {:?}", now, later);
                    }
                    // It may be the only one.
                    Err(_) => prop_assert!(damaged.is_some()),
                }
            }
        }
    }

    /// Damage anywhere, of any kind: a valid table or an error, and never a panic.
    #[test]
    fn damaged_tables_are_refused_or_restored(
        damage in proptest::collection::vec((0u64..34, 0usize..512, any::<u8>(), any::<bool>()), 1..12)
    ) {
        let disk = Recorder::new(16 * MIB, 512);
        let (gpt, _) = add(create(&disk), "a", MIB, 2);
        for (sector, at, value, backup) in damage {
            let sector = if backup { 16 * MIB - 1 - sector } else { sector };
            let mut bytes = disk.get(sector);
            bytes[at] = value;
            disk.put(sector, bytes);
        }
        if let Ok((found, _)) = open(&disk) {
            prop_assert_eq!(found.volumes(), gpt.volumes());
        }
    }
}
