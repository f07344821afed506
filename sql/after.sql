-- Dependencies: jobqueue_enqueue(after => ...).
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE FUNCTION fails(args jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'on purpose'; END $$;
-- a job that leaves its name behind, known by that name
CREATE FUNCTION job(what text, deps text[] DEFAULT '{}', run_at timestamptz DEFAULT NULL)
RETURNS bigint LANGUAGE sql AS $$
	SELECT jobqueue_enqueue('note', jsonb_build_object('what', what), tags => ARRAY[what],
		run_at => run_at,
		after => ARRAY(SELECT (SELECT j.id FROM jobqueue_jobs j WHERE j.tags = ARRAY[d] ORDER BY id DESC LIMIT 1)
			FROM unnest(deps) d)) $$;
CREATE FUNCTION id(what text) RETURNS bigint LANGUAGE sql AS
	$$ SELECT id FROM jobqueue_jobs WHERE tags = ARRAY[what] ORDER BY id DESC LIMIT 1 $$;
CREATE VIEW states AS
	SELECT tags[1] AS job, state, run_at,
		   (SELECT string_agg(d.tags[1], ' ' ORDER BY d.id) FROM jobqueue_jobs d WHERE d.id = ANY (j.after)) AS after,
		   regexp_replace(reason, 'job \d+', 'job N') AS reason
	FROM jobqueue_jobs j ORDER BY id;

-- fan-out, fan-in: a diamond
SELECT jobqueue_quiesce();
SELECT job('top') > 0, job('left', '{top}') > 0, job('right', '{top, top}') > 0, job('bottom', '{left, right}') > 0;
SELECT * FROM states;
CALL wait_until('(SELECT ready = 1 AND NOT estimated FROM jobqueue_status WHERE queue = ''default'')');
SELECT ready, scheduled, blocked FROM jobqueue_status WHERE queue = 'default';
CALL wait_until('(SELECT count(*) = 4 FROM jobqueue_dependency)');
SELECT jobqueue_resume();
CALL drained();
SELECT (array_agg(what ORDER BY n))[1] AS first, (array_agg(what ORDER BY n DESC))[1] AS last, count(*) FROM ran;
SELECT count(*) FROM left_behind();
CALL wait_until('NOT EXISTS (SELECT FROM jobqueue_dependency)');

-- a job that has completed already, left no row, or never will be seen
SELECT jobqueue_enqueue('note', '{"what": "kept"}', keep => '1 day') AS kept \gset
SELECT jobqueue_enqueue('note', '{"what": "gone"}') AS gone \gset
CALL drained();
SELECT count(*) FROM left_behind();
SELECT jobqueue_enqueue('note', '{"what": "after those"}', after => ARRAY[:kept, :gone]) > 0 AS ok;
CALL drained();
SELECT * FROM left_behind();
-- no dependencies at all
SELECT jobqueue_enqueue('note', '{"what": "none"}', after => '{}') > 0 AS ok;
CALL drained();
SELECT * FROM left_behind();

-- one that is dead or cancelled already, and one that will be
SELECT jobqueue_enqueue('fails', '{}', max_attempts => 1, tags => '{dead}') > 0 AS ok;
CALL drained();
SELECT job('after dead', '{dead}') > 0;
CALL drained();
SELECT * FROM states;
SELECT jobqueue_quiesce();
SELECT job('first') > 0, job('second', '{first}') > 0, job('third', '{second}') > 0, job('other', '{first, third}') > 0;
SELECT jobqueue_cancel(id('first'));
CALL drained();
SELECT * FROM states WHERE reason IS NOT NULL AND job <> 'dead';
SELECT count(*) FROM left_behind();
DELETE FROM jobqueue_archive;
-- a waiting job is cancelled, and with it those that wait for it, and no others
SELECT job('a') > 0, job('b', '{a}') > 0, job('c', '{b}') > 0, job('d', '{a}') > 0;
SELECT jobqueue_cancel(id('b'));
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM states;
SELECT * FROM left_behind();
DELETE FROM jobqueue_archive;
-- many at once
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0;
SELECT jobqueue_enqueue('note', '{"what": "e"}', queue => 'elsewhere', tags => '{e}', after => ARRAY[id('a')]) > 0 AS ok;
SELECT jobqueue_cancel_where(NULL, 'scheduled', NULL), jobqueue_cancel_where('default', 'blocked', NULL);
SELECT job, state FROM states;
SELECT jobqueue_cancel_where(NULL, 'ready', NULL);
CALL drained();
SELECT job, state, reason FROM states;
DELETE FROM jobqueue_archive;

-- run_at holds when the others have completed
SELECT job('a') > 0, job('b', '{a}', run_at => '2999-01-01') > 0, job('c', '{a}', run_at => '2001-01-01') > 0;
SELECT * FROM states;
SELECT jobqueue_resume();
CALL wait_until($$ (SELECT state = 'scheduled' FROM jobqueue_jobs WHERE tags = '{b}') $$);
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_job)');
SELECT * FROM states;
SELECT jobqueue_cancel(id('b'));
DELETE FROM jobqueue_archive;
SELECT * FROM left_behind();

-- expires while it waits
SELECT job('a', run_at => '2999-01-01') > 0;
SELECT jobqueue_enqueue('note', '{"what": "b"}', tags => '{b}', expires_at => '2001-01-01', after => ARRAY[id('a')]) > 0 AS ok;
SELECT job('c', '{b}') > 0;
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_job)');
SELECT job, state, reason FROM states;
SELECT jobqueue_cancel(id('a'));
DELETE FROM jobqueue_archive;

-- retry: what it waited for holds it back if it is there again
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0, job('c', '{a, b}') > 0;
SELECT jobqueue_cancel(id('a'));
CALL drained();
BEGIN;
SELECT jobqueue_retry(id('a')), jobqueue_retry(id('b')), jobqueue_retry(id('c'));
COMMIT;
SELECT * FROM states;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind();
-- and not if it is not
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0;
SELECT jobqueue_cancel(id('a'));
CALL drained();
SELECT jobqueue_retry(id('b'));
SELECT job, state FROM states;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind();
DELETE FROM jobqueue_archive;

-- all at once
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0, job('c', '{a, b}') > 0;
SELECT jobqueue_cancel_where('default', 'ready', NULL);
CALL drained();
SELECT jobqueue_retry_where(NULL, 'cancelled', NULL);
SELECT * FROM states;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind();

-- another time, another priority: it waits none the less
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0, job('c', '{a}', run_at => '2999-01-01') > 0;
SELECT jobqueue_reschedule(id('b'), '2999-01-01'), jobqueue_reschedule(id('c'), NULL), jobqueue_reprioritize(id('c'), -1);
SELECT * FROM states;
SELECT jobqueue_reschedule_where(NULL, 'blocked', 'b', '2998-01-01'), jobqueue_reprioritize_where(NULL, 'blocked', NULL, 7);
SELECT job, run_at FROM states;
SELECT jobqueue_resume();
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_job)');
SELECT * FROM left_behind();
SELECT job, state, run_at FROM states;
SELECT jobqueue_cancel(id('b'));
DELETE FROM jobqueue_archive;

-- many jobs at once, that wait for many
SELECT jobqueue_quiesce();
SELECT array_agg(id) AS ids FROM jobqueue_enqueue_many('note', ARRAY(SELECT '{"what": "first"}'::jsonb FROM generate_series(1, 20))) id \gset
SELECT array_agg(id) AS ids FROM jobqueue_enqueue_many('note', ARRAY(SELECT '{"what": "second"}'::jsonb FROM generate_series(1, 10)),
	after => :'ids') id \gset
SELECT count(*), count(DISTINCT after) FROM jobqueue_jobs WHERE state = 'blocked';
SELECT jobqueue_resume();
CALL drained();
SELECT what, count(*) FROM left_behind() WITH ORDINALITY AS l(what, n) GROUP BY what ORDER BY min(n);

-- jobqueue_run
SELECT jobqueue_quiesce();
SELECT job('a') > 0, job('b', '{a}') > 0;
DO $$
DECLARE m text;
BEGIN
	PERFORM jobqueue_run(id('b'));
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS m = PG_EXCEPTION_HINT;
	RAISE INFO '% % %', SQLSTATE, regexp_replace(SQLERRM, '\d+', 'N', 'g'), m;
END $$;
BEGIN;
SELECT id('a') AS a, id('b') AS b \gset
SELECT jobqueue_run(:a);
SELECT jobqueue_run(:b);
COMMIT;
SELECT * FROM left_behind();
CALL drained();
SELECT jobqueue_resume();

-- what cannot be waited for
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => '{0}') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => '{-1}') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => '{9223372036854775807}') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => '{1, NULL}') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => '{{1}, {2}}') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', '{}', after => ARRAY(SELECT generate_series(1, 10001))) $$);
-- the next id is not given out yet, so it is no way to wait for oneself
DO $$
DECLARE next bigint := jobqueue_enqueue('note', '{"what": "x"}') + 1;
BEGIN
	PERFORM jobqueue_enqueue('note', '{}', after => ARRAY[next]);
EXCEPTION WHEN no_data_found THEN
	RAISE INFO 'refused';
END $$;
-- an id whose enqueue was rolled back counts as completed
DO $$
DECLARE id bigint;
BEGIN
	BEGIN
		id := jobqueue_enqueue('note', '{}');
		RAISE EXCEPTION USING errcode = 'XX001', message = id;
	EXCEPTION WHEN data_corrupted THEN
		id := sqlerrm;
	END;
	PERFORM jobqueue_enqueue('note', '{"what": "after what never was"}', after => ARRAY[id]);
END $$;
CALL drained();
SELECT * FROM left_behind();
-- jobs of others cannot be waited for, unless one may see them
CREATE ROLE regress_after;
SELECT jobqueue_grant('regress_after', 'use');
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('fails', '{}', max_attempts => 1, tags => '{a}') AS a \gset
SELECT set_config('regress.a', :'a', false) IS NOT NULL AS ok;
SET ROLE regress_after;
DO $$
BEGIN
	PERFORM jobqueue_enqueue('SELECT 1', after => ARRAY[current_setting('regress.a')::bigint]);
EXCEPTION WHEN OTHERS THEN
	RAISE INFO '% %', SQLSTATE, regexp_replace(SQLERRM, '\d+', 'N');
END $$;
RESET ROLE;
-- nor, once they have ended, is it told how
SELECT jobqueue_enqueue('note', '{}', queue => 'elsewhere') AS b \gset
SELECT jobqueue_cancel(:b);
SELECT set_config('regress.a', :'b', false) IS NOT NULL AS ok;
SET ROLE regress_after;
DO $$
BEGIN
	PERFORM jobqueue_enqueue('SELECT 1', after => ARRAY[current_setting('regress.a')::bigint]);
EXCEPTION WHEN OTHERS THEN
	RAISE INFO '% %', SQLSTATE, regexp_replace(SQLERRM, '\d+', 'N');
END $$;
RESET ROLE;
DELETE FROM jobqueue_archive;
GRANT pg_monitor TO regress_after;
SET ROLE regress_after;
SELECT jobqueue_enqueue('SELECT 1', tags => '{theirs}', after => ARRAY[:a]) > 0 AS ok;
RESET ROLE;
SELECT job('mine', '{a}') > 0;
SELECT jobqueue_resume();
CALL drained();
-- without the reason of a job of another role
SELECT job, state, reason FROM states;
DELETE FROM jobqueue_archive;
DROP OWNED BY regress_after;
DROP ROLE regress_after;

-- rows by hand
SELECT job('a', run_at => '2999-01-01') AS a \gset
INSERT INTO jobqueue_job (command, args, tags, run_at, after, after_run_at)
	VALUES ('note', '{"what": "by hand"}', '{hand}', 'infinity', ARRAY[:a, NULL], '-infinity');
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_dependency)');
SELECT job, state, after FROM states;
-- a row that is deleted counts as completed
DELETE FROM jobqueue_job WHERE id = :a;
SELECT jobqueue_sweep();
CALL drained();
SELECT * FROM left_behind();
SELECT count(*) FROM jobqueue_dependency;

-- how a job ended is kept for those that wait for it, seen by the scheduler or not
DELETE FROM jobqueue_archive;
BEGIN;
SELECT job('top') AS top \gset
SELECT job('waits', '{top}') > 0;
SELECT jobqueue_cancel(:top);
SELECT jobqueue_purge('default', 'cancelled');
COMMIT;
CALL drained();
SELECT tags, state, regexp_replace(reason, '\d+', 'N') FROM jobqueue_history ORDER BY id;
DELETE FROM jobqueue_archive;

-- a holder of a unique_key that is updated still waits; one that is replaced is
-- cancelled, and with it those that wait for it
SELECT jobqueue_quiesce();
SELECT job('d') AS d \gset
SELECT jobqueue_enqueue('note', '{"what": "old"}', unique_key => 'u', after => ARRAY[:d]) AS h \gset
SELECT jobqueue_enqueue('note', '{"what": "updated"}', unique_key => 'u', on_conflict => 'update') = :h AS same;
SELECT jobqueue_enqueue('note', '{"what": "r"}', tags => '{replaced}', unique_key => 'r') AS r \gset
SELECT job('follows', '{replaced}') > 0;
SELECT jobqueue_enqueue('note', '{"what": "new"}', unique_key => 'r', on_conflict => 'replace') <> :r AS other;
SELECT run_at FROM jobqueue_job WHERE id = :h;
SELECT jobqueue_resume();
CALL drained();
SELECT tags, state, regexp_replace(reason, '\d+', 'N', 'g') FROM jobqueue_history ORDER BY id;
SELECT array_agg(what ORDER BY what) FROM left_behind() what;

DROP FUNCTION fails, job, id;
DROP VIEW states;
