# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# fetch    jobs that outside consumers take and complete, one or fifty in a
#          transaction, beside DELETE ... FOR UPDATE SKIP LOCKED on a plain table,
#          in turns; and how long after a commit a waiting consumer has the job

# transactions of each side, of one job, in so many turns
fetch_transactions=10000
fetch_turns=5
[ "$short" = no ] || { fetch_transactions=200; fetch_turns=2; }
wake_samples=1000
[ "$short" = no ] || wake_samples=30

skip_locked="DELETE FROM skiplocked WHERE id IN (SELECT id FROM skiplocked
	ORDER BY priority, id LIMIT %d FOR UPDATE SKIP LOCKED)"

# pgbench_fetch CLIENTS TRANSACTIONS FLUSH SCRIPT: seconds
pgbench_fetch()
{
	local tps

	printf '%s\n' "$4" >"$dir/fetch.sql"
	PGOPTIONS="-c synchronous_commit=$3" "$bindir/pgbench" -n -M prepared \
		-h "$dir" -p "$port" -U postgres -c "$1" -j 1 -t $(($2 / $1)) \
		-f "$dir/fetch.sql" "$db" >"$dir/fetch.out" 2>&1 ||
		die "pgbench: $(tail -1 "$dir/fetch.out")"
	tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$dir/fetch.out")
	calc "$2 / $tps" %.6f
}

# fetch_turns NAME CLIENTS TRANSACTIONS JOBS_EACH FLUSH OURS THEIRS
fetch_turns()
{
	local clients=$2 each=$4 flush=$5 ours=0 theirs=0
	local turn=$(($3 / fetch_turns / $2 * $2)) jobs=$(($3 * $4)) i

	quiesce_fetch
	sql -c "SELECT count(*) FROM jobqueue_enqueue_many(NULL,
		(SELECT array_agg('{\"a\": 1}'::jsonb) FROM generate_series(1, $jobs)), queue => 'fetch')" \
		>/dev/null
	sql -c "CREATE TABLE skiplocked (id bigserial PRIMARY KEY, priority int NOT NULL DEFAULT 0, args jsonb)" \
		-c 'CREATE TABLE effect (job bigint)' \
		-c 'CREATE INDEX ON skiplocked (priority, id)' \
		-c "INSERT INTO skiplocked (args) SELECT '{\"a\": 1}' FROM generate_series(1, $jobs)" \
		-c 'VACUUM ANALYZE skiplocked'
	for ((i = 0; i < fetch_turns; i++)); do
		ours+=" + $(pgbench_fetch "$clients" "$turn" "$flush" "$6")"
		theirs+=" + $(pgbench_fetch "$clients" "$turn" "$flush" "$7")"
	done
	record "fetch and complete, $1" \
		"$(calc "$turn * $fetch_turns * $each / ($ours)")" jobs/s
	record "SKIP LOCKED and DELETE, $1" \
		"$(calc "$turn * $fetch_turns * $each / ($theirs)")" jobs/s
	jobs=$((jobs - turn * fetch_turns * each))
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_job')" = $jobs ] ||
		die "fetch: not $jobs jobs are left"
	[ "$(sql -c 'SELECT count(*) FROM skiplocked')" = $jobs ] ||
		die "fetch: not $jobs rows are left"
	sql -c 'DROP TABLE skiplocked' -c 'DROP TABLE effect'
}

# the same, fetched and completed in one statement
# fetch_rates NAME CLIENTS TRANSACTIONS JOBS_EACH FLUSH
fetch_rates()
{
	# shellcheck disable=SC2059
	fetch_turns "$@" \
		"SELECT id, jobqueue_complete(id) FROM jobqueue_fetch('fetch', $4);" \
		"$(printf "$skip_locked" "$4") RETURNING id;"
}

# With work in between: a row in the transaction.  Until that commits, the plain
# table has it open; jobqueue does not need one before.  STATEMENT makes theirs as
# many round trips as ours.
# fetch_work NAME TRANSACTIONS [STATEMENT]
fetch_work()
{
	# shellcheck disable=SC2059
	fetch_turns "$1" 2 "$2" 1 on \
		"SELECT id FROM jobqueue_fetch('fetch') \\gset
BEGIN;
INSERT INTO effect VALUES (:id);
SELECT jobqueue_complete(:id);
COMMIT;" \
		"${3:-}
BEGIN;
$(printf "$skip_locked" 1) RETURNING id \\gset
INSERT INTO effect VALUES (:id);
COMMIT;"
}

section_fetch()
{
	fetch_rates '1 in a transaction' 2 $fetch_transactions 1 on
	fetch_rates '1, 8 clients' 8 $fetch_transactions 1 on
	fetch_rates '1, without a flush' 2 $((fetch_transactions * 2)) 1 off
	fetch_rates '50 in a transaction' 2 $((fetch_transactions / 5)) 50 on
	fetch_work '1, with a row of work' $fetch_transactions
	fetch_work '1, with a row of work, five statements each' $fetch_transactions 'SELECT 1;'
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
	local name

	for name in '1 in a transaction' '1, 8 clients' '1, without a flush'; do
		row "fetch and complete, $name" "SKIP LOCKED and DELETE, $name" 'ratio>=' 1.5
	done
	row "fetch and complete, 50 in a transaction" \
		"SKIP LOCKED and DELETE, 50 in a transaction" 'ratio>=' 1.2
	row "fetch and complete, 1, with a row of work" \
		"SKIP LOCKED and DELETE, 1, with a row of work"
	row "fetch and complete, 1, with a row of work, five statements each" \
		"SKIP LOCKED and DELETE, 1, with a row of work, five statements each" 'ratio>=' 1
	row "wake-up of a consumer, p50"
	row "wake-up of a consumer, p99"
	row "a timer beside it is late by, p99"
}

notes_fetch()
{
	echo "- fetch: $fetch_transactions transactions of one job (twice as many without a flush), a fifth of"
	echo "  that of fifty, in $fetch_turns turns of each side; two clients where not said otherwise,"
	echo "  prepared statements; each transaction is flushed where not said otherwise, and"
	echo "  one statement but for those with a row of work (five and four, and one that does"
	echo "  nothing to make theirs five)."
	echo "  Wake-up: those of $wake_samples jobs whose consumer slept when they were enqueued,"
	echo "  without a flush, by one clock; the machine's share shows in the timer."
}
