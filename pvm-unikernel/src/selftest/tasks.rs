//! Tasks, wake-ups, timers, ports.

use super::{Outcome, expect};
use crate::arch::hypercall::vcpu;
use crate::event::Port;
use crate::exec::{self, Account};
use crate::log::announce;
use crate::sync::{self, Notify, channel, oneshot};
use crate::time::{self, now_ns, sleep, timeout};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use hal::VcpuId;
use xen_abi::DomId;

const ROUNDS: u32 = 1000;
/// Far more than 1000 round trips take under emulation; a lost wake-up would be for ever.
const PATIENCE: Duration = Duration::from_secs(120);

fn vcpus() -> impl Iterator<Item = VcpuId> {
    (0..exec::vcpu_count()).map(VcpuId)
}

/// One side of a ping-pong.
async fn echo(
    first: bool,
    to: sync::Sender<u32>,
    mut from: sync::Receiver<u32>,
) -> Result<(), sync::Closed> {
    for round in 0..ROUNDS {
        if first {
            to.send(round).await?;
        }
        let got = from.recv().await.ok_or(sync::Closed)?;
        assert_eq!(got, round, "a message came out of order");
        if !first {
            to.send(round).await?;
        }
    }
    Ok(())
}

/// 1000 round trips between each two vCPUs, both ends sleeping each time.
pub async fn ping_pong() -> Outcome {
    for a in vcpus() {
        for b in vcpus().filter(|b| b.0 > a.0) {
            let (there, at_b) = channel(1);
            let (back, at_a) = channel(1);
            let began = now_ns();
            let one = exec::spawn_on(a, move || echo(true, there, at_a));
            let other = exec::spawn_on(b, move || echo(false, back, at_b));
            timeout(one, PATIENCE).await???;
            timeout(other, PATIENCE).await???;
            let each = (now_ns() - began) / u64::from(ROUNDS);
            announce(format_args!(
                "selftest: vCPU {a:?} <-> {b:?}: {each} ns a round trip"
            ));
        }
    }
    Ok(())
}

/// Every vCPU sends to one receiver through a queue that is nearly always full.
pub async fn channel_stress() -> Outcome {
    const EACH: u32 = 1000;
    let (sender, mut receiver) = channel::<(u32, u32)>(3);
    let tasks: Vec<_> = vcpus()
        .map(|vcpu| {
            let sender = sender.clone();
            exec::spawn_on(vcpu, move || async move {
                for n in 0..EACH {
                    sender.send((vcpu.0, n)).await?;
                }
                Ok::<(), sync::Closed>(())
            })
        })
        .collect();
    drop(sender);
    let mut next = alloc::vec![0; exec::vcpu_count() as usize];
    while let Some((vcpu, n)) = timeout(receiver.recv(), PATIENCE).await? {
        let seen = &mut next[vcpu as usize];
        expect(
            *seen == n,
            format_args!("vCPU {vcpu} sent {n}, expected {seen}"),
        )?;
        *seen += 1;
    }
    for task in tasks {
        task.await??;
    }
    let all = next.iter().all(|&count| count == EACH);
    expect(all, format_args!("not all messages came: {next:?}"))
}

/// A cancelled task's future is dropped, here and elsewhere, and its handle says so.
pub async fn cancel() -> Outcome {
    let dropped = Arc::new(AtomicU32::new(0));
    struct Guard(Arc<AtomicU32>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    for vcpu in vcpus() {
        let guard = Guard(dropped.clone());
        let task = exec::spawn_on(vcpu, move || async move {
            let _guard = guard;
            core::future::pending::<()>().await;
        });
        sleep(Duration::from_millis(1)).await;
        task.cancel();
        let outcome = timeout(task, PATIENCE).await?;
        expect(
            outcome.is_err(),
            format_args!("a cancelled task ended well"),
        )?;
    }
    let count = dropped.load(Ordering::Relaxed);
    let all = exec::vcpu_count();
    expect(
        count == all,
        format_args!("{count} of {all} futures dropped"),
    )?;

    let notify = Rc::new(Notify::new());
    let seen = notify.generation();
    let waiter = notify.clone();
    let task = exec::spawn_local(async move { waiter.changed(seen).await });
    exec::yield_now().await;
    notify.notify_all();
    timeout(task, PATIENCE).await??;

    let (sender, receiver) = oneshot::<u32>();
    drop(sender);
    expect(
        receiver.await.is_err(),
        format_args!("a dropped sender sent"),
    )?;

    let turn = Rc::new(sync::local::Mutex::new(0u32));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let turn = turn.clone();
            exec::spawn_local(async move {
                let mut value = turn.lock().await;
                let before = *value;
                exec::yield_now().await;
                *value = before + 1;
            })
        })
        .collect();
    for task in tasks {
        timeout(task, PATIENCE).await??;
    }
    let sum = *turn.lock().await;
    expect(sum == 8, format_args!("the mutex let {sum} of 8 through"))
}

/// What a task burns is charged to its account, and to that of tasks it starts.
pub async fn accounts() -> Outcome {
    const BURN_NS: u64 = 20_000_000;
    let account = Account::new();
    let burn = || {
        let began = now_ns();
        while now_ns() - began < BURN_NS {
            core::hint::spin_loop();
        }
    };
    let last = VcpuId(exec::vcpu_count() - 1);
    let task = exec::spawn_on_for(last, &account, move || async move {
        burn();
        let child = exec::spawn_local(async move { burn() });
        sleep(Duration::from_millis(30)).await;
        child.await
    });
    task.await??;
    let charged = account.cpu_ns();
    let fair = 2 * BURN_NS..4 * BURN_NS;
    expect(
        fair.contains(&charged),
        format_args!("{charged} ns charged for 40 ms"),
    )
}

/// Sleeps never end early, and late by little.
pub async fn sleep_accuracy() -> Outcome {
    let worst = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (1..=20u64)
        .map(|n| {
            let worst = worst.clone();
            exec::spawn_local(async move {
                let length = Duration::from_micros(n * 1700);
                let began = now_ns();
                sleep(length).await;
                let took = now_ns() - began;
                let asked = u64::try_from(length.as_nanos()).unwrap_or(0);
                assert!(took >= asked, "a sleep of {asked} ns ended after {took}");
                worst.set(worst.get().max(took - asked));
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let late = worst.get();
    announce(format_args!(
        "selftest: sleeps end at most {} us late",
        late / 1000
    ));
    // A busy test machine is late by a lot; a lost timer would be late for ever.
    expect(
        late < 1_000_000_000,
        format_args!("a sleep ended {late} ns late"),
    )?;
    let never = timeout(core::future::pending::<()>(), Duration::from_millis(5)).await;
    expect(never.is_err(), format_args!("a time limit did not come"))?;
    // After 2020-01-01 and before 2100.
    let unix = time::wall_clock() / 1_000_000_000;
    let sane = (1_577_836_800..4_102_444_800).contains(&unix);
    expect(sane, format_args!("the wall clock says {unix}"))
}

/// Two ports of ours joined, on different vCPUs; closed ports are given back.
pub async fn ports() -> Outcome {
    let own = DomId::SELF;
    let mut numbers = Vec::new();
    for _ in 0..50 {
        let near = Port::alloc_unbound(own)?;
        let far = Port::bind_interdomain(own, near.number())?;
        numbers.push(near.number().0.max(far.number().0));
        far.notify();
        timeout(near.wait(), PATIENCE).await?;
        // A fresh interdomain port is pending at once; take that before the real one.
        timeout(far.wait(), PATIENCE).await?;
        let far_vcpu = VcpuId(exec::vcpu_count() - 1);
        far.move_to(far_vcpu)?;
        let there = exec::spawn_on(far_vcpu, move || async move {
            far.wait().await;
        });
        near.notify();
        timeout(there, PATIENCE).await??;
    }
    let grown = numbers.last() > numbers.first();
    expect(!grown, format_args!("ports leak: {numbers:?}"))
}

/// With nothing to do, no vCPU runs: Xen's own accounting over one second.
pub async fn idle_cost() -> Outcome {
    const SPAN: Duration = Duration::from_secs(1);
    let read = || -> Result<Vec<u64>, xen_abi::errno::Errno> {
        vcpus()
            .map(|v| vcpu::runstate(v.0).map(|state| state.time[0]))
            .collect()
    };
    sleep(Duration::from_millis(100)).await;
    let before = read()?;
    sleep(SPAN).await;
    let after = read()?;
    for (vcpu, (before, after)) in before.iter().zip(&after).enumerate() {
        let ran = after - before;
        announce(format_args!(
            "selftest: idle vCPU {vcpu} ran {ran} ns of 1 s"
        ));
        // One that polls runs all the time. What an idle host costs is measured elsewhere,
        // over a minute: here a busy test machine may be slow while vCPU 0 asks.
        expect(
            ran < 200_000_000,
            format_args!("idle vCPU {vcpu} ran {ran} ns of 1 s"),
        )?;
    }
    Ok(())
}

/// Every vCPU has a core of its own: Xen tells the physical id of pinned vCPUs only.
pub fn pinning() -> Outcome {
    let mut cores = Vec::new();
    for vcpu in vcpus() {
        let core = vcpu::physid(vcpu.0)?;
        expect(
            !cores.contains(&core),
            format_args!("two vCPUs on core {core:#x}"),
        )?;
        cores.push(core);
    }
    Ok(())
}
