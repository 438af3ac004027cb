//! What a queue promises, as a list: who was told what, and what has arrived.

use super::*;

/// Everything that collectors and backend know, over any number of crashes.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Records so far: each has its own content.
    pub(super) next_record: u64,
    /// Sequence numbers that were acknowledged as being on disk, and the record.
    pub(super) acknowledged: BTreeMap<u64, u64>,
    /// Batches that the backend has, by their id: sequence numbers and contents.
    batches: BTreeMap<Uuid, Vec<(u64, Bytes)>>,
    /// Records that the backend has refused.
    refused: BTreeSet<u64>,
}

/// A queue on a disk that can fail, and what was promised of it.
pub(super) struct Run {
    pub(super) disk: MemoryDisk,
    pub(super) log: Log<MemoryDisk>,
    pub(super) model: Model,
    pub(super) limits: LogLimits,
    pub(super) now_ms: i64,
}

impl Run {
    pub(super) fn new(limits: LogLimits) -> Self {
        let disk = MemoryDisk::new();
        Self::on(disk, limits)
    }

    pub(super) fn on(disk: MemoryDisk, limits: LogLimits) -> Self {
        let log = Log::open(disk.open(), limits).expect("a memory disk opens");
        Self { disk, log, model: Model::default(), limits, now_ms: 1_000_000 }
    }

    pub(super) fn append(&mut self, records: u64) {
        self.now_ms += 10;
        let numbers = self.model.next_record..self.model.next_record + records;
        self.model.next_record = numbers.end;
        let made = |n| NewRecord {
            kind: format!("custom.k{}", n % 2),
            at_ms: self.now_ms + i64::try_from(n % 3).unwrap(),
            payload: payload(n),
        };
        let group = Group::of(numbers.clone().map(made).collect());
        let appended = self.log.append(vec![group], self.now_ms);
        if appended.home == Home::Disk {
            for (seq, n) in (appended.first_seq..).zip(numbers) {
                let before = self.model.acknowledged.insert(seq, n);
                assert_eq!(before, None, "number {seq} was given twice");
            }
        }
    }

    pub(super) fn seal(&mut self) {
        self.now_ms += 10;
        self.log.seal(self.now_ms);
    }

    /// Delivers up to `count` batches, the newest first; one record of each is refused when asked.
    pub(super) fn deliver(&mut self, count: usize, refuse: bool) {
        self.now_ms += 10;
        let mut taken: Vec<Batch> = Vec::new();
        while taken.len() < count
            && let Some(batch) = self.log.next_batch(self.now_ms)
        {
            taken.push(batch);
        }
        for batch in taken.into_iter().rev() {
            self.model.take(&batch);
            let letters: Vec<DeadLetter> = batch
                .records
                .iter()
                .take(usize::from(refuse))
                .map(|r| DeadLetter { seq: r.seq, at_ms: r.at_ms, line: "{}".to_owned() })
                .collect();
            self.model.refused.extend(letters.iter().map(|letter| letter.seq));
            self.log.delivered(batch.key, batch.records.len() as u64, &letters).ok();
        }
    }

    /// The backend has a batch and its answer is lost.
    pub(super) fn lose_answer(&mut self) {
        if let Some(batch) = self.log.next_batch(self.now_ms) {
            self.model.take(&batch);
            self.log.put_back(batch.key, "timeout".to_owned(), self.now_ms);
        }
    }

    /// Merges, thins, salvages and forgets all that it wants to.
    pub(super) fn tend(&mut self) {
        self.now_ms += 120_000;
        while self.log.tend(self.now_ms) {}
    }

    /// Sends every batch again that the queue still has: the backend knows its id and content.
    pub(super) fn replay(&mut self) {
        for info in self.log.batches().unwrap_or_default() {
            let key = BatchKey { segment: info.segment, number: info.number };
            if info.state != BatchState::Open
                && let Ok(Some(batch)) = self.log.read(key)
            {
                self.model.take(&batch);
            }
        }
    }

    /// Damages a segment whose row is in the state; `false` when there is none. The last frames of
    /// one without a row are like those that were never finished: nobody knows of them.
    pub(super) fn damage(&mut self, at: usize, damage: impl FnOnce(&mut Vec<u8>, usize)) -> bool {
        self.disk.heal();
        self.restart();
        let segments = self.disk.segments();
        let Some(id) = segments.get(at % segments.len().max(1)).copied() else { return false };
        self.disk.damage(id, |bytes| {
            if !bytes.is_empty() {
                let at = at / 7 % bytes.len();
                damage(bytes, at);
            }
        });
        self.reopen();
        true
    }

    /// The process ends as it should.
    pub(super) fn restart(&mut self) {
        let placeholder = Log::open(MemoryDisk::new().open(), self.limits).expect("it opens");
        std::mem::replace(&mut self.log, placeholder).close(self.now_ms);
        self.reopen();
    }

    /// The process ends without a word, and another one opens what is left.
    pub(super) fn reopen(&mut self) {
        if self.disk.is_powerless() {
            self.disk.crash(self.now_ms.unsigned_abs());
        }
        let mut opened = Log::open(self.disk.open(), self.limits);
        if opened.is_err() && self.disk.is_powerless() {
            // The power went while it was opened.
            self.disk.crash(self.now_ms.unsigned_abs());
            opened = Log::open(self.disk.open(), self.limits);
        }
        self.log = opened.expect("the queue opens");
        let last = self.model.acknowledged.last_key_value().map(|(seq, _)| *seq);
        let next_seq = self.log.status().next_seq;
        assert!(last.is_none_or(|seq| seq < next_seq), "{last:?} will be given again: {next_seq}");
    }

    /// Delivers everything.
    pub(super) fn drain(&mut self) {
        self.disk.heal();
        // A segment that could not be read at a start is found at the next.
        self.restart();
        for _ in 0..3 {
            self.now_ms += 200_000;
            self.log.seal(self.now_ms);
            self.log.retry_now();
            while let Some(batch) = self.log.next_batch(self.now_ms) {
                self.model.take(&batch);
                self.log
                    .delivered(batch.key, batch.records.len() as u64, &[])
                    .expect("a sound disk");
            }
        }
        assert_eq!(self.log.status().records, 0, "{:?}", self.log.segments());
    }

    /// Acknowledged records that no batch has.
    pub(super) fn missing(&self) -> BTreeSet<u64> {
        let arrived = self.model.arrived();
        let there =
            |seq: &u64, n: &u64| arrived.get(seq).is_some_and(|all| all.contains(&payload(*n)));
        let lost = self.model.acknowledged.iter().filter(|(seq, n)| !there(seq, n));
        lost.map(|(seq, _)| *seq).collect()
    }

    /// Everything acknowledged has arrived, once.
    pub(super) fn assert_exact(&self, context: &str) {
        assert_eq!(self.missing(), BTreeSet::new(), "{context}");
        self.model.assert_once(context);
        // What was being written when the power went may be told as damaged, nothing else.
        for loss in self.log.losses().iter().filter(|loss| loss.reason != LossReason::Refuse) {
            let promised = self.model.acknowledged.range(loss.from..=loss.to).next();
            assert_eq!(promised, None, "{context}: {loss:?}");
        }
    }

    /// Everything acknowledged has arrived or is in the ledger.
    pub(super) fn assert_accounted(&self, context: &str) {
        let losses = self.log.losses();
        let missing = self.missing();
        for seq in &missing {
            let known = losses.iter().any(|loss| (loss.from..=loss.to).contains(seq));
            assert!(known, "{context}: {seq} is lost without a word: {losses:?}");
        }
        let counted: u64 = losses.iter().map(|loss| loss.records).sum();
        assert!(missing.len() as u64 <= counted, "{context}: {missing:?} in {losses:?}");
    }
}

impl Model {
    fn take(&mut self, batch: &Batch) {
        let records: Vec<(u64, Bytes)> =
            batch.records.iter().map(|r| (r.seq, r.payload.clone())).collect();
        let known = self.batches.entry(batch.id).or_insert_with(|| records.clone());
        // After damage a batch may come again with less.
        let same = records.iter().all(|record| known.contains(record));
        assert!(same, "batch {} changed its content: {records:?}, {known:?}", batch.id);
    }

    fn arrived(&self) -> BTreeMap<u64, Vec<Bytes>> {
        let mut arrived: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
        for (seq, payload) in self.batches.values().flatten() {
            arrived.entry(*seq).or_default().push(payload.clone());
        }
        arrived
    }

    /// No record is in two batches.
    pub(super) fn assert_once(&self, context: &str) {
        let mut contents = BTreeSet::new();
        for (seq, payload) in self.batches.values().flatten() {
            assert!(contents.insert(payload), "{context}: {seq} is in two batches");
        }
    }

    /// Nothing has arrived that nobody appended.
    pub(super) fn assert_known(&self) {
        let appended: BTreeSet<Bytes> = (0..self.next_record).map(payload).collect();
        let known = |(_, payload): &(u64, Bytes)| appended.contains(payload);
        assert!(self.batches.values().flatten().all(known), "a record that nobody appended");
    }
}
