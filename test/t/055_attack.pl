# Attacks by roles without rights: to climb, to leak, to starve others, to poison
# the queue. Each property is named after what must not happen; README.md, "Threat
# model", says what may.
#
# What one session shows by itself is in sql/attack.sql; identities, planted objects
# and forged rows also in 008_rights.pl, 050_roles.pl and sql/rows.sql.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('attack', conf => <<'END');
jobqueue.max_workers = 6
jobqueue.max_workers_per_role = 3
jobqueue.max_lanes = 64
max_connections = 40
END
my $su = superuser();

# mallory attacks, alice works
sql(<<'END');
CREATE ROLE alice LOGIN;
CREATE ROLE mallory LOGIN;
CREATE ROLE mallory2;
GRANT mallory2 TO mallory;
SELECT jobqueue_grant(r, 'use') FROM (VALUES ('alice'::regrole), ('mallory'), ('mallory2')) v (r);
CREATE SCHEMA mallory AUTHORIZATION mallory;
CREATE SCHEMA alice AUTHORIZATION alice;
GRANT USAGE ON SCHEMA mallory, alice TO PUBLIC;
CREATE TABLE who (what text, "current" name DEFAULT current_user, "session" name DEFAULT session_user);
GRANT SELECT, INSERT ON who TO PUBLIC;
END

# whatever mallory does at the moment: jobs of alice start, come due, fail, expire,
# follow others, and her schedules fire
sub others_work
{
	my ($what) = @_;
	my $expires = sql_as('alice', q{SELECT jobqueue_enqueue('note', '{"what": "too late"}', run_at => 'tomorrow',
		expires_at => clock_timestamp() + interval '100 ms')});
	sql_as('alice', <<'END');
SELECT jobqueue_enqueue('note', '{"what": "at once"}');
SELECT jobqueue_enqueue('note', '{"what": "due"}', run_at => clock_timestamp() + interval '100 ms');
SELECT jobqueue_enqueue('note', '{"what": "after"}', after => ARRAY[jobqueue_enqueue('note', '{"what": "before"}')]);
SELECT jobqueue_enqueue('SELECT pg_terminate_backend(pg_backend_pid())', max_attempts => 1) AS dies \gset
SELECT jobqueue_schedule('often', '1 second', 'note', '{"what": "schedule"}');
END
	wait_for(q{SELECT count(DISTINCT what) = 5 FROM ran WHERE what IN ('at once', 'due', 'before', 'after', 'schedule') AND role = 'alice'});
	wait_for(qq{SELECT count(*) = 2 FROM jobqueue_history WHERE owner::text = 'alice' AND (state, reason) IN
		(('cancelled', 'expired'), ('dead', 'attempt 1 of 1 failed'))});
	pass("$what: the jobs and schedules of others go on");
	sql_as('alice', q{SELECT jobqueue_unschedule('often')});
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_jobs WHERE owner::text = 'alice' AND state <> 'completed' AND state <> 'dead' AND state <> 'cancelled'});
	sql(q{TRUNCATE ran; DELETE FROM jobqueue_archive WHERE owner::oid = 'alice'::regrole});
}

# ---- climb -----------------------------------------------------------------

property 'jobqueue.inline does not bring a job of another role into the session of who calls' => sub {
	sql_as('alice', <<'END');
CREATE TABLE alice.orders (n int);
CREATE FUNCTION alice.handler(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql
	SET search_path = alice, public AS $$ INSERT INTO public.who (what) SELECT 'handler' FROM orders; SELECT '1'::jsonb $$;
CREATE FUNCTION alice.later() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, alice, public AS
	$$ SELECT public.jobqueue_enqueue('INSERT INTO public.who (what) SELECT ''job '' || count(*) FROM orders', max_attempts => 1) $$;
CREATE FUNCTION alice.tell() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, alice, public AS
	$$ SELECT public.jobqueue_send('alice', '{}') $$;
CREATE FUNCTION alice.run() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, alice, public AS
	$$ SELECT public.jobqueue_schedule_run('alice') $$;
SELECT public.jobqueue_start_service('alice', 'alice.handler', '1');
SELECT public.jobqueue_schedule('alice', '@yearly', 'INSERT INTO public.who (what) SELECT ''schedule '' || count(*) FROM orders');
END
	wait_drained();
	sql('TRUNCATE who');
	# a view whose function runs as who looks at it
	my $trap = <<'END';
CREATE FUNCTION mallory.trap() RETURNS int LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO public.who (what) VALUES ('trap'); RETURN 1; END $$;
CREATE TEMP VIEW orders AS SELECT mallory.trap() AS n;
GRANT SELECT ON orders TO PUBLIC;
SET jobqueue.inline = on;
END
	sql_as('mallory', "$trap SELECT alice.later(); SELECT alice.tell(); SELECT alice.run()");
	wait_drained();
	is(sql(q{SELECT string_agg(what || ' ' || "current" || ' ' || "session", ', ' ORDER BY what) FROM who}),
		'job 0 alice alice, schedule 0 alice alice', 'each ran as alice alone, on her table');
	sql('TRUNCATE who; DROP FUNCTION mallory.trap CASCADE');
	# who could be alice anyway may: a test of hers, and a superuser's
	sql_as('alice', 'BEGIN; SET LOCAL jobqueue.inline = on; SELECT alice.later(); ');
	sql_as('alice', 'SET jobqueue.inline = on; SELECT alice.later()');
	sql('SET jobqueue.inline = on; SELECT alice.later()');
	is(sql(q{SELECT string_agg(what || ' ' || "current", ', ' ORDER BY what) FROM who}), 'job 0 alice, job 0 alice', 'inline, for who can be alice');
	sql_as('alice', q{SELECT jobqueue_stop_service('alice'); SELECT jobqueue_unschedule('alice')});
	wait_drained();
	sql('TRUNCATE who');
};

property 'who has the privileges of a role and cannot become it gives its service no handler' => sub {
  SKIP:
	{
		skip 'memberships without SET are of 16', 2 if sql('SHOW server_version_num') < 160000;
		sql(q{CREATE ROLE powerful SUPERUSER; SELECT jobqueue_grant('powerful', 'use'); GRANT powerful TO mallory WITH INHERIT TRUE, SET FALSE;
			CREATE FUNCTION public.fails(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'});
		sql_as('mallory', q{CREATE FUNCTION mallory.handler(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS
			$$ BEGIN ALTER ROLE mallory SUPERUSER; RETURN state; END $$});
		sql(q{SET ROLE powerful; SELECT jobqueue_start_service('powerful', 'public.fails', '1', max_restarts => 0)});
		wait_for(q{SELECT status FROM jobqueue_services WHERE name = 'powerful'}, 'failed');
		like(sql_error(q{SELECT jobqueue_start_service('powerful', 'mallory.handler', '1')}, role => 'mallory'), qr/permission denied to start service "powerful" again/, 'refused');
		is(sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'}), 'f', 'no superuser');
		sql(q{SELECT jobqueue_stop_service('powerful'); DROP FUNCTION public.fails; DROP OWNED BY powerful; DROP ROLE powerful});
	}
};

property 'an admin of the queue climbs to nobody' => sub {
	sql(q{CREATE ROLE boss LOGIN; SELECT jobqueue_grant('boss', 'use'), jobqueue_grant('boss', 'admin'); GRANT CREATE ON SCHEMA mallory TO boss});
	sql_as('boss', q{CREATE FUNCTION mallory.boss(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO public.who (what) VALUES (args::text); IF current_setting('is_superuser') = 'on' THEN ALTER ROLE boss SUPERUSER; END IF; END $$});
	my $id = sql(q{SELECT jobqueue_enqueue('SELECT 1 / 0', '"secret"', max_attempts => 1, run_at => 'tomorrow')});
	sql(q{SELECT jobqueue_schedule('of super', '@yearly', 'SELECT 1 / 0', '"secret"', max_attempts => 1)});
	sql_as('boss', q{SELECT jobqueue_configure('default', on_dead => 'mallory.boss')});
	foreach my $query ("SELECT jobqueue_reassign('$su', 'boss')", "SELECT jobqueue_reassign('boss', '$su')", "SELECT jobqueue_run($id)",
		q{SELECT jobqueue_schedule('of super', '@yearly', 'mallory.boss')}, q{SELECT * FROM jobqueue_job}, q{UPDATE jobqueue_queue SET on_dead_owner = 10})
	{
		sql_error($query, role => 'boss');
	}
	sql_as('boss', "SELECT jobqueue_reschedule($id, now()), jobqueue_adopt(), jobqueue_sweep(), jobqueue_unschedule('of super')");
	wait_for(q{SELECT count(*) > 0 FROM who WHERE what LIKE '%division by zero%'});
	is(sql(q{SELECT string_agg(DISTINCT "current" || ' ' || "session", ', ') FROM who}), 'boss boss', 'on_dead runs as who has named it');
	is(sql(q{SELECT count(*) FROM who WHERE what LIKE '%secret%'}), 0, 'without the arguments');
	is(sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'boss'}), 'f', 'no superuser');
	sql(q{SELECT jobqueue_drop_queue('default')});
	wait_drained();
	sql(q{DELETE FROM jobqueue_schedule; DELETE FROM jobqueue_archive; TRUNCATE who; DROP OWNED BY boss; DROP ROLE boss});
};

# what a schema's owner plants before CREATE EXTENSION: operators and functions that fit
# better than those of pg_catalog wherever the script relies on a conversion
sub plant
{
	my ($db, $schema, $owner) = @_;
	sql(<<END, db => $db);
SET ROLE $owner;
SET search_path = pg_catalog;
CREATE FUNCTION $schema.planted() RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
		ALTER ROLE mallory SUPERUSER;
	END IF;
END \$\$;
DO \$do\$
DECLARE
	types text[] := '{text,name,bigint,int,smallint,"char",oid,regclass,timestamptz,int[]}';
	a text; b text; op text; r text; n int := 0;
BEGIN
	FOREACH a IN ARRAY types LOOP
		FOREACH b IN ARRAY types LOOP
			FOREACH op IN ARRAY '{=,<>,<,>,>=,||}'::text[] LOOP
				IF to_regoperator(format('pg_catalog.%s(%s,%s)', op, a, b)) IS NOT NULL THEN
					CONTINUE;
				END IF;
				r := CASE op WHEN '||' THEN 'text' ELSE 'boolean' END;
				n := n + 1;
				EXECUTE format('CREATE FUNCTION $schema.f%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', n, a, b, r,
					'BEGIN PERFORM $schema.planted(); RETURN NULL; END');
				EXECUTE format('CREATE OPERATOR $schema.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = $schema.f%s)', op, a, b, n);
			END LOOP;
		END LOOP;
	END LOOP;
END \$do\$;
CREATE FUNCTION $schema.nextval(text) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM $schema.planted(); RETURN 1; END';
CREATE FUNCTION $schema.to_regclass(name) RETURNS regclass LANGUAGE plpgsql AS 'BEGIN PERFORM $schema.planted(); RETURN NULL; END';
CREATE FUNCTION $schema.format(text, regprocedure) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM $schema.planted(); RETURN NULL; END';
CREATE FUNCTION $schema.current_schema(text DEFAULT '') RETURNS name LANGUAGE plpgsql AS 'BEGIN PERFORM $schema.planted(); RETURN NULL; END';
RESET ROLE;
END
}

property 'what is planted in the schema is neither called nor used by the extension' => sub {
	sql(q{CREATE DATABASE planted OWNER mallory});
	plant('planted', 'public', 'mallory');
	my ($out, $err);
	node()->psql('planted', q{CREATE EXTENSION jobqueue VERSION '1.0'}, stdout => \$out, stderr => \$err);
	like($err, qr/WARNING:  roles that are not superusers may create objects in schema "public"/, 'it warns of a schema that is owned by others');
	sql('ALTER EXTENSION jobqueue UPDATE', db => 'planted');
	is(sql(q{SELECT count(*) FROM jobqueue_services, jobqueue_jobs, jobqueue_status, jobqueue_history, jobqueue_schedules, jobqueue_queues}, db => 'planted'), 0, 'views');
	is(sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'}), 'f', 'nobody has climbed');
	is(sql(<<'END', db => 'planted'), '', 'nothing of the extension is made of what was planted');
SET search_path = pg_catalog;
SELECT pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, 0) FROM pg_depend d
WHERE d.deptype = 'n' AND ((d.refclassid = 'pg_proc'::regclass AND EXISTS (SELECT FROM pg_proc p WHERE p.oid = d.refobjid AND p.proowner = 'mallory'::regrole))
	OR (d.refclassid = 'pg_operator'::regclass AND EXISTS (SELECT FROM pg_operator o WHERE o.oid = d.refobjid AND o.oprowner = 'mallory'::regrole)))
	AND NOT (d.classid = 'pg_operator'::regclass)
END
	# nor do the functions in C, by whose path it is found
	my $id = sql(q{SELECT jobqueue_enqueue('SELECT 1', key => 'k', unique_key => 'u', run_at => 'tomorrow')}, db => 'planted');
	sql("SELECT jobqueue_explain($id), jobqueue_reschedule($id, now()), jobqueue_configure('q', max_running => 2)", db => 'planted');
	wait_drained(db => 'planted');
	is(sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'}), 'f', 'nor later');
	sql('ALTER ROLE mallory NOSUPERUSER; DROP DATABASE planted WITH (FORCE)');
};

# ---- leak ------------------------------------------------------------------

property 'what the worker of another role does is not seen' => sub {
	sql(q{CREATE ROLE bob NOLOGIN; SELECT jobqueue_grant('bob', 'use')});
	my $gate = close_gate(1);
	sql(qq{SET ROLE $_; SELECT jobqueue_enqueue('SELECT ''secret'', pg_advisory_xact_lock_shared(1)', key => 'secret')}) foreach ('alice', 'bob');
	sql(q{SET ROLE bob; SELECT jobqueue_enqueue('SELECT ''secret'', pg_advisory_xact_lock_shared(1)')});
	wait_at_gate(2);
	is(sql_as('mallory', q{SELECT count(*) FROM pg_stat_activity a WHERE a::text LIKE '%secret%' AND pid <> pg_backend_pid()}), 0, 'in pg_stat_activity');
	foreach my $pid (split /\n/, sql(q{SELECT pid FROM jobqueue_running UNION ALL
		SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'}))
	{
		like(sql_error("SELECT pg_terminate_backend($pid)", role => 'mallory'), qr/must be a|permission denied/, 'nor is it ended');
		like(sql_error("SELECT pg_cancel_backend($pid)", role => 'mallory'), qr/must be a|permission denied/, 'nor cancelled');
	}
	open_gate($gate);
	wait_drained();
	sql(q{DROP OWNED BY bob; DROP ROLE bob});
};

# ---- starve ----------------------------------------------------------------

property 'a transaction that is left open does not hold up the jobs of others' => sub {
	sql_as('mallory', <<'END');
CREATE FUNCTION mallory.dies(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'die' THEN
		PERFORM pg_advisory_xact_lock_shared(1);
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(60);
	END IF;
	RETURN state;
END $$;
SELECT jobqueue_start_service('dies', 'mallory.dies', '1');
END
	wait_drained();
	my $gate = close_gate(1);
	sql_as('mallory', q{SELECT jobqueue_send('dies', '{"die": true}')});
	wait_at_gate(1);
	my $s = session(role => 'mallory');
	$s->query_safe(q{BEGIN; SELECT jobqueue_stop_service('dies')});
	my $pid = sql(q{SELECT pid FROM jobqueue_running});
	open_gate($gate);
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	others_work('a service is being stopped whose handler has ended its worker');
	$s->query_safe('ROLLBACK');
	sql_as('mallory', q{SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true)});
	sql_as('mallory', q{SELECT jobqueue_stop_service('dies')});
	wait_drained();

	# the same with rows that are given away
	$gate = close_gate(1);
	my $id = sql_as('mallory', q{SELECT jobqueue_enqueue('SELECT pg_advisory_xact_lock_shared(1), pg_terminate_backend(pg_backend_pid()), pg_sleep(60)', max_attempts => 1)});
	wait_at_gate(1);
	$pid = sql(q{SELECT pid FROM jobqueue_running});
	$s->query_safe(q{BEGIN; SELECT jobqueue_reassign('mallory', 'mallory2')});
	open_gate($gate);
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	others_work('a job is being given away whose worker has ended');
	$s->query_safe('ROLLBACK');
	wait_state($id, 'dead');
	sql('DELETE FROM jobqueue_archive');
};

property 'nobody takes all places for jobs that open transactions hold' => sub {
	sql_as('mallory', q{SELECT count(jobqueue_enqueue('note', run_at => 'tomorrow')) FROM generate_series(1, 2100)});
	my $id = sql_as('alice', q{SELECT jobqueue_enqueue('note', run_at => 'tomorrow')});
	my @s = map { session(role => 'mallory') } (1, 2);
	# as much as she can get
	$s[0]->query_safe(q{BEGIN; SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_jobs WHERE state = 'scheduled' ORDER BY id LIMIT 1024) x});
	$s[1]->query_safe(q{BEGIN; DO $$ BEGIN PERFORM jobqueue_cancel(id) FROM (SELECT id FROM jobqueue_jobs WHERE state = 'scheduled' ORDER BY id OFFSET 1024 LIMIT 1024) x;
		EXCEPTION WHEN program_limit_exceeded THEN END $$});
	is(sql_error("SELECT jobqueue_cancel($id)", role => 'alice'), '', 'another one can cancel his job');
	$_->query_safe('ROLLBACK') foreach @s;
	sql_as('mallory', q{SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true)});
	sql('DELETE FROM jobqueue_archive');
};

property 'settings of a role are in nobody\'s way but its own' => sub {
	sql(q{SET SESSION AUTHORIZATION mallory; SELECT jobqueue_enqueue('note')});
	foreach my $set (q{statement_timeout = 1}, q{lock_timeout = 1}, q{default_transaction_read_only = on}, q{default_transaction_isolation = serializable},
		q{default_transaction_deferrable = on}, q{search_path = mallory}, q{role = mallory2}, q{jobqueue.inline = on}, q{enable_indexscan = off}, q{row_security = off},
		q{idle_in_transaction_session_timeout = 1}, q{DateStyle = 'SQL, DMY'}, q{IntervalStyle = sql_standard}, q{timezone = 'Asia/Kathmandu'}, q{standard_conforming_strings = off},
		q{local_preload_libraries = 'no_such_library'})
	{
		# by herself, where she may
		sql("SET SESSION AUTHORIZATION mallory; ALTER ROLE mallory SET $set");
	}
	sql(q{SET SESSION AUTHORIZATION mallory; SELECT count(jobqueue_enqueue('note', key => 'mallory' || n % 3, run_at => clock_timestamp() + n * interval '1 ms')) FROM generate_series(1, 50) n});
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_jobs WHERE state = 'scheduled'});
	others_work('workers of a role cannot start');
	sql(q{ALTER ROLE mallory RESET ALL; SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true)});
	wait_drained();
	forget();
	sql('DELETE FROM jobqueue_archive');
};

property 'one role\'s hanging jobs, queues, keys and schedules leave room for others' => sub {
	sql_as('mallory', <<'END');
SELECT count(jobqueue_enqueue('hang', timeout => '0', key => 'hang' || n)) FROM generate_series(1, 10) n;
SELECT count(jobqueue_enqueue('note', queue => 'm' || n, priority => -32768)) FROM generate_series(1, 200) n;
SELECT count(jobqueue_enqueue('note', key => 'm' || n, priority => -32768)) FROM generate_series(1, 1000) n;
SELECT count(jobqueue_enqueue('note', key => 'hang1', priority => -32768)) FROM generate_series(1, 1000) n;
SELECT count(jobqueue_schedule('m' || n, '* * * * * *', 'SELECT 1 / 0', overlap => 'allow', max_attempts => 1)) FROM generate_series(1, 20) n;
END
	wait_for(q{SELECT count(*) >= 3 FROM jobqueue_running WHERE owner::text = 'mallory'});
	my $s = session(role => 'mallory');
	$s->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE jobqueue_jobs IN ACCESS SHARE MODE; SELECT count(*) FROM jobqueue_jobs');
	others_work('one that has all it can get');
	$s->query_safe('ROLLBACK');
	is(sql_as('mallory', q{SELECT pg_terminate_backend(min(pid)) FROM jobqueue_running}), 't', 'its own workers it may end');
	sql_as('mallory', q{SELECT jobqueue_unschedule(name) FROM jobqueue_schedules});
	sql_as('mallory', q{SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true)});
	wait_for(q{SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true) = 0 AND NOT EXISTS (SELECT FROM jobqueue_running)});
	sql('DELETE FROM jobqueue_archive');
	forget();
};

# ---- poison ----------------------------------------------------------------

property 'rows written by hand take nobody\'s numbers' => sub {
	sql('GRANT pg_write_all_data TO mallory');
	my $kept = sql_as('alice', q{SELECT jobqueue_enqueue('SELECT 41 + 1', keep => '1 day', run_at => 'tomorrow')});
	my $next = sql('SELECT last_value + 1 FROM jobqueue_job_id_seq');
	sql_error("INSERT INTO jobqueue_job (id, command, run_at, owner, kind) SELECT $next + n, 'SELECT 1', 'tomorrow', 'mallory', 's' FROM generate_series(0, 50) n", role => 'mallory');
	sql_error("INSERT INTO jobqueue_schedule (id, name, cron, kind, command) SELECT $next + n, 'n' || n, '\@yearly', 's', 'SELECT 1' FROM generate_series(0, 50) n", role => 'mallory');
	sql_error("INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, home, owner, priority, attempt, kind, state, queue, command)
		SELECT n, now(), now(), jobqueue_home(), 'mallory', 0, 0, 's', 'dead', 'default', 'SELECT 1' FROM generate_series($kept, $next + 10) n", role => 'mallory');
	sql_error("UPDATE jobqueue_archive SET id = $kept WHERE owner::oid = 'mallory'::regrole", role => 'mallory');
	is(sql_error(q{SELECT jobqueue_enqueue('note', '{"what": "one"}')}, role => 'alice'), '', 'a job is enqueued');
	is(sql_error(q{SELECT jobqueue_schedule('mine', '@yearly', 'note')}, role => 'alice'), '', 'a schedule is made');
	sql_as('alice', "SELECT jobqueue_reschedule($kept, now())");
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE id = $kept");
	is(sql("SELECT owner, state, result FROM jobqueue_history WHERE id = $kept"), 'alice|completed|42', 'the result is where it belongs');
	is(sql_as('mallory', 'SELECT count(*) FROM jobqueue_history WHERE result IS NOT NULL'), 0, 'and nobody else has it');
	sql_as('alice', q{SELECT jobqueue_unschedule('mine')});
	sql(q{REVOKE pg_write_all_data FROM mallory; DELETE FROM jobqueue_job; DELETE FROM jobqueue_schedule; DELETE FROM jobqueue_archive});
};

property 'no row that is written by hand stops the queue' => sub {
	sql('GRANT pg_write_all_data TO mallory');
	my $insert = 'INSERT INTO jobqueue_job (command, kind, max_attempts';
	foreach my $row (
		"$insert, attempt) VALUES ('SELECT 1 / 0', 's', 32767, 32767)",
		"$insert, attempt, crashes) VALUES ('SELECT pg_terminate_backend(pg_backend_pid())', 's', 32767, 32767, 32767)",
		"$insert, keep) VALUES ('SELECT 1', 's', 1, '178000000 years')",
		"$insert, timeout) VALUES ('SELECT 1', 's', 1, '178000000 years')",
		"$insert, unique_key, unique_until, unique_for, on_conflict) VALUES ('SELECT 1', 's', 1, 'u', 't', '178000000 years', 'r')",
		"$insert, search_path, settings) VALUES ('SELECT 1', 's', 1, '\"', '{a,=,b=,role=$su,session_authorization=$su,x=y=z}')",
		"$insert, settings) VALUES ('SELECT 1', 's', 1, '{NULL}')",
		"$insert, settings) VALUES ('SELECT 1', 's', 1, '{{search_path=a},{b=c}}')",
		"$insert, settings) VALUES ('INSERT INTO who (what) VALUES (''settings'')', 's', 1, '{role=$su}')",
		"$insert, after, run_at) VALUES ('SELECT 1', 's', 1, '{-1,0,9223372036854775807}', 'infinity')",
		"$insert, after, run_at, after_run_at) VALUES ('SELECT 1', 's', 1, '{}', 'infinity', 'infinity')",
		"$insert, run_at, expires_at) VALUES ('SELECT 1', 's', 1, '-infinity', '-infinity')",
		"$insert, run_at, enqueued_at) VALUES ('SELECT 1', 's', 1, '4714-11-24 BC', 'infinity')",
		"$insert, enqueued_at) VALUES ('SELECT 1', 's', 1, '-infinity')",
		"$insert, errors) VALUES ('SELECT 1 / 0', 's', 2, '[1, null, [], {\"error\": {}}]')",
		"$insert, func_owner) VALUES ('no.such(pg_catalog.jsonb)', 'f', 1, 10)",
		"$insert, func_owner) VALUES ('pg_catalog.pg_terminate_backend(jsonb)', 'f', 1, 10)",
		"$insert) VALUES ('VACUUM', 's', 1)", "$insert) VALUES ('SELECT 1', 'x', 1)", "$insert) VALUES ('x', 'm', 1)", "$insert) VALUES (NULL, 's', 1)",
		"$insert, home) VALUES ('SELECT 1', 's', 1, 1)",
		"INSERT INTO jobqueue_schedule (name, cron, kind, command) VALUES ('bad', 'bad', 's', 'SELECT 1')",
		"INSERT INTO jobqueue_schedule (name, cron, kind, command, timezone) VALUES ('zone', '* * * * *', 's', 'SELECT 1', 'No/Where')",
		"INSERT INTO jobqueue_schedule (name, cron, kind, command, started_at, seen_to) VALUES ('old', '1 second', 's', 'SELECT 1', '-infinity', '4714-11-24 BC')",
		"INSERT INTO jobqueue_schedule (name, cron, kind, command, queue, key, keep) VALUES ('long', '1 second', 's', 'SELECT 1', repeat('q', 200), repeat('k', 2000), '178000000 years')",
		"INSERT INTO jobqueue_service (name, handler, queue, within) VALUES ('svc', 'no.such(jsonb,jsonb)', 'q', '178000000 years')")
	{
		my $error = sql_error($row, role => 'mallory');
		note "$row: $error";
	}
	sql_error(q{SELECT jobqueue_send('svc', '{}')}, role => 'mallory');
	others_work('rows written by hand');
	is(sql(q{SELECT count(*) FROM who WHERE "current" <> 'mallory'}), 0, 'nor is it run as another');
	sql(q{REVOKE pg_write_all_data FROM mallory; DELETE FROM jobqueue_service; DELETE FROM jobqueue_schedule; DELETE FROM jobqueue_job; DELETE FROM jobqueue_archive; TRUNCATE who});
	wait_drained();
};

property 'a prepared transaction holds no key' => sub {
	sql(q{SELECT jobqueue_grant('mallory', 'lock')});
	like(sql_error(q{BEGIN; SELECT jobqueue_xact_lock('k'); PREPARE TRANSACTION 'p'}, role => 'mallory'), qr/ERROR/, 'refused');
	sql_error(q{BEGIN; SELECT jobqueue_lock('k'); PREPARE TRANSACTION 'p'}, role => 'mallory');
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_keys WHERE key = 'k'});
	sql(q{ROLLBACK PREPARED 'p'}) if sql(q{SELECT count(*) FROM pg_prepared_xacts}) > 0;
	# as many as she can get: there is room for the jobs of others
	my $s = session(role => 'mallory');
	$s->query_safe(q{DO $$ BEGIN PERFORM jobqueue_lock('k' || n) FROM generate_series(1, 100000) n; EXCEPTION WHEN OTHERS THEN END $$});
	$s->query('SELECT jobqueue_lock(n::text) FROM generate_series(1, 100000) n');
	sql_as('alice', q{SELECT jobqueue_enqueue('note', '{"what": "keyed"}', key => 'alice')});
	wait_drained();
	is(ran(), 'keyed', 'a job with a key runs');
	forget();
};

property 'the server has not crashed in all this' => sub {
	unlike(PostgreSQL::Test::Utils::slurp_file(node()->logfile),
		qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

node()->stop;
done_testing();
