#!/usr/bin/env bash
#
# dev.sh DIR [refresh|fresh|stop|test]: a private server to work with.
#
#   test/dev.sh /tmp/dev          build, install, start a server with the library
#                                 preloaded and the extension in database "dev";
#                                 the same again after a change of the sources
#   test/dev.sh /tmp/dev fresh    the same with a new data directory
#   test/dev.sh /tmp/dev stop     stop the server
#   test/dev.sh /tmp/dev test     run tests with this build (SUITE=, TESTS=);
#                                 independent of the server
#
# Only what changed is compiled. Pause points for tests are compiled in;
# TESTING=0 leaves them out, COPT=... adds compiler flags. Settings: the file
# DIR/settings.conf is included last and survives.

set -euo pipefail

usage="usage: dev.sh DIR [refresh|fresh|stop|test]"
here=$(dirname "$0")
# shellcheck source=test/private.sh
. "$here/private.sh"

case $# in 1 | 2) ;; *) die "$usage" ;; esac
what=${2:-refresh}
clean_environment

case $what in
	refresh | fresh | stop) ;;
	test)
		DIR=$1 COPT=${COPT:-} exec "$top/test/run.sh"
		;;
	*) die "$usage" ;;
esac

"$top/test/setup.sh" build
make_dir "$1"
data=$dir/data
[ ${#dir} -le 80 ] || die "the path of $dir is too long for a socket"

if [ "$what" = stop ]; then
	make_root
	stop_server "$data"
	exit
fi

begin=$(now_ms)
old_root=$(cat "$dir/root.id" 2>/dev/null || true)
old_sql=$(cat "$dir"/source/sql/jobqueue--*.sql 2>/dev/null | cksum || true)
build TESTING="${TESTING:-1}" COPT="${COPT:-}" || die "build failed"
new_sql=$(cat "$dir"/source/sql/jobqueue--*.sql | cksum)

running=no
if [ -f "$data/postmaster.pid" ] &&
	as_user "$bindir/pg_ctl" -D "$data" status >/dev/null 2>&1; then
	running=yes
fi
if [ -d "$data" ] &&
	{ [ "$what" = fresh ] ||
		{ [ -n "$old_root" ] && [ "$old_root" != "$(cat "$dir/root.id")" ]; }; }; then
	[ $running = no ] || stop_server "$data" immediate
	running=no
	rm -rf "$data"
fi

created=no
if [ ! -d "$data" ]; then
	[ -f "$dir/settings.conf" ] || : >"$dir/settings.conf"
	init_server "$data" <<-END
		include '$dir/source/test/jobqueue.conf'
		listen_addresses = ''
		unix_socket_directories = '$dir'
		log_min_messages = info
		include '$dir/settings.conf'
	END
	created=yes
fi
if [ $running = yes ]; then
	stop_server "$data" fast 5 2>/dev/null || {
		echo "the server did not stop within 5 s; now in mode immediate" >&2
		stop_server "$data" immediate 10
	}
fi
start_server "$data" "$dir/server.log"

sql()
{
	"$bindir/psql" -X -q -v ON_ERROR_STOP=1 -h "$dir" -U postgres "$@"
}

if [ $created = yes ]; then
	sql -d postgres -c 'CREATE DATABASE dev'
	sql -d dev -c 'CREATE EXTENSION jobqueue' || true
elif [ "$old_sql" != "$new_sql" ]; then
	echo "the install script changed: extension in dev dropped and created"
	sql -d dev -c 'SET client_min_messages = warning' \
		-c 'DROP EXTENSION IF EXISTS jobqueue CASCADE' \
		-c 'CREATE EXTENSION jobqueue' || true
fi

cat <<END
ready in $(seconds $(($(now_ms) - begin))) s, log: $dir/server.log
$bindir/psql -h $dir -U postgres dev
END
