-- Every name that a collector bears or bore, without regard to case: another may not have it. Names
-- of before that collide are kept: the collector that had it first has it here, the others none.
CREATE TABLE names (
    key          TEXT PRIMARY KEY,
    collector_id TEXT NOT NULL REFERENCES collectors (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_of_collector ON names (collector_id);
CREATE INDEX collectors_by_thumbprint ON collectors (thumbprint);

-- What lets hosts register. The mark is a keyed hash of the secret.
CREATE TABLE registration_secrets (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    mark         BLOB NOT NULL UNIQUE,
    uses         INTEGER NOT NULL DEFAULT 0,
    uses_max     INTEGER,
    expires_at   INTEGER,
    reclaims     INTEGER NOT NULL DEFAULT 0,
    collector_id TEXT REFERENCES collectors (id),
    created_at   INTEGER NOT NULL,
    used_at      INTEGER,
    revoked_at   INTEGER
) STRICT;

-- A host that a collector has brought with a replay is a server of its own, also under the
-- collector's own host name. The rows go and come back within the transaction, which checks the
-- metrics' references at its end.
PRAGMA defer_foreign_keys = ON;
CREATE TABLE servers_before AS SELECT * FROM servers;
DROP TABLE servers;
CREATE TABLE servers (
    id           INTEGER PRIMARY KEY,
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    name         TEXT NOT NULL,
    hostname     TEXT NOT NULL,
    environment  TEXT NOT NULL DEFAULT 'production',
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    text_until   INTEGER,
    brought      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (collector_id, hostname, brought)
) STRICT;
INSERT INTO servers (id, collector_id, name, hostname, environment, created_at, updated_at,
                     text_until, brought)
     SELECT s.id, s.collector_id, s.name, s.hostname, s.environment, s.created_at, s.updated_at,
            s.text_until, lower(s.hostname) <> lower(c.hostname)
       FROM servers_before s JOIN collectors c ON c.id = s.collector_id;
DROP TABLE servers_before;
