#!/usr/bin/env bash
#
# lint.sh: what compilers and static analyzers say of src beyond the build.
# Nothing is to be said: the exit status is 0 only then.
#
#   ONLY="warnings analyzer cppcheck tidy"   which of them; default all
#
# What is switched off is so for a reason, which stands beside it: here, in
# .clang-tidy and in test/cppcheck.txt.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

only=${ONLY:-warnings analyzer cppcheck tidy}
status=0

clean_environment
"$here/setup.sh" lint
pg=$(find_base_pg_config)
include=$("$pg" --includedir-server)
cd "$top"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# run NAME COMMAND: for each file, two at once; says what it says
run()
{
	local name=$1 out=$work/$1 n
	shift

	case " $only " in *" $name "*) ;; *) return 0 ;; esac
	printf '%s\0' src/*.c | xargs -0 -P 2 -n 1 "$@" >"$out" 2>&1 || true
	n=$(grep -cE ': (warning|error|style|performance|portability)' "$out") || true
	echo "$name: $n findings"
	if [ "$n" != 0 ]; then
		cat "$out"
		status=1
	fi
}

# The server's headers are the system's here, so nothing is said of them; what
# their macros do to our code is, as far as it is not left out below.
common=(-fsyntax-only -D_GNU_SOURCE -DJQ_TESTING -DUSE_ASSERT_CHECKING
	-isystem "$include" -Isrc)
# -Wno-unused-parameter, -sign-compare, -missing-field-initializers: the style
# of the server. Not asked for: -Wconversion (each Datum), -Wcast-qual (varlena
# and list macros), -Wformat-nonliteral (one format that is a parameter).
warnings=(-Wall -Wextra -Wshadow -Wstrict-prototypes -Wold-style-definition
	-Wmissing-prototypes -Wformat=2 -Wno-format-nonliteral -Wundef
	-Wpointer-arith -Wvla -Wno-unused-parameter -Wno-sign-compare
	-Wno-missing-field-initializers)
run warnings gcc "${common[@]}" "${warnings[@]}" -Wduplicated-cond -Wlogical-op
if command -v clang >/dev/null; then
	only=${only/warnings/warnings clang}
	run clang clang "${common[@]}" "${warnings[@]}" -Wno-unknown-warning-option \
		-Wno-ignored-attributes -Wno-compound-token-split-by-macro
fi
run analyzer gcc -O1 -fanalyzer -S -o /dev/null -D_GNU_SOURCE -DJQ_TESTING -DUSE_ASSERT_CHECKING \
	-isystem "$include" -Isrc
# clang-tidy runs the checks of clang's static analyzer (scan-build), too
printf '%s\n' -D_GNU_SOURCE -DJQ_TESTING -DUSE_ASSERT_CHECKING -isystem "$include" "-I$PWD/src" \
	-Wno-ignored-attributes >"$work/compile_flags.txt"
run tidy clang-tidy --quiet -p "$work"
run cppcheck cppcheck --quiet --enable=warning,performance,portability \
	--inline-suppr --suppressions-list=test/cppcheck.txt --std=c11 \
	-D_GNU_SOURCE -DJQ_TESTING -DUSE_ASSERT_CHECKING -Isrc
exit $status
