//! A file as the system sees it, and as a loss of power leaves it.

/// What a device writes as a whole.
const SECTOR_BYTES: usize = 512;

/// The bytes of a file, with what has been synced of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Not synced, in their order.
    writes: Vec<(usize, Vec<u8>)>,
}

impl Content {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn write(&mut self, at: usize, bytes: Vec<u8>) {
        put(&mut self.bytes, at, &bytes);
        self.writes.push((at, bytes));
    }

    /// Makes the writes durable; with `random`, some of them, and none of the others ever.
    pub(super) fn sync(&mut self, mut random: Option<&mut fastrand::Rng>) {
        for (at, bytes) in std::mem::take(&mut self.writes) {
            match random.as_mut() {
                None => put(&mut self.synced, at, &bytes),
                Some(random) => put_some(&mut self.synced, at, &bytes, random),
            }
        }
    }

    /// Leaves what was synced, and some of the rest.
    pub(super) fn crash(&mut self, random: &mut fastrand::Rng) {
        self.sync(Some(random));
        self.bytes.clone_from(&self.synced);
    }

    /// Changes the bytes on the device.
    pub(super) fn damage(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.bytes);
        self.synced.clone_from(&self.bytes);
        self.writes.clear();
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

/// A write that was under way: none of it, all, or some of its sectors.
fn put_some(file: &mut Vec<u8>, at: usize, bytes: &[u8], random: &mut fastrand::Rng) {
    match random.u8(..3) {
        0 => {}
        1 => put(file, at, bytes),
        _ => {
            let mut from = 0;
            while from < bytes.len() {
                let end = ((at + from) / SECTOR_BYTES + 1) * SECTOR_BYTES - at;
                let end = end.min(bytes.len());
                if random.bool() {
                    put(file, at + from, &bytes[from..end]);
                }
                from = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The model itself: what was synced is always left, and the rest at times, in every form.
    #[test]
    fn a_crash_keeps_what_was_synced_and_some_of_the_rest() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut content = Content::default();
            content.write(0, vec![1; 700]);
            content.sync(None);
            content.write(700, vec![2; 2_000]);
            let random = &mut fastrand::Rng::with_seed(seed);
            content.crash(random);
            assert_eq!(content.bytes()[..700], [1; 700]);
            lengths.insert(content.bytes().iter().map(|b| usize::from(*b == 2)).sum::<usize>());
        }
        assert!(lengths.contains(&0) && lengths.contains(&2_000));
        assert!(lengths.len() > 5, "torn at sectors: {lengths:?}");
    }
}
