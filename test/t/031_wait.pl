# jobqueue_wait(): told once a job has ended, never before that is durable.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('wait', streaming => 1, conf => "jobqueue.max_workers = 2\njobqueue.max_workers_per_role = 2\n");
sql(<<'END');
CREATE FUNCTION answer(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT args $$;
CREATE FUNCTION parent(args jsonb) RETURNS text LANGUAGE sql AS
	$$ SELECT state FROM jobqueue_wait((args->>'child')::bigint, '3 minutes') $$;
CREATE ROLE one LOGIN;
CREATE ROLE other LOGIN;
SELECT jobqueue_grant('one', 'use'), jobqueue_grant('other', 'use');
END

# until so many sessions sleep in jobqueue_wait()
sub wait_asleep
{
	my ($count) = @_;
	wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
		AND query LIKE '%jobqueue_wait%' AND query NOT LIKE '%pg_stat_activity%' AND wait_event_type = 'Extension'}, $count);
}

property 'how a job ended: completed, dead, cancelled' => sub {
	my $id = enqueue('answer', args => '{"a": 1}');
	is(sql("SELECT * FROM jobqueue_wait($id)"), "$id|completed|{\"a\": 1}|", 'result');
	wait_drained();
	is(sql("SELECT * FROM jobqueue_wait($id)"), "$id|completed|{\"a\": 1}|", 'of one that has ended before');
	$id = enqueue('fail', what => 'x', max_attempts => 1);
	is(sql("SELECT state, error FROM jobqueue_wait($id)"), 'dead|failed on purpose', 'error');
	$id = enqueue('note', run_at => '2100-01-01', what => 'x');
	my $s = session();
	send_sql($s, "SELECT state, error FROM jobqueue_wait($id)");
	wait_asleep(1);
	sql("SELECT jobqueue_cancel($id)");
	like($s->query('SELECT 1'), qr/cancelled\|cancelled/, 'cancelled by a session');
	$s->quit;
	forget();
};

property 'after the timeout the state is null' => sub {
	my $id = enqueue('note', run_at => '2100-01-01', what => 'x');
	is(sql("SELECT * FROM jobqueue_wait($id, '10 ms')"), "$id|||", 'one');
	is(sql("SELECT * FROM jobqueue_wait($id, '0')"), "$id|||", 'no wait');
	is(sql("SELECT * FROM jobqueue_wait(ARRAY[$id, $id], '0')"), "$id|||\n$id|||", 'many');
	is(sql("SELECT * FROM jobqueue_wait(ARRAY[$id], '0', any_of => true)"), '|||', 'any');
	sql("SELECT jobqueue_cancel($id)");
	forget();
};

property 'many: all of them, or the first' => sub {
	my $gate = close_gate(1);
	my $slow = enqueue('gate', gate => 1);
	my $fast = enqueue('answer', args => '2');
	is(sql("SELECT * FROM jobqueue_wait(ARRAY[$slow, $fast], any_of => true)"), "$fast|completed|2|", 'the first');
	my $s = session();
	send_sql($s, "SELECT id, state FROM jobqueue_wait(ARRAY[$slow, $fast])");
	wait_asleep(1);
	open_gate($gate);
	like($s->query('SELECT 1'), qr/$slow\|completed\n$fast\|completed/, 'all, in order');
	is(sql("SELECT count(*) FROM jobqueue_wait(ARRAY[]::bigint[])"), 0, 'none');
	$s->quit;
	forget();
};

property 'large results are there with keep, else a clear error' => sub {
	my $text = 'x' x 600;
	my $id = enqueue('answer', args => "\"$text\"");
	like(sql_error("SELECT jobqueue_wait($id)"), qr/its result was not kept.*HINT:/s, 'not kept');
	$id = enqueue('answer', args => "\"$text\"", keep => '1 hour');
	is(sql("SELECT length(result #>> '{}') FROM jobqueue_wait($id)"), 600, 'kept');
	my $fits = 'x' x 498;
	$id = enqueue('answer', args => "\"$fits\"");
	is(sql("SELECT length(result #>> '{}') FROM jobqueue_wait($id)"), 498, '500 bytes');
	forget();
};

property 'errors' => sub {
	like(sql_error("SELECT jobqueue_wait(jobqueue_enqueue('note'), '1 hour')"), qr/before this transaction has committed/, 'own');
	like(sql_error('SELECT jobqueue_wait(1000000)'), qr/does not exist/, 'unknown');
	like(sql_error('SELECT jobqueue_wait(NULL::bigint)'), qr/must not be null/, 'null');
	like(sql_error("SELECT jobqueue_wait(1, '-1 s')"), qr/must not be negative/, 'negative');
	my $id = enqueue('note', run_at => '2100-01-01', what => 'x', role => 'one');
	like(sql_error("SELECT jobqueue_wait($id)", role => 'other'), qr/permission denied for job/, 'of another role');
	sql("SELECT jobqueue_cancel($id)");
	like(sql_error("SELECT jobqueue_wait($id)", role => 'other'), qr/permission denied for job/, 'in the history');
	$id = enqueue('SELECT jobqueue_wait((jobqueue_current()).id)', max_attempts => 1);
	like(sql("SELECT error FROM jobqueue_wait($id)"), qr/cannot wait for itself/, 'itself');
	forget();
};

property 'cancel, statement_timeout, terminate end a wait, and leave no trace' => sub {
	my $id = enqueue('note', run_at => '2100-01-01', what => 'x');
	like(sql_error("SET statement_timeout = 50; SELECT jobqueue_wait($id)"), qr/statement timeout/, 'timeout');
	foreach my $how ('pg_cancel_backend', 'pg_terminate_backend')
	{
		my $s = session();
		send_sql($s, "SELECT jobqueue_wait($id, '1 hour')");
		wait_asleep(1);
		sql("SELECT $how(pid) FROM pg_stat_activity WHERE query LIKE '%jobqueue_wait%' AND pid <> pg_backend_pid()");
		wait_asleep(0);
	}
	# no cell is left: all of them can be taken
	is(sql("SELECT count(*) FROM jobqueue_wait(array_fill($id, ARRAY[1000]), '0')"), 1000, 'cells') for 1 .. 5;
	sql("SELECT jobqueue_cancel($id)");
	forget();
};

paused_property 'an end between the look and the sleep is not missed' => sub {
	foreach my $point ('wait-registered', 'wait-before-sleep')
	{
		my $gate = close_gate(1);
		my $id = enqueue('gate', gate => 1);
		my $s = session();
		wait_at_gate(1);
		arm($point);
		send_sql($s, "SELECT state FROM jobqueue_wait($id, '1 hour')");
		caught($point);
		open_gate($gate);
		wait_drained();
		release($point);
		like($s->query('SELECT 1'), qr/completed/, $point);
		$s->quit;
	}
	forget();
};

paused_property 'a row that is gone before its end is told' => sub {
	my ($id, $s) = (undef, session());
	arm('worker-after-commit');
	$id = enqueue('answer', args => '7');
	caught('worker-after-commit');
	send_sql($s, "SELECT state, result FROM jobqueue_wait($id)");
	wait_asleep(1);
	release('worker-after-commit');
	like($s->query('SELECT 1'), qr/completed\|7/, 'told');
	$s->quit;
	forget();
};

property 'jobs that wait do not starve the pool' => sub {
	# two workers, both wait for jobs that only a third one can run
	sql("SELECT jobqueue_configure('child'), jobqueue_pause('child')");
	my @child = map { enqueue('note', what => 'c', queue => 'child') } 1 .. 2;
	my @parent = map { enqueue('parent', args => "{\"child\": $_}") } @child;
	# both have their place among those who wait
	wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'jobqueue worker' AND state = 'active' AND query LIKE '%parent%' AND wait_event_type = 'Extension'}, 2);
	my $third = enqueue('parent', args => "{\"child\": $child[0]}", max_attempts => 1);
	like(sql("SELECT error FROM jobqueue_wait($third)"), qr/too many jobs wait/, 'a third one may not wait');
	sql("SELECT jobqueue_resume('child')");
	is(sql(sprintf "SELECT string_agg(state || ' ' || result, ',') FROM jobqueue_wait(ARRAY[%s], '3 minutes')", join ',', @parent),
		'completed "completed",completed "completed"', 'both');
	wait_for('SELECT count(*) <= 2 FROM jobqueue_workers');
	wait_drained();
	forget();
};

property 'a row that is deleted ends the wait' => sub {
	my $id = enqueue('note', run_at => '2100-01-01', what => 'x');
	my $s = session();
	send_sql($s, "SELECT state FROM jobqueue_wait($id, '1 hour')");
	wait_asleep(1);
	sql("DELETE FROM jobqueue_job WHERE id = $id");
	wait_asleep(0);
	pass('an error, but no wait');
	$s->quit;
	forget();
};

foreach my $how ('SIGKILL', 'SIGTERM')
{
	property "a waiter that is ended by $how" => sub {
		my $id = enqueue('note', run_at => '2100-01-01', what => 'x');
		my $s = session();
		send_sql($s, "SELECT jobqueue_wait($id, '1 hour')");
		wait_asleep(1);
		my $pid = sql("SELECT pid FROM pg_stat_activity WHERE query LIKE '%jobqueue_wait%' AND pid <> pg_backend_pid()");
		my $offset = crash_offset();
		kill substr($how, 3), $pid;
		wait_crash_restart($offset) if $how eq 'SIGKILL';
		wait_asleep(0);
		sql("SELECT jobqueue_cancel($id)");
		is(sql("SELECT state FROM jobqueue_wait($id)"), 'cancelled', 'others may wait');
		forget();
	};
}

property 'an end is told once it is durable, as the one who waits asks for it' => sub {
	my $id = enqueue('answer', args => '1');
	is(sql("SELECT state, pg_current_wal_flush_lsn() >= (SELECT lsn FROM jobqueue_recent r WHERE r.id = w.id) FROM jobqueue_wait($id) w"),
		'completed|t', 'flushed');
	no_standby();
	$id = enqueue('answer', args => '2');
	wait_drained();
	is(sql("SELECT state FROM jobqueue_wait($id)"), 'completed', 'no standby is asked for');
	my $s = session();
	$s->query_safe('SET synchronous_commit = on');
	send_sql($s, "SELECT 'told ' || state FROM jobqueue_wait($id)");
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1);
	sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 0);
	unlike($s->query('SELECT 1'), qr/told/, 'not told without the standby');
	set_conf(synchronous_standby_names => undef, synchronous_commit => undef);
	$s->quit;
	forget();
};

property 'the server has not crashed but by our hand' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|reference leak/, 'log');
};

done_testing();
