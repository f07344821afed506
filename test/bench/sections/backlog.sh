# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# backlog  a backlog far beyond memory (--backlog, 10,000,000 jobs with memory
#          for 100,000): draining off its front, beside backlogs that fit in
#          memory; enqueuing; the first job after a restart; cancelling a
#          million; 5 queues of 4 roles. Order is checked

backlog=${backlog:-$([ "$short" = no ] && echo 10000000 || echo 20000)}
backlog_memory=100000	# jobqueue.max_ready_jobs
backlog_sample=300000	# jobs drained for one figure
backlog_chunk=10000		# of the backlog that fits in memory
backlog_repeats=3
backlog_checked=100000	# whose order is checked
backlog_cancelled=1000000
most_runs[backlog]=3
if [ "$short" = yes ]; then
	backlog_memory=2000
	backlog_sample=4000
	backlog_chunk=1000
	backlog_repeats=1
	backlog_checked=4000
	backlog_cancelled=2000
fi
[ "$backlog" -ge $((2 * (backlog_repeats + 1) * backlog_sample + backlog_checked)) ] ||
	backlog_sample=$(((backlog - backlog_checked) / 2 / (backlog_repeats + 1)))
[ "$backlog_sample" -ge $backlog_chunk ] ||
	die "--backlog is at least $((backlog_checked + 2 * (backlog_repeats + 1) * backlog_chunk))"

backlog_settings=("jobqueue.max_ready_jobs=$backlog_memory")
backlog_name="backlog of $(number "$backlog")"

# enqueue_backlog JOBS [", further arguments"]: a million a statement
enqueue_backlog()
{
	local left=$1 n=1000000

	while [ "$left" -gt 0 ]; do
		[ "$n" -le "$left" ] || n=$left
		enqueue_jobs bench noop "$n" "${2:-}"
		left=$((left - n))
	done
}

# What is measured without the backlog, before and after it.
backlog_baseline()
{
	local ran seconds

	warm_up
	quiesce
	record "enqueue, no backlog" "$(pgbench_tps bench 4 "$one_seconds" \
		"SELECT jobqueue_enqueue('noop', '{\"a\": 1}');")" /s
	empty
	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	record "bulk, no backlog" "$(calc "1e6 * $backlog_sample / $(timed bench \
		"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'))
		FROM generate_series(1, $backlog_sample)")")" rows/s
	record "drain, backlog of $(number "$backlog_sample")" \
		"$(rate "$backlog_sample" "$(drain "$backlog_sample")")" jobs/s

	seconds=0
	for ((ran = 0; ran < backlog_sample; ran += backlog_chunk)); do
		quiesce
		enqueue_jobs bench noop $backlog_chunk
		seconds="$seconds + $(drain $backlog_chunk)"
	done
	record "drain, backlog of $(number $backlog_chunk)" \
		"$(rate "$ran" "($seconds)")" jobs/s
}

disk_used()
{
	df --output=used -B 1M "$dir" | tail -n 1
}

# restart_quiesced SETTING ...: no job runs before the next drain
restart_quiesced()
{
	restart_with "$@" jobqueue.enabled=off
	quiesce
	reload_with "$@" jobqueue.enabled=on
}

# restart_to_first_job SETTING ...: the job that comes before all others notes
# when it starts; the server's log says when it was ready. The backlog runs, too
restart_to_first_job()
{
	local ready seconds tries

	quiesce
	sql -c 'TRUNCATE latency_sample'
	sql -U bench -c "SELECT jobqueue_enqueue('latency', '0', priority => -32768)" >/dev/null
	restart_with "$@"
	ready=$(sed -n 's/^\(.*\) \[[0-9]*\] LOG:  database system is ready to accept connections$/\1/p' \
		"$dir/bench.log" | tail -n 1)
	for ((tries = 0; ; tries++)); do
		seconds=$(sql -c "SELECT extract(epoch FROM started - '$ready') FROM latency_sample")
		[ -z "$seconds" ] || break
		[ $tries -lt 1200 ] || die "no job has started a minute after a restart"
		sleep 0.05
	done
	record "first job after a restart, $backlog_name" "$seconds" s
}

# The jobs that jobqueue_recent knows, by the order in which they ended
jobs_ran="(SELECT id, queue, owner, result, row_number() OVER () AS back
	FROM jobqueue_recent) r"

# A single worker, since the restart: ids only rise, and none is left out.
backlog_order()
{
	local ran wrong n last=0

	for ((ran = 0; ran < backlog_checked; ran += 2000)); do
		drain_some 2000 >/dev/null
		wrong=$(sql -c "SELECT count(*), count(*) FILTER (WHERE id < before),
				max(id) FROM (SELECT id, lag(id) OVER (ORDER BY back DESC) AS before
					FROM $jobs_ran) o")
		n=${wrong%%|*}
		last=${wrong##*|}
		wrong=${wrong#*|}
		[ "$n" -gt 0 ] || die "no job is in jobqueue_recent"
		[ "${wrong%%|*}" = 0 ] ||
			die "${wrong%%|*} of $n jobs ran before one with a smaller id"
		[ "$(sql -c "SELECT count(*) FROM (SELECT FROM jobqueue_job
				WHERE id < $last AND queue = 'default' LIMIT 1) l")" = 0 ] ||
			die "a job with a smaller id than $last has been left out"
	done
}

# A million of their own queue, which are cancelled by it.
backlog_cancel()
{
	local n=$backlog_cancelled us

	if ! has jobqueue_cancel_where queue; then
		skip "cancelling $(number $n) jobs" "there is no jobqueue_cancel_where(queue, ...)"
		return
	fi
	quiesce
	enqueue_backlog $n ", queue => 'unwanted'"
	sql -c 'TRUNCATE clone, clone_archive' -c "INSERT INTO clone
			SELECT * FROM jobqueue_job WHERE queue = 'unwanted'" \
		-c CHECKPOINT
	us=$(timed postgres "WITH gone AS (DELETE FROM clone WHERE queue = 'unwanted' RETURNING *)
		INSERT INTO clone_archive (id, enqueued_at, ended_at, expires_at, home,
			owner, func_owner, priority, attempt, state, queue, command, args)
		SELECT id, enqueued_at, now(), now() + interval '7 days', home, owner,
			func_owner, priority, attempt, 'cancelled', queue, command, args
		FROM gone")
	record "DELETE into another table, $(number $n) rows" "$(calc "$us / 1e6" %.2f)" s
	sql -c 'TRUNCATE clone, clone_archive' -c CHECKPOINT
	us=$(timed postgres "SELECT jobqueue_cancel_where('unwanted', NULL, NULL)")
	record "cancel $(number $n) jobs by queue" "$(calc "$us / 1e6" %.2f)" s
	[ "$(sql -c "SELECT count(*) FROM jobqueue_job WHERE queue = 'unwanted'")" = 0 ] ||
		die "jobs are left that were cancelled"
	[ "$(sql -c "SELECT count(*) FROM jobqueue_history WHERE state = 'cancelled'")" = $n ] ||
		die "not $n jobs are cancelled"
}

backlog_one_lane()
{
	local used i

	backlog_baseline
	quiesce
	sql -c 'VACUUM jobqueue_job' -c CHECKPOINT
	used=$(disk_used)
	enqueue_backlog "$backlog"
	record "size of the database, $backlog_name" \
		"$(sql -c "SELECT pg_database_size('bench') / 1048576")" MB
	record "disk that the backlog took, WAL included" $(($(disk_used) - used)) MB
	sql -c 'VACUUM (ANALYZE) jobqueue_job' -c CHECKPOINT

	drain_some 2000 >/dev/null
	for ((i = 0; i < backlog_repeats; i++)); do
		record "drain, $backlog_name" "$(drain_some "$backlog_sample")" jobs/s
	done
	record "enqueue, $backlog_name" "$(pgbench_tps bench 4 "$one_seconds" \
		"SELECT jobqueue_enqueue('noop', '{\"a\": 1}');")" /s
	sql -c CHECKPOINT
	record "bulk, $backlog_name" "$(calc "1e6 * $backlog_sample / $(timed bench \
		"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'))
		FROM generate_series(1, $backlog_sample)")")" rows/s
	backlog_cancel

	# cold: the file cache of the system has it, the server's memory has not
	restart_to_first_job "${backlog_settings[@]}"
	quiesce
	enqueue_backlog $((2 * backlog_checked))
	restart_quiesced "${backlog_settings[@]}" jobqueue.max_workers=1
	backlog_order
	restart_with "${backlog_settings[@]}"
	fresh_database bench
	backlog_baseline
}

# ---------------------------------------------------------------------------
# 5 queues of 4 roles, of mixed priorities, one queue paused
# ---------------------------------------------------------------------------
lanes_jobs=$((backlog / 5))
[ $lanes_jobs -ge 40000 ] || lanes_jobs=40000
lanes_sample=$((backlog_sample < lanes_jobs / 6 ? backlog_sample : lanes_jobs / 6))
lanes_sample=$((lanes_sample / 4 * 4))

# enqueue_lanes JOBS: each role's id order is that of i
enqueue_lanes()
{
	local role

	for role in bench_1 bench_2 bench_3 bench_4; do
		sql -U $role -c "SELECT count(jobqueue_enqueue('echo', to_jsonb(i % 11),
				queue => 'q' || i % 5, priority => i % 11))
			FROM generate_series(1, $1 / 4) i" >/dev/null
	done
}

backlog_lanes()
{
	local paused="" waiting out wrong i
	local one_each=("${backlog_settings[@]}" jobqueue.max_workers=4
		jobqueue.max_workers_per_role=1)

	quiesce
	enqueue_lanes 4000
	drain 4000 >/dev/null
	quiesce
	enqueue_lanes $lanes_sample
	record "drain, 20 lanes, $(number $lanes_sample)" \
		"$(rate $lanes_sample "$(drain $lanes_sample)")" jobs/s

	quiesce
	enqueue_lanes "$lanes_jobs"
	sql -c 'VACUUM (ANALYZE) jobqueue_job' -c CHECKPOINT
	if has jobqueue_pause queue; then
		paused=q4
		sql -c "SELECT jobqueue_pause(queue => '$paused')" >/dev/null
		waiting=$(sql -c "SELECT count(*) FROM jobqueue_job WHERE queue = '$paused'")
	else
		skip "a paused queue among the lanes" "there is no jobqueue_pause(queue)"
	fi
	# the first jobs of all lanes lie in all pages, whose first change since the
	# checkpoint is written in full; the next ones find them changed
	for ((i = 0; i < backlog_repeats; i++)); do
		record "drain, 20 lanes, backlog of $(number $lanes_jobs)" \
			"$(drain_some $lanes_sample)" jobs/s
	done

	# one worker for each role: the order of a lane is that of the view
	restart_quiesced "${one_each[@]}"
	drain_some $lanes_sample >/dev/null
	out=$(sql -c "SELECT count(*), count(*) FILTER (WHERE (priority, id) < before),
			count(DISTINCT (queue, owner))
		FROM (SELECT id, queue, owner, result::int AS priority,
				lag((result::int, id)) OVER (PARTITION BY queue, owner
					ORDER BY back DESC) AS before
			FROM $jobs_ran) o")
	wrong=${out#*|}
	[ "${wrong%%|*}" = 0 ] ||
		die "${wrong%%|*} of ${out%%|*} jobs ran before one that comes first in its lane"
	[ "${out##*|}" -ge 12 ] || die "jobs of only ${out##*|} of 20 lanes ran"
	if [ -n "$paused" ]; then
		[ "$waiting" = "$(sql -c "SELECT count(*) FROM jobqueue_job
				WHERE queue = '$paused'")" ] ||
			die "jobs of a paused queue ran"
	fi
}

section_backlog()
{
	restart_with "${backlog_settings[@]}"
	backlog_one_lane
	fresh_database bench
	backlog_lanes
}

rows_backlog()
{
	local name

	for name in $backlog_chunk "$backlog_sample"; do
		row "drain, $backlog_name" "drain, backlog of $(number "$name")" \
			'ratio>=' 0.95
	done
	row "first job after a restart, $backlog_name" "" 'value<=' 2
	row "enqueue, $backlog_name" "enqueue, no backlog" 'ratio>=' 0.95
	row "bulk, $backlog_name" "bulk, no backlog" 'ratio>=' 0.95
	name=$(number $backlog_cancelled)
	row "cancel $name jobs by queue" "DELETE into another table, $name rows" \
		'value<=' 10
	row "drain, 20 lanes, backlog of $(number $lanes_jobs)" \
		"drain, 20 lanes, $(number $lanes_sample)" 'ratio>=' 0.95
	row "size of the database, $backlog_name"
}

notes_backlog()
{
	cat <<-END
		- backlog: \`jobqueue.max_ready_jobs\` is $backlog_memory. $backlog_sample jobs off the front of
		  $backlog; beside as many alone, and as many $backlog_chunk at a time, before
		  and after. The order of $backlog_checked jobs was checked with one worker, across
		  refills. Restart: from the server's "ready to accept connections" to the
		  start of the first job. 20 lanes: 5 queues of 4 roles, 11 priorities,
		  $lanes_jobs jobs, and the order within each lane checked.
	END
}
