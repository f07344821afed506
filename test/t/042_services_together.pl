# Services with isolation levels, prepared transactions, crashes; restart
# policies and intensity; timers.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;
use Time::HiRes qw(usleep);

new_node('services_together');
sql(<<'END');
CREATE TABLE effects (n int GENERATED ALWAYS AS IDENTITY, service text, i int);
GRANT ALL ON effects TO PUBLIC;
CREATE SEQUENCE tried;
GRANT ALL ON SEQUENCE tried TO PUBLIC;
CREATE FUNCTION act(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'init' THEN
		RETURN state || jsonb_build_object('name', message->'init');
	ELSIF message ? 'i' THEN
		INSERT INTO effects (service, i) VALUES (state->>'name', (message->>'i')::int);
		state := jsonb_set(state, '{n}', to_jsonb((state->>'n')::int + 1));
	END IF;
	IF message ? 'gate' THEN
		PERFORM pg_advisory_xact_lock_shared((message->>'gate')::bigint);
	ELSIF message ? 'fail' THEN
		-- as often as it says
		IF nextval('tried') <= (message->>'fail')::int THEN
			RAISE 'try %', currval('tried');
		END IF;
	ELSIF message ? 'crash' THEN
		COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID';
	END IF;
	RETURN state;
END $$;
END

sub start
{
	my ($name, $more) = @_;
	return sql("SELECT jobqueue_start_service('$name', 'act', '{\"n\": 0}'" . ($more ? ", $more" : '') . ')');
}

sub status
{
	my ($name) = @_;
	return sql("SELECT status, state->>'n', waiting, failed FROM jobqueue_services WHERE name = '$name'");
}

sub status_is
{
	my ($name, $status) = @_;
	wait_for("SELECT status = '$status' FROM jobqueue_services WHERE name = '$name'");
}

# each once, in the order in which they were sent
sub effects_are
{
	my ($name, $from, $to) = @_;
	is(sql("SELECT string_agg(i::text, ' ' ORDER BY n) FROM effects WHERE service = '$name'"),
		join(' ', $from .. $to), "effects of $name: once, in order");
}

# ---- transactions -----------------------------------------------------------

property a_prepared_transaction_sends_starts_and_stops_when_it_commits => sub {
	start('old');
	start('p');
	sql(q{SELECT jobqueue_send('old', '{"i": 1}')});
	wait_drained();
	sql(<<'END');
BEGIN;
SELECT jobqueue_send('p', '{"i": 1}');
SELECT jobqueue_send('p', '{"i": 2}');
SELECT jobqueue_start_service('new', 'act', '{"n": 0}');
SELECT jobqueue_send('new', '{"i": 1}');
SELECT jobqueue_stop_service('old');
PREPARE TRANSACTION 'a';
END
	sql(<<'END');
BEGIN;
SELECT jobqueue_send('p', '{"i": 1000}');
SELECT jobqueue_start_service('never', 'act', '{}');
PREPARE TRANSACTION 'b';
END
	sql(q{ROLLBACK PREPARED 'b'});
	is(sql(q{SELECT string_agg(name || ' ' || status, ',' ORDER BY name) FROM jobqueue_services}),
		'old running,p running', 'nothing yet');
	node()->restart;
	wait_drained();
	sql(q{COMMIT PREPARED 'a'});
	wait_drained();
	is(sql(q{SELECT string_agg(name || ' ' || status, ',' ORDER BY name) FROM jobqueue_services}),
		'new running,p running', 'one is there, one is gone');
	effects_are('p', 1, 2);
	effects_are('new', 1, 1);
	effects_are('old', 1, 1);
};

property a_change_after_the_snapshot_is_a_serialization_failure => sub {
	my $s = session();

	start('rr', 'max_restarts => 0');
	wait_drained();
	foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
	{
		# it has failed meanwhile
		$s->query("BEGIN ISOLATION LEVEL $level; SELECT 1");
		sql(q{SELECT setval('tried', 1)});
		my $bad = sql(q{SELECT jobqueue_send('rr', '{"fail": 2}')});
		status_is('rr', 'failed');
		$s->query(q{SAVEPOINT s; SET LOCAL statement_timeout = '2min'});
		foreach my $call (q{jobqueue_stop_service('rr')}, q{jobqueue_start_service('rr', 'act', '{}')})
		{
			$s->query("DO \$\$ BEGIN PERFORM $call; PERFORM set_config('my.error', 'none', false);
				EXCEPTION WHEN OTHERS THEN PERFORM set_config('my.error', SQLSTATE, false); END \$\$");
			is($s->query(q{SELECT current_setting('my.error')}), '40001', "$level: $call");
		}
		# a message is left to it
		ok($s->query(q{SELECT jobqueue_send('rr', '{"i": 1}') > 0}) eq 't', 'sent');
		$s->query('COMMIT');
		# it was started again meanwhile
		$s->query("BEGIN ISOLATION LEVEL $level; SELECT 1");
		start('rr', 'max_restarts => 0');
		wait_drained();
		$s->query("DO \$\$ BEGIN PERFORM jobqueue_stop_service('rr'); PERFORM set_config('my.error', 'none', false);
			EXCEPTION WHEN OTHERS THEN PERFORM set_config('my.error', SQLSTATE, false); END \$\$");
		is($s->query(q{SELECT current_setting('my.error')}), '40001', "$level: stop of one that runs again");
		$s->query('ROLLBACK');
	}
	is(status('rr'), 'running|2|0|2', 'as it should be');
};

property handlers_and_senders_at_any_isolation_level => sub {
	foreach my $level ('repeatable read', 'serializable')
	{
		my $role = $level =~ s/\W.*//r;

		sql(qq{CREATE ROLE "$role" LOGIN; SELECT jobqueue_grant('"$role"', 'use');
			ALTER ROLE "$role" SET default_transaction_isolation = '$level';
			ALTER ROLE "$role" SET default_transaction_deferrable = on});
		sql_as($role, qq{SELECT jobqueue_start_service('$role' || s, 'act', '{"n": 0}') FROM generate_series(1, 4) s});
		my $load = start_pgbench(qq{SELECT jobqueue_send('$role' || s, '{"i": 0}') FROM generate_series(1, 4) s;\n},
			clients => 3, transactions => 40, role => $role, options => ['--max-tries=1000']);
		$load->finish;
		wait_drained();
		is(sql_as($role, q{SELECT DISTINCT status, state->>'n', failed FROM jobqueue_services}), 'running|120|0', "$level: all handled");
		is(sql("SELECT count(*) FROM effects WHERE service LIKE '$role%'"), 480, 'once');
		like(sql_as($role, "CALL jobqueue_call('${role}1', '{}', NULL, '1 minute'); SELECT 'called'"), qr/called/, 'a call');
	}
};

property an_old_snapshot_costs_a_service_nothing => sub {
	my $old = session();

	start('hot');
	wait_drained();
	$old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	sql('SELECT pg_stat_reset()');
	sql(q{SELECT jobqueue_send('hot', '{"i": 0}') FROM generate_series(1, 300)});
	wait_drained();
	sql(q{SELECT jobqueue_service_state('hot')});
	# told when a worker is idle, or ends; what a look has to pass by is counted
	wait_for(q{SELECT idx_scan >= 600 FROM pg_stat_user_indexes WHERE indexrelname = 'jobqueue_service_current_pkey'});
	is(sql(q{SELECT idx_tup_read < 5 * idx_scan FROM pg_stat_user_indexes
		WHERE indexrelname = 'jobqueue_service_current_pkey'}), 't', 'the newest version is the first that is found');
	is(sql(q{SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'jobqueue_service'}), '0', 'what senders look at does not change');
	$old->query('ROLLBACK');
	is(status('hot'), 'running|300|0|0', 'all handled');
};

property a_stop_that_has_not_committed_keeps_no_worker => sub {
	my $s = session();

	start('busy');
	wait_drained();
	$s->query(q{BEGIN; SELECT jobqueue_stop_service('busy')});
	sql(q{SELECT jobqueue_send('busy', '{"i": 1}')});
	wait_drained();
	effects_are('busy', 1, 1);
	$s->query('ROLLBACK');
	is(status('busy'), 'running|1|0|0', 'goes on');
};

# ---- crashes ----------------------------------------------------------------

property what_a_killed_worker_had_begun_is_done_once => sub {
	start('k');
	wait_drained();
	for my $how ('worker', 'worker', 'server')
	{
		my $gate = close_gate(7);
		my $crash;

		sql(q{TRUNCATE effects; UPDATE jobqueue_service_current SET state = '{"n": 0, "name": "k"}'
			FROM jobqueue_service s WHERE s.id = service AND s.name = 'k'});
		sql(q{SELECT jobqueue_send('k', jsonb_build_object('i', i) || CASE i WHEN 25 THEN jsonb '{"gate": 7}' ELSE '{}' END)
			FROM generate_series(1, 50) i});
		wait_at_gate(1);
		is(status('k'), 'running|24|26|0', 'in the middle of a message');
		if ($how eq 'worker')
		{
			$crash = crash_offset();
			kill_hard(sql(q{SELECT jobqueue_whereis_service('k')}));
			wait_crash_restart($crash);
		}
		else
		{
			node()->kill9;
			$crash = crash_offset();
			# its children have to go first
			for (1 .. 1200)
			{
				last if node()->start(fail_ok => 1);
				node()->{_pid} = undef;
				usleep(100_000);
			}
			wait_crash_restart($crash);
		}
		wait_drained();
		is(status('k'), 'running|50|0|0', "after the end of the $how");
		effects_are('k', 1, 50);
	}
};

property a_message_that_crashes_the_server_is_dropped => sub {
	start('poison');
	start('poison_tmp', q{'temporary'});
	wait_drained();
	foreach my $name ('poison', 'poison_tmp')
	{
		my $crash = crash_offset();

		# the first of these ends the session; also this one, if it is quick
		node()->psql('postgres', qq{SELECT jobqueue_send('$name', '{"crash": 1}'),
			(SELECT count(jobqueue_send('$name', jsonb_build_object('i', i))) FROM generate_series(1, 3) i)});
		wait_crash_restart($crash);
		node()->wait_for_log(qr/is dead: the server crashed twice/, $crash);
		wait_drained();
	}
	is(status('poison'), 'running|3|0|1', 'it counts as a failure, and later ones are handled');
	effects_are('poison', 1, 3);
	is(status('poison_tmp'), '', 'a temporary service ends');
	sql(q{SELECT jobqueue_purge('default', 'dead')});
};

# ---- supervision ------------------------------------------------------------

property more_than_max_restarts_failures_within_the_period_and_it_has_failed => sub {
	foreach my $max (0, 1, 4)
	{
		start("max$max", "max_restarts => $max, within => '1 hour'");
		sql(q{SELECT setval('tried', 1)});
		sql(qq{SELECT jobqueue_send('max$max', '{"fail": 1000}')});
		status_is("max$max", 'failed');
		is(sql(q{SELECT last_value - 1 FROM tried}), $max + 1, "max_restarts $max: tried once more than that");
		sql(qq{SELECT jobqueue_send('max$max', '{"i": 1}')});
		# the operator: what is wrong is mended, and it is started again
		sql(q{SELECT setval('tried', 1000)});
		start("max$max", "max_restarts => $max, within => '1 hour'");
		wait_drained();
		is(status("max$max"), 'running|1|0|' . ($max + 1), 'goes on with the same message');
	}
	# the failures before do not count any more
	sql(q{SELECT setval('tried', 1)});
	sql(q{SELECT jobqueue_send('max4', '{"fail": 5}')});
	wait_drained();
	is(status('max4'), 'running|1|0|9', 'as many again');
};

property failures_outside_the_period_do_not_count => sub {
	start('brief', q{max_restarts => 1, within => '0.000001 s'});
	sql(q{SELECT setval('tried', 1)});
	sql(q{SELECT jobqueue_send('brief', '{"fail": 12}')});
	wait_drained();
	is(status('brief'), 'running|0|0|11', 'tried until it was good');
};

property transient_drops_what_failed_and_counts_it => sub {
	start('tr', q{'transient', max_restarts => 2, within => '1 hour'});
	sql(q{SELECT setval('tried', 1)});
	sql(q{SELECT jobqueue_send('tr', '{"fail": 1000}') FROM generate_series(1, 2)});
	sql(q{SELECT jobqueue_send('tr', '{"i": 1}')});
	wait_drained();
	is(status('tr'), 'running|1|0|2', 'as often as it may');
	sql(q{SELECT jobqueue_send('tr', '{"fail": 1000}')});
	status_is('tr', 'failed');
	sql(q{SELECT jobqueue_send('tr', '{"i": 2}')});
	is(sql(q{SELECT last_value - 1 FROM tried}), 3, 'each was tried once');
	is(sql(q{SELECT count(*), min(reason) FROM jobqueue_history WHERE command = 'tr' AND state = 'dead'}),
		'3|service "tr" dropped it', 'in the history');
	start('tr', q{'transient'});
	wait_drained();
	effects_are('tr', 1, 2);
};

property temporary_ends_at_the_first_failure => sub {
	start('tm', q{'temporary', max_restarts => 100});
	sql(q{SELECT setval('tried', 1)});
	sql(q{SELECT jobqueue_send('tm', '{"i": 1}'), jobqueue_send('tm', '{"fail": 1000}'),
		jobqueue_send('tm', '{"i": 2}'), jobqueue_send('tm', '{"i": 3}', 'tomorrow')});
	wait_drained();
	is(status('tm'), '', 'gone');
	effects_are('tm', 1, 1);
	is(sql(q{SELECT string_agg(state, ' ' ORDER BY id) FROM jobqueue_history WHERE command = 'tm'}),
		'dead cancelled cancelled', 'what has become of its messages');
	like(sql_error(q{SELECT jobqueue_send('tm', '{}')}), qr/service "tm" does not exist/, 'unknown now');
};

# ---- timers -----------------------------------------------------------------

property timers_come_when_they_are_due => sub {
	start('time');
	wait_drained();
	# a gate keeps them apart from the speed of the machine
	sql(<<'END');
SELECT jobqueue_send('time', '{"i": 5}', clock_timestamp() + '4.5 s'),
	jobqueue_send('time', '{"i": 3}', clock_timestamp() + '0.5 s'),
	jobqueue_send('time', '{"i": 4}', clock_timestamp() + '2.5 s'),
	jobqueue_send('time', '{"i": 1}', clock_timestamp() - interval '1 s'),
	jobqueue_send('time', '{"i": 2}'),
	jobqueue_send('time', '{"i": 6}', 'tomorrow')
END
	wait_for(q{SELECT count(*) = 5 FROM effects WHERE service = 'time'});
	effects_are('time', 1, 5);
	is(status('time'), 'running|5|1|0', 'one is still to come');
	# over a restart, those that have become due meanwhile in the order of their ids
	sql(q{SELECT jobqueue_pause('default')});
	sql(q{SELECT jobqueue_send('time', '{"i": 6}', clock_timestamp() + '20 ms'),
		jobqueue_send('time', '{"i": 7}', clock_timestamp() + '10 ms'), jobqueue_send('time', '{"i": 8}')});
	node()->restart;
	wait_for(q{SELECT bool_and(run_at < clock_timestamp() OR run_at = 'tomorrow') FROM jobqueue_job});
	sql(q{SELECT jobqueue_resume('default')});
	wait_for(q{SELECT count(*) = 8 FROM effects WHERE service = 'time'});
	effects_are('time', 1, 8);
	# its timers end with it
	sql(q{SELECT jobqueue_stop_service('time')});
	wait_drained();
	is(status('time'), '', 'gone');
};

done_testing();
