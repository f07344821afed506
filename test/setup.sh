#!/usr/bin/env bash
#
# setup.sh build|test|consumers|model|lint|fuzz: sees to it that what is needed to
# build (and test) is there. As root on a Debian-like system it installs what is missing, by
# name; else it says what is missing and fails. Without "consumers" (drivers of
# other languages, and a pooler) the tests run all the same, but for some.

set -euo pipefail

what=${1:-build}
here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

packages=()
missing=()

need()	# description, package
{
	missing+=("$1")
	[ -z "${2:-}" ] || packages+=("$2")
}

# The major version that the distribution offers, or that is installed.
distribution_version()
{
	local v

	v=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -rV |
		sed -n 's|^/usr/lib/postgresql/\([0-9]*\)/.*|\1|p' | head -n 1)
	if [ -z "$v" ] && command -v apt-cache >/dev/null; then
		v=$(apt-cache depends postgresql 2>/dev/null |
			sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1)
	fi
	echo "$v"
}

# for the consumers of test/examples; the rest of Node.js is up to run.sh
look_consumers()
{
	/usr/bin/python3 -c 'import psycopg' 2>/dev/null ||
		need "psycopg 3 of /usr/bin/python3" python3-psycopg
	if ! command -v node >/dev/null; then
		need Node.js nodejs
		packages+=(node-pg)
	fi
	[ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null ||
		need PgBouncer pgbouncer
}

# Debian keeps libFuzzer and the sanitizers apart from clang.
clang_runtime()
{
	apt-cache depends clang 2>/dev/null |
		sed -n 's/.*Depends: clang-\([0-9][0-9]*\)$/libclang-rt-\1-dev/p' | head -n 1
}

look()
{
	local pg

	packages=()
	missing=()
	if [ "$what" = consumers ]; then
		look_consumers
		[ ${#missing[@]} -eq 0 ]
		return
	fi
	if [ "$what" = model ]; then
		command -v gcc >/dev/null || need gcc gcc
		command -v spin >/dev/null || need "the model checker spin" spin
		[ ${#missing[@]} -eq 0 ]
		return
	fi
	if [ "$what" = lint ]; then
		command -v gcc >/dev/null || need gcc gcc
		command -v clang-tidy >/dev/null || need clang-tidy clang-tidy
		command -v cppcheck >/dev/null || need cppcheck cppcheck
		command -v clang >/dev/null || need clang clang
		command -v shellcheck >/dev/null || need shellcheck shellcheck
	fi
	if [ "$what" = fuzz ] && ! { command -v clang >/dev/null &&
		echo 'int LLVMFuzzerTestOneInput(void *p, long n) { return p == 0 && n == 1; }' |
		clang -fsanitize=fuzzer,address -x c -o /dev/null - 2>/dev/null; }; then
		need "clang with libFuzzer and the sanitizers" clang
		[ -z "$(clang_runtime)" ] || packages+=("$(clang_runtime)")
	fi
	command -v make >/dev/null || need make make
	command -v gcc >/dev/null || command -v cc >/dev/null ||
		need "a C compiler" gcc
	{ [ "$what" != test ] && [ "$what" != lint ]; } || perl -MIPC::Run -MTAP::Harness -e1 2>/dev/null ||
		need "the Perl modules IPC::Run and TAP::Harness" libipc-run-perl

	if [ -n "${PG_CONFIG:-}${PG_PREFIX:-}" ]; then
		pg=$(find_base_pg_config) || true
		[ -x "$pg" ] || die "no pg_config at ${PG_CONFIG:-$PG_PREFIX/bin}"
		has_headers "$pg" ||
			need "PGXS ($("$pg" --pgxs)) or headers ($("$pg" --includedir-server))"
		[ -x "$("$pg" --bindir)/initdb" ] || need "$("$pg" --bindir)/initdb"
	else
		local v=${PGVERSION:-$(distribution_version)}
		local base=/usr/lib/postgresql/$v

		if ! pg=$(find_base_pg_config) || [ ! -x "$pg" ] ||
			! has_headers "$pg" ||
			[ ! -x "$("$pg" --bindir)/initdb" ]; then
			[ -x "$base/bin/initdb" ] || need "a PostgreSQL server" \
				"postgresql-${v:-}"
			{ [ -x "$base/bin/pg_config" ] && has_headers "$base/bin/pg_config"; } ||
				need "the PostgreSQL server headers" \
					"postgresql-server-dev-${v:-}"
		fi
	fi
	[ ${#missing[@]} -eq 0 ]
}

report()
{
	printf 'missing: %s\n' "${missing[@]}" >&2
	if [ ${#packages[@]} -gt 0 ]; then
		echo "Debian: apt-get install ${packages[*]}" >&2
	fi
	exit 1
}

clean_environment
if look; then
	exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
	[ ${#packages[@]} -eq 0 ]; then
	report
fi

export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -q --no-install-recommends)
case " ${packages[*]} " in
	*'- '*)
		# not even the version is known before there are lists
		apt-get update -q >/dev/null || report
		look || true
		;;
esac
echo "installing ${packages[*]}"
log=$(mktemp)
if ! "${install[@]}" "${packages[@]}" >"$log" 2>&1; then
	if ! { apt-get update -q && "${install[@]}" "${packages[@]}"; } \
		>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		rm -f "$log"
		report
	fi
fi
rm -f "$log"
look || report
