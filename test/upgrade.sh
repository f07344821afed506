#!/usr/bin/env bash
#
# upgrade.sh [15 17 18]: pg_upgrade from each of these major versions of
# PostgreSQL to the next one, with jobs in every state; default: all three.
#
# Each step runs in the folder of the newer version that versions.sh has made (and
# which it makes if it is missing: call that first). The older server comes along
# with the libraries that it needs. The first step copies files, the next one links
# them, and so on. Nothing runs while pg_upgrade does; all runs on at the first
# start after it, without jobqueue_adopt().
#
# The last line is "N passed, N failed". Exit status 2: it could not be tried. The
# environment is that of versions.sh.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=test/private.sh
. "$here/private.sh"
# shellcheck source=test/debian.sh
. "$here/debian.sh"

passed=0
failed=0
out=	# what a step leaves for the next one

# check NAME EXPECTED GOT
check()
{
	if [ "$2" = "$3" ]; then
		echo "ok - $1"
		passed=$((passed + 1))
	else
		echo "not ok - $1"
		diff <(echo "$2") <(echo "$3") | head -n 20 | cut -c1-300
		failed=$((failed + 1))
	fi
}

sql()
{
	as_user "$bindir/psql" -XAtq -v ON_ERROR_STOP=1 -h "$dir" -U postgres -d "${db:-app}" "$@"
}

# wait_for QUERY: until it yields t
wait_for()
{
	local i got=

	for ((i = 0; i < 600; i++)); do
		got=$(sql -c "$1")
		[ "$got" != t ] || return 0
		sleep 0.1
	done
	echo "waited in vain for: $1" >&2
	sql -c 'SELECT id, queue, state, errors FROM jobqueue_jobs' >&2
	return 1
}

# start DATA [options]; the server of this $bindir
start()
{
	as_user "$bindir/pg_ctl" -D "$1" -l "$dir/server.log" -w -t 60 -s start \
		-o "-k $dir -c listen_addresses='' ${2:-}" ||
		{
			tail -n 30 "$dir/server.log" >&2
			return 1
		}
}

stop()
{
	as_user "$bindir/pg_ctl" -D "$1" -m fast -w -t 60 -s stop
}

# ---- what is in it ---------------------------------------------------------

fill()
{
	sql <<-'END' >/dev/null
		CREATE ROLE alice LOGIN; CREATE ROLE bob NOLOGIN; CREATE ROLE dave LOGIN; CREATE ROLE erin LOGIN;
		CREATE EXTENSION jobqueue;
		GRANT USAGE ON SCHEMA public TO PUBLIC;
		CREATE TABLE ran (what text, role name DEFAULT current_user, job bigint DEFAULT (jobqueue_current()).id);
		GRANT INSERT ON ran TO PUBLIC;
		CREATE FUNCTION note(args jsonb) RETURNS jsonb LANGUAGE sql AS
			$$ INSERT INTO ran (what) VALUES (args->>'what'); SELECT args $$;
		CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
			$$ SELECT to_jsonb(state::int + coalesce((message->>'add')::int, 0)) $$;
		SELECT jobqueue_grant('alice', 'use'), jobqueue_grant('bob', 'use'),
			jobqueue_grant('dave', 'consume', 'out');
		SELECT jobqueue_pause('paused'), jobqueue_pause('slow');
		SELECT jobqueue_pause_role('erin');
		SELECT jobqueue_configure('paused', max_running => 3, ordered => true);
		SELECT jobqueue_enqueue('note', '{"what": "kept"}', keep => '1 day') AS kept \gset
		SELECT jobqueue_enqueue('SELECT 1/0', max_attempts => 1) AS dead \gset
		SELECT FROM jobqueue_wait(ARRAY[:kept, :dead]::bigint[]);
		SELECT jobqueue_enqueue('note', '{"what": "ready"}', 'paused', 'k', unique_key => 'u') AS ready \gset
		SELECT jobqueue_enqueue('note', '{"what": "due"}', 'paused', run_at => 'tomorrow', tags => '{a}');
		SELECT jobqueue_enqueue('note', '{"what": "after"}', 'paused', after => ARRAY[:ready, :kept]::bigint[]);
		SELECT jobqueue_enqueue('note', '{"what": "e"}', unique_key => 'e', unique_until => 'expired', unique_for => '1 day');
		SELECT jobqueue_enqueue('note', '{"what": "cancelled"}', 'paused') AS cancelled \gset
		SELECT jobqueue_cancel(:cancelled);
		SELECT jobqueue_enqueue('note', jsonb_build_object('what', 'large', 'x', string_agg(md5(i::text), '')), 'paused')
			FROM generate_series(1, 3000) i;
		SELECT jobqueue_enqueue(NULL, '{"out": 1}', 'out'), jobqueue_enqueue(NULL, '{"out": 2}', 'out', 'kl');
		SELECT * FROM jobqueue_fetch('out', lease => '1 day');
		SELECT jobqueue_start_service('adds', 'add_up', '5');
		SELECT jobqueue_schedule('nightly', '0 3 * * *', 'note', '{"what": "nightly"}', timezone => 'Europe/Berlin');
		SELECT jobqueue_schedule('often', '1 second', 'note', '{"what": "often"}', queue => 'often');
		SET ROLE alice;
		SELECT jobqueue_enqueue('note', '{"what": "hers"}', 'paused', 'k');
		SET ROLE bob;
		SELECT jobqueue_enqueue('note', '{"what": "nobody"}', 'paused');
	END
	wait_for "SELECT count(*) = 1 FROM ran WHERE what = 'e'"
	wait_for "SELECT state = '5' AND waiting = 0 FROM jobqueue_services"
}

# what does not move by itself
contents()
{
	local t

	for t in job archive unique dependency lease consumer queue service service_current meta paused_role; do
		sql -c "SELECT '$t', to_jsonb(t)::text COLLATE \"C\" FROM jobqueue_$t t
			WHERE coalesce(to_jsonb(t)->>'queue', '') <> 'often' ORDER BY 2"
	done
	sql -c "SELECT name, owner, cron, id, created_at, home, args FROM jobqueue_schedule ORDER BY id"
	sql -c "SELECT p.oid::regprocedure::text COLLATE \"C\", ARRAY(SELECT a::text COLLATE \"C\" FROM unnest(proacl) a ORDER BY 1)
		FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e' ORDER BY 1"
	sql -c "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'jobqueue%' ORDER BY 1"
}

# ---- one step, in the folder of the newer version ---------------------------

# inside OLD NEW MODE: as the first process of its namespace
inside()
{
	local old=$1 new=$2 mode=$3 before n checksums=
	local wrapped=/jobqueue/upgrade/old/bin data=/jobqueue/upgrade/data

	out=/jobqueue/upgrade
	make_dir $out/work
	PGVERSION=$new build TESTING=1 || die "build failed"
	chown -R "$run_user" /jobqueue/upgrade/data /jobqueue/upgrade/old
	rm -rf "$data.new"
	[ "$new" -lt 18 ] || checksums=--no-data-checksums # as until then
	as_user mkdir -p "$dir/run"
	install -d -o "$run_user" "$data.new"
	as_user "$bindir/initdb" -D "$data.new" -U postgres -A trust --no-sync \
		--locale=C --encoding=UTF8 $checksums >"$dir/initdb.log"
	cat "$top/test/jobqueue.conf" >>"$data.new/postgresql.conf"

	(cd "$dir/run" && as_user "$bindir/pg_upgrade" -b "$wrapped" -B "$bindir" \
		-d "$data" -D "$data.new" -U postgres "--$mode" --socketdir "$dir" \
		>"$dir/pg_upgrade.log" 2>&1) || {
		tail -n 30 "$dir/pg_upgrade.log"
		find "$data.new/pg_upgrade_output.d" -name '*.log' -size +0 \
			-exec tail -n 15 {} + 2>/dev/null | tail -n 60
		die "pg_upgrade failed"
	}
	# first without anybody to run jobs
	start "$data.new" "-c jobqueue.enabled=off"
	before=$(cat "$out/contents")
	check "$old -> $new --$mode: everything is there, and nothing has run" \
		"$before" "$(contents)"
	n=$(cat "$out/often")
	stop "$data.new"
	start "$data.new"
	wait_for "SELECT count(*) = $new FROM ran WHERE what = 'go'"
	wait_for "SELECT state::int = 5 + $new FROM jobqueue_services"
	wait_for "SELECT count(*) > $n FROM ran WHERE what = 'often'"
	check "$old -> $new: it runs on at the first start" "0" \
		"$(sql -c "SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'")"
	check "$old -> $new: unique keys hold" "t" "$(sql -c "
		SELECT jobqueue_enqueue('note', queue => 'paused', unique_key => 'u') IS NULL
			AND jobqueue_enqueue('note', unique_key => 'e', unique_until => 'expired', unique_for => '1 day') IS NULL")"
	check "$old -> $new: ids go on" "t" "$(sql -c "
		SELECT jobqueue_enqueue('SELECT 1') > (SELECT max(id) FROM (SELECT id FROM jobqueue_job UNION ALL SELECT job FROM ran) i)")"
	check "$old -> $new: a lease holds, and is not given twice" "2" "$(sql -U dave -c "
		BEGIN; SELECT string_agg(args->>'out', ' ') FROM jobqueue_fetch('out', max => 9); ROLLBACK")"
	check "$old -> $new: nothing has run twice" "" "$(sql -c "
		SELECT what, job FROM ran GROUP BY 1, 2 HAVING count(*) > 1")"
	wait_for "SELECT count(*) = 0 FROM jobqueue_job WHERE queue = 'default'"
	prepare "$data.new" "${4:-}"
	rm -rf "$data"
	mv "$data.new" "$data"
	echo "$passed $failed" >"$out/result"
}

# prepare DATA NEXT: jobs for the next step, or (NEXT empty) all that is left;
# stops the server
prepare()
{
	local i

	if [ -n "$2" ]; then
		sql -c "ALTER SYSTEM SET jobqueue.enabled = off"
		stop "$1"
		start "$1"
		# so many that each step has a number of its own
		i=$(sql -c "SELECT count(*) FROM ran WHERE what = 'go'")
		sql -c "SELECT jobqueue_enqueue('note', '{\"what\": \"go\"}') FROM generate_series($i + 1, $2)" >/dev/null
		sql -c "SELECT jobqueue_send('adds', jsonb_build_object('add', $2 - $i))" >/dev/null
		contents >"$out/contents"
		sql -c "SELECT count(*) FROM ran WHERE what = 'often'" >"$out/often"
		# 15.20 notes something in each table that pg_dump of other major
		# versions may not know yet
		for db in app postgres template1; do
			sql -c "UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '%pg_attver%'"
		done
		db=app
		stop "$1"
		: >"$1/postgresql.auto.conf" # as it would run
		return
	fi
	sql -c "SELECT jobqueue_resume('paused')" >/dev/null
	wait_for "SELECT count(*) = 5 FROM ran WHERE what IN ('ready', 'after', 'hers', 'nobody', 'large')"
	check "what had waited since PostgreSQL ${versions[0]} has run, each as its owner" \
		"after postgres,hers alice,large postgres,nobody bob,ready postgres" \
		"$(sql -c "SELECT string_agg(what || ' ' || role, ',' ORDER BY what) FROM ran WHERE what IN ('ready', 'after', 'hers', 'nobody', 'large')")"
	check "nothing has run twice" "" "$(sql -c "
		SELECT what, job FROM ran GROUP BY 1, 2 HAVING count(*) > 1")"
	stop "$1"
}

# ---- outside ----------------------------------------------------------------

# carry VERSION ROOT TO: the relocated server below ROOT as real files, with what it is
# linked with (but for the C library, which is compatible), and a way to call it
carry()
{
	local version=$1 root=$2 to=$3 lib name

	rm -rf "$to"
	mkdir -p "$to/libs" "$to/bin" "$to/root/usr/lib" "$to/root/usr/share"
	cp -rL "$root/usr/lib/postgresql" "$to/root/usr/lib"
	rm -rf "$to/root/usr/lib/postgresql/$version/lib"/{llvmjit*,bitcode,pgxs}
	cp -rL "$root/usr/share/postgresql" "$to/root/usr/share"
	{
		ldd "$root/usr/lib/postgresql/$version/bin"/{postgres,pg_dump,pg_ctl}
		find "$to/root/usr/lib/postgresql/$version/lib" -name '*.so' -exec ldd {} +
	} 2>/dev/null | awk '$3 ~ /^\// { print $3 }' | sort -u | while read -r lib; do
		case ${lib##*/} in
			libc.so* | libm.so* | libresolv.so* | ld-* | libpthread.so* | libdl.so* | librt.so*) ;;
			*) cp -L "$lib" "$to/libs" ;;
		esac
	done
	for name in "$to/root/usr/lib/postgresql/$version/bin"/*; do
		# shellcheck disable=SC2016
		printf '#!/bin/sh\nLD_LIBRARY_PATH=/jobqueue/upgrade/old/libs exec /jobqueue/upgrade/old/root/usr/lib/postgresql/%s/bin/%s "$@"\n' \
			"$version" "${name##*/}" >"$to/bin/${name##*/}"
		chmod 755 "$to/bin/${name##*/}"
	done
}

case ${1:-} in
	--inside)
		shift
		versions=("$5")
		clean_environment
		inside "$1" "$2" "$3" "$4"
		exit
		;;
	--carry)
		carry "$2" "$3" "$4"
		exit
		;;
esac

versions=("$@")
[ $# -gt 0 ] || versions=(15 17 18)
[ ${#versions[@]} -gt 1 ] || die "usage: upgrade.sh 15 17 [18]"
clean_environment

not_tried()
{
	echo "not tried: $1"
	exit 2
}

[ "$(id -u)" = 0 ] || not_tried "only root can enter the folders of other versions"
for version in "${versions[@]:1}"; do
	[ -d "$cache/$version" ] ||
		not_tried "there is no $cache/$version; versions.sh $version makes it"
	exec {lock}>"$cache/$version.lock"
	flock "$lock"
done
[ -x "/usr/lib/postgresql/${versions[0]}/bin/postgres" ] ||
	not_tried "PostgreSQL ${versions[0]} is not installed"

finish()
{
	leave_folder
	stop_all_servers
	[ -z "$dir" ] || rm -rf "$dir"
}

finish_at_exit
make_dir
out=$dir/out
as_user mkdir "$out"
PGVERSION=${versions[0]} build TESTING=1 || die "build failed"
init_server "$out/data" <"$top/test/jobqueue.conf"
start "$out/data"
db=postgres sql -c 'CREATE DATABASE app'
fill
prepare "$out/data" "${versions[1]}"
carry "${versions[0]}" "$dir/root" "$out/old"

modes=(copy link)
from=$out
for ((step = 1; step < ${#versions[@]}; step++)); do
	version=${versions[step]}
	to=$cache/$version/jobqueue
	rm -rf "$to/upgrade/old" "$to/upgrade/data" "$to/upgrade/data.new"
	mkdir -p "$to/upgrade"
	cp -r "$from"/{old,data,contents,often} "$to/upgrade"
	(
		dir=$to run_user=
		sync_source
	)
	in_folder "$cache/$version" /jobqueue/source/test/upgrade.sh --inside \
		"${versions[step - 1]}" "$version" "${modes[(step - 1) % 2]}" \
		"${versions[step + 1]:-}" "${versions[0]}"
	read -r ok bad <"$to/upgrade/result"
	passed=$((passed + ok))
	failed=$((failed + bad))
	if [ -n "${versions[step + 1]:-}" ]; then
		in_folder "$cache/$version" /jobqueue/source/test/upgrade.sh --carry \
			"$version" /jobqueue/upgrade/work/root /jobqueue/upgrade/next
		rm -rf "$to/upgrade/old"
		mv "$to/upgrade/next" "$to/upgrade/old"
	fi
	from=$to/upgrade
done
if [ "$failed" = 0 ]; then
	for version in "${versions[@]:1}"; do
		rm -rf "$cache/$version/jobqueue/upgrade"/{old,data,contents,often}
	done
fi

echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
