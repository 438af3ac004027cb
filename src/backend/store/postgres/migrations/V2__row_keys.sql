-- A metric that comes in two batches is one row. Rows from before have no digest and no key, and so
-- have rows of pushes without a batch id.
ALTER TABLE metrics ADD COLUMN digest uuid;
CREATE UNIQUE INDEX metrics_once ON metrics (server_id, at, digest) WHERE digest IS NOT NULL;

-- When the lost records were made. A window that is thinned twice has two entries of one range.
ALTER TABLE lost ADD COLUMN first_at timestamptz;
ALTER TABLE lost ADD COLUMN last_at timestamptz;
ALTER TABLE lost DROP CONSTRAINT lost_pkey;
ALTER TABLE lost ADD PRIMARY KEY (collector_id, queue_id, first, last, reason, at, records);
