-- on_dead: a function that is called with each dead job of a queue.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE FUNCTION bury(job jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.ran (what) VALUES (concat_ws(' ', job->>'queue', job->>'owner', job->>'args', job->>'attempt',
		job->>'reason', job->'errors'->-1->>'error'))
$$;
CREATE FUNCTION bury_badly(job jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no grave'; END $$;
CREATE FUNCTION no_args() RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE PROCEDURE on_dead_done() LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_until($c$ NOT EXISTS (SELECT FROM jobqueue_job WHERE queue IN ('mortal', 'on_dead')) $c$);
END $$;
-- looked up when it is set
CALL raises($$SELECT jobqueue_configure('mortal', on_dead => 'no_such_function')$$);
CALL raises($$SELECT jobqueue_configure('mortal', on_dead => 'no_args')$$);
CALL raises($$SELECT jobqueue_configure('mortal', on_dead => 'SELECT 1')$$);
CALL raises($$SELECT jobqueue_configure('on_dead', on_dead => 'bury')$$);
SELECT jobqueue_configure('mortal', on_dead => 'bury', max_attempts => 1);
SELECT queue, on_dead FROM jobqueue_queues WHERE queue = 'mortal';
-- in whatever way a job becomes dead
SELECT jobqueue_enqueue('SELECT 1/0', '{"n": 1}', queue => 'mortal') > 0 AS id;
CALL on_dead_done();
SELECT jobqueue_enqueue($$SELECT jobqueue_discard('unwanted')$$, '{"n": 2}', queue => 'mortal', max_attempts => 5) > 0 AS id;
CALL on_dead_done();
SELECT jobqueue_enqueue('SELECT pg_terminate_backend(pg_backend_pid())', '{"n": 3}', queue => 'mortal') > 0 AS id;
CALL on_dead_done();
BEGIN;
SELECT jobqueue_enqueue('SELECT pg_sleep(0)', '{"n": 4}', queue => 'mortal', unique_key => 'u') > 0 AS id;
SELECT jobqueue_enqueue('SELECT pg_sleep(0)', '{"n": 5}', queue => 'mortal', unique_key => 'u', on_conflict => 'reject') > 0 AS id;
COMMIT;
CALL on_dead_done();
SELECT regexp_replace(left_behind(), 'job \d+', 'job N');
-- not if it completes, is cancelled, or will be tried again
SELECT jobqueue_enqueue('SELECT 1', queue => 'mortal') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 1', queue => 'mortal', run_at => 'tomorrow') AS id \gset
SELECT jobqueue_cancel(:id);
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'mortal', max_attempts => 2) AS id \gset
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s AND attempt = 1)', :id));
SELECT jobqueue_cancel(:id) IS NOT NULL AS done;
CALL on_dead_done();
SELECT left_behind();
-- each time it becomes dead
SELECT id AS id FROM jobqueue_history WHERE queue = 'mortal' AND state = 'dead' ORDER BY id LIMIT 1 \gset
SELECT jobqueue_retry(:id);
CALL on_dead_done();
SELECT left_behind();
-- a death that is rolled back was none
BEGIN;
SELECT jobqueue_enqueue('SELECT 1', queue => 'mortal', unique_key => 'u', run_at => 'tomorrow') AS id \gset
SELECT jobqueue_enqueue('SELECT 1', queue => 'mortal', unique_key => 'u', on_conflict => 'reject') > 0 AS id;
SELECT count(*) FROM jobqueue_jobs WHERE queue = 'on_dead';
ROLLBACK;
SELECT count(*) FROM jobqueue_jobs WHERE queue = 'on_dead';
-- one that fails is tried again, and nobody is told of its own death
SELECT jobqueue_configure('mortal', on_dead => 'bury_badly');
SELECT jobqueue_configure('on_dead', max_attempts => 2, backoff_base => '0');
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'mortal') > 0 AS id;
CALL on_dead_done();
SELECT queue, state, attempt, command, errors->-1->>'error' AS error FROM jobqueue_history WHERE queue = 'on_dead';
SELECT jobqueue_configure('mortal', on_dead => '');
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'mortal') > 0 AS id;
CALL on_dead_done();
SELECT left_behind();
-- it runs as the role that has named it, and sees of a job what that may see
CREATE ROLE regress_jq_undertaker;
CREATE ROLE regress_jq_mortal;
GRANT USAGE ON SCHEMA public TO regress_jq_undertaker, regress_jq_mortal;
SELECT jobqueue_grant('regress_jq_undertaker', 'admin');
SELECT jobqueue_grant('regress_jq_mortal', 'use');
REVOKE EXECUTE ON FUNCTION bury_badly FROM PUBLIC;
SET ROLE regress_jq_undertaker;
CALL raises($$SELECT jobqueue_configure('mortal', on_dead => 'bury_badly')$$);
SELECT jobqueue_configure('mortal', on_dead => 'bury');
SET ROLE regress_jq_mortal;
CALL raises($$SELECT jobqueue_configure('mortal', on_dead => 'bury')$$);
SELECT jobqueue_enqueue('SELECT 1/0', '{"secret": 1}', queue => 'mortal') > 0 AS id;
RESET ROLE;
CALL on_dead_done();
GRANT regress_jq_mortal TO regress_jq_undertaker;
SET ROLE regress_jq_mortal;
SELECT jobqueue_enqueue('SELECT 1/0', '{"secret": 2}', queue => 'mortal') > 0 AS id;
RESET ROLE;
CALL on_dead_done();
SELECT what, role FROM ran ORDER BY n;
DELETE FROM ran;
-- a function that is gone is a failure like others
DROP FUNCTION bury;
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'mortal', tags => '{after_drop}') > 0 AS id;
CALL on_dead_done();
SELECT state, errors->-1->>'error' AS error FROM jobqueue_history WHERE queue = 'on_dead' ORDER BY id DESC LIMIT 1;

SELECT jobqueue_drop_queue('mortal');
SELECT jobqueue_drop_queue('on_dead');
SELECT jobqueue_purge('mortal', NULL) > 0 AS purged, jobqueue_purge('on_dead', NULL) > 0 AS purged;
SELECT jobqueue_revoke('regress_jq_undertaker', 'admin');
SELECT jobqueue_revoke('regress_jq_mortal', 'use');
DROP OWNED BY regress_jq_undertaker, regress_jq_mortal;
DROP ROLE regress_jq_undertaker, regress_jq_mortal;
DROP FUNCTION bury_badly, no_args;
DROP PROCEDURE on_dead_done;
