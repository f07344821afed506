# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# schedule 10,000 schedules of 5 roles in 4 databases, of which 40 are due each
#          second: how long after the second they have enqueued their jobs, and
#          how many are made in a second

most_runs[schedule]=3
schedules=2500
schedule_seconds=30
[ "$short" = no ] || schedules=250 schedule_seconds=5

# in one database: as many of each role; each fourth of them once a minute, the
# others at a time that does not come
make_schedules()
{
	local role

	for role in bench bench_1 bench_2 bench_3 bench_4; do
		sql -U "$role" -c "SELECT count(jobqueue_schedule('s' || i,
			CASE WHEN i % 4 = 0 THEN (i / 4) % 60 || ' * * * * *'
				ELSE '30 2 29 2 *' END,
			'noop', keep => '1 hour', overlap => 'allow'))
			FROM generate_series(1, $schedules / 5) i" >/dev/null
	done
}

section_schedule()
{
	local name late

	warm_up
	record "jobqueue_schedule()" "$(calc "1e6 * 4 * $schedules / $(timed bench \
		"SELECT count(jobqueue_schedule('t' || i, '@yearly', 'noop'))
		FROM generate_series(1, 4 * $schedules) i")")" /s
	sql -c "SELECT count(jobqueue_unschedule(name)) FROM jobqueue_schedules" \
		>/dev/null
	for name in schedule_1 schedule_2 schedule_3 schedule_4; do
		fresh_database $name
		db=$name make_schedules
	done
	sleep "$schedule_seconds"
	late=$(for name in schedule_1 schedule_2 schedule_3 schedule_4; do
		db=$name sql -c "SELECT extract(epoch FROM enqueued_at
				- date_trunc('second', enqueued_at)) * 1000
			FROM jobqueue_history WHERE state = 'completed'"
	done | LC_ALL=C sort -g)
	for name in schedule_1 schedule_2 schedule_3 schedule_4; do
		drop_database $name
	done
	record "fired late, p50" "$(percentile 0.50 <<<"$late")" ms
	record "fired late, p99" "$(percentile 0.99 <<<"$late")" ms
}

# percentile FRACTION: of the sorted numbers that are read
percentile()
{
	awk -v p="$1" '{ v[NR] = $1 }
		END { i = int(NR * p); printf("%.2f", v[i < 1 ? 1 : i]) }'
}

rows_schedule()
{
	row "jobqueue_schedule()"
	row "fired late, p50"
	row "fired late, p99"
}

notes_schedule()
{
	cat <<-END
		- schedule: $((4 * schedules)) schedules of 5 roles in 4 databases, for $schedule_seconds s, while their
		  jobs run. Late is what the job's enqueued_at is after the full second.
	END
}
