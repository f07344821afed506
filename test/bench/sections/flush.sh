# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# flush    as drain, with 16 workers and synchronous_commit = on set for the
#          jobs' role, so that each job is flushed before the next one of its
#          worker

flush_jobs=50000
[ "$short" = no ] || flush_jobs=2000

# Commits that wait for the disk are as many at once as there are workers: as
# many as the textbook table has clients.
section_flush()
{
	reload_with jobqueue.max_workers=16 jobqueue.max_workers_per_role=16
	drain_one "drain, a flush for each job" bench_sync noop "$flush_jobs"
	wanted drain || textbook_one
}

rows_flush()
{
	row "drain, a flush for each job" \
		"$(best "textbook, one job a transaction")" 'ratio>=' 1.5
}

notes_flush()
{
	cat <<-END
		- a flush for each job: $flush_jobs jobs, 16 workers, \`synchronous_commit = on\`
		  set for the jobs' role.
	END
}
