-- cancel, retry, run, current, quiesce, resume, sweep, adopt.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE FUNCTION outcome(id bigint) RETURNS text LANGUAGE sql AS $$
	SELECT h.state || coalesce(' (' || h.reason || ')', '') || ', attempt ' || h.attempt
	FROM jobqueue_history h WHERE h.id = $1 $$;

-- as raises(), without the number of the job
CREATE PROCEDURE raises_for(call text, id bigint) LANGUAGE plpgsql AS $$
DECLARE s text; m text; h text;
BEGIN
	EXECUTE format('SELECT %s(%s)', call, id);
	RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT, h = PG_EXCEPTION_HINT;
	RAISE INFO '% %', s, replace(m, id::text, 'N');
	RAISE INFO '      hint: %', coalesce(nullif(h, ''), 'none');
END $$;

-- cancel: what waits
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "cancelled"}', tags => '{t}') AS id \gset
SELECT jobqueue_cancel(:id);
SELECT jobqueue_cancel(:id), outcome(:id);
SELECT state, args, tags, reason, date_trunc('second', expires_at - ended_at) AS kept FROM jobqueue_history WHERE id = :id;
SELECT jobqueue_enqueue('note', '{"what": "scheduled"}', run_at => '2999-01-01') AS id \gset
SELECT jobqueue_cancel(:id), outcome(:id);
SELECT jobqueue_cancel(0), jobqueue_cancel(-1), jobqueue_cancel(9223372036854775807);
-- and the cancel rolled back, whole or to a savepoint
SELECT jobqueue_enqueue('note', '{"what": "cancel rolled back"}') AS id \gset
BEGIN;
SELECT jobqueue_cancel(:id), jobqueue_cancel(:id), outcome(:id);
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT jobqueue_cancel(:id);
ROLLBACK TO a;
SELECT outcome(:id);
SELECT jobqueue_enqueue('note', '{"what": "enqueued and cancelled"}') AS both \gset
SELECT jobqueue_cancel(:both);
SELECT jobqueue_enqueue('note', '{"what": "cancelled in a savepoint"}') AS lucky \gset
SAVEPOINT b;
SELECT jobqueue_cancel(:lucky);
ROLLBACK TO b;
COMMIT;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT outcome(:both), outcome(:lucky);
-- what runs
CREATE FUNCTION hangs() RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.ran (what) VALUES ('lost'); SELECT pg_sleep(3600) $$;
SELECT jobqueue_enqueue('hangs', key => 'hangs') AS id \gset
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_running WHERE id = %s AND started_at IS NOT NULL)', :id));
SELECT jobqueue_cancel(:id);
CALL drained();
SELECT outcome(:id);
SELECT count(*) FROM left_behind();
SELECT jobqueue_cancel(:id);
-- itself
CREATE FUNCTION cancels_itself() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO public.ran (what) SELECT jobqueue_cancel((jobqueue_current()).id);
	PERFORM pg_sleep(3600); END $$;
SELECT jobqueue_enqueue('cancels_itself') AS id \gset
CALL drained();
SELECT outcome(:id);
SELECT count(*) FROM left_behind();

-- retry: what is dead or cancelled, attempts from 1 again, errors kept
CREATE FUNCTION once_bad() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
	IF EXISTS (SELECT FROM public.ran WHERE what = 'good') THEN RETURN (jobqueue_current()).attempt; END IF;
	RAISE EXCEPTION 'bad'; END $$;
SELECT jobqueue_enqueue('once_bad', '{"x": 1}', max_attempts => 1, keep => '1 day', key => 'k', priority => 3, tags => '{t}') AS id \gset
CALL drained();
SELECT outcome(:id);
BEGIN;
SELECT jobqueue_retry(:id), jobqueue_retry(:id);
ROLLBACK;
SELECT outcome(:id);
INSERT INTO ran (what) VALUES ('good');
SELECT jobqueue_retry(:id);
CALL drained();
SELECT state, result, args, key, priority, tags, errors->0->>'error' AS error FROM jobqueue_history WHERE id = :id;
SELECT jobqueue_retry(:id), jobqueue_retry(0);
SELECT count(*) FROM left_behind();
-- a cancelled one, an expired one: it does not expire again
SELECT jobqueue_enqueue('note', '{"what": "expired"}', expires_at => '2000-01-01') AS id \gset
CALL drained();
SELECT outcome(:id), jobqueue_retry(:id);
CALL drained();
SELECT * FROM left_behind() AS what;
-- one that waits or runs is not retried
SELECT jobqueue_enqueue('note', run_at => '2999-01-01') AS id \gset
SELECT jobqueue_retry(:id), jobqueue_cancel(:id);

-- run: here and now, in my transaction
SELECT id, queue, key, attempt, max_attempts, enqueued_at FROM jobqueue_current();
CREATE FUNCTION tells() RETURNS jsonb LANGUAGE sql AS $$
	SELECT to_jsonb(c) - 'id' - 'enqueued_at' || jsonb_build_object('id', id > 0, 'at', enqueued_at <= now())
	FROM jobqueue_current() c $$;
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('tells', queue => 'run', key => 'k', max_attempts => 7) AS id \gset
SELECT jobqueue_run(:id);
SELECT id, queue, key, attempt, max_attempts, enqueued_at FROM jobqueue_current();
CALL raises_for('jobqueue_run', :id);
SELECT count(*) FROM jobqueue_job;
SELECT jobqueue_enqueue('note', '{"what": "run, rolled back"}') AS id \gset
BEGIN;
SELECT jobqueue_run(:id);
SELECT count(*) FROM ran;
ROLLBACK;
SELECT count(*) FROM left_behind();
SELECT state FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_run(:id);
SELECT * FROM left_behind() AS what;
-- in the transaction that enqueued it; one that fails is left as it was
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "enqueued and run"}') AS id \gset
SELECT jobqueue_run(:id);
COMMIT;
SELECT * FROM left_behind() AS what;
SELECT jobqueue_enqueue('SELECT 1/0', key => 'fails') AS id \gset
CALL raises_for('jobqueue_run', :id);
SELECT state, attempt, errors FROM jobqueue_jobs WHERE id = :id;
SELECT count(*) AS keys FROM jobqueue_keys;
SELECT jobqueue_cancel(:id);
-- kept or not, as it says
SELECT jobqueue_enqueue('SELECT 5', keep => '1 day') AS kept, jobqueue_enqueue('SELECT 6', keep => '0') AS not_kept \gset
SELECT jobqueue_run(:kept), jobqueue_run(:not_kept);
SELECT outcome(:kept), outcome(:not_kept);
-- with the search path and settings of the enqueuer, and back
SET search_path = pg_catalog;
SELECT public.jobqueue_enqueue('SHOW search_path') AS id \gset
RESET search_path;
SELECT jobqueue_run(:id);
SHOW search_path;
-- not what cannot be in a transaction
SELECT jobqueue_enqueue('VACUUM ran') AS id \gset
CALL raises_for('jobqueue_run', :id);
SELECT jobqueue_cancel(:id);
-- not what is somebody else's, or from elsewhere
CREATE ROLE regress_jq_other;
SELECT jobqueue_grant('regress_jq_other', 'use');
SET ROLE regress_jq_other;
SELECT jobqueue_enqueue('note', '{"what": "of other"}') AS id \gset
RESET ROLE;
CALL raises_for('jobqueue_run', :id);
UPDATE jobqueue_job SET owner = 'postgres'::regrole, home = home + 1 WHERE id = :id;
CALL raises_for('jobqueue_run', :id);
SELECT jobqueue_cancel(:id);
SELECT jobqueue_resume();
-- not what runs, or whose key is busy
SELECT pg_advisory_lock(816);
SELECT jobqueue_enqueue('SELECT pg_advisory_xact_lock_shared(816)', key => 'busy') AS running \gset
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_running WHERE id = %s AND started_at IS NOT NULL)', :running));
SELECT jobqueue_enqueue('note', '{"what": "after"}', key => 'busy') AS waiting \gset
CALL raises_for('jobqueue_run', :running);
CALL raises_for('jobqueue_run', :waiting);
-- the key is mine while the transaction lasts that ran a job of it
SELECT pg_advisory_unlock(816);
CALL drained();
SELECT * FROM left_behind() AS what;
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "1"}', key => 'mine') AS one, jobqueue_enqueue('note', '{"what": "2"}', key => 'mine') AS two \gset
BEGIN;
SELECT jobqueue_run(:one), jobqueue_run(:two);
SELECT key, pid = pg_backend_pid() AS mine FROM jobqueue_keys;
COMMIT;
SELECT count(*) AS keys FROM jobqueue_keys;
SELECT * FROM left_behind() AS what;
-- one in another
CREATE FUNCTION runs(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jobqueue_run($1::bigint) $$;
SELECT jobqueue_enqueue('tells', queue => 'inner', max_attempts => 2, run_at => '2999-01-01') AS inner \gset
SELECT jobqueue_enqueue('runs', to_jsonb(:inner), queue => 'outer', keep => '1 day', max_attempts => 1) AS outer \gset
SELECT jobqueue_resume();
CALL drained();
SELECT result->>'queue' AS queue FROM jobqueue_history WHERE id = :outer;

-- cancel, retry and run by those who may not, who may
SELECT jobqueue_enqueue('SELECT 1/0', max_attempts => 1) AS dead \gset
CALL drained();
SELECT jobqueue_enqueue('note', '{"what": "mine"}', run_at => '2999-01-01') AS id \gset
SET ROLE regress_jq_other;
CALL raises_for('jobqueue_cancel', :id);
CALL raises_for('jobqueue_run', :id);
CALL raises_for('jobqueue_retry', :dead);
RESET ROLE;
CREATE ROLE regress_jq_group;
SELECT jobqueue_grant('regress_jq_group', 'use');
GRANT regress_jq_group TO regress_jq_other;
SET ROLE regress_jq_group;
SELECT jobqueue_enqueue('note', run_at => '2999-01-01') AS of_group \gset
SET ROLE regress_jq_other;
SELECT jobqueue_cancel(:of_group), jobqueue_retry(:of_group), jobqueue_cancel(:of_group);
RESET ROLE;
SELECT jobqueue_grant('regress_jq_other', 'admin');
SET ROLE regress_jq_other;
SELECT jobqueue_retry(:dead), jobqueue_cancel(:id);
RESET ROLE;
CALL drained();

-- quiesce finishes what runs and starts nothing; resume
SELECT pg_advisory_lock(816);
SELECT jobqueue_enqueue('SELECT pg_advisory_xact_lock_shared(816)') AS running \gset
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_running WHERE id = %s AND started_at IS NOT NULL)', :running));
SELECT jobqueue_quiesce('0');
SELECT jobqueue_quiesce('50 ms');
SELECT jobqueue_enqueue('note', '{"what": "waits"}') AS id \gset
SELECT pg_advisory_unlock(816);
SELECT jobqueue_quiesce(NULL);
SELECT state FROM jobqueue_jobs WHERE id = :id;
SELECT count(*) FROM left_behind();
SELECT jobqueue_quiesce('1 hour');
SELECT jobqueue_resume(), jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what;

-- sweep: memory is read from the table again; nothing lost, nothing twice
SELECT jobqueue_quiesce();
SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', g), queue => 'q' || g % 3)) FROM generate_series(1, 30) g;
SELECT jobqueue_sweep();
SELECT jobqueue_resume();
SELECT jobqueue_sweep();
CALL drained();
SELECT count(*), count(DISTINCT what) FROM left_behind() AS what;

-- adopt: nothing to do; one that is held
SELECT jobqueue_adopt();
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "adopted"}') AS id \gset
SELECT jobqueue_enqueue('SELECT 1', run_at => '2999-01-01') AS later \gset
UPDATE jobqueue_job SET home = 1;
SELECT jobqueue_resume();
SELECT state FROM jobqueue_jobs WHERE id IN (:id, :later) ORDER BY id;
SELECT jobqueue_adopt();
SELECT jobqueue_adopt();
CALL wait_until(format('NOT EXISTS (SELECT FROM jobqueue_job WHERE id = %s)', :id));
SELECT * FROM left_behind() AS what;
SELECT state FROM jobqueue_jobs WHERE id = :later;
SELECT jobqueue_cancel(:later);

-- a cancelled one of another home is held when it comes back
UPDATE jobqueue_archive SET home = 1 WHERE id = :later;
SELECT jobqueue_retry(:later);
SELECT state FROM jobqueue_jobs WHERE id = :later;
SELECT jobqueue_cancel(:later);

CALL drained();
DROP PROCEDURE raises_for;
DROP FUNCTION outcome, hangs, cancels_itself, once_bad, tells, runs;
DROP OWNED BY regress_jq_other, regress_jq_group;
DROP ROLE regress_jq_other, regress_jq_group;

-- what no worker takes is not counted either when it has gone, or stands elsewhere
SELECT jobqueue_pause('still');
SELECT jobqueue_enqueue('note', queue => 'still') AS id \gset
SELECT jobqueue_reprioritize(:id, 1);
SELECT jobqueue_reprioritize(:id, 2);
SELECT jobqueue_reschedule(:id, '2999-01-01');
SELECT jobqueue_reschedule(:id, NULL);
SELECT jobqueue_enqueue(NULL, queue => 'consumers') AS other \gset
SELECT jobqueue_reprioritize(:other, 1);
SELECT jobqueue_reprioritize(:other, 2);
BEGIN;
SELECT jobqueue_cancel(:id), jobqueue_cancel(:other);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT jobqueue_cancel(:id), jobqueue_cancel(:other);
ROLLBACK TO s;
COMMIT;
SELECT queue, ready, blocked, running FROM jobqueue_status WHERE queue IN ('still', 'consumers') ORDER BY queue;
SELECT jobqueue_cancel(:id), jobqueue_cancel(:other);
SELECT queue, ready, blocked, running FROM jobqueue_status WHERE queue IN ('still', 'consumers') ORDER BY queue;
SELECT jobqueue_resume('still');
SELECT jobqueue_drop_queue('still');
