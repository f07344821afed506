-- What a job may say about itself: progress, snooze, discard.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- only in a job
CALL raises('SELECT jobqueue_progress(0.5)');
CALL raises('SELECT jobqueue_snooze(''1 s'')');
CALL raises('SELECT jobqueue_discard(''why'')');

-- waits for the end of a job that is run by a worker, and tells of it
CREATE PROCEDURE ended(job bigint) LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_until(format('EXISTS (SELECT FROM jobqueue_recent WHERE id = %s'
		' AND outcome IN (''completed'', ''dead'', ''cancelled''))', job));
END $$;
CREATE FUNCTION history(job bigint) RETURNS TABLE (state text, reason text, attempt int, errors text)
LANGUAGE sql AS $$
	SELECT state, reason, attempt,
		(SELECT string_agg(e->>'sqlstate' || ' ' || (e->>'error'), ', ') FROM jsonb_array_elements(errors) e)
	FROM jobqueue_history WHERE id = job $$;

-- bad arguments are errors of the job
CREATE FUNCTION try_args() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	q text; s text; m text; h text;
BEGIN
	FOREACH q IN ARRAY ARRAY['jobqueue_progress(NULL)', 'jobqueue_progress(-0.01)', 'jobqueue_progress(1.01)',
		'jobqueue_progress(''NaN'')', 'jobqueue_progress(''inf'')', 'jobqueue_progress(1)', 'jobqueue_progress(0, NULL)',
		'jobqueue_snooze(NULL)', 'jobqueue_snooze(''-1 s'')', 'jobqueue_snooze(''1 day -25 h'')', 'jobqueue_snooze(''101 years'')']
	LOOP
		BEGIN
			EXECUTE 'SELECT ' || q;
			INSERT INTO ran (what) VALUES (q || ': no error');
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT, h = PG_EXCEPTION_HINT;
			INSERT INTO ran (what) VALUES (format('%s: %s %s (%s)', q, s, m, h));
		END;
	END LOOP;
	RETURN 'done';
END $$;
SELECT jobqueue_enqueue('try_args') AS id \gset
CALL ended(:id);
SELECT left_behind();

-- progress: in the view at once, the message cut at a character's end
SELECT pg_advisory_lock(4711);
SELECT jobqueue_enqueue($$SELECT jobqueue_progress(0.25, repeat('ä', 200)); SELECT pg_advisory_xact_lock_shared(4711)$$) AS id \gset
CALL wait_until('EXISTS (SELECT FROM jobqueue_running WHERE progress IS NOT NULL)');
SELECT progress, octet_length(progress_message) AS bytes, progress_message = repeat('ä', 127) AS whole_characters
FROM jobqueue_running WHERE id = :id;
SELECT pg_advisory_unlock(4711);
CALL ended(:id);
-- a next attempt begins without any
CREATE SEQUENCE attempts;
CREATE FUNCTION says_once() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF nextval('attempts') = 1 THEN
		PERFORM jobqueue_progress(0.9, 'nearly');
		RAISE 'not yet' USING ERRCODE = '40001';
	END IF;
	INSERT INTO ran (what) SELECT format('progress %s %s', progress IS NULL, progress_message IS NULL)
	FROM jobqueue_running WHERE id = (jobqueue_current()).id;
END $$;
SELECT jobqueue_enqueue('says_once') AS id \gset
CALL ended(:id);
SELECT left_behind();

-- snooze: effects are kept, the attempt is not charged, the last delay wins
CREATE FUNCTION snoozes(args jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('attempt ' || (jobqueue_current()).attempt);
	IF nextval('attempts') < (args->>'until')::int THEN
		PERFORM jobqueue_snooze('1 day');
		PERFORM jobqueue_snooze('0');
	END IF;
	RETURN 'woken';
END $$;
SELECT setval('attempts', 1, false);
SELECT jobqueue_enqueue('snoozes', '{"until": 3}', keep => '1 day', max_attempts => 1, key => 'snooze') AS id \gset
CALL ended(:id);
SELECT left_behind();
SELECT outcome, attempt, result, error, lsn IS NOT NULL AS lsn FROM jobqueue_recent WHERE id = :id ORDER BY ended_at;
SELECT * FROM history(:id);
-- it waits for its time as any other job
SELECT setval('attempts', 1, false);
SELECT jobqueue_enqueue($$SELECT jobqueue_snooze('1 month')$$, priority => 3, tags => '{a}', key => 'k') AS id \gset
CALL wait_until(format('(SELECT state FROM jobqueue_jobs WHERE id = %s) = ''scheduled''', :id));
SELECT attempt, errors, priority, tags, key, run_at BETWEEN now() + '27 days' AND now() + '32 days' AS in_a_month
FROM jobqueue_jobs WHERE id = :id;
SELECT count(*) AS held FROM jobqueue_keys WHERE key = 'k' AND pid IS NOT NULL;
SELECT jobqueue_cancel(:id);
-- in a read-only transaction, too
SELECT jobqueue_enqueue($$SET TRANSACTION READ ONLY; SELECT jobqueue_progress(0.1), jobqueue_snooze('1 year')$$) AS id \gset
CALL wait_until(format('(SELECT state FROM jobqueue_jobs WHERE id = %s) = ''scheduled''', :id));
SELECT jobqueue_cancel(:id);

-- what is rolled back was not said
CREATE FUNCTION snoozes_in_vain() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM jobqueue_snooze('1 day');
		BEGIN
			PERFORM jobqueue_snooze('2 days');
		END;
		RAISE 'back';
	EXCEPTION WHEN raise_exception THEN
		INSERT INTO ran (what) VALUES ('undone');
	END;
END $$;
SELECT jobqueue_enqueue('snoozes_in_vain', keep => '1 day') AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
SELECT left_behind();
-- and what was said before is in force again
CREATE FUNCTION snoozes_twice() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM jobqueue_snooze('10 days');
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	BEGIN
		PERFORM jobqueue_snooze('20 days');
		RAISE 'back';
	EXCEPTION WHEN raise_exception THEN
		NULL;
	END;
END $$;
SELECT jobqueue_enqueue('snoozes_twice') AS id \gset
CALL wait_until(format('(SELECT state FROM jobqueue_jobs WHERE id = %s) = ''scheduled''', :id));
SELECT run_at BETWEEN now() + '9 days' AND now() + '11 days' AS first FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_cancel(:id);
-- a job that fails after it fails as any other
SELECT jobqueue_enqueue($$SELECT jobqueue_snooze('0'); SELECT 1/0$$, max_attempts => 1) AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
-- a procedure that commits
CREATE PROCEDURE commits(args jsonb) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('before');
	PERFORM jobqueue_snooze('30 days');
	COMMIT;
	INSERT INTO ran (what) VALUES ('rolled back');
	PERFORM jobqueue_snooze('60 days');
	ROLLBACK;
	INSERT INTO ran (what) VALUES ('after');
END $$;
SELECT jobqueue_enqueue($$CALL commits(NULL)$$) AS id \gset
SELECT kind FROM jobqueue_job WHERE id = :id;
CALL wait_until(format('(SELECT state FROM jobqueue_jobs WHERE id = %s) = ''scheduled''', :id));
SELECT run_at BETWEEN now() + '29 days' AND now() + '31 days' AS committed, attempt FROM jobqueue_jobs WHERE id = :id;
SELECT left_behind();
SELECT jobqueue_cancel(:id);

-- in batches
SELECT jobqueue_configure('batched', batch => 20);
SELECT setval('attempts', 1, false);
SELECT count(jobqueue_enqueue('snoozes', '{"until": 8}', queue => 'batched', max_attempts => 1)) FROM generate_series(1, 5);
CALL drained();
SELECT what, count(*) FROM ran GROUP BY 1;
SELECT outcome, count(*) FROM jobqueue_recent WHERE queue = 'batched' GROUP BY 1 ORDER BY 1;
TRUNCATE ran;
SELECT count(jobqueue_enqueue(CASE i WHEN 3 THEN 'SELECT jobqueue_discard(''one of them'')' ELSE 'SELECT 1' END, queue => 'batched')) FROM generate_series(1, 5) i;
CALL drained();
SELECT outcome, attempt, error, count(*) FROM jobqueue_recent
WHERE queue = 'batched' AND outcome <> 'snoozed' GROUP BY 1, 2, 3 ORDER BY 1;

-- discard: rolled back, dead at once, with the reason
CREATE FUNCTION discards(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('rolled back');
	PERFORM jobqueue_snooze('0');
	PERFORM jobqueue_discard(args->>'reason');
END $$;
SELECT jobqueue_enqueue('discards', '{"reason": "account 42 is closed"}') AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
SELECT outcome, error FROM jobqueue_recent WHERE id = :id;
SELECT left_behind();
SELECT jobqueue_enqueue('discards', '{}') AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
-- an error: a job may catch it, and goes on
CREATE FUNCTION catches(args jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM jobqueue_discard('caught');
EXCEPTION WHEN SQLSTATE 'JQ001' THEN
	IF args ? 'raise' THEN
		RAISE;
	ELSIF args ? 'other' THEN
		RAISE EXCEPTION 'another error';
	END IF;
	RETURN SQLERRM;
END $$;
SELECT jobqueue_enqueue('catches', '{}', keep => '1 day') AS id \gset
CALL ended(:id);
SELECT h.*, result FROM history(:id) h, jobqueue_history WHERE id = :id;
-- raised again it is one; another error is none
SELECT jobqueue_enqueue('catches', '{"raise": 1}') AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
SELECT jobqueue_enqueue('catches', '{"other": 1}', max_attempts => 1) AS id \gset
CALL ended(:id);
SELECT * FROM history(:id);
-- nor is an error that only looks like it
CREATE FUNCTION looks_like() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'looks like a discard' USING ERRCODE = 'JQ001';
END $$;
SELECT jobqueue_enqueue('looks_like') AS id \gset
CALL wait_until(format('(SELECT state = ''scheduled'' AND attempt = 1 FROM jobqueue_jobs WHERE id = %s)', :id));
SELECT jobqueue_cancel(:id);
-- after one that was caught, too
SELECT jobqueue_enqueue('SELECT catches(''{}''); SELECT looks_like()') AS id \gset
CALL wait_until(format('(SELECT state = ''scheduled'' AND attempt = 1 FROM jobqueue_jobs WHERE id = %s)', :id));
SELECT jobqueue_cancel(:id);

-- in jobqueue_run(): the row stays, or waits; a discard is the caller's error
SELECT jobqueue_quiesce('0');
SELECT jobqueue_enqueue($$SELECT jobqueue_progress(0.5), jobqueue_snooze('1 day')$$, key => 'k') AS id \gset
SELECT jobqueue_run(:id);
SELECT state, attempt FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_run(:id) FROM generate_series(1, 2);
SELECT jobqueue_cancel(:id);
SELECT jobqueue_enqueue('discards', '{"reason": "caller''s error"}') AS id \gset
CALL raises(format('SELECT jobqueue_run(%s)', :id));
SELECT state, attempt FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_cancel(:id);
-- a job within a job speaks for itself
CREATE FUNCTION runs_another() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	other bigint = jobqueue_enqueue('SELECT jobqueue_snooze(''5 days'')', tags => '{inner}');
BEGIN
	PERFORM jobqueue_run(other);
	PERFORM jobqueue_snooze('15 days');
	PERFORM jobqueue_run(other);
END $$;
SELECT jobqueue_enqueue('runs_another', tags => '{outer}') AS id \gset
SELECT jobqueue_resume();
CALL wait_until('(SELECT count(*) = 2 FROM jobqueue_jobs WHERE state = ''scheduled'')');
SELECT tags, round(extract(epoch FROM run_at - now()) / 86400) AS days FROM jobqueue_jobs WHERE state = 'scheduled' ORDER BY 2;
SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true);

DROP FUNCTION try_args, says_once, snoozes, snoozes_in_vain, snoozes_twice, discards, catches, looks_like, runs_another, history;
DROP PROCEDURE ended, commits;
DROP SEQUENCE attempts;
SELECT jobqueue_drop_queue('batched');
DELETE FROM jobqueue_archive;
