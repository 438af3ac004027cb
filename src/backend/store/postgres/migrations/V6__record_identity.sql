-- A record has the digest of its queue, its number and its text. A row whose digest is of the text
-- alone is the row of the first record with that text, whose digest is kept here then.
ALTER TABLE metrics ADD COLUMN claimed_by uuid;

-- No row with a later time has a digest of its text alone. Another backend of the version before
-- may be storing some until it is replaced, too.
ALTER TABLE servers ADD COLUMN text_until timestamptz;
UPDATE servers SET text_until = greatest(
    now() + interval '1 hour',
    (SELECT at FROM metrics WHERE server_id = servers.id AND digest IS NOT NULL
      ORDER BY at DESC LIMIT 1));
