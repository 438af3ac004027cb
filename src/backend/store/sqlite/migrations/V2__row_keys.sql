-- A metric that comes in two batches is one row. Rows from before have no digest and no key, and so
-- have rows of pushes without a batch id.
ALTER TABLE metrics ADD COLUMN digest BLOB;
CREATE UNIQUE INDEX metrics_once ON metrics (server_id, at, digest) WHERE digest IS NOT NULL;

-- When the lost records were made. A window that is thinned twice has two entries of one range.
CREATE TABLE lost_2 (
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    queue_id     TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    records      INTEGER NOT NULL,
    reason       TEXT NOT NULL,
    at           INTEGER NOT NULL,
    first_at     INTEGER,
    last_at      INTEGER,
    PRIMARY KEY (collector_id, queue_id, first, last, reason, at, records)
) STRICT, WITHOUT ROWID;
INSERT INTO lost_2 (collector_id, queue_id, first, last, records, reason, at)
     SELECT collector_id, queue_id, first, last, records, reason, at FROM lost;
DROP TABLE lost;
ALTER TABLE lost_2 RENAME TO lost;
