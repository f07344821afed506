# Uniqueness across crashes, restarts, dumps, and at the moment of a start.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('unique');

# the jobs that are to hold a lock, and those that do
my $implied = <<'END';
SELECT coalesce(string_agg(id || ' ' || unique_key, ', ' ORDER BY id), '') FROM jobqueue_job
WHERE unique_key IS NOT NULL AND unique_until <> 'w' AND on_conflict <> 'R'
END
my $locks = <<'END';
SELECT coalesce(string_agg(job || ' ' || unique_key, ', ' ORDER BY job), '') FROM jobqueue_unique
END

sub locks_are_right
{
	my ($what, %opt) = @_;
	# in one statement: jobs may end meanwhile
	my ($got, $expected) = split /\|/, sql("SELECT ($locks), ($implied)", %opt), -1;
	is($got, $expected, $what);
}

sub unique
{
	my ($until, $conflict, %opt) = @_;
	return enqueue($opt{command} // 'note',
		unique_key => 'k', unique_until => $until, on_conflict => $conflict,
		map { $_ => $opt{$_} } grep { $_ ne 'command' } keys %opt);
}

sub no_locks
{
	is(sql('SELECT count(*) FROM jobqueue_unique'), 0, 'no lock is left');
}

# ---- the moment of a start --------------------------------------------------

paused_property 'what is being started counts as running' => sub {
	arm('worker-claimed');
	my $one = unique('executed', 'skip', what => 'one');

	caught('worker-claimed');
	is(unique('executed', $_, what => 'two'), '', "$_ does as skip") foreach ('replace', 'update', 'skip');
	is(unique('executed', 'join', what => 'two'), $one, 'join has its id');
	release('worker-claimed');
	wait_drained();
	is(ran(), 'one', 'it ran as it was');
	no_locks();
	forget();
};

foreach my $strategy ('replace', 'update')
{
	paused_property "until executing: $strategy waits for the start, and its job runs after it" => sub {
		arm('worker-claimed');
		my $one = unique('executing', 'skip', what => 'one');

		caught('worker-claimed');
		my $s = session();
		send_sql($s, qq{SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', unique_until => 'executing', on_conflict => '$strategy') > $one});
		wait_for(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%"two"%' AND state = 'active' AND wait_event = 'Extension'});
		release('worker-claimed');
		like($s->query('SELECT 1'), qr/t/, 'a job of its own');
		wait_drained();
		is(join(' ', sort split / /, ran()), 'one two', 'both ran');
		no_locks();
		forget();
	};
}

paused_property 'until executing: the lock is free before the job begins' => sub {
	my $gate = close_gate(1);
	my $one = unique('executing', 'skip', command => 'gate', gate => 1, what => 'one');

	wait_at_gate();
	no_locks();
	my $two = unique('executing', 'raise', what => 'two');

	wait_state($two, 'completed');
	is(ran(), 'two', 'the second one did not wait for the first');
	open_gate($gate);
	wait_drained();
	forget();
};

foreach my $strategy ('replace', 'update')
{
	paused_property "$strategy: the holder ends just before it is claimed" => sub {
		sql('SELECT jobqueue_quiesce()');
		my $one = unique('executed', 'skip', what => 'one');

		arm('unique-before-hold');
		my $s = session();
		send_sql($s, qq{SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', on_conflict => '$strategy') > $one});
		caught('unique-before-hold');
		sql('SELECT jobqueue_resume()');
		wait_for('SELECT count(*) = 1 FROM ran');
		release('unique-before-hold');
		like($s->query('SELECT 1'), qr/t/, 'a new job is enqueued');
		wait_drained();
		is(ran(), 'one two', 'both ran');
		no_locks();
		forget();
	};

	paused_property "$strategy: once it is claimed, no worker starts it" => sub {
		sql('SELECT jobqueue_quiesce()');
		my $one = unique('executed', 'skip', what => 'one');

		arm('unique-held');
		my $s = session();
		send_sql($s, qq{SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', on_conflict => '$strategy')});
		caught('unique-held');
		sql('SELECT jobqueue_resume()');
		wait_quiet();
		is(ran(), '', 'it does not run');
		release('unique-held');
		$s->query('SELECT 1');
		wait_drained();
		is(ran(), 'two', 'what it became runs');
		no_locks();
		forget();
	};
}

paused_property 'replace, until expired: the holder is replaced by another just before it is claimed' => sub {
	my @expired = (queue => 'p', unique_for => '1 hour');

	sql(q{SELECT jobqueue_pause('p')});
	unique('expired', 'skip', what => 'one', @expired);
	arm('unique-before-hold');
	my $s = session();
	send_sql($s, q{SELECT jobqueue_enqueue('note', '{"what": "three"}', queue => 'p', unique_key => 'k', unique_until => 'expired', unique_for => '1 hour', on_conflict => 'replace')});
	caught('unique-before-hold');
	unique('expired', 'replace', what => 'two', @expired);
	release('unique-before-hold');
	$s->query('SELECT 1');
	sql(q{SELECT jobqueue_resume('p')});
	wait_drained();
	is(ran(), 'three', 'the last one runs');
	sql('DELETE FROM jobqueue_archive; DELETE FROM jobqueue_unique');
	forget();
};

property 'what jobqueue_run runs counts as running' => sub {
	sql(<<'END');
CREATE FUNCTION again(args jsonb) RETURNS bigint LANGUAGE sql AS
	$$ SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', on_conflict => args->>'strategy') $$;
SELECT jobqueue_quiesce();
END
	foreach my $strategy ('replace', 'update')
	{
		my $one = unique('executed', 'skip', command => 'again', args => qq({"strategy": "$strategy"}));

		is(sql("SELECT coalesce(jobqueue_run($one), '0')"), 0, "$strategy does as skip");
	}
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'nothing was enqueued');
	no_locks();
	sql('SELECT jobqueue_resume(); DROP FUNCTION again');
};

property 'nobody waits for a job, however long its deferred triggers take' => sub {
	sql(<<'END');
CREATE TABLE slow (a int);
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION slow();
END
	foreach my $keep ('0', '1 hour')
	{
		my $gate = close_gate(1);
		my $one = unique('executed', 'skip', command => 'INSERT INTO slow VALUES (1)', keep => $keep);

		wait_at_gate();
		is(unique('executed', 'join', what => 'two'), $one, 'the answer is there at once');
		open_gate($gate);
		wait_drained();
		no_locks();
	}
	sql('DROP TABLE slow; DROP FUNCTION slow; DELETE FROM jobqueue_archive');
	forget();
};

property 'a lock that expires while its job runs is taken over' => sub {
	my $gate = close_gate(1);
	my $one = unique('executed', 'skip', command => 'gate', gate => 1, what => 'one', unique_for => '10 ms');

	wait_at_gate();
	wait_for('SELECT count(*) = 1 FROM jobqueue_unique WHERE expires_at < clock_timestamp()');
	my $s = session();
	$s->query_safe(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "two"}', unique_key => 'k', unique_for => '1 hour')});
	open_gate($gate);
	wait_state($one, 'completed');
	$s->query_safe('COMMIT');
	wait_drained();
	is(ran(), 'one two', 'the first did not wait for who took it');
	no_locks();
	forget();
};

# ---- two at once ------------------------------------------------------------

property 'while_executing: never two at once, under load' => sub {
	sql(<<'END');
CREATE TABLE together (k text, n int);
CREATE FUNCTION alone(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT pg_try_advisory_xact_lock(100 + (args->>'k')::int) THEN
		RAISE EXCEPTION 'two at once';
	END IF;
	INSERT INTO ran (what) VALUES ('alone');
END $$;
END
	my $h = start_pgbench(<<'END', clients => 4, transactions => 500);
\set k random(1, 3)
SELECT jobqueue_enqueue('alone', jsonb_build_object('k', :k), queue => 'w', unique_key => 'k' || :k,
	unique_until => (ARRAY['while_executing', 'until_and_while_executing'])[1 + :k % 2],
	on_conflict => (ARRAY['skip', 'reschedule'])[1 + :k / 3], unique_for => CASE WHEN :k = 3 THEN interval '1 ms' END)
END

	$h->finish;
	wait_drained();
	is(sql(q{SELECT count(*) FROM jobqueue_history WHERE state = 'dead' OR errors IS NOT NULL}), 0, 'none met another one');
	cmp_ok(sql('SELECT count(*) FROM ran'), '>', 0, 'some ran');
	no_locks();
	sql('DELETE FROM jobqueue_archive; DROP TABLE together; DROP FUNCTION alone');
	forget();
};

property 'while_executing: a job that the one before has enqueued is not refused' => sub {
	sql(<<'END');
CREATE FUNCTION chain(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('link');
	IF (args->>'n')::int > 1 THEN
		PERFORM jobqueue_enqueue('chain', jsonb_build_object('n', (args->>'n')::int - 1, 'until', args->>'until'),
			unique_key => 'k', unique_until => args->>'until', on_conflict => 'raise');
	END IF;
END $$;
END
	foreach my $until ('while_executing', 'until_and_while_executing')
	{
		unique($until, 'raise', command => 'chain', args => qq({"n": 200, "until": "$until"}));
		wait_drained();
		is(sql('SELECT count(*) FROM ran'), 200, $until);
		forget();
	}
	no_locks();
	sql('DROP FUNCTION chain');
};

paused_property 'while_executing: a job that comes after the commit of another is not refused' => sub {
	arm('worker-after-commit');
	my $one = unique('while_executing', 'raise', what => 'one');

	caught('worker-after-commit');
	my $two = unique('while_executing', 'raise', what => 'two');

	wait_state($two, 'completed');
	release('worker-after-commit');
	wait_drained();
	is(ran(), 'one two', 'both ran');
	forget();
};

property 'while_executing: the end of a worker frees it' => sub {
	my $gate = close_gate(1);
	my $one = unique('while_executing', 'skip', command => 'gate', gate => 1, what => 'one', max_attempts => 1);

	wait_at_gate();
	my $two = unique('while_executing', 'raise', what => 'two');

	wait_state($two, 'dead');
	sql("SELECT pg_terminate_backend(pid) FROM jobqueue_running WHERE id = $one");
	wait_state($one, 'dead');
	my $three = unique('while_executing', 'raise', what => 'three');

	wait_state($three, 'completed');
	open_gate($gate);
	is(ran(), 'three', 'another one runs');
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'roles with other isolation levels' => sub {
	sql(q{CREATE ROLE rr LOGIN; SELECT jobqueue_grant('rr', 'use');
		ALTER ROLE rr SET default_transaction_isolation = 'repeatable read';
		CREATE ROLE ser LOGIN; SELECT jobqueue_grant('ser', 'use');
		ALTER ROLE ser SET default_transaction_isolation = 'serializable';
		ALTER ROLE ser SET default_transaction_read_only = on});
	sql('GRANT SELECT, INSERT ON ran TO rr');
	foreach my $until ('executing', 'executed', 'while_executing', 'until_and_while_executing')
	{
		foreach my $keep ('0', '1 hour')
		{
			my $id = unique($until, 'skip', what => $until, role => 'rr', keep => $keep);

			wait_state($id, 'completed');
			$id = sql_as('ser', qq{SET default_transaction_read_only = off; SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE;
				SELECT jobqueue_enqueue('SELECT 1', unique_key => 'k', unique_until => '$until', keep => '$keep')});
			wait_state($id, 'completed');
		}
	}
	no_locks();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'another role holds the key: it can be joined, and neither replaced nor updated' => sub {
	sql('SELECT jobqueue_quiesce()');
	my $one = unique('executed', 'skip', what => 'one');

	is(unique('executed', 'join', what => 'two', role => 'rr'), $one, 'joined');
	foreach my $strategy ('replace', 'update')
	{
		like( sql_error("SELECT jobqueue_enqueue('note', unique_key => 'k', on_conflict => '$strategy')", role => 'rr'),
			qr/permission denied for job $one/, $strategy);
	}
	like(sql_error('SELECT * FROM jobqueue_unique', role => 'rr'), qr/permission denied/, 'the table is nobody\'s');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	no_locks();
	forget();
};

# ---- ends of all kinds ------------------------------------------------------

paused_property 'a job that finds no lock keeps none that has it from its start' => sub {
	my $one = unique('until_and_while_executing', 'skip', what => 'one', run_at => sql(q{SELECT clock_timestamp() + interval '1 hour'}));
	my $two = unique('until_and_while_executing', 'reschedule', what => 'two');

	arm('worker-unique-released');
	is(sql("SELECT jobqueue_reschedule($two, NULL)"), 't', 'one that waits for its lock');
	caught('worker-unique-released');
	is(sql("SELECT jobqueue_reschedule($one, NULL)"), 't', 'and the one that has it');
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE id = $one");
	is(ran(), 'one', 'that one ran');
	release('worker-unique-released');
	wait_state($two, 'scheduled');
	sql("SELECT jobqueue_reschedule($two, NULL)");
	wait_drained();
	is(ran(), 'one two', 'then the other one');
	no_locks();
	forget();
};

paused_property 'a job that is overtaken by one that has no lock gives back its own' => sub {
	my $one = unique('until_and_while_executing', 'skip', what => 'one', run_at => sql(q{SELECT clock_timestamp() + interval '1 hour'}));
	my $two = unique('until_and_while_executing', 'reschedule', what => 'two');
	my $gate = close_gate(1);

	sql("SELECT jobqueue_cancel($one)");
	arm('unique-asked');
	sql("SELECT jobqueue_reschedule($two, NULL)");
	caught('unique-asked');
	unique('while_executing', 'skip', command => 'gate', gate => 1, what => 'three');
	wait_at_gate();
	release('unique-asked');
	wait_state($two, 'scheduled');
	no_locks();
	is(sql("SELECT on_conflict FROM jobqueue_job WHERE id = $two"), 'R', 'and is to ask again');
	open_gate($gate);
	wait_for("SELECT count(*) = 1 FROM jobqueue_job");
	sql("SELECT jobqueue_reschedule($two, NULL)");
	wait_drained();
	is(ran(), 'three two', 'then it runs');
	no_locks();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'after the end of a worker the job has its lock, and no other' => sub {
	my $gate = close_gate(1);
	my $one = unique('executed', 'skip', command => 'gate', gate => 1, what => 'one');

	wait_at_gate();
	sql("SELECT pg_terminate_backend(pid) FROM jobqueue_running WHERE id = $one");
	wait_state($one, 'scheduled');
	locks_are_right('terminated');
	is(unique('executed', 'join', what => 'two'), $one, 'it waits for its next attempt, and holds it');
	wait_at_gate();
	my $offset = crash_offset();

	kill_hard(sql("SELECT pid FROM jobqueue_running WHERE id = $one"));
	wait_crash_restart($offset);
	locks_are_right('killed');
	wait_drained();
	is(ran(), 'one', 'it ran');
	no_locks();
	forget();
};

paused_property 'a crash between the release and the start' => sub {
	foreach my $until ('executing', 'until_and_while_executing')
	{
		arm('worker-unique-released');
		my $one = unique($until, 'skip', what => 'one');

		caught('worker-unique-released');
		my $two = unique($until, 'raise', what => 'two');

		node()->stop('immediate');
		node()->start;
		wait_drained();
		# both, unless they met, which "while" does not let happen
		is(sql('SELECT (SELECT count(*) FROM ran) + (SELECT count(*) FROM jobqueue_history)'), 2, 'none is lost');
		cmp_ok(sql('SELECT count(*) FROM ran'), '>', 0, 'nor are both refused');
		no_locks();
		sql('DELETE FROM jobqueue_archive');
		forget();
	}
};

property 'restarts: the locks are those of the jobs' => sub {
	sql(q{SELECT jobqueue_pause('p')});
	foreach my $until ('executing', 'executed', 'while_executing', 'until_and_while_executing')
	{
		enqueue('note', what => $until, queue => 'p', unique_key => $until, unique_until => $until);
	}
	enqueue('note', what => 'expired', queue => 'p', unique_key => 'expired', unique_until => 'expired', unique_for => '1 hour');
	enqueue('note', what => 'later', queue => 'p', unique_key => 'executed', on_conflict => 'reschedule');
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "prepared"}', queue => 'p', unique_key => 'prepared'); PREPARE TRANSACTION 'unique'});
	foreach my $mode ('fast', 'immediate')
	{
		node()->stop($mode);
		node()->start;
		locks_are_right($mode);
		is(sql('SELECT count(*) FROM jobqueue_unique'), 4, 'as many as before');
		is(enqueue('note', queue => 'p', unique_key => 'executed'), '', 'a duplicate is refused');
		like(sql_error(q{SET lock_timeout = '10ms'; SELECT jobqueue_enqueue('note', queue => 'p', unique_key => 'prepared')}),
			qr/lock timeout/, 'one that is prepared is waited for');
	}
	sql(q{COMMIT PREPARED 'unique'});
	is(enqueue('note', queue => 'p', unique_key => 'prepared'), '', 'and then refused');
	sql(q{UPDATE jobqueue_job SET run_at = clock_timestamp() WHERE on_conflict = 'R'});
	sql(q{SELECT jobqueue_resume('p')});
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 7, 'all ran');
	is(sql('SELECT unique_key FROM jobqueue_unique'), 'expired', 'what outlives its job is there');
	sql('UPDATE jobqueue_unique SET expires_at = clock_timestamp()');
	# each scheduler begins with it
	node()->restart;
	unique('executed', 'skip', what => 'wakes the scheduler', run_at => sql(q{SELECT clock_timestamp() + interval '0.1 s'}));
	wait_for('SELECT count(*) = 0 FROM jobqueue_unique');
	wait_drained();
	forget();
};

property 'kills under load: no lock is lost or left' => sub {
	sql(<<'END');
CREATE TABLE seen_twice (n bigint);
CREATE FUNCTION work() RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(0.002) $$;
END
	my $load = <<'END';
\set k random(1, 20)
\set u random(1, 4)
\set c random(1, 8)
BEGIN;
SELECT jobqueue_enqueue('work', queue => 'l', unique_key => 'k' || :k,
	unique_until => (ARRAY['executing', 'executed', 'executed', 'until_and_while_executing'])[:u],
	on_conflict => (ARRAY['skip', 'join', 'skip', 'replace', 'update', 'reject', 'reschedule', 'log'])[:c],
	unique_for => CASE WHEN :c = 7 THEN interval '10 ms' END);
INSERT INTO seen_twice SELECT count(*) FROM jobqueue_job j
	WHERE queue = 'l' AND unique_key = 'k' || :k AND unique_until = 'e' AND on_conflict NOT IN ('R', 'r') HAVING count(*) > 1;
END;
END
	foreach my $round (1 .. 5)
	{
		my $h = start_pgbench($load, clients => 4, transactions => 1000000);
		my $offset = crash_offset();
		my $pid = '';

		wait_for('SELECT count(*) > 50 FROM jobqueue_recent');
		while ($pid eq '')
		{
			$pid = sql('SELECT min(pid) FROM jobqueue_running WHERE NOT EXISTS (SELECT FROM jobqueue_job WHERE crashes > 0)');
		}
		kill_hard($pid);
		wait_crash_restart($offset);
		$h->finish;
	}
	sql('SELECT jobqueue_quiesce()');
	# a lock until the start may have gone before the crash
	is(sql(q{SELECT count(*) FROM jobqueue_job WHERE unique_until = 'e' AND on_conflict NOT IN ('R', 'r')
		AND id NOT IN (SELECT job FROM jobqueue_unique)}), 0, 'each that is to has its lock');
	is(sql('SELECT count(*) FROM jobqueue_unique WHERE job NOT IN (SELECT id FROM jobqueue_job)'), 0, 'no lock without a job');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	no_locks();
	is(sql('SELECT count(*) FROM seen_twice'), 0, 'no two jobs of a key were there at once');
	sql('DELETE FROM jobqueue_archive; DROP TABLE seen_twice; DROP FUNCTION work');
};

# ---- copies -----------------------------------------------------------------

property 'dump, restore, copy of a database: jobs keep their locks' => sub {
	sql(q{SELECT jobqueue_pause('p')});
	my $one = enqueue('note', what => 'one', queue => 'p', unique_key => 'k');

	enqueue('note', what => 'expired', queue => 'p', unique_key => 'x', unique_until => 'expired', unique_for => '1 hour');
	my $file = node()->basedir . '/unique.sql';

	node()->command_ok([ 'pg_dump', '-f', $file, 'postgres' ], 'dump');
	sql('CREATE DATABASE restored');
	node()->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $file, 'restored' ], 'restore');
	sql('CREATE DATABASE copied TEMPLATE postgres', db => 'template1');
	foreach my $db ('restored', 'copied')
	{
		locks_are_right($db, db => $db);
		is(sql('SELECT count(*) FROM jobqueue_unique', db => $db), 2, 'both are there');
		is(enqueue('note', queue => 'p', unique_key => 'k', db => $db), '', 'a job that is held refuses another one');
		is(enqueue('note', what => 'two', queue => 'p', unique_key => 'k', on_conflict => 'update', db => $db), $one, 'or is updated');
		sql(q{SELECT jobqueue_adopt(); SELECT jobqueue_resume('p')}, db => $db);
		wait_drained(db => $db);
		is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran", db => $db), 'expired two', 'adopted, they run');
		is(sql('SELECT unique_key FROM jobqueue_unique', db => $db), 'x', 'and let go');
		sql("DROP DATABASE $db WITH (FORCE)");
	}
	sql(q{SELECT jobqueue_resume('p')});
	wait_drained();
	is(sql('SELECT unique_key FROM jobqueue_unique'), 'x', 'nothing of that here');
	sql('DELETE FROM jobqueue_unique');
	forget();
};

# ---- tables that others have changed ----------------------------------------

property 'an index or trigger of others on the tables' => sub {
	sql(<<'END');
CREATE INDEX mine ON jobqueue_unique (job);
CREATE TABLE log (job bigint);
CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.log VALUES (NEW.id); RETURN NEW; END $$;
CREATE TRIGGER mine AFTER INSERT ON jobqueue_job FOR EACH ROW EXECUTE FUNCTION logged();
END
	sql('SELECT jobqueue_quiesce()');
	my $one = unique('executed', 'skip', what => 'one');

	is(unique('executed', 'skip', what => 'two'), '', 'refused');
	unique('executed', 'replace', what => 'three');
	is(sql('SET enable_seqscan = off; SELECT count(*) FROM jobqueue_unique WHERE job > 0'), 1, 'the index is kept');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(ran(), 'three', 'it ran');
	no_locks();
	# locks that are let go of, and taken, when the job starts
	sql(q{SELECT jobqueue_pause('p')});
	enqueue('note', what => 'four', queue => 'p', unique_key => 'y', unique_until => 'executing');
	my $later = enqueue('note', what => 'five', queue => 'p', unique_key => 'y', unique_until => 'executing', on_conflict => 'reschedule');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $later"), 'scheduled', 'it waits for its lock');
	sql(q{SELECT jobqueue_resume('p')});
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'four'});
	sql(q{SELECT jobqueue_reschedule_where(NULL, 'scheduled', NULL, NULL, true)});
	wait_drained();
	is(ran(), 'three four five', 'they ran, too');
	no_locks();
	sql('DROP TRIGGER mine ON jobqueue_job; DROP INDEX mine; DROP TABLE log; DROP FUNCTION logged; DELETE FROM jobqueue_archive');
	unique('executing', 'skip', what => 'plain again');
	wait_drained();
	no_locks();
	sql(q{INSERT INTO jobqueue_unique VALUES ('default', 'x', 1, 'e')});
	sql('TRUNCATE jobqueue_job');
	like(enqueue('note', what => 'x', unique_key => 'x'), qr/^\d+$/, 'a lock without a job is nobody\'s');
	wait_drained();
	no_locks();
	forget();
};

node()->stop;
done_testing();
