# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# bulk     many jobs in one statement, beside INSERT ... SELECT of the same
#          rows into a table with the same columns and indexes

bulk_jobs=1000000
[ "$short" = no ] || bulk_jobs=20000
bulk_array="(SELECT array_agg('{\"a\": 1}'::jsonb)
	FROM generate_series(1, $bulk_jobs))"

# clone_rows SOURCE: the statement that puts as many rows into the clone
clone_rows()
{
	sql -c "SELECT 'INSERT INTO clone SELECT ' || string_agg(CASE attname
				WHEN 'id' THEN 'nextval(''clone_id'')'
				WHEN 'enqueued_at' THEN 'clock_timestamp()'
				WHEN 'args' THEN 'rows.args'
				ELSE 'template.' || quote_ident(attname) END, ', ' ORDER BY attnum)
		FROM pg_attribute
		WHERE attrelid = 'clone'::regclass AND attnum > 0 AND NOT attisdropped"
	echo "FROM template, $1 AS rows(args)"
}

# bulk_enqueue NAME STATEMENT
bulk_enqueue()
{
	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	record "$1" "$(calc "1e6 * $bulk_jobs / $(timed bench "$2")")" rows/s
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_job')" = "$bulk_jobs" ] ||
		die "$1: not $bulk_jobs rows"
	sql -c 'TRUNCATE template' \
		-c 'INSERT INTO template SELECT * FROM jobqueue_job LIMIT 1'
	empty
}

# bulk_plain NAME TABLE STATEMENT: emptied as the jobs' table is, which keeps
# its size
bulk_plain()
{
	sql -c "DELETE FROM $2" -c "VACUUM (TRUNCATE off) $2" -c 'CHECKPOINT'
	record "$1" "$(calc "1e6 * $bulk_jobs / $(timed postgres "$3")")" rows/s
	[ "$(sql -c "SELECT count(*) FROM $2")" = "$bulk_jobs" ] ||
		die "$1: not $bulk_jobs rows"
}

# bulk NAME ENQUEUE_STATEMENT PLAIN_NAME SOURCE_OF_PLAIN
bulk()
{
	bulk_enqueue "$1" "$2"
	bulk_plain "$3" clone "$(clone_rows "$4")"
}

section_bulk()
{
	bulk "bulk, jobqueue_enqueue" \
		"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'))
		FROM generate_series(1, $bulk_jobs)" \
		"plain INSERT ... SELECT" \
		"(SELECT '{\"a\": 1}'::jsonb FROM generate_series(1, $bulk_jobs))"
	bulk "bulk, jobqueue_enqueue_many" \
		"SELECT count(*) FROM jobqueue_enqueue_many('noop', $bulk_array)" \
		"plain INSERT ... SELECT unnest" "(SELECT unnest($bulk_array))"
}

rows_bulk()
{
	row "bulk, jobqueue_enqueue" "plain INSERT ... SELECT" 'ratio>=' 0.7
	row "bulk, jobqueue_enqueue_many" "plain INSERT ... SELECT unnest" \
		'ratio>=' 0.7
}

notes_bulk()
{
	cat <<-END
		- bulk: $bulk_jobs rows in one statement; the plain table has the columns
		  and indexes of the jobs' table.
	END
}
