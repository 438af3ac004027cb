-- Times are microseconds since 1970, UTC. Ids of collectors and sessions are UUIDs as text.
CREATE TABLE keys (
    singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
    fingerprint TEXT NOT NULL
) STRICT;

CREATE TABLE collectors (
    id                     TEXT PRIMARY KEY,
    name                   TEXT NOT NULL UNIQUE,
    hostname               TEXT NOT NULL,
    address                TEXT,
    version                TEXT,
    sealed_secret          BLOB NOT NULL,
    thumbprint             TEXT,
    certificate_expires_at INTEGER,
    created_at             INTEGER NOT NULL,
    updated_at             INTEGER NOT NULL,
    last_seen_at           INTEGER,
    deregistered_at        INTEGER,
    metrics_total          INTEGER NOT NULL DEFAULT 0,
    report                 TEXT
) STRICT;

CREATE TABLE servers (
    id           INTEGER PRIMARY KEY,
    collector_id TEXT NOT NULL UNIQUE REFERENCES collectors (id),
    name         TEXT NOT NULL,
    hostname     TEXT NOT NULL,
    environment  TEXT NOT NULL DEFAULT 'production',
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT;

-- One row per accepted push, kept for ever: a batch id is refused as known for ever.
CREATE TABLE pushes (
    id           INTEGER PRIMARY KEY,
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    batch_id     TEXT,
    received_at  INTEGER NOT NULL,
    metrics      INTEGER NOT NULL,
    rejected     TEXT,
    UNIQUE (collector_id, batch_id)
) STRICT;
CREATE INDEX pushes_by_time ON pushes (collector_id, received_at, metrics);

-- The collector of a metric is its push's.
CREATE TABLE metrics (
    id        INTEGER PRIMARY KEY,
    push_id   INTEGER NOT NULL REFERENCES pushes (id),
    server_id INTEGER NOT NULL REFERENCES servers (id),
    type      TEXT NOT NULL,
    database  TEXT,
    at        INTEGER NOT NULL,
    document  TEXT NOT NULL
) STRICT;
CREATE INDEX metrics_by_server ON metrics (server_id, type, at, database);

CREATE TABLE lost (
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    queue_id     TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    records      INTEGER NOT NULL,
    reason       TEXT NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (collector_id, queue_id, first, last)
) STRICT, WITHOUT ROWID;

CREATE TABLE configs (
    collector_id TEXT NOT NULL REFERENCES collectors (id),
    version      INTEGER NOT NULL,
    text         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_by   TEXT NOT NULL,
    PRIMARY KEY (collector_id, version)
) STRICT;

CREATE TABLE users (
    id            INTEGER PRIMARY KEY,
    username      TEXT NOT NULL UNIQUE,
    email         TEXT NOT NULL,
    full_name     TEXT,
    role          TEXT NOT NULL CHECK (role IN ('admin', 'user', 'viewer')),
    password_hash TEXT NOT NULL,
    is_active     INTEGER NOT NULL DEFAULT 1,
    last_login_at INTEGER,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    id         TEXT PRIMARY KEY,
    user_id    INTEGER NOT NULL REFERENCES users (id),
    refresh_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    ended_at   INTEGER
) STRICT;

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL
) STRICT;
