-- What admins say of a collector, a JSON object of texts.
ALTER TABLE collectors ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
-- Entries of its losses that went for newer ones.
ALTER TABLE collectors ADD COLUMN lost_forgotten INTEGER NOT NULL DEFAULT 0;
