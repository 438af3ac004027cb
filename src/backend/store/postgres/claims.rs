//! Rows that are known by their text alone, and the records that claim them (S7).

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{MetricRow, Push};

/// Gives a row that is known by its text alone to the first record with that text, unless the
/// record has a row.
const CLAIM: &str = "UPDATE metrics AS r SET claimed_by = m.record
  FROM (SELECT DISTINCT ON (m.at, m.digest) m.at, m.digest, m.record
          FROM unnest($2::timestamptz[], $3::uuid[], $4::uuid[])
               WITH ORDINALITY AS m (at, digest, record, n)
         WHERE NOT EXISTS (
               SELECT FROM metrics AS known
                WHERE known.server_id = $1 AND known.at = m.at AND known.digest = m.record)
         ORDER BY m.at, m.digest, m.n) AS m
 WHERE r.server_id = $1 AND r.at = m.at AND r.digest = m.digest AND r.digest IS NOT NULL
   AND r.claimed_by IS NULL";

/// The places of those that have a row under their text.
const CLAIMED: &str = "SELECT m.n
  FROM unnest($2::timestamptz[], $3::uuid[], $4::uuid[])
       WITH ORDINALITY AS m (at, digest, record, n)
  JOIN metrics AS r ON r.server_id = $1 AND r.at = m.at AND r.digest = m.digest
 WHERE r.digest IS NOT NULL AND r.claimed_by = m.record";

/// The rows to insert: all but those that the store has under their text, claimed by their record
/// earlier or now. Only rows until `text_until` of the server can be of that kind.
pub(super) async fn without_rows<'a>(
    transaction: &Transaction<'_>,
    server_id: i64,
    text_until: Option<Timestamp>,
    rows: &'a [MetricRow],
) -> Result<Vec<&'a MetricRow>, StoreError> {
    let mut left: Vec<Option<&MetricRow>> = rows.iter().map(Some).collect();
    let (mut places, mut times) = (Vec::new(), Vec::new());
    let (mut digests, mut records) = (Vec::new(), Vec::new());
    for (place, row) in rows.iter().enumerate() {
        let Some(record) = row.record else { continue };
        if text_until.is_some_and(|until| row.at <= until) {
            places.push(place);
            times.push(row.at);
            digests.push(Uuid::from_bytes(row.digest));
            records.push(Uuid::from_bytes(record));
        }
    }
    if !places.is_empty() {
        let values: [&(dyn ToSql + Sync); 4] = [&server_id, &times, &digests, &records];
        let claim = transaction.prepare_cached(CLAIM).await?;
        transaction.execute(&claim, &values).await?;
        let claimed = transaction.prepare_cached(CLAIMED).await?;
        for row in transaction.query(&claimed, &values).await? {
            let n = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or_default();
            let place = n.checked_sub(1).and_then(|n| places.get(n));
            if let Some(claimed) = place.and_then(|place| left.get_mut(*place)) {
                *claimed = None;
            }
        }
    }
    Ok(left.into_iter().flatten().collect())
}

/// Notes until when rows are known by their text alone, before a push brings some.
pub(super) async fn note_texts(
    transaction: &Transaction<'_>,
    push: &Push,
    server_id: i64,
    known: Option<Timestamp>,
) -> Result<(), StoreError> {
    let brought = push.text_until();
    if brought > known {
        let note = "UPDATE servers SET text_until = $2 WHERE id = $1";
        let note = transaction.prepare_cached(note).await?;
        transaction.execute(&note, &[&server_id, &brought]).await?;
    }
    Ok(())
}
