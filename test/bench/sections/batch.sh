# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# batch    drain of queues that run 1, 10 and 50 jobs in one transaction

batches=(1 10 50)

section_batch()
{
	local n

	if ! has jobqueue_configure batch; then
		skip "batch" "there is no jobqueue_configure(queue, batch => n)"
		return
	fi
	for n in "${batches[@]}"; do
		sql -c "SELECT jobqueue_configure('batch_$n', batch => $n)" >/dev/null
	done
	warm_up
	for n in "${batches[@]}"; do
		drain_one "drain, batch $n, plpgsql" bench noop "$drain_jobs" \
			", queue => 'batch_$n'"
		drain_one "drain, batch $n, internal" bench noop_internal \
			"$drain_jobs" ", queue => 'batch_$n'"
	done
}

rows_batch()
{
	local n kind

	for kind in plpgsql internal; do
		for n in "${batches[@]:1}"; do
			row "drain, batch $n, $kind" "drain, batch 1, $kind"
		done
	done
}

notes_batch()
{
	echo "- batch: $drain_jobs jobs, ${batches[*]} of them in one transaction."
}
