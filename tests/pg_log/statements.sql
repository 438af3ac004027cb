-- Statements with a secret, geheim7, in every place that one can stand; each line is sent by itself.
-- They leave nothing behind: they are made by several servers and several times.
-- What cannot be parsed or is not there.
SELEC 'geheim7'
SELECT 'geheim7
SELECT "geheim7
SELECT $geheim7$ x
SELECT /* geheim7
SELECT E'\xff geheim7'
SELECT U&'\zzzz geheim7'
SELECT geheim7
SELECT geheim7.a FROM t
SELECT t.geheim7 FROM t
SELECT * FROM geheim7
SELECT * FROM geheim7.t
SELECT * FROM geheim7.geheim7.t
SELECT geheim7()
SELECT geheim7(1, 'geheim7')
SELECT 1 geheim7, 2 geheim7 FROM t GROUP BY geheim7
SELECT a AS geheim7 FROM t ORDER BY geheim7 + 1
SELECT 'geheim7' + 1
SELECT 'geheim7'::text + 1
SELECT 'geheim7'::geheim7
SELECT CAST(1 AS geheim7)
SELECT a COLLATE "geheim7" FROM t
SELECT 1 OPERATOR(geheim7.+) 1
INSERT INTO t (geheim7) VALUES (1)
INSERT INTO t (a, a) VALUES ('geheim7', 'geheim7')
UPDATE t SET geheim7 = 1
DELETE FROM geheim7 USING t
DROP TABLE geheim7
DROP TABLE IF EXISTS geheim7, geheim7.geheim7
DROP FUNCTION geheim7(int)
DROP ROLE geheim7
DROP EXTENSION geheim7
ALTER TABLE t DROP COLUMN geheim7
ALTER TABLE t ADD CONSTRAINT geheim7 CHECK (a <> 'geheim7')
ALTER TABLE t ALTER b SET DEFAULT 'geheim7'
ALTER TABLE t ALTER a TYPE int USING a::int
TRUNCATE geheim7
LOCK TABLE geheim7
COMMENT ON TABLE geheim7 IS 'geheim7'
SECURITY LABEL FOR geheim7 ON TABLE t IS 'geheim7'
VACUUM geheim7
ANALYZE t (geheim7)
CLUSTER t USING geheim7
REINDEX TABLE geheim7
-- Rows and keys.
INSERT INTO t VALUES ('geheim7', 2)
INSERT INTO t VALUES ('geheim7 2', -1)
INSERT INTO t VALUES ('geheim7 3', 1, NULL)
INSERT INTO t VALUES ('geheim7 4', 'geheim7')
INSERT INTO child VALUES ('geheim7 5', now())
INSERT INTO child VALUES ('geheim7', 'geheim7')
INSERT INTO part VALUES ('geheim7')
DELETE FROM t WHERE a = 'geheim7' AND 1 / (b - 1) > 0
CREATE UNIQUE INDEX geheim7 ON t ((1), c); SELECT 'geheim7'::int
COPY t FROM PROGRAM 'echo geheim7'
COPY t FROM PROGRAM 'echo geheim7; exit 1'
COPY t (b) FROM PROGRAM 'echo geheim7'
COPY t (a, b) FROM PROGRAM 'printf "a\t-1geheim7\n"'
COPY t (a, b) FROM PROGRAM 'echo geheim7,geheim7,geheim7' WITH (FORMAT csv)
COPY t FROM '/geheim7'
COPY t TO '/geheim7/geheim7'
COPY t FROM 'geheim7'
COPY t FROM PROGRAM 'true' WITH (geheim7 'geheim7')
COPY (SELECT 'geheim7'::int) TO PROGRAM 'cat >/dev/null'
-- PL/pgSQL, and what is around it.
SELECT deep('geheim7')
SELECT deeper('geheim7')
DO $$ BEGIN RAISE 'geheim7' USING ERRCODE = '22012'; END $$
DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = 'geheim7'; END $$
DO $$ BEGIN RAISE EXCEPTION 'syntax error at or near "%" at character 8', 'geheim7'; END $$
DO $$ BEGIN RAISE geheim7; END $$
DO $$ BEGIN RAISE SQLSTATE 'GEHEI'; END $$
DO $$ BEGIN RAISE EXCEPTION '%'; END $$
DO $$ BEGIN ASSERT false, 'geheim7'; END $$
DO $$ BEGIN EXECUTE 'SELEC geheim7'; END $$
DO $$ BEGIN EXECUTE format('SELECT %L::int', 'geheim7'); END $$
DO $$ BEGIN PERFORM * FROM geheim7; END $$
DO $$ DECLARE x int := 'geheim7'; BEGIN END $$
DO $$ DECLARE geheim7 int; BEGIN geheim7 := 'geheim7'; END $$
DO $$ BEGIN SELECT a INTO STRICT geheim7 FROM t; END $$
DO $$ DECLARE x text; BEGIN SELECT a INTO STRICT x FROM t WHERE a = 'no geheim7'; END $$
DO $$ BEGIN CASE 'geheim7' WHEN 'x' THEN NULL; END CASE; END $$
DO $$ DECLARE c CURSOR FOR SELECT 'geheim7'::int; BEGIN OPEN c; FETCH c INTO STRICT geheim7; END $$
DO $$ DECLARE x t; BEGIN x.geheim7 := 1; END $$
DO $$ geheim7 $$
DO LANGUAGE geheim7 $$ geheim7 $$
CREATE FUNCTION geheim7() RETURNS int LANGUAGE plpgsql AS $$ BEGIN geheim7 END $$
CREATE FUNCTION geheim7() RETURNS int LANGUAGE sql AS $$ SELECT geheim7 $$
CREATE FUNCTION geheim7() RETURNS int LANGUAGE c AS '/geheim7', 'geheim7'
CREATE FUNCTION geheim7() RETURNS int LANGUAGE internal AS 'geheim7'
-- Settings, names of things, roles.
SET geheim7 = 'geheim7'
SET geheim7.x = 'geheim7'
SET work_mem = 'geheim7'
SET DateStyle = 'geheim7'
SET TIME ZONE 'geheim7'
SET client_encoding = 'geheim7'
SET search_path = 'geheim7', "geheim7
SET search_path = geheim7, public
SET default_tablespace = 'geheim7'
SET default_text_search_config = 'geheim7'
SET lc_monetary = 'geheim7'
SET log_destination = 'geheim7'
SET session_authorization = 'geheim7'
SET ROLE geheim7
SET LOCAL application_name = 'geheim7'
RESET geheim7.geheim7
SHOW geheim7
SELECT set_config('geheim7', 'geheim7', false)
SELECT current_setting('geheim7')
ALTER SYSTEM SET geheim7 = 'geheim7'
ALTER SYSTEM SET work_mem = 'geheim7'
ALTER DATABASE secrets SET work_mem = 'geheim7'
ALTER ROLE postgres SET geheim7 = 'geheim7'
ALTER ROLE geheim7 PASSWORD 'geheim7'
CREATE ROLE "geheim7 x" PASSWORD 'geheim7' VALID UNTIL 'geheim7'
CREATE ROLE "geheim7 y" LOGIN PASSWORD 'md5geheim7'; DROP ROLE "geheim7 y"
CREATE ROLE postgres PASSWORD 'geheim7'
CREATE ROLE pg_geheim7 PASSWORD 'geheim7'
GRANT geheim7 TO postgres
GRANT SELECT ON geheim7 TO postgres
GRANT SELECT ON t TO geheim7
CREATE DATABASE geheim7 TEMPLATE geheim7
CREATE DATABASE geheim7 ENCODING 'geheim7'
CREATE TABLESPACE geheim7 LOCATION '/geheim7'
CREATE SCHEMA pg_geheim7
CREATE EXTENSION geheim7
CREATE LANGUAGE geheim7
CREATE COLLATION geheim7 (locale = 'geheim7')
CREATE TYPE geheim7 AS (a geheim7)
ALTER TYPE mood ADD VALUE 'good'
ALTER TYPE mood RENAME VALUE 'geheim7' TO 'geheim7'
CREATE INDEX geheim7 ON t USING geheim7 (a)
CREATE INDEX geheim7 ON t (geheim7)
CREATE TABLE geheim7 (a text, a text)
CREATE TABLE geheim7 (a geheim7)
CREATE TABLE geheim7 (a text) WITH (geheim7 = 'geheim7')
CREATE TABLE geheim7 (LIKE geheim7)
CREATE TABLE p1 PARTITION OF part FOR VALUES FROM ('geheim7') TO ('geheim7')
CREATE VIEW geheim7 AS SELECT geheim7
CREATE RULE geheim7 AS ON SELECT TO geheim7 DO INSTEAD NOTHING
CREATE TRIGGER geheim7 AFTER INSERT ON t EXECUTE PROCEDURE geheim7('geheim7')
CREATE EVENT TRIGGER geheim7 ON geheim7 EXECUTE PROCEDURE geheim7()
CREATE AGGREGATE geheim7 (int) (SFUNC = geheim7, STYPE = int)
CREATE OPERATOR === (PROCEDURE = geheim7)
CREATE CAST (text AS mood) WITH FUNCTION geheim7(text)
CREATE TEXT SEARCH CONFIGURATION geheim7 (COPY = geheim7)
CREATE TEXT SEARCH DICTIONARY geheim7 (TEMPLATE = simple, geheim7 = 'geheim7')
CREATE TEXT SEARCH DICTIONARY geheim7 (TEMPLATE = ispell, DictFile = 'geheim7')
CREATE PUBLICATION geheim7 FOR TABLE geheim7
CREATE SUBSCRIPTION geheim7 CONNECTION 'geheim7' PUBLICATION geheim7
CREATE SUBSCRIPTION geheim7 CONNECTION 'host=/geheim7 password=geheim7' PUBLICATION geheim7
CREATE STATISTICS geheim7 ON geheim7, a FROM t
CREATE POLICY geheim7 ON geheim7
IMPORT FOREIGN SCHEMA geheim7 FROM SERVER geheim7 INTO geheim7
LOAD 'geheim7'
-- Transactions, cursors, prepared statements, channels.
PREPARE geheim7 AS SELECT 'geheim7'; EXECUTE geheim7; DEALLOCATE geheim7
PREPARE geheim7 (int) AS SELECT $1; SELECT 'geheim7'::int
EXECUTE geheim8 ('geheim7')
DEALLOCATE geheim8; SELECT 'geheim7'
DEALLOCATE ALL
BEGIN; DECLARE geheim7 CURSOR FOR SELECT 'geheim7'; FETCH ALL FROM geheim7; ROLLBACK
BEGIN; DECLARE geheim7 CURSOR FOR SELECT 'geheim7'::text; MOVE ALL FROM geheim7; CLOSE geheim7; COMMIT
FETCH FROM geheim7
CLOSE geheim7
BEGIN; SAVEPOINT geheim7; ROLLBACK TO geheim8
SAVEPOINT geheim7
BEGIN; SELECT 1/0 AS geheim7; SELECT 'geheim7'
BEGIN; INSERT INTO t VALUES ('geheim7 6', 1); PREPARE TRANSACTION 'geheim7'
ROLLBACK PREPARED 'geheim7'
COMMIT PREPARED 'geheim7'
BEGIN; BEGIN /* geheim7 */; COMMIT; COMMIT /* geheim7 */
LISTEN geheim7; NOTIFY geheim7, 'geheim7'; UNLISTEN geheim7
SELECT pg_notify('geheim7', repeat('geheim7', 2000))
-- Functions of values.
SELECT to_timestamp('geheim7', 'YYYY')
SELECT to_date('2026-geheim7', 'YYYY-MM')
SELECT to_number('geheim7', '9geheim7')
SELECT to_char(1, 'geheim7'), to_char(now(), 'geheim7')
SELECT 'x' ~ '(geheim7['
SELECT regexp_replace('geheim7', '(geheim7', '')
SELECT 'x' SIMILAR TO 'geheim7' ESCAPE 'geheim7'
SELECT 'x' LIKE 'geheim7\'
SELECT format('%geheim7', 1)
SELECT format('%I', NULL), format('%L%s', 'geheim7')
SELECT encode('geheim7', 'geheim7')
SELECT decode('geheim7', 'hex')
SELECT decode('geheim7!', 'base64')
SELECT convert_from('\xff6765', 'UTF8'), 'geheim7'
SELECT convert('geheim7', 'geheim7', 'UTF8')
SELECT '"1e400geheim7"'::float8
SELECT '99999999999999999999geheim7'::int8
SELECT ('1e400' || 'geheim7')::numeric
SELECT json_object('{geheim7}')
SELECT '{"geheim7": geheim7}'::jsonb
SELECT jsonb_set('{"a": 1}', '{geheim7', '1')
SELECT jsonb_path_query('{"a": 1}', 'strict $.geheim7')
SELECT jsonb_path_query('"geheim7"', '$.double()')
SELECT jsonb_populate_record(NULL::t, '{"a": "geheim7", "b": "geheim7"}')
SELECT * FROM json_to_record('{"a": "geheim7"}') AS x (a int)
SELECT xpath('geheim7[', '<geheim7/>')
SELECT xmlparse(DOCUMENT '<geheim7>')
SELECT to_tsquery('geheim7 geheim7')
SELECT to_tsvector('geheim7', 'x')
SELECT nextval('geheim7')
SELECT setval('geheim7', 1)
SELECT pg_read_file('/geheim7')
SELECT pg_ls_dir('/geheim7')
SELECT pg_stat_file('geheim7')
SELECT lo_import('/geheim7')
SELECT lo_export(1, '/geheim7')
SELECT pg_relation_size('geheim7')
SELECT pg_get_serial_sequence('geheim7', 'geheim7')
SELECT has_table_privilege('geheim7', 't', 'select')
SELECT has_table_privilege('postgres', 't', 'geheim7')
SELECT make_date(2026, 13, 1), 'geheim7'
SELECT make_interval(days => 'geheim7')
SELECT extract(geheim7 FROM now())
SELECT date_trunc('geheim7', now())
SELECT now() AT TIME ZONE 'geheim7'
SELECT array_fill('geheim7'::text, '{-1}')
SELECT '{geheim7'::text[]
SELECT ('{geheim7}'::text[])[1]::int
SELECT ROW('geheim7')::t
SELECT '(geheim7'::t
SELECT '(geheim7,geheim7,geheim7)'::t
SELECT chr(0), 'geheim7'
SELECT pg_create_logical_replication_slot('geheim7', 'geheim7')
SELECT pg_create_physical_replication_slot('GEHEIM7')
SELECT pg_drop_replication_slot('geheim7')
SELECT pg_replication_origin_drop('geheim7')
SELECT pg_logical_emit_message(false, 'geheim7', 'geheim7')
SELECT pg_create_restore_point('geheim7')
SELECT pg_export_snapshot(), 'geheim7'
SET TRANSACTION SNAPSHOT 'geheim7'
SELECT query_to_xml('SELECT geheim7', true, true, '')
SELECT ts_stat('SELECT geheim7')
SELECT ts_rewrite('a'::tsquery, 'SELECT geheim7')
SELECT a, 'geheim7' FROM t ORDER BY a, random()
EXPLAIN (geheim7) SELECT 1
EXPLAIN SELECT 'geheim7' FROM geheim7
SELECT ('x' || repeat('geheim7', 3))::varchar(3)::int
INSERT INTO t (a) SELECT repeat('geheim7', 100000)::varchar(3)::int
-- Modules of contrib.
SELECT hstore('geheim7')
SELECT dblink_connect('host=/geheim7 password=geheim7')
SELECT dblink_connect('geheim7')
SELECT dblink_connect('geheim7', 'geheim7=geheim7')
SELECT dblink('geheim7', 'SELECT geheim7')
SELECT dblink_exec('host={socket} user=postgres dbname=secrets', 'SELECT geheim7')
SELECT dblink_exec('host={socket} user=postgres dbname=secrets', 'INSERT INTO t VALUES (''geheim7'')')
SELECT * FROM dblink('host={socket} user=postgres dbname=secrets', 'SELECT ''geheim7''') AS x (a int)
SELECT * FROM dblink('host={socket} user=postgres dbname=geheim7', 'SELECT 1') AS x (a int)
SELECT dblink_fetch('geheim7', 1)
SELECT dblink_disconnect('geheim7')
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE f (a int) SERVER s OPTIONS (filename '/geheim7'); SELECT * FROM f
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE f (a int) SERVER s OPTIONS (program 'echo geheim7'); SELECT * FROM f
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE f (a int) SERVER s OPTIONS (filename '/dev/null', format 'geheim7')
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw OPTIONS (geheim7 'geheim7')
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '/geheim7'); CREATE USER MAPPING FOR postgres SERVER s OPTIONS (user 'geheim7', password 'geheim7'); CREATE FOREIGN TABLE f (a int) SERVER s; SELECT * FROM f
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{socket}', dbname 'secrets'); CREATE USER MAPPING FOR postgres SERVER s OPTIONS (user 'postgres'); CREATE FOREIGN TABLE f (geheim7 int) SERVER s OPTIONS (table_name 'geheim7'); SELECT * FROM f WHERE geheim7 = 7
BEGIN; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{socket}', dbname 'secrets'); CREATE USER MAPPING FOR postgres SERVER s OPTIONS (user 'postgres'); CREATE FOREIGN TABLE f (a int) SERVER s OPTIONS (table_name 't'); SELECT * FROM f
SELECT pgp_sym_decrypt('geheim7'::bytea, 'geheim7')
SELECT pgp_sym_encrypt('geheim7', 'geheim7', 'geheim7=geheim7')
SELECT dearmor('geheim7')
SELECT crypt('geheim7', 'geheim7')
SELECT gen_salt('geheim7')
SELECT digest('geheim7', 'geheim7')
SELECT encrypt('geheim7', 'geheim7', 'geheim7')
SELECT * FROM crosstab('SELECT geheim7') AS x (a text)
SELECT * FROM connectby('geheim7', 'geheim7', 'a', 'geheim7', 0) AS x (a text)
SELECT get_raw_page('geheim7', 0)
SELECT get_raw_page('t', 'geheim7', 0)
SELECT pgrowlocks('geheim7')
SELECT pgstattuple('geheim7')
SELECT pg_prewarm('t', 'geheim7')
SELECT bt_index_check('geheim7')
SELECT pg_visibility('geheim7')
SELECT 'geheim7'::citext = 1
SELECT levenshtein('geheim7', repeat('geheim7', 100))
SELECT unaccent('geheim7', 'x')
SELECT xslt_process('<geheim7', 'geheim7')
SELECT pg_file_write('/geheim7/geheim7', 'geheim7', false)
SELECT uuid_generate_v5('geheim7', 'geheim7')
SELECT set_limit('geheim7')
SELECT ltree2text('geheim7 !')
SELECT 'a=>geheim7,=>'::hstore
