-- jobqueue_explain(): what needs neither crashes nor other servers.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- without ids, pids and times
CREATE FUNCTION why(job bigint) RETURNS text LANGUAGE sql AS $$
	SELECT regexp_replace(regexp_replace(regexp_replace(regexp_replace(jobqueue_explain(job),
		'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*|\w{3} \w{3} \d\d [\d:.]+ \d{4} \w{3}', 'TIME', 'g'),
		'pid \d+', 'pid N', 'g'), 'job \d+', 'job N', 'g'), 'due in [^,]+', 'due in SPAN', 'g') $$;
SELECT jobqueue_enqueue('SELECT 1', keep => '1 day') AS kept \gset
SELECT jobqueue_enqueue('SELECT 1/0', max_attempts => 1) AS dead \gset
CALL wait_until(format('(SELECT count(*) = 2 FROM jobqueue_recent WHERE id IN (%s, %s))', :kept, :dead));

-- what has ended, or never was
SELECT why(:kept);
SELECT why(:dead);
SELECT jobqueue_enqueue('SELECT jobqueue_discard(''no use'')') AS discarded \gset
SELECT jobqueue_enqueue('SELECT 2') AS gone \gset
CALL wait_until(format('(SELECT count(*) = 2 FROM jobqueue_recent WHERE id IN (%s, %s))', :discarded, :gone));
SELECT why(:discarded);
SELECT why(:gone);
SELECT why(0), why(-1), why(9223372036854775807);
CALL raises('SELECT jobqueue_explain(NULL)');
BEGIN;
SELECT jobqueue_enqueue('SELECT 1') AS undone \gset
SELECT why(:undone);
ROLLBACK;
SELECT why(:undone);

-- the job itself
SELECT jobqueue_enqueue('SELECT 1', run_at => '2999-01-01 00:00 UTC') AS id \gset
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
SELECT jobqueue_explain(:id) ~ '^due in \d+ days [\d:]+, at (2999-01-01 00:00:00\+00|Tue Jan 01 00:00:00 2999 UTC)$' AS due;
RESET timezone;
RESET intervalstyle;
SELECT jobqueue_cancel(:id);
SELECT why(:id);
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('SELECT 1/0', max_attempts => 2, run_at => '2999-01-01') AS id \gset
UPDATE jobqueue_job SET attempt = 1, errors = '[{"error": "old"}, {"error": "no route to host"}]' WHERE id = :id;
SELECT why(:id);
SELECT jobqueue_cancel(:id);
-- errors by hand
SELECT jobqueue_enqueue('SELECT 1', max_attempts => 2, run_at => '2999-01-01', expires_at => '2999-01-02') AS id \gset
UPDATE jobqueue_job SET attempt = 1, errors = '[]' WHERE id = :id;
SELECT why(:id);
UPDATE jobqueue_job SET errors = '["text"]' WHERE id = :id;
SELECT why(:id);
UPDATE jobqueue_job SET errors = '[{"error": 5}]' WHERE id = :id;
SELECT why(:id);
SELECT jobqueue_cancel(:id);
-- the scheduler may have come first, or be about to cancel it
SELECT jobqueue_enqueue('SELECT 1', expires_at => '2000-01-01') AS id \gset
SELECT why(:id) ~ '^(expired at TIME, and will be cancelled|held by a transaction in pid N that acts on it, since TIME|transaction \d+, which has not ended, changes or deletes its row|cancelled at TIME: expired)$' AS expired;
SELECT jobqueue_cancel(:id) IS NOT NULL AS asked;
SELECT jobqueue_enqueue('SELECT 1') AS id \gset
UPDATE jobqueue_job SET home = home + 1 WHERE id = :id;
SELECT why(:id);
DELETE FROM jobqueue_job WHERE id = :id;

-- what stops many
SELECT jobqueue_enqueue('SELECT 1') AS id \gset
SELECT why(:id);
SELECT jobqueue_resume();
CALL drained();
SELECT jobqueue_pause('stopped');
SELECT jobqueue_enqueue('SELECT 1', queue => 'stopped') AS id \gset
SELECT why(:id);
SELECT jobqueue_cancel(:id);
SELECT jobqueue_drop_queue('stopped');

-- it runs; others wait for its key
SELECT pg_advisory_lock(4712);
CREATE FUNCTION gate() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM jobqueue_progress(0.42, 'waiting');
	PERFORM pg_advisory_xact_lock_shared(4712);
END $$;
SELECT jobqueue_enqueue('gate', key => 'user:42', max_attempts => 3) AS runs \gset
CALL wait_until('EXISTS (SELECT FROM jobqueue_running WHERE progress IS NOT NULL)');
SELECT why(:runs);
SELECT count(jobqueue_enqueue('SELECT 1', key => 'user:42', priority => i)) FROM generate_series(1, 4) i;
SELECT max(id) AS last, min(id) AS first FROM jobqueue_job WHERE key = 'user:42' AND id <> :runs \gset
CALL wait_until(format('(SELECT jobqueue_explain(%s) ~ ''3 ahead'')', :last));
SELECT why(:first);
SELECT why(:last);
-- the numbers are true
SELECT jobqueue_explain(:first) ~ format('^waits for key ''user:42'', held by job %s in pid %s since ', id, pid) AS true
FROM jobqueue_running;

-- one sees jobs of roles one is a member of; and so the holder of a key
CREATE ROLE regress_jq_explain;
CREATE ROLE regress_jq_watch;
SELECT jobqueue_grant('regress_jq_explain', 'use'), jobqueue_grant('regress_jq_watch', 'monitor');
SET ROLE regress_jq_explain;
CALL raises('SELECT jobqueue_explain(1)');
SELECT jobqueue_enqueue('SELECT 1', key => 'user:42', priority => 9) AS id \gset
RESET ROLE;
CALL wait_until(format('(SELECT jobqueue_explain(%s) ~ ''4 ahead'')', :id));
SET ROLE regress_jq_explain;
SELECT why(:id);
SELECT set_config('test.id', :'runs', false) = :'runs' AS set;
DO $$
BEGIN
	PERFORM jobqueue_explain(current_setting('test.id')::bigint);
EXCEPTION WHEN insufficient_privilege THEN
	RAISE INFO '%', regexp_replace(sqlerrm, '\d+', 'N');
END $$;
SET ROLE regress_jq_watch;
SELECT why(:id);
SELECT why(:runs);
RESET ROLE;
SELECT pg_advisory_unlock(4712);
CALL drained();

-- it waits for others
SELECT array_agg(jobqueue_enqueue('SELECT 1', run_at => '2999-01-01', tags => '{first}') ORDER BY i) AS ids FROM generate_series(1, 12) i \gset
SELECT jobqueue_enqueue('SELECT 1', after => (:'ids'::bigint[])[1:1]) AS one, jobqueue_enqueue('SELECT 1', after => (:'ids'::bigint[])[1:3]) AS three,
	jobqueue_enqueue('SELECT 1', after => :'ids') AS many \gset
SELECT why(:one) AS one, jobqueue_explain(:three) = 'waits for 3 jobs: ' || array_to_string(ids[1:3], ', ') AS three,
	jobqueue_explain(:many) = 'waits for 12 jobs: ' || array_to_string(ids[1:3], ', ') || ', ...' AS many
FROM (SELECT :'ids'::bigint[]) x (ids);
SELECT jobqueue_cancel_where(NULL, NULL, 'first');
CALL drained();
-- a consumer has it, another one waits for its key
SELECT jobqueue_enqueue(NULL, queue => 'fetched', key => 'user:43') AS leased \gset
SELECT token FROM jobqueue_fetch('fetched', wait => '1 min', lease => '1 hour') \gset
SELECT jobqueue_enqueue(NULL, queue => 'fetched', key => 'user:44') AS mine \gset
SELECT count(*) FROM jobqueue_fetch('fetched', wait => '1 min');
SELECT why(:leased) AS leased, why(:mine) AS mine;
SELECT jobqueue_enqueue('SELECT 1', key => 'user:43') AS a, jobqueue_enqueue('SELECT 1', key => 'user:44') AS b \gset
CALL wait_until($$ (SELECT sum(blocked) = 2 FROM jobqueue_status WHERE queue = 'default') $$);
SELECT why(:a) AS a, why(:b) AS b;
SET ROLE regress_jq_explain;
SELECT jobqueue_enqueue('SELECT 1', key => 'user:44', priority => -1) AS c \gset
RESET ROLE;
CALL wait_until($$ (SELECT sum(blocked) = 3 FROM jobqueue_status WHERE queue = 'default') $$);
SET ROLE regress_jq_explain;
SELECT why(:c) AS c;
RESET ROLE;
SELECT jobqueue_cancel(:mine);
SELECT why(:mine) AS mine;
SELECT jobqueue_complete(:leased, token => :'token');
CALL raises(format('DO $x$ BEGIN PERFORM jobqueue_release(%s); EXCEPTION WHEN query_canceled THEN NULL; END $x$', :mine));
CALL drained();

-- reads, at every level of isolation
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT why(:kept);
SELECT pg_current_xact_id_if_assigned() AS xid;
COMMIT;
-- held by this session
SELECT jobqueue_pause('held');
SELECT jobqueue_enqueue('SELECT 1', queue => 'held') AS id \gset
BEGIN;
SELECT jobqueue_run(:id);
SELECT why(:id);
ROLLBACK;
BEGIN;
SELECT jobqueue_reschedule(:id, NULL);
SELECT why(:id);
SELECT jobqueue_enqueue('SELECT 1', queue => 'held') AS new \gset
SELECT why(:new);
ROLLBACK;
SELECT jobqueue_cancel(:id);
SELECT jobqueue_drop_queue('held');

DROP FUNCTION why, gate;
DROP OWNED BY regress_jq_explain, regress_jq_watch;
DROP ROLE regress_jq_explain, regress_jq_watch;
DELETE FROM jobqueue_archive;
