# A job has the rights of the role that enqueued it and no others.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('rights');
my $su = superuser();

# alice can log in, bob cannot; mallory would like to be somebody else
sql(<<'END');
CREATE ROLE alice LOGIN;
CREATE ROLE bob NOLOGIN;
CREATE ROLE mallory LOGIN;
CREATE ROLE powerful SUPERUSER NOLOGIN;
SELECT jobqueue_grant(r, 'use') FROM (VALUES ('alice'::regrole), ('bob'), ('mallory')) v (r);
CREATE TABLE who (
	what text, job bigint DEFAULT (jobqueue_current()).id,
	"current" name DEFAULT current_user, "session" name DEFAULT session_user,
	super text DEFAULT current_setting('is_superuser'));
GRANT SELECT, INSERT ON who TO PUBLIC;
CREATE FUNCTION tell(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO who (what) VALUES (args->>'what') $$;
CREATE SCHEMA app;
GRANT USAGE ON SCHEMA app TO PUBLIC;
END

# enqueue as a role that may not be able to log in
sub enqueue_as
{
	my ($role, $command, $list) = @_;
	$list = defined $list ? ", $list" : '';
	return sql("SET ROLE $role; SELECT jobqueue_enqueue(\$cmd\$$command\$cmd\$$list)");
}

sub who
{
	return sql('SELECT DISTINCT "current", "session", super FROM who ORDER BY 1, 2, 3');
}

sub nobody_climbed
{
	wait_drained();
	is( sql(q{SELECT count(*) FROM who WHERE super = 'on'}),
		0,
		'nobody was superuser');
	is( sql(q{SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper AND rolname IN ('alice', 'bob', 'mallory', 'jobqueue_nobody')}),
		'',
		'nobody has become one');
	sql('TRUNCATE who; DELETE FROM jobqueue_archive');
}

foreach my $role ('alice', 'bob')
{
	property "jobs of $role run as $role, session user included" => sub {
		enqueue_as($role, 'tell');
		enqueue_as($role, q{INSERT INTO who (what) VALUES ('text')});
		wait_drained();
		is(who(), "$role|$role|off", 'function and text');
		sql('TRUNCATE who');
	};
}

property 'the effective role counts: SECURITY DEFINER' => sub {
	sql(<<'END');
CREATE FUNCTION app.for_alice() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	$$ SELECT jobqueue_enqueue('tell') $$;
ALTER FUNCTION app.for_alice() OWNER TO alice;
END
	sql_as('mallory', 'SELECT app.for_alice()');
	wait_drained();
	is(who(), 'alice|alice|off', 'the job is of the owner');
	sql('TRUNCATE who');
};

# ---- climbing --------------------------------------------------------------

my $tell = q{INSERT INTO who (what) VALUES ('climbed')};
my @climbs = (
	'RESET ROLE', 'SET ROLE NONE', "SET ROLE powerful", "SET ROLE \"$su\"",
	'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT',
	"SET SESSION AUTHORIZATION \"$su\"", 'SET SESSION AUTHORIZATION powerful',
	q{SELECT set_config('role', 'powerful', false)},
	q{SELECT set_config('session_authorization', 'powerful', false)},
	q{SELECT set_config('is_superuser', 'on', false)},
	'DISCARD ALL', 'RESET ALL', 'ROLLBACK', 'COMMIT', 'ABORT; BEGIN',
	'SAVEPOINT s; ROLLBACK TO s');

foreach my $role ('alice', 'bob')
{
	property "no text of $role climbs" => sub {
		foreach my $climb (@climbs)
		{
			# what is refused at enqueue is refused
			foreach my $text (
				"$climb; $tell; ALTER ROLE $role SUPERUSER",
				"$climb; $tell",
				"DO \$\$ BEGIN BEGIN EXECUTE \$x\$$climb\$x\$; EXCEPTION WHEN OTHERS THEN NULL; END;
				$tell; END \$\$",
				$climb)
			{
				sql_error("SET ROLE $role; SELECT jobqueue_enqueue(\$cmd\$$text\$cmd\$, max_attempts => 1)");
			}
			# and what it left to the next job
			enqueue_as($role, 'tell', 'max_attempts => 1');
		}
		wait_drained();
		cmp_ok(sql('SELECT count(*) FROM who'), '>', scalar @climbs, 'they ran');
		is(sql(q{SELECT count(*) FROM who WHERE what IS NULL}),
			scalar @climbs, 'and each next job');
		is( sql(qq{SELECT count(*) FROM who WHERE what IS NULL AND ("current", "session") IS DISTINCT FROM ('$role', '$role')}),
			0,
			'as itself');
		is(sql(qq{SELECT count(*) FROM who WHERE "current" NOT IN ('$role', 'jobqueue_nobody')}),
			0, 'nor did one of them become another');
		nobody_climbed();
	};

	property "no procedure of $role climbs by ROLLBACK or COMMIT" => sub {
		sql(<<END);
GRANT CREATE ON SCHEMA app TO $role;
SET ROLE $role;
CREATE OR REPLACE PROCEDURE app.climb_$role() LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO who (what) VALUES ('first');
	ROLLBACK;
	INSERT INTO who (what) VALUES ('after rollback');
	COMMIT;
	INSERT INTO who (what) VALUES ('after commit');
	COMMIT;
	BEGIN
		EXECUTE 'ALTER ROLE $role SUPERUSER';
	EXCEPTION WHEN insufficient_privilege THEN
		INSERT INTO who (what) VALUES ('refused');
	END;
	COMMIT;
	BEGIN
		EXECUTE 'RESET SESSION AUTHORIZATION';
		EXECUTE 'ALTER ROLE $role SUPERUSER';
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO who (what) VALUES ('refused');
	END;
	ROLLBACK;
	EXECUTE 'RESET ROLE';
	INSERT INTO who (what) VALUES ('after reset');
	COMMIT;
	EXECUTE 'ALTER ROLE $role SUPERUSER';
END \$\$;
END
		my $id = enqueue_as($role, "CALL app.climb_$role()", 'max_attempts => 1');
		wait_state($id, 'dead');
		like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
			qr/superuser|permission/, 'it came to its end and was refused');
		cmp_ok(sql(q{SELECT count(*) FROM who WHERE what LIKE 'after%'}), '>=', 2, 'it ran on');
		is(sql(qq{SELECT count(*) FROM who WHERE "current" NOT IN ('$role', 'jobqueue_nobody')}),
			0, 'as itself');
		nobody_climbed();
	};
}

property 'ALTER ROLE … SET role has no effect on jobs' => sub {
	sql(qq{ALTER ROLE alice SET role = '$su'; ALTER ROLE bob SET role = powerful;
		ALTER ROLE mallory SET session_authorization = powerful});
	# workers that start after it
	node()->restart;
	foreach my $role ('alice', 'bob', 'mallory')
	{
		enqueue_as($role, 'tell', 'max_attempts => 1');
	}
	wait_drained();
	is(who(), "alice|alice|off\nbob|bob|off\nmallory|mallory|off",
		'each as itself');
	sql('ALTER ROLE alice RESET role; ALTER ROLE bob RESET role; ALTER ROLE mallory RESET session_authorization');
	node()->restart;
	nobody_climbed();
};

property 'a role that is no longer superuser has workers that are not' => sub {
	sql('ALTER ROLE mallory SUPERUSER');
	enqueue_as('mallory', 'tell');
	wait_drained();
	sql('ALTER ROLE mallory NOSUPERUSER');
	enqueue_as('mallory', q{SET SESSION AUTHORIZATION powerful; INSERT INTO who (what) VALUES ('climbed')},
		'max_attempts => 1');
	enqueue_as('mallory', 'tell');
	wait_drained();
	is(sql(q{SELECT count(*) FROM who WHERE what = 'climbed'}), 0, 'refused');
	is(sql('SELECT super FROM who ORDER BY job'), "on\noff", 'before and after');
	sql('TRUNCATE who; DELETE FROM jobqueue_archive');
};

# ---- planted objects -------------------------------------------------------

property 'planted functions and operators in an earlier schema are not called' => sub {
	sql(<<'END');
CREATE SCHEMA evil AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION app.quiet(args jsonb) RETURNS int LANGUAGE sql
	SET search_path = pg_catalog AS 'SELECT 1';
CREATE FUNCTION app.noisy(args jsonb) RETURNS int LANGUAGE sql
	SET search_path = pg_catalog AS 'SELECT 1 / 0';
SET ROLE mallory;
SET search_path = pg_catalog;
CREATE FUNCTION evil.trap() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.who (what) VALUES ('evil');
END $$;
CREATE FUNCTION evil.eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION evil.eqt(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION evil.gtt(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN $1 OPERATOR(pg_catalog.>) $2; END $$;
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eqt);
CREATE OPERATOR evil.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.gtt);
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN pg_catalog.now(); END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN pg_catalog.clock_timestamp(); END $$;
CREATE FUNCTION evil.jobqueue_home() RETURNS bigint LANGUAGE plpgsql AS
	$$ BEGIN PERFORM evil.trap(); RETURN 0; END $$;
RESET ROLE;
CREATE TABLE evil.jobqueue_job (LIKE public.jobqueue_job);
CREATE TABLE evil.jobqueue_archive (LIKE public.jobqueue_archive);
CREATE TABLE evil.jobqueue_meta (LIKE public.jobqueue_meta);
ALTER TABLE evil.jobqueue_job OWNER TO mallory;
ALTER TABLE evil.jobqueue_archive OWNER TO mallory;
ALTER TABLE evil.jobqueue_meta OWNER TO mallory;
END
	sql("ALTER DATABASE postgres SET search_path = evil, pg_catalog, public");
	node()->restart;
	my $ok = enqueue('app.quiet', args => '{}', keep => '1 hour', key => 'k');
	my $bad = enqueue('app.noisy', args => '{}', max_attempts => 2);
	my $late = sql("SELECT public.jobqueue_enqueue('app.quiet', '{}',
		run_at => pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) interval '0.3 s')");
	my $cancel = sql("SELECT public.jobqueue_cancel(public.jobqueue_enqueue('app.quiet', run_at => 'tomorrow'))");
	sql('ALTER DATABASE postgres RESET search_path');
	wait_state($bad, 'dead');
	wait_drained();
	is(sql("SELECT jobqueue_retry($bad)"), 't', 'retry');
	wait_state($bad, 'dead');
	is(sql("SELECT count(*) FROM who WHERE what = 'evil'"), 0, 'none was called');
	node()->restart;
	sql('TRUNCATE who; DELETE FROM jobqueue_archive');
};

property 'a function planted after the enqueue is not called' => sub {
	sql(<<'END');
CREATE FUNCTION app.target(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO public.who (what) VALUES ('right') $$;
CREATE SCHEMA early;
GRANT CREATE, USAGE ON SCHEMA early TO mallory, alice;
END
	sql('SELECT jobqueue_quiesce()');
	sql(q{SET search_path = early, app, public; SELECT jobqueue_enqueue('target', '{}')});
	sql_as('mallory', q{CREATE FUNCTION early.target(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.who (what) VALUES ('planted') $$});
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT what FROM who'), 'right', 'the one that was meant');
	sql('TRUNCATE who');
};

property 'a temporary function or table planted by a job is not seen by the next' => sub {
	enqueue_as('mallory', q{CREATE TEMP TABLE who (what text); CREATE FUNCTION pg_temp.tell(args jsonb) RETURNS void LANGUAGE sql AS 'SELECT'});
	enqueue_as('mallory', 'tell');
	wait_drained();
	is(sql('SELECT count(*) FROM who'), 1, 'it went where it was meant to go');
	sql('TRUNCATE who');
};

property 'a function that has changed hands is not called' => sub {
	sql(<<'END');
CREATE FUNCTION app.mine(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO public.who (what) VALUES ('mine') $$;
GRANT CREATE ON SCHEMA app TO mallory;
END
	sql('SELECT jobqueue_quiesce()');
	my $id = enqueue('app.mine', args => '{}', max_attempts => 1);
	sql('ALTER FUNCTION app.mine(jsonb) OWNER TO mallory');
	sql_as('mallory', q{CREATE OR REPLACE FUNCTION app.mine(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.who (what) VALUES ('climbed') $$});
	sql('SELECT jobqueue_resume()');
	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/own/, 'the error says why');
	nobody_climbed();
};

property 'a function dropped and made anew by another is not called' => sub {
	sql(q{CREATE FUNCTION app.anew(args jsonb) RETURNS void LANGUAGE sql AS ''});
	sql('SELECT jobqueue_quiesce()');
	my $id = enqueue('app.anew', args => '{}', max_attempts => 1);
	my $gone = enqueue('app.anew', args => '{}', max_attempts => 1);
	sql('DROP FUNCTION app.anew(jsonb)');
	sql_as('mallory', q{CREATE FUNCTION app.anew(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.who (what) VALUES ('climbed') $$});
	sql('SELECT jobqueue_resume()');
	wait_state($id, 'dead');
	wait_state($gone, 'dead');
	nobody_climbed();
	sql('DROP FUNCTION app.anew(jsonb); REVOKE CREATE ON SCHEMA app FROM mallory');
};

property 'a warm worker notices that a function has changed' => sub {
	sql(qq{CREATE FUNCTION app.definer(args jsonb) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
		\$\$ BEGIN INSERT INTO public.who (what) VALUES (current_setting('work_mem')); END \$\$});
	foreach my $change (
		'SECURITY DEFINER', 'SECURITY INVOKER', "SET work_mem = '9MB'",
		'SECURITY DEFINER', 'RESET ALL', 'OWNER TO mallory')
	{
		enqueue_as('alice', 'app.definer', "args => '{}', key => 'k'");
		wait_drained();
		sql("ALTER FUNCTION app.definer(jsonb) $change");
	}
	my $id = enqueue_as('alice', 'app.definer', "args => '{}', key => 'k'");
	wait_drained();
	is( sql(qq{SELECT replace("current", '$su', 'su') || ' ' || what FROM who ORDER BY job}),
		"su 4MB\nsu 4MB\nalice 4MB\nalice 9MB\nsu 9MB\nsu 4MB\nmallory 4MB",
		'each time');
	is(sql('SELECT count(DISTINCT "session") FROM who'), 1, 'alice\'s jobs');
	sql('TRUNCATE who');
};

property 'EXECUTE and USAGE revoked meanwhile' => sub {
	sql(q{CREATE FUNCTION app.rights(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.who (what) VALUES ('rights') $$});
	enqueue_as('alice', 'app.rights', "args => '{}'");
	wait_drained();
	foreach my $what ('EXECUTE ON FUNCTION app.rights(jsonb)', 'USAGE ON SCHEMA app')
	{
		sql('SELECT jobqueue_quiesce()');
		my $id = enqueue_as('alice', 'app.rights', "args => '{}', max_attempts => 1");
		sql("REVOKE $what FROM PUBLIC");
		sql('SELECT jobqueue_resume()');
		wait_state($id, 'dead');
		like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
			qr/permission denied/, "$what: dead");
		sql("GRANT $what TO PUBLIC");
		is(sql("SELECT jobqueue_retry($id)"), 't', 'retry after it is granted again');
		wait_drained();
	}
	is(sql('SELECT count(*) FROM who'), 3, 'ran when it was allowed to');
	sql('TRUNCATE who');
};

property 'a strict function with NULL args is not called' => sub {
	sql(q{CREATE FUNCTION app.strict_c(jsonb) RETURNS text STRICT LANGUAGE internal AS 'jsonb_pretty';
		CREATE FUNCTION app.strict_sql(args jsonb) RETURNS void STRICT LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.who (what) VALUES ('strict'); END $$});
	my @ids = map { enqueue_as('alice', $_, 'keep => $$1 hour$$') }
	  ('app.strict_c', 'app.strict_sql', 'pg_catalog.jsonb_pretty');
	wait_drained();
	is(sql("SELECT count(*) FROM jobqueue_history WHERE id BETWEEN $ids[0] AND $ids[2] AND state = 'completed' AND result IS NULL"),
		3, 'completed without a result');
	is(sql('SELECT count(*) FROM who'), 0, 'not called');
	sql('DELETE FROM jobqueue_archive');
};

# ---- the tables ------------------------------------------------------------

property 'pg_write_all_data does not let one act for others' => sub {
	sql('CREATE ROLE writer LOGIN; GRANT pg_write_all_data, pg_read_all_data TO writer');
	sql("SELECT jobqueue_grant('writer', 'use')");
	my $waiting = enqueue('note', what => 'x', run_at => 'tomorrow');
	foreach my $query (
		"INSERT INTO jobqueue_job (owner, command) VALUES ('$su', 'ALTER ROLE writer SUPERUSER')",
		"INSERT INTO jobqueue_job (owner, command) VALUES ('alice', 'tell')",
		"COPY jobqueue_job (owner, command) FROM STDIN;\n$su\tALTER ROLE writer SUPERUSER\n\\.\n",
		"UPDATE jobqueue_job SET command = 'ALTER ROLE writer SUPERUSER', run_at = NULL",
		"UPDATE jobqueue_job SET owner = 'writer', run_at = NULL",
		'DELETE FROM jobqueue_job',
		"WITH mine AS (INSERT INTO jobqueue_job (command, run_at) VALUES ('ALTER ROLE writer SUPERUSER', 'tomorrow') RETURNING id)
			SELECT * FROM mine",
		"UPDATE jobqueue_job SET owner = '$su', run_at = NULL WHERE command LIKE 'ALTER%'",
		"INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, home, owner, priority, attempt, kind, state, queue, command)
			VALUES (99999999, now(), now(), jobqueue_home(), '$su', 0, 0, 's', 'dead', 'default', 'ALTER ROLE writer SUPERUSER')",
		'SELECT jobqueue_retry(99999999)',
		'UPDATE jobqueue_meta SET home = 0')
	{
		my $error = sql_error($query, role => 'writer');
		note "$query: $error";
	}
	is(sql("SELECT owner, command FROM jobqueue_job WHERE id = $waiting"),
		"$su|public.note(pg_catalog.jsonb)", 'the waiting job is as it was');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE owner::oid <> 'writer'::regrole AND id <> $waiting"),
		0, 'nobody else has a job');
	is(sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'writer'"), 'f', 'no superuser');
	isnt(sql('SELECT home FROM jobqueue_meta'), 0, 'meta is as it was');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job');
	wait_drained();
	is(sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'writer'"), 'f', 'nor later');
	sql('DELETE FROM jobqueue_archive; REVOKE pg_write_all_data, pg_read_all_data FROM writer');
};

property 'a row written by hand is no way into the service of another role' => sub {
	sql('GRANT pg_write_all_data, pg_read_all_data TO writer');
	sql(q{CREATE FUNCTION public.keep_state(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state'});
	my $service = sql_as('alice',
		q{SELECT jobqueue_start_service('private', 'keep_state', '1', restart => 'temporary', max_restarts => 0)});
	wait_drained();
	my $as_it_was = sql('SELECT name, status, state, handled, failed FROM jobqueue_services');
	my $message = 'INSERT INTO jobqueue_job (kind, command, args, key';

	foreach my $query (
		"$message) VALUES ('m', 'private', '{}', 'jobqueue_service:$service')",
		"$message, run_at, keeps_order) VALUES ('m', 'private', '{}', 'jobqueue_service:$service', 'infinity', true)",
		"$message, owner) VALUES ('m', 'private', '{}', 'jobqueue_service:$service', 'alice')",
		# not the service of a number that comes
		"$message) VALUES ('m', 'private', '{}', 'jobqueue_service:' || $service + 1000)",
		"INSERT INTO jobqueue_service_current VALUES ($service, 99, '2')",
		"INSERT INTO jobqueue_service (name, handler, owner) VALUES ('theirs', 'keep_state', 'alice')",
		"INSERT INTO jobqueue_service (name, handler) VALUES ('private', 'x') ON CONFLICT (name) DO UPDATE SET owner = 'writer'",
		"INSERT INTO jobqueue_lease VALUES (1, gen_random_uuid(), 'infinity')",
		"INSERT INTO jobqueue_consumer VALUES ('writer', '')")
	{
		like(sql_error($query, role => 'writer'), qr/permission denied|row-level security/, $query);
	}
	sql_as('writer', "UPDATE jobqueue_service_current SET state = '2'");
	sql_as('writer', 'DELETE FROM jobqueue_service_current; DELETE FROM jobqueue_service');
	foreach my $key ("'foo'", 'NULL', "'jobqueue_service:'", "'jobqueue_service:$service x'")
	{
		like(sql_error("$message) VALUES ('m', 'private', '{}', $key)"),
			qr/invalid value in column "key"/, "no message has the key $key");
	}
	like(sql_error(qq{INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, home, owner, priority, attempt, kind, state, queue, command, key)
			VALUES (99999999, now(), now(), jobqueue_home(), 'writer', 0, 0, 's', 'dead', 'default', 'SELECT 1', 'jobqueue_service:$service')},
			role => 'writer'),
		qr/reserved/, 'nor has a job that could be retried');
	like(sql_error("INSERT INTO jobqueue_service (name, handler, queue) VALUES ('mine', 'x', repeat('x', 200))",
			role => 'writer'), qr/invalid queue name/, 'no service has a queue that cannot be');
	# nor is a service by hand the one that will have that number
	my $next = sql('SELECT last_value FROM jobqueue_job_id_seq') + 1000;
	my $insert = q{INSERT INTO jobqueue_service (name, handler, id) VALUES ('mine', 'x', };
	cmp_ok(sql_as('writer', "$insert $next) RETURNING id"), '<', $next, 'no number of the future');
	sql_as('writer', "UPDATE jobqueue_service SET id = $next WHERE name = 'mine'");
	is(sql("SELECT count(*) FROM jobqueue_service WHERE id >= $next"), 0, 'nor later');
	sql("DELETE FROM jobqueue_service WHERE name = 'mine'");
	is(sql('SELECT name, status, state, handled, failed FROM jobqueue_services'), $as_it_was, 'nothing has changed');
	# superusers may write what they like: but a message is one of the service's owner
	my $theirs = sql("$message, owner) VALUES ('m', 'private', '{}', 'jobqueue_service:$service', 'bob') RETURNING id");
	wait_drained();
	is(sql("SELECT outcome, owner FROM jobqueue_recent WHERE id = $theirs"), 'completed|alice', 'as whom it was handled');
	sql_as('alice', q{SELECT jobqueue_stop_service('private')});
	wait_drained();
	sql('DELETE FROM jobqueue_archive; REVOKE pg_write_all_data, pg_read_all_data FROM writer');
};

property 'only what jobqueue_grant gives' => sub {
	sql('CREATE ROLE stranger LOGIN');
	foreach my $query (
		"SELECT jobqueue_enqueue('tell')", 'SELECT jobqueue_cancel(1)',
		'SELECT jobqueue_quiesce()', 'SELECT * FROM jobqueue_job',
		'SELECT jobqueue_adopt()', "SELECT jobqueue_grant('stranger', 'use')")
	{
		like(sql_error($query, role => 'stranger'), qr/permission denied/, $query);
	}
	sql("SELECT jobqueue_grant('stranger', 'use')");
	enqueue_as('stranger', 'tell');
	wait_drained();
	is(who(), 'stranger|stranger|off', 'use');
	foreach my $query (
		'SELECT jobqueue_quiesce()', 'SELECT * FROM jobqueue_job',
		'SELECT jobqueue_adopt()', "SELECT jobqueue_grant('stranger', 'admin')")
	{
		like(sql_error($query, role => 'stranger'), qr/permission denied/, $query);
	}
	sql("SELECT jobqueue_revoke('stranger', 'use')");
	like(sql_error("SELECT jobqueue_enqueue('tell')", role => 'stranger'),
		qr/permission denied/, 'revoked');
	sql('TRUNCATE who');
};

property 'jobs of others are neither seen nor cancelled' => sub {
	sql("SELECT jobqueue_grant('alice', 'monitor')");
	my $gate = close_gate(1);
	my $id = enqueue('gate', gate => 1, what => 'secret', key => 'secretkey');
	wait_at_gate(1);
	my $waiting = enqueue('note', what => 'secret', run_at => 'tomorrow');
	foreach my $view ('jobqueue_jobs', 'jobqueue_running', 'jobqueue_recent', 'jobqueue_history')
	{
		unlike(sql_as('mallory', "SELECT * FROM $view"), qr/secret/, "$view of a user")
		  if sql_error("SELECT * FROM $view", role => 'mallory') eq '';
		unlike(sql_as('alice', "SELECT * FROM $view"), qr/"secret"/, "$view of a monitor");
	}
	foreach my $job ($id, $waiting)
	{
		my $error = sql_error("SELECT jobqueue_cancel($job)", role => 'mallory');
		my $state = sql("SELECT state FROM jobqueue_jobs WHERE id = $job");
		like($state, qr/running|scheduled/, 'not cancelled');
	}
	open_gate($gate);
	sql("SELECT jobqueue_cancel($waiting)");
	wait_drained();
	forget();
};

# ---- roles that cannot run anything any more -------------------------------

property 'no CONNECT, no jobs' => sub {
	sql('SELECT jobqueue_quiesce()');
	my @ids = map { enqueue_as($_, 'tell', 'max_attempts => 3') } ('alice', 'bob', 'mallory');
	sql('REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO alice');
	sql('SELECT pg_terminate_backend(pid) FROM jobqueue_workers');
	wait_for('SELECT count(*) = 0 FROM jobqueue_workers');
	sql('SELECT jobqueue_resume()');
	wait_state($ids[1], 'dead');
	wait_state($ids[2], 'dead');
	wait_drained();
	is(who(), 'alice|alice|off', 'only who may connect');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $ids[2]"),
		qr/permission|connect/i, 'the error says why');
	sql('GRANT CONNECT ON DATABASE postgres TO PUBLIC');
	is(sql("SELECT jobqueue_retry($ids[1])"), 't', 'retry when they may again');
	wait_drained();
	is(sql('SELECT count(*) FROM who'), 2, 'it ran');
	sql('TRUNCATE who; DELETE FROM jobqueue_archive');
};

property 'a role that may no longer log in' => sub {
	sql('SELECT jobqueue_quiesce()');
	enqueue_as('alice', 'tell');
	sql('ALTER ROLE alice NOLOGIN');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(who(), 'alice|alice|off', 'its jobs run');
	sql('ALTER ROLE alice LOGIN; TRUNCATE who');
};

property 'a role renamed' => sub {
	sql('SELECT jobqueue_quiesce()');
	enqueue_as('bob', 'tell');
	sql('ALTER ROLE bob RENAME TO robert');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(who(), 'robert|robert|off', 'its jobs run');
	sql('ALTER ROLE robert RENAME TO bob; TRUNCATE who');
};

property 'a role dropped beside its idle worker' => sub {
	sql(q{CREATE ROLE leaver LOGIN; SELECT jobqueue_grant('leaver', 'use')});
	enqueue_as('leaver', 'tell');
	wait_drained();
	sql('SELECT jobqueue_quiesce()');
	my $id = enqueue_as('leaver', 'tell');
	sql('DROP OWNED BY leaver; DROP ROLE leaver');
	sql('SELECT jobqueue_resume()');
	wait_state($id, 'dead');
	wait_drained();
	is(sql('SELECT count(*) FROM who'), 1, 'not run');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/role/, 'the error says why');
	sql('TRUNCATE who; DELETE FROM jobqueue_archive');
};

property 'the server has not crashed in all this' => sub {
	unlike(PostgreSQL::Test::Utils::slurp_file(node()->logfile),
		qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

done_testing();
