#!/usr/bin/env bash
#
# versions.sh [15 17 18]: all tests (run.sh) with each of these major versions
# of PostgreSQL; default: all three.
#
# A version that this system has, or its distribution offers, is tested right
# here. Any other one gets a folder with a small Debian of the release that has
# it: made once, by debootstrap, which takes some minutes and 2 GB, and entered
# with chroot, in mount and process namespaces of its own. That takes root, and
# the right to mount.
#
# Environment:
#   JQ_VERSIONS  where the folders are kept, default /var/cache/jobqueue-versions;
#                remove JQ_VERSIONS/N to have the newest minor release of N
#   MIRROR       a mirror of Debian; default: the one that apt is set up with
#   SUITE, TESTS, JOBS, COPT as for run.sh
#
# Without SUITE and TESTS, pg_upgrade from each version to the next is tried, too:
# upgrade.sh.
#
# The last lines are "PostgreSQL N: N passed, N failed" or "PostgreSQL N: not
# tested: why". Exit status: 0 when all was tested and passed, 1 when a test
# failed, 2 when none failed, but a version could not be tested.

set -euo pipefail

here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"
# shellcheck source=test/debian.sh
. "$here/debian.sh"

packages=make,gcc,libc6-dev,libipc-run-perl
versions=("$@")
[ $# -gt 0 ] || versions=(15 17 18)
output=$(mktemp)
summary=()
status=0

# shellcheck disable=SC2317
finish()
{
	leave_folder
	rm -f "$output"
}

finish_at_exit

is_here()
{
	[ -x "/usr/lib/postgresql/$1/bin/postgres" ] || {
		[ "$(id -u)" = 0 ] && command -v apt-cache >/dev/null &&
			apt-cache show "postgresql-server-dev-$1" >/dev/null 2>&1
	}
}

# Prints what is missing to make or enter a folder, or nothing.
obstacle()
{
	if [ "$(id -u)" != 0 ]; then
		echo "it is not installed, and only root can make and enter a folder with it"
	elif ! command -v unshare >/dev/null || ! command -v chroot >/dev/null; then
		echo "unshare and chroot are missing"
	elif ! unshare -mpf --kill-child mount -t tmpfs tmpfs /mnt 2>/dev/null; then
		echo "there is no right to mount (CAP_SYS_ADMIN) here"
	fi
}

# make_folder VERSION: $cache/VERSION; else prints why not
make_folder()
{
	local version=$1 folder=$cache/$1 log=$cache/$1.log mirror release
	local script=/usr/share/debootstrap/scripts

	if ! command -v debootstrap >/dev/null; then
		{ apt-get install -y -q --no-install-recommends debootstrap ||
			{ apt-get update -q && apt-get install -y -q \
				--no-install-recommends debootstrap; }; } >"$log" 2>&1 || true
	fi
	if ! command -v debootstrap >/dev/null; then
		echo "debootstrap is missing (Debian: apt-get install debootstrap)"
		return 1
	fi
	mirror=${MIRROR:-$(apt_mirror)}
	if [ -z "$mirror" ]; then
		echo "apt knows no mirror of Debian (name one: MIRROR=...)"
		return 1
	fi
	for release in $(releases "$version"); do
		echo "PostgreSQL $version: making $folder (Debian $release)" >&2
		rm -rf "$folder.new"
		# the release may be younger than debootstrap
		if debootstrap --variant=minbase \
			--include="postgresql-$version,postgresql-server-dev-$version,$packages" \
			"$release" "$folder.new" "$mirror" \
			"$([ -e "$script/$release" ] || echo "$script/sid")" \
			>"$log" 2>&1; then
			rm -f "$folder.new"/var/cache/apt/archives/*.deb
			mv "$folder.new" "$folder"
			return 0
		fi
		echo "-- end of $log:" >&2
		tail -n 5 "$log" >&2
	done
	rm -rf "$folder.new"
	echo "debootstrap failed, see $log"
	return 1
}

# conclude VERSION OUTPUT STATUS: the line that run.sh ended with
conclude()
{
	local line

	line=$(test_result "$2")
	if [ -z "$line" ]; then
		not_tested "$1" "the tests did not run to their end"
		return
	fi
	summary+=("PostgreSQL $1: $line")
	[ "$3" = 0 ] || status=1
}

not_tested()
{
	echo "PostgreSQL $1: not tested: $2" >&2
	summary+=("PostgreSQL $1: not tested: $2")
	[ "$status" != 0 ] || status=2
}

# run_in_folder VERSION: run.sh on a copy of this tree
run_in_folder()
{
	local folder=$cache/$1

	dir=$folder/jobqueue run_user=
	mkdir -p "$dir"
	sync_source
	in_folder "$folder" env PGVERSION="$1" DIR=/jobqueue/work \
		/jobqueue/source/test/run.sh
}

for version in "${versions[@]}"; do
	[[ $version =~ ^[0-9]+$ ]] || die "usage: versions.sh [15 17 18]"
done
clean_environment
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
	[ -z "$(apt_mirror)" ]; then
	apt-get update -q >/dev/null 2>&1 || true # there are no lists yet
fi

for version in "${versions[@]}"; do
	echo
	echo "=== PostgreSQL $version"
	ran=0
	if is_here "$version"; then
		env -u PG_CONFIG -u PG_PREFIX PGVERSION="$version" "$here/run.sh" \
			2>&1 | tee "$output" || ran=$?
	else
		why=$(obstacle)
		if [ -z "$why" ]; then
			mkdir -p "$cache"
			exec 9>"$cache/$version.lock"
			flock 9
			[ -d "$cache/$version" ] || why=$(make_folder "$version") || true
		fi
		if [ -n "$why" ]; then
			not_tested "$version" "$why"
			continue
		fi
		exec 8> >(exec tee "$output")
		tee=$!
		run_in_folder "$version" >&8 2>&1 || ran=$?
		exec 8>&- 9>&-
		wait "$tee" || true
	fi
	conclude "$version" "$output" "$ran"
done

# from each to the next, with jobs in them
if [ ${#versions[@]} -gt 1 ] && [ -z "${SUITE:-}${TESTS:-}" ]; then
	echo
	echo "=== pg_upgrade ${versions[*]}"
	ran=0
	"$here/upgrade.sh" "${versions[@]}" 2>&1 | tee "$output" || ran=$?
	summary+=("pg_upgrade ${versions[*]}: $(tail -n 1 "$output")")
	[ "$ran" != 1 ] || status=1
	[ "$ran" != 2 ] || [ "$status" != 0 ] || status=2
fi

echo
printf '%s\n' "${summary[@]}"
exit "$status"
