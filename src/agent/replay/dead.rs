//! The dead letters as a source: lines of JSON, each a record with the reason why it was refused.

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    agent::letter::{Letter, read, refused_again},
    control::Amount,
    forward::Refused,
    queue::{DeadChanges, DeadLine, each_dead_line},
};

/// Names a record: the queue that numbered it, and its number.
pub type RecordName = (Uuid, u64);

/// Dead letters of one queue that are sent as one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    queue_id: Uuid,
    /// By record; one that was written down twice has two lines.
    letters: BTreeMap<Key, Vec<String>>,
    bytes: usize,
}

/// A record within its queue: its number, and a checksum of its JSON. A number that only memory
/// knew when its process was killed may have been given to another record, too.
type Key = (u64, u32);

/// What a look through the file has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Records that can be sent.
    pub amount: Amount,
    /// Lines that are damaged.
    pub unreadable: u64,
}

/// Records of a group at most.
const RECORDS_MAX: usize = 1_000;
/// Bytes of a group's lines at most, unless a single one is larger.
const BYTES_MAX: usize = 1 << 20;

/// When a replay was asked for. A letter was written after that when its number and its time say
/// so: of a clock that was ahead for a while, the time alone says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The queue's next number at that time.
    pub next_seq: u64,
    /// The wall clock's time.
    pub at: Timestamp,
}

impl Asked {
    fn is_before(&self, letter: &Letter<'_>, queue_id: Uuid) -> bool {
        let (queue, seq) = letter.record(queue_id);
        queue == queue_id && seq >= self.next_seq && letter.at > self.at
    }
}

/// What the file at `path` holds, in the directory of the queue `queue_id`; nothing when there is
/// none.
pub fn count(path: &Path, queue_id: Uuid, asked: Asked) -> io::Result<Count> {
    let mut count = Count::default();
    let mut seen = std::collections::BTreeSet::new();
    each_dead_line(path, |line| match sound(line) {
        Some((_, letter)) if asked.is_before(&letter, queue_id) => {}
        Some((_, letter)) => {
            if seen.insert((letter.record(queue_id), checksum(&letter))) {
                count.amount.add(1, letter.metric.get().len() as u64);
            }
        }
        None => count.unreadable += 1,
    })?;
    count.amount.batches = count.amount.records.div_ceil(RECORDS_MAX as u64);
    Ok(count)
}

/// The first letters from `next` on that were not written after the replay was `asked` for, in the
/// directory of the queue `queue_id`. `None`: there are none.
///
/// With the same lines in the file this is always the same group, so that one whose answer was
/// lost is sent again under the same id.
pub fn next_group(
    path: &Path,
    queue_id: Uuid,
    next: RecordName,
    asked: Asked,
) -> io::Result<Option<Group>> {
    let mut group: Option<Group> = None;
    let mut bound = u64::MAX;
    each_dead_line(path, |line| {
        let Some((line, letter)) = sound(line) else { return };
        let record = letter.record(queue_id);
        if asked.is_before(&letter, queue_id) || record < next {
            return;
        }
        let (queue_id, seq) = record;
        // The queues follow each other, as the records of each do.
        if group.as_ref().is_none_or(|group| queue_id < group.queue_id) {
            group = Some(Group { queue_id, ..Group::default() });
            bound = u64::MAX;
        }
        let same = group.as_mut().filter(|group| queue_id == group.queue_id && seq < bound);
        let key = (seq, checksum(&letter));
        bound = same.and_then(|group| group.add(key, line)).unwrap_or(bound);
    })?;
    Ok(group.filter(|group| !group.letters.is_empty()))
}

impl Group {
    /// Adds a line. Returns the lowest sequence number that there is no room for.
    fn add(&mut self, key: Key, line: &str) -> Option<u64> {
        let lines = self.letters.entry(key).or_default();
        if !lines.iter().any(|known| known == line) {
            lines.push(line.to_owned());
            self.bytes += line.len();
        }
        let mut bound = None;
        while self.letters.len() > RECORDS_MAX || self.bytes > BYTES_MAX {
            let ends = (self.letters.first_key_value(), self.letters.last_key_value());
            let (Some(((first, _), _)), Some(((last, _), _))) = ends else { break };
            let (first, last) = (*first, *last);
            // The records of one number stay together: the next group begins with the next number.
            if first == last {
                break;
            }
            for lines in self.letters.split_off(&(last, 0)).into_values() {
                self.bytes -= lines.iter().map(String::len).sum::<usize>();
            }
            bound = Some(last);
        }
        bound
    }

    /// The queue that numbered the records.
    pub fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    /// The name after that of the last record.
    pub fn end(&self) -> RecordName {
        let last = self.letters.last_key_value();
        (self.queue_id, last.map_or(0, |((seq, _), _)| seq.saturating_add(1)))
    }

    /// The batch id: a function of the queue, the records, and how often each was refused since, so
    /// that the backend does not answer another try from its memory of the last.
    pub fn id(&self) -> Uuid {
        let name = |(seq, letter): (u64, Letter<'_>)| {
            format!("{seq}:{:08x}:{}", checksum(&letter), letter.attempts)
        };
        let names: Vec<String> = self.newest().map(name).collect();
        Uuid::new_v5(&self.queue_id, format!("dead/{}", names.join(",")).as_bytes())
    }

    /// The records' numbers and the times of their refusal, milliseconds since 1970 UTC.
    pub fn records(&self) -> Vec<(u64, i64)> {
        self.newest().map(|(seq, letter)| (seq, letter.at.as_millisecond())).collect()
    }

    /// The records' JSON.
    pub fn metrics(&self) -> Vec<Bytes> {
        self.newest().map(|(_, letter)| Bytes::from(letter.metric.get().to_owned())).collect()
    }

    /// What becomes of the lines when the backend has taken all but `refused`: those stay, with
    /// the new reason and one more attempt.
    pub fn settled(&self, refused: &[Refused]) -> DeadChanges {
        let mut changes = DeadChanges::new();
        for (index, lines) in self.letters.values().enumerate() {
            let again = refused.iter().find(|refused| refused.index == index);
            let kept =
                again.and_then(|again| refused_again(&newest_of(lines)?, self.queue_id, again));
            // Of a record that stands there twice, one line is enough.
            for (n, line) in lines.iter().enumerate() {
                changes.insert(line.clone(), kept.clone().filter(|_| n == 0));
            }
        }
        changes
    }

    fn newest(&self) -> impl Iterator<Item = (u64, Letter<'_>)> {
        self.letters.iter().filter_map(|((seq, _), lines)| Some((*seq, newest_of(lines)?)))
    }
}

fn checksum(letter: &Letter<'_>) -> u32 {
    crc32c::crc32c(letter.metric.get().as_bytes())
}

fn newest_of(lines: &[String]) -> Option<Letter<'_>> {
    lines.iter().filter_map(|line| read(line)).max_by_key(|letter| letter.attempts)
}

/// A letter and its line; one that is sound and says something else is not touched either.
fn sound(line: DeadLine<'_>) -> Option<(&str, Letter<'_>)> {
    match line {
        DeadLine::Letter(text) => Some((text, read(text)?)),
        DeadLine::Damaged(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Uuid = Uuid::from_u128(7);
    const FIRST: RecordName = (Uuid::nil(), 0);

    fn line(seq: u64, at_s: i64, filler: usize) -> String {
        let at = Timestamp::from_second(at_s).unwrap();
        let (batch, x) = (Uuid::nil(), "x".repeat(filler));
        format!(
            r#"{{"at":"{at}","first_at":"{at}","attempts":1,"batch":"{batch}","seq":{seq},"status":200,"path":"p","message":"m","metric":{{"n":{seq},"x":"{x}"}}}}"#
        )
    }

    fn file(lines: &[String]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), lines.join("\n") + "\n").unwrap();
        file
    }

    fn seqs(group: &Group) -> Vec<u64> {
        group.letters.keys().map(|(seq, _)| *seq).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// All of them are older, but for the numbers from 5 on that are not from before that.
    fn asked(second: i64) -> Asked {
        Asked { next_seq: 5, at: at(second) }
    }

    /// Letters that were written while the clock was ahead are not those of the future.
    #[test]
    fn letters_of_a_clock_that_was_ahead_are_sent() {
        let other = line(9, 99, 0)
            .replace("\"batch\"", &format!(r#""queue":"{}","batch""#, Uuid::from_u128(8)));
        let file = file(&[line(3, 99, 0), line(4, 1, 0), line(5, 99, 0), other]);
        let count = count(file.path(), QUEUE, asked(50)).unwrap();
        assert_eq!(count.amount.records, 3);
        let group = next_group(file.path(), QUEUE, FIRST, asked(50)).unwrap().unwrap();
        assert_eq!(seqs(&group), [3, 4]);
        let group = next_group(file.path(), QUEUE, group.end(), asked(50)).unwrap().unwrap();
        assert_eq!((group.queue_id(), seqs(&group)), (Uuid::from_u128(8), vec![9]));
    }

    #[test]
    fn letters_come_by_number_and_only_those_of_the_time() {
        let lines = [line(9, 1, 0), line(3, 1, 0), line(5, 99, 0), line(4, 1, 0), line(3, 2, 0)];
        let file = file(&lines);
        let group = next_group(file.path(), QUEUE, FIRST, asked(50)).unwrap().unwrap();
        assert_eq!((seqs(&group), group.end()), (vec![3, 4, 9], (QUEUE, 10)));
        assert_eq!(group.metrics()[0], r#"{"n":3,"x":""}"#);
        let group = next_group(file.path(), QUEUE, (QUEUE, 4), asked(50)).unwrap().unwrap();
        assert_eq!(seqs(&group), [4, 9]);
        assert_eq!(next_group(file.path(), QUEUE, (QUEUE, 10), asked(99)).unwrap(), None);
        let count = count(file.path(), QUEUE, asked(50)).unwrap();
        assert_eq!((count.amount.records, count.amount.batches, count.unreadable), (3, 1, 0));
    }

    /// A letter without a queue is of the one that it lies in; others were brought here.
    #[test]
    fn each_queue_has_groups_of_its_own() {
        let of = |queue: u128, seq| {
            let queue = format!(r#""queue":"{}","batch""#, Uuid::from_u128(queue));
            line(seq, 1, 0).replace("\"batch\"", &queue)
        };
        let lines =
            [of(9, 2), line(3, 1, 0), of(5, 1), of(9, 1), line(1, 1, 0), of(7, 1), of(7, 8)];
        let file = file(&lines);
        assert_eq!(count(file.path(), QUEUE, asked(5)).unwrap().amount.records, 6);
        let (mut next, mut all) = (FIRST, Vec::new());
        while let Some(group) = next_group(file.path(), QUEUE, next, asked(5)).unwrap() {
            next = group.end();
            all.push((group.queue_id().as_u128(), seqs(&group)));
            assert_eq!(
                group.settled(&[]).len(),
                if group.queue_id() == QUEUE { 4 } else { seqs(&group).len() }
            );
        }
        assert_eq!(all, [(5, vec![1]), (7, vec![1, 3, 8]), (9, vec![1, 2])]);
    }

    /// Groups follow each other without a hole, whatever the order in the file.
    #[test]
    fn groups_cover_everything_once() {
        let order = |n: u64| (n * 1_663) % 2_500;
        let lines: Vec<String> =
            (0..2_500).map(|n| line(order(n), 1, usize::try_from(n % 7 * 400).unwrap())).collect();
        let file = file(&lines);
        let (mut next, mut all) = (FIRST, Vec::new());
        while let Some(group) = next_group(file.path(), QUEUE, next, asked(5)).unwrap() {
            assert!(group.bytes <= BYTES_MAX && group.letters.len() <= RECORDS_MAX);
            next = group.end();
            all.extend(seqs(&group));
        }
        assert_eq!(all, (0..2_500).collect::<Vec<_>>());
    }

    #[test]
    fn a_record_that_is_refused_again_stays_with_its_attempts_and_gets_another_id() {
        let file = file(&[line(1, 1, 0), line(2, 1, 0), line(2, 3, 0)]);
        let group = next_group(file.path(), QUEUE, FIRST, asked(5)).unwrap().unwrap();
        let again = Refused {
            index: 1,
            path: "cpu".to_owned(),
            message: "no".to_owned(),
            status: 422,
            attempts: 3,
            first_at: at(4),
            at: at(4),
        };
        let changes = group.settled(&[again]);
        assert_eq!(changes[&line(1, 1, 0)], None);
        let kept: Vec<_> = changes.values().flatten().collect();
        let [kept] = kept[..] else { panic!("{kept:?}") };
        let letter = read(kept).unwrap();
        assert_eq!(letter.queue, Some(QUEUE));
        assert_eq!(
            (letter.seq, letter.attempts, &*letter.path, &*letter.message),
            (2, 4, "cpu", "no")
        );
        assert_eq!((letter.first_at, letter.at, letter.status), (at(3), at(4), 422));
        let mut second = Group::default();
        second.add((2, 0), kept);
        let mut first = Group::default();
        first.add((2, 0), &line(2, 1, 0));
        assert_ne!(first.id(), second.id());
        assert_ne!(first.id(), Group { queue_id: QUEUE, ..first.clone() }.id());
        assert_eq!(group.id(), group.clone().id());
    }

    /// Two records that were given one number are two: none takes the other's line with it.
    #[test]
    fn a_number_of_two_records_has_both() {
        let file = file(&[line(1, 1, 0), line(1, 2, 7), line(1, 3, 0), line(2, 1, 0)]);
        assert_eq!(count(file.path(), QUEUE, asked(5)).unwrap().amount.records, 3);
        let group = next_group(file.path(), QUEUE, FIRST, asked(5)).unwrap().unwrap();
        assert_eq!((seqs(&group), group.metrics().len()), (vec![1, 1, 2], 3));
        let numbers: Vec<u64> = group.records().into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(numbers, [1, 1, 2]);
        // One of the two is refused again: its line stays, and no other.
        let refused = |index| Refused {
            index,
            path: String::new(),
            message: String::new(),
            status: 422,
            attempts: 1,
            first_at: at(1),
            at: at(4),
        };
        for index in 0..2 {
            let changes = group.settled(&[refused(index)]);
            let kept: Vec<_> = changes.values().flatten().map(|line| read(line).unwrap()).collect();
            let [kept] = &kept[..] else { panic!("{}", kept.len()) };
            assert_eq!(kept.metric.get(), group.metrics()[index]);
        }
        // More than a group holds stays together, too.
        let lines: Vec<_> = (0..1_200).map(|filler| line(7, 1, filler)).collect();
        let file = self::file(&lines);
        let group = next_group(file.path(), QUEUE, FIRST, asked(5)).unwrap().unwrap();
        assert_eq!((group.letters.len(), group.end()), (1_200, (QUEUE, 8)));
    }

    #[test]
    fn damaged_lines_are_counted_and_left_alone() {
        let file = file(&[line(1, 1, 0), "{\"seq\":2".to_owned(), "\u{0}".to_owned()]);
        assert_eq!(count(file.path(), QUEUE, asked(5)).unwrap().unreadable, 2);
        let half = fs_err::read_to_string(file.path()).unwrap() + &line(3, 1, 0)[..30];
        fs_err::write(file.path(), half).unwrap();
        assert_eq!(
            count(file.path(), QUEUE, asked(5)).unwrap().unreadable,
            2,
            "one is being written"
        );
        let group = next_group(file.path(), QUEUE, FIRST, asked(5)).unwrap().unwrap();
        assert_eq!(group.settled(&[]).len(), 1);
        assert_eq!(count(Path::new("/nowhere/dead"), QUEUE, asked(5)).unwrap(), Count::default());
    }
}
