#!/usr/bin/env bash
#
# coverage.sh: which lines of src the tests run, for each file.
#
# Environment: DIR (work here and keep it), SUITE and TESTS (default: regress,
# isolation and tap, all of it), JOBS, MIN (percent that all files together must
# reach, default 90 if all tests run), REPORT=1 (no tests: only count what is in DIR).
#
# The library is built with gcc's counters in a copy of the sources. A process
# writes its counters when it leaves by exit(); what one did that was killed, or
# told to quit at once, is not counted (so the servers of TAP files are stopped
# normally at their end). Each line that no test ran is shown,
# unless test/coverage.txt has a reason for it, and one without fails; with TESTS,
# only how many. Races and the like run in one run and not in the next: so an entry
# that explains nothing is only named.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

min=${MIN:-$([ -n "${TESTS:-}" ] && echo 0 || echo 90)}
keep=${DIR:-}
status=0

clean_environment
make_dir ${DIR:+"$DIR"}
trap '[ -n "$keep" ] || rm -rf "$dir"' EXIT
command -v gcov >/dev/null || die "missing: gcov (Debian: apt-get install gcc)"

if [ "${REPORT:-}" != 1 ]; then
	rm -f "$dir"/source/src/*.gcda
	for suite in ${SUITE:-regress isolation tap}; do
		DIR=$dir SUITE=$suite TESTS="${TESTS:-}" JOBS="${JOBS:-2}" \
			SUITE_TIMEOUT="${SUITE_TIMEOUT:-3600}" TAP_TIMEOUT="${TAP_TIMEOUT:-1800}" \
			COPT='--coverage -O0 -fprofile-update=atomic' JQ_STOP_NORMALLY=1 \
			"$top/test/run.sh" || status=$?
	done
fi

# gcov says "Lines executed:93.10% of 58" below each "File 'src/batch.c'", and
# writes batch.c.gcov, where ##### marks what was not run.
cd "$dir/source"
find . -name '*.gcda' | grep -q . || die "no counters in $dir/source/src"
gcov -o src src/*.c >"$dir/gcov.txt" 2>/dev/null || die "gcov failed"
echo
awk -v min="$min" '
	/^File / { file = $2; gsub(/\047/, "", file) }
	/^Lines executed/ && file ~ /^src\/.*\.[ch]$/ {
		split($0, part, /[:% ]+/)
		n[file] = part[5]; run[file] = part[3] * part[5] / 100; file = ""
	}
	END {
		for (f in n)
		{
			printf "%6.1f %% of %4d  %s\n", 100 * run[f] / n[f], n[f], f | "sort -n"
			all += n[f]; some += run[f]
		}
		close("sort -n")
		printf "%6.1f %% of %d lines\n", 100 * some / all, all
		exit 100 * some / all < min
	}' "$dir/gcov.txt" || status=1
perl "$top/test/uncovered.pl" "$top/test/coverage.txt" ./*.c.gcov >"$dir/uncovered.txt" \
	2>"$dir/explained.txt" || status=1
echo
if [ -n "${TESTS:-}" ]; then
	head -n 1 "$dir/explained.txt"
else
	cat "$dir/uncovered.txt" "$dir/explained.txt"
	[ ! -s "$dir/uncovered.txt" ] || status=1
fi
exit $status
