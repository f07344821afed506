-- SET jobqueue.inline = on: each job is run at its enqueue.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

SELECT jobqueue_quiesce();
SET jobqueue.inline = on;

-- here and now, in this transaction
SELECT jobqueue_enqueue('note', '{"what": "one"}') > 0 AS id;
SELECT left_behind();
SELECT count(*) AS rows FROM jobqueue_job;
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "undone"}') > 0 AS id;
SELECT what FROM ran;
ROLLBACK;
SELECT left_behind();
-- in order, also those that would run later or wait
SELECT jobqueue_pause('inline');
SELECT count(*) FROM jobqueue_enqueue_many('note', ARRAY['{"what": "a"}', '{"what": "b"}']::jsonb[],
	keys => ARRAY['k', 'k'], queue => 'inline', run_at => now() + interval '1 year');
SELECT left_behind();
SELECT jobqueue_drop_queue('inline');
-- it is a job as any other
SELECT jobqueue_enqueue('SELECT to_jsonb(c) - ''id'' - ''enqueued_at'' || jsonb_build_object(''args'', $1) FROM jobqueue_current() c',
	'{"n": 1}', queue => 'q', key => 'k', max_attempts => 3, keep => '1 day') AS id \gset
SELECT state, result FROM jobqueue_history WHERE id = :id;
SELECT id FROM jobqueue_current();
SELECT outcome, attempt, pid = pg_backend_pid() AS here, lsn IS NOT NULL AS lsn, result::jsonb->'args' AS args, error FROM jobqueue_recent WHERE id = :id;
-- its end is known once it has committed
SELECT max(id) AS before FROM jobqueue_recent \gset
BEGIN;
SELECT jobqueue_enqueue('SELECT 1') > 0 AS id;
SAVEPOINT a;
SELECT jobqueue_enqueue('SELECT 2') > 0 AS id;
SAVEPOINT b;
SELECT jobqueue_enqueue('SELECT 3') > 0 AS id;
RELEASE b;
ROLLBACK TO a;
SAVEPOINT c;
SELECT jobqueue_enqueue('SELECT repeat(''x'', 600)') > 0 AS id;
SELECT jobqueue_enqueue('SELECT jobqueue_snooze(''1 day'')') AS snoozed \gset
RELEASE c;
SELECT count(*) FROM jobqueue_recent WHERE id > :before;
COMMIT;
SELECT outcome, length(result), left(result, 3) AS result FROM jobqueue_recent WHERE id > :before ORDER BY id;
SELECT jobqueue_cancel(:snoozed);
-- on the path it is enqueued with
CREATE FUNCTION sets() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	PERFORM public.jobqueue_enqueue('public.note', '{"what": "from elsewhere"}');
END $$;
SELECT sets();
SELECT left_behind();
-- what it enqueues is run, too
CREATE FUNCTION chain(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES (format('%s begins', args->>'n'));
	IF (args->>'n')::int > 1 THEN
		PERFORM jobqueue_enqueue('chain', jsonb_build_object('n', (args->>'n')::int - 1), key => 'chain');
	END IF;
	INSERT INTO ran (what) VALUES (format('%s ends', args->>'n'));
END $$;
SELECT jobqueue_enqueue('chain', '{"n": 3}', key => 'chain') > 0 AS id;
SELECT left_behind();

-- its error is that of the enqueue
CALL raises('SELECT jobqueue_enqueue(''SELECT 1/0'')');
CALL raises('SELECT jobqueue_enqueue(''SELECT jobqueue_discard(''''no use'''')'')');
DO $$
BEGIN
	PERFORM jobqueue_enqueue('VACUUM;');
EXCEPTION WHEN active_sql_transaction THEN
	RAISE INFO '%', regexp_replace(sqlerrm, '\d+', 'N');
END $$;
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "before"}') > 0 AS id;
SAVEPOINT s;
SELECT jobqueue_enqueue('SELECT 1/0');
ROLLBACK TO s;
COMMIT;
SELECT left_behind();
SELECT count(*) AS rows FROM jobqueue_job;
-- one that snoozes waits
SELECT jobqueue_enqueue('SELECT jobqueue_snooze(''1 day'')') AS id \gset
SELECT state FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_cancel(:id);
-- what it sets ends with it, as in a worker
SELECT jobqueue_enqueue('SET work_mem = ''77MB''; SELECT set_config(''search_path'', ''pg_catalog'', false)') > 0 AS id;
SHOW work_mem;
SHOW search_path;
-- a bulk in one transaction
SELECT count(jobqueue_enqueue('note', '{"what": "many"}')) FROM generate_series(1, 5000);
SELECT what, count(*) FROM ran GROUP BY 1;
TRUNCATE ran;
SELECT count(*) AS rows FROM jobqueue_job;

-- with the rights of the enqueuer, who needs none to set it
CREATE ROLE regress_jq_inline;
SELECT jobqueue_grant('regress_jq_inline', 'use');
RESET jobqueue.inline;
SET ROLE regress_jq_inline;
SET jobqueue.inline = on;
SELECT jobqueue_enqueue('note', '{"what": "mine"}') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''SELECT count(*) FROM pg_authid'')');
-- and no others, though the session is that of a greater role
CALL raises('SELECT jobqueue_enqueue(''RESET ROLE; SELECT count(*) FROM pg_authid'')');
CALL raises('SELECT jobqueue_enqueue(''SELECT set_config($$role$$, $$none$$, false)'')');
SELECT current_user = 'regress_jq_inline' AS still;
RESET ROLE;
SELECT what, role FROM ran;
TRUNCATE ran;
-- nor at the commit, in what it has deferred
CREATE TABLE deferred (via text);
CREATE TABLE fired (via text, role name);
CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
	BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
	INSERT INTO fired VALUES (NEW.via, current_user);
	IF NEW.via = 'again' THEN
		SET CONSTRAINTS ALL DEFERRED;
		INSERT INTO deferred VALUES ('by the trigger');
	END IF;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fires AFTER INSERT ON deferred
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fires();
GRANT ALL ON deferred, fired TO regress_jq_inline;
CREATE FUNCTION defines() RETURNS bigint LANGUAGE sql SECURITY DEFINER
	SET jobqueue.inline = on
	AS $$ SELECT jobqueue_enqueue('INSERT INTO deferred VALUES (''definer'')') $$;
ALTER FUNCTION defines() OWNER TO regress_jq_inline;
BEGIN;
SET ROLE regress_jq_inline;
SELECT jobqueue_enqueue('INSERT INTO deferred VALUES (''role'')') > 0 AS id;
RESET ROLE;
COMMIT;
SET ROLE regress_jq_inline;
SELECT jobqueue_enqueue('SET CONSTRAINTS ALL DEFERRED; INSERT INTO deferred VALUES (''set role'')') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''INSERT INTO deferred VALUES ($$again$$)'')');
CALL raises('SELECT jobqueue_enqueue(''DECLARE c CURSOR WITH HOLD FOR SELECT 1'')');
RESET ROLE;
SET SESSION AUTHORIZATION regress_jq_inline;
SELECT jobqueue_enqueue('INSERT INTO deferred VALUES (''authorization'')') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''RESET SESSION AUTHORIZATION; SELECT count(*) FROM pg_authid'')');
RESET SESSION AUTHORIZATION;
SELECT defines() > 0 AS id;
SELECT * FROM fired;
-- in a session of its role the commit is early enough
TRUNCATE fired;
BEGIN;
SELECT jobqueue_enqueue('INSERT INTO deferred VALUES (''own'')') > 0 AS id;
TABLE fired;
COMMIT;
SELECT via FROM fired;
DROP FUNCTION defines;
DROP TABLE deferred, fired;
DROP FUNCTION fires;
-- rows by hand are not run, nor is anything once it is off
INSERT INTO jobqueue_job (command, tags) VALUES ('note', '{by hand}');
RESET jobqueue.inline;
SELECT jobqueue_enqueue('note', tags => '{off}') > 0 AS id;
SELECT tags, state FROM jobqueue_jobs WHERE queue = 'default' AND state = 'ready' ORDER BY id;
SELECT jobqueue_cancel_where(NULL, 'ready', NULL);
SELECT jobqueue_resume();
-- in a worker only if it is set there
SELECT jobqueue_enqueue('chain', '{"n": 2}') > 0 AS id;
CALL drained();
SELECT left_behind();
SELECT jobqueue_enqueue('SET LOCAL jobqueue.inline = on; SELECT chain(''{"n": 2}'')') > 0 AS id;
CALL drained();
SELECT left_behind();

DROP OWNED BY regress_jq_inline;
DROP ROLE regress_jq_inline;
DROP FUNCTION sets, chain;
DELETE FROM jobqueue_archive;
