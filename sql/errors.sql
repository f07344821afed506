-- Each error that a caller can make: SQLSTATE, message, detail, hint.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE FUNCTION ok() RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION two(jsonb, int) RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION wants_text(text) RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION wants_json(json) RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION is_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION is_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE AGGREGATE is_aggregate(jsonb) (SFUNC = jsonb_concat, STYPE = jsonb);
CREATE FUNCTION pg_temp.temporary() RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;

-- the command
CALL raises($$ SELECT jobqueue_enqueue('') $$);
CALL raises($$ SELECT jobqueue_enqueue('  -- only a comment') $$);
CALL raises($$ SELECT jobqueue_enqueue(';') $$);
CALL raises($$ SELECT jobqueue_enqueue('no_such_function') $$);
CALL raises($$ SELECT jobqueue_enqueue('no_such_schema.ok') $$);
CALL raises($$ SELECT jobqueue_enqueue('a.b.c.d') $$);
CALL raises($$ SELECT jobqueue_enqueue('vacuum') $$);
CALL raises($$ SELECT jobqueue_enqueue('COMMIT') $$);
CALL raises($$ SELECT jobqueue_enqueue('two') $$);
CALL raises($$ SELECT jobqueue_enqueue('public.wants_text') $$);
CALL raises($$ SELECT jobqueue_enqueue('wants_json') $$);
CALL raises($$ SELECT jobqueue_enqueue('is_trigger') $$);
CALL raises($$ SELECT jobqueue_enqueue('is_event') $$);
CALL raises($$ SELECT jobqueue_enqueue('is_aggregate') $$);
CALL raises($$ SELECT jobqueue_enqueue('pg_catalog.row_number') $$);
CALL raises($$ SELECT jobqueue_enqueue('pg_temp.temporary') $$);
CALL raises($$ SELECT jobqueue_enqueue('"unclosed') $$);
-- a syntax error is shown in the command
SELECT jobqueue_enqueue(
	'SELEC 1');
\set VERBOSITY default
SELECT jobqueue_enqueue(
	'SELECT 1; SELECT 2 FRM x');
SELECT jobqueue_enqueue('ok()');
SELECT jobqueue_enqueue_many('SELECT ''', ARRAY['1']::jsonb[]);
\set VERBOSITY terse
CALL raises($$ SELECT jobqueue_enqueue('SELECT ''unclosed') $$);
-- no transaction control
CALL raises($$ SELECT jobqueue_enqueue('BEGIN; SELECT 1; COMMIT') $$);
CALL raises($$ SELECT jobqueue_enqueue('COMMIT;') $$);
CALL raises($$ SELECT jobqueue_enqueue('SELECT 1; SAVEPOINT a') $$);
CALL raises($$ SELECT jobqueue_enqueue('PREPARE TRANSACTION ''x''') $$);
CALL raises($$ SELECT jobqueue_enqueue('COPY ran TO STDOUT') $$);
CALL raises($$ SELECT jobqueue_enqueue('COPY ran FROM STDIN') $$);
CALL raises($$ SELECT jobqueue_enqueue('VACUUM; SELECT 1') $$);
CALL raises($$ SELECT jobqueue_enqueue('SELECT 1; CREATE INDEX CONCURRENTLY ON ran (what)') $$);

-- names and keys
CALL raises($$ SELECT jobqueue_enqueue('ok', queue => '') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', queue => 'a b') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', queue => 'größe') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', queue => repeat('q', 64)) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', queue => repeat('q', 63), run_at => '2999-01-01') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', key => '') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', key => repeat('k', 256)) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', key => repeat('ö', 128)) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', key => repeat('k', 255), run_at => '2999-01-01') $$);

-- numbers, moments, intervals
CALL raises($$ SELECT jobqueue_enqueue('ok', priority => 32768) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', priority => -32769) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', max_attempts => 0) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', max_attempts => -1) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', max_attempts => 32768) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', run_at => 'infinity') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', expires_at => '-infinity') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', timeout => '-1 s') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', timeout => '101 years') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', timeout => '2147483647 days') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', keep => '-1 day') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', keep => '1000 years') $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', tags => ARRAY['a', NULL]) $$);
CALL raises($$ SELECT jobqueue_enqueue('ok', tags => '{{a,b},{c,d}}') $$);

-- args
SET jobqueue.max_args_size = '1kB';
CALL raises($$ SELECT jobqueue_enqueue('ok', to_jsonb(repeat('x', 2000))) $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', ARRAY['1', to_jsonb(repeat('x', 2000))]) $$);
RESET jobqueue.max_args_size;
CALL raises($$ SELECT jobqueue_enqueue_many('ok', NULL) $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', '{1,2}', keys => '{a}') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', '{1,2}', keys => '{a,""}') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', '{1}', queue => 'a b') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', '{1}', priority => 32768) $$);
SELECT count(*) FROM jobqueue_job WHERE run_at IS NULL;

-- an argument that does not exist
CALL raises($$ SELECT jobqueue_enqueue('ok', no_such_argument => 1) $$);

-- no right to call the function, or to enqueue at all
CREATE ROLE regress_jq_user;
CREATE ROLE regress_jq_nobody;
SELECT jobqueue_grant('regress_jq_user', 'use');
REVOKE EXECUTE ON FUNCTION ok() FROM PUBLIC;
CREATE SCHEMA closed;
CREATE FUNCTION closed.f() RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE PROCEDURE secret() LANGUAGE sql AS $$ SELECT 1 $$;
REVOKE EXECUTE ON PROCEDURE secret() FROM PUBLIC;
SET ROLE regress_jq_user;
CALL raises($$ SELECT jobqueue_enqueue('ok') $$);
CALL raises($$ SELECT jobqueue_enqueue('secret') $$);
CALL raises($$ SELECT jobqueue_enqueue('closed.f') $$);
SET ROLE regress_jq_nobody;
CALL raises($$ SELECT jobqueue_enqueue('ok') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('ok', '{1}') $$);
RESET ROLE;

-- where no job can be written
CREATE PROCEDURE read_only(statement text) LANGUAGE plpgsql AS $$ BEGIN
	COMMIT; SET TRANSACTION READ ONLY; CALL raises(statement); COMMIT; END $$;
CALL read_only($$ SELECT jobqueue_enqueue('ok') $$);
CALL read_only($$ SELECT jobqueue_enqueue_many('ok', '{1}') $$);
CALL read_only($$ SELECT jobqueue_cancel(1) $$);
CALL read_only($$ SELECT jobqueue_retry(1) $$);
CALL read_only($$ SELECT jobqueue_run(1) $$);
CALL read_only($$ SELECT jobqueue_adopt() $$);
CALL read_only($$ SELECT jobqueue_grant('regress_jq_user', 'use') $$);
CALL read_only($$ SELECT jobqueue_revoke('regress_jq_user', 'use') $$);
-- in a parallel worker, told that it is safe
CREATE FUNCTION said_safe() RETURNS bigint LANGUAGE sql PARALLEL SAFE AS $$ SELECT jobqueue_enqueue('ok') $$;
SELECT set_config(name, 'on', false) AS on FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
CALL raises($$ SELECT said_safe() $$);
CREATE FUNCTION explains_safe() RETURNS text LANGUAGE sql PARALLEL SAFE AS $$ SELECT jobqueue_explain(1) $$;
CALL raises($$ SELECT explains_safe() $$);
DROP FUNCTION explains_safe;
SELECT set_config(name, 'off', false) AS off FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
-- a timeout that is none
CALL raises($$ SELECT jobqueue_quiesce('-1 s') $$);
CALL raises($$ SELECT jobqueue_quiesce('101 years') $$);
CALL raises($$ SELECT jobqueue_quiesce('178000000 years') $$);
CALL raises($$ SELECT jobqueue_quiesce('2147483647 days') $$);
-- while an index is built, a view refreshed
CREATE FUNCTION indexed(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
	PERFORM public.jobqueue_enqueue('ok'); RETURN $1; END $$;
CREATE TABLE to_index AS SELECT 1 AS a;
CALL raises($$ CREATE INDEX ON to_index (indexed(a)) $$);

-- control
CALL raises($$ SELECT jobqueue_cancel(NULL) $$);
CALL raises($$ SELECT jobqueue_retry(NULL) $$);
CALL raises($$ SELECT jobqueue_run(NULL) $$);
CALL raises($$ SELECT jobqueue_run(0) $$);
CALL raises($$ SELECT jobqueue_quiesce('-1 s') $$);
CALL raises($$ SELECT jobqueue_quiesce('-1 month') $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_user', 'all') $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_user', 'USE') $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_user', NULL) $$);
CALL raises($$ SELECT jobqueue_grant(NULL, 'use') $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_no_such', 'use') $$);
CALL raises($$ SELECT jobqueue_grant('-', 'use') $$);
CALL raises($$ SELECT jobqueue_revoke('regress_jq_user', 'all') $$);
-- PREPARE TRANSACTION of one that has cancelled a job
SELECT jobqueue_enqueue('SELECT 1', run_at => '2999-01-01') AS id \gset
BEGIN;
SELECT jobqueue_cancel(:id);
PREPARE TRANSACTION 'regress_jq';
\echo :LAST_ERROR_SQLSTATE
-- settings
CALL raises($$ SET jobqueue.no_such = 1 $$);
CALL raises($$ SET jobqueue.max_workers = 1 $$);
CALL raises($$ SET jobqueue.capture_settings = 'a,,b' $$);
SET ROLE regress_jq_user;
CALL raises($$ SET jobqueue.capture_settings = 'a' $$);
CALL raises($$ SET jobqueue.max_args_size = '1GB' $$);
RESET ROLE;

-- outside consumers
CALL raises($$ SELECT jobqueue_fetch(NULL) $$);
CALL raises($$ SELECT jobqueue_fetch('a b') $$);
CALL raises($$ SELECT jobqueue_fetch('q', 0) $$);
CALL raises($$ SELECT jobqueue_fetch('q', 1001) $$);
CALL raises($$ SELECT jobqueue_fetch('q', wait => '-1 s') $$);
CALL raises($$ SELECT jobqueue_fetch('q', lease => '0') $$);
CALL raises($$ CALL jobqueue_fetch_wait('q') $$);
CALL raises($$ SELECT jobqueue_complete(NULL) $$);
CALL raises($$ SELECT jobqueue_complete(1) $$);
CALL raises($$ SELECT jobqueue_complete(1, token => '00000000-0000-0000-0000-000000000000') $$);
CALL raises($$ SELECT jobqueue_fail(1, retry_in => '-1 s') $$);
CALL raises($$ SELECT jobqueue_fail(1) $$);
CALL raises($$ SELECT jobqueue_release(1) $$);
CALL raises($$ SELECT jobqueue_extend(1, NULL, NULL) $$);
CALL raises($$ SELECT jobqueue_extend(1, '1 s', NULL) $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_user', 'use', 'q') $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_user', 'consume', 'a b') $$);
SELECT jobqueue_grant('regress_jq_user', 'consume', 'mine');
SET ROLE regress_jq_user;
CALL raises($$ SELECT jobqueue_fetch('other') $$);
CALL raises($$ SELECT jobqueue_fetch('mine') $$);
RESET ROLE;
SELECT jobqueue_revoke('regress_jq_user', 'consume');

-- run here and now; prepared
CREATE FUNCTION its_error(statement text, id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format(statement, id);
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || replace(SQLERRM, id::text, '#');
END $$;
SELECT jobqueue_enqueue(NULL, queue => 'nobody', run_at => 'tomorrow') AS id \gset
SELECT its_error('SELECT jobqueue_run(%s)', :id);
SELECT jobqueue_enqueue($$ SELECT its_error('SELECT jobqueue_run(%s)', (jobqueue_current()).id) $$, run_at => 'tomorrow') AS itself \gset
SELECT jobqueue_run(:itself);
SELECT jobqueue_enqueue('ok', key => 'prepared', run_at => 'tomorrow') AS keyed \gset
BEGIN;
SELECT jobqueue_run(:keyed);
PREPARE TRANSACTION 'regress_jq_errors';
SELECT jobqueue_cancel(:id), jobqueue_cancel(:keyed);
BEGIN;
SET LOCAL jobqueue.inline = on;
SELECT jobqueue_enqueue('ok', key => 'prepared') > 0 AS inline;
PREPARE TRANSACTION 'regress_jq_errors';
CREATE FUNCTION pg_temp.two_jsonb(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT $1 $$;
CALL raises($$ SELECT jobqueue_start_service('s', 'pg_temp.two_jsonb', '{}') $$);
DROP FUNCTION its_error;

SELECT count(*) FROM jobqueue_job WHERE run_at IS NULL;
SELECT count(jobqueue_cancel(id)) FROM jobqueue_job;
CALL drained();
DROP PROCEDURE read_only, secret;
DROP TABLE to_index;
DROP FUNCTION closed.f, indexed, said_safe, ok, two, wants_text, wants_json, is_trigger, is_event;
DROP AGGREGATE is_aggregate(jsonb);
DROP SCHEMA closed;
DROP OWNED BY regress_jq_user, regress_jq_nobody;
DROP ROLE regress_jq_user, regress_jq_nobody;
