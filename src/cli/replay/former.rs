//! What was delivered while this host was another collector: the backend keeps it in the server row
//! of that one, and does not know its records again.

use anyhow::bail;

use super::Args;
use crate::cli::local::Local;
use crate::cli::run::identity;
use crate::cli::screen::counted;
use crate::clock;
use crate::config::Config;
use crate::queue::SegmentState;

/// Fails when what is asked for was delivered before this host was the collector that it is, and
/// nobody has said that it is to be stored for this one, too.
pub(super) async fn check(args: &Args, config: &Config) -> anyhow::Result<()> {
    let Some(since) = identity(config)?.collector_since.filter(|_| !args.twice) else {
        return Ok(());
    };
    let selection = args.request().selection;
    let (reader, _) = Local::of(config).open().await?;
    let segments = reader.segments().await?;
    let former = segments.iter().filter(|segment| {
        segment.state == SegmentState::Kept
            && selection.covers(segment)
            && segment.sealed_at.is_some_and(|end| end < since)
    });
    let records: u64 = former.map(|segment| segment.records).sum();
    if records > 0 {
        bail!(
            "{} of the selection {} delivered before {}, when this host became the collector that \
             it is: the backend has what it got then in the server row of the former one, and \
             would store it once more in that of this one; hint: --twice sends it all the same, to \
             a backend that has lost it; --from {} leaves it out",
            counted(records, "record"),
            if records == 1 { "was" } else { "were" },
            clock::rfc3339(since),
            clock::rfc3339(since),
        );
    }
    Ok(())
}
