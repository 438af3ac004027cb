//! `sysstat`: CPU, memory, disks and network of the host.

use super::Time;
use super::declare::declare;

declare! {
    /// CPU, memory, disks and network of the host. Rates and percentages cover the time since the
    /// reading before; the counters beside them are the kernel's own.
    pub struct Sysstat = "sysstat", from "/proc" {
        /// When the reading was taken.
        timestamp: Time = time(host);
        /// When the host was booted, by the kernel's own clock: where the counters begin.
        boot_at: Option<Time> = time(host) from "/proc/stat btime";
        /// Absent when `/proc/stat` and `/proc/loadavg` could not be read.
        cpu: Option<Cpu> = part;
        /// Absent when `/proc/meminfo` could not be read.
        memory: Option<Memory> = part;
        /// Whole disks: no partitions, loop or RAM devices.
        disk_io: Option<Vec<DiskIo>> = part;
        /// Interfaces that reach other hosts: no loopback, no veth pairs.
        network: Option<Vec<Network>> = part;
        /// Pages that went to and from disks.
        paging: Option<Paging> = part;
        /// Absent on kernels before 4.20 or without PSI.
        pressure: Option<Pressure> = part;
        /// Context switches per second.
        context_switches_s: Option<f64> = gauge("switches/s") from "/proc/stat ctxt";
        /// Absent when `/proc/stat` and `/proc/loadavg` could not be read.
        processes: Option<Processes> = part;
        /// Since the host was booted.
        uptime_s: Option<f64> = gauge("s") from "/proc/uptime";
    }

    /// All CPUs together. The eight shares are of the interval since the reading before, and sum to
    /// 100; they are absent when the counters were reset meanwhile. Guest time is part of `user`
    /// and `nice`.
    pub struct Cpu, from "/proc/stat cpu" {
        /// In user mode.
        user: Option<f64> = gauge("%");
        /// In user mode, with low priority.
        nice: Option<f64> = gauge("%");
        /// In the kernel.
        system: Option<f64> = gauge("%");
        /// Idle.
        idle: Option<f64> = gauge("%");
        /// Idle while I/O was waited for; not reliable, says proc(5).
        iowait: Option<f64> = gauge("%");
        /// Serving interrupts.
        irq: Option<f64> = gauge("%");
        /// Serving soft interrupts.
        softirq: Option<f64> = gauge("%");
        /// Given to other guests by the hypervisor.
        steal: Option<f64> = gauge("%");
        /// In user mode.
        user_s: Option<f64> = counter("s" since "boot_at");
        /// In user mode, with low priority.
        nice_s: Option<f64> = counter("s" since "boot_at");
        /// In the kernel.
        system_s: Option<f64> = counter("s" since "boot_at");
        /// Idle.
        idle_s: Option<f64> = counter("s" since "boot_at");
        /// Idle while I/O was waited for.
        iowait_s: Option<f64> = counter("s" since "boot_at");
        /// Serving interrupts.
        irq_s: Option<f64> = counter("s" since "boot_at");
        /// Serving soft interrupts.
        softirq_s: Option<f64> = counter("s" since "boot_at");
        /// Given to other guests by the hypervisor.
        steal_s: Option<f64> = counter("s" since "boot_at");
        /// Load average over one minute.
        load_1m: Option<f64> = gauge("1") from "/proc/loadavg";
        /// Load average over five minutes.
        load_5m: Option<f64> = gauge("1") from "/proc/loadavg";
        /// Load average over fifteen minutes.
        load_15m: Option<f64> = gauge("1") from "/proc/loadavg";
        /// CPUs online.
        cores: Option<u64> = gauge("CPUs");
    }

    /// Memory.
    pub struct Memory, from "/proc/meminfo" {
        /// All of it.
        total_mb: Option<u64> = gauge("MiB") from "/proc/meminfo MemTotal";
        /// Used for nothing.
        free_mb: Option<u64> = gauge("MiB") from "/proc/meminfo MemFree";
        /// The page cache, shared memory included.
        cached_mb: Option<u64> = gauge("MiB") from "/proc/meminfo Cached";
        /// The total less what is available.
        used_mb: Option<u64> = gauge("MiB");
        /// What programs could still get; absent on kernels before 3.14.
        available_mb: Option<u64> = gauge("MiB") from "/proc/meminfo MemAvailable";
        /// Buffers of block devices.
        buffers_mb: Option<u64> = gauge("MiB") from "/proc/meminfo Buffers";
        /// Swap space.
        swap_total_mb: Option<u64> = gauge("MiB") from "/proc/meminfo SwapTotal";
        /// Swap space in use.
        swap_used_mb: Option<u64> = gauge("MiB") from "/proc/meminfo SwapTotal - SwapFree";
        /// Waits to be written to disks.
        dirty_mb: Option<u64> = gauge("MiB") from "/proc/meminfo Dirty";
        /// Huge pages set aside.
        huge_pages_total: Option<u64> = gauge("pages") from "/proc/meminfo HugePages_Total";
        /// Of these, not allocated.
        huge_pages_free: Option<u64> = gauge("pages") from "/proc/meminfo HugePages_Free";
        /// Of the free ones, promised.
        huge_pages_reserved: Option<u64> = gauge("pages") from "/proc/meminfo HugePages_Rsvd";
        /// The size of a huge page.
        huge_page_size_bytes: Option<u64> = gauge("bytes") from "/proc/meminfo Hugepagesize";
    }

    /// One disk. The rates are absent for a disk that was not there at the reading before.
    pub struct DiskIo, from "/proc/diskstats" {
        /// The kernel's name, such as `sda`.
        device: String = key;
        /// Reads per second.
        read_iops: Option<f64> = gauge("operations/s");
        /// Writes per second.
        write_iops: Option<f64> = gauge("operations/s");
        /// Read per second.
        read_mb_s: Option<f64> = gauge("MiB/s");
        /// Written per second.
        write_mb_s: Option<f64> = gauge("MiB/s");
        /// Reads completed.
        read_ops: Option<u64> = counter("operations" since "boot_at");
        /// Writes completed.
        write_ops: Option<u64> = counter("operations" since "boot_at");
        /// Read, in sectors of 512 bytes whatever the disk's own.
        read_sectors: Option<u64> = counter("sectors" since "boot_at");
        /// Written, in sectors of 512 bytes whatever the disk's own.
        write_sectors: Option<u64> = counter("sectors" since "boot_at");
        /// Read.
        read_bytes: Option<u64> = counter("bytes" since "boot_at");
        /// Written.
        write_bytes: Option<u64> = counter("bytes" since "boot_at");
        /// Time that reads took, together; the kernel's 32 bits wrap after 49 days of it.
        read_ms: Option<u64> = counter("ms" since "boot_at");
        /// Time that writes took, together; the kernel's 32 bits wrap after 49 days of it.
        write_ms: Option<u64> = counter("ms" since "boot_at");
        /// Time with a request in flight; the kernel's 32 bits wrap after 49 days of it.
        busy_ms: Option<u64> = counter("ms" since "boot_at");
        /// Mean time of a read; absent when there was none.
        read_await_ms: Option<f64> = gauge("ms");
        /// Mean time of a write; absent when there was none.
        write_await_ms: Option<f64> = gauge("ms");
        /// Mean number of requests in flight.
        queue_depth: Option<f64> = gauge("requests");
        /// Share of the time with a request in flight; 100 is not saturation on a disk that works
        /// on many requests at once.
        busy_percent: Option<f64> = gauge("%");
    }

    /// One network interface. The rates are absent for an interface that was not there at the
    /// reading before.
    pub struct Network, from "/proc/net/dev" {
        /// The kernel's name, such as `eth0`.
        interface: String = key;
        /// Received per second.
        rx_bytes_s: Option<f64> = gauge("bytes/s");
        /// Sent per second.
        tx_bytes_s: Option<f64> = gauge("bytes/s");
        /// Received per second.
        rx_packets_s: Option<f64> = gauge("packets/s");
        /// Sent per second.
        tx_packets_s: Option<f64> = gauge("packets/s");
        /// Received.
        rx_bytes: Option<u64> = counter("bytes" since "boot_at");
        /// Sent.
        tx_bytes: Option<u64> = counter("bytes" since "boot_at");
        /// Received.
        rx_packets: Option<u64> = counter("packets" since "boot_at");
        /// Sent.
        tx_packets: Option<u64> = counter("packets" since "boot_at");
        /// Errors of receiving.
        rx_errors: Option<u64> = counter("errors" since "boot_at");
        /// Errors of sending.
        tx_errors: Option<u64> = counter("errors" since "boot_at");
        /// Packets dropped on receiving.
        rx_drops: Option<u64> = counter("packets" since "boot_at");
        /// Packets dropped on sending.
        tx_drops: Option<u64> = counter("packets" since "boot_at");
    }

    /// What memory moved to and from disks.
    pub struct Paging, from "/proc/vmstat" {
        /// Read from block devices.
        in_bytes: Option<u64> = counter("bytes" since "boot_at") from "/proc/vmstat pgpgin";
        /// Written to block devices.
        out_bytes: Option<u64> = counter("bytes" since "boot_at") from "/proc/vmstat pgpgout";
        /// Swapped in.
        swap_in_pages: Option<u64> = counter("pages" since "boot_at") from "/proc/vmstat pswpin";
        /// Swapped out.
        swap_out_pages: Option<u64> = counter("pages" since "boot_at") from "/proc/vmstat pswpout";
        /// Faults that had to wait for a disk.
        major_faults: Option<u64> = counter("faults" since "boot_at")
            from "/proc/vmstat pgmajfault";
        /// Processes that the kernel killed for want of memory; absent on kernels before 4.13.
        oom_kills: Option<u64> = counter("tasks" since "boot_at") from "/proc/vmstat oom_kill";
    }

    /// Pressure stall information: how long work stood still for want of something.
    pub struct Pressure, from "/proc/pressure" {
        /// For want of a CPU.
        cpu: Option<Stall> = part;
        /// For want of memory.
        memory: Option<Stall> = part;
        /// For I/O.
        io: Option<Stall> = part;
    }

    /// How much of the time work stood still for one resource.
    pub struct Stall, from "/proc/pressure" {
        /// Some task waited, share since the reading before.
        some_percent: Option<f64> = gauge("%");
        /// Every task waited, share since the reading before; absent for the CPU, where the kernel
        /// does not define it.
        full_percent: Option<f64> = gauge("%");
        /// The kernel's own average of `some` over ten seconds.
        some_avg10: Option<f64> = gauge("%");
        /// The kernel's own average of `some` over sixty seconds.
        some_avg60: Option<f64> = gauge("%");
        /// Some task waited.
        some_us: Option<u64> = counter("us" since "boot_at");
        /// Every task waited; absent for the CPU.
        full_us: Option<u64> = counter("us" since "boot_at");
    }

    /// Tasks of the host.
    pub struct Processes, from "/proc/stat" {
        /// Runnable now.
        running: Option<u64> = gauge("tasks") from "/proc/stat procs_running";
        /// Waiting for I/O.
        blocked: Option<u64> = gauge("tasks") from "/proc/stat procs_blocked";
        /// All tasks, threads included.
        total: Option<u64> = gauge("tasks") from "/proc/loadavg";
    }
}
