# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# sqltext  drain of jobs whose command is SQL text: the same for all, a text
#          that writes, and one text for each job; beside a function in plpgsql

# shellcheck disable=SC2016 # $1 is the job's
section_sqltext()
{
	local n

	warm_up
	drain_one "function in plpgsql" bench noop "$drain_jobs"
	drain_one "SQL text, the same" bench 'SELECT $1' "$drain_jobs"
	drain_one "SQL text, the same, writes" bench \
		"INSERT INTO written SELECT (\$1->>''a'')::int" "$drain_jobs"
	n=$(sql -c 'SELECT count(*) FROM written')
	[ "$n" = "$drain_jobs" ] || die "$drain_jobs jobs wrote $n rows"
	sql -c 'TRUNCATE written'
	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	sql -U bench -c "SELECT count(jobqueue_enqueue('SELECT ' || i, '{\"a\": 1}'))
		FROM generate_series(1, $drain_jobs) i" >/dev/null
	record "SQL text, one for each job" \
		"$(rate "$drain_jobs" "$(drain "$drain_jobs")")" jobs/s
}

rows_sqltext()
{
	row "SQL text, the same" "function in plpgsql" 'value>=' 100000
	row "SQL text, the same, writes" "function in plpgsql"
	row "SQL text, one for each job" "function in plpgsql"
}

notes_sqltext()
{
	cat <<-END
		- SQL text: $drain_jobs jobs of \`SELECT \$1\`; of \`INSERT INTO written SELECT
		  (\$1->>'a')::int\`; of \`SELECT 1\`, \`SELECT 2\`, …
	END
}
