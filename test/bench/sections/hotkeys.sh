# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# hotkeys  what one key with many jobs costs the others: others behind a great
#          many of one key; a fifth of all jobs on one key, beside the serial
#          time of that key alone; how early others start that come after it

hot_jobs=1000000
other_jobs=10000
mixed_jobs=10000		# a fifth of them on one key
ranked_jobs=1000		# of one key, and as many others
hot_workers=8
if [ "$short" = yes ]; then
	hot_jobs=20000
	other_jobs=1000
	mixed_jobs=1000
	ranked_jobs=200
fi

# others_behind NAME HOT_JOBS
others_behind()
{
	local out patience=$((60 + ($2 + other_jobs) / 1000)) n

	warm_up
	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	[ "$2" = 0 ] || enqueue_jobs bench noop "$2" ", key => 'hot'"
	enqueue_jobs bench other "$other_jobs" ", key => 'other ' || i"
	out=$(sql -c "CALL drain_others($other_jobs, $patience, NULL, NULL)")
	record "$1" "${out%%|*}" s
	n=$(sql -c "SELECT count(*) FROM jobqueue_job WHERE key <> 'hot'")
	[ "$n" = 0 ] || die "$1: $n others are left"
	[ "$2" = 0 ] ||
		record "jobs of that key that ran meanwhile" "$(($2 - \
			$(sql -c 'SELECT count(*) FROM jobqueue_job')))" jobs
	fresh_database bench
}

# mixed NAME JOBS_OF_THE_KEY OTHERS: each fifth one is of the key
mixed()
{
	local every=$((1 + $3 / $2))

	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	enqueue_jobs bench sleepy $(($2 + $3)) \
		", key => CASE WHEN i % $every = 0 THEN 'hot' END"
	record "$1" "$(drain $(($2 + $3)))" s
}

section_hotkeys()
{
	local hot=$((mixed_jobs / 5)) seconds rank

	restart_with jobqueue.max_workers=$hot_workers \
		jobqueue.max_workers_per_role=$hot_workers
	others_behind "$(number $other_jobs) others alone" 0
	others_behind "$(number $other_jobs) others behind $(number $hot_jobs) of a key" \
		$hot_jobs

	warm_up
	mixed "a fifth on one key, all" $hot $((mixed_jobs - hot))
	mixed "the jobs of that key alone" $hot 0
	mixed "a fifth on one key, all" $hot $((mixed_jobs - hot))
	mixed "the jobs of that key alone" $hot 0

	quiesce
	sql -c 'TRUNCATE start_sample' -c "SELECT setval('start_rank', 1, false)" \
		>/dev/null
	sql -U bench -c "SELECT count(jobqueue_enqueue('note_rank', '\"hot\"', key => 'hot'))
			FROM generate_series(1, $ranked_jobs)" \
		-c "SELECT count(jobqueue_enqueue('note_rank', '\"other\"'))
			FROM generate_series(1, $ranked_jobs)" >/dev/null
	seconds=$(drain $((2 * ranked_jobs)))
	rank=$(sql -c "SELECT min(rank), percentile_disc(0.5) WITHIN GROUP (ORDER BY rank),
			max(rank) FROM start_sample WHERE kind = 'other'")
	record "rank of the first other's start" "${rank%%|*}" ""
	rank=${rank#*|}
	record "rank of the median other's start" "${rank%%|*}" ""
	record "rank of the last other's start" "${rank#*|}" ""
	record "$(number $ranked_jobs) of a key, then $(number $ranked_jobs) others" "$seconds" s
	[ "$(sql -c 'SELECT count(*) FROM start_sample')" = $((2 * ranked_jobs)) ] ||
		die "not each job has noted its start once"
	hotkeys_parked
}

# How many jobs of a key are taken from their lane and put aside while it is
# held: each is a dispatch for nothing.
hotkeys_parked()
{
	local out was

	quiesce
	enqueue_jobs bench sleepy "$ranked_jobs" ", key => 'hot'"
	enqueue_jobs bench other "$ranked_jobs"
	was=$(wasted)
	out=$(sql -c "CALL drain_others($ranked_jobs, 60, NULL, NULL)")
	record "taken in vain and waiting for the key, at most" "${out##*|}" jobs
	empty
	[ -z "$was" ] ||
		record "taken and dropped" $(($(wasted) - was)) jobs
}

# How many jobs have been taken from a lane and dropped; nothing if the server
# does not say.
wasted()
{
	! has jobqueue_queue_stats wasted ||
		sql -c 'SELECT coalesce(sum(wasted), 0) FROM jobqueue_queue_stats()'
}

rows_hotkeys()
{
	row "$(number $other_jobs) others behind $(number $hot_jobs) of a key" \
		"$(number $other_jobs) others alone"
	row "a fifth on one key, all" "the jobs of that key alone" 'ratio<=' 1.2
	row "rank of the first other's start"
	row "rank of the median other's start"
	row "taken in vain and waiting for the key, at most"
	row "taken and dropped"
}

notes_hotkeys()
{
	cat <<-END
		- hot keys: $hot_workers workers. $other_jobs jobs with a key each, alone and enqueued
		  after $hot_jobs of one key. $mixed_jobs jobs that sleep 1 ms, each fifth with the
		  same key, beside the time the jobs of that key take alone. $ranked_jobs jobs of one
		  key enqueued before $ranked_jobs others: as the how many-th of all jobs the others
		  start, and how many jobs of the key wait in memory at once, each of which a
		  worker has taken from its lane in vain.
	END
}
