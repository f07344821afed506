# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# databases 200 databases with the extension on one server: how long a job of an
#          idle one waits, jobs and schedules that are due in all of them at one
#          moment, the start of the server with a job in each, and what the
#          launcher costs while nothing is to be done

most_runs[databases]=1
databases=200
[ "$short" = no ] || databases=10
databases_idle=20 # seconds
databases_cron=minute
if [ "$short" = yes ]; then databases_idle=1 databases_cron=second; fi

# in_each SQL: in all of them, one after the other; what comes out, in order
in_each()
{
	local i

	for ((i = 1; i <= databases; i++)); do
		db=many_$i sql -c "$1"
	done
}

# of column NAME of the jobs of queue QUEUE: ms after MOMENT
each_late()
{
	in_each "SELECT extract(epoch FROM $1 - $3) * 1000 FROM jobqueue_history
		WHERE queue = '$2' AND state = 'completed'" | LC_ALL=C sort -g
}

# record_late NAME: from the sorted numbers that are read; not in a pipe, where what
# is recorded is lost
record_late()
{
	local late

	late=$(cat)
	[ "$(wc -l <<<"$late")" = "$databases" ] ||
		die "$1: $(wc -l <<<"$late") jobs have run"
	record "$1, p50" "$(percentile 0.50 <<<"$late")" ms
	record "$1, the last" "$(percentile 1 <<<"$late")" ms
}

# until the jobs of that queue have ended everywhere
wait_each()
{
	local i limit=$((SECONDS + 300))

	for ((i = 1; i <= databases; i++)); do
		until [ "$(db=many_$i sql -c "SELECT count(*) FROM jobqueue_history
				WHERE queue = '$1'")" != 0 ]; do
			[ $SECONDS -lt $limit ] || die "many_$i: no job has run"
			sleep 0.2
		done
	done
}

launcher_ticks()
{
	awk '{ print $14 + $15 }' "/proc/$(sql -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'jobqueue launcher'")/stat"
}

section_databases()
{
	local i moment begin

	for ((i = 1; i <= databases; i++)); do
		if [ $i = 1 ]; then
			fresh_database many_1
			continue
		fi
		sql -d postgres -c "CREATE DATABASE many_$i TEMPLATE many_1"
		db=many_$i sql -c 'SELECT jobqueue_adopt()' >/dev/null
	done

	in_each "SELECT jobqueue_enqueue('SELECT 1', queue => 'single',
		keep => '1 hour')" >/dev/null
	wait_each single
	record_late 'a job in an idle database' \
		< <(each_late started_at single enqueued_at)

	moment=$(sql -c "SELECT date_trunc('second', now()) +
		interval '5 s' + $databases * interval '100 ms'")
	in_each "SELECT jobqueue_enqueue('SELECT 1', queue => 'due',
		run_at => '$moment', keep => '1 hour')" >/dev/null
	wait_each due
	record_late 'due in all databases at once, started' \
		< <(each_late started_at due "timestamptz '$moment'")

	in_each "SELECT jobqueue_schedule('s',
		'$([ $databases_cron = minute ] && echo 0 || echo '*') * * * * *', 'SELECT 1',
		queue => 'cron', keep => '1 hour')" >/dev/null
	wait_each cron
	in_each "SELECT jobqueue_unschedule('s');
		DELETE FROM jobqueue_archive WHERE queue = 'cron' AND id NOT IN
			(SELECT max(id) FROM jobqueue_archive WHERE queue = 'cron')" >/dev/null
	record_late 'schedules due in all at once, enqueued' \
		< <(each_late enqueued_at cron "date_trunc('$databases_cron', enqueued_at)")

	reload_with jobqueue.enabled=off
	in_each "SELECT jobqueue_enqueue('SELECT 1', queue => 'start',
		keep => '1 hour')" >/dev/null
	restart_with
	wait_each start
	record_late 'ready in all at the start of the server, started' \
		< <(each_late started_at start 'pg_postmaster_start_time()')

	in_each "SELECT jobqueue_enqueue('SELECT 1', run_at => 'tomorrow')" >/dev/null
	until [ "$(sql -c "SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'jobqueue scheduler'")" = 0 ]; do
		sleep 1
	done
	begin=$(launcher_ticks)
	sleep $databases_idle
	record "launcher, CPU in $databases_idle idle seconds" \
		"$(calc "10 * ($(launcher_ticks) - $begin)")" ms
	record "launcher, memory of its own" "$(rss 'jobqueue launcher')" kB
	for ((i = 1; i <= databases; i++)); do
		drop_database many_$i
	done
}

rows_databases()
{
	local name

	for name in "${names[@]}"; do
		case $name in
			'a job in an idle'* | 'due in all'* | 'schedules due in all'* | \
				'ready in all'* | 'launcher, '*) row "$name" ;;
		esac
	done
}

notes_databases()
{
	cat <<-END
		- databases: $databases databases with the extension, jobqueue.max_workers = 4. The jobs do
		  nothing; what is measured is mostly the start of one process after the other.
	END
}
