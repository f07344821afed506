# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# unique   enqueue and drain of jobs with a unique_key, beside the same jobs
#          without

unique_jobs=500000
[ "$short" = no ] || unique_jobs=20000

# unique_bulk NAME STATEMENT JOBS
unique_bulk()
{
	quiesce
	sql -c 'VACUUM jobqueue_job, jobqueue_unique' -c 'CHECKPOINT'
	record "$1" "$(calc "1e6 * $unique_jobs / $(timed bench "$2")")" rows/s
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_job')" = "$3" ] ||
		die "$1: not $3 rows"
}

# unique_both NAME ARGUMENTS: enqueue, then drain
unique_both()
{
	local jobs="(SELECT array_agg('{\"a\": 1}'::jsonb)
		FROM generate_series(1, $unique_jobs))"

	unique_bulk "enqueue, $1" \
		"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'${2:-}))
		FROM generate_series(1, $unique_jobs) i" "$unique_jobs"
	if [ "$1" = "with unique_key" ]; then
		unique_bulk "enqueue, duplicates" \
			"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'$2))
			FROM generate_series(1, $unique_jobs) i" "$unique_jobs"
	fi
	record "drain, $1" "$(rate "$unique_jobs" "$(drain "$unique_jobs")")" /s
	unique_bulk "enqueue_many, $1" \
		"SELECT count(*) FROM jobqueue_enqueue_many('noop', $jobs${3:-})" \
		"$unique_jobs"
	empty
}

section_unique()
{
	warm_up
	unique_both "without unique_key"
	unique_both "with unique_key" ", unique_key => 'user:' || i" \
		", unique_keys => (SELECT array_agg('user:' || i)
			FROM generate_series(1, $unique_jobs) i)"
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_unique')" = 0 ] ||
		die "unique: locks are left"
}

rows_unique()
{
	row "enqueue, with unique_key" "enqueue, without unique_key" 'ratio>=' 0.5
	row "enqueue_many, with unique_key" "enqueue_many, without unique_key" \
		'ratio>=' 0.5
	row "enqueue, duplicates" "enqueue, without unique_key"
	row "drain, with unique_key" "drain, without unique_key"
}

notes_unique()
{
	echo "- unique: $unique_jobs jobs in one statement, each with a key of its own."
}
