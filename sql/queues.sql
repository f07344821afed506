-- Settings of queues: configure, pause, resume, drop.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- a queue has the defaults until it gets settings
SELECT queue, paused, batch FROM jobqueue_queues;
SELECT jobqueue_configure('mail', batch => 10);
SELECT jobqueue_configure('mail');
SELECT jobqueue_configure('plain');
SELECT queue, paused, batch FROM jobqueue_queues ORDER BY queue;

-- paused: jobs wait, those of other queues do not
SELECT jobqueue_pause('mail');
SELECT jobqueue_enqueue('note', '{"what": "mail"}', queue => 'mail') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'other') AND NOT EXISTS (SELECT FROM jobqueue_running) $$);
SELECT left_behind();
SELECT queue, ready, running, paused FROM jobqueue_status
	WHERE queue IN ('mail', 'other') ORDER BY queue;
SELECT queue, paused, batch FROM jobqueue_queues WHERE queue = 'mail';
-- twice is as good as once
SELECT jobqueue_pause('mail');
SELECT jobqueue_resume('mail');
CALL drained();
SELECT left_behind();
SELECT jobqueue_resume('mail');
SELECT jobqueue_resume('never_configured');
SELECT queue, paused, batch FROM jobqueue_queues ORDER BY queue;

-- transactional, savepoints too
BEGIN;
SELECT jobqueue_pause('mail');
SELECT jobqueue_enqueue('note', '{"what": "a"}', queue => 'mail') > 0 AS id;
ROLLBACK;
BEGIN;
SELECT jobqueue_configure('mail', batch => 20);
SAVEPOINT s;
SELECT jobqueue_pause('mail');
SELECT jobqueue_configure('mail', batch => 30);
ROLLBACK TO s;
SELECT jobqueue_enqueue('note', '{"what": "b"}', queue => 'mail') > 0 AS id;
COMMIT;
CALL drained();
SELECT left_behind();
SELECT queue, paused, batch FROM jobqueue_queues WHERE queue = 'mail';
-- a job that is enqueued together with a pause does not start
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "c"}', queue => 'mail') > 0 AS id;
SELECT jobqueue_pause('mail');
COMMIT;
SELECT jobqueue_enqueue('note', '{"what": "d"}') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'd') $$);
SELECT left_behind();

-- only a queue without jobs is dropped
SELECT jobqueue_drop_queue('mail');
SELECT jobqueue_enqueue('note', '{"what": "later"}', queue => 'plain', run_at => now() + interval '1 day') AS later \gset
SELECT jobqueue_drop_queue('plain');
SELECT jobqueue_cancel(:later);
SELECT jobqueue_drop_queue('plain');
SELECT jobqueue_resume('mail');
CALL drained();
BEGIN;
SELECT jobqueue_drop_queue('mail');
ROLLBACK;
SELECT queue, paused, batch FROM jobqueue_queues;
SELECT jobqueue_drop_queue('mail');
SELECT left_behind();
SELECT queue, paused, batch FROM jobqueue_queues;
-- what is dropped is not paused
SELECT jobqueue_pause('mail');
SELECT jobqueue_drop_queue('mail');
SELECT jobqueue_enqueue('note', '{"what": "e"}', queue => 'mail') > 0 AS id;
CALL drained();
SELECT left_behind();

-- errors
\set VERBOSITY default
SELECT jobqueue_configure('a b');
SELECT jobqueue_configure('');
SELECT jobqueue_configure(NULL, batch => 1);
SELECT jobqueue_configure('mail', batch => 0);
SELECT jobqueue_configure('mail', batch => 101);
SELECT jobqueue_pause(NULL);
SELECT jobqueue_pause('ä');
SELECT jobqueue_resume(NULL::text);
SELECT jobqueue_drop_queue('mail');
\set VERBOSITY sqlstate
SELECT jobqueue_configure('mail', batch => 0);
SELECT jobqueue_configure('?');
SELECT jobqueue_configure(NULL);
SELECT jobqueue_drop_queue('mail');
BEGIN READ ONLY;
SELECT jobqueue_pause('mail');
ROLLBACK;
\set VERBOSITY terse
SELECT queue, paused, batch FROM jobqueue_queues;

-- rows written past the functions are read, and are checked
INSERT INTO jobqueue_queue (name, paused) VALUES ('direct', true);
SELECT jobqueue_enqueue('note', '{"what": "f"}', queue => 'direct') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "g"}') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'g') $$);
SELECT left_behind();
UPDATE jobqueue_queue SET paused = false;
CALL drained();
SELECT left_behind();
INSERT INTO jobqueue_queue (name) VALUES ('a b');
INSERT INTO jobqueue_queue (name, batch) VALUES ('ok', 101);
INSERT INTO jobqueue_queue (name, paused) VALUES ('gone', true);
TRUNCATE jobqueue_queue;
SELECT jobqueue_enqueue('note', '{"what": "h"}', queue => 'gone') > 0 AS id;
CALL drained();
SELECT left_behind();
