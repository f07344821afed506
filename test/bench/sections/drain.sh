# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# drain    jobs that do nothing, enqueued while jobqueue is quiesced; from
#          jobqueue_resume() to the end of the last job. Beside it the
#          textbook table, emptied by 1 to 16 pgbench clients, the best of
#          which counts: one job a transaction, and 50 jobs a statement

batch=50				# jobs a statement
batch_seconds=2
[ "$short" = no ] || batch_seconds=1

one_job="DELETE FROM textbook WHERE id = (SELECT id FROM textbook
	ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, payload;"
many_jobs="DELETE FROM textbook WHERE id = ANY (ARRAY(SELECT id FROM textbook
	ORDER BY id LIMIT $batch FOR UPDATE SKIP LOCKED)) RETURNING id, payload;"

# textbook NAME CLIENTS SECONDS JOBS_A_STATEMENT SCRIPT
textbook()
{
	local backlog=$drain_jobs left tps

	while :; do
		sql -c 'TRUNCATE textbook' -c 'CHECKPOINT' -c "INSERT INTO textbook (payload)
			SELECT '{\"a\": 1}' FROM generate_series(1, $backlog)" -c 'ANALYZE textbook'
		tps=$(pgbench_tps bench "$2" "$3" "$5")
		left=$(sql -c 'SELECT count(*) FROM textbook')
		[ "$left" -lt $(($2 * $4)) ] || break
		backlog=$((backlog * 2))
	done
	record "$1, $(clients "$2")" "$(calc "$tps * $4")" jobs/s
}

# Once a run, for both sections that are compared with it.
textbook_one()
{
	local c

	for c in "${clients[@]}"; do
		textbook "textbook, one job a transaction" "$c" "$one_seconds" 1 \
			"$one_job"
	done
}

# best PREFIX: of the figures "PREFIX, N clients" the name of the fastest
best()
{
	local c name

	for c in "${clients[@]}"; do
		name="$1, $(clients "$c")"
		echo "$(median "$name") $name"
	done | LC_ALL=C sort -g | tail -n 1 | cut -d ' ' -f 2-
}

section_drain()
{
	local c

	drain_one "drain, plpgsql" bench noop "$drain_jobs"
	drain_one "drain, internal" bench noop_internal "$drain_jobs"
	# shellcheck disable=SC2016 # $1 is the job's
	drain_one "drain, SQL text" bench 'SELECT $1' "$drain_jobs"
	textbook_one
	for c in "${clients[@]}"; do
		textbook "textbook, $batch jobs a statement" "$c" "$batch_seconds" \
			"$batch" "$many_jobs"
	done
}

rows_drain()
{
	local one many kind

	one=$(best "textbook, one job a transaction")
	many=$(best "textbook, $batch jobs a statement")
	for kind in plpgsql internal; do
		row "drain, $kind" "$one" 'ratio>=' 15
		row "drain, $kind" "$many" 'ratio>=' 1
	done
	row "drain, SQL text" "$one"
}

notes_drain()
{
	cat <<-END
		- drain: $drain_jobs jobs of a function that does nothing, in plpgsql or in C
		  (\`LANGUAGE internal\`), or of the SQL text \`SELECT \$1\`; from
		  \`jobqueue_resume()\` to the end of the last job.
		- textbook: \`id bigserial PRIMARY KEY, payload jsonb\` with a backlog of at
		  least $drain_jobs rows; the best of ${clients[*]} clients.
	END
}
