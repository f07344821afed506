-- while_executing: two jobs of a unique_key never run at once; what becomes of
-- the later one.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, strategy text, state text,
	attempt int, reason text, sqlstate text, waits boolean);
CREATE FUNCTION hold(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ran (what) VALUES (args->>'what');
	PERFORM pg_advisory_xact_lock_shared(4712);
END $$;
CREATE PROCEDURE meet(mode text, strategy text) LANGUAGE plpgsql AS $$
DECLARE
	one bigint; two bigint; other bigint;
BEGIN
	PERFORM pg_advisory_lock(4712);
	one := jobqueue_enqueue('hold', '{"what": "one"}', queue => 'q', unique_key => 'k', unique_until => mode);
	COMMIT;
	CALL wait_until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND NOT granted)');
	two := jobqueue_enqueue('hold', '{"what": "two"}', queue => 'q', unique_key => 'k', unique_until => mode,
		unique_for => CASE strategy WHEN 'reschedule' THEN interval '1 hour' END, on_conflict => strategy);
	-- another key, another queue: they run meanwhile
	other := jobqueue_enqueue('note', '{"what": "other key"}', queue => 'q', unique_key => 'K', unique_until => mode);
	PERFORM jobqueue_enqueue('note', '{"what": "other queue"}', queue => 'p', unique_key => 'k', unique_until => mode);
	COMMIT;
	CALL wait_until(format('NOT EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s OR id > %s AND state IN (''ready'', ''running''))'
		' OR EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s AND state NOT IN (''ready'', ''running''))', two, two, two));
	INSERT INTO seen (strategy, state, attempt, reason, sqlstate, waits)
	SELECT strategy, state, j.attempt, regexp_replace(reason, 'job \d+', 'job N') ||
			CASE WHEN reason LIKE format('job %s of%%', one) THEN ' (it is)' ELSE '' END,
		errors->0->>'sqlstate', run_at > clock_timestamp() + interval '50 min'
	FROM jobqueue_jobs j WHERE id = two;
	COMMIT;
	PERFORM pg_advisory_unlock(4712);
	CALL wait_until('NOT EXISTS (SELECT FROM jobqueue_jobs WHERE state IN (''ready'', ''running''))');
	PERFORM jobqueue_cancel_where('q', 'scheduled', NULL);
	DELETE FROM jobqueue_archive;
	IF EXISTS (SELECT FROM jobqueue_unique) THEN
		RAISE EXCEPTION 'a lock is left';
	END IF;
	COMMIT;
END $$;
CREATE PROCEDURE meet_all(mode text) LANGUAGE plpgsql AS $$
DECLARE
	s text;
BEGIN
	FOREACH s IN ARRAY '{skip,join,raise,replace,update,reject,reschedule,log}'::text[] LOOP
		CALL meet(mode, s);
	END LOOP;
END $$;
CALL meet_all('while_executing');
SELECT strategy, state, attempt, reason, sqlstate, waits FROM seen ORDER BY n;
SELECT what, count(*) FROM left_behind() AS what GROUP BY 1 ORDER BY 1;
TRUNCATE seen;
CALL meet_all('until_and_while_executing');
SELECT strategy, state, attempt, reason, sqlstate, waits FROM seen ORDER BY n;
SELECT what, count(*) FROM left_behind() AS what GROUP BY 1 ORDER BY 1;
TRUNCATE seen;

-- rescheduled, it runs when the other one has ended
SELECT pg_advisory_lock(4712);
SELECT jobqueue_enqueue('hold', '{"what": "one"}', unique_key => 'k', unique_until => 'while_executing') AS one \gset
CALL wait_until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND NOT granted)');
SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', unique_until => 'while_executing', unique_for => '10 ms', on_conflict => 'reschedule') AS two \gset
CALL wait_until(format('(SELECT run_at - enqueued_at FROM jobqueue_jobs WHERE id = %s) > interval ''50 ms''', :two));
-- the lock is in memory, and no key of jobs
SELECT count(*) FROM jobqueue_unique;
SELECT count(*) FROM jobqueue_keys;
-- nor does a key of the same name have to do with it
SELECT jobqueue_enqueue('note', '{"what": "key"}', key => 'k') IS NOT NULL AS ok;
CALL wait_until('EXISTS (SELECT FROM ran WHERE what = ''key'')');
SELECT pg_advisory_unlock(4712);
CALL drained();
SELECT what FROM left_behind() AS what ORDER BY what;

-- one that fails lets go of it; its retry does not run beside another one
SELECT jobqueue_enqueue('SELECT 1/0', unique_key => 'k', unique_until => 'while_executing', max_attempts => 1) AS id \gset
CALL drained();
SELECT jobqueue_enqueue('note', '{"what": "after a failure"}', unique_key => 'k', unique_until => 'while_executing', on_conflict => 'raise') IS NOT NULL AS ok;
CALL drained();
SELECT what FROM left_behind() AS what;

-- a session that runs a job keeps workers from it to the end of its transaction
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "here"}', unique_key => 'k', unique_until => 'while_executing') AS one \gset
SELECT jobqueue_enqueue('note', '{"what": "in a worker"}', unique_key => 'k', unique_until => 'while_executing') AS two \gset
BEGIN;
SELECT jobqueue_run(:one);
SELECT jobqueue_resume();
CREATE PROCEDURE ended(job bigint) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 12000 LOOP
		PERFORM FROM jobqueue_recent WHERE id = job;
		IF FOUND THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
	RAISE 'job % has not ended', job;
END $$;
CALL ended(:two);
COMMIT;
SELECT id - :one AS which, state, reason FROM jobqueue_history WHERE id >= :one;
SELECT what FROM left_behind() AS what;

-- batches: a job with a unique_key runs alone
SELECT jobqueue_configure('b', batch => 10);
SELECT jobqueue_quiesce();
SELECT count(id) FROM jobqueue_enqueue_many('note', array_fill('{"what": "x"}'::jsonb, '{9}'), queue => 'b', unique_keys => '{1,NULL,2,NULL,NULL,3,4,NULL,5}') AS id;
SELECT jobqueue_resume();
CALL drained();
SELECT count(*) FROM left_behind();
SELECT count(*) FROM jobqueue_unique;
SELECT jobqueue_configure('b', batch => 1);
SELECT jobqueue_drop_queue('b');

DELETE FROM jobqueue_archive;
DROP TABLE seen;
DROP FUNCTION hold;
DROP PROCEDURE meet, meet_all, ended;
