-- Other times and priorities, retries and deletions, one by one and many at once.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all
CREATE VIEW mine AS SELECT state, priority, tags[1] AS tag, run_at > now() + interval '1 hour' AS later
	FROM jobqueue_jobs WHERE queue LIKE 'w\_%';
CREATE FUNCTION counts() RETURNS TABLE (tag text, state text, priority int, later boolean, n bigint) LANGUAGE sql AS $$
	SELECT m.tag, m.state, m.priority, m.later, count(*) FROM mine m
	GROUP BY 1, 2, 3, 4 ORDER BY m.tag COLLATE "C", m.state COLLATE "C", 3 $$;

-- one job: runs at another time
SELECT jobqueue_enqueue('note', '{"what": "soon"}', queue => 'w_one', tags => '{soon}', run_at => now() + interval '1 day') AS soon \gset
SELECT jobqueue_reschedule(:soon, NULL);
CALL drained();
SELECT left_behind();
SELECT jobqueue_reschedule(:soon, now());
SELECT jobqueue_pause('w_one');
SELECT jobqueue_enqueue('note', '{"what": "later"}', queue => 'w_one', tags => '{later}') AS later \gset
SELECT jobqueue_reschedule(:later, now() + interval '1 day');
SELECT * FROM counts();
SELECT jobqueue_resume('w_one');
-- nothing of it is taken until its time has come
SELECT jobqueue_enqueue('note', '{"what": "x"}', queue => 'w_one') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'x') $$);
SELECT left_behind();
-- nor is it in anybody's hands
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_running) $$);
-- rolled back, it stays as it was; a moment that is over is now
BEGIN;
SELECT jobqueue_reschedule(:later, now() - interval '1 day');
SELECT * FROM counts();
ROLLBACK;
SELECT * FROM counts();
SELECT jobqueue_reschedule(:later, '-infinity');
CALL drained();
SELECT left_behind();

-- one job: another priority
SELECT jobqueue_pause('w_one');
SELECT jobqueue_enqueue('note', '{"what": "a"}', queue => 'w_one', key => 'k', tags => '{a}') AS a \gset
SELECT jobqueue_enqueue('note', '{"what": "b"}', queue => 'w_one', key => 'k', tags => '{b}') AS b \gset
SELECT jobqueue_enqueue('note', '{"what": "c"}', queue => 'w_one', key => 'k', tags => '{c}') AS c \gset
SELECT jobqueue_reprioritize(:c, -5);
BEGIN;
SELECT jobqueue_reprioritize(:b, 2);
SELECT jobqueue_reprioritize(:b, 3);
SELECT jobqueue_reprioritize(:a, -32768);
ROLLBACK;
BEGIN;
SELECT jobqueue_reprioritize(:b, 2);
SELECT jobqueue_reprioritize(:b, -1);
COMMIT;
SELECT * FROM counts();
SELECT jobqueue_resume('w_one');
CALL drained();
SELECT what FROM ran ORDER BY n;
SELECT left_behind();
SELECT jobqueue_reprioritize(:a, 1);

-- in the transaction that has enqueued it; then cancelled, then run
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "d"}', queue => 'w_one', tags => '{d}', run_at => 'tomorrow') AS d \gset
SELECT jobqueue_reprioritize(:d, 7);
SELECT jobqueue_reschedule(:d, NULL);
SELECT jobqueue_cancel(:d);
SELECT jobqueue_reschedule(:d, NULL);
COMMIT;
SELECT * FROM counts();
SELECT jobqueue_purge('w_one', NULL);
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "e"}', queue => 'w_one', run_at => 'tomorrow') AS e \gset
SELECT jobqueue_reschedule(:e, 'yesterday');
COMMIT;
CALL drained();
SELECT left_behind();

-- errors
\set VERBOSITY default
SELECT jobqueue_reschedule(NULL, now());
SELECT jobqueue_reschedule(1, 'infinity');
SELECT jobqueue_reprioritize(1, NULL);
SELECT jobqueue_reprioritize(1, 32768);
SELECT jobqueue_reschedule_where(NULL, NULL, NULL, now());
SELECT jobqueue_reschedule_where('q', 'running', NULL, now());
SELECT jobqueue_reschedule_where('q', NULL, NULL, 'infinity');
SELECT jobqueue_reprioritize_where(NULL, NULL, NULL, 1);
SELECT jobqueue_reprioritize_where('q', 'dead', NULL, 1);
SELECT jobqueue_reprioritize_where('q', NULL, NULL, NULL);
SELECT jobqueue_reprioritize_where('q', NULL, NULL, -32769);
SELECT jobqueue_retry_where(NULL, NULL, NULL);
SELECT jobqueue_retry_where('q', 'completed', NULL);
SELECT jobqueue_retry_where('a b', NULL, NULL);
SELECT jobqueue_purge(NULL, NULL);
SELECT jobqueue_purge(NULL, 'ready');
BEGIN READ ONLY;
SELECT jobqueue_purge('q', NULL);
ROLLBACK;
SELECT jobqueue_pause('w_many');
SELECT jobqueue_enqueue('note', '{}', queue => 'w_many') AS id \gset
BEGIN;
SELECT jobqueue_reprioritize_where('w_many', NULL, NULL, 1);
PREPARE TRANSACTION 'regress_where';
BEGIN;
SELECT jobqueue_reschedule(:id, NULL);
PREPARE TRANSACTION 'regress_where';
\set VERBOSITY sqlstate
SELECT jobqueue_reschedule(NULL, now());
SELECT jobqueue_reschedule(1, 'infinity');
SELECT jobqueue_purge(NULL, NULL);
\set VERBOSITY terse
SELECT jobqueue_cancel(:id);
SELECT jobqueue_purge('w_many', 'cancelled');

-- many jobs
SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', i), queue => 'w_many', key => 'm',
	tags => CASE WHEN i % 2 = 0 THEN '{even}' ELSE '{odd}' END::text[],
	run_at => CASE WHEN i % 5 = 0 THEN now() + interval '1 day' END))
FROM generate_series(1, 20) i;
SELECT jobqueue_reschedule_where('w_many', 'ready', 'odd', now() + interval '1 day');
SELECT * FROM counts();
SELECT jobqueue_reschedule_where('w_many', 'scheduled', NULL, NULL);
SELECT jobqueue_reprioritize_where('w_many', NULL, 'even', -1);
SELECT jobqueue_reprioritize_where('w_other', NULL, NULL, 9);
SELECT * FROM counts();
-- rolled back, wholly and to a savepoint
BEGIN;
SELECT jobqueue_reprioritize_where('w_many', NULL, NULL, 5);
SAVEPOINT s;
SELECT jobqueue_reschedule_where('w_many', NULL, NULL, now() + interval '1 day');
SELECT * FROM counts();
ROLLBACK TO s;
SELECT * FROM counts();
ROLLBACK;
SELECT * FROM counts();
SELECT jobqueue_resume('w_many');
CALL drained();
SELECT count(*), min(n) FILTER (WHERE what::int % 2 = 1) > max(n) FILTER (WHERE what::int % 2 = 0) AS even_first FROM ran;
SELECT count(*) FROM left_behind();

-- of the history
SELECT jobqueue_pause('w_many');
SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', i), queue => 'w_many', tags => ARRAY[(i % 2)::text]))
FROM generate_series(1, 10) i;
SELECT count(jobqueue_enqueue('SELECT 1/0', queue => 'w_dead', max_attempts => 1)) FROM generate_series(1, 3);
SELECT jobqueue_enqueue('note', '{"what": "kept"}', queue => 'w_dead', keep => '1 day') > 0 AS id;
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_jobs WHERE queue = 'w_dead' AND state IN ('ready', 'running')) $$);
SELECT jobqueue_cancel_where('w_many', NULL, NULL);
SELECT * FROM counts();
SELECT jobqueue_retry_where('w_many', 'dead', NULL);
SELECT jobqueue_retry_where('w_many', NULL, '1');
SELECT jobqueue_retry_where('w_many', 'cancelled', NULL);
SELECT * FROM counts();
-- those that are dead come back with their attempts reset
BEGIN;
SELECT jobqueue_pause('w_dead');
SELECT jobqueue_retry_where('w_dead', NULL, NULL);
SELECT count(*) FROM jobqueue_jobs WHERE queue = 'w_dead' AND state = 'ready' AND attempt = 0 AND errors IS NOT NULL;
ROLLBACK;
-- with two-phase commit
BEGIN;
SELECT jobqueue_retry_where('w_dead', NULL, NULL);
SELECT jobqueue_purge('w_dead', 'completed');
PREPARE TRANSACTION 'regress_where';
ROLLBACK PREPARED 'regress_where';
SELECT * FROM counts();
BEGIN;
SELECT jobqueue_retry_where('w_dead', NULL, NULL);
PREPARE TRANSACTION 'regress_where';
COMMIT PREPARED 'regress_where';
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_jobs WHERE queue = 'w_dead' AND state IN ('ready', 'running')) $$);
SELECT * FROM counts();
SELECT jobqueue_purge('w_dead', 'completed');
SELECT jobqueue_purge('w_dead', 'cancelled');
-- live jobs stay
SELECT jobqueue_purge('w_many', NULL);
SELECT jobqueue_purge('w_dead', 'dead');
SELECT * FROM counts();
SELECT jobqueue_resume('w_many');
CALL drained();
SELECT count(*) FROM left_behind();

-- only of roles whose privileges one has
CREATE ROLE regress_jq_mine;
CREATE ROLE regress_jq_admin;
SELECT jobqueue_grant('regress_jq_mine', 'use');
SELECT jobqueue_grant('regress_jq_admin', 'admin');
SELECT jobqueue_pause('w_many');
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'w_many', tags => '{root}')) FROM generate_series(1, 5);
SELECT min(id) AS id FROM jobqueue_jobs WHERE queue = 'w_many' \gset
SET ROLE regress_jq_mine;
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'w_many', tags => '{mine}')) FROM generate_series(1, 3);
SELECT jobqueue_reprioritize_where('w_many', NULL, NULL, 4);
SELECT jobqueue_reschedule_where('w_many', NULL, NULL, now() + interval '1 day');
\set VERBOSITY sqlstate
SELECT jobqueue_reschedule(:id, now());
SELECT jobqueue_reprioritize(:id, 1);
\set VERBOSITY terse
SELECT jobqueue_configure('w_many', weight => 2);
RESET ROLE;
SELECT * FROM counts();
SET ROLE regress_jq_admin;
SELECT jobqueue_reprioritize(:id, 1);
SELECT jobqueue_reprioritize_where('w_many', NULL, NULL, 4);
SELECT jobqueue_cancel_where('w_many', NULL, NULL);
SET ROLE regress_jq_mine;
SELECT jobqueue_retry_where('w_many', NULL, NULL);
SELECT jobqueue_cancel_where('w_many', NULL, NULL);
SELECT jobqueue_purge('w_many', NULL);
RESET ROLE;
SELECT * FROM counts();
SET ROLE regress_jq_admin;
SELECT jobqueue_purge('w_many', NULL);
BEGIN;
SELECT jobqueue_purge(NULL, NULL, everything => true) >= 0 AS purged;
SELECT count(*) FROM jobqueue_history;
ROLLBACK;
RESET ROLE;
SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues WHERE queue LIKE 'w\_%';
DROP OWNED BY regress_jq_mine, regress_jq_admin;
DROP ROLE regress_jq_mine, regress_jq_admin;
