#!/usr/bin/env bash
#
# run.sh: each target of this directory for a while, under the sanitizers for
# addresses and undefined behaviour. The exit status is 0 when none found a fault;
# an input that did is left in the directory that is named then.
#
#   SECONDS_EACH=60     how long
#   TARGETS="cron"      which; default all
#   WORK=directory      what was found worthwhile before is read from there, and
#                       kept; default: a temporary directory

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=test/private.sh
. "$here/../private.sh"

seconds=${SECONDS_EACH:-60}
targets=${TARGETS:-cron}
status=0

clean_environment
"$here/../setup.sh" fuzz
pg=$(find_base_pg_config)
include=$("$pg" --includedir-server)
lib=$("$pg" --pkglibdir)
[ -f "$lib/libpgport.a" ] || lib=$("$pg" --libdir)
if [ -n "${WORK:-}" ]; then
	mkdir -p "$WORK"
	work=$(cd "$WORK" && pwd)
else
	work=$(mktemp -d)
fi
flags=(-g -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare
	-Wno-ignored-attributes -isystem "$include" "-I$top/src")

for target in $targets; do
	# what is compared with need not be watched, and is faster so
	clang "${flags[@]}" -O2 -c -o "$work/$target.o" "$here/$target.c"
	clang "${flags[@]}" -O1 -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=undefined -o "$work/$target" "$work/$target.o" \
		"$top/src/$target.c" "$lib/libpgcommon.a" "$lib/libpgport.a" -lm
	mkdir -p "$work/$target.corpus" "$work/$target.found"
	echo "== $target, $seconds s"
	if "$work/$target" -max_total_time="$seconds" -max_len=160 -timeout=10 \
		-dict="$here/$target.dict" -print_final_stats=1 -verbosity=1 \
		-artifact_prefix="$work/$target.found/" \
		"$work/$target.corpus" "$here/corpus/$target" >"$work/$target.log" 2>&1; then
		grep -a 'DONE' "$work/$target.log" | tail -n 1
		grep -aE 'executed_units|per_sec' "$work/$target.log"
	else
		grep -aE '^fault|ERROR|SUMMARY|runtime error' "$work/$target.log" ||
			tail -n 20 "$work/$target.log"
		echo "$target: a fault; the input is in $work/$target.found"
		status=1
	fi
done
if [ -z "${WORK:-}" ] && [ $status = 0 ]; then
	rm -rf "$work"
fi
exit $status
