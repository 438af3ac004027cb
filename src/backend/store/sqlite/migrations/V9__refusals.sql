-- What a collector sent and was not taken: one row for each of a few reasons.
CREATE TABLE refusals (
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    reason       TEXT NOT NULL,
    count        INTEGER NOT NULL,
    last_at      INTEGER NOT NULL,
    last_message TEXT NOT NULL,
    PRIMARY KEY (collector_id, reason)
) STRICT;
