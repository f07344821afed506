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
-- done jobs
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
