# jobqueue_wait(): whatever ends a job ends the wait for it at once; full tables,
# many who wait, prepared transactions, shutdown, standby.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# what is at most waited for, besides one job in each session
my $cells = 4096;

new_node('wait_ends', streaming => 1,
	conf => "max_connections = 330\nshared_buffers = 16MB\njobqueue.max_workers = 4\njobqueue.max_workers_per_role = 4\n");
sql(<<'END');
CREATE FUNCTION answer(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT args $$;
CREATE SEQUENCE tries;
CREATE FUNCTION second_time(args jsonb) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN IF nextval('tries') = 1 THEN RAISE EXCEPTION 'once'; END IF; RETURN 'done'; END $$;
CREATE ROLE one LOGIN;
CREATE ROLE other LOGIN;
SELECT jobqueue_grant('one', 'use'), jobqueue_grant('other', 'use');
END

# and may look up for a moment
my $waits = q{backend_type = 'client backend' AND query LIKE '%jobqueue_wait%' AND query NOT LIKE '%pg_stat_activity%' AND state = 'active'};
my $asleep = "$waits AND wait_event_type = 'Extension'";

# until so many sessions sleep in jobqueue_wait()
sub wait_asleep
{
	my ($count) = @_;
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE $asleep", $count);
}

# a session that sleeps until these jobs have ended
sub waiter
{
	my ($ids, %opt) = @_;
	my $s = session(%opt);
	my ($n) = sql("SELECT count(*) FROM pg_stat_activity WHERE $waits");

	send_sql($s, "SELECT 'told', state, error FROM jobqueue_wait($ids, '1 hour')");
	wait_asleep($n + 1);
	return $s;
}

# what it was told
sub told
{
	my ($s) = @_;
	my $out = $s->query('SELECT 1');

	$s->quit;
	return join ' ', $out =~ /^told\|(.*)$/mg;
}

sub far
{
	return enqueue('note', run_at => '2100-01-01', what => 'x', @_);
}

# ---- all ways in which a job may end ----------------------------------------

property 'whatever ends a job wakes who waits for it' => sub {
	my ($id, $s);

	$s = waiter($id = far());
	sql("SELECT jobqueue_cancel($id)");
	is(told($s), 'cancelled|cancelled', 'jobqueue_cancel');

	$s = waiter($id = far(queue => 'many'));
	sql(q{SELECT jobqueue_cancel_where('many', NULL, NULL)});
	like(told($s), qr/^cancelled\|/, 'jobqueue_cancel_where');

	my $first = enqueue('fail', run_at => '2100-01-01', what => 'x', max_attempts => 1);
	$s = waiter($id = far(after => "{$first}"));
	my $t = waiter($first);
	sql("SELECT jobqueue_reschedule($first, now())");
	like(told($s), qr/^cancelled\|/, 'one that it waits for is dead');
	is(told($t), 'dead|failed on purpose', 'that one');

	my $gate = close_gate(1);
	my $runs = enqueue('gate', gate => 1);
	wait_at_gate(1);
	$s = waiter($runs);
	sql("SELECT jobqueue_cancel($runs)");
	is(told($s), 'cancelled|cancelled while it ran', 'cancelled while it ran');
	open_gate($gate);
	$gate->quit;

	$s = waiter($id = far(expires_at => sql(q{SELECT now() + interval '5 s'})));
	is(told($s), 'cancelled|expired', 'expired');

	$id = far(unique_key => 'u');
	$s = waiter($id);
	far(unique_key => 'u', on_conflict => 'replace');
	like(told($s), qr/^cancelled\|/, 'replaced');
	sql('SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true)');

	$id = enqueue(q{SELECT jobqueue_discard('no need')}, run_at => '2100-01-01');
	$s = waiter($id);
	sql("SELECT jobqueue_reschedule($id, now())");
	is(told($s), 'dead|no need', 'discarded');

	$id = enqueue('answer', args => '1', run_at => '2100-01-01');
	$s = waiter($id);
	sql("SELECT jobqueue_run($id)");
	is(told($s), 'completed|', 'jobqueue_run');

	sql(q{CREATE ROLE gone LOGIN; SELECT jobqueue_grant('gone', 'use')});
	$id = far(role => 'gone');
	$s = waiter($id);
	sql(q{DROP OWNED BY gone; DROP ROLE gone; SELECT jobqueue_sweep()});
	sql("SELECT jobqueue_reschedule($id, now())");
	like(told($s), qr/^dead\|/, 'its role is gone');
	forget();
};

property 'who waits holds no lock on the tables' => sub {
	my $s = waiter(my $id = far());

	is(sql("SELECT count(*) FROM pg_locks WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE $asleep) AND relation::regclass::text LIKE 'jobqueue%'"),
		0, 'not even in its first look');
	sql("SELECT jobqueue_cancel($id)");
	told($s);
	forget();
};

property 'a row that goes without a word wakes who waits for it' => sub {
	foreach my $how ('DELETE FROM jobqueue_job', 'TRUNCATE jobqueue_job CASCADE',
		"BEGIN; DELETE FROM jobqueue_job; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'")
	{
		my $s = waiter(far());
		sql($how);
		# an error is no line of it, and the session is free again
		is(told($s), '', $how);
	}
	# one that was prepared before a restart says nothing of what it has done
	my $id = far();
	sql("BEGIN; DELETE FROM jobqueue_job; PREPARE TRANSACTION 'p'");
	node()->restart;
	my $s = waiter($id);
	sql("COMMIT PREPARED 'p'");
	is(told($s), '', 'prepared before a restart');
	forget();
};

property 'the end is seen by a transaction whose snapshot is older' => sub {
	my @ids = map { enqueue('answer', args => '"' . 'x' x 450 . '"', run_at => '2100-01-01', keep => $_) } ('0', '1 hour');
	my $s = session();

	$s->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT count(*) FROM jobqueue_job');
	sql("SELECT jobqueue_reschedule($_, now())") foreach @ids;
	wait_drained();
	is($s->query("SELECT state, length(result::text) FROM jobqueue_wait(ARRAY[$ids[0], $ids[1]])"),
		"completed|452\ncompleted|452", 'in the ring and in the history');
	$s->quit;
	forget();
};

# ---- what is told -----------------------------------------------------------

paused_property 'a job that was dead and has come back is told as it ended at last' => sub {
	my $id = enqueue('second_time', max_attempts => 1, run_at => '2100-01-01');
	my $s = session();

	arm('wait-before-sleep');
	send_sql($s, "SELECT 'told', state, error FROM jobqueue_wait($id, '1 hour')");
	caught('wait-before-sleep');
	sql("SELECT jobqueue_reschedule($id, now())");
	wait_state($id, 'dead');
	sql("SELECT jobqueue_retry($id)");
	wait_state($id, 'completed');
	release('wait-before-sleep');
	is(told($s), 'completed|', 'completed');
	forget();
};

foreach my $queue ('default', 'batch')
{
	paused_property "a worker that is terminated after its commit tells how the job ended, queue $queue" => sub {
		my @ids;
		my $s;
		my $pid;

		sql(q{SELECT jobqueue_configure('batch', batch => 10), jobqueue_pause('batch'), jobqueue_pause('default')});
		@ids = map { enqueue('answer', args => $_, queue => $queue) } (1 .. 3);
		arm('worker-after-commit');
		$s = waiter("ARRAY[" . join(',', @ids) . ']');
		sql(q{SELECT jobqueue_resume('batch'), jobqueue_resume('default')});
		$pid = caught('worker-after-commit');
		sql("SELECT pg_terminate_backend($pid)");
		release('worker-after-commit');
		is(told($s), 'completed| completed| completed|', 'told');
		wait_gone($pid);
		forget();
	};
}

property 'nothing is said of an end before it is durable, not even in an error' => sub {
	my $large = enqueue('answer', args => '"' . 'x' x 600 . '"');
	my $deleted = far();
	my @s;

	wait_drained_but($deleted);
	no_standby();
	foreach my $id ($large, $deleted)
	{
		my $s = session();
		$s->query_safe('SET synchronous_commit = on');
		send_sql($s, "SELECT 'told', state FROM jobqueue_wait($id, '1 hour')");
		push @s, $s;
	}
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE $asleep", 1);
	sql("DELETE FROM jobqueue_job WHERE id = $deleted");
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 2);
	pass('both wait for the standby');
	# who waits for the standby is free when there is none any more
	set_conf(synchronous_standby_names => undef, synchronous_commit => undef);
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 0);
	told($_) foreach @s;
	forget();
};

property 'a wait for a standby that is taken out of the settings ends well' => sub {
	my $id = enqueue('answer', args => '1');
	my $s = session();

	wait_drained();
	no_standby();
	$s->query_safe('SET synchronous_commit = on');
	send_sql($s, "SELECT 'told', state, error FROM jobqueue_wait($id, '1 hour')");
	wait_for("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1);
	set_conf(synchronous_standby_names => undef, synchronous_commit => undef);
	is(told($s), 'completed|', 'told');
	forget();
};

sub wait_drained_but
{
	my ($id) = @_;
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE id <> $id");
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
}

# ---- the ring ---------------------------------------------------------------

paused_property 'who waits is told even if thousands have ended since' => sub {
	my $id = enqueue('answer', args => '5', run_at => '2100-01-01');
	my $before = enqueue('answer', args => '4');
	my $s = session();

	wait_drained_but($id);
	arm('wait-before-sleep');
	send_sql($s, "SELECT 'told', state, result FROM jobqueue_wait($id, '1 hour')");
	caught('wait-before-sleep');
	sql("SELECT jobqueue_reschedule($id, now())");
	wait_drained();
	sql(qq{SELECT jobqueue_configure('batch', batch => 50);
		SELECT count(jobqueue_enqueue('answer', '1', queue => 'batch')) FROM generate_series(1, $cells + 100)});
	wait_drained();
	release('wait-before-sleep');
	is(told($s), 'completed|5', 'one that waited');
	like(sql_error("SELECT jobqueue_wait($before)"), qr/does not exist.*HINT:.*ended too long ago/s, 'one that comes too late');
	forget();
};

# ---- many -------------------------------------------------------------------

property 'a thousand jobs by one call' => sub {
	sql(q{SELECT jobqueue_pause('batch')});
	sql(q{CREATE TABLE ids AS SELECT jobqueue_enqueue('answer', to_jsonb(i), queue => 'batch') AS id FROM generate_series(1, 1000) i});
	my $s = session();
	send_sql($s, "SELECT 'told', count(*), bool_and(state = 'completed') FROM jobqueue_wait((SELECT array_agg(id ORDER BY id) FROM ids), '1 hour')");
	my $t = session();
	send_sql($t, "SELECT 'told', count(*), bool_and(state = 'completed') FROM jobqueue_wait((SELECT array_agg(id ORDER BY id) FROM ids), '1 hour', any_of => true)");
	wait_asleep(2);
	sql(q{SELECT jobqueue_resume('batch')});
	is(told($s), '1000|t', 'all');
	is(told($t), '1|t', 'the first');
	like(sql_error('SELECT jobqueue_wait(array_fill(1::bigint, ARRAY[1001]))'), qr/too many jobs to wait for/, 'no more than that');
	sql('DROP TABLE ids');
	forget();
};

property 'hundreds of sessions wait, for one job and for many' => sub {
	my $gate = close_gate(1);
	my $one = enqueue('gate', gate => 1);
	my $n = 300;

	wait_at_gate(1);
	my $h = start_pgbench("SELECT 1 / (count(*) FILTER (WHERE state = 'completed'))::int FROM jobqueue_wait($one, '1 hour');\n",
		clients => $n, transactions => 1);
	wait_asleep($n);
	open_gate($gate);
	ok($h->finish, "one job, $n sessions");

	$h = start_pgbench(<<'END', clients => $n, transactions => 3);
SELECT jobqueue_enqueue('answer', '{"a": 1}', queue => 'batch') AS id \gset
SELECT 1 / (count(*) FILTER (WHERE result = '{"a": 1}'))::int FROM jobqueue_wait(:id, '1 hour');
END
	ok($h->finish, 'each its own');
	$gate->quit;
	forget();
};

property 'a full table keeps nobody from waiting for one job' => sub {
	my $id = far(role => 'one');
	my $own = enqueue('answer', args => '1', run_at => '2100-01-01', role => 'other');
	# the first of each session is beside the table
	my @s = map { waiter("array_fill($id, ARRAY[1000])", role => 'one') } (1 .. 4);
	push @s, waiter('array_fill(' . $id . ', ARRAY[' . ($cells - 4 * 999 + 1) . '])', role => 'one');

	like(sql_error("SELECT jobqueue_wait(ARRAY[$own, $own])", role => 'other'), qr/too many jobs are waited for.*DETAIL.*HINT/s, 'many: an error');
	my $s = waiter($own, role => 'other');
	sql("SELECT jobqueue_reschedule($own, now())");
	is(told($s), 'completed|', 'one: told');

	# all of them are free at once, however the session ends
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $waits");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE $waits");
	@s = map { waiter("array_fill($id, ARRAY[1000])", role => 'one') } (1 .. 4);
	sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE $waits");
	told($_) foreach @s;
	@s = map { waiter("array_fill($id, ARRAY[1000])", role => 'one') } (1 .. 4);
	my $offset = crash_offset();
	kill_hard(sql("SELECT pid FROM pg_stat_activity WHERE $waits LIMIT 1"));
	wait_crash_restart($offset);
	@s = map { waiter("array_fill($id, ARRAY[1000])", role => 'one') } (1 .. 4);
	sql("SELECT jobqueue_cancel($id)");
	is(told($_), join(' ', ('cancelled|cancelled') x 1000), 'told') foreach @s;
	forget();
};

property 'a job of a batch that waits does so alone' => sub {
	sql(q{SELECT jobqueue_configure('batch', batch => 10), jobqueue_pause('batch')});
	sql(<<'END');
CREATE FUNCTION waits(args jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT state FROM jobqueue_wait((args->>'for')::bigint, '1 hour'));
EXCEPTION WHEN OTHERS THEN
	RETURN SQLERRM;
END $$;
END
	# the one that it waits for cannot run before the first of the batch has committed
	my $first = enqueue('note', what => 'first', queue => 'batch');
	my $child = enqueue('note', what => 'child', after => "{$first}");
	my $parent = enqueue('waits', args => "{\"for\": $child}", queue => 'batch');
	my $sibling = enqueue('waits', args => "{\"for\": $first}", queue => 'batch');

	sql(q{SELECT jobqueue_resume('batch')});
	is(sql("SELECT state, result FROM jobqueue_wait(ARRAY[$parent, $sibling], '1 min')"),
		qq{completed|"completed"\ncompleted|"completed"}, 'both');
	is(ran(), 'first child', 'each ran once');
	forget();
};

# ---- prepared transactions --------------------------------------------------

property 'a job that a prepared transaction has enqueued' => sub {
	my $id = sql(<<'END');
BEGIN;
SELECT jobqueue_enqueue('answer', '8');
PREPARE TRANSACTION 'p';
END
	like(sql_error("SELECT jobqueue_wait($id)"), qr/does not exist/, 'is not there before');
	sql("COMMIT PREPARED 'p'");
	is(sql("SELECT state, result FROM jobqueue_wait($id, '3 min')"), 'completed|8', 'and is waited for then');
	$id = sql('BEGIN; SET LOCAL jobqueue.inline = on; SELECT jobqueue_enqueue(\'answer\', \'9\', keep => \'1 hour\'); PREPARE TRANSACTION \'p\'');
	sql("COMMIT PREPARED 'p'");
	is(sql("SELECT state, result FROM jobqueue_wait($id)"), 'completed|9', 'completed in it');
	forget();
};

property 'a wait in a transaction that is prepared leaves nothing behind' => sub {
	my $id = enqueue('answer', args => '1');
	is(sql("BEGIN; SELECT state FROM jobqueue_wait($id); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'"), 'completed', 'told');
	my $far = far();
	is(sql("BEGIN; SAVEPOINT s; SELECT state FROM jobqueue_wait($far, '0'); ROLLBACK TO s; SELECT count(*) FROM jobqueue_wait(array_fill($far, ARRAY[1000]), '0'); PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'"),
		"\n1000", 'not ended');
	sql("SELECT jobqueue_cancel($far)");
	forget();
};

# ---- shutdown, standby ------------------------------------------------------

property 'a fast shutdown ends all waits' => sub {
	my $id = far();
	my $parent = enqueue("SELECT state FROM jobqueue_wait($id, '1 hour')", timeout => '2 hours');
	my @s = map { waiter($id) } (1 .. 5);

	wait_for("SELECT count(*) = 1 FROM jobqueue_running WHERE id = $parent");
	node()->stop('fast');
	node()->start;
	# the job that waited is not charged, and waits again
	wait_for("SELECT count(*) = 1 FROM jobqueue_running WHERE id = $parent AND attempt = 1");
	sql("SELECT jobqueue_cancel($id)");
	is(sql("SELECT state, result FROM jobqueue_wait($parent)"), 'completed|"cancelled"', 'and is told');
	forget();
};

property 'on a standby one cannot wait, after its promotion one can' => sub {
	my $id = enqueue('answer', args => '1', run_at => '2100-01-01');
	my $standby;

	node()->backup('b');
	$standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup(node(), 'b', has_streaming => 1);
	$standby->start;
	node()->wait_for_catchup($standby);
	my ($rc, undef, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nSELECT jobqueue_wait($id)");
	like($err, qr/25006.*cannot execute jobqueue_wait\(\) during recovery/, 'refused');
	$standby->promote;
	$standby->safe_psql('postgres', "SELECT jobqueue_reschedule($id, now())");
	is($standby->safe_psql('postgres', "SELECT state, result FROM jobqueue_wait($id, '3 min')"), 'completed|1', 'promoted');
	$standby->stop;
	sql("SELECT jobqueue_cancel($id)");
	forget();
};

property 'the server has not crashed but by our hand' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|reference leak/, 'log');
};

done_testing();
