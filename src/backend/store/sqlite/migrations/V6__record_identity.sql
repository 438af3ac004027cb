-- A record has the digest of its queue, its number and its text. A row whose digest is of the text
-- alone is the row of the first record with that text, whose digest is kept here then.
ALTER TABLE metrics ADD COLUMN claimed_by BLOB;

-- No row with a later time has a digest of its text alone.
ALTER TABLE servers ADD COLUMN text_until INTEGER;
UPDATE servers SET text_until = (
    SELECT at FROM metrics WHERE server_id = servers.id AND digest IS NOT NULL
     ORDER BY at DESC LIMIT 1);
