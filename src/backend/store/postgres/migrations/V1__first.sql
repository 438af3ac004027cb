CREATE TABLE keys (
    singleton   integer PRIMARY KEY CHECK (singleton = 1),
    fingerprint text NOT NULL
);

CREATE TABLE collectors (
    id                     uuid PRIMARY KEY,
    name                   text NOT NULL UNIQUE,
    hostname               text NOT NULL,
    address                text,
    version                text,
    sealed_secret          bytea NOT NULL,
    thumbprint             text,
    certificate_expires_at timestamptz,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    last_seen_at           timestamptz,
    deregistered_at        timestamptz,
    metrics_total          bigint NOT NULL DEFAULT 0,
    report                 text
);

CREATE TABLE servers (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collector_id uuid NOT NULL UNIQUE REFERENCES collectors (id),
    name         text NOT NULL,
    hostname     text NOT NULL,
    environment  text NOT NULL DEFAULT 'production',
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);

-- One row per accepted push, kept for ever: a batch id is refused as known for ever.
CREATE TABLE pushes (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collector_id uuid NOT NULL REFERENCES collectors (id),
    batch_id     text,
    received_at  timestamptz NOT NULL,
    metrics      bigint NOT NULL,
    rejected     text,
    UNIQUE (collector_id, batch_id)
);
CREATE INDEX pushes_by_time ON pushes (collector_id, received_at, metrics);

-- The collector of a metric is its push's.
CREATE TABLE metrics (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    push_id   bigint NOT NULL REFERENCES pushes (id),
    server_id bigint NOT NULL REFERENCES servers (id),
    type      text NOT NULL,
    database  text,
    at        timestamptz NOT NULL,
    document  jsonb NOT NULL
);
CREATE INDEX metrics_by_server ON metrics (server_id, type, at, database, id);

CREATE TABLE lost (
    collector_id uuid NOT NULL REFERENCES collectors (id),
    queue_id     uuid NOT NULL,
    first        bigint NOT NULL,
    last         bigint NOT NULL,
    records      bigint NOT NULL,
    reason       text NOT NULL,
    at           timestamptz NOT NULL,
    PRIMARY KEY (collector_id, queue_id, first, last)
);

CREATE TABLE configs (
    collector_id uuid NOT NULL REFERENCES collectors (id),
    version      bigint NOT NULL,
    text         text NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_by   text NOT NULL,
    PRIMARY KEY (collector_id, version)
);

CREATE TABLE users (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username      text NOT NULL UNIQUE,
    email         text NOT NULL,
    full_name     text,
    role          text NOT NULL CHECK (role IN ('admin', 'user', 'viewer')),
    password_hash text NOT NULL,
    is_active     boolean NOT NULL DEFAULT true,
    last_login_at timestamptz,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);

CREATE TABLE sessions (
    id         uuid PRIMARY KEY,
    user_id    bigint NOT NULL REFERENCES users (id),
    refresh_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz
);

CREATE TABLE audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL,
    actor   text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL
);
