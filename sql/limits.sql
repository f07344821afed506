-- Limits of queues: max_running, rate, weight.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
CREATE ROLE limits_a;
CREATE ROLE limits_b;
SELECT jobqueue_grant('limits_a', 'use'), jobqueue_grant('limits_b', 'use');

-- leaves a trace that says how many of these run now
CREATE FUNCTION together(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(77, (args->>'queue')::int);
	PERFORM pg_sleep(0.005);
	INSERT INTO ran (what) SELECT count(*) FROM pg_locks
		WHERE locktype = 'advisory' AND classid = 77
		  AND objid = (args->>'queue')::int AND granted;
END $$;
\set ECHO all

-- one at a time, of all roles, in order of priority for each
SELECT jobqueue_configure('one', max_running => 1);
SELECT jobqueue_pause('one');
SET ROLE limits_a;
SELECT count(jobqueue_enqueue('together', '{"queue": 1}', queue => 'one')) FROM generate_series(1, 20);
SET ROLE limits_b;
SELECT count(jobqueue_enqueue('together', '{"queue": 1}', queue => 'one')) FROM generate_series(1, 20);
RESET ROLE;
SELECT queue, ready, max_running, at_limit FROM jobqueue_status WHERE queue = 'one';
SELECT jobqueue_resume('one');
CALL drained();
SELECT what, role, count(*) FROM ran GROUP BY 1, 2 ORDER BY 1, 2;
TRUNCATE ran;
SELECT queue, ready, max_running, at_limit FROM jobqueue_status WHERE queue = 'one';

-- a limit that is taken away
SELECT jobqueue_configure('one', max_running => 0);
SELECT count(jobqueue_enqueue('note', '{"what": "free"}', queue => 'one')) FROM generate_series(1, 20);
CALL drained();
SELECT what, count(*) FROM ran GROUP BY 1;
TRUNCATE ran;

-- a bucket is empty in the beginning: nothing starts, and others are not delayed
SELECT jobqueue_configure('rated', rate => 1, rate_per => '100 days');
SELECT count(jobqueue_enqueue('note', '{"what": "rated"}', queue => 'rated')) FROM generate_series(1, 3);
SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'other') $$);
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_running) $$);
SELECT left_behind();
SELECT queue, ready, running, rate, rate_per, at_limit FROM jobqueue_status WHERE queue = 'rated';
-- another rate keeps what the bucket has, which is next to nothing
SELECT jobqueue_configure('rated', rate => 2, rate_per => '100 days');
SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'other') $$);
SELECT left_behind();
-- tokens come
SELECT jobqueue_configure('rated', rate => 1000);
SELECT jobqueue_configure('rated', rate => 1000, rate_per => '1 s');
CALL drained();
SELECT left_behind();
-- a period beyond all measure, past the function: none comes
SELECT jobqueue_configure('rated', rate => 0);
UPDATE jobqueue_queue SET rate = 1, rate_per = '400 years' WHERE name = 'rated';
SELECT jobqueue_enqueue('note', '{"what": "rated"}', queue => 'rated') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'other') $$);
SELECT left_behind();
SELECT jobqueue_configure('rated', rate => 0);
CALL drained();
SELECT left_behind();
-- and a rate that is taken away
SELECT jobqueue_configure('rated', rate => 1, rate_per => '366 days');
SELECT jobqueue_enqueue('note', '{"what": "1"}', queue => 'rated') > 0 AS id FROM generate_series(1, 1000) i WHERE i % 500 = 0;
SELECT jobqueue_configure('rated', rate => 0);
CALL drained();
SELECT DISTINCT what FROM ran;
TRUNCATE ran;
SELECT queue, rate, rate_per, at_limit FROM jobqueue_status WHERE queue = 'rated';

-- pause and limits: what is paused does not wait at its limit
SELECT jobqueue_configure('both', max_running => 1, rate => 1000);
SELECT jobqueue_pause('both');
SELECT count(jobqueue_enqueue('together', '{"queue": 2}', queue => 'both')) FROM generate_series(1, 5);
SELECT queue, ready, at_limit, paused FROM jobqueue_status WHERE queue = 'both';
SELECT jobqueue_resume('both');
CALL drained();
SELECT left_behind();

-- keys within limits, and a batch
SELECT jobqueue_configure('both', batch => 10);
SELECT count(jobqueue_enqueue('together', '{"queue": 2}', queue => 'both', key => 'k' || i % 3)) FROM generate_series(1, 30) i;
CALL drained();
SELECT what, count(*) FROM ran GROUP BY 1;
TRUNCATE ran;

-- weights are shares, not priorities: all is run
SELECT jobqueue_configure('heavy', weight => 10), jobqueue_configure('light', weight => 1);
SELECT count(jobqueue_enqueue('note', '{"what": "weighed"}', queue => q)) FROM generate_series(1, 50), unnest('{heavy,light,none}'::text[]) q;
CALL drained();
SELECT what, count(*) FROM ran GROUP BY 1;
TRUNCATE ran;

SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues;
DROP FUNCTION together;
DROP OWNED BY limits_a, limits_b;
DROP ROLE limits_a, limits_b;
