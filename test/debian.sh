# shellcheck shell=bash
#
# Other versions of PostgreSQL, from Debian: where they come from, where they are
# kept, and how a folder with one is entered. Sourced by assert.sh, versions.sh and
# upgrade.sh, after private.sh.

# shellcheck disable=SC2034 # it is for them
cache=${JQ_VERSIONS:-/var/cache/jobqueue-versions}

# releases VERSION: those of Debian that have it, or may have
releases()
{
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		*) echo forky sid ;;
	esac
}

# of Debian itself, whatever else there may be
apt_mirror()
{
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' \
		'Origin: Debian' 'Label: Debian' 2>/dev/null | sort -u | head -n 1
}

# test_result FILE: how the run of run.sh ended that wrote it, or nothing
test_result()
{
	grep -E '^[0-9]+ passed, [0-9]+ failed$' "$1" | tail -n 1 || true
}

child=	# the first process of the folder that is entered

# in_folder FOLDER command ...: as the first process of namespaces of its own
in_folder()
{
	local result=0

	# shellcheck disable=SC2016
	unshare -mpf --kill-child bash -c '
		mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/dev/shm" &&
			exec chroot "$@"' bash "$1" \
		env -u PG_CONFIG -u PG_PREFIX -u TMPDIR -u JQ_USER -u NODE_PATH \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		HOME=/root "${@:2}" </dev/null &
	child=$!
	wait "$child" || result=$?
	child=
	return "$result"
}

# its first process dies with this one, and all others with that
leave_folder()
{
	[ -z "$child" ] || kill -KILL "$child" 2>/dev/null || true
}
