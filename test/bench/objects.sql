-- What the measurements need in their database.

CREATE EXTENSION jobqueue;
CREATE ROLE bench LOGIN;
CREATE ROLE bench_sync LOGIN;
ALTER ROLE bench_sync SET synchronous_commit = on;
SELECT jobqueue_grant('bench', 'use') \g /dev/null
SELECT jobqueue_grant('bench_sync', 'use') \g /dev/null

-- jobs that do nothing
CREATE FUNCTION noop(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION noop_internal(jsonb) RETURNS void
	LANGUAGE internal STRICT AS 'jsonb_typeof';

-- a job that notes when it started
CREATE TABLE latency_sample (id int, started timestamptz);
CREATE INDEX ON latency_sample (id);
CREATE FUNCTION latency(sample jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz := clock_timestamp();
BEGIN
	INSERT INTO latency_sample VALUES (sample::int, started);
END $$;

-- the textbook
CREATE TABLE textbook (id bigserial PRIMARY KEY, payload jsonb);
CREATE TABLE plain (id bigserial PRIMARY KEY, payload jsonb);

-- what bulk enqueue is compared with
CREATE TABLE clone (LIKE jobqueue_job INCLUDING ALL);
CREATE SEQUENCE clone_id;
SELECT format('ALTER TABLE clone SET (%s)', array_to_string(reloptions, ', '))
	FROM pg_class WHERE oid = 'jobqueue_job'::regclass
		AND reloptions IS NOT NULL \gexec
CREATE TABLE template (LIKE jobqueue_job);

GRANT ALL ON latency_sample, textbook, plain TO bench;
GRANT ALL ON SEQUENCE textbook_id_seq, plain_id_seq TO bench;

-- lets the jobs run and waits for their end
CREATE PROCEDURE drain(jobs bigint, patience int, INOUT seconds float8)
	LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
	was record;
	now record;
BEGIN
	SELECT coalesce(sum(completed), 0) AS completed,
		   coalesce(sum(failed), 0) AS failed
		FROM jobqueue_queue_stats() INTO was;
	COMMIT;
	began := clock_timestamp();
	PERFORM jobqueue_resume();
	LOOP
		COMMIT;
		SELECT coalesce(sum(completed), 0) AS completed,
			   coalesce(sum(failed), 0) AS failed
			FROM jobqueue_queue_stats() INTO now;
		IF now.failed > was.failed THEN
			RAISE 'a job failed: %', (SELECT error FROM jobqueue_recent
									  WHERE error IS NOT NULL LIMIT 1);
		END IF;
		EXIT WHEN now.completed >= was.completed + jobs;
		IF clock_timestamp() > began + make_interval(secs => patience) THEN
			RAISE '% of % jobs completed within % s',
				now.completed - was.completed, jobs, patience;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
	SELECT extract(epoch FROM max(ended_at) - began)
		FROM jobqueue_recent INTO seconds;
END $$;
