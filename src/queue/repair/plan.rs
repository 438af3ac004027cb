//! What is wrong in a queue's directory. Reads, and changes nothing.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{Action, Plan, Requeue, Step, StepKind};
use crate::queue::{
    aside::{Aside, QuarantinedKind, is_rival, quarantined_segment, segment_of, stranger_of},
    log::{Log, LogLimits, look::Damage},
    store::{
        StoreError, identity,
        notes::{self, Check},
        real::{LookedAt, occupied},
        segment_folder,
    },
};

pub(super) fn of(dir: &Path, limits: LogLimits, requeue: Requeue) -> Result<Plan, StoreError> {
    let mut plan = Plan::default();
    files_in_the_way(dir, &mut plan);
    let disk = LookedAt::at(dir);
    let named = identity::read(&disk);
    let id = match (identity::find(&disk), named) {
        (Ok(id), Ok(named)) if id == named => id,
        (Ok(id), named) => {
            let what = match named {
                Ok(named) => format!("names the queue {named}, and nothing in it agrees"),
                Err(error) => format!("does not say which queue this is: {}", error.source),
            };
            misnamed(id, what, &mut plan);
            return Ok(plan);
        }
        (Err(error), _) => {
            plan.remarks.push(format!("{error}; no segment says what it was"));
            return Ok(plan);
        }
    };
    state(dir, id, &mut plan)?;
    segments(dir, limits, &mut plan)?;
    quarantine(dir, id, requeue, &mut plan)?;
    Ok(plan)
}

fn state(dir: &Path, id: uuid::Uuid, plan: &mut Plan) -> Result<(), StoreError> {
    match notes::check(&LookedAt::at(dir), id)? {
        Check::Sound => {}
        Check::Behind(files) => {
            for path in files {
                plan.steps.push(Step {
                    what: "lacks a part of the state, which the other file has".to_owned(),
                    fix: "write it anew".to_owned(),
                    action: Action::Open,
                    ..moved(dir, StepKind::State, path)
                });
            }
        }
        Check::Lost(why) => plan.steps.push(Step {
            what: format!("the state is lost: {why}"),
            fix: "start a new one; segments are read instead, and what the backend has already it \
                  recognises"
                .to_owned(),
            ..moved(dir, StepKind::State, PathBuf::from("state"))
        }),
    }
    Ok(())
}

fn moved(dir: &Path, kind: StepKind, path: PathBuf) -> Step {
    let records = 0;
    let backup_bytes = if kind == StepKind::State { occupied(&dir.join(&path)) } else { 0 };
    let (what, fix, action) = (String::new(), String::new(), Action::MoveAside);
    Step { kind, path, records, backup_bytes, what, fix, action }
}

/// Names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn files_in_the_way(dir: &Path, plan: &mut Plan) {
    let mut folders = vec![PathBuf::from("state")];
    for name in names(&dir.join("segments")) {
        let path = Path::new("segments").join(&name);
        if segment_of(&name).is_some() && dir.join(&path).is_dir() {
            folders.push(path);
        } else {
            plan.steps.push(Step {
                what: "is no segment".to_owned(),
                fix: "move it to the backup".to_owned(),
                ..moved(dir, StepKind::Foreign, path)
            });
        }
    }
    for folder in folders {
        let left = names(&dir.join(&folder)).into_iter();
        for name in left.filter(|name| name.ends_with(".generating")) {
            plan.steps.push(Step {
                what: "is left of a snapshot that a kill has cut off".to_owned(),
                fix: "move it to the backup".to_owned(),
                ..moved(dir, StepKind::LeftOver, folder.join(name))
            });
        }
    }
    for name in names(&dir.join("trash")) {
        plan.steps.push(Step {
            what: "is delivered, and its removal was cut off".to_owned(),
            fix: "move it to the backup".to_owned(),
            ..moved(dir, StepKind::Trash, Path::new("trash").join(name))
        });
    }
}

/// A queue whose name is lost: its journal and its frames carry it.
fn misnamed(id: uuid::Uuid, what: String, plan: &mut Plan) {
    plan.steps.push(Step {
        kind: StepKind::Identity,
        path: PathBuf::from("QUEUE"),
        records: 0,
        backup_bytes: 0,
        what,
        fix: format!("write {id}, which the queue's own files carry"),
        action: Action::Identify(id),
    });
    plan.remarks.push("once the queue has its name, plan again for the rest".to_owned());
}

fn segments(dir: &Path, limits: LogLimits, plan: &mut Plan) -> Result<(), StoreError> {
    let mut log = Log::look(LookedAt::at(dir), limits)?;
    let vanished = log.counts().corrupt_records;
    if vanished > 0 {
        plan.steps.push(Step {
            kind: StepKind::Vanished,
            path: PathBuf::from("segments"),
            records: vanished,
            backup_bytes: 0,
            what: format!("{} gone: somebody has removed their segments", counted(vanished)),
            fix: "count them in the ledger".to_owned(),
            action: Action::Open,
        });
    }
    for segment in log.segments() {
        let (mut damage, mut from) = (Vec::new(), Some(0));
        while let Some(frame) = from {
            let check = log.look_check(segment.id, frame);
            damage.extend(check.damage);
            from = check.next;
        }
        let lost: u64 = damage.iter().map(|damage| damage.records).sum();
        if damage.is_empty() {
            continue;
        }
        let path = Path::new("segments").join(format!("{:020}", segment.id));
        if lost <= segment.corrupt {
            plan.remarks.push(format!(
                "{}: {} damaged, the ledger knows; the rest is delivered",
                path.display(),
                counted(lost)
            ));
            continue;
        }
        plan.steps.push(Step {
            kind: StepKind::Damaged,
            records: lost,
            backup_bytes: occupied(&dir.join(segment_folder(segment.id))),
            what: format!(
                "{lost} of {} records cannot be read: {}",
                segment.records,
                ranges(&damage)
            ),
            fix: "write the others to a sound segment, count these in the ledger".to_owned(),
            action: Action::Salvage(segment.id),
            path,
        });
    }
    Ok(())
}

fn counted(records: u64) -> String {
    if records == 1 { "1 record".to_owned() } else { format!("{records} records") }
}

/// Sequence numbers in words, the first few.
fn ranges(damage: &[Damage]) -> String {
    const SHOWN: usize = 4;
    let ends = damage.iter().filter_map(|damage| damage.first_seq.zip(damage.last_seq));
    let word = |(first, last): (u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let words: Vec<String> = ends.map(word).collect();
    match words.len() {
        0 => "positions only".to_owned(),
        few if few <= SHOWN => words.join(", "),
        many => format!("{} and {} more", words[..SHOWN].join(", "), many - SHOWN),
    }
}

fn quarantine(
    dir: &Path,
    queue: uuid::Uuid,
    requeue: Requeue,
    plan: &mut Plan,
) -> Result<(), StoreError> {
    for entry in Aside::of(dir).quarantine_read()? {
        let path = Path::new("quarantine").join(&entry.name);
        let records = entry.readable.map_or(0, |readable| readable.records);
        let owner = stranger_of(&entry.name);
        let is_other = is_rival(&entry.name) || owner.is_none_or(|own| own.queue != queue);
        if entry.kind == QuarantinedKind::Stranger && is_other {
            stranger((&entry.name, records), requeue, plan);
            continue;
        }
        // A copy of a segment of this queue goes under its own number, and is recognised.
        let id = owner.map(|own| own.segment).or_else(|| quarantined_segment(&entry.name));
        let id = id.filter(|_| entry.kind.is_segment());
        let taken =
            |step: &Step| matches!(step.action, Action::Requeue(other) if Some(other) == id);
        let waits = id.is_some_and(|id| dir.join(segment_folder(id)).exists())
            || plan.steps.iter().any(taken);
        match id {
            Some(id) if records > 0 && !waits && requeue == Requeue::Yes => {
                plan.steps.push(Step {
                    kind: StepKind::Quarantined,
                    records,
                    backup_bytes: occupied(&dir.join(&path)),
                    what: format!("{} can be read", counted(records)),
                    fix: "queue it again; what the backend has already it recognises".to_owned(),
                    action: Action::Requeue(id),
                    path,
                });
            }
            Some(_) if records > 0 && !waits => plan.remarks.push(format!(
                "{}: {} can be read, and went to the backend or to another segment when it was put \
                 there; --requeue queues them once more",
                path.display(),
                counted(records)
            )),
            _ => plan.remarks.push(format!(
                "{}: nothing to gain from it; delete it when you have looked at it",
                path.display()
            )),
        }
    }
    Ok(())
}

/// A segment of another queue or process, or one that another has taken the place of: its records
/// have been neither sent nor counted.
fn stranger((name, records): (&str, u64), requeue: Requeue, plan: &mut Plan) {
    let path = Path::new("quarantine").join(name);
    if records > 0 && requeue == Requeue::Yes {
        plan.steps.push(Step {
            kind: StepKind::Stranger,
            records,
            backup_bytes: 0,
            what: format!(
                "is of another queue, or has numbers of others; {} can be read",
                counted(records)
            ),
            fix: "append them to this queue, and move it to the backup".to_owned(),
            action: Action::Adopt(name.to_owned()),
            path: path.clone(),
        });
    } else {
        plan.remarks.push(format!(
            "{}: {} of another queue or process, not sent; `agent replay --dir` sends a whole \
             queue as its host's, --requeue appends them here",
            path.display(),
            counted(records)
        ));
    }
}
