-- unique_key: each unique_until with each on_conflict, while the one that holds
-- it waits, runs, or has ended.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

DELETE FROM jobqueue_archive;
CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, holder text, mode text,
	strategy text, answer text, old text, new text, lock text);
CREATE FUNCTION hold(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(4711);
END $$;
-- what one sees of a job
CREATE FUNCTION shown(job bigint) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', state, args->>'n', nullif(priority, 0),
		regexp_replace(regexp_replace(reason, 'replaced by job \d+', 'replaced by (new)'), 'job \d+', '(old)'))
	FROM jobqueue_jobs WHERE id = job
$$;
-- one job has the key, another one wants it
CREATE PROCEDURE probe(holder text, mode text, strategy text) LANGUAGE plpgsql AS $$
DECLARE
	old bigint; new bigint; answer text; until interval;
	ids bigint[];
BEGIN
	until := CASE WHEN mode = 'expired' THEN interval '1 hour' END;
	IF holder = 'waits' THEN
		PERFORM jobqueue_quiesce();
	ELSE
		PERFORM pg_advisory_lock(4711);
	END IF;
	old := jobqueue_enqueue('hold', '{"n": 1}', keep => '1 hour', unique_key => 'k',
		unique_until => mode, unique_for => until);
	COMMIT;
	IF holder <> 'waits' THEN
		CALL wait_until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND NOT granted)');
	END IF;
	IF holder = 'has ended' THEN
		PERFORM pg_advisory_unlock(4711);
		COMMIT;
		CALL drained();
		PERFORM jobqueue_quiesce();
	END IF;
	BEGIN
		new := jobqueue_enqueue('hold', '{"n": 2}', priority => 5, keep => '1 hour', unique_key => 'k',
			unique_until => mode, unique_for => until, on_conflict => strategy);
		answer := CASE WHEN new IS NULL THEN 'null' WHEN new = old THEN 'old' ELSE 'new' END;
	EXCEPTION WHEN unique_violation THEN
		answer := 'error';
	END;
	COMMIT;
	-- it starts too, or is refused then
	IF holder = 'runs' AND mode = 'executing' THEN
		CALL wait_until('(SELECT count(*) = 2 FROM pg_locks WHERE locktype = ''advisory'' AND NOT granted)');
	ELSIF holder = 'runs' AND mode = 'until_and_while_executing' THEN
		CALL wait_until(format('EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s AND state IN (''cancelled'', ''dead'', ''scheduled''))', new));
	END IF;
	INSERT INTO seen (holder, mode, strategy, answer, old, new, lock)
	SELECT holder, mode, strategy, answer, shown(old), (SELECT shown(id) FROM jobqueue_jobs WHERE id > old),
		(SELECT CASE job WHEN old THEN 'old' ELSE 'new' END FROM jobqueue_unique);
	COMMIT;
	PERFORM pg_advisory_unlock_all();
	PERFORM jobqueue_cancel_where('default', 'scheduled', NULL);
	PERFORM jobqueue_resume();
	COMMIT;
	CALL drained();
	-- what is left is of those that are to outlive their job
	DELETE FROM jobqueue_unique WHERE unique_until = 't';
	IF EXISTS (SELECT FROM jobqueue_unique) THEN
		RAISE EXCEPTION 'a lock is left: % % %', holder, mode, strategy;
	END IF;
	DELETE FROM jobqueue_archive;
	COMMIT;
END $$;
CREATE PROCEDURE probe_all(mode text) LANGUAGE plpgsql AS $$
DECLARE
	h text; s text;
BEGIN
	FOREACH h IN ARRAY '{waits,runs,has ended}'::text[] LOOP
		FOREACH s IN ARRAY '{skip,join,raise,replace,update,reject,reschedule,log}'::text[] LOOP
			CALL probe(h, mode, s);
		END LOOP;
	END LOOP;
END $$;

CALL probe_all('executed');
SELECT holder, strategy, answer, old, new, lock FROM seen ORDER BY n;
TRUNCATE seen;
CALL probe_all('executing');
SELECT holder, strategy, answer, old, new, lock FROM seen ORDER BY n;
TRUNCATE seen;
CALL probe_all('expired');
SELECT holder, strategy, answer, old, new, lock FROM seen ORDER BY n;
TRUNCATE seen;
CALL probe_all('until_and_while_executing');
SELECT holder, strategy, answer, old, new, lock FROM seen ORDER BY n;
TRUNCATE seen;
-- never at enqueue; what happens at the start is in unique_start
CALL probe('waits', 'while_executing', 'raise');
SELECT holder, strategy, answer, old, new, lock FROM seen ORDER BY n;
TRUNCATE seen;

-- the scope is a queue and a key: the bytes of both together say nothing
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', queue => 'a', unique_key => 'bc') IS NOT NULL AS one,
	jobqueue_enqueue('note', queue => 'ab', unique_key => 'c') IS NOT NULL AS two,
	jobqueue_enqueue('note', queue => 'ab', unique_key => 'C') IS NOT NULL AS three,
	jobqueue_enqueue('note', queue => 'ab', unique_key => repeat('é', 127)) IS NOT NULL AS four,
	jobqueue_enqueue('note', queue => 'ab', unique_key => 'c') IS NULL AS refused;
SELECT queue, left(unique_key, 3) AS unique_key, count(*) FROM jobqueue_jobs GROUP BY 1, 2 ORDER BY queue COLLATE "C", left(unique_key, 3) COLLATE "C";
-- the error names the one in the way
CREATE PROCEDURE fails(command text) LANGUAGE plpgsql AS $$
DECLARE
	s text; m text; d text; h text;
BEGIN
	EXECUTE command;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RAISE INFO '% %', s, regexp_replace(m, 'job \d+', 'job N');
	RAISE INFO '      detail: %', regexp_replace(regexp_replace(d, '\d+', 'N'), 'until .*', 'until T');
	RAISE INFO '      hint: %', h;
END $$;
CALL fails($$ SELECT jobqueue_enqueue('note', queue => 'a', unique_key => 'bc', on_conflict => 'raise') $$);
SELECT jobqueue_enqueue('note', queue => 'a', unique_key => 'x', unique_for => '1 day') IS NOT NULL AS ok;
CALL fails($$ SELECT jobqueue_enqueue('note', queue => 'a', unique_key => 'x', on_conflict => 'raise') $$);

-- the lock is part of the transaction, and of the subtransaction
SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true);
SELECT count(*) FROM jobqueue_unique;
BEGIN;
SELECT jobqueue_enqueue('note', unique_key => 's') IS NOT NULL AS first;
ROLLBACK;
SELECT count(*) FROM jobqueue_unique;
BEGIN;
SAVEPOINT s;
SELECT jobqueue_enqueue('note', unique_key => 's') IS NOT NULL AS first;
SELECT jobqueue_enqueue('note', unique_key => 's') IS NOT NULL AS second;
ROLLBACK TO s;
SELECT jobqueue_enqueue('note', unique_key => 's') IS NOT NULL AS first;
RELEASE s;
SELECT jobqueue_enqueue('note', unique_key => 's') IS NOT NULL AS second;
COMMIT;
-- a job of the same transaction is replaced, updated, joined
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "1"}', unique_key => 't') AS one \gset
SELECT jobqueue_enqueue('note', '{"what": "2"}', unique_key => 't', on_conflict => 'join') = :one AS joined;
SELECT jobqueue_enqueue('note', '{"what": "3"}', unique_key => 't', on_conflict => 'update') = :one AS updated;
SELECT args FROM jobqueue_jobs WHERE id = :one;
SELECT jobqueue_enqueue('note', '{"what": "4"}', unique_key => 't', on_conflict => 'replace') > :one AS replaced;
SAVEPOINT s;
SELECT jobqueue_enqueue('note', '{"what": "5"}', unique_key => 't', on_conflict => 'replace') > :one AS replaced;
ROLLBACK TO s;
COMMIT;
SELECT jobqueue_cancel(id) FROM jobqueue_jobs WHERE unique_key = 's' AND state = 'ready';
-- prepared: what enqueued holds the key; what has replaced a job cannot be prepared
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "prepared"}', unique_key => 'p') IS NOT NULL AS ok;
PREPARE TRANSACTION 'regress_jq_unique';
SET lock_timeout = '10ms';
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'p') $$);
RESET lock_timeout;
COMMIT PREPARED 'regress_jq_unique';
SELECT jobqueue_enqueue('note', unique_key => 'p') IS NULL AS refused;
BEGIN;
SELECT jobqueue_enqueue('note', unique_key => 'p', on_conflict => 'replace') IS NOT NULL AS replaced;
PREPARE TRANSACTION 'regress_jq_unique';
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT count(*) FROM jobqueue_unique;

-- many at once: the ids are in order, keys of the same list count
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', unique_key => 'm2') AS m2 \gset
SELECT id IS NULL AS refused, id = :m2 AS joined, count(*) OVER (PARTITION BY id) FROM
	jobqueue_enqueue_many('note', array_fill(NULL::jsonb, '{6}'),
		unique_keys => '{m3,m1,m2,NULL,m1,m3}') WITH ORDINALITY AS x(id, n) ORDER BY n;
SELECT id IS NULL AS refused, id = :m2 AS joined, dense_rank() OVER (ORDER BY id) FROM
	jobqueue_enqueue_many('note', array_fill(NULL::jsonb, '{6}'), unique_keys => '{m4,m1,m2,NULL,m4,m5}',
		on_conflict => 'join') WITH ORDINALITY AS x(id, n) ORDER BY n;
SELECT * FROM jobqueue_enqueue_many('note', '{}', unique_keys => '{}');
SELECT count(id), count(DISTINCT id) FROM jobqueue_enqueue_many('note', array_fill('{"what": "m"}'::jsonb, '{4}'),
	unique_keys => '{m1,m2,m2,m2}', on_conflict => 'replace') AS id;
SELECT state, count(*) FROM jobqueue_jobs GROUP BY 1 ORDER BY 1;
SELECT unique_key, args FROM jobqueue_jobs WHERE state = 'ready' AND args IS NOT NULL ORDER BY 1;
SELECT count(*) FROM jobqueue_unique;
SELECT jobqueue_cancel_where(NULL, 'ready', NULL);
SELECT count(*) FROM jobqueue_unique;

-- a job that comes back takes its key again, or says why it cannot
SELECT jobqueue_enqueue('note', unique_key => 'back') AS one \gset
SELECT jobqueue_cancel(:one);
SELECT jobqueue_enqueue('note', unique_key => 'back') AS two \gset
CALL fails(format('SELECT jobqueue_retry(%s)', :one));
SELECT state FROM jobqueue_jobs WHERE id = :one;
SELECT jobqueue_enqueue('note', unique_key => 'back', on_conflict => 'reject') AS three \gset
SELECT state, attempt, reason = format('job %s holds unique_key "back"', :two) AS reason FROM jobqueue_history WHERE id = :three;
SELECT jobqueue_cancel(:two);
SELECT jobqueue_retry(:three);
SELECT job = :three AS holds FROM jobqueue_unique;
SELECT jobqueue_enqueue('note', unique_key => 'back') IS NULL AS refused;
-- a row deleted by hand lets go of it; one whose job is gone past all triggers is nobody's
DELETE FROM jobqueue_job WHERE id = :three;
SELECT count(*) FROM jobqueue_unique;
INSERT INTO jobqueue_unique VALUES ('default', 'orphan', 1, 'e');
SELECT jobqueue_enqueue('note', unique_key => 'orphan') IS NOT NULL AS ok;
SELECT jobqueue_enqueue('note', unique_key => 'orphan') IS NULL AS refused;
-- a job that expires, one that dies, one whose result is kept
SELECT jobqueue_enqueue('note', unique_key => 'expires', expires_at => '2000-01-01') IS NOT NULL AS ok;
SELECT jobqueue_enqueue('SELECT 1/0', unique_key => 'dies', max_attempts => 1) IS NOT NULL AS ok;
SELECT jobqueue_enqueue('note', unique_key => 'kept', keep => '1 day') IS NOT NULL AS ok;
SELECT jobqueue_enqueue('VACUUM ran', unique_key => 'outside') IS NOT NULL AS ok;
SELECT jobqueue_resume();
CALL drained();
SELECT count(*) FROM jobqueue_unique;
-- in a job, its own key is held or not as for anybody else
SELECT jobqueue_enqueue($$SELECT public.note(jsonb_build_object('what', coalesce(public.jobqueue_enqueue('public.note', '{"what": "next"}', unique_key => 'self')::text, 'refused')))$$, unique_key => 'self') IS NOT NULL AS ok;
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT jobqueue_enqueue($$SELECT public.note(jsonb_build_object('what', 'enqueued ' || (public.jobqueue_enqueue('public.note', '{"what": "next"}', unique_key => 'self') > 0)))$$, unique_key => 'self', unique_until => 'executing') IS NOT NULL AS ok;
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;

-- unique_for is an upper bound, and for "expired" the only one
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "old"}', unique_key => 'u', unique_for => '1 hour') AS one \gset
UPDATE jobqueue_unique SET expires_at = clock_timestamp();
SELECT jobqueue_enqueue('note', '{"what": "new"}', unique_key => 'u', unique_for => '1 hour') AS two \gset
SELECT job = :two AS holds, expires_at > clock_timestamp() + interval '50 min' AS new_bound FROM jobqueue_unique;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT count(*) FROM jobqueue_unique;
SELECT jobqueue_enqueue('note', '{"what": "once"}', unique_key => 'u', unique_until => 'expired', unique_for => '1 hour') AS one \gset
CALL drained();
SELECT jobqueue_enqueue('note', unique_key => 'u') IS NULL AS refused, jobqueue_enqueue('note', unique_key => 'u', on_conflict => 'join') = :one AS joined;
UPDATE jobqueue_unique SET expires_at = clock_timestamp();
SELECT jobqueue_enqueue('note', unique_key => 'u') IS NOT NULL AS ok;
CALL drained();
SELECT count(*) FROM jobqueue_unique;

-- "reschedule": it asks for its key when its time has come
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('hold', unique_key => 'r') AS one \gset
SELECT jobqueue_enqueue('note', '{"what": "rescheduled"}', unique_key => 'r', on_conflict => 'reschedule', unique_for => '20 ms') AS two \gset
SELECT jobqueue_enqueue('note', '{"what": "rescheduled"}', unique_key => 'r', on_conflict => 'reschedule', unique_for => '30 ms') AS three \gset
SELECT job = :one AS holds FROM jobqueue_unique;
SELECT pg_advisory_lock(4711);
SELECT jobqueue_resume();
CALL wait_until(format('(SELECT max(run_at) - min(enqueued_at) FROM jobqueue_jobs WHERE id IN (%s, %s)) > interval ''100 ms''', :two, :three));
SELECT attempt FROM jobqueue_jobs WHERE id IN (:two, :three);
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT pg_advisory_unlock(4711);
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT count(*) FROM jobqueue_unique;

-- in the session, for tests
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "here"}', unique_key => 'run', unique_until => 'until_and_while_executing') AS id \gset
SELECT jobqueue_run(:id);
SELECT jobqueue_enqueue('note', '{"what": "here too"}', unique_key => 'run') AS id \gset
SELECT jobqueue_run(:id);
SELECT count(*) FROM jobqueue_unique;
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT jobqueue_resume();

-- arguments
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => '') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => repeat('k', 256)) $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', unique_until => 'forever') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', on_conflict => 'ignore') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', unique_until => 'expired') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', unique_for => '0') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', unique_for => '-1 s') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_key => 'k', unique_for => '200 years') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_for => '1 s') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', unique_until => 'executing') $$);
CALL raises($$ SELECT jobqueue_enqueue('note', on_conflict => 'raise') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('note', '{NULL,NULL}', unique_keys => '{k}') $$);
CALL raises($$ SELECT jobqueue_enqueue_many('note', '{NULL,NULL}', unique_keys => '{k,""}') $$);
CALL raises($$ SELECT jobqueue_unique_trigger() $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key) VALUES ('note', 'k') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key, unique_until, on_conflict) VALUES ('note', 'k', 'x', 's') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key, unique_until, on_conflict) VALUES ('note', 'k', 'e', '') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key, unique_until, on_conflict) VALUES ('note', 'k', 't', 's') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key, unique_until, on_conflict, unique_for) VALUES ('note', 'k', 'e', 's', '-1 s') $$);
-- null is the default
SELECT jobqueue_enqueue('note', unique_key => NULL, unique_until => NULL, unique_for => NULL, on_conflict => NULL) IS NOT NULL AS ok;
SELECT jobqueue_enqueue('note', unique_key => 'k', unique_until => NULL, unique_for => NULL, on_conflict => NULL) IS NOT NULL AS ok;
CALL drained();
DELETE FROM ran;
DELETE FROM jobqueue_archive;

-- a trigger of somebody else's on the table of locks sees each, and all holds as before
CREATE TABLE locks (what text);
CREATE FUNCTION sees_lock() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
	INSERT INTO public.locks VALUES (tg_op);
	RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER sees BEFORE INSERT OR DELETE ON jobqueue_unique FOR EACH ROW EXECUTE FUNCTION sees_lock();
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "seen"}', unique_key => 'seen') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "refused"}', unique_key => 'seen') AS refused;
SELECT jobqueue_resume();
CALL drained();
SELECT jobqueue_enqueue('note', '{"what": "for a moment"}', unique_key => 'seen', unique_until => 'expired', unique_for => '1 us') > 0 AS id;
CALL drained();
SELECT jobqueue_enqueue('note', '{"what": "taken over"}', unique_key => 'seen') > 0 AS id;
CALL drained();
SELECT * FROM left_behind() AS what;
SELECT what, count(*) FROM locks GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM jobqueue_unique;
DROP TRIGGER sees ON jobqueue_unique;
DROP FUNCTION sees_lock();
DROP TABLE locks;

-- cancelled ones come back together, but for those whose key another one has by now
SELECT jobqueue_quiesce();
SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', 'back'), unique_key => 'back ' || n, tags => '{back}'))
FROM generate_series(1, 70) n;
SELECT jobqueue_cancel_where(NULL, NULL, 'back');
SELECT jobqueue_enqueue('note', '{"what": "another"}', unique_key => 'back 7') > 0 AS id;
SELECT jobqueue_retry_where(NULL, NULL, 'back');
SELECT jobqueue_resume();
CALL drained();
SELECT what, count(*) FROM left_behind() AS what GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM jobqueue_archive;

DELETE FROM ran;
DELETE FROM jobqueue_archive;
DROP TABLE seen;
DROP FUNCTION hold, shown;
DROP PROCEDURE probe, probe_all, fails;
