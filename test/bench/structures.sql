-- Functions of the test build that test/bench/structures calls.

CREATE EXTENSION jobqueue;
CREATE FUNCTION jq_bench_structures(what text, n bigint, keys int, procs int,
	OUT session int, OUT done bigint, OUT failed bigint, OUT ns bigint,
	OUT lock text, OUT held bigint, OUT held_ns bigint, OUT held_max bigint,
	OUT long_held bigint, OUT long_ns bigint,
	OUT waits bigint, OUT wait_ns bigint, OUT wait_max bigint)
	RETURNS SETOF record AS '$libdir/jobqueue' LANGUAGE C STRICT;
CREATE FUNCTION jq_bench_reset() RETURNS void
	AS '$libdir/jobqueue' LANGUAGE C STRICT;
CREATE FUNCTION jq_lockstat(OUT lock text,
	OUT held bigint, OUT held_ns bigint, OUT held_max bigint,
	OUT long_held bigint, OUT long_ns bigint,
	OUT waits bigint, OUT wait_ns bigint, OUT wait_max bigint)
	RETURNS SETOF record AS '$libdir/jobqueue' LANGUAGE C STRICT;
CREATE FUNCTION jq_lockstat_reset() RETURNS void
	AS '$libdir/jobqueue' LANGUAGE C STRICT;

-- a job that does nothing
CREATE FUNCTION noop(jsonb) RETURNS void LANGUAGE internal STRICT AS 'jsonb_typeof';

-- one row a session and kind of lock
CREATE UNLOGGED TABLE sample AS
	SELECT 0 AS run, '' AS what, 0 AS procs, 0 AS slots, *
	FROM jq_bench_structures('lock', 0, 1, 1) LIMIT 0;

-- one row a run and kind of lock
CREATE VIEW run AS
	SELECT run, what, procs, slots, lock,
		sum(done) AS done, sum(failed) AS failed,
		max(ns)::float8 / nullif(sum(done), 0) AS wall_ns,
		sum(ns)::float8 / nullif(sum(done), 0) AS op_ns,
		sum(held)::float8 / nullif(sum(done), 0) AS locks,
		(sum(held_ns) - sum(long_ns))::float8
			/ nullif(sum(held) - sum(long_held), 0) AS hold_ns,
		max(held_max) AS hold_max, sum(long_held) AS interrupted,
		sum(waits)::float8 / nullif(sum(done), 0) AS waits,
		sum(wait_ns)::float8 / nullif(sum(waits), 0) AS wait_ns,
		max(wait_max) AS wait_max
	FROM sample GROUP BY run, what, procs, slots, lock;

-- the median of the runs
CREATE FUNCTION mid(float8[]) RETURNS float8 LANGUAGE sql AS $$
	SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM unnest($1) x
$$;
CREATE VIEW figure AS
	SELECT what, procs, slots, lock,
		mid(array_agg(wall_ns)) AS wall_ns, mid(array_agg(op_ns)) AS op_ns,
		mid(array_agg(locks)) AS locks, mid(array_agg(hold_ns)) AS hold_ns,
		max(hold_max) AS hold_max, sum(interrupted) AS interrupted,
		mid(array_agg(waits)) AS waits, mid(array_agg(wait_ns)) AS wait_ns,
		max(wait_max) AS wait_max
	FROM run GROUP BY what, procs, slots, lock;

-- lets n jobs run and waits for their end
CREATE PROCEDURE drain(n bigint, patience int, INOUT seconds float8)
	LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
	was bigint;
	now bigint;
BEGIN
	SELECT coalesce(sum(completed), 0) FROM jobqueue_queue_stats() INTO was;
	COMMIT;
	began := clock_timestamp();
	PERFORM jobqueue_resume();
	LOOP
		COMMIT;
		SELECT coalesce(sum(completed), 0) FROM jobqueue_queue_stats() INTO now;
		EXIT WHEN now >= was + n;
		IF clock_timestamp() > began + make_interval(secs => patience) THEN
			RAISE '% of % jobs completed within % s', now - was, n, patience;
		END IF;
		PERFORM pg_sleep(0.02);
	END LOOP;
	SELECT extract(epoch FROM max(ended_at) - began)
		FROM jobqueue_recent INTO seconds;
END $$;
