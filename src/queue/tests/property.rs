//! Random histories of a queue against what it promises.

use super::{model::Run, *};

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Seal,
    /// So many batches, the newest first.
    Deliver(usize, bool),
    LoseAnswer,
    Tend,
    /// Sends again what is on disk, delivered or not, without asking whether it is due.
    Replay,
    Kill,
    Restart,
    PowerLoss(u64),
    PowerLossIn(u64),
    DiskFull(u64),
    ReadOnly,
    SyncFails(u64, u64),
    DiskBack,
    FlipBit(usize),
    Truncate(usize),
    ClockJump(i64),
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..30_u64).prop_map(Step::Append),
        6 => Just(Step::Seal),
        5 => (1..4_usize, any::<bool>()).prop_map(|(count, refuse)| Step::Deliver(count, refuse)),
        2 => Just(Step::LoseAnswer),
        3 => Just(Step::Tend),
        1 => Just(Step::Replay),
        2 => Just(Step::Kill),
        1 => Just(Step::Restart),
        2 => any::<u64>().prop_map(Step::PowerLoss),
        2 => (0..12_u64).prop_map(Step::PowerLossIn),
        2 => (0..6_u64).prop_map(Step::DiskFull),
        1 => Just(Step::ReadOnly),
        2 => (0..6_u64, any::<u64>()).prop_map(|(after, seed)| Step::SyncFails(after, seed)),
        4 => Just(Step::DiskBack),
        1 => any::<usize>().prop_map(Step::FlipBit),
        1 => any::<usize>().prop_map(Step::Truncate),
        2 => (-100_000_000..100_000_000_i64).prop_map(Step::ClockJump),
    ];
    proptest::collection::vec(step, 1..60)
}

fn limits() -> impl Strategy<Value = LogLimits> {
    let on_full = prop_oneof![
        4 => Just(None),
        1 => Just(Some(OnFull::EvictOldest)),
        1 => Just(Some(OnFull::EvictNewest)),
        1 => Just(Some(OnFull::Thin)),
    ];
    let retain = prop_oneof![
        2 => Just(Retain::Off),
        1 => Just(Retain::Bytes(8 << 10)),
        1 => Just(Retain::Age(Duration::from_secs(600))),
    ];
    (on_full, retain).prop_map(|(on_full, retain)| {
        let limits = LogLimits { segment_bytes_max: 16 << 10, retain, ..LIMITS };
        let bytes_max = limits.reserve_bytes() + (32 << 10);
        let bounded = |on_full| Budget { bytes_max, on_full, ..Budget::UNBOUNDED };
        LogLimits { budget: on_full.map_or(Budget::UNBOUNDED, bounded), ..limits }
    })
}

/// What a history has done that excuses something.
#[derive(Debug, Default)]
struct Excuses {
    /// Bytes were damaged: what is missing must be in the ledger.
    damage: bool,
    /// A sync failed: what it left in doubt was written again, and may arrive by two ways.
    doubt: bool,
}

fn act(run: &mut Run, step: &Step, excuses: &mut Excuses) {
    match step {
        Step::Append(records) => run.append(*records),
        Step::Seal => run.seal(),
        Step::Deliver(count, refuse) => run.deliver(*count, *refuse),
        Step::LoseAnswer => run.lose_answer(),
        Step::Tend => run.tend(),
        Step::Replay => run.replay(),
        Step::Kill => run.reopen(),
        Step::Restart => run.restart(),
        Step::PowerLoss(seed) => {
            run.disk.crash(*seed);
            run.reopen();
        }
        Step::PowerLossIn(operations) => run.disk.lose_power_at(*operations),
        Step::DiskFull(writes) => run.disk.fill_after(*writes),
        Step::ReadOnly => run.disk.make_read_only(),
        Step::SyncFails(syncs, seed) => {
            excuses.doubt = true;
            run.disk.fail_sync_after(*syncs, *seed);
        }
        Step::DiskBack => run.disk.heal(),
        Step::FlipBit(at) => {
            excuses.damage |= run.damage(*at, |bytes, at| bytes[at] ^= 1 << (at % 8));
        }
        Step::Truncate(at) => excuses.damage |= run.damage(*at, Vec::truncate),
        Step::ClockJump(ms) => run.now_ms = (run.now_ms + ms).max(1_000),
    }
    if run.disk.is_powerless() {
        run.disk.crash(run.now_ms.unsigned_abs());
        run.reopen();
    }
}

/// C20, Q1 to Q7: whatever happens, what was acknowledged as being on disk is delivered or in the
/// ledger, nothing arrives twice, nothing else arrives, and the queue stays within its budget.
fn check(limits: LogLimits, history: &[Step]) {
    let mut run = Run::new(limits);
    let mut excuses = Excuses::default();
    for step in history {
        act(&mut run, step, &mut excuses);
        let cap = limits.budget.bytes_max.saturating_add(limits.segment_bytes_max);
        assert!(run.log.usage() <= cap, "{} bytes after {step:?}", run.log.usage());
    }
    run.drain();
    if limits.budget == Budget::UNBOUNDED && !excuses.damage {
        assert_eq!(run.missing(), BTreeSet::new());
    }
    run.assert_accounted("the end");
    if limits.budget.on_full != OnFull::Thin && !excuses.doubt && !excuses.damage {
        run.model.assert_once("the end");
    }
    run.model.assert_known();
}

proptest! {
    // `PROPTEST_CASES` sets how many; 1,024 without it.
    #![proptest_config(ProptestConfig::with_cases(4 * ProptestConfig::default().cases))]

    #[test]
    fn the_log_behaves_like_a_list(limits in limits(), history in histories()) {
        check(limits, &history);
    }
}

/// What only a process had sent, from memory, was sent by the next under the same batch id: after
/// the clock was put back, both gave their segments the same number.
#[test]
fn a_number_that_only_memory_knew_is_not_given_again() {
    let history = [
        Step::Append(2),
        Step::ClockJump(-69),
        Step::DiskFull(0),
        Step::Append(1),
        Step::Seal,
        Step::Append(1),
        Step::Replay,
        Step::Kill,
        Step::Append(1),
    ];
    check(LIMITS, &history);
}

/// A full disk kept the state from knowing the last sequence number, and thinning removed the only
/// record that had it.
#[test]
fn the_state_knows_of_numbers_before_their_segments_go() {
    let limits = LogLimits { segment_bytes_max: 16 << 10, ..LIMITS };
    let bytes_max = limits.reserve_bytes() + (32 << 10);
    let budget = Budget { bytes_max, on_full: OnFull::Thin, ..Budget::UNBOUNDED };
    let history = [
        Step::DiskFull(0),
        Step::Append(1),
        Step::FlipBit(0),
        Step::DiskFull(3),
        Step::Append(3),
        Step::Kill,
        Step::DiskBack,
        Step::Tend,
    ];
    check(LogLimits { budget, ..limits }, &history);
}

/// Damage to a batch that was delivered was taken off what a later damage had cost.
#[test]
fn harmless_damage_does_not_hide_another() {
    let history = [
        Step::Append(2),
        Step::ClockJump(-800_770),
        Step::Kill,
        Step::Append(5),
        Step::Tend,
        Step::Append(12),
        Step::Append(24),
        Step::Kill,
        Step::Deliver(1, false),
        Step::Deliver(2, false),
        Step::FlipBit(12_992_810_604_822_802_950),
        Step::FlipBit(14_718_156_056_706_061_778),
        Step::SyncFails(2, 0),
        Step::Append(1),
        Step::Append(1),
        Step::LoseAnswer,
        Step::Kill,
        Step::FlipBit(1_057_114_798_517_605_422),
    ];
    check(LogLimits { segment_bytes_max: 16 << 10, ..LIMITS }, &history);
}

/// What a killed process had written to the state and not synced was read by the next one, which
/// took it for durable: a loss of power then took it back.
#[test]
fn what_a_start_reads_of_the_state_is_durable() {
    let history = [
        Step::Append(3),
        Step::Append(17),
        Step::Seal,
        Step::Append(18),
        Step::Append(14),
        Step::Append(24),
        Step::Append(3),
        Step::Append(5),
        Step::Deliver(1, false),
        Step::Truncate(2_673_641_562_580_125_524),
        Step::Deliver(1, false),
        Step::Append(11),
        Step::DiskFull(0),
        Step::Append(5),
        Step::Kill,
        Step::Truncate(1_886_084_912_193_824_265),
        Step::PowerLoss(5_530_041_865_832_062_618),
    ];
    check(LogLimits { segment_bytes_max: 16 << 10, ..LIMITS }, &history);
}
