# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# fetch    jobs that outside consumers take and complete, one or fifty in a
#          transaction, beside DELETE ... FOR UPDATE SKIP LOCKED on a plain table;
#          and how long after a commit a waiting consumer has the job

fetch_transactions=20000
[ "$short" = no ] || fetch_transactions=200
wake_samples=1000
[ "$short" = no ] || wake_samples=30

# fetch_rate NAME SCRIPT JOBS_EACH: two clients until all are done
fetch_rate()
{
	local each=$3
	local tps

	printf '%s\n' "$2" >"$dir/fetch.sql"
	pgbench_fetch $((fetch_jobs / each / 2))
	# transactions a second
	tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$dir/fetch.out")
	record "$1" "$(calc "$tps * $each")" jobs/s
}

pgbench_fetch()
{
	"$bindir/pgbench" -n -h "$dir" -p "$port" -U postgres -c 2 -j 1 \
		-t "$1" -f "$dir/fetch.sql" "$db" >"$dir/fetch.out" 2>&1 ||
		die "pgbench: $(tail -1 "$dir/fetch.out")"
}

section_fetch()
{
	local each fetch_jobs

	for each in 1 50; do
		fetch_jobs=$((fetch_transactions * each / (each > 1 ? 10 : 1)))
		quiesce_fetch
		sql -c "SELECT count(*) FROM jobqueue_enqueue_many(NULL,
			(SELECT array_agg('{\"a\": 1}'::jsonb) FROM generate_series(1, $fetch_jobs)), queue => 'fetch')"\
			>/dev/null
		fetch_rate "fetch and complete, $each in a transaction" \
			"SELECT count(jobqueue_complete(id)) FROM jobqueue_fetch('fetch', $each);" $each
		[ "$(sql -c 'SELECT count(*) FROM jobqueue_job')" = 0 ] ||
			die "fetch: jobs are left"
		sql -c "CREATE TABLE skiplocked (id bigserial PRIMARY KEY, priority int NOT NULL DEFAULT 0, args jsonb)" \
			-c 'CREATE INDEX ON skiplocked (priority, id)' \
			-c "INSERT INTO skiplocked (args) SELECT '{\"a\": 1}' FROM generate_series(1, $fetch_jobs)" \
			-c 'VACUUM ANALYZE skiplocked'
		fetch_rate "SKIP LOCKED and DELETE, $each in a transaction" \
			"WITH d AS (DELETE FROM skiplocked WHERE id IN (SELECT id FROM skiplocked ORDER BY priority, id LIMIT $each FOR UPDATE SKIP LOCKED) RETURNING id) SELECT count(*) FROM d;" $each
		sql -c 'DROP TABLE skiplocked'
	done
	fetch_wake
}

quiesce_fetch()
{
	sql -c 'DELETE FROM jobqueue_job' -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
}

# From the moment before the commit to the moment at which a consumer that slept
# has the job, by the server's clock.  One that was still at work with the job before
# (it may be late by a flush, or by the scheduler of the machine) is not counted: that
# is no wake-up.  How late a timer of 2 ms comes meanwhile says what the machine is
# worth.
fetch_wake()
{
	local consumer

	sql -c 'CREATE TABLE fetch_wake (at float8, slept bool)' \
		-c 'CREATE TABLE fetch_late (by float8)'
	cat >"$dir/consume.sql" <<-'END'
		SET synchronous_commit = off;
		SELECT extract(epoch FROM clock_timestamp()) AS began \gset
		WITH f AS (SELECT id, args FROM jobqueue_fetch('wake', 1, '10 s'))
		INSERT INTO fetch_wake SELECT extract(epoch FROM clock_timestamp()) - (args->>'at')::float8,
			:began < (args->>'at')::float8
		FROM f WHERE jobqueue_complete(id) IS NOT NULL;
	END
	cat >"$dir/produce.sql" <<-'END'
		SET synchronous_commit = off;
		SELECT extract(epoch FROM clock_timestamp()) AS began \gset
		SELECT pg_sleep(0.002);
		INSERT INTO fetch_late SELECT extract(epoch FROM clock_timestamp()) - :began - 0.002;
		SELECT jobqueue_enqueue(NULL, jsonb_build_object('at', extract(epoch FROM clock_timestamp())), queue => 'wake');
	END
	"$bindir/pgbench" -n -h "$dir" -p "$port" -U postgres -c 1 \
		-t "$wake_samples" -f "$dir/consume.sql" "$db" >/dev/null 2>&1 &
	consumer=$!
	"$bindir/pgbench" -n -h "$dir" -p "$port" -U postgres -c 1 \
		-t "$wake_samples" -f "$dir/produce.sql" "$db" >/dev/null 2>&1 ||
		die "pgbench failed"
	wait "$consumer" || die "the consumer failed"
	record "wake-up of a consumer, p50" "$(fetch_percentile 0.5 at 'fetch_wake WHERE slept')" ms
	record "wake-up of a consumer, p99" "$(fetch_percentile 0.99 at 'fetch_wake WHERE slept')" ms
	record "a timer beside it is late by, p99" "$(fetch_percentile 0.99 by fetch_late)" ms
	[ "$(sql -c 'SELECT count(*) FROM fetch_wake')" = "$wake_samples" ] ||
		die "fetch: not $wake_samples wake-ups"
	sql -c 'DROP TABLE fetch_wake, fetch_late'
}

# fetch_percentile FRACTION COLUMN FROM: in ms
fetch_percentile()
{
	sql -c "SELECT round((1000 * percentile_cont($1) WITHIN GROUP (ORDER BY \"$2\"))::numeric, 3) FROM $3"
}

rows_fetch()
{
	row "fetch and complete, 1 in a transaction" \
		"SKIP LOCKED and DELETE, 1 in a transaction" 'ratio>=' 1
	row "fetch and complete, 50 in a transaction" \
		"SKIP LOCKED and DELETE, 50 in a transaction" 'ratio>=' 1
	row "wake-up of a consumer, p50"
	row "wake-up of a consumer, p99"
	row "a timer beside it is late by, p99"
}

notes_fetch()
{
	echo "- fetch: $fetch_transactions transactions of one job, a tenth of that of fifty; two"
	echo "  clients, each transaction is one statement and is flushed."
	echo "  Wake-up: those of $wake_samples jobs whose consumer slept when they were enqueued,"
	echo "  without a flush, by one clock; the machine's share shows in the timer."
}
