//! The driver against a strict fake controller.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the fake works on small made-up numbers"
)]

mod fake;

use driver_nvme::{COMMAND_TIMEOUT_NS, MAX_RESETS, Nvme, StartError};
use fake::{Bed, Config, Fault, Function};
use hal::block::{self, BlockDevice, BlockError, BlockQueue, Hold};
use hal::{DmaAllocator, DmaBuffer, DmaSegment, Node, PciFunction, Timer, VcpuId};
use proptest::prelude::*;
use std::rc::Rc;
use std::sync::Arc;

fn start(bed: &Bed, vcpus: u32) -> Result<Arc<Nvme>, StartError> {
    let (fake, dma, timer) = (bed.fake.clone(), bed.dma.clone(), bed.timer.clone());
    let places: Vec<_> = (0..vcpus).map(|n| (VcpuId(n), Node(n % 2))).collect();
    let started = bed.run(async move {
        let function = Function { fake };
        driver_nvme::start(&function, VcpuId(0), &places, &dma, Rc::new(timer)).await
    });
    let (nvme, supervisor) = started?;
    bed.exec.spawn(supervisor.run());
    Ok(nvme)
}

fn take(bed: &Bed, nvme: &Nvme, index: usize) -> Rc<dyn BlockQueue> {
    let function = Function {
        fake: bed.fake.clone(),
    };
    let line = function
        .vector(nvme.queue_vector(index), nvme.queue_vcpu(index))
        .unwrap();
    let queue = nvme
        .take_queue(index, line, Rc::new(bed.timer.clone()))
        .unwrap();
    let service = queue.clone();
    bed.exec
        .spawn(async move { block::service(service.as_ref()).await });
    queue
}

fn one_queue(config: Config) -> (Bed, Rc<dyn BlockQueue>) {
    let bed = Bed::new(config);
    let nvme = start(&bed, 1).unwrap();
    let queue = take(&bed, &nvme, 0);
    (bed, queue)
}

fn buffer(bed: &Bed, pages: usize) -> Rc<DmaBuffer> {
    Rc::new(bed.dma.alloc(pages, Node(0)).unwrap())
}

fn segment(buffer: &DmaBuffer, offset: usize, len: usize) -> Vec<DmaSegment> {
    vec![buffer.segment(offset, len)]
}

/// Starts a read of the first `len` bytes; its result comes through the task.
fn read_task(
    bed: &Bed,
    queue: &Rc<dyn BlockQueue>,
    buffer: &Rc<DmaBuffer>,
    len: usize,
) -> xen_sim::Task<Result<(), BlockError>> {
    let (queue, hold) = (queue.clone(), buffer.clone());
    bed.exec.spawn(async move {
        let list = segment(&hold, 0, len);
        let hold: Hold = hold;
        block::read(queue.as_ref(), 0, &list, Some(&hold)).await
    })
}

#[test]
fn a_disk_says_what_it_is() {
    let bed = Bed::new(Config::default());
    let nvme = start(&bed, 4).unwrap();
    let info = nvme.info();
    assert_eq!(
        (info.blocks, info.block_size, info.max_transfer),
        (4096, 512, 128 << 10)
    );
    assert_eq!(
        (info.model.as_str(), info.serial.as_str()),
        ("Fake NVMe", "FAKE0001")
    );
    assert!(info.volatile_write_cache && info.discard);
    assert_eq!(nvme.queues(), 4);
    assert_eq!((nvme.queue_vcpu(3), nvme.queue_vector(3)), (VcpuId(3), 4));
}

#[test]
fn there_are_as_many_queues_as_the_disk_and_its_vectors_allow() {
    for (vcpus, queues, vectors, expected) in [(8, 3, 9, 3), (8, 8, 3, 2), (2, 8, 9, 2)] {
        let bed = Bed::new(Config {
            queues,
            vectors,
            ..Config::default()
        });
        assert_eq!(start(&bed, vcpus).unwrap().queues(), expected);
    }
    let bed = Bed::new(Config {
        vectors: 1,
        ..Config::default()
    });
    assert_eq!(start(&bed, 1).unwrap_err(), StartError::Vectors(1));
}

#[test]
fn blocks_of_a_size_nobody_knows_are_refused() {
    let bed = Bed::new(Config {
        block_shift: 10,
        ..Config::default()
    });
    assert!(matches!(start(&bed, 1), Err(StartError::Namespace(_))));
}

#[test]
fn a_disk_that_identifies_itself_too_late_writes_into_nobody_s_memory() {
    let bed = Bed::new(Config::default());
    bed.fake.borrow_mut().shy = true;
    let error = start(&bed, 1).unwrap_err();
    assert_eq!(error.to_string(), "no answer to admin command 0x6");
    // The answer comes now. The fake panics if the memory has gone to somebody else.
    bed.fake.borrow_mut().shy = false;
    bed.settle();
}

#[test]
fn a_completion_left_from_one_admin_command_is_not_taken_for_the_next_one_s() {
    let bed = Bed::new(Config::default());
    bed.fake.borrow_mut().stutters = true;
    let nvme = start(&bed, 4).unwrap();
    assert_eq!((nvme.info().blocks, nvme.queues()), (4096, 4));
}

#[test]
fn a_queue_is_taken_once() {
    let bed = Bed::new(Config::default());
    let nvme = start(&bed, 1).unwrap();
    let queue = take(&bed, &nvme, 0);
    let function = Function {
        fake: bed.fake.clone(),
    };
    let again = function.vector(1, VcpuId(0)).unwrap();
    assert!(
        nvme.take_queue(0, again, Rc::new(bed.timer.clone()))
            .is_none()
    );
    drop(queue);
}

#[test]
fn what_was_written_is_read_back_through_another_queue() {
    let bed = Bed::new(Config::default());
    let nvme = start(&bed, 2).unwrap();
    let (a, b) = (take(&bed, &nvme, 0), take(&bed, &nvme, 1));
    // 64 pages and a bit: splits at MDTS (32 pages), needs lists.
    let (out, back) = (buffer(&bed, 65), buffer(&bed, 65));
    let data: Vec<u8> = (0..64 * 4096u32).map(|i| (i / 7) as u8).collect();
    out.write_bytes(512, &data);
    let (from, to) = (
        segment(&out, 512, data.len()),
        segment(&back, 1024, data.len()),
    );
    bed.run(async move {
        block::write(a.as_ref(), 100, &from, None).await.unwrap();
        block::flush(a.as_ref()).await.unwrap();
        block::read(b.as_ref(), 100, &to, None).await.unwrap();
    });
    let mut seen = vec![0; data.len()];
    back.read_bytes(1024, &mut seen);
    assert!(seen == data);
    assert_eq!(bed.fake.borrow().flushes, 1);
}

#[test]
fn many_commands_at_once_wait_for_slots_and_all_finish() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    let tasks: Vec<_> = (0..500)
        .map(|_| read_task(&bed, &queue, &page, 512))
        .collect();
    bed.settle();
    assert!(tasks.iter().all(|task| task.take() == Some(Ok(()))));
    assert_eq!(bed.fake.borrow().commands, 500);
    assert_eq!(Rc::strong_count(&page), 1);
}

#[test]
fn a_task_dropped_while_it_waits_for_a_slot_does_not_stop_the_others() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    let tasks: Vec<_> = (0..200)
        .map(|_| read_task(&bed, &queue, &page, 512))
        .collect();
    // All are submitted or wait; then most of those that wait go away.
    while bed.exec.step() {}
    for task in &tasks[63..190] {
        task.cancel();
    }
    bed.settle();
    assert!(tasks[190..].iter().all(|task| task.take() == Some(Ok(()))));
}

#[test]
fn who_waits_for_a_slot_gets_one_before_who_had_one() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    // More tasks than slots, and each wants the next command as soon as it has had one.
    let greedy: Vec<_> = (0..70)
        .map(|_| {
            let (queue, hold) = (queue.clone(), page.clone());
            bed.exec.spawn(async move {
                let list = segment(&hold, 0, 512);
                let hold: Hold = hold;
                for _ in 0..100 {
                    (block::read(queue.as_ref(), 0, &list, Some(&hold)).await).unwrap();
                }
            })
        })
        .collect();
    while bed.exec.step() {}
    let (seen, fake) = (Rc::new(std::cell::Cell::new(0)), bed.fake.clone());
    let (note, hold) = (seen.clone(), page.clone());
    let modest = bed.exec.spawn(async move {
        let list = segment(&hold, 0, 512);
        let hold: Hold = hold;
        let result = block::read(queue.as_ref(), 0, &list, Some(&hold)).await;
        note.set(fake.borrow().commands);
        result
    });
    bed.settle();
    assert_eq!(modest.take(), Some(Ok(())));
    assert!(greedy.iter().all(|task| task.take().is_some()));
    // Of 7,000 commands: those in flight, those that waited before it, and their successors.
    assert!(seen.get() < 63 + 63 + 63, "after {} commands", seen.get());
}

#[test]
fn discard_and_bounds_and_alignment() {
    let (bed, queue) = one_queue(Config::default());
    bed.fake.borrow_mut().media.fill(9);
    let page = buffer(&bed, 1);
    let (whole, odd) = (segment(&page, 0, 4096), segment(&page, 0, 100));
    bed.run(async move {
        let queue = queue.as_ref();
        block::discard(queue, 8, 16).await.unwrap();
        assert_eq!(
            block::discard(queue, 4090, 16).await,
            Err(BlockError::OutOfRange)
        );
        assert_eq!(
            block::read(queue, 4089, &whole, None).await,
            Err(BlockError::OutOfRange)
        );
        assert_eq!(
            block::read(queue, u64::MAX, &whole, None).await,
            Err(BlockError::OutOfRange)
        );
        assert_eq!(
            block::read(queue, 0, &odd, None).await,
            Err(BlockError::Unaligned)
        );
        block::read(queue, 4088, &whole, None).await.unwrap();
    });
    let fake = bed.fake.borrow();
    assert!(fake.media[8 * 512..24 * 512].iter().all(|b| *b == 0));
    assert_eq!((fake.media[8 * 512 - 1], fake.media[24 * 512]), (9, 9));
}

#[test]
fn on_4096_byte_blocks_half_a_block_is_refused_or_joined() {
    let (bed, queue) = one_queue(Config {
        block_shift: 12,
        blocks: 64,
        ..Config::default()
    });
    let pages = buffer(&bed, 2);
    let joined = vec![pages.segment(2048, 2048), pages.segment(4096, 2048)];
    let broken = vec![pages.segment(0, 2048), pages.segment(4096, 2048)];
    bed.run(async move {
        block::write(queue.as_ref(), 3, &joined, None)
            .await
            .unwrap();
        let refused = block::write(queue.as_ref(), 3, &broken, None).await;
        assert_eq!(refused, Err(BlockError::Unaligned));
    });
}

#[test]
fn a_failed_command_says_why() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    for (status, error) in [
        (0x281, BlockError::Media(0x281)),
        (0x080, BlockError::OutOfRange),
        (0x006, BlockError::Device(6)),
        (0x182, BlockError::ReadOnly),
    ] {
        bed.fake
            .borrow_mut()
            .faults
            .push_back(Fault::Status(status));
        let task = read_task(&bed, &queue, &page, 4096);
        bed.settle();
        assert_eq!(task.take(), Some(Err(error)));
    }
}

#[test]
fn memory_of_a_dropped_command_lives_until_the_device_is_done() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    let task = read_task(&bed, &queue, &page, 4096);
    while bed.exec.step() {}
    task.cancel();
    let live = bed.dma.live_pages();
    drop(page);
    // The device has the command; its page must not go.
    assert_eq!(bed.dma.live_pages(), live);
    bed.settle();
    assert_eq!(bed.dma.live_pages(), live - 1);
    assert_eq!(bed.fake.borrow().commands, 1);
}

#[test]
fn a_silent_command_times_out_and_the_reset_brings_the_disk_back() {
    for fault in [Fault::Hang, Fault::Stray] {
        let (bed, queue) = one_queue(Config::default());
        let (slow, later) = (buffer(&bed, 1), buffer(&bed, 1));
        bed.fake.borrow_mut().faults.push_back(fault);
        let task = read_task(&bed, &queue, &slow, 4096);
        bed.settle();
        let before = bed.dma.live_pages();
        drop(slow);
        assert_eq!(
            bed.dma.live_pages(),
            before,
            "a hung command keeps its page"
        );
        if matches!(fault, Fault::Hang) {
            bed.timer.advance(COMMAND_TIMEOUT_NS - 1);
            bed.settle();
            assert_eq!(task.take(), None);
            bed.timer.advance(1);
            bed.settle();
            assert_eq!(task.take(), Some(Err(BlockError::Timeout)));
        }
        let again = later.clone();
        let second = queue.clone();
        bed.run(async move {
            let list = segment(&again, 0, 4096);
            block::read(second.as_ref(), 0, &list, None).await.unwrap();
        });
        if matches!(fault, Fault::Stray) {
            assert_eq!(task.take(), Some(Err(BlockError::Reset)));
        }
        assert_eq!(bed.fake.borrow().stops, 1);
        assert_eq!(
            bed.dma.live_pages(),
            before - 1,
            "released once the device had stopped"
        );
    }
}

#[test]
fn a_disk_that_stays_silent_is_given_up_and_keeps_the_memory_it_may_write() {
    let (bed, queue) = one_queue(Config::default());
    bed.fake.borrow_mut().deaf = true;
    let page = buffer(&bed, 1);
    for _ in 0..=MAX_RESETS {
        let task = read_task(&bed, &queue, &page, 4096);
        let timer = bed.timer.clone();
        bed.run(async move {
            hal::timer::sleep(&timer, COMMAND_TIMEOUT_NS + 1_000_000_000).await;
        });
        assert_eq!(task.take(), Some(Err(BlockError::Timeout)));
    }
    let task = read_task(&bed, &queue, &page, 4096);
    bed.settle();
    assert_eq!(task.take(), Some(Err(BlockError::Reset)));
    let before = bed.dma.live_pages();
    drop((task, page, queue));
    assert_eq!(bed.dma.live_pages(), before);
    assert!(bed.timer.now_ns() < 10 * COMMAND_TIMEOUT_NS);
}

#[test]
fn an_idle_queue_sets_no_alarm() {
    let (bed, queue) = one_queue(Config::default());
    let page = buffer(&bed, 1);
    let task = read_task(&bed, &queue, &page, 4096);
    bed.settle();
    assert_eq!(task.take(), Some(Ok(())));
    // One alarm may be left from the command; after it there is none.
    for _ in 0..2 {
        if !bed.timer.jump() {
            break;
        }
        bed.settle();
    }
    assert!(!bed.timer.jump());
}

#[test]
fn shutdown_waits_for_the_disk() {
    let bed = Bed::new(Config::default());
    let nvme = start(&bed, 1).unwrap();
    let timer = bed.timer.clone();
    bed.run(async move { nvme.shutdown(&timer).await }).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Scatter lists of any sectors, written and read in parallel, equal a plain array.
    #[test]
    fn random_scatter_lists_agree_with_a_model(
        ops in proptest::collection::vec(
            (any::<bool>(), 0u64..4000, proptest::collection::vec((0usize..8, 0usize..8, 1usize..24), 1..12)),
            1..24
        )
    ) {
        let (bed, queue) = one_queue(Config { mdts: 2, ..Config::default() });
        let mut model = vec![0u8; 4096 * 512];
        for (n, (write, block, parts)) in ops.into_iter().enumerate() {
            let memory = buffer(&bed, 8 * 4);
            let list: Vec<_> = parts
                .iter()
                .enumerate()
                .map(|(i, (page, sector, len))| {
                    // Distinct parts of the buffer, so that a read overlaps nothing.
                    let _ = page;
                    memory.segment((i * 2 + 1) * 4096 + sector * 512, len.min(&8) * 512)
                })
                .collect();
            let len: usize = list.iter().map(|s| s.len as usize).sum();
            let at = block as usize * 512;
            let offsets: Vec<_> = list
                .iter()
                .map(|s| ((s.bus_addr - memory.bus_addr()) as usize, s.len as usize))
                .collect();
            let fits = at + len <= model.len();
            let ours = queue.clone();
            if write {
                let mut data: Vec<u8> = (0..len).map(|i| (i * 31 + n) as u8).collect();
                let mut done = 0;
                for (offset, len) in &offsets {
                    memory.write_bytes(*offset, &data[done..done + len]);
                    done += len;
                }
                let result = bed.run(async move { block::write(ours.as_ref(), block, &list, None).await });
                prop_assert_eq!(result.is_ok(), fits);
                if fits {
                    model[at..at + len].swap_with_slice(&mut data);
                }
            } else {
                let result = bed.run(async move { block::read(ours.as_ref(), block, &list, None).await });
                prop_assert_eq!(result.is_ok(), fits);
                let mut done = at;
                for (offset, len) in offsets.into_iter().filter(|_| fits) {
                    let mut seen = vec![0; len];
                    memory.read_bytes(offset, &mut seen);
                    prop_assert!(seen == model[done..done + len]);
                    done += len;
                }
            }
        }
        prop_assert!(bed.fake.borrow().media == model);
    }
}
