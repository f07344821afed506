-- What a command can be, and what becomes of its result.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE FUNCTION f_jsonb(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('got', args) $$;
CREATE FUNCTION f_none() RETURNS int LANGUAGE sql AS $$ SELECT 42 $$;
CREATE FUNCTION f_both() RETURNS text LANGUAGE sql AS $$ SELECT 'without' $$;
CREATE FUNCTION f_both(jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'with' $$;
CREATE FUNCTION f_strict(jsonb) RETURNS text STRICT LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO public.ran (what) VALUES ('strict'); RETURN 'called'; END $$;
CREATE FUNCTION f_text() RETURNS text LANGUAGE sql AS $$ SELECT E'a "text"\n' $$;
CREATE FUNCTION f_null() RETURNS text LANGUAGE sql AS $$ SELECT NULL::text $$;
CREATE FUNCTION f_void() RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION f_array() RETURNS int[] LANGUAGE sql AS $$ SELECT '{1,NULL,3}'::int[] $$;
CREATE FUNCTION f_domain() RETURNS small LANGUAGE sql AS $$ SELECT 7::small $$;
CREATE FUNCTION f_composite() RETURNS pair LANGUAGE sql AS $$ SELECT 1, 'x' $$;
CREATE FUNCTION f_record() RETURNS record LANGUAGE sql AS $$ SELECT 1 AS a, 'x' AS b $$;
CREATE FUNCTION f_out(OUT a int, OUT b text) LANGUAGE sql AS $$ SELECT 2, 'y' $$;
CREATE FUNCTION f_set() RETURNS SETOF int LANGUAGE plpgsql AS $$ BEGIN
	FOR i IN 1..3 LOOP INSERT INTO public.ran (what) VALUES ('set ' || i); RETURN NEXT i; END LOOP; END $$;
CREATE FUNCTION f_table() RETURNS TABLE (a int, b text) LANGUAGE sql AS $$ VALUES (1, 'x'), (2, 'y') $$;
CREATE FUNCTION f_settings() RETURNS text SET work_mem = '123MB' LANGUAGE sql AS $$ SELECT current_setting('work_mem') $$;
CREATE FUNCTION f_numeric() RETURNS numeric LANGUAGE sql AS $$ SELECT 0.10 $$;
CREATE SCHEMA "Odd schema";
CREATE FUNCTION "Odd schema"."F ""x""."(jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'odd' $$;

-- functions
SELECT count(jobqueue_enqueue(c, '{"x": 1}', queue => 'functions', keep => '1 day', max_attempts => 1))
FROM unnest(ARRAY['f_jsonb', 'f_none', 'f_both', 'f_strict', 'f_text', 'f_null', 'f_void', 'f_array',
	'f_domain', 'f_composite', 'f_record', 'f_out', 'f_set', 'f_table', 'f_settings', 'f_numeric',
	'  PUBLIC . F_None ', '"Odd schema"."F ""x""."', 'pg_catalog.pg_client_encoding']) c;
SELECT count(jobqueue_enqueue(c, queue => 'functions', keep => '1 day', max_attempts => 1))
FROM unnest(ARRAY['f_jsonb', 'f_strict']) c;
CALL drained();
SELECT command, args, state, result FROM jobqueue_history WHERE queue = 'functions' ORDER BY id;
-- the strict one ran once, the set to its end
SELECT * FROM left_behind() AS what ORDER BY what;

-- the function that was on the caller's path, whatever stands before it later
CREATE SCHEMA before;
SET search_path = before, public;
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('f_none', queue => 'path', keep => '1 day') > 0 AS id;
CREATE FUNCTION before.f_none() RETURNS int LANGUAGE sql AS $$ SELECT -1 $$;
SELECT jobqueue_enqueue('f_none', queue => 'path', keep => '1 day') > 0 AS id;
SELECT jobqueue_enqueue('SELECT f_none()', queue => 'path', keep => '1 day') > 0 AS id;
SELECT jobqueue_enqueue('SHOW search_path', queue => 'path', keep => '1 day') > 0 AS id;
RESET search_path;
SELECT jobqueue_enqueue('SELECT f_none()', queue => 'path', keep => '1 day') > 0 AS id;
SELECT jobqueue_resume();
CALL drained();
SELECT command, result FROM jobqueue_history WHERE queue = 'path' ORDER BY id;

-- SQL text
CREATE TABLE target (a int, b text);
SELECT count(jobqueue_enqueue(c, '{"a": 5, "list": [1, 2]}', queue => 'text', key => 'in order', keep => '1 day', max_attempts => 1))
FROM unnest(ARRAY[
	'SELECT $1->>''a''', 'select ($1->>''a'')::int + 1, ''second column''',
	'INSERT INTO target VALUES (($1->>''a'')::int, ''one'') RETURNING a',
	'INSERT INTO target VALUES (6, ''two'')',
	'INSERT INTO target SELECT value::int, ''list'' FROM jsonb_array_elements($1->''list''); SELECT count(*) FROM target',
	'CREATE TABLE made (x int); INSERT INTO made VALUES (1); SELECT x FROM made; DROP TABLE made',
	'SELECT a FROM target ORDER BY a', 'SELECT a FROM target WHERE false', 'SELECT NULL',
	'VALUES (1, 2), (3, 4)', 'TABLE target LIMIT 1', 'SHOW server_encoding',
	'WITH gone AS (DELETE FROM target WHERE a < 5 RETURNING a) SELECT count(*) FROM gone',
	'DO $do$ BEGIN INSERT INTO target VALUES (9, ''do''); END $do$',
	'-- a comment' || E'\n' || 'SELECT 1 /* and another */;;', 'SELECT (1, ''x'')::pair', 'SELECT now() > ''2000-01-01''',
	'CREATE TEMP TABLE mine (x int)', 'SELECT to_regclass(''mine'') IS NULL',
	'SET work_mem = ''99MB''; SHOW work_mem', 'SHOW work_mem',
	'SELECT 1 WHERE $1 IS NULL', 'TABLE made']) c;
CALL drained();
SELECT command, state, result, errors->0->>'error' AS error FROM jobqueue_history WHERE queue = 'text' ORDER BY id;
SELECT * FROM target ORDER BY a;

-- the effects of several statements come together or not at all
SELECT jobqueue_enqueue('INSERT INTO target VALUES (100); SELECT 1/0', queue => 'text', max_attempts => 1) > 0 AS id;
CALL drained();
SELECT count(*) FROM target WHERE a = 100;

-- statements that cannot run in a block: one attempt unless told otherwise
CREATE PROCEDURE p_commits(n jsonb) LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO public.ran (what) VALUES ('before commit'); COMMIT;
	INSERT INTO public.ran (what) VALUES ('rolled back'); ROLLBACK;
	INSERT INTO public.ran (what) VALUES ('after, with ' || n::text); END $$;
CREATE PROCEDURE p_fails() LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO public.ran (what) VALUES ('committed before the error'); COMMIT;
	INSERT INTO public.ran (what) VALUES ('lost'); RAISE 'failed on purpose'; END $$;
SELECT count(jobqueue_enqueue(c, '1', queue => 'outside', key => 'in order', keep => '1 day'))
FROM unnest(ARRAY['VACUUM target', 'VACUUM (ANALYZE) target;', 'CREATE INDEX CONCURRENTLY target_a ON target (a)',
	'REINDEX INDEX CONCURRENTLY target_a', 'DROP INDEX CONCURRENTLY target_a',
	'CALL p_commits($1)', 'CALL p_fails()', 'VACUUM no_such_table']) c;
SELECT jobqueue_enqueue(c, queue => 'outside', key => 'in order', keep => '1 day') > 0 AS inside
FROM unnest(ARRAY['ANALYZE target', 'REINDEX (CONCURRENTLY off) TABLE target']) c;
CALL raises($$ SELECT jobqueue_enqueue('REINDEX (CONCURRENTLY maybe) TABLE target') $$);
CALL drained();
SELECT command, state, max_attempts, errors->0->>'error' AS error FROM jobqueue_jobs WHERE queue = 'outside' ORDER BY id;
SELECT * FROM left_behind() AS what;
-- a quote that is not closed makes no name
CALL raises($$ SELECT jobqueue_enqueue('"') $$);
CALL raises($$ SELECT jobqueue_enqueue('public."f""') $$);
-- which statements those are
CREATE TABLE parted (a int) PARTITION BY RANGE (a);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE INDEX parted_a ON parted (a);
SELECT count(jobqueue_enqueue(c, queue => 'statements', run_at => 'tomorrow'))
FROM unnest(ARRAY['CLUSTER;', 'CLUSTER target USING target_a', 'REINDEX SCHEMA public', 'REINDEX TABLE target',
	'REINDEX TABLE parted', 'REINDEX INDEX public.parted_a', 'REINDEX INDEX parted_1_a_idx', 'CLUSTER parted USING parted_a',
	'CLUSTER nowhere.parted USING parted_a', 'REINDEX TABLE nowhere', 'REINDEX (VERBOSE) INDEX target_a', 'ALTER TABLE target DETACH PARTITION part CONCURRENTLY',
	'ALTER TABLE target DETACH PARTITION part', 'ALTER TABLE target ADD b int', 'ALTER DATABASE d SET TABLESPACE pg_default',
	'ALTER DATABASE d CONNECTION LIMIT 1', 'ALTER SYSTEM RESET work_mem', 'CREATE DATABASE d', 'DROP DATABASE d',
	'CREATE TABLESPACE t LOCATION ''/''', 'DROP TABLESPACE t', 'CREATE SUBSCRIPTION s CONNECTION '''' PUBLICATION p',
	'ALTER SUBSCRIPTION s ENABLE', 'DROP SUBSCRIPTION s', 'DROP INDEX target_a']) c;
SELECT CASE max_attempts WHEN 1 THEN 'outside' ELSE 'in a block' END AS runs, command
FROM jobqueue_jobs WHERE queue = 'statements' ORDER BY id;
DELETE FROM jobqueue_job WHERE queue = 'statements';
-- of partitioned tables each partition has a transaction of its own; later it may be another table
SELECT count(jobqueue_enqueue(c, queue => 'parted', key => 'in order')) FROM unnest(ARRAY['REINDEX TABLE parted', 'REINDEX INDEX parted_a']) c;
CALL drained();
DROP TABLE parted;
CREATE TABLE parted (a int);
CREATE INDEX parted_a ON parted (a);
SELECT jobqueue_enqueue('REINDEX TABLE parted', queue => 'parted', key => 'in order', run_at => 'tomorrow') > 0 AS id;
SELECT jobqueue_enqueue('CLUSTER parted USING parted_a', queue => 'parted', key => 'in order', run_at => 'tomorrow') > 0 AS id;
SELECT CASE max_attempts WHEN 1 THEN 'outside' ELSE 'in a block' END AS runs, command FROM jobqueue_jobs WHERE queue = 'parted' AND state = 'scheduled' ORDER BY id;
-- also by hand, whatever the table is
UPDATE jobqueue_job SET kind = 'x', run_at = now() WHERE queue = 'parted';
CALL drained();
SELECT outcome, error FROM jobqueue_recent WHERE queue = 'parted' ORDER BY id;
DROP TABLE parted;
-- a CALL among others is in their transaction, and may not commit
SELECT jobqueue_enqueue('CALL p_commits($1); SELECT 1', '1', queue => 'outside', max_attempts => 1) > 0 AS id;
CALL drained();
SELECT state, errors->0->>'sqlstate' AS sqlstate, errors->0->>'error' AS error
FROM jobqueue_history WHERE queue = 'outside' AND command LIKE '%; SELECT 1';
SELECT * FROM left_behind() AS what;

-- procedures by name
CREATE PROCEDURE p_args(jsonb) LANGUAGE sql AS $$ INSERT INTO public.ran (what) VALUES ('procedure with ' || $1::text) $$;
CREATE PROCEDURE p_none() LANGUAGE sql AS $$ INSERT INTO public.ran (what) VALUES ('procedure') $$;
CREATE PROCEDURE p_inout(INOUT x jsonb) LANGUAGE plpgsql AS $$ BEGIN x := x || '[2]'; END $$;
SELECT jobqueue_enqueue('p_args', '1', queue => 'procedures', keep => '1 day', key => 'in order') > 0 AS id;
SELECT jobqueue_enqueue('p_none', queue => 'procedures', keep => '1 day', key => 'in order') > 0 AS id;
SELECT jobqueue_enqueue('p_inout', '[1]', queue => 'procedures', keep => '1 day', key => 'in order') > 0 AS id;
CALL drained();
SELECT command, state, result FROM jobqueue_history WHERE queue = 'procedures' ORDER BY id;
SELECT * FROM left_behind() AS what;

-- errors: history of each attempt, with detail, hint and context
CREATE FUNCTION f_fails() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	RAISE EXCEPTION 'failed on purpose' USING ERRCODE = 'XX123', DETAIL = 'a detail', HINT = 'a hint'; END $$;
SELECT jobqueue_enqueue('f_fails', queue => 'failing', max_attempts => 2) > 0 AS id;
CALL drained();
SELECT state, reason, attempt, e->>'attempt' AS n, e->>'sqlstate' AS sqlstate, e->>'error' AS error, e->>'detail' AS detail,
	e->>'hint' AS hint, e->>'context' AS context
FROM jobqueue_history, jsonb_array_elements(errors) e WHERE queue = 'failing' ORDER BY 4;
-- at commit, at the time-out, gone meanwhile
CREATE TABLE deferred (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('INSERT INTO deferred VALUES (1), (1)', queue => 'ends', max_attempts => 1) > 0 AS id;
SELECT jobqueue_enqueue('SELECT pg_sleep(3600)', queue => 'ends', max_attempts => 1, timeout => '10 ms') > 0 AS id;
SELECT jobqueue_enqueue('f_void', queue => 'ends', max_attempts => 1) > 0 AS id;
SELECT jobqueue_enqueue('f_null', queue => 'ends', max_attempts => 1, keep => '1 day') > 0 AS id;
DROP FUNCTION f_void();
CREATE OR REPLACE FUNCTION f_null() RETURNS text LANGUAGE sql AS $$ SELECT 'new form' $$;
SELECT jobqueue_resume();
CALL drained();
SELECT command, state, result, errors->0->>'sqlstate' AS sqlstate, errors->0->>'error' AS error, errors->0->>'hint' AS hint
FROM jobqueue_history WHERE queue = 'ends' ORDER BY id;

-- what the look at enqueue cannot know: what the function has become
SELECT jobqueue_quiesce();
CREATE FUNCTION f_changes() RETURNS void LANGUAGE sql AS '';
SELECT jobqueue_enqueue('f_changes', queue => 'changed', max_attempts => 1) > 0 AS id;
-- twice, as texts are kept from the second time on; such a long one never
SELECT jobqueue_enqueue('SELECT 1 /* ' || repeat('long ', 20000) || '*/', queue => 'long', keep => '1 day') > 0 AS id
FROM generate_series(1, 3);
DROP FUNCTION f_changes();
CREATE FUNCTION f_changes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SELECT jobqueue_resume();
CALL drained();
SELECT left(command, 20) AS command, state, errors->0->>'sqlstate' AS sqlstate, errors->0->>'error' AS error, errors->0->>'hint' AS hint
FROM jobqueue_history WHERE queue = 'changed' ORDER BY id;
SELECT count(*), max(result::text) FROM jobqueue_history WHERE queue = 'long';
DROP FUNCTION f_changes();

DROP TABLE target, deferred;
DROP FUNCTION before.f_none, "Odd schema"."F ""x""."(jsonb);
DROP SCHEMA before, "Odd schema";
DROP PROCEDURE p_commits, p_fails, p_args, p_none, p_inout;
DROP FUNCTION f_jsonb, f_none, f_both(), f_both(jsonb), f_strict, f_text, f_null, f_array, f_domain,
	f_composite, f_record, f_out, f_set, f_table, f_settings, f_numeric, f_fails;
DROP TYPE pair;
DROP DOMAIN small;
