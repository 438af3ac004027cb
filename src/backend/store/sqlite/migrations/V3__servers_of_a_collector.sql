-- A collector brings metrics of more than one host when it replays what another has left: a server
-- is a collector and a host name. The rows go and come back within the transaction, which checks
-- the metrics' references at its end.
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
    UNIQUE (collector_id, hostname)
) STRICT;
INSERT INTO servers (id, collector_id, name, hostname, environment, created_at, updated_at)
     SELECT id, collector_id, name, hostname, environment, created_at, updated_at
       FROM servers_before;
DROP TABLE servers_before;
