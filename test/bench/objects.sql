-- What the measurements need in their database. Roles are there already when
-- it is not the first one of the server.

CREATE EXTENSION jobqueue;
SELECT format('CREATE ROLE %I LOGIN', name)
	FROM unnest('{bench, bench_sync, bench_1, bench_2, bench_3, bench_4}'::text[]) name
	WHERE to_regrole(name) IS NULL \gexec
ALTER ROLE bench_sync SET synchronous_commit = on;
SELECT count(jobqueue_grant(name::regrole, 'use'))
	FROM unnest('{bench, bench_sync, bench_1, bench_2, bench_3, bench_4}'::text[]) name
	\g /dev/null

-- jobs that do nothing
CREATE FUNCTION noop(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION noop_internal(jsonb) RETURNS void
	LANGUAGE internal STRICT AS 'jsonb_typeof';
-- whose arguments are seen in jobqueue_recent
CREATE FUNCTION echo(args jsonb) RETURNS jsonb LANGUAGE plpgsql
	AS 'BEGIN RETURN args; END';
-- that takes a while and no processor
CREATE FUNCTION sleepy(jsonb) RETURNS void LANGUAGE plpgsql
	AS 'BEGIN PERFORM pg_sleep(0.001); END';

-- a job that notes when it started
CREATE TABLE latency_sample (id int, started timestamptz);
CREATE INDEX ON latency_sample (id);
CREATE FUNCTION latency(sample jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz := clock_timestamp();
BEGIN
	INSERT INTO latency_sample VALUES (sample::int, started);
END $$;

-- jobs that are counted as they run, and one that notes as the how many-th of
-- its kind it started
CREATE SEQUENCE others_done;
CREATE FUNCTION other(jsonb) RETURNS void LANGUAGE plpgsql
	AS 'BEGIN PERFORM nextval(''others_done''); END';
CREATE SEQUENCE start_rank;
CREATE TABLE start_sample (rank bigint, kind text);
CREATE FUNCTION note_rank(kind jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	rank bigint := nextval('start_rank');
BEGIN
	INSERT INTO start_sample VALUES (rank, kind #>> '{}');
	PERFORM pg_sleep(0.001);
END $$;
-- a job that writes
CREATE TABLE written (a int);

-- the textbook
CREATE TABLE textbook (id bigserial PRIMARY KEY, payload jsonb);
CREATE TABLE plain (id bigserial PRIMARY KEY, payload jsonb);

-- what bulk enqueue is compared with
CREATE TABLE two_columns (id bigint PRIMARY KEY, args jsonb);
CREATE TABLE clone (LIKE jobqueue_job INCLUDING ALL);
CREATE SEQUENCE clone_id;
SELECT format('ALTER TABLE clone SET (%s)', array_to_string(reloptions, ', '))
	FROM pg_class WHERE oid = 'jobqueue_job'::regclass
		AND reloptions IS NOT NULL \gexec
CREATE TABLE template (LIKE jobqueue_job);
-- and what cancelling many is
CREATE TABLE clone_archive (LIKE jobqueue_archive INCLUDING ALL);

GRANT ALL ON latency_sample, start_sample, written, textbook, plain, two_columns
	TO bench;
GRANT ALL ON SEQUENCE others_done, start_rank, textbook_id_seq, plain_id_seq
	TO bench;

-- how often the WAL was flushed since the server started
CREATE FUNCTION wal_syncs() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	IF EXISTS (SELECT FROM pg_attribute
			   WHERE attrelid = 'pg_stat_wal'::regclass AND attname = 'wal_sync')
	THEN
		EXECUTE 'SELECT wal_sync FROM pg_stat_wal' INTO n;
	ELSE
		EXECUTE 'SELECT sum(fsyncs) FROM pg_stat_io WHERE object = ''wal''' INTO n;
	END IF;
	RETURN n;
END $$;

CREATE FUNCTION ended(OUT completed bigint, OUT failed bigint)
	LANGUAGE sql VOLATILE AS $$
	SELECT coalesce(sum(completed), 0), coalesce(sum(failed), 0)
	FROM jobqueue_queue_stats()
$$;

-- Lets the jobs run until so many have ended since "since" had; the moment at
-- which that was seen.
CREATE PROCEDURE run_until(jobs bigint, patience int, since bigint,
	INOUT done bigint, INOUT at timestamptz) LANGUAGE plpgsql AS $$
DECLARE
	was_failed bigint := (SELECT failed FROM ended());
	now record;
BEGIN
	at := clock_timestamp() + make_interval(secs => patience);
	PERFORM jobqueue_resume();
	LOOP
		COMMIT;
		SELECT * FROM ended() INTO now;
		done := now.completed - since;
		IF now.failed > was_failed THEN
			RAISE 'a job failed: %', (SELECT error FROM jobqueue_recent
									  WHERE error IS NOT NULL LIMIT 1);
		END IF;
		EXIT WHEN done >= jobs;
		IF clock_timestamp() > at THEN
			RAISE '% of % jobs completed within % s', done, jobs, patience;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
	at := clock_timestamp();
END $$;

-- Lets the jobs run and waits for their end: from "began", or now, until the
-- last one has ended. Those that have completed beyond "since" count.
CREATE PROCEDURE drain(jobs bigint, patience int, INOUT seconds float8,
	since bigint DEFAULT NULL, began timestamptz DEFAULT NULL)
	LANGUAGE plpgsql AS $$
DECLARE
	done bigint;
	at timestamptz;
BEGIN
	since := coalesce(since, (SELECT completed FROM ended()));
	COMMIT;
	began := coalesce(began, clock_timestamp());
	CALL run_until(jobs, patience, since, done, at);
	SELECT extract(epoch FROM max(ended_at) - began)
		FROM jobqueue_recent INTO seconds;
END $$;

-- Lets so many jobs run, or a few more, and starts no others.
CREATE PROCEDURE drain_some(jobs bigint, patience int,
	INOUT done bigint, INOUT seconds float8) LANGUAGE plpgsql AS $$
DECLARE
	since bigint := (SELECT completed FROM ended());
	began timestamptz;
	at timestamptz;
BEGIN
	COMMIT;
	began := clock_timestamp();
	CALL run_until(jobs, patience, since, done, at);
	seconds := extract(epoch FROM at - began);
	IF NOT jobqueue_quiesce() THEN
		RAISE 'jobqueue_quiesce() did not succeed';
	END IF;
END $$;

-- Lets the jobs run until so many of other() have; also the most jobs that
-- were seen waiting for one key.
CREATE PROCEDURE drain_others(jobs bigint, patience int,
	INOUT seconds float8, INOUT parked bigint) LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
	was bigint := (SELECT CASE WHEN is_called THEN last_value ELSE 0 END
				   FROM others_done);
	done bigint;
BEGIN
	parked := 0;
	PERFORM jobqueue_resume();
	LOOP
		COMMIT;
		SELECT CASE WHEN is_called THEN last_value ELSE 0 END - was
			FROM others_done INTO done;
		seconds := extract(epoch FROM clock_timestamp() - began);
		parked := greatest(parked,
						   (SELECT max(waiting) FROM jobqueue_held_keys()));
		EXIT WHEN done >= jobs;
		IF seconds > patience THEN
			RAISE '% of % other jobs within % s', done, jobs, patience;
		END IF;
		PERFORM pg_sleep(0.005);
	END LOOP;
	IF NOT jobqueue_quiesce() THEN
		RAISE 'jobqueue_quiesce() did not succeed';
	END IF;
END $$;
