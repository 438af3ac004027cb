//! The host's own collectors, and the places that the agent writes to.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{Finding, Verdict, collected};
use crate::collect::Collector;
use crate::collect::disk_usage::DiskUsageCollector;
use crate::collect::sysstat::SysstatCollector;
use crate::config::{Collectors, Config, Timing};
use crate::intake::Listen;
use crate::queue::disk_space;
use crate::units::show_size;

/// Collects once with each of the host's collectors.
pub(super) async fn collectors(enabled: &Collectors) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((timing, config)) = enabled.sysstat.clone() {
        findings.push(tried("sysstat", SysstatCollector::new(config), timing).await);
    }
    if let Some((timing, config)) = enabled.disk_usage.clone() {
        findings.push(tried("disk_usage", DiskUsageCollector::new(config), timing).await);
    }
    findings
}

async fn tried(part: &'static str, mut collector: impl Collector, timing: Timing) -> Finding {
    match collected(&mut collector, timing).await {
        Ok(_) => Finding::ok(part, "collection", "works"),
        Err(error) => Finding::failed(part, "collection", &error),
    }
}

/// The directories, the sockets, and the room on the queue's file system.
pub(super) fn places(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        folder("collector", "state_dir", &config.agent.state_dir),
        folder("queue", "dir", &config.queue.dir),
    ];
    findings.extend(room(config));
    if let Some(intake) = &config.intake
        && let Listen::Unix(socket) = &intake.listen
    {
        findings.push(folder("intake", "folder", socket.parent().unwrap_or(Path::new("/"))));
    }
    findings
}

/// The nearest folder on the way to `path` that is there.
fn present(path: &Path) -> PathBuf {
    let folder = path.ancestors().find(|folder| folder.is_dir());
    match folder.filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("."),
    }
}

fn folder(part: &'static str, of: &str, path: &Path) -> Finding {
    let there = present(path);
    match access(&there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if there == path => Finding::ok(part, of, format!("{} can be used", path.display())),
        Ok(()) => Finding::ok(part, of, format!("{} can be made", path.display())),
        Err(error) => {
            let says = format!("{}: {}", there.display(), std::io::Error::from(error));
            let hint = "let the agent's user own the directory, or run this as that user";
            Finding::new(part, of, Verdict::Failed, says).hint(hint)
        }
    }
}

fn room(config: &Config) -> Option<Finding> {
    let space = disk_space(&present(&config.queue.dir))?;
    let budget = &config.queue.limits.budget;
    let percent = u64::from(budget.disk_free_min_percent);
    let usable = space.available.saturating_sub(space.total / 100 * percent);
    let says = format!("{} free of {}", show_size(space.available), show_size(space.total));
    Some(if budget.is_low(space) {
        let says = format!("{says}, less than queue.disk_free_min ({percent} %): it does not grow");
        Finding::new("queue", "room", Verdict::Limited, says)
            .hint("free some space, or give the queue a file system of its own")
    } else if usable < budget.bytes_max {
        let bytes = show_size(usable);
        let says = format!("{says}: {bytes} for the queue, less than queue.bytes_max");
        Finding::new("queue", "room", Verdict::Could, says)
            .hint("an outage can be that much shorter; lower queue.bytes_max or free some space")
    } else {
        Finding::ok("queue", "room", says)
    })
}
