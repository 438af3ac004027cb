//! CPU, memory, disks and network of the host, from `/proc`.
//!
//! Rates and percentages come from two readings. The first collection after a start takes its own
//! first reading and waits half a second for the second, so that every metric carries rates.

mod delta;
mod disk;
mod reading;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::{CollectError, Collected, Collector, Notices, document, round2};
use crate::metric::Time;
use crate::metric::sysstat::{Cpu, Memory, Paging, Processes, Sysstat as Document};
use reading::Reading;

/// Below this much time between two readings the kernel's 10 ms ticks make noise of percentages.
const GAP_MIN: Duration = Duration::from_millis(200);

/// Where to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysstatConfig {
    /// The mounted proc file system; another path than `/proc` is for containers that see the
    /// host's under one.
    pub proc_root: PathBuf,
    /// How long the first collection waits between its two readings.
    pub first_gap: Duration,
}

/// The collector `sysstat`.
#[derive(Debug)]
pub struct SysstatCollector {
    config: SysstatConfig,
    previous: Option<Reading>,
    notices: Notices,
}

impl Default for SysstatConfig {
    fn default() -> Self {
        Self { proc_root: PathBuf::from("/proc"), first_gap: Duration::from_millis(500) }
    }
}

impl SysstatCollector {
    /// A collector that has read nothing yet.
    pub fn new(config: SysstatConfig) -> Self {
        Self { config, previous: None, notices: Notices::new() }
    }

    fn read(&mut self) -> Result<Reading, CollectError> {
        let reading = Reading::take(&self.config.proc_root, &mut self.notices);
        if reading.is_empty() {
            return Err(CollectError::new(format!(
                "nothing readable in {}; hint: the agent needs a mounted proc file system",
                self.config.proc_root.display()
            )));
        }
        Ok(reading)
    }
}

impl Collector for SysstatCollector {
    fn name(&self) -> &'static str {
        "sysstat"
    }

    async fn collect(&mut self, now: Timestamp) -> Result<Collected, CollectError> {
        let mut current = self.read()?;
        let too_soon =
            |previous: &Reading| current.at.saturating_duration_since(previous.at) < GAP_MIN;
        let mut at = now;
        if self.previous.as_ref().is_none_or(too_soon) {
            let gap = self.config.first_gap.max(GAP_MIN);
            self.previous = Some(current);
            tokio::time::sleep(gap).await;
            current = self.read()?;
            at = now.checked_add(gap).unwrap_or(now);
        }
        let document = document(&metric(at, self.previous.as_ref(), &current))?;
        self.previous = Some(current);
        Ok(Collected { metrics: vec![document], state: None })
    }
}

/// The document of `current`, with rates since `previous`.
fn metric(now: Timestamp, previous: Option<&Reading>, current: &Reading) -> Document {
    let elapsed = previous.map_or(Duration::ZERO, |p| current.at.saturating_duration_since(p.at));
    let since = previous.filter(|_| elapsed >= GAP_MIN);
    Document {
        timestamp: Time(now),
        boot_at: current.stat.as_ref().and_then(|stat| instant(stat.btime)),
        cpu: cpu(since, current),
        memory: current.memory.as_ref().map(memory),
        disk_io: current
            .disks
            .as_ref()
            .map(|disks| disk::disks(since.and_then(|p| p.disks.as_deref()), disks, elapsed)),
        network: current.network.as_ref().map(|interfaces| {
            let before = since.and_then(|p| p.network.as_ref());
            delta::network(before, interfaces, elapsed)
        }),
        paging: current.paging.as_ref().map(paging),
        pressure: delta::pressure(since.map(|p| &p.pressure), &current.pressure, elapsed),
        context_switches_s: current
            .stat
            .as_ref()
            .zip(since.and_then(|p| p.stat.as_ref()))
            .and_then(|(stat, before)| delta::rate(before.ctxt, stat.ctxt, elapsed).map(round2)),
        processes: processes(current),
        uptime_s: current.uptime.as_ref().map(|uptime| round2(uptime.uptime)),
    }
}

fn cpu(since: Option<&Reading>, current: &Reading) -> Option<Cpu> {
    let load = current.load.as_ref();
    let average = |value: f32| round2(f64::from(value));
    if current.stat.is_none() && load.is_none() {
        return None;
    }
    let both = current.stat.as_ref().zip(since.and_then(|p| p.stat.as_ref()));
    let shares = both.and_then(|(stat, before)| delta::cpu_shares(&before.total, &stat.total));
    let Cpu { user, nice, system, idle, iowait, irq, softirq, steal, .. } =
        shares.unwrap_or_default();
    let seconds = current.stat.as_ref().map(|stat| delta::cpu_seconds(&stat.total));
    Some(Cpu {
        user,
        nice,
        system,
        idle,
        iowait,
        irq,
        softirq,
        steal,
        load_1m: load.map(|load| average(load.one)),
        load_5m: load.map(|load| average(load.five)),
        load_15m: load.map(|load| average(load.fifteen)),
        cores: current.stat.as_ref().and_then(|stat| u64::try_from(stat.cpu_time.len()).ok()),
        ..seconds.unwrap_or_default()
    })
}

fn instant(seconds: u64) -> Option<Time> {
    i64::try_from(seconds).ok().and_then(|at| Timestamp::from_second(at).ok()).map(Time)
}

fn paging(vmstat: &procfs::VmStat) -> Paging {
    let count = |name: &str| vmstat.0.get(name).and_then(|value| u64::try_from(*value).ok());
    // The kernel counts these in KiB whatever the size of its pages.
    let bytes = |name: &str| count(name).and_then(|kib| kib.checked_mul(1_024));
    Paging {
        in_bytes: bytes("pgpgin"),
        out_bytes: bytes("pgpgout"),
        swap_in_pages: count("pswpin"),
        swap_out_pages: count("pswpout"),
        major_faults: count("pgmajfault"),
        oom_kills: count("oom_kill"),
    }
}

fn memory(info: &procfs::Meminfo) -> Memory {
    let mib = |bytes: u64| bytes >> 20;
    // Kernels before 3.14 have no MemAvailable: what `free` of that time counted as used.
    let used = match info.mem_available {
        Some(available) => info.mem_total.saturating_sub(available),
        None => info
            .mem_total
            .saturating_add(info.shmem.unwrap_or(0))
            .saturating_sub(info.mem_free)
            .saturating_sub(info.buffers)
            .saturating_sub(info.cached)
            .saturating_sub(info.s_reclaimable.unwrap_or(0)),
    };
    Memory {
        total_mb: Some(mib(info.mem_total)),
        free_mb: Some(mib(info.mem_free)),
        cached_mb: Some(mib(info.cached)),
        used_mb: Some(mib(used)),
        available_mb: info.mem_available.map(mib),
        buffers_mb: Some(mib(info.buffers)),
        swap_total_mb: Some(mib(info.swap_total)),
        swap_used_mb: Some(mib(info.swap_total.saturating_sub(info.swap_free))),
        dirty_mb: Some(mib(info.dirty)),
        huge_pages_total: info.hugepages_total,
        huge_pages_free: info.hugepages_free,
        huge_pages_reserved: info.hugepages_rsvd,
        huge_page_size_bytes: info.hugepagesize,
    }
}

fn processes(current: &Reading) -> Option<Processes> {
    let stat = current.stat.as_ref();
    if stat.is_none() && current.load.is_none() {
        return None;
    }
    Some(Processes {
        running: stat.and_then(|stat| stat.procs_running).map(u64::from),
        blocked: stat.and_then(|stat| stat.procs_blocked).map(u64::from),
        total: current.load.as_ref().map(|load| u64::from(load.max)),
    })
}

#[cfg(test)]
mod tests;
