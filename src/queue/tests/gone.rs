//! A queue's directory, or a part of it, that goes away under the running process, and comes back.

use super::*;

/// Q7, Q12: the state is removed under the process: it is written anew, by itself and with the next
/// note, and has what it had.
#[test]
fn a_state_that_is_removed_is_written_anew() {
    for gone in ["state", "state/a", "state/b"] {
        for tended in [true, false] {
            let disk = MemoryDisk::new();
            let mut log = open(&disk);
            log.append(vec![Group { rejected: 2, ..group(0..3) }], 10);
            log.seal(20);
            disk.lose(gone);
            if tended {
                log.tend(1_000);
            } else {
                log.append(vec![Group { rejected: 1, ..Group::default() }], 30);
            }
            assert_eq!(log.disk_error(), None);
            let (before, next) = (log.losses(), log.status().next_seq);
            drop(log);
            assert_eq!(disk.files("state").len(), 2, "{gone}, tended {tended}");
            let log = open(&disk);
            assert_eq!((log.losses(), log.status().next_seq), (before, next), "{gone}");
        }
    }
}
