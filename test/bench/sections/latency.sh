# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# latency  from before a client sends SELECT jobqueue_enqueue(...) to the first
#          line of the job, see latency.pl

latency_samples=2000
[ "$short" = no ] || latency_samples=50
pause_ms=1				# between two samples, after all is idle

section_latency()
{
	local commit end values p50 p99 max enqueue insert

	for commit in on off; do
		sql -c 'TRUNCATE latency_sample, plain' -c 'VACUUM jobqueue_job' \
			-c 'CHECKPOINT'
		values=$(perl "$here/latency.pl" "$dir/.s.PGSQL.$port" bench bench \
			$commit "$latency_samples" "$pause_ms")
		read -r p50 p99 max enqueue insert <<<"$values"
		end=
		[ $commit = on ] || end=", not flushed"
		record "latency$end, p50" "$(calc "$p50 / 1000" %.3f)" ms
		record "latency$end, p99" "$(calc "$p99 / 1000" %.3f)" ms
		record "latency$end, maximum" "$(calc "$max / 1000" %.3f)" ms
		record "reply to an enqueue$end, p50" \
			"$(calc "$enqueue / 1000" %.3f)" ms
		record "reply to an INSERT$end, p50" \
			"$(calc "$insert / 1000" %.3f)" ms
	done
}

rows_latency()
{
	row "latency, p50" "reply to an INSERT, p50" 'value<=' 0.3
	row "latency, p99" "reply to an INSERT, p50" 'value<=' 2
	row "latency, not flushed, p50" "reply to an INSERT, not flushed, p50"
}

notes_latency()
{
	cat <<-END
		- latency: $latency_samples samples a run, one by one, from before the client sends
		  \`SELECT jobqueue_enqueue(...)\` to the first line of the job; the worker was
		  asleep. The enqueue is durable, so the time contains a flush, as the
		  reply to a plain INSERT does; "not flushed" has \`synchronous_commit = off\`.
	END
}
