# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# snapshot rounds of jobs while a session holds an old snapshot, so that no dead
#          row can be removed, beside the same rounds without it, in turn:
#          as they come; with mixed priorities and memory for few; with run_at;
#          and with a great many dead rows

snapshot_jobs=500000
snapshot_rounds=4
snapshot_memory=10000	# of the variant with priorities
snapshot_dead=10000000
most_runs[snapshot]=3
if [ "$short" = yes ]; then
	snapshot_jobs=5000
	snapshot_rounds=2
	snapshot_memory=1000
	snapshot_dead=0
fi

# hold_snapshot DATABASE
hold_snapshot()
{
	local tries

	rm -f "$dir/holder"
	mkfifo "$dir/holder"
	PGAPPNAME=holder "$bindir/psql" -X -q -A -t -h "$dir" -p "$port" -U postgres \
		-d "$1" <"$dir/holder" >/dev/null 2>&1 &
	holder_pid=$!
	exec {holder}>"$dir/holder"
	echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobqueue_job;' >&"$holder"
	for ((tries = 0; tries < 200; tries++)); do
		! snapshot_is_held || return 0
		sleep 0.05
	done
	die "the session that is to hold a snapshot does not"
}

snapshot_is_held()
{
	[ "$(sql -d postgres -c "SELECT count(*) FROM pg_stat_activity
		WHERE application_name = 'holder' AND backend_xmin IS NOT NULL
			AND state = 'idle in transaction'")" = 1 ]
}

release_snapshot()
{
	snapshot_is_held || die "the snapshot was not held to the end"
	exec {holder}>&-
	wait "$holder_pid" || true
}

# snapshot_round VARIANT ROUND SIDE
snapshot_round()
{
	local name="$3, $1, round $2" extra="" since began seconds us
	local jobs=$snapshot_jobs

	case $1 in
		priorities) extra=", priority => i % 11" ;;
		# half of them are due before the statement ends
		delayed) extra=", run_at => clock_timestamp() + random() * interval '1 s'" ;;
	esac
	warm_up		# the last round was in the other database
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	if [ "$1" != delayed ]; then
		quiesce
	fi
	since=$(sql -c 'SELECT completed FROM ended()')
	us=$(timed bench "SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'$extra))
		FROM generate_series(1, $jobs) i")
	record "enqueue, $name" "$(calc "1e6 * $jobs / $us")" jobs/s
	if [ "$1" != delayed ]; then
		seconds=$(drain "$jobs")
	else
		began=$(sql -c 'SELECT clock_timestamp()')
		seconds=$(sql -c "CALL drain($jobs, $(patience "$jobs"), NULL, $since, '$began')")
		none_left
	fi
	record "drain, $name" "$(rate "$jobs" "$seconds")" jobs/s
}

# snapshot_variant NAME
snapshot_variant()
{
	local round side sides

	for db in free held; do
		fresh_database $db
	done
	hold_snapshot held
	for ((round = 1; round <= snapshot_rounds; round++)); do
		sides='free held'
		((round % 2)) || sides='held free'
		for side in $sides; do
			db=$side
			snapshot_round "$1" $round "$side"
		done
	done
	if [ "$1" = plain ] && [ "$snapshot_dead" -gt 0 ]; then
		snapshot_dead_rows
	fi
	release_snapshot
	db=bench
	drop_database free
	drop_database held
}

# The rounds before have left some already.
snapshot_dead_rows()
{
	local dead=$((snapshot_rounds * snapshot_jobs)) side

	db=held
	while [ $dead -lt "$snapshot_dead" ]; do
		quiesce
		enqueue_jobs bench noop 1000000
		drain 1000000 >/dev/null
		dead=$((dead + 1000000))
	done
	for side in held free; do
		db=$side
		snapshot_round plain dead "$side"
	done
}

section_snapshot()
{
	snapshot_variant plain
	restart_with jobqueue.max_ready_jobs=$snapshot_memory
	snapshot_variant priorities
	restart_with
	snapshot_variant delayed
}

rows_snapshot()
{
	local variant what round

	for what in drain enqueue; do
		for variant in plain priorities delayed; do
			for round in $(seq $snapshot_rounds) dead; do
				row "$what, held, $variant, round $round" \
					"$what, free, $variant, round $round" 'ratio>=' 0.95
			done
		done
	done
}

notes_snapshot()
{
	cat <<-END
		- held, free: with and without a session that holds a snapshot older than
		  all jobs; $snapshot_rounds rounds of $snapshot_jobs jobs in two databases, in turn. plain: as drain.
		  priorities: \`priority => i % 11\` and memory for $snapshot_memory jobs. delayed: \`run_at\`
		  within a second of the enqueue, timed from its commit. Round "dead" is
		  one more after there were $snapshot_dead dead rows.
	END
}
