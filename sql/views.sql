-- The columns of the views are a contract; and the words for states.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

SELECT c.table_name AS view, c.ordinal_position AS n, c.column_name AS column, c.data_type AS type
FROM information_schema.columns c
WHERE c.table_name LIKE 'jobqueue_%'
  AND EXISTS (SELECT FROM pg_views v WHERE v.viewname = c.table_name)
ORDER BY c.table_name::text COLLATE "C", 2;
-- each is a barrier before conditions that a user adds
SELECT relname FROM pg_class
WHERE relkind = 'v' AND relname LIKE 'jobqueue\_%'
  AND NOT coalesce(reloptions @> '{security_barrier=true}', false)
ORDER BY 1;
-- and the functions with their arguments are one, too
\pset format unaligned
SELECT proname AS function, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
FROM pg_proc
WHERE proname IN ('jobqueue_enqueue', 'jobqueue_enqueue_many',
	'jobqueue_current', 'jobqueue_cancel', 'jobqueue_retry', 'jobqueue_run',
	'jobqueue_adopt', 'jobqueue_sweep', 'jobqueue_quiesce',
	'jobqueue_resume', 'jobqueue_grant', 'jobqueue_revoke',
	'jobqueue_configure', 'jobqueue_pause', 'jobqueue_drop_queue',
	'jobqueue_progress', 'jobqueue_snooze', 'jobqueue_discard', 'jobqueue_explain',
	'jobqueue_lock', 'jobqueue_xact_lock', 'jobqueue_try_lock', 'jobqueue_unlock',
	'jobqueue_whereis', 'jobqueue_pause_role', 'jobqueue_resume_role',
	'jobqueue_reassign')
ORDER BY proname::text COLLATE "C", pronargs;
\pset format aligned
-- settings
SELECT name, vartype, unit, boot_val, context FROM pg_settings
WHERE name LIKE 'jobqueue.%' ORDER BY name COLLATE "C";

-- one job in each state
CREATE FUNCTION states() RETURNS TABLE (name text, state text) LANGUAGE sql AS $$
	SELECT tags[1], j.state FROM jobqueue_jobs j
	WHERE j.queue = 'views' ORDER BY tags[1] COLLATE "C" $$;
SELECT pg_advisory_lock(815);
SELECT jobqueue_enqueue('SELECT pg_advisory_xact_lock_shared(815)', queue => 'views', key => 'v',
	tags => '{running}') AS running \gset
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_running WHERE id = %s AND started_at IS NOT NULL)', :running));
SELECT jobqueue_enqueue('note', queue => 'views', key => 'v', tags => '{blocked}') AS blocked \gset
CALL wait_until(format('(SELECT state FROM jobqueue_jobs WHERE id = %s) = ''blocked''', :blocked));
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'views', tags => '{dead}', max_attempts => 1) AS dead \gset
SELECT jobqueue_enqueue('SELECT 42', queue => 'views', tags => '{completed}', keep => '1 day') AS completed \gset
SELECT jobqueue_enqueue('SELECT 43', queue => 'views', tags => '{forgotten}') AS forgotten \gset
SELECT jobqueue_enqueue('note', queue => 'views', tags => '{expired}', expires_at => '2000-01-01') AS expired \gset
CALL wait_until(format('(SELECT count(*) = 4 FROM jobqueue_recent WHERE id IN (%s, %s, %s, %s))', :dead, :completed, :forgotten, :expired));
SELECT jobqueue_enqueue('note', queue => 'views', tags => '{scheduled}', run_at => '2999-01-01') AS scheduled \gset
SELECT jobqueue_quiesce('0');
SELECT jobqueue_enqueue('note', queue => 'views', tags => '{ready}', priority => 5) AS ready \gset
SELECT jobqueue_enqueue('note', queue => 'views', tags => '{cancelled}') AS cancelled \gset
SELECT jobqueue_cancel(:cancelled);
SELECT jobqueue_enqueue('note', queue => 'views', tags => '{held}') AS held \gset
UPDATE jobqueue_job SET home = home + 1 WHERE id = :held;
SELECT * FROM states();

-- the queue, the running job, its key, its worker
CALL wait_until('(SELECT dead = 1 AND NOT estimated AND running = 1 AND completed + failed = 3 FROM jobqueue_status WHERE queue = ''views'')');
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_workers WHERE state = ''running'')');
SELECT scheduled, blocked, running, dead, spilled, estimated,
	completed, failed, oldest_ready IS NOT NULL AS oldest_ready,
	wait_p50 >= '0' AS wait_p50, run_p99 >= '0' AS run_p99
FROM jobqueue_status WHERE queue = 'views';
SELECT id = :running AS id, queue, owner = current_user::regrole AS owner, command, key, attempt,
	started_at <= clock_timestamp() AS started, pid <> pg_backend_pid() AS other_pid
FROM jobqueue_running;
SELECT key, job = :running AS job, since <= clock_timestamp() AS since, waiting FROM jobqueue_keys;
SELECT state, job = :running AS job, queue FROM jobqueue_workers WHERE state = 'running';
-- what has ended
SELECT tags[1] AS tag, state, reason, attempt, max_attempts, result, errors->0->>'error' AS error,
	errors->0->>'sqlstate' AS sqlstate, errors->0->>'attempt' AS of, errors->0 ? 'at' AS at,
	ended_at >= started_at AS times
FROM jobqueue_jobs WHERE queue = 'views' AND ended_at IS NOT NULL ORDER BY tags[1] COLLATE "C";
SELECT tags[1] AS tag, state, date_trunc('second', expires_at - ended_at) AS kept FROM jobqueue_history
WHERE queue = 'views' ORDER BY tags[1] COLLATE "C";
SELECT CASE id WHEN :dead THEN 'dead' WHEN :completed THEN 'completed'
	WHEN :forgotten THEN 'forgotten' WHEN :expired THEN 'expired' END AS job,
	outcome, attempt, result, error, outcome <> 'completed' OR lsn IS NOT NULL AS lsn, ended_at >= started_at AS times
FROM jobqueue_recent WHERE queue = 'views' ORDER BY id;

SELECT jobqueue_cancel(id) FROM unnest(ARRAY[:scheduled, :held]) id;
SELECT pg_advisory_unlock(815);
SELECT jobqueue_resume();
CALL drained();
SELECT count(*) FROM left_behind();
SELECT * FROM states();
CALL wait_until('(SELECT ready + scheduled + blocked + running + spilled = 0 FROM jobqueue_status WHERE queue = ''views'')');
SELECT count(*) FROM jobqueue_keys;
DROP FUNCTION states();
