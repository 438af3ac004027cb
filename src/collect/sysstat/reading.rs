//! One reading of `/proc`: the kernel's counters as they stand.

use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Instant;

use procfs::net::{DeviceStatus, InterfaceDeviceStatus};
use procfs::{
    DiskStat, DiskStats, FromBufRead, FromBufReadSI, FromRead, KernelStats, LoadAverage, Meminfo,
    ProcError, Uptime, VmStat,
};

use super::disk;
use crate::clock;
use crate::collect::Notices;

/// The counters of one instant. A part that could not be read is absent.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) stat: Option<KernelStats>,
    pub(super) load: Option<LoadAverage>,
    pub(super) memory: Option<Meminfo>,
    pub(super) uptime: Option<Uptime>,
    pub(super) disks: Option<Vec<DiskStat>>,
    pub(super) network: Option<BTreeMap<String, DeviceStatus>>,
    pub(super) paging: Option<VmStat>,
    pub(super) pressure: PressureReading,
}

/// `/proc/pressure`.
#[derive(Debug, Default)]
pub(super) struct PressureReading {
    pub(super) cpu: Option<StallReading>,
    pub(super) memory: Option<StallReading>,
    pub(super) io: Option<StallReading>,
}

/// One file of `/proc/pressure`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StallReading {
    pub(super) some: Line,
    pub(super) full: Option<Line>,
}

/// One line of it: the kernel's averages in percent and the time in total, microseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    pub(super) avg10: f64,
    pub(super) avg60: f64,
    pub(super) total: u64,
}

impl Reading {
    /// Reads the files under `root`. What cannot be read is reported to `notices`, but for the
    /// pressure files, which many kernels lack.
    pub(super) fn take(root: &Path, notices: &mut Notices) -> Self {
        let at = clock::monotonic();
        let mut file = |name: &str| notices.ok(name, open(root, name));
        let [stat, load, memory, uptime, disks, network, vmstat] =
            ["stat", "loadavg", "meminfo", "uptime", "diskstats", "net/dev", "vmstat"]
                .map(&mut file);
        let mut parsed = Parsed { root, notices };
        Self {
            at,
            stat: parsed.part("stat content", stat, |r| {
                KernelStats::from_buf_read(r, procfs::current_system_info())
            }),
            load: parsed.part("loadavg content", load, LoadAverage::from_read),
            memory: parsed.part("meminfo content", memory, Meminfo::from_buf_read),
            uptime: parsed.part("uptime content", uptime, Uptime::from_read),
            disks: parsed.part("diskstats content", disks, |r| {
                let disks = DiskStats::from_buf_read(r)?.0;
                Ok(disks.into_iter().filter(|disk| disk::is_whole(&disk.name)).collect())
            }),
            network: parsed.part("net/dev content", network, |r| {
                let interfaces = InterfaceDeviceStatus::from_buf_read(r)?.0;
                Ok(interfaces.into_iter().filter(|(name, _)| reaches_out(name)).collect())
            }),
            paging: parsed.part("vmstat content", vmstat, VmStat::from_buf_read),
            pressure: PressureReading::take(root),
        }
    }

    /// Whether nothing at all could be read.
    pub(super) fn is_empty(&self) -> bool {
        self.stat.is_none() && self.load.is_none() && self.memory.is_none() && self.uptime.is_none()
    }
}

impl PressureReading {
    fn take(root: &Path) -> Self {
        let stall = |name: &str| {
            // Absent before Linux 4.20, EOPNOTSUPP when switched off.
            let text = fs_err::read_to_string(root.join("pressure").join(name)).ok()?;
            StallReading::parse(&text)
        };
        Self { cpu: stall("cpu"), memory: stall("memory"), io: stall("io") }
    }
}

impl StallReading {
    /// Reads a file of `/proc/pressure`; `full` is absent for the CPU before Linux 5.13.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| {
            let fields = text.lines().find_map(|line| line.strip_prefix(kind))?;
            let field = |name: &str| {
                fields.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix('='))
            };
            Some(Line {
                avg10: field("avg10")?.parse().ok()?,
                avg60: field("avg60")?.parse().ok()?,
                total: field("total")?.parse().ok()?,
            })
        };
        Some(Self { some: line("some ")?, full: line("full ") })
    }
}

struct Parsed<'a> {
    root: &'a Path,
    notices: &'a mut Notices,
}

impl Parsed<'_> {
    fn part<T>(
        &mut self,
        name: &str,
        reader: Option<BufReader<fs_err::File>>,
        parse: impl FnOnce(BufReader<fs_err::File>) -> Result<T, ProcError>,
    ) -> Option<T> {
        let result = parse(reader?)
            .map_err(|error| format!("cannot read {name} of {}: {error}", self.root.display()));
        self.notices.ok(name, result)
    }
}

fn open(root: &Path, name: &str) -> io::Result<BufReader<fs_err::File>> {
    fs_err::File::open(root.join(name)).map(BufReader::new)
}

/// The loopback and the host's end of a container's link carry no traffic of the host's own.
fn reaches_out(interface: &str) -> bool {
    interface != "lo" && !interface.starts_with("veth")
}
