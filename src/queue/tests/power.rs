//! The power goes during every single operation of several workloads, and each time the next start
//! finds what was promised, whatever part of what was not synced the disk has kept.

use super::{model::Run, *};

/// What one disk may be left with, for each operation.
const SEEDS: u64 = 4;

const SMALL: LogLimits = LogLimits { segment_bytes_max: 16 << 10, ..LIMITS };

/// Runs `workload` with the power going at each of its operations in turn, and `check`s what the
/// next process delivers. Returns the number of crashes.
fn cut_everywhere(
    limits: LogLimits,
    workload: impl Fn(&mut Run),
    check: impl Fn(&Run, &str),
) -> u64 {
    let mut whole = Run::new(limits);
    let before = whole.disk.operations();
    workload(&mut whole);
    let operations = whole.disk.operations() - before;
    assert!(operations > 30, "only {operations} operations");
    for operation in 0..operations {
        for seed in 0..SEEDS {
            let mut run = Run::new(limits);
            run.disk.lose_power_at(operation);
            workload(&mut run);
            assert!(run.disk.is_powerless());
            let context = format!("operation {operation}, seed {seed}");
            run.disk.crash(operation * SEEDS + seed);
            run.reopen();
            run.drain();
            check(&run, &context);
            // Once more: what was delivered stays so.
            run.disk.crash(operation * SEEDS + seed);
            run.reopen();
            run.drain();
            check(&run, &context);
        }
    }
    operations * SEEDS
}

/// A step is taken only while there is power: then the process is gone.
fn steps(run: &mut Run, steps: &[&dyn Fn(&mut Run)]) {
    for step in steps {
        if run.disk.is_powerless() {
            return;
        }
        step(run);
    }
}

/// Q1, Q2, C20: appending, sealing, delivering in and out of order, answers that are lost.
#[test]
fn power_loss_at_any_operation_loses_nothing_and_repeats_nothing() {
    let workload = |run: &mut Run| {
        for round in 0..4 {
            steps(
                run,
                &[
                    &|run| run.append(5),
                    &|run| run.append(7),
                    &Run::seal,
                    &|run| run.append(3),
                    &|run| run.append(12),
                    &Run::lose_answer,
                    &|run| run.deliver(1 + round, false),
                    &Run::seal,
                    &|run| run.deliver(2, round == 2),
                ],
            );
        }
    };
    let crashes = cut_everywhere(LIMITS, workload, Run::assert_exact);
    assert!(crashes > 200, "{crashes}");
}

/// Q2, Q4: merging, with deliveries before and after it.
#[test]
fn power_loss_while_merging_loses_nothing_and_repeats_nothing() {
    let workload = |run: &mut Run| {
        for _ in 0..18 {
            steps(run, &[&|run| run.append(2), &Run::seal]);
        }
        steps(run, &[&|run| run.deliver(2, false), &Run::tend, &Run::lose_answer]);
        steps(run, &[&|run| run.deliver(3, false), &|run| run.append(4), &Run::seal, &Run::tend]);
    };
    let mut whole = Run::new(SMALL);
    workload(&mut whole);
    assert!(whole.log.counts().merged_segments >= 16, "nothing was merged");
    cut_everywhere(SMALL, workload, Run::assert_exact);
}

/// Q5, Q6: evicting: whatever is gone is in the ledger.
#[test]
fn power_loss_while_evicting_loses_nothing_unsaid() {
    let budget = Budget { bytes_max: SMALL.reserve_bytes() + (2 << 10), ..Budget::UNBOUNDED };
    let limits = LogLimits { budget, ..SMALL };
    let workload = |run: &mut Run| {
        for round in 0..16 {
            steps(run, &[&|run| run.append(19), &Run::seal, &|run| run.deliver(round % 2, false)]);
        }
    };
    let mut whole = Run::new(limits);
    workload(&mut whole);
    assert!(whole.log.counts().evicted_records > 0, "nothing was evicted");
    cut_everywhere(limits, workload, Run::assert_accounted);
}

/// Q5, Q6: thinning: whatever is gone is in the ledger.
#[test]
fn power_loss_while_thinning_loses_nothing_unsaid() {
    let budget = Budget {
        bytes_max: SMALL.reserve_bytes() + (12 << 10),
        on_full: OnFull::Thin,
        ..Budget::UNBOUNDED
    };
    let limits = LogLimits { budget, ..SMALL };
    let workload = |run: &mut Run| {
        for _ in 0..5 {
            steps(run, &[&|run| run.append(9), &Run::seal, &Run::tend]);
        }
    };
    let mut whole = Run::new(limits);
    workload(&mut whole);
    assert!(whole.log.counts().thinned_records > 0, "nothing was thinned");
    cut_everywhere(limits, workload, Run::assert_accounted);
}

/// Q2: delivered segments that are kept are not sent again.
#[test]
fn power_loss_while_keeping_delivered_segments_repeats_nothing() {
    let limits = LogLimits { retain: Retain::Bytes(8 << 10), ..SMALL };
    let workload = |run: &mut Run| {
        for _ in 0..8 {
            steps(run, &[&|run| run.append(6), &Run::seal, &|run| run.deliver(1, false)]);
        }
    };
    cut_everywhere(limits, workload, Run::assert_exact);
}

/// Q1: a kill, as opposed to a loss of power, costs nothing in any mode.
#[test]
fn a_kill_costs_nothing_in_any_mode() {
    for durability in [Durability::Sync, Durability::Interval, Durability::Os] {
        let limits = LogLimits { durability, ..LIMITS };
        for kill_at in 0..60 {
            let mut run = Run::new(limits);
            run.disk.lose_power_at(kill_at);
            for _ in 0..4 {
                steps(&mut run, &[&|run| run.append(5), &|run| run.append(9), &Run::seal]);
                steps(&mut run, &[&|run| run.deliver(1, false), &|run| run.append(3)]);
            }
            run.disk.heal();
            run.reopen();
            run.drain();
            run.assert_exact(&format!("{durability:?}, killed at {kill_at}"));
        }
    }
}

/// Q7: a sync fails at every place in turn, and lies from then on; later the power goes.
#[test]
fn a_sync_that_fails_loses_nothing() {
    for fail_at in 0..60 {
        for seed in 0..SEEDS {
            let mut run = Run::new(LIMITS);
            run.disk.fail_sync_after(fail_at, seed);
            for round in 0..4 {
                run.append(5);
                run.append(9);
                run.seal();
                run.append(3);
                run.deliver(round, false);
                run.now_ms += 3_000;
            }
            run.disk.crash(seed);
            run.reopen();
            run.drain();
            let context = format!("sync {fail_at}, seed {seed}");
            assert_eq!(run.missing(), BTreeSet::new(), "{context}");
        }
    }
}
