# Versions: the SQL objects of 1.0 and 1.1, and libraries of both.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('upgrade', extension => 0);

my @users = qw(app boss watcher);
sql("CREATE ROLE $_ LOGIN") for @users;

# what the catalogs say of the members of the extension, in lines
my $catalog = <<'END';
SET search_path = pg_catalog;
CREATE TEMP TABLE member AS
	SELECT d.classid, d.objid, d.objsubid,
		replace((pg_identify_object(d.classid, d.objid, 0)).identity, n.nspname || '.', '') AS name
	FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid JOIN pg_namespace n ON n.oid = e.extnamespace
	WHERE e.extname = 'jobqueue' AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass;
SELECT set_config('search_path', quote_ident(n.nspname) || ', pg_catalog', false)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'jobqueue' \gset
-- relations that belong to a member: indexes, sequences
CREATE TEMP TABLE rel AS
	SELECT replace(c.oid::regclass::text, '"', '') AS name, c.*
	FROM pg_class c
	WHERE c.oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
	   OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass));
SELECT line FROM (
	SELECT format('member %s of %s: %s', name, classid::regclass, obj_description(objid, classid::regclass::name)) AS line FROM member
	UNION ALL
	SELECT format('function %s owner %s acl %s', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl) FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
	UNION ALL
	SELECT format('relation %s kind %s options %s acl %s rls %s force %s owner %s', name, relkind, reloptions, relacl, relrowsecurity, relforcerowsecurity, relowner::regrole) FROM rel
	UNION ALL
	SELECT format('toast of %s: %s', r.name, t.reloptions) FROM rel r JOIN pg_class t ON t.oid = r.reltoastrelid
	UNION ALL
	SELECT format('column %s.%s %s: %s not null %s default %s acl %s comment %s', r.name, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attacl, col_description(r.oid, a.attnum))
	FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
	UNION ALL
	SELECT format('constraint %s of %s: %s', c.conname, r.name, pg_get_constraintdef(c.oid)) FROM pg_constraint c JOIN rel r ON r.oid = c.conrelid
	UNION ALL
	SELECT format('index %s', pg_get_indexdef(oid)) FROM rel WHERE relkind = 'i'
	UNION ALL
	SELECT format('view %s: %s', name, pg_get_viewdef(oid)) FROM rel WHERE relkind = 'v'
	UNION ALL
	SELECT format('trigger %s %s: %s', pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger')) FROM pg_trigger t JOIN rel r ON r.oid = t.tgrelid
	UNION ALL
	SELECT format('policy %s of %s: %s %s %s', p.polname, r.name, pg_get_expr(p.polqual, p.polrelid), p.polcmd, obj_description(p.oid, 'pg_policy')) FROM pg_policy p JOIN rel r ON r.oid = p.polrelid
	UNION ALL
	SELECT format('config %s: %s', c.t::regclass, e.extcondition[c.n]) FROM pg_extension e, unnest(e.extconfig) WITH ORDINALITY AS c (t, n) WHERE e.extname = 'jobqueue'
	UNION ALL
	SELECT format('initial %s.%s %s', m.name, i.objsubid, i.initprivs) FROM pg_init_privs i JOIN member m ON m.classid = i.classoid AND m.objid = i.objoid
	UNION ALL
	SELECT format('depends %s on %s: %s', a.name, b.name, d.deptype) FROM pg_depend d JOIN member a ON a.classid = d.classid AND a.objid = d.objid JOIN member b ON b.classid = d.refclassid AND b.objid = d.refobjid
	UNION ALL
	SELECT format('extension %s relocatable %s', extversion, extrelocatable) FROM pg_extension WHERE extname = 'jobqueue'
) l ORDER BY line COLLATE "C";
END

sub catalog_of
{
	my ($db, $schema) = @_;
	my $out = sql($catalog, db => $db);

	$out =~ s/\b\Q$schema\E\.//g;
	return $out;
}

sub version_of
{
	return sql("SELECT extversion FROM pg_extension WHERE extname = 'jobqueue'", db => $_[0]);
}

property '1.0 updated to 1.1 is what a new 1.1 is, in any schema' => sub {
	foreach my $schema ('public', 'my jobs')
	{
		(my $name = $schema) =~ s/ /_/g;
		foreach my $db ("old_$name", "new_$name")
		{
			my $of = $db =~ /old/ ? " VERSION '1.0'" : '';

			sql("CREATE DATABASE $db");
			sql(qq{CREATE SCHEMA IF NOT EXISTS "$schema"; CREATE EXTENSION jobqueue SCHEMA "$schema"$of}, db => $db);
		}
		is(version_of("old_$name"), '1.0', "$schema: the old one");
		isnt(catalog_of("old_$name", qq{"$schema"}), catalog_of("new_$name", qq{"$schema"}), 'differs');
		sql('ALTER EXTENSION jobqueue UPDATE', db => "old_$name");
		is(version_of("old_$name"), '1.1', 'updated');
		my @old = split /\n/, catalog_of("old_$name", qq{"$schema"});
		my @new = split /\n/, catalog_of("new_$name", qq{"$schema"});
		cmp_ok(scalar @new, '>', 1000, 'lines are compared');
		is_deeply(\@old, \@new, 'is the same');
		sql("DROP DATABASE $_") for "old_$name", "new_$name";
	}
};

# ---- objects of 1.0 with this library ---------------------------------------

JobqueueTest::add_database('postgres', '1.0');
sql(q{SELECT jobqueue_grant('app', 'use'), jobqueue_grant('app', 'consume'), jobqueue_grant('boss', 'admin'), jobqueue_grant('watcher', 'monitor')});
sql('REVOKE EXECUTE ON FUNCTION jobqueue_purge FROM app');
sql(q{CREATE FUNCTION count_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT to_jsonb(state::int + CASE WHEN message ? 'init' OR message ? 'down' THEN 0 ELSE 1 END) $$});

# something of everything
sub all_works
{
	my ($what) = @_;
	my $job = enqueue('note', what => $what, role => 'app');
	my $keyed = enqueue('note', what => $what, role => 'app', key => 'k', unique_key => 'u', keep => '1 hour');
	my $after = enqueue('note', what => $what, role => 'app', after => "{$keyed}");
	my $due = enqueue('note', what => $what, role => 'app', run_at => sql(q{SELECT clock_timestamp() + interval '50 ms'}));
	my $outside = sql_as('app', q{SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')});
	my $service = $what =~ s/\W/_/gr;

	is(sql_as('app', q{SELECT array_agg(f.id) FROM jobqueue_fetch('out', 10, '10 s', '1 min') f}), "{$outside}", "$what: a lease");
	sql("SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease");
	sql_as('app', "SELECT jobqueue_start_service('$service', 'count_up', '0'), jobqueue_send('$service', '{}')");
	wait_for("SELECT jobqueue_service_state('$service') = '1'");
	sql_as('app', "SELECT jobqueue_stop_service('$service')");
	sql_as('app', "SELECT jobqueue_schedule('s', '1 second', 'note', '{\"what\": \"tick\"}')");
	wait_for(q{SELECT runs > 0 FROM jobqueue_schedules});
	sql_as('app', q{SELECT jobqueue_unschedule('s')});
	wait_drained();
	is(sql("SELECT count(*), count(DISTINCT role), min(role) FROM ran WHERE what = '$what'"), '4|1|app', "$what: four jobs");
	is(sql(qq{SELECT state FROM jobqueue_jobs WHERE id = $keyed}), 'completed', "$what: kept");
	sql("SELECT jobqueue_purge(NULL, 'completed')");
	sql(q{DELETE FROM jobqueue_archive});
	forget();
}

property 'objects of 1.0 are served by the library of 1.1, which says so once' => sub {
	is(version_of('postgres'), '1.0', 'the objects');
	is(sql('SHOW jobqueue.library_version'), '1.1', 'the library');
	my $offset = -s node()->logfile;
	all_works('as before');
	is(sql_error('SELECT * FROM jobqueue_status, jobqueue_jobs, jobqueue_running, jobqueue_recent, jobqueue_history, jobqueue_keys, jobqueue_workers, jobqueue_queues, jobqueue_schedules, jobqueue_services'), '', 'views');
	like(sql_error(q{SELECT jobqueue_pause_role('app')}), qr/does not exist/, 'what is new is not there');
	node()->restart;
	all_works('after a restart');
	sql('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = \'jobqueue scheduler\'');
	all_works('with a new scheduler');
	my $log = slurp_file(node()->logfile, $offset);
	my @said = $log =~ /LOG:  the SQL objects of extension "jobqueue" in database "postgres" are of version 1.0, the library is of version 1.1\n.*HINT:  Run ALTER EXTENSION jobqueue UPDATE/g;
	is(scalar @said, 1, 'said once in a life of the server');
};

property 'an update that is rolled back has changed nothing' => sub {
	sql('BEGIN; ALTER EXTENSION jobqueue UPDATE; SELECT jobqueue_pause_role(\'app\'); ROLLBACK');
	is(version_of('postgres'), '1.0', 'it is as it was');
	all_works('rolled back');
};

property 'jobs in every state go through an update, and what runs is not waited for' => sub {
	my $gate = close_gate(1);
	my $running = enqueue('gate', gate => 1, what => 'running', role => 'app', key => 'k');
	wait_at_gate();
	my $blocked = enqueue('note', what => 'blocked', role => 'app', key => 'k');
	my $after = enqueue('note', what => 'after', role => 'app', after => "{$running}");
	my $due = enqueue('note', what => 'due', role => 'app', run_at => 'tomorrow');
	my $held = enqueue('note', what => 'held', role => 'app', queue => 'paused', run_at => 'tomorrow');
	sql("UPDATE jobqueue_job SET home = home + 1 WHERE id = $held");
	sql(q{SELECT jobqueue_pause('paused')});
	my $paused = enqueue('note', what => 'paused', role => 'app', queue => 'paused', unique_key => 'u');
	my $dead = enqueue('fail', what => 'dead', role => 'app', max_attempts => 1);
	wait_state($dead, 'dead');
	my $leased = sql_as('app', q{SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')});
	my $token = sql_as('app', q{SELECT token FROM jobqueue_fetch('out', lease => '1 hour')});
	my $fetcher = session(role => 'app');
	my $fetched = sql_as('app', q{SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')});
	is($fetcher->query_safe(q{SELECT id FROM jobqueue_fetch('out')}), $fetched, 'a session has one');
	sql_as('app', q{SELECT jobqueue_start_service('s', 'count_up', '0'), jobqueue_send('s', '{}')});
	sql_as('app', q{SELECT jobqueue_schedule('yearly', '@yearly', 'note', '{"what": "yearly"}')});
	wait_for(q{SELECT jobqueue_service_state('s') = '1'});
	my $states = q{SELECT string_agg(id || ' ' || state, ', ' ORDER BY id) FROM jobqueue_jobs};
	my $before = sql($states);
	# somebody enqueues, and has not committed
	my $open = session(role => 'app');
	$open->query_safe('BEGIN');
	$open->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "open"}')});

	sql(q{SET lock_timeout = '5s'; ALTER EXTENSION jobqueue UPDATE});
	is(version_of('postgres'), '1.1', 'updated beside them');
	is(sql($states), $before, 'and they are what they were');
	$open->query_safe('COMMIT');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'open'});
	$fetcher->query_safe("SELECT jobqueue_complete($fetched)");
	sql_as('app', "SELECT jobqueue_complete($leased, token => '$token')");
	sql(q{SELECT jobqueue_resume('paused')});
	open_gate($gate);
	sql("SELECT jobqueue_reschedule($due, now()), jobqueue_adopt()");
	sql("SELECT jobqueue_reschedule($held, now())");
	sql_as('app', q{SELECT jobqueue_send('s', '{}')});
	wait_for(q{SELECT jobqueue_service_state('s') = '2'});
	wait_drained();
	is(sql('SELECT string_agg(what, \' \' ORDER BY what) FROM ran'), 'after blocked due held open paused running', 'each has run once');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $dead"), 'dead', 'the dead one is there');
	is(sql('SELECT name FROM jobqueue_schedules'), 'yearly', 'and the schedule');
	sql(q{SELECT jobqueue_stop_service('s')});
	sql_as('app', q{SELECT jobqueue_unschedule('yearly')});
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'who has a level has what came with the update, and a dump says so' => sub {
	is(sql_error(q{SELECT jobqueue_pause_role('watcher'), jobqueue_resume_role('watcher')}, role => 'boss'), '', 'admin');
	is(sql_error('SELECT * FROM jobqueue_paused_roles', role => $_), '', "$_ reads the view") for @users;
	like(sql_error(q{SELECT jobqueue_pause_role('watcher')}, role => $_), qr/permission denied for function/, "$_ may not pause") for qw(app watcher);
	like(sql_error(q{SELECT jobqueue_reassign('app', 'watcher')}, role => 'app'), qr/permission denied to reassign/, 'use: may ask');
	like(sql_error(q{SELECT jobqueue_purge('x', 'dead')}, role => 'app'), qr/permission denied for function/, 'what somebody has taken away stays so');
	my $dump = node()->safe_psql('postgres', q{SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc p, aclexplode(proacl) a
		WHERE a.grantee = 'boss'::regrole AND NOT EXISTS (SELECT FROM pg_init_privs i, aclexplode(i.initprivs) b WHERE i.objoid = p.oid AND b.grantee = a.grantee)
		AND p.proname ~ 'role$|reassign$'});
	is($dump, 'jobqueue_pause_role jobqueue_reassign jobqueue_resume_role', 'not as if the extension had given it');
};

property 'an update under load: nothing fails, is lost or runs twice; all processes know at once' => sub {
	sql('CREATE DATABASE busy');
	JobqueueTest::add_database('busy', '1.0');
	sql(q{SELECT jobqueue_grant('app', 'use')}, db => 'busy');
	# warm sessions, and one that has prepared its statement
	my $old = session(db => 'busy', role => 'app');
	$old->query_safe(q{PREPARE e AS SELECT jobqueue_enqueue('note', '{"what": "old"}')});
	$old->query_safe('EXECUTE e');
	my $load = start_pgbench(
		q{SELECT jobqueue_enqueue('note', '{"what": "load"}', key => (random() * 3)::int::text)},
		clients => 3, transactions => 1000, db => 'busy', role => 'app');
	wait_for(q{SELECT count(*) > 50 FROM ran}, 't', 'busy');
	sql('ALTER EXTENSION jobqueue UPDATE', db => 'busy');
	sql(q{SELECT jobqueue_pause_role('app')}, db => 'busy');
	$old->query_safe('EXECUTE e');
	$load->finish;
	unlike(${ $load->{out} }, qr/ERROR|aborted/, 'no client has seen an error');
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_running}, 't', 'busy');
	my $left = sql('SELECT count(*) FROM jobqueue_job', db => 'busy');
	cmp_ok($left, '>', 0, 'a role paused right after the update has stopped');
	is(sql('SELECT count(*) FROM ran', db => 'busy') + $left, 3002, 'all are somewhere');
	sql(q{SELECT jobqueue_resume_role('app')}, db => 'busy');
	wait_drained(db => 'busy');
	is(sql('SELECT count(*), count(DISTINCT job) FROM ran', db => 'busy'), '3002|3002', 'each ran once');
	is(sql(q{SELECT coalesce(sum(failed), 0) FROM jobqueue_status}, db => 'busy'), 0, 'and none failed');
	$old->quit;
};

property 'several databases are updated one by one, each when it suits' => sub {
	sql('CREATE DATABASE later');
	JobqueueTest::add_database('later', '1.0');
	enqueue('note', what => 'later', db => 'later');
	wait_drained(db => 'later');
	is(ran(db => 'later'), 'later', 'an old one beside a new one');
	sql('ALTER EXTENSION jobqueue UPDATE', db => 'later');
	enqueue('note', what => 'now', db => 'later');
	wait_drained(db => 'later');
	is(ran(db => 'later'), 'later now', 'and then');
	sql('DROP DATABASE later');
	sql('DROP DATABASE busy');
};

property 'a warm scheduler knows at once what came with an update, whether or not there are levels' => sub {
	my $super = superuser();
	sql('CREATE ROLE second SUPERUSER LOGIN');
	sql('CREATE DATABASE warm');
	JobqueueTest::add_database('warm', '1.0');
	foreach my $role ($super, 'second')
	{
		sql_as($role, qq{SELECT jobqueue_schedule('$role', '1 second', 'note', '{"what": "$role"}')}, db => 'warm');
	}
	wait_for('SELECT bool_and(runs > 0) FROM jobqueue_schedules', 't', 'warm');
	sql('ALTER EXTENSION jobqueue UPDATE', db => 'warm');
	sql(q{SELECT jobqueue_pause_role('second')}, db => 'warm');
	my $before = sql(q{SELECT string_agg(runs::text, ' ' ORDER BY name = 'second') FROM jobqueue_schedules}, db => 'warm');
	my ($mine, $second) = split / /, $before;
	wait_for("SELECT runs >= $mine + 3 FROM jobqueue_schedules WHERE name = '$super'", 't', 'warm');
	is(sql(q{SELECT runs FROM jobqueue_schedules WHERE name = 'second'}, db => 'warm'), $second, 'the paused one does not fire');
	sql_as($_, "SELECT jobqueue_unschedule('$_')", db => 'warm') for $super, 'second';
	sql('DROP DATABASE warm');
	sql('DROP ROLE second');
};

# ---- an old library ----------------------------------------------------------

SKIP:
{
	my $testing = sql(q{SELECT current_setting('jobqueue.testing_old_library', true) IS NOT NULL});
	skip 'not a test build', 1 if $testing ne 't';

	property 'new objects with an old library: an error that says what to do, logged once' => sub {
		sql('CREATE DATABASE other');
		JobqueueTest::add_database('other', '1.0');
		sql(q{SELECT jobqueue_pause('default')});
		my $job = enqueue('note', what => 'kept', role => 'app');
		my $offset = -s node()->logfile;
		node()->append_conf('postgresql.conf', 'jobqueue.testing_old_library = on');
		node()->restart;
		foreach my $call (
			q{SELECT jobqueue_enqueue('note')},
			q{SELECT jobqueue_cancel(1)},
			q{SELECT * FROM jobqueue_status},
			q{SELECT * FROM jobqueue_jobs},
			q{SELECT jobqueue_pause('x')},
			q{SELECT jobqueue_fetch('x')},
			q{SELECT jobqueue_schedule('x', '@daily', 'note')},
			q{SELECT jobqueue_explain(1)},
			q{INSERT INTO jobqueue_job (command) VALUES ('SELECT 1')})
		{
			like(sql_error($call),
				qr/ERROR:  the SQL objects of extension "jobqueue" are of version 1.1, the server runs the library of version 1.0\nHINT:  Install the library of version 1.1 or later, and restart the server/,
				$call);
		}
		enqueue('note', what => 'other', db => 'other');
		wait_drained(db => 'other');
		is(ran(db => 'other'), 'other', 'the objects of 1.0 beside it are served');
		# long enough for a loop to show: other databases have been served meanwhile
		foreach my $i (1 .. 5)
		{
			enqueue('note', what => "more $i", db => 'other',
				run_at => sql(q{SELECT clock_timestamp() + interval '500 ms'}));
			wait_drained(db => 'other');
		}
		my $log = slurp_file(node()->logfile, $offset);
		my @said = $log =~ /WARNING:  no job of database "postgres" runs: the SQL objects of extension "jobqueue" are of version 1.1, the server runs the library of version 1.0/g;
		is(scalar @said, 1, 'logged once');
		$log =~ s/.*terminating background worker .* due to administrator command\n//g;
	unlike($log, qr/FATAL/, 'and nobody dies of it');
	};

	property 'an update while the old library is loaded is refused, and harmless' => sub {
		my $refused = qr/ERROR:  the server runs the library of jobqueue 1.0, which does not know the SQL objects of jobqueue 1.1\nHINT:  Restart the server/;

		like(sql_error('ALTER EXTENSION jobqueue UPDATE', db => 'other'), $refused, 'ALTER EXTENSION');
		is(version_of('other'), '1.0', 'it is as it was');
		enqueue('note', what => 'still', db => 'other');
		wait_drained(db => 'other');
		like(ran(db => 'other'), qr/still$/, 'and runs');
		sql('CREATE DATABASE third');
		like(sql_error('CREATE EXTENSION jobqueue', db => 'third'), $refused, 'CREATE EXTENSION');
		is(sql_error(q{CREATE EXTENSION jobqueue VERSION '1.0'}, db => 'third'), '', 'but that of 1.0');
	};

	property 'after the restart with the new library everything goes on' => sub {
		node()->adjust_conf('postgresql.conf', 'jobqueue.testing_old_library', 'off');
		node()->restart;
		is(sql(q{SELECT count(*) FROM jobqueue_jobs}), 1, 'what waited is there');
		sql(q{SELECT jobqueue_resume('default')});
		wait_drained();
		is(ran(), 'kept', 'and has run');
		sql('ALTER EXTENSION jobqueue UPDATE', db => $_) for qw(other third);
		enqueue('note', what => 'updated', db => 'other');
		wait_drained(db => 'other');
		like(ran(db => 'other'), qr/updated$/, 'updated');
	};

	property 'objects newer than this library, made by a future one' => sub {
		my $gate = close_gate(1);
		my $job = enqueue('gate', gate => 1, what => 'future');
		wait_at_gate();
		# what is cached is looked up anew by who comes next
		sql(q{UPDATE pg_extension SET extversion = '1.10' WHERE extname = 'jobqueue'; GRANT SELECT ON jobqueue_job TO watcher});
		like(sql_error(q{SELECT jobqueue_enqueue('note')}), qr/are of version 1.10, the server runs the library of version 1.1\n/, 'a number, not a text');
		open_gate($gate);
		wait_for(q{SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'});
		sql(q{UPDATE pg_extension SET extversion = '1.1' WHERE extname = 'jobqueue'; REVOKE SELECT ON jobqueue_job FROM watcher});
		node()->restart;
		wait_drained();
		is(sql(q{SELECT count(*) FROM ran WHERE what = 'future'}), 1, 'the job of that moment has run, once');
	};
}

# ---- not preloaded -----------------------------------------------------------

property 'an update in a server that has not preloaded the library' => sub {
	node()->adjust_conf('postgresql.conf', 'shared_preload_libraries', q{''});
	node()->restart;
	sql('CREATE DATABASE bare');
	sql(q{CREATE EXTENSION jobqueue VERSION '1.0'}, db => 'bare');
	is(sql_error('ALTER EXTENSION jobqueue UPDATE', db => 'bare'), '', 'it needs only the right library');
	is(version_of('bare'), '1.1', 'updated');
	like(sql_error(q{SELECT jobqueue_enqueue('SELECT 1')}, db => 'bare'), qr/HINT:  Add jobqueue to shared_preload_libraries/, 'and says what it lacks');
	node()->adjust_conf('postgresql.conf', 'shared_preload_libraries', q{'jobqueue'});
	node()->restart;
	sql(q{SELECT jobqueue_enqueue('SELECT 1')}, db => 'bare');
	wait_drained(db => 'bare');
	pass('and then it runs');
};

node()->stop;
done_testing();
