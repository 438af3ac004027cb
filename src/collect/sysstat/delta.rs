//! What two readings say about the time between them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use procfs::CpuTime;
use procfs::net::DeviceStatus;

use super::reading::{PressureReading, StallReading};
use crate::collect::round2;
use crate::metric::sysstat::{Cpu, Network, Pressure, Stall};

/// An idle counter that falls by more than this many ticks (3 s) means that a CPU went away:
/// the kernel's own rounding makes it fall by a few.
const IDLE_RESET_TICKS: u64 = 300;

/// Events per second; absent when the counter fell, which means that it was reset.
#[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
pub(super) fn rate(before: u64, after: u64, elapsed: Duration) -> Option<f64> {
    let events = after.checked_sub(before)?;
    (!elapsed.is_zero()).then(|| events as f64 / elapsed.as_secs_f64())
}

/// Where the CPUs' time went, percent of all of it.
///
/// Guest time is part of `user` and `nice` already, so it is not added (proc(5)). Counters that
/// fell a little count as unchanged. Absent when no tick went by or a CPU was taken away.
#[expect(clippy::cast_precision_loss, reason = "a share needs no 53 bits")]
pub(super) fn cpu_shares(before: &CpuTime, after: &CpuTime) -> Option<Cpu> {
    if before.idle.saturating_sub(after.idle) > IDLE_RESET_TICKS {
        return None;
    }
    let (before, after) = (modes(before), modes(after));
    let spent: [u64; 8] = std::array::from_fn(|mode| after[mode].saturating_sub(before[mode]));
    let total: u64 = spent.iter().sum();
    if total == 0 {
        return None;
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] =
        spent.map(|ticks| Some(round2(100.0 * ticks as f64 / total as f64)));
    Some(Cpu { user, nice, system, idle, iowait, irq, softirq, steal, ..Cpu::default() })
}

/// The CPUs' time since boot, by mode.
#[expect(clippy::cast_precision_loss, reason = "2^53 ticks are two million years")]
pub(super) fn cpu_seconds(time: &CpuTime) -> Cpu {
    let per_second = procfs::ticks_per_second() as f64;
    let [user, nice, system, idle, iowait, irq, softirq, steal] =
        modes(time).map(|ticks| Some(round2(ticks as f64 / per_second)));
    Cpu {
        user_s: user,
        nice_s: nice,
        system_s: system,
        idle_s: idle,
        iowait_s: iowait,
        irq_s: irq,
        softirq_s: softirq,
        steal_s: steal,
        ..Cpu::default()
    }
}

fn modes(time: &CpuTime) -> [u64; 8] {
    let optional = [time.iowait, time.irq, time.softirq, time.steal].map(|t| t.unwrap_or(0));
    let [iowait, irq, softirq, steal] = optional;
    [time.user, time.nice, time.system, time.idle, iowait, irq, softirq, steal]
}

/// Every interface now there, with rates where it was there before.
pub(super) fn network(
    before: Option<&BTreeMap<String, DeviceStatus>>,
    after: &BTreeMap<String, DeviceStatus>,
    elapsed: Duration,
) -> Vec<Network> {
    let rates = |before: &DeviceStatus, after: &DeviceStatus| {
        let per_second = |before, after| rate(before, after, elapsed).map(round2);
        Some(Network {
            rx_bytes_s: Some(per_second(before.recv_bytes, after.recv_bytes)?),
            tx_bytes_s: Some(per_second(before.sent_bytes, after.sent_bytes)?),
            rx_packets_s: Some(per_second(before.recv_packets, after.recv_packets)?),
            tx_packets_s: Some(per_second(before.sent_packets, after.sent_packets)?),
            ..Network::default()
        })
    };
    let before = |name: &str| before.and_then(|before| before.get(name));
    let interfaces = after.iter().map(|(name, after)| Network {
        interface: name.clone(),
        rx_bytes: Some(after.recv_bytes),
        tx_bytes: Some(after.sent_bytes),
        rx_packets: Some(after.recv_packets),
        tx_packets: Some(after.sent_packets),
        rx_errors: Some(after.recv_errs),
        tx_errors: Some(after.sent_errs),
        rx_drops: Some(after.recv_drop),
        tx_drops: Some(after.sent_drop),
        ..before(name).and_then(|before| rates(before, after)).unwrap_or_default()
    });
    interfaces.collect()
}

/// The stall shares; absent on a kernel without them.
pub(super) fn pressure(
    before: Option<&PressureReading>,
    after: &PressureReading,
    elapsed: Duration,
) -> Option<Pressure> {
    let part = |of: fn(&PressureReading) -> Option<&StallReading>| {
        of(after).map(|after| stall(before.and_then(of), after, elapsed))
    };
    let cpu =
        part(|p| p.cpu.as_ref()).map(|stall| Stall { full_percent: None, full_us: None, ..stall });
    let memory = part(|p| p.memory.as_ref());
    let io = part(|p| p.io.as_ref());
    let any = cpu.is_some() || memory.is_some() || io.is_some();
    any.then_some(Pressure { cpu, memory, io })
}

fn stall(before: Option<&StallReading>, after: &StallReading, elapsed: Duration) -> Stall {
    // Microseconds of stall in a second of time, as percent.
    let percent = |before: u64, after: u64| {
        rate(before, after, elapsed).map(|micros| round2((micros / 10_000.0).min(100.0)))
    };
    let full = before.and_then(|b| b.full.as_ref()).zip(after.full.as_ref());
    Stall {
        some_percent: before.and_then(|before| percent(before.some.total, after.some.total)),
        full_percent: full.and_then(|(before, after)| percent(before.total, after.total)),
        some_avg10: Some(after.some.avg10),
        some_avg60: Some(after.some.avg60),
        some_us: Some(after.some.total),
        full_us: after.full.as_ref().map(|full| full.total),
    }
}
