-- Keys: several holders, a rate, ordered queues.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
CREATE FUNCTION at_gate(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(4711);
	INSERT INTO public.ran (what) VALUES (args->>'what');
END $$;
CREATE TABLE moods (what text);
CREATE FUNCTION moody(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM public.moods m WHERE m.what = args->>'what') THEN
		RAISE EXCEPTION 'bad mood';
	END IF;
	INSERT INTO public.ran (what) VALUES (args->>'what');
END $$;
\set ECHO all

-- two of a key at a time; each holder has a row
SELECT jobqueue_configure('kl_two', key_limit => 2);
SELECT pg_advisory_lock(4711);
SELECT count(jobqueue_enqueue('at_gate', '{"what": "two"}', queue => 'kl_two', key => 'k'))
	FROM generate_series(1, 2);
CALL wait_until($$ (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted) = 2 $$);
-- a queue with the default does not come between them, and is not overtaken
SELECT jobqueue_enqueue('note', '{"what": "one"}', queue => 'kl_one', key => 'k') > 0 AS id;
CALL wait_until($$ (SELECT sum(blocked) FROM jobqueue_status) = 1 $$);
SELECT jobqueue_enqueue('note', '{"what": "third"}', queue => 'kl_two', key => 'k') > 0 AS id;
CALL wait_until($$ (SELECT sum(blocked) FROM jobqueue_status) = 2 $$);
SELECT key, pid IS NOT NULL AS held, job IS NOT NULL AS job, waiting FROM jobqueue_keys;
-- jobqueue_run has to respect them
\set VERBOSITY sqlstate
SELECT id AS third FROM jobqueue_jobs WHERE args->>'what' = 'third' \gset
SELECT jobqueue_run(:third) IS NULL AS ran;
\set VERBOSITY terse
SELECT pg_advisory_unlock(4711);
CALL drained();
SELECT left_behind();
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_keys) $$);

-- a token a day: nothing of the key starts, but all else
SELECT jobqueue_configure('kl_rated', key_rate => 1, key_rate_per => '1 day');
SELECT count(jobqueue_enqueue('note', '{"what": "rated"}', queue => 'kl_rated', key => 'k'))
	FROM generate_series(1, 2);
CALL wait_until($$ (SELECT sum(blocked) FROM jobqueue_status) = 2 $$);
SELECT key, pid, waiting FROM jobqueue_keys;
SELECT jobqueue_enqueue('note', '{"what": "no key"}', queue => 'kl_rated') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'no key') $$);
SELECT jobqueue_enqueue('note', '{"what": "another queue"}', key => 'k') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'another queue') $$);
SELECT jobqueue_configure('kl_rated', key_rate => 0);
CALL drained();
SELECT left_behind();

-- a job that failed keeps later ones of its key from starting
SELECT jobqueue_configure('kl_ord', ordered => true);
INSERT INTO moods VALUES ('a');
SELECT jobqueue_enqueue('moody', '{"what": "a"}', queue => 'kl_ord', key => 'k') AS a \gset
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_job WHERE attempt > 0) $$);
SELECT jobqueue_enqueue('moody', '{"what": "b"}', queue => 'kl_ord', key => 'k') > 0 AS id;
SELECT jobqueue_enqueue('moody', '{"what": "c"}', queue => 'kl_ord', key => 'l') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM ran WHERE what = 'c') $$);
CALL wait_until($$ (SELECT sum(blocked) FROM jobqueue_status) = 1 $$);
SELECT left_behind();
SELECT args->>'what' AS what, state, attempt FROM jobqueue_jobs WHERE queue = 'kl_ord' ORDER BY id;
-- until it is cancelled
SELECT jobqueue_cancel(:a);
CALL drained();
SELECT left_behind();
-- or succeeds
SELECT jobqueue_enqueue('moody', '{"what": "a"}', queue => 'kl_ord', key => 'k') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_job WHERE attempt > 0) $$);
SELECT jobqueue_enqueue('moody', '{"what": "b"}', queue => 'kl_ord', key => 'k') > 0 AS id;
DELETE FROM moods;
CALL drained();
SELECT left_behind();

\set ECHO none
SET client_min_messages = warning;
SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues WHERE queue LIKE 'kl_%' \g /dev/null
DROP FUNCTION at_gate, moody;
DROP TABLE moods;
