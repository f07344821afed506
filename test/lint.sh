#!/usr/bin/env bash
#
# lint.sh: what compilers and static analyzers say of src beyond the build.
# Nothing is to be said: the exit status is 0 only then.
#
#   ONLY="warnings analyzer cppcheck tidy versions scripts"   which of them;
#   default all. FILES="src/lane.c ..." only these of the C files.
#
# What is switched off is so for a reason, which stands beside it: here, in
# .clang-tidy and in test/cppcheck.txt.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

only=${ONLY:-warnings analyzer cppcheck tidy versions scripts}
status=0

clean_environment
"$here/setup.sh" lint
pg=$(find_base_pg_config)
include=$("$pg" --includedir-server)
cd "$top"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

files=(src/*.c)
[ -z "${FILES:-}" ] || read -ra files <<<"$FILES"

# run NAME COMMAND: for each file, two at once; says what it says
run()
{
	local name=$1 out=$work/$1 n failed=
	shift

	printf '%s\0' "${files[@]}" |
		xargs -0 -P "$(nproc)" -n 1 "$@" >"$out" 2>&1 || failed=", it failed"
	n=$(grep -cE ': (fatal |internal compiler )?(warning|error|style|performance|portability)' "$out") || true
	echo "$name: $n findings$failed"
	if [ "$n" != 0 ] || [ -n "$failed" ]; then
		cat "$out"
		status=1
	fi
}

wanted()
{
	case " $only " in *" $1 "*) ;; *) return 1 ;; esac
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
if wanted warnings; then
	run warnings gcc "${common[@]}" "${warnings[@]}" -Wduplicated-cond -Wlogical-op
	run clang clang "${common[@]}" "${warnings[@]}" -Wno-unknown-warning-option \
		-Wno-ignored-attributes -Wno-compound-token-split-by-macro
fi
# Headers of other versions, where versions.sh has made folders for them. They know
# a C library that may have more than ours (strlcpy).
if wanted versions; then
	for other in "${JQ_VERSIONS:-/var/cache/jobqueue-versions}"/*/usr/include/postgresql/*/server; do
		[ ! -f "$other/postgres.h" ] || run "PostgreSQL-$(basename "${other%/server}")" \
			gcc "${common[@]/"$include"/"$other"}" "${warnings[@]}" -Werror -Wno-implicit-function-declaration
	done
fi
defines=(-D_GNU_SOURCE -DJQ_TESTING -DUSE_ASSERT_CHECKING)
if wanted analyzer; then
	run analyzer gcc -O1 -fanalyzer -S -o /dev/null "${defines[@]}" \
		-isystem "$include" -Isrc
fi
if wanted cppcheck; then
	run cppcheck cppcheck --quiet --enable=warning,performance,portability \
		--inline-suppr --suppressions-list=test/cppcheck.txt --std=c11 \
		"${defines[@]}" -Isrc
fi
# clang-tidy runs the checks of clang's static analyzer (scan-build), too
if wanted tidy; then
	printf '%s\n' "${defines[@]}" -isystem "$include" "-I$PWD/src" \
		-Wno-ignored-attributes -Wno-compound-token-split-by-macro >"$work/compile_flags.txt"
	run tidy clang-tidy --quiet -p "$work"
fi

# check NAME COMMAND: once
check()
{
	local name=$1
	shift

	if "$@" >"$work/out" 2>&1; then
		echo "$name: nothing"
	else
		echo "$name:"
		cat "$work/out"
		status=1
	fi
}

# our Perl modules and tests; called by check
# shellcheck disable=SC2317
perl_files()
{
	local pgxs f bad=0

	pgxs=$("$pg" --pgxs)
	for f in test/t/*.pm test/t/*.pl test/run-tap.pl test/bench/*.pl; do
		perl -w -I"${pgxs%/makefiles/pgxs.mk}/test/perl" -Itest/t -c "$f" >"$work/perl" 2>&1 || true
		if [ "$(cat "$work/perl")" != "$f syntax OK" ]; then
			cat "$work/perl"
			bad=1
		fi
	done
	return "$bad"
}

if wanted scripts; then
	mapfile -t scripts < <(grep -rlE '^#!/(usr/)?bin/(env )?(ba)?sh' --include='*.sh' \
		--include=run --include=structures test .ci)
	check shellcheck shellcheck -x -P SCRIPTDIR "${scripts[@]}" test/private.sh test/debian.sh
	check perl perl_files
fi
exit $status
