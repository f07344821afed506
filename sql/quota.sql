-- jobqueue.max_jobs_per_role
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE ROLE regress_jq_quota;
SELECT jobqueue_grant('regress_jq_quota', 'use');
SELECT jobqueue_quiesce();
SET jobqueue.max_jobs_per_role = 3;
SET ROLE regress_jq_quota;
-- the role itself cannot change it
CALL raises('SET jobqueue.max_jobs_per_role = 0');
-- jobs that wait, whatever for
SELECT jobqueue_enqueue('note', '{"what": "a"}') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "b"}', run_at => '2999-01-01') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue_many(''note'', ARRAY[''{}'', ''{}'']::jsonb[])');
SELECT jobqueue_enqueue('note', '{"what": "c"}', key => 'k', queue => 'other') AS last \gset
CALL raises('SELECT jobqueue_enqueue(''note'')');
SELECT count(*) FROM jobqueue_enqueue_many('note', '{}');
-- inline jobs do not wait
SET jobqueue.inline = on;
SELECT jobqueue_enqueue('note', '{"what": "inline"}') > 0 AS id;
RESET jobqueue.inline;
-- what has gone makes room
SELECT jobqueue_cancel(:last);
SELECT jobqueue_enqueue('note', '{"what": "d"}') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''note'')');
-- each role has its own; superusers have none
RESET ROLE;
SELECT count(jobqueue_enqueue('note', '{"what": "super"}')) FROM generate_series(1, 5);
-- another quota
SET jobqueue.max_jobs_per_role = 4;
SET ROLE regress_jq_quota;
SELECT jobqueue_enqueue('note', '{"what": "e"}') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''note'')');
-- what has been rolled back does not count
RESET ROLE;
SET jobqueue.max_jobs_per_role = 5;
SET ROLE regress_jq_quota;
BEGIN;
SELECT jobqueue_enqueue('note') > 0 AS id;
ROLLBACK;
DO $$
BEGIN
	FOR i IN 1..20 LOOP
		BEGIN
			PERFORM jobqueue_enqueue('note');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT jobqueue_enqueue('note', '{"what": "f"}') > 0 AS id;
-- nor does what a subtransaction has taken and undone stand in another's way
SELECT jobqueue_cancel_where(NULL, NULL, NULL, true) AS cancelled;
BEGIN;
SAVEPOINT outer_one;
SELECT jobqueue_enqueue('note', '{"what": "kept"}') > 0 AS id;
SAVEPOINT inner_one;
SELECT count(jobqueue_enqueue('note')) FROM generate_series(1, 4);
ROLLBACK TO inner_one;
SELECT count(jobqueue_enqueue('note', '{"what": "f"}')) FROM generate_series(1, 4);
RELEASE outer_one;
CALL raises('SELECT jobqueue_enqueue(''note'')');
COMMIT;
-- jobs that come back are jobs; so are those that were run inline and snooze
CALL raises('SELECT jobqueue_retry(id) FROM jobqueue_history WHERE state = ''cancelled'' LIMIT 1');
SELECT jobqueue_cancel(id) FROM jobqueue_jobs WHERE state = 'ready' ORDER BY id LIMIT 2;
SELECT jobqueue_retry(id) FROM jobqueue_history WHERE state = 'cancelled' ORDER BY id LIMIT 1;
SET jobqueue.inline = on;
SELECT jobqueue_enqueue('SELECT jobqueue_snooze(''1 year'')') > 0 AS id;
CALL raises('SELECT jobqueue_enqueue(''SELECT jobqueue_snooze(make_interval(years => 1))'')');
RESET jobqueue.inline;
CALL raises('SELECT jobqueue_enqueue(''note'')');
SELECT count(*) FROM jobqueue_jobs WHERE state IN ('ready', 'scheduled');
SELECT jobqueue_cancel_where(NULL, NULL, NULL, true) AS cancelled;
-- rows by hand are not refused, but count at once
SELECT jobqueue_enqueue('note', '{"what": "g"}') > 0 AS id;
RESET ROLE;
INSERT INTO jobqueue_job (owner, command) SELECT 'regress_jq_quota', 'note' FROM generate_series(1, 4);
SET ROLE regress_jq_quota;
CALL raises('SELECT jobqueue_enqueue(''note'')');
RESET ROLE;
SELECT jobqueue_cancel_where(NULL, 'ready', NULL) AS cancelled;
SELECT count(jobqueue_enqueue('note', '{"what": "super"}')) FROM generate_series(1, 5);
-- done jobs
SET ROLE regress_jq_quota;
SELECT jobqueue_enqueue('note', '{"what": "a"}') > 0, jobqueue_enqueue('note', run_at => '2999-01-01') > 0 AS id;
RESET ROLE;
SELECT jobqueue_resume();
CALL wait_until('(SELECT count(*) = 1 FROM jobqueue_job)');
SELECT what, count(*) FROM ran GROUP BY 1 ORDER BY 1;
SET ROLE regress_jq_quota;
SELECT count(jobqueue_enqueue('note', '{"what": "g"}', run_at => '2999-01-01')) FROM generate_series(1, 4);
CALL raises('SELECT jobqueue_enqueue(''note'')');
RESET ROLE;
RESET jobqueue.max_jobs_per_role;
SET ROLE regress_jq_quota;
SELECT jobqueue_enqueue('note', '{"what": "no quota"}', run_at => '2999-01-01') > 0 AS id;
RESET ROLE;

SELECT jobqueue_cancel_where(NULL, NULL, NULL, true);
DELETE FROM jobqueue_archive;
TRUNCATE ran;
DROP OWNED BY regress_jq_quota;
DROP ROLE regress_jq_quota;
