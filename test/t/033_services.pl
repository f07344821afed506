# Services: exactly once over crashes, idle ones cost nothing, failed ones wait.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('services');
sql(<<'END');
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, service text, i int);
CREATE FUNCTION count_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'init' THEN
		RETURN state || jsonb_build_object('name', message->'init');
	ELSIF message ? 'fail' THEN
		RAISE 'no';
	ELSIF message ? 'hold' THEN
		PERFORM pg_advisory_xact_lock(1);
	ELSIF message ? 'die' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(60);
	ELSIF message ? 'i' THEN
		INSERT INTO log (service, i) VALUES (state->>'name', (message->>'i')::int);
		RETURN jsonb_set(state, '{n}', to_jsonb((state->>'n')::int + 1));
	END IF;
	RETURN state;
END $$;
END

property messages_are_handled_once_and_in_order_over_crashes => sub {
	sql(q{SELECT jobqueue_start_service('s' || s, 'count_up', '{"n": 0}')
		FROM generate_series(1, 5) s});
	sql(q{SELECT jobqueue_send('s' || s, jsonb_build_object('i', i))
		FROM generate_series(1, 1000) i, generate_series(1, 5) s});
	my $handled = 1;
	foreach (1 .. 2)
	{
		# not twice in one message: that would be dropped
		wait_for("SELECT count(*) >= $handled FROM log");
		$handled = sql('SELECT count(*) + 300 FROM log');
		my $crash = crash_offset();
		kill_hard(sql(q{SELECT pid FROM jobqueue_workers LIMIT 1})
			  || sql(q{SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
				AND backend_type = 'checkpointer'}));
		wait_crash_restart($crash);
	}
	wait_drained();
	is(sql(q{SELECT string_agg(name || ' ' || (state->>'n'), ',' ORDER BY name) FROM jobqueue_services}),
		's1 1000,s2 1000,s3 1000,s4 1000,s5 1000', 'each counts all');
	is(sql(q{SELECT count(*), count(DISTINCT (service, i)) FROM log}), '5000|5000', 'once');
	is(sql(q{SELECT count(*) FROM (SELECT i - lag(i) OVER (PARTITION BY service ORDER BY n) AS d FROM log) x WHERE d <> 1}),
		'0', 'in order');
};

property a_failed_service_stays_failed_over_restarts => sub {
	sql(q{SELECT jobqueue_start_service('f', 'count_up', '{"n": 0}', max_restarts => 1)});
	sql(q{SELECT jobqueue_send('f', '{"fail": 1}')});
	wait_for(q{SELECT status = 'failed' FROM jobqueue_services WHERE name = 'f'});
	sql(q{SELECT jobqueue_send('f', jsonb_build_object('i', i)) FROM generate_series(1, 50) i});
	node()->restart;
	sql(q{SELECT jobqueue_send('f', '{"i": 51}')});
	sql(q{SELECT jobqueue_enqueue('SELECT 1')});
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_recent WHERE outcome = 'completed'});
	is(sql(q{SELECT status, state->>'n', waiting FROM jobqueue_services WHERE name = 'f'}),
		'failed|0|52', 'all wait');
	sql(q{SELECT jobqueue_cancel(id) FROM jobqueue_jobs WHERE args ? 'fail'});
	sql(q{SELECT jobqueue_start_service('f', 'count_up', '{}')});
	wait_drained();
	is(sql(q{SELECT status, state->>'n' FROM jobqueue_services WHERE name = 'f'}),
		'running|51', 'handled when it was started again');
	sql(q{SELECT jobqueue_stop_service('f')});
	wait_drained();
};

property a_message_that_ends_its_worker_counts_as_a_failure => sub {
	sql(q{SELECT jobqueue_start_service('t', 'count_up', '{"n": 0}', 'transient')});
	sql(q{SELECT jobqueue_send('t', '{"die": 1}'), jobqueue_send('t', '{"i": 1}')});
	wait_drained();
	is(sql(q{SELECT status, state->>'n', failed FROM jobqueue_services WHERE name = 't'}),
		'running|1|1', 'dropped, and the next one handled');
};

property a_service_is_found_where_it_handles_a_message => sub {
	my $gate = session();
	$gate->query(q{SELECT pg_advisory_lock(1)});
	sql(q{SELECT jobqueue_send('t', '{"hold": 1}')});
	wait_for(q{SELECT jobqueue_whereis_service('t') IS NOT NULL});
	is(sql(q{SELECT jobqueue_whereis_service('t') = pid FROM jobqueue_running}), 't', 'in the worker');
	is(sql(q{SELECT pid = jobqueue_whereis_service('t') FROM jobqueue_services WHERE name = 't'}),
		't', 'so the view says');
	# a stop does not wait for it
	sql(q{SELECT jobqueue_stop_service('t')});
	is(sql(q{SELECT status FROM jobqueue_services WHERE name = 't'}), 'stopping', 'stopping');
	$gate->query(q{SELECT pg_advisory_unlock(1)});
	wait_drained();
	is(sql(q{SELECT count(*) FROM jobqueue_services WHERE name = 't'}), '0', 'gone');
};

property a_call_that_runs_into_its_timeout_has_sent_its_message => sub {
	my $gate = session();
	$gate->query(q{SELECT pg_advisory_lock(1)});
	sql(q{SELECT jobqueue_send('s1', '{"hold": 1}')});
	like(sql_error(q{CALL jobqueue_call('s1', '{"i": 900}', NULL, '0.1 s')}), qr/has not replied in time/, 'an error');
	$gate->query(q{SELECT pg_advisory_unlock(1)});
	wait_drained();
	is(sql(q{SELECT jobqueue_service_state('s1')->>'n'}), '1001', 'handled later');
};

property a_call_holds_no_snapshot_while_it_waits => sub {
	sql(<<'END');
CREATE FUNCTION answer_long(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock(1);
	RETURN jsonb_build_object('state', state, 'reply', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i));
END $$;
SELECT jobqueue_start_service('long', 'answer_long', '{}');
END
	wait_drained();
	foreach my $level ('read committed', 'repeatable read', 'serializable')
	{
		my ($gate, $s) = (session(), session());
		$gate->query(q{SELECT pg_advisory_lock(1)});
		my $pid = $s->query_safe("SET deadlock_timeout = '20 ms'; SET default_transaction_isolation = '$level'; SELECT pg_backend_pid()");
		send_sql($s, q{CALL jobqueue_call('long', '{}', NULL, '1 min')});
		# it has looked for cycles meanwhile
		wait_for("SELECT backend_xmin IS NULL AND wait_event_type = 'Extension' AND clock_timestamp() > query_start + interval '0.2 s' FROM pg_stat_activity WHERE pid = $pid");
		$gate->query(q{SELECT pg_advisory_unlock(1)});
		like($s->query_safe('SHOW transaction_isolation'), qr/^"\w{32000}"\n$level$/, "$level: a long reply, and the level is what it was");
		$_->quit foreach $gate, $s;
	}
};

property ten_thousand_idle_services_cost_nothing => sub {
	sql(q{SELECT jobqueue_start_service('idle' || i, 'count_up', '{"n": 0}') FROM generate_series(1, 10000) i});
	wait_drained();
	is(sql(q{SELECT count(*) FROM jobqueue_keys}), '0', 'no keys');
	memory_empties('nothing in memory');
	sql(q{SELECT jobqueue_send('idle777', '{"i": 1}')});
	wait_drained();
	is(sql(q{SELECT jobqueue_service_state('idle777')->>'n'}), '1', 'and each is there');
};

property a_dump_has_services_and_their_messages => sub {
	sql(q{SELECT jobqueue_send('s1', '{"i": 1000}', 'tomorrow')});
	my $dump = node()->basedir . '/services.sql';
	node()->command_ok([ 'pg_dump', '-f', $dump, '-d', node()->connstr('postgres') ], 'dump');
	node()->safe_psql('postgres', 'CREATE DATABASE copy');
	node()->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump,
			'-d', node()->connstr('copy') ], 'restore');
	is(node()->safe_psql('copy', q{SELECT state->>'n', waiting FROM jobqueue_services WHERE name = 's1'}),
		'1001|1', 'as it was');
	is(node()->safe_psql('copy', q{SELECT state FROM jobqueue_jobs WHERE command = 's1'}), 'held', 'held');
};

done_testing();
