-- Every name that a collector bears or bore, without regard to case: another may not have it. Names
-- of before that collide are kept: the collector that had it first has it here, the others none.
CREATE TABLE names (
    key          text PRIMARY KEY,
    collector_id uuid NOT NULL REFERENCES collectors (id)
);
CREATE INDEX names_of_collector ON names (collector_id);
CREATE INDEX collectors_by_thumbprint ON collectors (thumbprint);

-- What lets hosts register. The mark is a keyed hash of the secret.
CREATE TABLE registration_secrets (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    mark         bytea NOT NULL UNIQUE,
    uses         bigint NOT NULL DEFAULT 0,
    uses_max     bigint,
    expires_at   timestamptz,
    reclaims     boolean NOT NULL DEFAULT false,
    collector_id uuid REFERENCES collectors (id),
    created_at   timestamptz NOT NULL,
    used_at      timestamptz,
    revoked_at   timestamptz
);

-- A host that a collector has brought with a replay is a server of its own, also under the
-- collector's own host name.
ALTER TABLE servers ADD COLUMN brought boolean NOT NULL DEFAULT false;
UPDATE servers SET brought = true
  FROM collectors c
 WHERE c.id = servers.collector_id AND lower(c.hostname) <> lower(servers.hostname);
ALTER TABLE servers DROP CONSTRAINT servers_collector_id_hostname_key;
ALTER TABLE servers ADD UNIQUE (collector_id, hostname, brought);
