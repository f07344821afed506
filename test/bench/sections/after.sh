# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# after    jobs that wait for others: one for many, many for one, many for the
#          same many, diamonds, chains; from jobqueue_resume() to the last end.
#          Also with a held snapshot and dead rows in the queue's table

after_jobs=10000
[ "$short" = no ] || after_jobs=1000
after_dead=100000
[ "$short" = no ] || after_dead=5000

# after_shape NAME SQL: which enqueues jobs
after_shape()
{
	local n

	quiesce
	sql -c "$2" >/dev/null
	n=$(sql -c 'SELECT count(*) FROM jobqueue_job')
	record "$1" "$(rate "$n" "$(drain "$n")")" jobs/s
	empty
}

after_shapes()
{
	after_shape "fan-in$1" "WITH d AS MATERIALIZED (SELECT jobqueue_enqueue('noop')
			AS id FROM generate_series(1, $after_jobs))
		SELECT jobqueue_enqueue('noop', after => (SELECT array_agg(id) FROM d))"
	after_shape "fan-out$1" "WITH d AS MATERIALIZED (SELECT jobqueue_enqueue('noop')
			AS id)
		SELECT count(jobqueue_enqueue('noop', after => ARRAY[id]))
		FROM d, generate_series(1, $after_jobs)"
	after_shape "100 for the same quarter$1" "WITH d AS MATERIALIZED (
			SELECT jobqueue_enqueue('noop') AS id
			FROM generate_series(1, $after_jobs / 4)),
			a AS MATERIALIZED (SELECT array_agg(id) AS ids FROM d)
		SELECT count(jobqueue_enqueue('noop', after => ids))
		FROM a, generate_series(1, 100)"
	after_shape "diamonds$1" "WITH a AS MATERIALIZED (SELECT jobqueue_enqueue('noop')
			AS id FROM generate_series(1, $after_jobs / 4)),
			b AS MATERIALIZED (SELECT
				jobqueue_enqueue('noop', after => ARRAY[id]) AS x,
				jobqueue_enqueue('noop', after => ARRAY[id]) AS y FROM a)
		SELECT count(jobqueue_enqueue('noop', after => ARRAY[x, y])) FROM b"
	after_shape "chain$1" "DO \$\$ DECLARE last bigint; BEGIN
		FOR i IN 1 .. $after_jobs LOOP
			last := jobqueue_enqueue('noop',
				after => CASE WHEN last IS NOT NULL THEN ARRAY[last] END);
		END LOOP; END \$\$"
}

section_after()
{
	warm_up
	after_shapes ""
	hold_snapshot bench
	quiesce
	sql -c "SELECT count(jobqueue_enqueue('noop'))
			FROM generate_series(1, $after_dead)" \
		-c 'DELETE FROM jobqueue_job' >/dev/null
	after_shapes ", held snapshot"
	release_snapshot
}

rows_after()
{
	local shape

	for shape in fan-in fan-out "100 for the same quarter" diamonds chain; do
		row "$shape"
		row "$shape, held snapshot" "$shape" 'ratio>=' 0.3
	done
}

notes_after()
{
	cat <<-END
		- after: $after_jobs jobs of each shape, but for 100 that each wait for the same
		  $((after_jobs / 4)). With the held snapshot there are $after_dead dead rows, and
		  those of the shapes before.
	END
}
