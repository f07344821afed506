# shellcheck shell=bash
#
# A private PostgreSQL installation with jobqueue in it, for tests and demo.
# Sourced, not run. Nothing outside one directory ($dir) is written to: neither
# the system's PostgreSQL nor the source tree.
#
#   $dir/root     relocated copy of the server. PostgreSQL finds its files
#                 relative to its binaries, so the absolute layout is repeated
#                 below root: real directories where we install, links else.
#   $dir/source   copy of this source tree, built there
#   $dir/log      what the build said
#
# As root, everything that builds or serves runs as an unprivileged user
# (JQ_USER; default: postgres, else nobody), because the server refuses root.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=
run_user=
unreadable=		# the directory that we are in, where it is so for that user
base_pg_config=	# of the installation that is copied
pg_config=		# of the copy
bindir=

die()
{
	echo "$*" >&2
	exit 1
}

# finish() of the script that calls this is called when it ends, however it does.
finish_at_exit()
{
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# The caller's connection settings must not leak into private servers, nor
# the flags of the make that started us into the one we start.
clean_environment()
{
	local name

	for name in "${!PG@}"; do
		case $name in
			PG_CONFIG | PG_PREFIX | PGVERSION) ;;
			*) unset "$name" ;;
		esac
	done
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES
	export LC_ALL=C.UTF-8
	umask 022
}

# has_headers pg_config: are the files to build extensions there? Debian has PGXS
# in the client's package, and the headers of the server in one of their own.
has_headers()
{
	[ -f "$("$1" --pgxs)" ] && [ -f "$("$1" --includedir-server)/postgres.h" ]
}

# Which server: PG_CONFIG, PG_PREFIX, PGVERSION, or the newest that has the
# files to build extensions.
find_base_pg_config()
{
	local candidate

	if [ -n "${PG_CONFIG:-}" ]; then
		command -v "$PG_CONFIG"
	elif [ -n "${PG_PREFIX:-}" ]; then
		echo "$PG_PREFIX/bin/pg_config"
	elif [ -n "${PGVERSION:-}" ]; then
		echo "/usr/lib/postgresql/$PGVERSION/bin/pg_config"
	else
		while read -r candidate; do
			if [ -x "$candidate" ] && has_headers "$candidate"; then
				echo "$candidate"
				return
			fi
		done < <(printf '%s\n' /usr/lib/postgresql/*/bin/pg_config | sort -rV
			command -v pg_config || true)
		return 1
	fi
}

choose_user()
{
	[ "$(id -u)" = 0 ] || return 0
	run_user=${JQ_USER:-}
	if [ -z "$run_user" ]; then
		if id postgres >/dev/null 2>&1; then
			run_user=postgres
		else
			run_user=nobody
		fi
	fi
	id "$run_user" >/dev/null || die "user $run_user does not exist"
}

# as_user command ...: with no rights of root, and temporary files in $dir
# (unless its name is too long for the path of a socket).
as_user()
{
	local tmp=$dir/tmp
	local -a drop=()

	[ ${#tmp} -le 50 ] || tmp=/tmp
	if [ -n "$run_user" ]; then
		if command -v setpriv >/dev/null; then
			drop=(setpriv --reuid="$run_user" --regid="$(id -g "$run_user")"
				--init-groups --inh-caps=-all)
		else
			drop=(runuser -u "$run_user" --)
		fi
		(
			# PostgreSQL's programs go back to where they were started
			[ "$PWD" != "$unreadable" ] || cd "$dir" || exit
			exec "${drop[@]}" env HOME="$dir/tmp" USER="$run_user" \
				LOGNAME="$run_user" TMPDIR="$tmp" "$@"
		)
	else
		env TMPDIR="$tmp" "$@"
	fi
}

# make_dir [path]: sets $dir, a fresh temporary directory without an argument.
make_dir()
{
	choose_user
	if [ $# -gt 0 ]; then
		mkdir -p "$1"
		dir=$(cd "$1" && pwd)
	else
		dir=$(mktemp -d "${TMPDIR:-/tmp}/jobqueue.XXXXXX")
	fi
	mkdir -p "$dir/tmp"
	if [ -n "$run_user" ]; then
		chown "$run_user" "$dir" "$dir/tmp"
		as_user test -x "$PWD" || unreadable=$PWD
		if ! as_user test -w "$dir/tmp"; then
			[ $# -eq 0 ] || die "user $run_user cannot write to $dir"
			rm -rf "$dir"
			dir=$(mktemp -d /tmp/jobqueue.XXXXXX)
			mkdir "$dir/tmp"
			chown "$run_user" "$dir" "$dir/tmp"
		fi
	fi
}

# link_tree directory: below root, a link for each of its entries that is not
# there yet; never through a link back into the original.
link_tree()
{
	local from=$1 to=$dir/root$1 entry name

	[ -d "$from" ] || return 0
	if [ ! -e "$to" ]; then
		mkdir -p "$to"
	elif [ "$(readlink -f "$to")" != "$to" ]; then
		return 0
	fi
	for entry in "$from"/*; do
		name=${entry##*/}
		case $name in jobqueue | jobqueue[.-]*) continue ;; esac
		[ -e "$to/$name" ] || ln -s "$entry" "$to/$name"
	done
}

# Sets base_pg_config, pg_config, bindir; copies the server unless the same
# one has been copied before.
make_root()
{
	local from id what

	base_pg_config=$(find_base_pg_config) || true
	[ -x "$base_pg_config" ] ||
		die "no pg_config found; set PG_CONFIG, PG_PREFIX or PGVERSION"
	from=$("$base_pg_config" --bindir)
	[ ! -x "$from/pg_config" ] || base_pg_config=$from/pg_config
	[ -x "$from/postgres" ] || die "no PostgreSQL server in $from"
	has_headers "$base_pg_config" ||
		die "the server headers of $from are missing"
	id="$base_pg_config $("$from/postgres" --version)"
	pg_config=$dir/root$from/pg_config
	bindir=$dir/root$from
	if [ "$(cat "$dir/root.id" 2>/dev/null)" = "$id" ]; then
		return 0
	fi

	rm -rf "$dir/root" "$dir/root.id"
	mkdir -p "$bindir"
	# real copies: a program finds its home by resolving links
	cp -pL "$from"/* "$bindir"
	cp -pL "$base_pg_config" "$pg_config"
	link_tree "$("$base_pg_config" --pkglibdir)"
	what=$("$base_pg_config" --sharedir)
	link_tree "$what/extension"
	link_tree "$what"
	for what in --includedir-server --pkgincludedir --includedir --libdir; do
		what=$("$base_pg_config" "$what")
		if [ -d "$what" ] && [ ! -e "$dir/root$what" ]; then
			mkdir -p "$(dirname "$dir/root$what")"
			ln -s "$what" "$dir/root$what"
		else
			link_tree "$what"
		fi
	done
	[ -z "$run_user" ] || chown -R -h "$run_user" "$dir/root"
	[ "$("$pg_config" --sharedir)" = "$dir/root$("$base_pg_config" --sharedir)" ] ||
		die "the copy of $from does not find its own files"
	echo "$id" >"$dir/root.id"
}

source_files()
(
	cd "$1" || exit
	# not each of these exists from the start
	{
		find Makefile jobqueue.control README.md src sql expected recipes test \
			-type f ! -name '*.o' ! -name '*.so' ! -name '*.bc' ! -name '*.d' ! -name '*.gc??' \
			! -name .buildflags 2>/dev/null || true
	} | LC_ALL=C sort
)

# Copies what differs, and dates it now, so that make sees every change.
sync_source()
{
	local to=$dir/source name

	mkdir -p "$to"
	source_files "$top" >"$dir/files.new"
	source_files "$to" >"$dir/files.old"
	while read -r name; do
		rm -f "$to/$name" "$to/${name%.c}.o"
	done < <(LC_ALL=C comm -13 "$dir/files.new" "$dir/files.old")
	while read -r name; do
		if ! cmp -s "$top/$name" "$to/$name"; then
			mkdir -p "$(dirname "$to/$name")"
			cp "$top/$name" "$to/$name.new~"
			if [ -x "$top/$name" ]; then chmod 755 "$to/$name.new~"; fi
			mv -f "$to/$name.new~" "$to/$name"
		fi
	done <"$dir/files.new"
	rm -f "$dir/files.new" "$dir/files.old"
	[ -z "$run_user" ] || chown -R "$run_user" "$to"
}

# build [VARIABLE=value ...]: private installation in $dir, built and
# installed. Incremental. Says what the compiler said, if it said anything.
build()
{
	local log=$dir/log status=0

	make_root
	sync_source
	as_user make -C "$dir/source" -j"$(nproc)" --no-print-directory \
		PG_CONFIG="$pg_config" "$@" all >"$log" 2>&1 || status=$?
	if [ "$status" = 0 ]; then
		as_user make -C "$dir/source" --no-print-directory \
			PG_CONFIG="$pg_config" "$@" install >>"$log" 2>&1 || status=$?
	fi
	if [ "$status" != 0 ]; then
		grep -v '^[^ ]*gcc \|^/bin/\|^/usr/bin/' "$log" >&2 || cat "$log" >&2
		return "$status"
	fi
	grep -A4 'warning:' "$log" >&2 || true
}

# init_server datadir [settings on stdin]: superuser postgres, sockets only.
init_server()
{
	as_user "$bindir/initdb" -D "$1" -U postgres -A trust --no-sync \
		--locale=C --encoding=UTF8 >"$dir/initdb.log" 2>&1 ||
		{
			cat "$dir/initdb.log" >&2
			return 1
		}
	cat >>"$1/postgresql.conf"
}

start_server()
{
	as_user "$bindir/pg_ctl" -D "$1" -l "$2" -w -t 60 -s start ||
		{
			tail -n 30 "$2" >&2
			return 1
		}
}

stop_server()
{
	as_user "$bindir/pg_ctl" -D "$1" -m "${2:-fast}" -t "${3:-60}" -w -s stop
}

# Whatever still runs below $dir, except a server for work by hand (dev.sh).
stop_all_servers()
{
	local pidfile

	[ -n "$dir" ] && [ -n "$bindir" ] || return 0
	find "$dir" -name postmaster.pid ! -path "$dir/data/*" 2>/dev/null | while read -r pidfile; do
		stop_server "${pidfile%/*}" immediate 20 >/dev/null 2>&1 || true
	done
}

now_ms()
{
	local t=${EPOCHREALTIME/[.,]/}

	echo "${t%???}"
}

# seconds milliseconds: 1234 as 1.2
seconds()
{
	printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100))
}

# thousands n: 56756 as 56,756
thousands()
{
	local n=$1 out=

	while [ ${#n} -gt 3 ]; do
		out=,${n: -3}$out
		n=${n:0:${#n}-3}
	done
	echo "$n$out"
}
