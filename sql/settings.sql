-- Settings of queues: what can be set, what is refused, what is in force.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- a queue that is only named has the defaults
SELECT jobqueue_configure('plain');
\x on
SELECT * FROM jobqueue_queues;
SELECT jobqueue_configure('all', max_running => 5, key_limit => 2, rate => 100,
	rate_per => '1 minute', key_rate => 3, key_rate_per => '1 hour', weight => 4,
	ordered => true, max_attempts => 3, backoff => 'linear', backoff_base => '2 s',
	backoff_max => '1 min', timeout => '5 min', keep => '1 day',
	keep_dead => '30 days', synchronous_commit => 'on', batch => 7,
	on_dead => 'note');
SELECT * FROM jobqueue_queues WHERE queue = 'all';
-- NULL leaves each as it is
SELECT jobqueue_configure('all');
SELECT jobqueue_configure('all', weight => 5);
SELECT * FROM jobqueue_queues WHERE queue = 'all';
-- 0 and the empty text take away
SELECT jobqueue_configure('all', max_running => 0, rate => 0, key_rate => 0,
	max_attempts => 0, timeout => '0', keep => '0', synchronous_commit => '',
	on_dead => '', backoff => 'CONSTANT');
SELECT * FROM jobqueue_queues WHERE queue = 'all';
\x off
-- a rate without a period is one a second, or as it was
SELECT jobqueue_configure('rates', rate => 10);
SELECT rate, rate_per FROM jobqueue_queues WHERE queue = 'rates';
SELECT jobqueue_configure('rates', rate_per => '1 hour');
SELECT jobqueue_configure('rates', rate => 20);
SELECT rate, rate_per FROM jobqueue_queues WHERE queue = 'rates';

-- errors; nothing of such a call is done
\set VERBOSITY default
SELECT jobqueue_configure('no', weight => 2, max_running => -1);
SELECT jobqueue_configure('no', key_limit => 0);
SELECT jobqueue_configure('no', rate => -1);
SELECT jobqueue_configure('no', rate_per => '0');
SELECT jobqueue_configure('no', key_rate => 2000000000);
SELECT jobqueue_configure('no', key_rate_per => '2 years');
SELECT jobqueue_configure('no', weight => 0);
SELECT jobqueue_configure('no', max_attempts => 32768);
SELECT jobqueue_configure('no', backoff => 'often');
SELECT jobqueue_configure('no', backoff => '');
SELECT jobqueue_configure('no', backoff_base => '-1 s');
SELECT jobqueue_configure('no', backoff_max => '110 years');
SELECT jobqueue_configure('no', timeout => '-1 s');
SELECT jobqueue_configure('no', keep => '178000000 years');
SELECT jobqueue_configure('no', keep_dead => '-178000000 years');
SELECT jobqueue_configure('no', synchronous_commit => 'maybe');
SELECT jobqueue_configure('no', batch => 101);
\set VERBOSITY sqlstate
SELECT jobqueue_configure('no', weight => 0);
SELECT jobqueue_configure('no', timeout => '-1 s');
SELECT jobqueue_configure('no', backoff => 'often');
\set VERBOSITY terse
SELECT queue FROM jobqueue_queues ORDER BY 1;

-- rows written past the function are checked as well
INSERT INTO jobqueue_queue (name, weight) VALUES ('no', 0);
INSERT INTO jobqueue_queue (name, backoff) VALUES ('no', 'often');
INSERT INTO jobqueue_queue (name, timeout) VALUES ('no', '-1 s');
-- an older dump has fewer columns
INSERT INTO jobqueue_queue (name, paused, batch) VALUES ('older', false, 3);
SELECT max_running, key_limit, weight, backoff, timeout, keep_dead
	FROM jobqueue_queues WHERE queue = 'older';
SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues ORDER BY queue;

-- A setting holds for jobs that wait already, unless they have their own.
CREATE FUNCTION waits(queue text) RETURNS TABLE (attempt int, max_attempts int, waits numeric) LANGUAGE sql AS $$
	SELECT j.attempt, j.max_attempts,
		   round(extract(epoch FROM j.run_at - (j.errors->-1->>'at')::timestamptz) / 1000)
	FROM jobqueue_jobs j WHERE j.queue = waits.queue AND j.run_at > now() ORDER BY j.id $$;
-- each failure waits for so many thousand seconds, 20 percent more or less
CREATE PROCEDURE fail_again(queue text, times int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1..times LOOP
			CALL wait_until(format('NOT EXISTS (SELECT FROM jobqueue_jobs WHERE queue = %L AND state IN (''ready'', ''running'', ''blocked''))', queue));
			IF i < times THEN
				PERFORM jobqueue_reschedule_where(queue, 'scheduled', NULL, NULL);
			END IF;
		END LOOP;
	END $$;
-- max_attempts: of the job, of the queue, by default
SELECT jobqueue_pause('s');
SELECT jobqueue_enqueue('SELECT 1/0', queue => 's', tags => '{default}') AS a \gset
SELECT jobqueue_enqueue('SELECT 1/0', queue => 's', tags => '{own}', max_attempts => 1) AS b \gset
SELECT tags, max_attempts FROM jobqueue_jobs WHERE queue = 's' ORDER BY id;
SELECT jobqueue_configure('s', max_attempts => 2, backoff_base => '1000 s', backoff_max => '1 day');
SELECT tags, max_attempts FROM jobqueue_jobs WHERE queue = 's' ORDER BY id;
SELECT jobqueue_resume('s');
CALL fail_again('s', 2);
SELECT tags, state, attempt, max_attempts, reason FROM jobqueue_jobs WHERE queue = 's' ORDER BY id;
-- lowered below what it has failed already: the next failure is the last
SELECT jobqueue_configure('s', max_attempts => 9);
SELECT jobqueue_enqueue('SELECT 1/0', queue => 's', tags => '{lowered}') AS c \gset
CALL fail_again('s', 4);
SELECT tags, attempt, max_attempts FROM jobqueue_jobs WHERE id = :c;
SELECT jobqueue_configure('s', max_attempts => 3);
SELECT jobqueue_reschedule(:c, NULL);
CALL fail_again('s', 1);
SELECT state, attempt, max_attempts, reason FROM jobqueue_jobs WHERE id = :c;
SELECT jobqueue_purge('s', NULL);
-- the job is told
SELECT jobqueue_enqueue($$INSERT INTO ran (what) SELECT max_attempts::text FROM jobqueue_current()$$, queue => 's') > 0 AS id;
SELECT jobqueue_enqueue($$INSERT INTO ran (what) SELECT max_attempts::text FROM jobqueue_current()$$, queue => 's', max_attempts => 4) > 0 AS id;
CALL drained();
SELECT what FROM ran ORDER BY what;
DELETE FROM ran;
BEGIN;
SELECT jobqueue_enqueue($$INSERT INTO ran (what) SELECT max_attempts::text FROM jobqueue_current()$$, queue => 's') AS id \gset
SELECT jobqueue_run(:id);
SELECT what FROM ran;
ROLLBACK;

-- backoff
SELECT jobqueue_configure('s', max_attempts => 20);
SELECT jobqueue_enqueue('SELECT 1/0', queue => 's') > 0 AS id;
CALL fail_again('s', 1);
SELECT attempt, waits BETWEEN 1 AND 1 AS ok FROM waits('s');
SELECT jobqueue_reschedule_where('s', NULL, NULL, NULL);
CALL fail_again('s', 3);
SELECT attempt, waits BETWEEN 6 AND 10 AS ok FROM waits('s');
SELECT jobqueue_configure('s', backoff => 'linear');
SELECT jobqueue_reschedule_where('s', NULL, NULL, NULL);
CALL fail_again('s', 6);
SELECT attempt, waits BETWEEN 8 AND 12 AS ok FROM waits('s');
SELECT jobqueue_configure('s', backoff => 'constant', backoff_base => '20000 s');
SELECT jobqueue_reschedule_where('s', NULL, NULL, NULL);
CALL fail_again('s', 1);
SELECT attempt, waits BETWEEN 16 AND 24 AS ok FROM waits('s');
SELECT jobqueue_configure('s', backoff => 'exponential', backoff_max => '50000 s');
SELECT jobqueue_reschedule_where('s', NULL, NULL, NULL);
CALL fail_again('s', 1);
SELECT attempt, waits BETWEEN 40 AND 60 AS ok FROM waits('s');
SELECT jobqueue_cancel_where('s', NULL, NULL);

-- timeout
SELECT jobqueue_configure('s', timeout => '100 ms', max_attempts => 1);
SELECT jobqueue_enqueue('SELECT pg_sleep(600)', queue => 's') AS id \gset
SELECT jobqueue_enqueue($$INSERT INTO ran (what) SELECT 'has its own' FROM pg_sleep(0.3)$$, queue => 's', timeout => '1 h') AS own \gset
SELECT timeout FROM jobqueue_jobs WHERE id = :own;
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_jobs WHERE queue = 's' AND state IN ('ready', 'running')) $$);
SELECT state, timeout, errors->0->>'error' AS error FROM jobqueue_jobs WHERE id = :id;
SELECT left_behind();

-- keep, keep_dead
SELECT jobqueue_configure('s', keep => '3 days', keep_dead => '30 days', timeout => '0');
SELECT jobqueue_purge('s', NULL);
SELECT jobqueue_enqueue('SELECT 42', queue => 's', tags => '{queue}') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 43', queue => 's', tags => '{own}', keep => '1 day') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 44', queue => 's', tags => '{none}', keep => '0') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 1/0', queue => 's', tags => '{dead}') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 1', queue => 's', tags => '{cancelled}', run_at => 'tomorrow') AS id \gset
SELECT jobqueue_enqueue('SELECT 1', queue => 's', tags => '{cancelled_where}', run_at => 'tomorrow') > 0 AS id;
SELECT jobqueue_enqueue('SELECT 1', queue => 's', tags => '{expired}', run_at => 'tomorrow', expires_at => 'yesterday') > 0 AS id;
SELECT jobqueue_cancel(:id);
SELECT jobqueue_cancel_where('s', 'scheduled', 'cancelled_where');
CALL drained();
SELECT tags, state, result, extract(day FROM expires_at - ended_at + '2 hours')::int AS days FROM jobqueue_history WHERE queue = 's' ORDER BY tags;
BEGIN;
SELECT jobqueue_enqueue('SELECT 45', queue => 's', tags => '{here}') AS id \gset
SELECT jobqueue_run(:id);
SELECT state, result, extract(day FROM expires_at - ended_at + '2 hours')::int AS days FROM jobqueue_history WHERE id = :id;
ROLLBACK;
SELECT jobqueue_purge('s', NULL);

-- synchronous_commit: of the role, of the queue, of the job
CREATE FUNCTION level() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('synchronous_commit') $$;
SELECT jobqueue_enqueue('level', queue => 's', tags => '{1}') > 0 AS id;
CALL drained();
SELECT jobqueue_configure('s', synchronous_commit => 'remote_write');
SELECT jobqueue_enqueue('level', queue => 's', tags => '{2}') > 0 AS id;
CALL drained();
SELECT jobqueue_enqueue($$SET LOCAL synchronous_commit = local; SELECT level()$$, queue => 's', tags => '{3}') > 0 AS id;
CALL drained();
SELECT jobqueue_configure('s', synchronous_commit => '');
SELECT jobqueue_enqueue('level', queue => 's', tags => '{4}') > 0 AS id;
CALL drained();
SELECT tags, result FROM jobqueue_history WHERE queue = 's' ORDER BY tags;
-- through a command that commits by itself, and not longer
CREATE PROCEDURE levels() LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO ran (what) SELECT level(); COMMIT;
		INSERT INTO ran (what) SELECT level(); COMMIT;
	END $$;
SELECT jobqueue_configure('s', synchronous_commit => 'local', keep => '0');
SELECT jobqueue_enqueue('CALL levels()', queue => 's') > 0 AS id;
CALL drained();
SELECT jobqueue_configure('s', synchronous_commit => '');
SELECT jobqueue_enqueue('INSERT INTO ran (what) SELECT level()', queue => 's') > 0 AS id;
CALL drained();
SELECT left_behind();
SELECT jobqueue_purge('s', NULL);
SELECT jobqueue_drop_queue('s');
-- none of the settings that are to be captured has a value
SET jobqueue.capture_settings = 'regress.nobody, regress.none';
SELECT jobqueue_enqueue('SELECT 1', run_at => '2999-01-01') AS id \gset
SELECT settings FROM jobqueue_job WHERE id = :id;
RESET jobqueue.capture_settings;
SELECT jobqueue_cancel(:id);
-- each commit flushed at once
ALTER SYSTEM SET jobqueue.flush_interval = 0;
SELECT pg_reload_conf();
CALL wait_until($$ current_setting('jobqueue.flush_interval') = '0' $$);
SELECT count(jobqueue_enqueue('INSERT INTO ran (what) VALUES (''flushed'')')) FROM generate_series(1, 3);
CALL drained();
SELECT left_behind();
ALTER SYSTEM RESET jobqueue.flush_interval;
SELECT pg_reload_conf();
CALL wait_until($$ current_setting('jobqueue.flush_interval') <> '0' $$);
