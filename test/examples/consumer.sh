#!/usr/bin/env bash
#
# consumer.sh QUEUE [LEASE]: works off the jobs of a jobqueue queue with psql.
#
# The connection is what libpq's environment says (PGHOST, PGUSER, PGDATABASE,
# ...). Each call of psql is a session of its own, so the jobs are fetched with a
# lease (an interval, default '30 s'). A loop in the background extends it while
# the work is done; when nobody does so any more, the next consumer has the job.
#
# Copy it, and replace what stands between BEGIN and jobqueue_complete.

set -euo pipefail

[ $# = 1 ] || [ $# = 2 ] || {
	echo "usage: consumer.sh QUEUE [LEASE]" >&2
	exit 1
}
queue=$1
lease=${2:-30 s}
wait=${WAIT:-5 s}	# for a job; a shutdown takes as long at most
stopping=no
heartbeat=
trap 'stopping=yes' TERM INT

# sql NAME=VALUE ...: runs the statements of standard input, in which :'NAME' is
# the VALUE. Status 2: the connection was lost; 3: a statement failed.
sql()
{
	local -a variables=()
	local v

	for v; do
		variables+=(-v "$v")
	done
	psql -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 "${variables[@]}" -f -
}

# one job, as a line: id, attempt, token, args
fetch()
{
	sql queue="$queue" wait="$wait" lease="$lease" <<-'END'
		SELECT id, attempt, token, coalesce(args, 'null')
		FROM jobqueue_fetch(:'queue', 1, :'wait', :'lease');
	END
}

# The effects of the job and its end are one transaction.
work()
{
	sql id="$id" attempt="$attempt" args="$args" token="$token" <<-'END'
		BEGIN;
		SELECT deliver(:'id', :'attempt', :'args');
		SELECT jobqueue_complete(:'id', token => :'token');
		COMMIT;
	END
}

# until the script itself is gone
extend()
{
	local every

	every=$(sql lease="$lease" <<<"SELECT extract(epoch FROM :'lease'::interval) / 3;")
	while sleep "$every" && kill -0 $$; do
		sql id="$id" token="$token" lease="$lease" \
			<<<"SELECT jobqueue_extend(:'id', :'lease', :'token');" || true
	done
}

attempt()
{
	local error status=0

	extend >/dev/null 2>&1 &
	heartbeat=$!
	error=$(work 2>&1 >/dev/null) || status=$?
	kill "$heartbeat" 2>/dev/null || true
	wait "$heartbeat" 2>/dev/null || true
	[ "$status" != 0 ] || return 0
	echo "job $id, attempt $attempt: $error" >&2
	# If the connection was lost, nobody knows whether it is completed. If it is
	# not, it comes back when its lease is over.
	if [ "$status" = 3 ]; then
		sql id="$id" token="$token" error="$error" \
			<<<"SELECT jobqueue_fail(:'id', :'error', token => :'token');" >/dev/null || true
	fi
}

while [ $stopping = no ]; do
	if ! job=$(fetch); then
		[ $stopping = yes ] || sleep 1
		continue
	fi
	[ -n "$job" ] || continue
	read -r id attempt token args <<<"$job"
	if [ $stopping = yes ]; then
		sql id="$id" token="$token" <<<"SELECT jobqueue_release(:'id', :'token');" >/dev/null
	else
		attempt
	fi
done
