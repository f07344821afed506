# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and private.sh
#
# What the sections of the bench are made of: figures, the server, jobs, the
# rows of the report. Sourced by run, after ../private.sh.

# ---------------------------------------------------------------------------
# Figures: name -> one value a run
# ---------------------------------------------------------------------------
declare -A figures=()
declare -A units=()
names=()
skipped=()		# what could not be measured, and why

# record NAME VALUE UNIT
record()
{
	# what failed in a command substitution ends here
	[[ $2 =~ ^-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$ ]] || die "$1: no figure"
	[ -n "${figures[$1]:-}" ] || names+=("$1")
	figures[$1]+="$2 "
	units[$1]=$3
	printf '  %-52s %12s %s\n' "$1" "$(number "$2")" "$3"
}

# skip WHAT WHY
skip()
{
	local line="$1: $2"

	echo "  skipped: $line"
	case "${skipped[*]}" in *"$line"*) ;; *) skipped+=("$line") ;; esac
}

# number X: 1234567.8 as 1,234,567; short ones as they are
number()
{
	local whole=${1%.*}

	if [ ${#whole} -gt 3 ]; then
		thousands "$whole"
	else
		echo "$1"
	fi
}

# median NAME; nothing when it was not measured
median()
{
	if [ -z "$1" ] || [ -z "${figures[$1]:-}" ]; then return 0; fi
	tr ' ' '\n' <<<"${figures[$1]}" | grep . | LC_ALL=C sort -g |
		awk '{ v[NR] = $1 }
			END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

calc()
{
	awk "BEGIN { printf(\"${2:-%.0f}\", ($1)) }"
}

# rate JOBS SECONDS
rate()
{
	calc "$1 / $2"
}

# clients N: in words
clients()
{
	echo "$1 client$([ "$1" = 1 ] || echo s)"
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------
db=bench			# where sql and what is built on it go
changed=no			# does the server run with other settings than the usual?
server_env=()		# of the next start

finish()
{
	stop_all_servers
	if [ -z "$given_dir" ] && [ -n "$dir" ]; then
		rm -rf "$dir"
	fi
}

# sql [-U role] arguments of psql
sql()
{
	"$bindir/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$dir" -p "$port" \
		-U postgres -d "$db" "$@"
}

start_bench()
{
	as_user env "${server_env[@]}" "$bindir/pg_ctl" -D "$dir/bench" \
		-l "$dir/bench.log" -w -t 120 -s start ||
		{
			tail -n 30 "$dir/bench.log" >&2
			return 1
		}
}

# write_settings [NAME=VALUE ...]: over the usual ones
write_settings()
{
	local setting

	for setting; do
		echo "${setting%%=*} = '${setting#*=}'"
	done >"$dir/bench.conf"
}

# restart_with [NAME=VALUE ...]
# shellcheck disable=SC2120
restart_with()
{
	write_settings "$@"
	stop_server "$dir/bench" fast 120
	start_bench
	changed=$([ $# = 0 ] && [ ${#server_env[@]} = 0 ] && echo no || echo yes)
}

# reload_with [NAME=VALUE ...]: until new sessions see them
reload_with()
{
	local setting seen tries

	write_settings "$@"
	sql -d postgres -c 'SELECT pg_reload_conf()' >/dev/null
	for setting; do
		for ((tries = 0; ; tries++)); do
			seen=$(sql -d postgres -c "SELECT setting FROM pg_settings
				WHERE name = '${setting%%=*}'")
			[ "$seen" != "${setting#*=}" ] || break
			[ $tries -lt 100 ] || die "$setting is not in effect: $seen"
			sleep 0.05
		done
	done
	changed=yes
}

usual_settings()
{
	server_env=()
	# shellcheck disable=SC2119
	[ $changed = no ] || restart_with
}

# fresh_database NAME: with what objects.sql makes, and nothing else
fresh_database()
{
	sql -d postgres -c 'SET client_min_messages = warning' \
		-c "DROP DATABASE IF EXISTS $1 WITH (FORCE)" -c "CREATE DATABASE $1"
	db=$1 sql -f "$here/objects.sql"
}

drop_database()
{
	sql -d postgres -c "DROP DATABASE $1 WITH (FORCE)"
}

# has FUNCTION [ARGUMENT]: does jobqueue have it, with an argument so named?
has()
{
	[ "$(sql -c "SELECT count(*) > 0 FROM pg_proc WHERE proname = '$1'
		AND ('${2:-}' = '' OR '${2:-}' = ANY (proargnames))")" = t ]
}

# timed ROLE STATEMENT: microseconds, commit included
timed()
{
	sql -U "$1" <<-END
		\\o /dev/null
		SELECT clock_timestamp() AS begin \\gset
		$2;
		\\o
		SELECT round(1e6 * extract(epoch FROM clock_timestamp() - :'begin'));
	END
}

# pgbench ROLE CLIENTS SECONDS SCRIPT [option ...]: transactions a second
pgbench_tps()
{
	local role=$1 clients=$2 seconds=$3 script=$4 threads=$(($2 < 2 ? 1 : 2)) tps
	shift 4

	printf '%s\n' "$script" >"$dir/pgbench.sql"
	"$bindir/pgbench" -h "$dir" -p "$port" -U "$role" -n -M prepared \
		-c "$clients" -j "$threads" -T "$seconds" -f "$dir/pgbench.sql" "$@" \
		"$db" >"$dir/pgbench.out" 2>&1 || die "$(cat "$dir/pgbench.out")"
	tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$dir/pgbench.out")
	[ -n "$tps" ] || die "$(cat "$dir/pgbench.out")"
	calc "$tps"
}

# pgbench_latency ROLE SECONDS SCRIPT: p50 and p99 in ms, of one client
pgbench_latency()
{
	rm -f "$dir"/latency.*
	pgbench_tps "$1" 1 "$2" "$3" --log --log-prefix="$dir/latency" >/dev/null
	cat "$dir"/latency.* | awk '{ print $3 }' | LC_ALL=C sort -g |
		awk '{ v[NR] = $1 } END {
			if (NR == 0) exit 1
			a = int(NR * 0.5 + 0.999999); b = int(NR * 0.99 + 0.999999)
			printf("%.3f %.3f\n", v[a] / 1000, v[b] / 1000) }'
	rm -f "$dir"/latency.*
}

# ---------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------
quiesce()
{
	[ "$(sql -c "SELECT jobqueue_quiesce()")" = t ] ||
		die "jobqueue_quiesce() did not succeed"
}

# enqueue_jobs ROLE COMMAND JOBS [", further arguments", of row number i]
enqueue_jobs()
{
	sql -U "$1" -c "SELECT count(jobqueue_enqueue('$2', '{\"a\": 1}'${4:-}))
		FROM generate_series(1, $3) i" >/dev/null
}

# patience JOBS: seconds in which they surely end
patience()
{
	echo $((120 + $1 / 5000))
}

none_left()
{
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_job')" = 0 ] ||
		die "jobs are left in jobqueue_job"
}

# drain JOBS: seconds
drain()
{
	local seconds

	seconds=$(sql -c "CALL drain($1, $(patience "$1"), NULL)")
	none_left
	echo "$seconds"
}

# drain_some JOBS: lets about so many run, no more than that start any more;
# jobs a second
drain_some()
{
	local out

	out=$(sql -c "CALL drain_some($1, $(patience "$1"), NULL, NULL)")
	rate "${out%%|*}" "${out##*|}"
}

# Whatever was enqueued and is of no further interest.
empty()
{
	drain "$(sql -c 'SELECT count(*) FROM jobqueue_job')" >/dev/null
}

# Workers of role bench are there, and know their functions.
warm_up()
{
	quiesce
	enqueue_jobs bench noop 2000
	drain 2000 >/dev/null
}

# drain_one NAME ROLE COMMAND JOBS [", further arguments"]
drain_one()
{
	quiesce
	sql -c 'VACUUM jobqueue_job' -c 'CHECKPOINT'
	enqueue_jobs "$2" "$3" "$4" "${5:-}"
	record "$1" "$(rate "$4" "$(drain "$4")")" jobs/s
}

# ---------------------------------------------------------------------------
# Report: one row says what was measured, what stands beside it, their ratio,
# and a target for the ratio or for the value itself
# ---------------------------------------------------------------------------
rows=()			# what|measured|beside it|ratio|target|reached

# row NAME [BASELINE [OPERATOR TARGET]]: OPERATOR is ratio>= ratio<= value>= value<=
row()
{
	local value base="" ratio="" beside="" target="" reached="" unit op=${3:-}

	value=$(median "$1")
	[ -n "$value" ] || return 0
	unit=${units[$1]}
	[ -z "${2:-}" ] || base=$(median "$2")
	if [ -n "$base" ]; then
		beside="$2: $(number "$base") ${units[$2]}"
		[ "${units[$2]}" != "$unit" ] ||
			ratio=$(calc "$base == 0 ? 0 : $value / $base" %.2f)
	fi
	case $op in
		ratio*)
			[ -n "$ratio" ] || return 0
			target="${op#ratio} $4"
			reached=$(calc "$value ${op#ratio} $4 * $base")
			;;
		value*)
			target="${op#value} $(number "$4") $unit"
			reached=$(calc "$value ${op#value} $4")
			;;
	esac
	reached=${reached/1/yes}
	reached=${reached/0/no}
	rows+=("$1|$(number "$value") $unit|$beside|$ratio|$target|$reached")
}
