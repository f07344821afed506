-- Cancelling many jobs at once.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

SELECT jobqueue_pause('cw_many');
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'cw_many',
	tags => CASE WHEN i % 2 = 0 THEN '{even}'::text[] END,
	run_at => CASE WHEN i % 10 = 0 THEN now() + interval '1 day' END))
FROM generate_series(1, 100) i;

-- errors
\set VERBOSITY default
\set SHOW_CONTEXT never
SELECT jobqueue_cancel_where(NULL, NULL, NULL);
SELECT jobqueue_cancel_where('cw_many', 'waiting', NULL);
SELECT jobqueue_cancel_where('no good', NULL, NULL);
BEGIN READ ONLY;
SELECT jobqueue_cancel_where('cw_many', NULL, NULL);
ROLLBACK;
BEGIN;
SELECT jobqueue_cancel_where('cw_many', NULL, 'even');
PREPARE TRANSACTION 'regress_cancel';
\set VERBOSITY terse

-- rolled back, wholly and to a savepoint
BEGIN;
SELECT jobqueue_cancel_where('cw_many', NULL, NULL);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT jobqueue_cancel_where('cw_many', NULL, 'even');
ROLLBACK TO s;
SELECT state, count(*) FROM jobqueue_jobs WHERE queue = 'cw_many' GROUP BY state ORDER BY state COLLATE "C";
COMMIT;

-- by state, tag, queue
SELECT jobqueue_cancel_where('cw_many', 'scheduled', NULL);
SELECT jobqueue_cancel_where('cw_many', 'running', NULL);
SELECT jobqueue_cancel_where('cw_many', 'held', NULL);
SELECT jobqueue_cancel_where('cw_many', 'blocked', NULL);
SELECT jobqueue_cancel_where(NULL, NULL, 'none');
SELECT jobqueue_cancel_where(NULL, NULL, 'even');
SELECT jobqueue_cancel_where('cw_other', 'ready', NULL);
SELECT jobqueue_cancel_where('cw_many', 'ready', NULL);
SELECT state, reason, count(*) FROM jobqueue_jobs WHERE queue = 'cw_many' GROUP BY 1, 2;

-- what the same transaction has enqueued, too; and all there is
BEGIN;
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'cw_many')) FROM generate_series(1, 3);
SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true);
COMMIT;
CALL wait_until($$ (SELECT ready + scheduled + blocked + running + spilled = 0 FROM jobqueue_status WHERE queue = 'cw_many') $$);


-- only of roles whose privileges one has
CREATE ROLE regress_jq_canceller;
SELECT jobqueue_grant('regress_jq_canceller', 'use');
SELECT jobqueue_pause('cw_mine');
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'cw_mine')) FROM generate_series(1, 5);
SET ROLE regress_jq_canceller;
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'cw_mine')) FROM generate_series(1, 3);
SELECT jobqueue_cancel_where('cw_mine', NULL, NULL);
RESET ROLE;
SELECT jobqueue_cancel_where('cw_mine', NULL, NULL);
SELECT jobqueue_drop_queue('cw_mine');
SELECT jobqueue_drop_queue('cw_many');
DROP OWNED BY regress_jq_canceller;
DROP ROLE regress_jq_canceller;
