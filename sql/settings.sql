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
