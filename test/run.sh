#!/usr/bin/env bash
#
# run.sh: all tests, in a private installation that is removed again.
#
# Environment:
#   SUITE   regress, isolation, tap or bench; default all four
#   TESTS   names within the suites, without path and ending; default all
#   DIR     work here and keep it (fast when repeated); default: a temporary
#           directory
#   KEEP=1  keep the temporary directory
#   COPT    compiler flags, default -Werror
#   JOBS    TAP files at once, default 2
#   DISCARD_CACHES=1  regress and tap in servers, built with assertions, that
#           throw away what they know of the catalogs at each look
#           (debug_discard_caches; not while the extension is created). Hours.
#
# Every suite runs, whatever became of the one before. Counted are: each
# regression test, each isolation spec, each test point of each TAP file, for
# the servers of the first two that their log is clean, and that the short form
# of the bench works. The last line is
# "N passed, N failed"; the exit status is 0 when something ran and nothing
# failed.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

passed=0
failed=0
failed_names=()
tap_said=
given_dir=${DIR:-}
small=
small_wal=

clean_environment
if [ "${DISCARD_CACHES:-}" = 1 ]; then
	# many times slower
	SUITE_TIMEOUT=${SUITE_TIMEOUT:-36000}
	export TAP_TIMEOUT=${TAP_TIMEOUT:-36000} JQ_DISCARD_CACHES=1
	PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-3600}
	PGCTLTIMEOUT=${PGCTLTIMEOUT:-600}
fi
export PGISOLATIONTIMEOUT=${PGISOLATIONTIMEOUT:-150}
export PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-120}
export PGCTLTIMEOUT=${PGCTLTIMEOUT:-120}

finish()
{
	stop_all_servers
	drop_small_disks
	if [ -z "$given_dir" ] && [ -n "$dir" ]; then
		if [ "${KEEP:-}" = 1 ]; then
			echo "kept: $dir" >&2
		else
			rm -rf "$dir"
		fi
	fi
}

fail()
{
	failed=$((failed + 1))
	failed_names+=("$1")
}

conclude()
{
	if [ ${#failed_names[@]} -gt 0 ]; then
		echo
		printf 'failed: %s\n' "${failed_names[@]}"
		# here, where one looks first
		printf '%s' "$tap_said"
	elif [ "$passed" = 0 ]; then
		echo "no test ran"
	fi
	echo
	echo "$passed passed, $failed failed"
	[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}

# wanted SUITE
wanted()
{
	[ -z "${SUITE:-}" ] || [ "$SUITE" = "$1" ]
}

# choose FILE ...: the names (no path, no ending) that TESTS lets through.
choose()
{
	local file name

	for file; do
		[ -f "$file" ] || continue
		name=${file##*/}
		name=${name%.*}
		case $name in jobqueue--*) continue ;; esac
		case " ${TESTS:-$name} " in *" $name "*) echo "$name" ;; esac
	done
}

# What a server never writes in a test without a crash, whether or not a
# test's output shows it.
sanitizer='ERROR: AddressSanitizer|[0-9]: runtime error: '
bad_log="$sanitizer"'|TRAP:|PANIC:|was terminated by signal|reference leak|refcount leak|snapshot .* still active|resource was not closed|corrupted|stuck spinlock'

# regress_like SUITE PROGRAM INPUTDIR NAME ...
regress_like()
{
	local suite=$1 program=$2 input=$3 out=$dir/$1.out name log status=0
	local -a options=()
	shift 3

	[ $# -gt 0 ] || return 0
	echo
	echo "== $suite"
	rm -rf "$out"
	as_user mkdir "$out"
	if "$program" --help | grep -q -- --expecteddir; then
		options=(--expecteddir="$input")
	fi
	# a test without expected output shows all of it, and fails
	for name; do
		as_user mkdir -p "$dir/source/$input/expected"
		[ -f "$dir/source/$input/expected/$name.out" ] ||
			as_user touch "$dir/source/$input/expected/$name.out"
	done
	(
		cd "$dir/source"
		as_user timeout --foreground -k 10 "${SUITE_TIMEOUT:-420}" "$program" \
			--bindir="$bindir" --inputdir="$input" --outputdir="$out" \
			"${options[@]}" \
			--temp-instance="$out/instance" --temp-config=test/jobqueue.conf \
			--load-extension=jobqueue --encoding=UTF8 --no-locale \
			--dbname="contrib_$suite" "$@" 2>&1
	) | tee "$dir/$suite.txt" || status=$?
	stop_all_servers

	for name; do
		# "test name ... ok" until 15, "ok 1 - name" since
		if grep -Eq "^(test $name +\.\.\. ok|ok [0-9]+ +[-+] $name )" \
			"$dir/$suite.txt"; then
			passed=$((passed + 1))
		else
			fail "$suite $name"
		fi
	done
	if [ -f "$out/regression.diffs" ]; then
		echo
		head -c 60000 "$out/regression.diffs"
	fi
	log=$out/log/postmaster.log
	if [ ! -f "$log" ]; then
		log=$out/instance/log/postmaster.log
	fi
	if [ ! -f "$log" ]; then
		log=$(find "$out" -name postmaster.log | head -n 1)
	fi
	if [ -z "$log" ]; then
		return 0
	fi
	if grep -Eq "$bad_log" "$log"; then
		fail "$suite: the server's log is not clean"
		echo
		echo "-- the server's log:"
		grep -E -B5 -A10 "$bad_log" "$log" | head -n 100
	else
		passed=$((passed + 1))
		if [ "$status" != 0 ]; then
			echo
			echo "-- end of the server's log:"
			tail -n 400 "$log"
		fi
	fi
}

# node_path: where Node.js finds its driver pg, if it does or may be given it
node_path()
{
	if node -e "require('pg')" 2>/dev/null || ! command -v npm >/dev/null; then
		echo "${NODE_PATH:-}"
		return
	fi
	[ -d "$dir/node/node_modules/pg" ] ||
		npm install --prefix "$dir/node" --no-save --no-audit --no-fund pg@8 \
			>"$dir/npm.txt" 2>&1 || tail -n 3 "$dir/npm.txt" >&2
	echo "$dir/node/node_modules"
}

# File systems that are soon full, for tables and for WAL, where root may mount
# them.
make_small_disks()
{
	[ "$(id -u)" = 0 ] || return 0
	mkdir -p "$dir/small" "$dir/small_wal"
	if mount -t tmpfs -o size=48m,mode=777 tmpfs "$dir/small" 2>/dev/null; then
		small=$dir/small
	fi
	if mount -t tmpfs -o size=160m,mode=777 tmpfs "$dir/small_wal" 2>/dev/null; then
		small_wal=$dir/small_wal
	fi
}

drop_small_disks()
{
	local disk

	for disk in $small $small_wal; do
		umount "$disk" 2>/dev/null || umount -l "$disk" || true
	done
	small=
	small_wal=
}

tap()
{
	local pgxs=$1 result ok=0 bad=0 names name
	shift

	[ $# -gt 0 ] || return 0
	echo
	echo "== tap"
	rm -rf "$dir/tap"
	as_user mkdir -p "$dir/tap/tmp_check/log"
	case " $* " in
		*'_consumers.pl '* | *'_pgbouncer.pl '*)
			"$top/test/setup.sh" consumers ||
				echo "some tests of consumers will be skipped"
			NODE_PATH=$(node_path)
			export NODE_PATH
			;;
	esac
	case " $* " in *'_chaos.pl '*) make_small_disks ;; esac
	(
		cd "$dir/source"
		as_user env JQ_SMALL_DISK="$small" JQ_SMALL_WAL="$small_wal" TESTDIR="$dir/tap" TESTDATADIR="$dir/tap/tmp_check" \
			TESTLOGDIR="$dir/tap/tmp_check/log" PGPORT=65432 \
			PATH="$bindir:$PATH" PG_REGRESS="$pgxs/test/regress/pg_regress" \
			perl test/run-tap.pl "$dir/tap/result" "${JOBS:-2}" \
			"$pgxs/test/perl" "${@/#/test/t/}" 2>&1
	) || true
	stop_all_servers
	drop_small_disks

	if [ -f "$dir/tap/result" ]; then
		read -r ok bad names <"$dir/tap/result"
		tap_said=$(tail -n +2 "$dir/tap/result")$'\n'
	else
		bad=1
		names=
		failed_names+=("tap: could not run")
	fi
	passed=$((passed + ok))
	failed=$((failed + bad))
	# also of a process whose end no test minds
	if grep -lE "$sanitizer" "$dir"/tap/tmp_check/log/*.log 2>/dev/null; then
		fail "tap: a sanitizer found something"
		grep -hE -A40 "$sanitizer" "$dir"/tap/tmp_check/log/*.log | head -n 200
	fi
	for name in $names; do
		failed_names+=("tap $name")
		for result in "$dir/tap/tmp_check/log/regress_log_$name" \
			"$dir/tap/tmp_check/log/${name}"_*.log; do
			if [ -f "$result" ]; then
				echo
				echo "-- end of ${result##*/}:"
				tail -n 60 "$result"
			fi
		done
	done
}

# The figures mean nothing here: that it runs to its end is one test.
bench()
{
	local status=0

	echo
	echo "== bench"
	DIR=$dir TESTING=1 COPT="${COPT--Werror}" \
		timeout --foreground -k 30 "${BENCH_TIMEOUT:-600}" \
		"$top/test/bench/run" --short >"$dir/bench.txt" 2>&1 || status=$?
	stop_all_servers
	if [ "$status" = 0 ]; then
		passed=$((passed + 1))
		echo "ok, $(tail -n 1 "$dir/bench.txt")"
	else
		fail "bench (status $status)"
		tail -n 60 "$dir/bench.txt"
		if [ -f "$dir/bench.log" ]; then
			echo
			echo "-- end of the server's log:"
			tail -n 40 "$dir/bench.log"
		fi
	fi
	rm -rf "$dir/bench"
}

case ${SUITE:-} in
	'' | regress | isolation | tap | bench) ;;
	*) die "SUITE is regress, isolation, tap or bench" ;;
esac

"$top/test/setup.sh" test
finish_at_exit
if [ -n "$given_dir" ]; then
	make_dir "$given_dir"
else
	make_dir
fi
begin=$(now_ms)
if ! build TESTING=1 COPT="${COPT--Werror}"; then
	fail build
	conclude || exit 1
fi
"$bindir/postgres" --version
pgxs=$("$pg_config" --pgxs)
pgxs=${pgxs%/makefiles/pgxs.mk}

cd "$dir/source"
mapfile -t regress_tests < <(choose sql/*.sql)
mapfile -t isolation_tests < <(choose test/specs/*.spec)
mapfile -t tap_tests < <(choose test/t/*.pl)

if [ "${DISCARD_CACHES:-}" = 1 ] && wanted regress; then
	# comes first, and holds for all that follow
	discard='ALTER SYSTEM SET debug_discard_caches = 1;
SELECT pg_reload_conf();'
	as_user tee sql/discard_caches.sql <<<"$discard" >/dev/null
	as_user tee expected/discard_caches.out <<-END >/dev/null
		$discard
		 pg_reload_conf 
		----------------
		 t
		(1 row)

	END
	regress_tests=(discard_caches "${regress_tests[@]}")
fi
if wanted regress; then
	regress_like regress "$pgxs/test/regress/pg_regress" . \
		"${regress_tests[@]}"
fi
if wanted isolation; then
	regress_like isolation "$pgxs/test/isolation/pg_isolation_regress" test \
		"${isolation_tests[@]}"
fi
if wanted tap; then
	tap "$pgxs" "${tap_tests[@]/%/.pl}"
fi
# it has no parts that TESTS could name
if [ "${SUITE:-}" = bench ] || { wanted bench && [ -z "${TESTS:-}" ]; }; then
	bench
fi

echo
echo "$(seconds $(($(now_ms) - begin))) s"
conclude
