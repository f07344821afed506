# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# keys     drain with as many keys as jobs, and with keys that have limits

section_keys()
{
	sql -c "SELECT jobqueue_configure('keys_three', key_limit => 3)" >/dev/null
	sql -c "SELECT jobqueue_configure('keys_rated', key_rate => 1000000)" >/dev/null
	sql -c "SELECT jobqueue_configure('keys_ordered', ordered => true)" >/dev/null
	warm_up
	drain_one "drain, no keys" bench noop "$drain_jobs"
	drain_one "drain, a key each" bench noop "$drain_jobs" \
		", key => 'k' || i"
	drain_one "drain, a key each, key_limit 3" bench noop "$drain_jobs" \
		", key => 'k' || i, queue => 'keys_three'"
	drain_one "drain, a key each, key_rate" bench noop "$drain_jobs" \
		", key => 'k' || i, queue => 'keys_rated'"
	drain_one "drain, a key each, ordered" bench noop "$drain_jobs" \
		", key => 'k' || i, queue => 'keys_ordered'"
}

rows_keys()
{
	row "drain, a key each" "drain, no keys" "ratio>=" 0.8
	row "drain, a key each, key_limit 3" "drain, a key each"
	row "drain, a key each, key_rate" "drain, a key each"
	row "drain, a key each, ordered" "drain, a key each"
}

notes_keys()
{
	echo "- keys: $drain_jobs jobs, each with a key of its own."
}
