# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# limits   drain of a queue with max_running and rate so high that they are never
#          reached, and with max_running at the number of workers, beside one
#          without

section_limits()
{
	if ! has jobqueue_configure max_running; then
		skip "limits" "there is no jobqueue_configure(queue, max_running => n)"
		return
	fi
	sql -c "SELECT jobqueue_configure('high', max_running => 1000,
		rate => 1000000000), jobqueue_configure('reached', max_running => 4)" >/dev/null
	warm_up
	drain_one "drain, no limits" bench noop_internal "$drain_jobs" \
		", queue => 'none'"
	drain_one "drain, high limits" bench noop_internal "$drain_jobs" \
		", queue => 'high'"
	drain_one "drain, max_running reached" bench noop_internal "$drain_jobs" \
		", queue => 'reached'"
}

rows_limits()
{
	row "drain, high limits" "drain, no limits" 'ratio>=' 0.9
	row "drain, max_running reached" "drain, no limits"
}

notes_limits()
{
	echo "- limits: $drain_jobs jobs (\`LANGUAGE internal\`)."
}
