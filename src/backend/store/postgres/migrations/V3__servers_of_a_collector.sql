-- A collector brings metrics of more than one host when it replays what another has left: a server
-- is a collector and a host name.
ALTER TABLE servers DROP CONSTRAINT servers_collector_id_key;
ALTER TABLE servers ADD UNIQUE (collector_id, hostname);
