-- What admins say of a collector, a JSON object of texts.
ALTER TABLE collectors ADD COLUMN labels text NOT NULL DEFAULT '{}';
-- Entries of its losses that went for newer ones.
ALTER TABLE collectors ADD COLUMN lost_forgotten bigint NOT NULL DEFAULT 0;
