# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# slowdisk a disk that takes 5 and 10 ms longer to flush, see slowsync.c: drain
#          and its number of flushes, and the reply to single durable enqueues,
#          with a flush in intervals and after each job

slow_delays=(0 5 10)	# ms
slow_jobs=100000
slow_jobs_each=2000		# where each job is flushed
most_runs[slowdisk]=3
if [ "$short" = yes ]; then
	slow_delays=(0 5)
	slow_jobs=10000
	slow_jobs_each=200
fi

delay_flushes()
{
	echo $(($1 * 1000)) >"$dir/slowsync.us.new"
	mv "$dir/slowsync.us.new" "$dir/slowsync.us"
}

# slow_drain NAME JOBS
slow_drain()
{
	local before

	before=$(sql -c 'SELECT wal_syncs()')
	record "drain, $1" "$(rate "$2" "$(drain "$2")")" jobs/s
	# counters are reported when a process goes idle
	sql -c "SELECT jobqueue_quiesce()" -c 'SELECT pg_sleep(1)' >/dev/null
	record "flushes, $1" "$(($(sql -c 'SELECT wal_syncs()') - before))" ""
}

# slow_reply NAME SCRIPT
slow_reply()
{
	local out

	out=$(pgbench_latency bench "$one_seconds" "$2")
	record "$1, p50" "${out% *}" ms
	record "$1, p99" "${out#* }" ms
}

section_slowdisk()
{
	local delay interval jobs name

	"${CC:-cc}" -O2 -shared -fPIC -o "$dir/slowsync.so" "$here/slowsync.c" \
		-ldl || die "slowsync.c does not compile"
	delay_flushes 0
	server_env=(LD_PRELOAD="$dir/slowsync.so" SLOWSYNC_FILE="$dir/slowsync.us")
	restart_with
	warm_up
	for delay in "${slow_delays[@]}"; do
		for interval in 2 0; do
			name="disk + $delay ms, flush_interval $interval"
			jobs=$slow_jobs
			[ $interval != 0 ] || jobs=$slow_jobs_each
			reload_with jobqueue.flush_interval=$interval
			quiesce
			sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
			enqueue_jobs bench noop "$jobs"
			delay_flushes "$delay"
			slow_drain "$name" "$jobs"
			sql -c 'SELECT jobqueue_resume()' >/dev/null
			slow_reply "enqueue, $name" \
				"SELECT jobqueue_enqueue('noop', '{\"a\": 1}');"
			[ $interval = 0 ] || slow_reply "INSERT, disk + $delay ms" \
				"INSERT INTO plain (payload) VALUES ('{\"a\": 1}');"
			delay_flushes 0
			empty
			sql -c 'TRUNCATE plain'
		done
	done
	slow_check
}

# The delay must have been there, or nothing above says anything.
slow_check()
{
	local delay=${slow_delays[-1]} p50

	p50=$(median "INSERT, disk + $delay ms, p50")
	[ "$(calc "$p50 >= $delay")" = 1 ] ||
		die "an INSERT took $p50 ms with flushes of $delay ms and more"
}

rows_slowdisk()
{
	local delay interval name base

	for delay in "${slow_delays[@]:1}"; do
		for interval in 2 0; do
			name="disk + $delay ms, flush_interval $interval"
			base="disk + 0 ms, flush_interval $interval"
			row "drain, $name" "drain, $base"
			row "flushes, $name" "flushes, $base"
			row "enqueue, $name, p50" "INSERT, disk + $delay ms, p50"
			row "enqueue, $name, p99" "INSERT, disk + $delay ms, p99"
		done
	done
}

notes_slowdisk()
{
	cat <<-END
		- disk + n ms: each flush takes so much longer. $slow_jobs jobs are drained with
		  \`jobqueue.flush_interval\` 2 ms, $slow_jobs_each with 0, which flushes after each job;
		  flushes are those of the whole server meanwhile. Single durable enqueues
		  of one client, whose jobs run at once, beside a plain INSERT.
	END
}
