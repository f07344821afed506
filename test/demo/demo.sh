#!/usr/bin/env bash
#
# make demo: one job for each file below /usr/share (DEMO_PATH), in a private
# server that loses a worker and then crashes on the way.

# shellcheck disable=SC2119	# functions with optional arguments

set -euo pipefail

here=$(dirname "$0")/..
# shellcheck source=test/private.sh
. "$here/private.sh"

root=${DEMO_PATH:-/usr/share}
patience=60				# seconds without progress until we give up
total=0
data=

clean_environment

finish()
{
	if [ -n "$data" ] && [ -f "$data/postmaster.pid" ]; then
		stop_server "$data" immediate 20 >/dev/null 2>&1 || true
	fi
	[ -z "$dir" ] || rm -rf "$dir"
}

if [ -t 1 ]; then tty=yes; else tty=no; fi

# say_begin text: a line that say_end finishes. On a terminal the status is
# drawn over the current line, so a line that is said goes above it.
say_begin()
{
	step=$(now_ms)
	printf '  %-58s' "$1"
}

say_end()
{
	printf ' %5s s\n' "$(seconds $(($(now_ms) - step)))"
}

event()
{
	[ $tty = no ] || printf '\r\e[K'
	printf '  %s\n' "$1"
}

psql_() # psql_ argument ...
{
	"$bindir/psql" -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -h "$dir" \
		-U postgres "$@"
}

# ---- one session for all the looking, opened again when the server is back

session=			# pid of its psql
trap '' PIPE

session_open()
{
	rm -f "$dir/ask" "$dir/answer"
	mkfifo "$dir/ask" "$dir/answer"
	"$bindir/psql" -X -q -A -t -F ' ' -h "$dir" -U postgres demo \
		<"$dir/ask" >"$dir/answer" 2>"$dir/session.log" &
	session=$!
	exec {to}>"$dir/ask" {from}<"$dir/answer"
}

session_close()
{
	if [ -n "$session" ]; then
		exec {to}>&- {from}<&-
		kill "$session" 2>/dev/null || true
		wait "$session" 2>/dev/null || true
	fi
	session=
}

# ask query: sets $answer to its one row; fails when the server is not there.
ask()
{
	answer=
	[ -n "$session" ] || return 1
	{ echo "$1;" >&"$to"; } 2>/dev/null || return 1
	IFS= read -r -t 30 -u "$from" answer
}

# After a crash: waits until the server has noticed, and takes connections.
reconnect()
{
	local until=$(($(now_ms) + 1000 * patience))

	session_close
	while [ "$(now_ms)" -lt $until ]; do
		if grep -q 'was terminated by signal 9' "$dir/server.log" &&
			timeout 2 "$bindir/psql" -X -q -h "$dir" -U postgres demo \
				-c 'SELECT 1' >/dev/null 2>&1; then
			session_open
			return 0
		fi
		sleep 0.05
	done
	tail -n 20 "$dir/server.log" >&2
	die "the server did not come back"
}

# ---- what is seen while the jobs run

# Done is what the totals say: it is committed, and survives a crash, which
# the counters in memory do not.
status_query="SELECT coalesce((SELECT sum(files) FROM folder_total), 0),
	coalesce(sum(blocked), 0), coalesce(sum(running), 0) FROM jobqueue_status"

look()
{
	ask "$status_query" || return 1
	read -r finished blocked active <<<"$answer"
}

draw()
{
	local width=20 filled bar rate elapsed percent line

	elapsed=$(($(now_ms) - drain_begin))
	percent=$((100 * finished / total))
	filled=$((width * finished / total))
	printf -v bar '%*s' $filled ''
	bar=${bar// /#}
	rate=$((1000 * finished / (elapsed + 1)))
	printf -v line '[%-*s] %3d %%  %s done  %s running  %s blocked  %s jobs/s' \
		$width "$bar" "$percent" "$(thousands "$finished")" "$active" \
		"$(thousands "$blocked")" "$(thousands "$rate")"
	if [ $tty = yes ]; then
		printf '\r\e[K  %.*s' $(($(tput cols 2>/dev/null || echo 80) - 3)) "$line"
	elif [ $percent -ge "$next_line" ]; then
		printf '  %s\n' "$line"
		next_line=$((percent / 20 * 20 + 20))
	fi
}

# A worker, if possible one with a job.
a_worker()
{
	ask "SELECT coalesce((SELECT pid FROM jobqueue_workers
		WHERE pid IS NOT NULL ORDER BY job IS NULL LIMIT 1), 0)" &&
		[ "$answer" != 0 ]
}

proof()	# text, number that must be 0
{
	if [ "$2" = 0 ]; then
		printf '  %-66s ok\n' "$1"
	else
		printf '  %-66s FAILED (%s)\n' "$1" "$2"
		proofs_failed=1
	fi
}

# ---------------------------------------------------------------------------

"$top/test/setup.sh" build
finish_at_exit
make_dir
data=$dir/data
demo_begin=$(now_ms)

echo "jobqueue demo: one job for each file below $root; it adds the file to the"
echo "totals of its top folder. The folder is the job's key: one at a time."
echo

say_begin "build, and a private server in $dir"
build
init_server "$data" <<END
shared_preload_libraries = 'jobqueue'
listen_addresses = ''
unix_socket_directories = '$dir'
unix_socket_permissions = 0700
max_worker_processes = 16
restart_after_crash = on
max_wal_size = 4GB
END
start_server "$data" "$dir/server.log"
psql_ -d postgres -c 'CREATE DATABASE demo'
psql_ -d demo -f "$top/test/demo/demo.sql" -o /dev/null
say_end

# path, size, time; names that COPY would have to quote are rare: left out
{ find "$root" -type f ! -path $'*[\t\n\\\\]*' -printf '%P\t%s\t%T@\n' || true; } \
	2>/dev/null | sed 's/\.[0-9]*$//' |
	{ iconv -c -f UTF-8 -t UTF-8 || true; } >"$dir/list"
total=$(wc -l <"$dir/list")
[ "$total" -gt 0 ] || die "no files below $root"
folders=$(cut -f1 "$dir/list" | awk -F/ 'NF > 1 {print $1; next} {print "."}' |
	sort -u | wc -l)

say_begin "$(thousands "$total") rows inserted, a job enqueued for each by a trigger"
{
	echo "BEGIN; CREATE TEMP TABLE list (path text, bytes bigint, modified bigint);"
	echo "COPY list FROM stdin;"
	cat "$dir/list"
	echo "\\."
	echo "INSERT INTO file (path, bytes, modified)"
	echo "SELECT path, bytes, to_timestamp(modified) FROM list; COMMIT;"
} | PGCLIENTENCODING=UTF8 psql_ -d demo
say_end
drain_begin=$(now_ms)

session_open
finished=0
next_line=0
terminated=no
killed=no
progress=$(now_ms)
while [ "$finished" -lt "$total" ]; do
	last=$finished
	if ! look; then
		cat "$dir/session.log" >&2
		tail -n 20 "$dir/server.log" >&2
		die "lost the server"
	fi
	draw
	if [ "$finished" -gt "$last" ]; then
		progress=$(now_ms)
	elif [ $(($(now_ms) - progress)) -gt 2000 ] &&
		ask "SELECT count(*) FROM jobqueue_job" && [ "$answer" = 0 ]; then
		break # no job left, yet files missing: the proofs say which
	elif [ $(($(now_ms) - progress)) -gt $((1000 * patience)) ]; then
		echo >&2
		psql_ -d demo -x -c 'SELECT * FROM jobqueue_status' >&2 || true
		psql_ -d demo -c 'SELECT * FROM jobqueue_workers' >&2 || true
		tail -n 20 "$dir/server.log" >&2
		die "no job finished for $patience s"
	fi

	if [ $terminated = no ] && [ $((3 * finished)) -ge "$total" ] && a_worker; then
		pid=$answer
		ask "SELECT pg_terminate_backend($pid)" || true
		event "worker $pid terminated after $(thousands "$finished") files (pg_terminate_backend)"
		terminated=yes
	elif [ $killed = no ] && [ $terminated = yes ] &&
		[ $((5 * finished)) -ge $((3 * total)) ] && a_worker; then
		pid=$answer
		kill_begin=$(now_ms)
		kill -9 "$pid"
		reconnect
		event "worker $pid killed after $(thousands "$finished") files (kill -9); server back after $(seconds $(($(now_ms) - kill_begin))) s"
		killed=yes
		progress=$(now_ms)
	elif [ $killed = yes ]; then
		sleep 0.1
	else
		sleep 0.02
	fi
done
drain_ms=$(($(now_ms) - drain_begin))
draw
[ $tty = no ] || echo

# the last commits are seen before their jobs are off the books
for ((i = 0; i < 100; i++)); do
	ask "SELECT count(*) FROM jobqueue_job" || true
	[ "$answer" != 0 ] || break
	sleep 0.1
done
ask "SELECT count(DISTINCT pid) FROM run" || true
workers=$answer
session_close

echo
proofs_failed=0
proofs=$(psql_ -d demo -f "$top/test/demo/proof.sql")
read -r wrong_totals wrong_runs overlaps left <<<"$proofs"
proof "totals of $folders folders equal a direct query over the list" "$wrong_totals"
proof "each of $(thousands "$total") files was counted exactly once" "$wrong_runs"
proof "no two jobs of one folder overlapped" "$overlaps"
proof "no job is left over, none is dead" "$left"
if [ $killed = no ]; then
	echo "  (the jobs were done before a worker could be killed)"
	proofs_failed=1
fi
echo
echo "  $(thousands "$total") jobs, each a transaction of its own, in $(seconds $drain_ms) s by $workers workers:"
echo "  $(thousands $((1000 * total / (drain_ms + 1)))) jobs/s, crash and restart included; all of the demo in $(seconds $(($(now_ms) - demo_begin))) s"
[ $proofs_failed = 0 ] || exit 1
