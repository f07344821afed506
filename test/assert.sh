#!/usr/bin/env bash
#
# assert.sh [15 17 18]: all tests (run.sh) with each of these major versions of
# PostgreSQL, built here with assertions, and from 17 on with its injection
# points; default: 15. The source is Debian's, got by apt-get source through
# lists of its own: nothing of the system's changes. Where it was built once it
# stays.
#
# Environment:
#   SANITIZE=address  a server, and the library, with gcc's AddressSanitizer, the
#                 library with UndefinedBehaviorSanitizer, too. The first is told
#                 what PostgreSQL allocates, so that it also sees the use of what
#                 pfree() or the end of a memory context took back, and of pages
#                 that are not pinned. Takes three times as long
#   JQ_VERSIONS   where the builds are kept, default /var/cache/jobqueue-versions:
#                 remove N-assert and N-address there to build the newest anew
#   MIRROR        a mirror of Debian; default: the one that apt is set up with
#   BUILD_ONLY=1  build, say where, and run nothing
#   SUITE, TESTS, JOBS, DISCARD_CACHES, DIR as for run.sh
#
# The last lines are "PostgreSQL N: N passed, N failed" or "PostgreSQL N: not
# tested: why". Exit status: 0 when all was tested and passed, else 1.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"
# shellcheck source=test/debian.sh
. "$here/debian.sh"

versions=("$@")
[ $# -gt 0 ] || versions=(15)
output=$(mktemp)
work=
summary=()
status=0

# shellcheck disable=SC2317
finish()
{
	rm -f "$output"
	[ -z "$work" ] || rm -rf "$work"
}

finish_at_exit

# What is needed to build a server, installed by root where it is missing.
packages()
{
	local package missing=()

	for package in dpkg-dev bison flex make gcc perl zlib1g-dev \
		libipc-run-perl; do
		dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		echo "missing: ${missing[*]}"
		return 1
	fi
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
		"${missing[@]}" >&2 || {
		echo "could not install ${missing[*]}"
		return 1
	}
}

# get_source VERSION: below $work; else prints why not
get_source()
{
	local version=$1 mirror release keyring
	local apt=$work/apt
	local -a options

	command -v apt-get >/dev/null || {
		echo "only known for Debian and its like: there is no apt-get"
		return 1
	}
	packages || return 1
	mirror=${MIRROR:-$(apt_mirror)}
	[ -n "$mirror" ] || {
		echo "apt knows no mirror of Debian (name one: MIRROR=...)"
		return 1
	}
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	options=(-q -o Dir::Etc::SourceList="$apt/sources.list"
		-o Dir::Etc::SourceParts=- -o Dir::State::Lists="$apt/lists"
		-o Dir::Cache="$apt" -o APT::Sandbox::User=root)
	for release in $(releases "$version"); do
		rm -rf "$apt"
		mkdir -p "$apt/lists/partial" "$apt/archives/partial"
		echo "deb-src [signed-by=$keyring] $mirror $release main" \
			>"$apt/sources.list"
		if apt-get "${options[@]}" update >&2 &&
			(cd "$work" && apt-get "${options[@]}" source \
				"postgresql-$version") >&2; then
			return 0
		fi
	done
	echo "apt-get source postgresql-$version failed"
	return 1
}

# build_server VERSION PREFIX: else prints why not
build_server()
{
	local version=$1 prefix=$2 log=$2.log source
	local flags='-O1 -g -fno-omit-frame-pointer'
	# Debian's source has its modules below /usr/lib, where a server that was put
	# elsewhere does not find them, unless their directory has such a name.
	local -a options=(--libdir="$prefix/lib/postgresql"
		--enable-cassert --enable-debug --enable-tap-tests
		--without-icu --without-readline)

	work=$(mktemp -d)
	mkdir -p "$cache" 2>/dev/null || true
	[ -w "$cache" ] || {
		echo "no right to write to $cache (JQ_VERSIONS)"
		return 1
	}
	get_source "$version" 2>"$log" || return 1
	source=$(dirname "$work/postgresql-$version"-*/configure)
	[ "$version" -lt 17 ] || options+=(--enable-injection-points)
	if [ "${SANITIZE:-}" = address ]; then
		flags+=' -fsanitize=address -fno-optimize-sibling-calls'
		# what the server is built with, the library is, too
		mkdir -p "$prefix/include" "$prefix.new$prefix/include"
		cp -r "$top/test/memcheck" "$prefix/include"
		cp -r "$top/test/memcheck" "$prefix.new$prefix/include"
		options+=(CPPFLAGS="-DUSE_VALGRIND -I$prefix/include/memcheck")
	fi
	echo "PostgreSQL $version: building $prefix, see $log" >&2
	if ! (cd "$source" &&
		./configure --prefix="$prefix" "${options[@]}" CFLAGS="$flags" &&
		make -j"${MAKE_JOBS:-$(nproc)}" -s &&
		make -s install DESTDIR="$prefix.new") >>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		rm -rf "$prefix.new" "$prefix"
		echo "PostgreSQL's build failed, see $log"
		return 1
	fi
	rm -rf "$prefix"
	mv "$prefix.new$prefix" "$prefix"
	rm -rf "$prefix.new" "$work"
	work=
}

not_tested()
{
	echo "PostgreSQL $1: not tested: $2" >&2
	summary+=("PostgreSQL $1: not tested: $2")
	status=1
}

for version in "${versions[@]}"; do
	[[ $version =~ ^[0-9]+$ ]] || die "usage: assert.sh [15 17 18]"
done
clean_environment
kind=assert
case ${SANITIZE:-} in
	'') ;;
	address)
		kind=address
		# Processes free nothing when they end; the depth of the stack is
		# measured on the stack; a test's kill -SEGV is no finding.
		asan=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=1
		asan+=:handle_segv=0:handle_sigbus=0:handle_sigfpe=0
		export ASAN_OPTIONS=$asan${ASAN_OPTIONS:+:$ASAN_OPTIONS}
		export UBSAN_OPTIONS=print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}
		export COPT=${COPT--fsanitize=undefined}
		export SUITE_TIMEOUT=${SUITE_TIMEOUT:-3600} TAP_TIMEOUT=${TAP_TIMEOUT:-3600}
		;;
	*) die "SANITIZE is address, or nothing" ;;
esac

for version in "${versions[@]}"; do
	prefix=$cache/$version-$kind
	echo
	echo "=== PostgreSQL $version, $kind"
	mkdir -p "$cache" 2>/dev/null || true
	if ! exec 9>"$prefix.lock"; then
		not_tested "$version" "no right to write to $cache (JQ_VERSIONS)"
		continue
	fi
	flock 9
	# nothing that a build may leave running keeps the lock, or reads from a terminal
	if [ ! -x "$prefix/bin/postgres" ] &&
		! build_server "$version" "$prefix" >"$output" </dev/null 9>&-; then
		not_tested "$version" "$(cat "$output")"
		continue
	fi
	exec 9>&-
	if [ "${BUILD_ONLY:-}" = 1 ]; then
		summary+=("PostgreSQL $version: $prefix")
		continue
	fi
	ran=0
	env -u PG_CONFIG -u PGVERSION PG_PREFIX="$prefix" \
		"$here/run.sh" 2>&1 | tee "$output" || ran=$?
	line=$(test_result "$output")
	if [ -z "$line" ]; then
		not_tested "$version" "the tests did not run to their end"
		continue
	fi
	summary+=("PostgreSQL $version: $line")
	[ "$ran" = 0 ] || status=1
done

echo
printf '%s\n' "${summary[@]}"
exit "$status"
