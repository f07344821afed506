# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# memory   of the processes after some jobs and after a great many; and shared
#          memory by structure and setting

memory_few=100000
memory_many=10000000
most_runs[memory]=1
if [ "$short" = yes ]; then
	memory_few=10000
	memory_many=50000
fi
memory_settings=(		# setting, a larger value, the usual one
	'jobqueue.max_ready_jobs 1000000 100000'
	'jobqueue.max_lanes 8192 1024'
	'jobqueue.max_databases 2048 256'
	'max_worker_processes 132 32'
	'max_connections 300 100'
)

# rss BACKEND_TYPE: kB of memory of its own of the largest such process; nothing
# if there is none
rss()
{
	local pid

	sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type = '$1'" |
		while read -r pid; do
			awk '/^RssAnon/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true
		done | LC_ALL=C sort -n | tail -n 1
}

# record_rss JOBS
record_rss()
{
	local kind kb

	for kind in worker scheduler launcher; do
		kb=$(rss "jobqueue $kind")
		[ -z "$kb" ] || record "$kind after $(number "$1") jobs" "$kb" kB
	done
}

# A session that has run one statement, for comparison.
record_session_rss()
{
	record "a session after one statement" "$(sql -c \
		"SELECT substring(pg_read_file('/proc/self/status') FROM 'RssAnon:\s+(\d+)')")" kB
}

# drain_chunk JOBS
drain_chunk()
{
	quiesce
	enqueue_jobs bench noop "$1"
	drain "$1" >/dev/null
}

# What the server allocates under jobqueue's names, and without one, which is
# where the contents of hash tables and all locks are.
shared_memory()
{
	sql -c "SELECT name, allocated_size FROM pg_shmem_allocations
		WHERE name LIKE 'jobqueue%' AND name NOT LIKE '%pause%'
			OR name = '<anonymous>' ORDER BY name"
}

# shared_memory_of SETTING=VALUE SINCE: records what differs from the usual, and
# sets total; of settings of the server only what has a name is ours
shared_memory_of()
{
	local structure bytes

	total=0
	while IFS='|' read -r structure bytes; do
		case $structure,$1 in
			'<anonymous>,jobqueue.'*) ;;
			'<anonymous>,'*) continue ;;
		esac
		total=$((total + bytes - ${usual[$structure]:-0}))
		[ "$bytes" = "${usual[$structure]:-0}" ] ||
			record "$structure, $1" "$bytes" B
	done < <(shared_memory)
}

measure_shared_memory()
{
	local setting name large small structure bytes total=0 without
	local -A usual=()

	restart_with shared_preload_libraries=
	without=$(sql -c "SELECT allocated_size FROM pg_shmem_allocations
		WHERE name = '<anonymous>'")
	restart_with
	while IFS='|' read -r structure bytes; do
		usual[$structure]=$bytes
		if [ "$structure" = '<anonymous>' ]; then
			bytes=$((bytes - without))
			structure="locks and entries of hash tables"
		fi
		record "shared memory, $structure" "$bytes" B
		total=$((total + bytes))
	done < <(shared_memory)
	[ $total -gt 0 ] || die "jobqueue has no shared memory"
	record "shared memory, all" $total B
	for setting in "${memory_settings[@]}"; do
		read -r name large small <<<"$setting"
		restart_with "$name=$large"
		shared_memory_of "$name=$large"
		record "shared memory for one of $name" \
			"$(calc "$total / ($large - $small)" %.1f)" B
	done
}

section_memory()
{
	local done=0 chunk=1000000

	record_session_rss
	restart_with jobqueue.worker_idle_timeout=86400
	drain_chunk "$memory_few"
	done=$memory_few
	record_rss "$done"
	while [ "$done" -lt "$memory_many" ]; do
		[ $chunk -le $((memory_many - done)) ] || chunk=$((memory_many - done))
		drain_chunk "$chunk"
		done=$((done + chunk))
	done
	record_rss "$done"

	measure_shared_memory
}

rows_memory()
{
	local kind setting name

	for kind in worker scheduler launcher; do
		row "$kind after $(number "$memory_many") jobs" \
			"$kind after $(number "$memory_few") jobs"
	done
	row "worker after $(number "$memory_many") jobs" \
		"a session after one statement"
	row "shared memory, all"
	for setting in "${memory_settings[@]}"; do
		read -r name _ _ <<<"$setting"
		row "shared memory for one of $name"
	done
}

notes_memory()
{
	cat <<-END
		- memory: \`RssAnon\` of the largest process of its kind. Shared memory: as
		  \`pg_shmem_allocations\` has it, with the settings below; what has no name
		  there is the difference to a server without the library. For one of
		  max_worker_processes and max_connections: what has a name.
	END
}
