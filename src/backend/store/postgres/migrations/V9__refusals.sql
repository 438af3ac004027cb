-- What a collector sent and was not taken: one row for each of a few reasons.
CREATE TABLE refusals (
    collector_id uuid NOT NULL REFERENCES collectors (id),
    reason       text NOT NULL,
    count        bigint NOT NULL,
    last_at      timestamptz NOT NULL,
    last_message text NOT NULL,
    PRIMARY KEY (collector_id, reason)
);
