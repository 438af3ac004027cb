//! `sysstat`: CPU, memory, disks and network of the host.

use serde::Serialize;

use super::Time;
use super::shape::Kind::{Amount, Array, Count, Name, Object, Percent};
use super::shape::{Field, Kind, optional, required};

/// One reading of the host. Rates and percentages cover the time since the reading before it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "sysstat")]
pub struct Sysstat {
    /// When the reading was taken.
    pub timestamp: Time,
    /// Absent when `/proc/stat` could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Absent when `/proc/meminfo` could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Whole disks: no partitions, loop or RAM devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_io: Option<Vec<DiskIo>>,
    /// Interfaces that reach other hosts: no loopback, no veth pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Vec<Network>>,
    /// Absent on kernels before 4.20 or without PSI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Context switches per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_switches_s: Option<f64>,
    /// Absent when `/proc/stat` could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// Seconds since the host was booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<f64>,
}

/// Percent of the interval since the previous reading; the eight shares sum to 100.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Where the time went; absent when the counters were reset between the readings.
    #[serde(flatten)]
    pub shares: Option<CpuShares>,
    /// Load average over one minute.
    pub load_1m: Option<f64>,
    /// Load average over five minutes.
    pub load_5m: Option<f64>,
    /// Load average over fifteen minutes.
    pub load_15m: Option<f64>,
    /// CPUs online.
    pub cores: Option<u64>,
}

/// The shares of [`Cpu`], percent. Guest time is part of `user` and `nice`.
#[expect(missing_docs, reason = "the kernel's own words, proc(5)")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuShares {
    pub user: f64,
    pub nice: f64,
    pub system: f64,
    pub idle: f64,
    pub iowait: f64,
    pub irq: f64,
    pub softirq: f64,
    pub steal: f64,
}

/// Memory in MiB, as `/proc/meminfo` has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// `MemTotal`.
    pub total_mb: u64,
    /// `MemFree`.
    pub free_mb: u64,
    /// `Cached`: the page cache, shared memory included.
    pub cached_mb: u64,
    /// `MemTotal` less what is available.
    pub used_mb: u64,
    /// `MemAvailable`; absent on kernels before 3.14.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_mb: Option<u64>,
    /// `Buffers`.
    pub buffers_mb: u64,
    /// `SwapTotal`.
    pub swap_total_mb: u64,
    /// `SwapTotal` less `SwapFree`.
    pub swap_used_mb: u64,
    /// `Dirty`.
    pub dirty_mb: u64,
    /// `HugePages_Total`, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_total: Option<u64>,
    /// `HugePages_Free`, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_free: Option<u64>,
    /// `HugePages_Rsvd`, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_reserved: Option<u64>,
    /// `Hugepagesize`, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_page_size_bytes: Option<u64>,
}

/// One disk: rates since the previous reading, and the kernel's own counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DiskIo {
    /// The kernel's name, such as `sda`.
    pub device: String,
    /// Since the previous reading; absent for a disk that was not there then.
    #[serde(flatten)]
    pub rates: Option<DiskRates>,
    /// Reads completed since boot.
    pub read_ops: u64,
    /// Writes completed since boot.
    pub write_ops: u64,
    /// Sectors of 512 bytes read since boot.
    pub read_sectors: u64,
    /// Sectors of 512 bytes written since boot.
    pub write_sectors: u64,
}

/// The rates of [`DiskIo`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DiskRates {
    /// Reads per second.
    pub read_iops: f64,
    /// Writes per second.
    pub write_iops: f64,
    /// MiB read per second.
    pub read_mb_s: f64,
    /// MiB written per second.
    pub write_mb_s: f64,
    /// Mean time of a read; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_await_ms: Option<f64>,
    /// Mean time of a write; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_await_ms: Option<f64>,
    /// Mean number of requests in flight.
    pub queue_depth: f64,
    /// Share of the time with a request in flight; 100 is not saturation on a disk that works
    /// on many requests at once.
    pub busy_percent: f64,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Network {
    /// The kernel's name, such as `eth0`.
    pub interface: String,
    /// Since the previous reading; absent for an interface that was not there then.
    #[serde(flatten)]
    pub rates: Option<NetworkRates>,
    /// Receive errors since boot.
    pub rx_errors: u64,
    /// Transmit errors since boot.
    pub tx_errors: u64,
    /// Packets dropped on receive since boot.
    pub rx_drops: u64,
    /// Packets dropped on transmit since boot.
    pub tx_drops: u64,
}

/// The rates of [`Network`], per second.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NetworkRates {
    pub rx_bytes_s: f64,
    pub tx_bytes_s: f64,
    pub rx_packets_s: f64,
    pub tx_packets_s: f64,
}

/// Pressure stall information, `/proc/pressure`.
#[expect(missing_docs, reason = "the names of the three files")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Stall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Stall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Stall>,
}

/// How much of the time work stood still for one resource, percent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stall {
    /// Some task waited, share since the previous reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some_percent: Option<f64>,
    /// Every task waited, share since the previous reading; absent for the CPU, where the kernel
    /// does not define it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_percent: Option<f64>,
    /// The kernel's own average of `some` over ten seconds.
    pub some_avg10: f64,
    /// The kernel's own average of `some` over sixty seconds.
    pub some_avg60: f64,
}

/// Tasks of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Processes {
    /// Runnable now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// Waiting for I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<u64>,
    /// All tasks, threads included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// Any subset of the parts is accepted.
pub(super) const SHAPE: &[Field] = &[
    optional("cpu", Object(CPU)),
    optional("memory", Object(MEMORY)),
    optional("disk_io", Array(&Object(DISK_IO))),
    optional("network", Array(&Object(NETWORK))),
    optional("pressure", Object(PRESSURE)),
    optional("context_switches_s", Amount),
    optional("processes", Object(PROCESSES)),
    optional("uptime_s", Amount),
];

const CPU: &[Field] = &[
    optional("user", Percent),
    optional("system", Percent),
    optional("idle", Percent),
    optional("iowait", Percent),
    optional("nice", Percent),
    optional("irq", Percent),
    optional("softirq", Percent),
    optional("steal", Percent),
    optional("load_1m", Amount),
    optional("load_5m", Amount),
    optional("load_15m", Amount),
    optional("cores", Count),
];

const MEMORY: &[Field] = &[
    optional("total_mb", Count),
    optional("free_mb", Count),
    optional("cached_mb", Count),
    optional("used_mb", Count),
    optional("available_mb", Count),
    optional("buffers_mb", Count),
    optional("swap_total_mb", Count),
    optional("swap_used_mb", Count),
    optional("dirty_mb", Count),
    optional("huge_pages_total", Count),
    optional("huge_pages_free", Count),
    optional("huge_pages_reserved", Count),
    optional("huge_page_size_bytes", Count),
];

const DISK_IO: &[Field] = &[
    required("device", Name),
    optional("read_iops", Amount),
    optional("write_iops", Amount),
    optional("read_mb_s", Amount),
    optional("write_mb_s", Amount),
    optional("read_ops", Count),
    optional("write_ops", Count),
    optional("read_sectors", Count),
    optional("write_sectors", Count),
    optional("read_await_ms", Amount),
    optional("write_await_ms", Amount),
    optional("queue_depth", Amount),
    optional("busy_percent", Percent),
];

const NETWORK: &[Field] = &[
    required("interface", Name),
    optional("rx_bytes_s", Amount),
    optional("tx_bytes_s", Amount),
    optional("rx_packets_s", Amount),
    optional("tx_packets_s", Amount),
    optional("rx_errors", Count),
    optional("tx_errors", Count),
    optional("rx_drops", Count),
    optional("tx_drops", Count),
];

const PRESSURE: &[Field] =
    &[optional("cpu", STALL), optional("memory", STALL), optional("io", STALL)];

const STALL: Kind = Object(&[
    optional("some_percent", Percent),
    optional("full_percent", Percent),
    optional("some_avg10", Percent),
    optional("some_avg60", Percent),
]);

const PROCESSES: &[Field] =
    &[optional("running", Count), optional("blocked", Count), optional("total", Count)];
