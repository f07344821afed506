# Keys that sessions lock: one key space with the jobs, in line with them.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

# A worker has its time to take a key, on a busy machine, too.
new_node('lock', conf => <<'END');
jobqueue.flush_interval = 1000
jobqueue.testing_key_turn = 600s
wal_writer_delay = 10s
END

sql(<<'END');
CREATE ROLE locker LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE third LOGIN;
CREATE ROLE worker LOGIN;
SELECT jobqueue_grant('locker', 'lock');
SELECT jobqueue_grant('locker', 'use');
SELECT jobqueue_grant('other', 'lock');
SELECT jobqueue_grant('other', 'use');
SELECT jobqueue_grant('third', 'lock');
SELECT jobqueue_grant('worker', 'use');
SELECT jobqueue_grant('worker', 'lock');
END

# what a session says to a query
sub ask
{
	my ($s, $query) = @_;
	return $s->query_safe($query);
}

# a query that waits; its answer comes with answer()
sub begin_wait
{
	my ($s, $query, $key, $waiting) = @_;

	send_sql($s, $query);
	wait_in_line($key, $waiting);
}

sub wait_in_line
{
	my ($key, $waiting) = @_;
	wait_for("SELECT coalesce(max(waiting), 0) FROM jobqueue_keys WHERE key = '$key'",
		$waiting // 1);
}

sub answer
{
	my ($s) = @_;
	return $s->query('SELECT 1 WHERE false');
}

sub free
{
	my ($key) = @_;
	return sql("SELECT jobqueue_whereis('$key') IS NULL") eq 't';
}

sub pid
{
	my ($s) = @_;
	return ask($s, 'SELECT pg_backend_pid()');
}

# a session that locks the key when it is given it, leaves a trace and lets go
sub in_line
{
	my ($what, $key, $waiting) = @_;
	my $s = session();

	begin_wait($s,
		"BEGIN; SELECT jobqueue_xact_lock('$key'); INSERT INTO ran (what) VALUES ('$what'); COMMIT",
		$key, $waiting);
	return $s;
}

property 'a key is locked as often as it is to be unlocked' => sub {
	my $s = session();

	is(ask($s, "SELECT jobqueue_lock('a'), jobqueue_try_lock('a'), jobqueue_lock('b', '1 s')"),
		't|t|t', 'locked');
	is(sql("SELECT jobqueue_whereis('a')"), pid($s), 'by that process');
	is( sql("SELECT key, pid, job IS NULL, waiting FROM jobqueue_keys ORDER BY key"),
		join("\n", map { "$_|" . pid($s) . '|t|0' } 'a', 'b'),
		'the view shows it');
	is(sql("SELECT jobqueue_try_lock('a')"), 'f', 'others do not get it');
	is(sql("SELECT jobqueue_lock('a', '0')"), 'f', 'nor without waiting');
	is(sql("SELECT jobqueue_xact_lock('a', '10 ms')"), 'f', 'nor in time');
	is(ask($s, "SELECT jobqueue_unlock('a')"), 't', 'unlocked once');
	ok(!free('a'), 'it is held');
	is(ask($s, "SELECT jobqueue_unlock('a')"), 't', 'unlocked again');
	ok(free('a'), 'it is free');
	like(($s->query("SELECT jobqueue_unlock('a')"))[0], qr/^f$/m, 'not once more');
	ok(!free('b'), 'the other one is held');
	$s->quit;
	wait_for("SELECT jobqueue_whereis('b') IS NULL");
	is(sql('SELECT count(*) FROM jobqueue_keys'), 0, 'free with the end of the session');
};

property 'an unlock takes effect at the end of the transaction' => sub {
	my $s = session();

	foreach my $end ('COMMIT', 'ROLLBACK')
	{
		ask($s, "SELECT jobqueue_lock('a')");
		ask($s, "BEGIN; SELECT jobqueue_unlock('a')");
		ok(!free('a'), 'held until then');
		ask($s, $end);
		ok(free('a'), "free after $end");
	}
	ask($s, "SELECT jobqueue_lock('a')");
	ask($s, "BEGIN; SAVEPOINT x; SELECT jobqueue_unlock('a'); ROLLBACK TO x; COMMIT");
	ok(free('a'), 'as with advisory locks, a rollback does not undo it');
	ask($s, "SELECT jobqueue_lock('a')");
	ask($s, "BEGIN; SELECT jobqueue_unlock('a'); SELECT jobqueue_lock('a'); COMMIT");
	ok(!free('a'), 'locked once more, it stays locked');
	ask($s, "SELECT jobqueue_unlock('a')");
};

property 'a lock of the transaction ends with it' => sub {
	my $s = session();

	foreach my $end ('COMMIT', 'ROLLBACK')
	{
		ask($s, "BEGIN; SELECT jobqueue_xact_lock('a')");
		ok(!free('a'), 'held');
		ask($s, $end);
		ok(free('a'), "free after $end");
	}
	ask($s, "SELECT jobqueue_xact_lock('a')");
	ok(free('a'), 'a statement is a transaction');
	ask($s, "BEGIN; SELECT jobqueue_xact_lock('a'); SAVEPOINT x; SELECT jobqueue_xact_lock('a'), jobqueue_xact_lock('b'), jobqueue_lock('c')");
	ask($s, 'SAVEPOINT y');
	ask($s, "SELECT jobqueue_xact_lock('d')");
	ask($s, 'RELEASE y');
	ok(!free('d'), 'the end of a subtransaction keeps it');
	ask($s, 'ROLLBACK TO x');
	ok(!free('a'), 'ROLLBACK TO keeps what was locked before');
	ok(free('b') && free('d'), 'and lets go what was locked since');
	ask($s, "SELECT jobqueue_xact_lock('b')");
	ok(!free('b'), 'it can be locked again');
	ask($s, 'COMMIT');
	ok(free('a') && free('b'), 'free at the end');
	ok(!free('c'), 'what is locked for the session stays locked');
	ask($s, "BEGIN; SELECT jobqueue_xact_lock('c'); SELECT jobqueue_unlock('c'); COMMIT");
	ok(free('c'), 'both have ended');
	ask($s, "BEGIN; SELECT jobqueue_xact_lock('c'); SELECT jobqueue_lock('c'); COMMIT");
	ok(!free('c'), 'both have begun, one has ended');
	ask($s, "DO \$\$ BEGIN PERFORM jobqueue_xact_lock('e'); COMMIT; PERFORM jobqueue_xact_lock('f'); END \$\$");
	ok(free('e') && free('f'), 'COMMIT in a block ends it, too');
};

property 'a job waits for the key of a session' => sub {
	my $s = session();

	ask($s, "SELECT jobqueue_lock('a')");
	my $id = enqueue('note', what => 'job', key => 'a');
	wait_in_line('a');
	like(sql("SELECT jobqueue_explain($id)"),
		qr/waits for key 'a', held by pid \d+ since .*next in line/, 'it says so');
	ask($s, "BEGIN; INSERT INTO ran (what) VALUES ('session'); SELECT jobqueue_unlock('a'); COMMIT");
	wait_drained();
	is(ran(), 'session job', 'and runs after it');
	forget();
};

property 'a session waits for the key of a job' => sub {
	foreach my $command ('gate', q{SELECT pg_advisory_xact_lock_shared(1); SELECT 1 / 0})
	{
		my $gate = close_gate(1);
		my $id = enqueue($command, what => 'job', gate => 1, key => 'a', max_attempts => 1);

		wait_at_gate();
		is(sql("SELECT jobqueue_try_lock('a')"), 'f', 'held by the job');
		is(sql("SELECT jobqueue_whereis('a') = pid FROM jobqueue_running"), 't', 'by its worker');
		my $s = in_line('session', 'a');
		open_gate($gate);
		answer($s);
		wait_drained();
		is(ran(), $command eq 'gate' ? 'job session' : 'session', 'and has it then');
		ok(free('a'), 'free');
		forget();
	}
};

property 'jobs and sessions have a key in order' => sub {
	my $s = session();

	ask($s, "SELECT jobqueue_lock('a')");
	enqueue('note', what => 'job1', key => 'a');
	wait_in_line('a', 1);
	my $s1 = in_line('session1', 'a', 2);
	my $id = enqueue('note', what => 'job2', key => 'a');
	wait_in_line('a', 3);
	like(sql("SELECT jobqueue_explain($id)"), qr/2 ahead/, 'a session is counted');
	my $s2 = in_line('session2', 'a', 4);
	my $s3 = in_line('session3', 'a', 5);
	enqueue('note', what => 'late', key => 'a', priority => 1);
	wait_in_line('a', 6);
	enqueue('note', what => 'urgent', key => 'a', priority => -1);
	wait_in_line('a', 7);
	my $s4 = in_line('session4', 'a', 8);
	ask($s, "SELECT jobqueue_unlock('a')");
	answer($_) foreach $s1, $s2, $s3, $s4;
	wait_drained();
	is(ran(),
		'urgent job1 session1 job2 session2 session3 session4 late',
		'in order of priority and arrival');
	ok(free('a'), 'free');
	forget();
};

property 'a session does not pass a job that the key has just become free for' => sub {
	my $s = session();

	sql('CREATE TABLE rounds (ran bigint)');
	ask($s, <<'END');
DO $$
BEGIN
	PERFORM jobqueue_lock('a');
	FOR i IN 1 .. 30 LOOP
		PERFORM jobqueue_enqueue('note', '{"what": "job"}', key => 'a');
		COMMIT;
		WHILE NOT EXISTS (SELECT FROM jobqueue_keys WHERE key = 'a' AND waiting = 1) LOOP
			PERFORM pg_sleep(0.001);
		END LOOP;
		PERFORM jobqueue_unlock('a');
		COMMIT;
		PERFORM jobqueue_lock('a');
		INSERT INTO rounds SELECT count(*) - i FROM ran;
		COMMIT;
	END LOOP;
	PERFORM jobqueue_unlock('a');
END $$
END
	is(sql('SELECT count(*) FILTER (WHERE ran = 0) FROM rounds'), 30, 'they take turns');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

property 'what keeps a job waiting besides keeps no session waiting' => sub {
	my $s = session();

	ask($s, "SELECT jobqueue_lock('a')");
	sql("SELECT jobqueue_configure('limited', max_running => 1)");
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, queue => 'limited');
	wait_at_gate();
	enqueue('note', what => 'paused', key => 'a', queue => 'paused');
	enqueue('note', what => 'other', key => 'a', queue => 'other');
	wait_in_line('a', 2);
	sql("SELECT jobqueue_pause('paused'), jobqueue_pause('other')");
	enqueue('note', what => 'limited', key => 'a', queue => 'limited');
	my $s1 = session();
	my $pid = pid($s1);
	begin_wait($s1, "SELECT jobqueue_lock('a')", 'a', 3);
	ask($s, "SELECT jobqueue_unlock('a')");
	is(sql("SELECT jobqueue_whereis('a')"), $pid, 'it does not wait for them at all');
	answer($s1);
	ask($s1, "SELECT jobqueue_unlock('a')");
	is(sql("SELECT jobqueue_try_lock('a')"), 't', 'nor does one that does not wait');
	sql("SELECT jobqueue_resume('paused'), jobqueue_resume('other')");
	open_gate($gate);
	wait_drained();
	forget();
};

property 'a job that no worker can take keeps no session waiting' => sub {
	my $s = session();
	my $gate = close_gate(1);

	ask($s, "SELECT jobqueue_lock('a')");
	enqueue('note', what => 'job', key => 'a', queue => 'x', role => 'worker');
	wait_in_line('a', 1);
	set_conf('jobqueue.max_workers' => 1, 'jobqueue.testing_key_turn' => '100ms');
	sql("SELECT pg_terminate_backend(pid) FROM jobqueue_workers");
	enqueue('gate', gate => 1, what => 'gate');
	wait_at_gate();
	my $s1 = in_line('session', 'a', 2);
	ask($s, "SELECT jobqueue_unlock('a')");
	answer($s1);
	is(ran(), 'session', 'not for long');
	open_gate($gate);
	set_conf('jobqueue.max_workers' => undef, 'jobqueue.testing_key_turn' => undef);
	wait_drained();
	forget();
};

property 'a session does not wait for a job of its key that has been cancelled' => sub {
	my $s = session();
	my $gate = close_gate(1);

	# one more than memory keeps for a key; then no worker is left
	set_conf('jobqueue.max_workers' => 1);
	ask($s, "SELECT jobqueue_lock('a')");
	sql("SELECT count(jobqueue_enqueue('note', key => 'a', queue => 'x' || i % 2, priority => 10)) FROM generate_series(1, 64) i");
	wait_for('SELECT sum(blocked) = 64 FROM jobqueue_status');
	my $job = enqueue('note', key => 'a', queue => 'y', priority => 10);
	wait_for('SELECT sum(blocked) = 65 FROM jobqueue_status');
	sql("SELECT jobqueue_pause('x0'), jobqueue_pause('x1')");
	enqueue('gate', gate => 1, what => 'gate');
	wait_at_gate();
	# the table alone has it: it is brought, and stands in its lane
	ask($s, "SELECT jobqueue_unlock('a')");
	wait_for("SELECT ready = 1 FROM jobqueue_status WHERE queue = 'y'");
	set_conf('jobqueue.testing_key_turn' => '1ms');
	ask($s, "SELECT jobqueue_lock('a')");
	sql("SELECT jobqueue_cancel($job)");
	set_conf('jobqueue.testing_key_turn' => undef);
	my $s1 = session();
	my $pid = pid($s1);
	send_sql($s1, "SELECT jobqueue_lock('a')");
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Extension'");
	ask($s, "SELECT jobqueue_unlock('a')");
	is(sql("SELECT jobqueue_whereis('a')"), $pid, 'it has the key at once');
	answer($s1);
	ask($s1, "SELECT jobqueue_unlock('a')");
	set_conf('jobqueue.max_workers' => undef);
	sql("SELECT jobqueue_resume('x0'), jobqueue_resume('x1')");
	open_gate($gate);
	wait_drained();
	forget();
};

property 'a session wants a key for itself' => sub {
	sql("SELECT jobqueue_configure('shared', key_limit => 3)");
	my $gate = close_gate(1);
	enqueue('gate', what => "job$_", gate => 1, key => 'a', queue => 'shared') foreach 1 .. 2;
	wait_at_gate(2);
	my $s = in_line('session', 'a', 1);
	enqueue('gate', what => 'job3', gate => 1, key => 'a', queue => 'shared');
	wait_in_line('a', 2);
	open_gate($gate);
	answer($s);
	wait_drained();
	like(ran(), qr/^job[12] job[12] session job3$/, 'those behind it do not pass');

	my $holder = session();
	ask($holder, "SELECT jobqueue_lock('a')");
	my $gate2 = close_gate(1);
	enqueue('gate', gate => 1, key => 'a', queue => 'shared');
	wait_in_line('a', 1);
	pass('nobody shares it with a session');
	ask($holder, "SELECT jobqueue_unlock('a')");
	wait_at_gate();
	open_gate($gate2);
	wait_drained();
	forget();
};

property 'a key is free after whatever end of its session' => sub {
	my $s = session();
	my $job;

	ask($s, "SELECT jobqueue_lock('a')");
	$job = enqueue('note', what => 'job', key => 'a');
	wait_in_line('a');
	sql('SELECT pg_terminate_backend(' . pid($s) . ')');
	wait_drained();
	is(ran(), 'job', 'pg_terminate_backend()');
	forget();

	$s = session();
	ask($s, "BEGIN; SELECT jobqueue_xact_lock('a')");
	enqueue('note', what => 'job', key => 'a');
	wait_in_line('a');
	sql('SELECT pg_terminate_backend(' . pid($s) . ')');
	wait_drained();
	is(ran(), 'job', 'the same in a transaction');
	forget();

	# in line, and terminated: those behind it move up
	my $holder = session();
	ask($holder, "SELECT jobqueue_lock('a')");
	$s = session();
	my $pid = pid($s);
	begin_wait($s, "SELECT jobqueue_lock('a')", 'a', 1);
	my $s2 = in_line('session', 'a', 2);
	sql("SELECT pg_terminate_backend($pid)");
	wait_in_line('a', 1);
	ask($holder, "SELECT jobqueue_unlock('a')");
	answer($s2);
	is(ran(), 'session', 'terminated while it waits');
	ok(free('a'), 'free');
	forget();
};

property 'who waits can be cancelled' => sub {
	my $holder = session();
	my $s = session();
	my $pid = pid($s);

	ask($holder, "SELECT jobqueue_lock('a')");
	begin_wait($s, "SELECT jobqueue_lock('a')", 'a');
	sql("SELECT pg_cancel_backend($pid)");
	like((answer($s))[0] . $s->{stderr}, qr/canceling statement due to user request/, 'cancel');
	wait_in_line('a', 0);
	$s->{stderr} = '';
	foreach my $setting ('statement_timeout', 'lock_timeout')
	{
		$s->query("SET $setting = '20ms'; SELECT jobqueue_lock('a'); RESET $setting");
		my $what = $setting eq 'lock_timeout' ? 'lock timeout' : 'statement timeout';
		like($s->{stderr}, qr/canceling statement due to $what/, $setting);
		$s->{stderr} = '';
		wait_in_line('a', 0);
	}
	ask($s, "DO \$\$ BEGIN SET LOCAL lock_timeout = '10ms'; PERFORM jobqueue_xact_lock('a');"
		  . " EXCEPTION WHEN lock_not_available THEN NULL; END \$\$");
	wait_in_line('a', 0);
	pass('an error that is caught leaves the line, too');
	ask($holder, "SELECT jobqueue_unlock('a')");
	ok(free('a'), 'free');
	ask($s, "SELECT jobqueue_lock('a')");
	ok(!free('a'), 'it can be locked then');
};

paused_property 'who gives up in the moment he is given the key lets it go' => sub {
	foreach my $how ('cancel', 'terminate')
	{
		my $holder = session();
		my $s = session();
		my $pid = pid($s);

		ask($holder, "SELECT jobqueue_lock('a')");
		arm('lock-woken');
		begin_wait($s, "SELECT jobqueue_lock('a')", 'a');
		ask($holder, "SELECT jobqueue_unlock('a')");
		is(caught('lock-woken'), $pid, 'it has been woken');
		is(sql("SELECT jobqueue_whereis('a')"), $pid, 'it has been given the key');
		my $s2 = in_line('session', 'a', 1);
		sql("SELECT pg_${how}_backend($pid)");
		release('lock-woken');
		answer($s2);
		is(ran(), 'session', "$how: the next one has it");
		ok(free('a'), 'free');
		forget();
	}
};

property 'DISCARD ALL and pg_advisory_unlock_all() let all keys go' => sub {
	my $s = session();

	foreach my $what ('DISCARD ALL', 'SELECT pg_advisory_unlock_all()')
	{
		ask($s, "SELECT jobqueue_lock('a'), jobqueue_lock('a'), jobqueue_lock('b')");
		ask($s, $what);
		ok(free('a') && free('b'), $what);
	}
	ask($s, "SELECT jobqueue_lock('a')");
	ask($s, "DISCARD TEMP");
	ok(!free('a'), 'DISCARD TEMP does not');
};

property 'PREPARE TRANSACTION is refused' => sub {
	my $s = session();

	$s->query("BEGIN; SELECT jobqueue_xact_lock('a'); PREPARE TRANSACTION 'x'");
	like($s->{stderr}, qr/cannot PREPARE a transaction that has locked a key/, 'locked');
	ok(free('a'), 'free');
	$s->{stderr} = '';
	ask($s, "SELECT jobqueue_lock('a')");
	$s->query("BEGIN; SELECT jobqueue_unlock('a'); PREPARE TRANSACTION 'x'");
	like($s->{stderr}, qr/cannot PREPARE a transaction that has unlocked a key/, 'unlocked');
	ok(free('a'), 'as after a rollback');
	$s->{stderr} = '';
	ask($s, "SELECT jobqueue_lock('a')");
	ask($s, "BEGIN; SELECT 1; PREPARE TRANSACTION 'x'");
	ask($s, "ROLLBACK PREPARED 'x'");
	ok(!free('a'), 'with a key of the session it is not');
};

property 'a job may lock its own key, and others' => sub {
	my $id = enqueue(q{SELECT jobqueue_lock('a'), jobqueue_xact_lock('a'), jobqueue_try_lock('a'), jobqueue_unlock('a')},
		key => 'a', role => 'worker');
	wait_state($id, 'completed');
	wait_drained();
	ok(free('a'), 'free after the job');
	foreach my $batch (1, 10)
	{
		sql("SELECT jobqueue_configure('default', batch => $batch)");
		foreach my $end ('', '; SELECT 1 / 0')
		{
			$id = enqueue("SELECT jobqueue_lock('b'), jobqueue_xact_lock('c'), jobqueue_lock('a')$end",
				key => 'a', role => 'worker', max_attempts => 1);
			wait_drained();
			ok(free('a') && free('b') && free('c'), "a job leaves no locks$end");
		}
	}
	sql("SELECT jobqueue_configure('default', batch => 1)");

	my $gate = close_gate(1);
	$id = enqueue(q{SELECT jobqueue_lock('b'); SELECT pg_advisory_xact_lock_shared(1)}, role => 'worker');
	wait_at_gate();
	my $s = in_line('session', 'b', 1);
	sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running');
	answer($s);
	is(ran(), 'session', 'nor if its worker is terminated');
	open_gate($gate);
	wait_drained();

	my $holder = session();
	foreach my $how ('pg_terminate_backend(pid)', 'jobqueue_cancel(id)')
	{
		ask($holder, "SELECT jobqueue_lock('b')");
		enqueue(q{SELECT jobqueue_lock('b')}, role => 'worker', max_attempts => 1);
		wait_in_line('b', 1);
		sql("SELECT $how FROM jobqueue_running");
		wait_drained();
		wait_in_line('b', 0);
		ask($holder, "SELECT jobqueue_unlock('b')");
		ok(free('b'), "one that waits leaves the line: $how");
	}
	enqueue(q{SELECT jobqueue_lock('b')}, role => 'worker', max_attempts => 1, timeout => '100 ms');
	wait_drained();
	ask($holder, "SELECT jobqueue_lock('b')");
	$id = enqueue(q{SELECT jobqueue_lock('b')}, role => 'worker', max_attempts => 1, timeout => '100 ms');
	wait_drained();
	is(sql("SELECT error FROM jobqueue_recent WHERE id = $id"), 'job timed out', 'its timeout holds');
	forget();
};

property 'jobs that wait for a key keep no worker from others' => sub {
	foreach my $how ('jobqueue_unlock', 'pg_terminate_backend', 'jobqueue_cancel')
	{
		my $holder = session();
		ask($holder, "SELECT jobqueue_lock('b')");
		my $n = sql('SHOW jobqueue.max_workers') - 1;
		enqueue(q{SELECT jobqueue_xact_lock('b')}, max_attempts => 1, priority => -1) foreach 1 .. $n;
		wait_in_line('b', $n);
		my @ids = map { enqueue('note', what => 'job') } 1 .. 20;
		wait_state($_, 'completed') foreach @ids;
		wait_in_line('b', $n);
		pass('they run while those wait');
		sql("SELECT pg_terminate_backend(pid) FROM jobqueue_running") if $how eq 'pg_terminate_backend';
		sql("SELECT jobqueue_cancel(id) FROM jobqueue_running") if $how eq 'jobqueue_cancel';
		ask($holder, "SELECT jobqueue_unlock('b')");
		wait_drained();
		$holder->quit;
		@ids = map { enqueue('note', what => 'job') } 1 .. 20;
		wait_drained();
		wait_for("SELECT count(*) <= current_setting('jobqueue.max_workers')::int FROM jobqueue_workers");
		pass("and are no more than may be: $how");
		forget();
	}
};

property 'a key is locked for a session and for jobqueue_run() in it' => sub {
	my $s = session();

	ask($s, "BEGIN");
	my $id = ask($s, q{SELECT jobqueue_enqueue('note', '{"what": "here"}', key => 'a')});
	ask($s, "SELECT jobqueue_run($id)");
	ask($s, "SELECT jobqueue_lock('a')");
	ask($s, 'COMMIT');
	ok(!free('a'), 'the session has it when the job has ended');
	is(sql("SELECT job IS NULL FROM jobqueue_keys WHERE key = 'a'"), 't', 'not for the job');
	ask($s, 'BEGIN');
	$id = ask($s, q{SELECT jobqueue_enqueue('note', '{"what": "here"}', key => 'a')});
	ask($s, "SELECT jobqueue_run($id); SELECT jobqueue_unlock('a'); COMMIT");
	ok(free('a'), 'free');
	is(ran(), 'here here', 'they ran');
	forget();
};

property 'more jobs than memory keeps, and a session amid' => sub {
	foreach my $round (1 .. 4)
	{
		my $s = session();

		# one worker meets those that are brought late, many meet them at once
		set_conf('jobqueue.max_workers' => 1) if $round == 3;
		ask($s, "SELECT jobqueue_lock('a')");
		sql(q{SELECT count(*) FROM jobqueue_enqueue_many('note',
			(SELECT array_agg(jsonb_build_object('what', i)) FROM generate_series(1, 200) i),
			(SELECT array_agg('a'::text) FROM generate_series(1, 200)))});
		wait_in_line('a', 200);
		my $s1 = session();
		# the turn of jobs that do not come ends later than that
		ask($s1, "SET statement_timeout = '100s'");
		begin_wait($s1,
			"BEGIN; SELECT jobqueue_xact_lock('a'); INSERT INTO ran (what) VALUES ('session'); COMMIT",
			'a', 201);
		enqueue('note', what => 'last', key => 'a');
		ask($s, "SELECT jobqueue_unlock('a')");
		answer($s1);
		wait_drained();
		like(ran(), qr/^1 2 3 .* 199 200 session last$/, 'in order');
		forget();
	}
	set_conf('jobqueue.max_workers' => undef);
};

property 'what jobs have done is on disk before a session has their key' => sub {
	my $gate = close_gate(1);
	my $id = enqueue('gate', gate => 1, key => 'a', role => 'worker');

	wait_at_gate();
	my $s = session();
	begin_wait($s, "SELECT 'flushed ' || (pg_current_wal_flush_lsn() >= lsn) FROM (SELECT jobqueue_lock('a') OFFSET 0) x,"
		  . " LATERAL (SELECT lsn FROM jobqueue_recent_jobs() WHERE id = $id AND jobqueue_lock IS NOT NULL) y", 'a');
	open_gate($gate);
	like((answer($s))[0], qr/flushed true/, 'waited for');
	ask($s, "SELECT jobqueue_unlock('a')");
	wait_drained();
	forget();
};

property 'rights' => sub {
	is(sql_as('locker', "SELECT jobqueue_lock('a'), jobqueue_try_lock('a'), jobqueue_xact_lock('a'), jobqueue_unlock('a'), jobqueue_whereis('a') = pg_backend_pid()"),
		't|t|t|t|t', 'level lock');
	sql('CREATE ROLE user_only LOGIN');
	sql("SELECT jobqueue_grant('user_only', 'use')");
	foreach my $f ("jobqueue_lock('a')", "jobqueue_try_lock('a')", "jobqueue_xact_lock('a')", "jobqueue_unlock('a')")
	{
		like(sql_error("SELECT $f", role => 'user_only'), qr/permission denied/, "$f without it");
	}
	my $s = session(role => 'locker');
	ask($s, "SELECT jobqueue_lock('a')");
	is(sql_as('other', "SELECT jobqueue_whereis('a')"), '0', 'others see that it is held, and not by whom');
	is(sql_as('locker', 'SELECT count(*) FROM jobqueue_keys'), '1', 'the role itself sees it');
	is(sql_as('worker', 'SELECT count(*) FROM jobqueue_keys'), '0', 'another one does not');
	my $id = enqueue('note', what => 'x', key => 'a', role => 'worker');
	wait_in_line('a');
	like(sql_as('worker', "SELECT jobqueue_explain($id)"), qr/held by another role since/, 'nor does explain tell');
	ask($s, "SELECT jobqueue_unlock('a')");
	wait_drained();
	sql("SELECT jobqueue_configure('together', key_limit => 2)");
	foreach my $roles ([ 'worker', 'other' ], [ 'other', 'worker' ])
	{
		my $gate = close_gate(1);
		foreach (@$roles)
		{
			enqueue('gate', gate => 1, key => 'b', queue => 'together', role => $_);
			wait_for("SELECT count(*) FROM jobqueue_keys WHERE key = 'b'", $_ eq $roles->[0] ? 1 : 2);
		}
		is(sql_as('worker', "SELECT jobqueue_whereis('b') = pid FROM jobqueue_running WHERE owner = 'worker'::regrole"),
			't', 'of several holders, one sees the one that one may see');
		is(sql_as('locker', "SELECT jobqueue_whereis('b')"), '0', 'or none');
		open_gate($gate);
		wait_drained();
	}
	sql("SELECT jobqueue_drop_queue('together')");
	sql("SELECT jobqueue_revoke('locker', 'lock')");
	like(sql_error("SELECT jobqueue_lock('a')", role => 'locker'), qr/permission denied/, 'revoked');
	is(sql_error("SELECT jobqueue_whereis('a')", role => 'locker'), '', 'what "use" has is kept');
	sql("SELECT jobqueue_grant('locker', 'lock')");
	forget();
};

property 'parallel workers neither lock keys nor unlock them' => sub {
	sql(q{CREATE FUNCTION in_parallel(text) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE
		AS $$ DECLARE ok boolean; BEGIN EXECUTE 'SELECT ' || $1 INTO ok; RETURN ok; END $$});
	my $force = sql('SHOW server_version_num') >= 160000 ? 'debug_parallel_query' : 'force_parallel_mode';
	foreach my $f (qw(lock xact_lock try_lock unlock whereis))
	{
		like(sql_error("SET $force = on; SELECT in_parallel('jobqueue_$f(''a'')')"),
			qr/cannot execute jobqueue_$f\(\) during a parallel operation/, "jobqueue_$f()");
	}
	ok(free('a'), 'free');
};

# sessions of a role that lock keys until one is refused; why, and the sessions
sub lock_many
{
	my ($role, $max) = @_;
	my $refused = '';
	my @s;

	while ($refused eq '' && @s < $max)
	{
		my $s = session(role => $role);
		$s->query("SELECT jobqueue_lock(pg_backend_pid() || ':' || i) FROM generate_series(1, 1024) i");
		$refused = $s->{stderr};
		$s->{stderr} = '';
		push @s, $s;
	}
	return ($refused, @s);
}

property 'a role has so many keys and no more' => sub {
	my ($refused, @s) = lock_many('locker', 60);

	like($refused, qr/quota of \d+ locked keys of role "locker" is reached/, 'all its sessions have one quota');
	my ($quota) = $refused =~ /quota of (\d+) /;
	is(sql('SELECT count(*) FROM jobqueue_keys'), $quota, 'which they have used');
	my $other = session(role => 'other');
	is(ask($other, "SELECT count(*) FROM generate_series(1, 1000) i WHERE jobqueue_lock('other' || i)"),
		1000, 'another role still locks keys');
	my $id = enqueue('note', what => 'job', key => 'x');
	wait_state($id, 'completed');
	pass('and jobs run');
	like(sql_error("SELECT jobqueue_xact_lock('y')", role => 'locker'), qr/quota of/, 'not one more');
	ask($s[0], "SELECT jobqueue_unlock(pg_backend_pid() || ':1')");
	is(sql_as('locker', "SELECT jobqueue_xact_lock('y')"), 't', 'unless one is unlocked');
	is(sql_as('locker', "SELECT jobqueue_xact_lock('y')"), 't', 'and again');
	like(sql_error("SELECT jobqueue_xact_lock('y'), jobqueue_xact_lock('z')", role => 'locker'), qr/quota of/, 'not two');
	# a wait counts, too, and not after it has failed
	like(sql_error("SET lock_timeout = '10ms'; SELECT jobqueue_xact_lock('other1')", role => 'locker'),
		qr/lock timeout/, 'one may wait');
	is(sql_as('locker', "SELECT jobqueue_xact_lock('y')"), 't', 'and have another one then');
	$_->quit foreach @s, $other;
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	my $s = session(role => 'locker');
	is(ask($s, "SELECT count(*) FROM generate_series(1, 1024) i WHERE jobqueue_lock('k' || i)"), 1024,
		'the end of a session is the end of what it had of it');
	$s->quit;
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

property 'a session has so many keys and no more' => sub {
	my $s = session();

	is(ask($s, "SELECT count(*) FROM generate_series(1, 1024) i WHERE jobqueue_lock('k' || i)"), 1024, '1024 keys');
	$s->query("SELECT jobqueue_lock('one more')");
	like($s->{stderr}, qr/this session has locked 1024 keys/, 'not one more');
	$s->{stderr} = '';
	is(ask($s, "SELECT jobqueue_lock('k7')"), 't', 'but one of them again');
	ask($s, 'DISCARD ALL');
	is(sql('SELECT count(*) FROM jobqueue_keys'), 0, 'all free');

	my @s;
	my $refused = '';
	foreach ('locker', 'other', 'third')
	{
		($refused, my @more) = lock_many($_, 60);
		push @s, @more;
	}
	like($refused, qr/memory has no place for another key/, 'all roles together leave room for jobs');
	my $id = enqueue('note', what => 'job', key => 'x');
	wait_state($id, 'completed');
	pass('which run');
	$_->quit foreach @s;
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

paused_property 'a key goes after the locks of the transaction' => sub {
	my $s = session();

	sql('CREATE TABLE one_row AS SELECT 1 AS id');
	arm('unlock-after-locks');
	ask($s, "BEGIN; SELECT jobqueue_xact_lock('a'); UPDATE one_row SET id = 2");
	send_sql($s, 'COMMIT');
	caught('unlock-after-locks');
	ok(!free('a'), 'it is still held');
	is(sql('SELECT id FROM one_row FOR UPDATE NOWAIT'), 2, 'its row is committed, and free');
	release('unlock-after-locks');
	answer($s);
	ok(free('a'), 'free');

	arm('unlock-after-locks');
	ask($s, "BEGIN; SAVEPOINT x; SELECT jobqueue_xact_lock('a'); LOCK one_row");
	send_sql($s, 'ROLLBACK TO x');
	caught('unlock-after-locks');
	ok(!free('a'), 'ROLLBACK TO: it is still held');
	is(sql('BEGIN; LOCK one_row NOWAIT; ROLLBACK'), '', 'its table is free');
	release('unlock-after-locks');
	answer($s);
	ok(free('a'), 'free');
	ask($s, 'COMMIT');
};

property 'one at a time, whatever sessions and jobs do' => sub {
	sql(<<'END');
CREATE TABLE seen (what text, alone boolean);
GRANT INSERT ON seen TO PUBLIC;
-- who has the key finds this lock free: it goes first
CREATE FUNCTION inside(k int, what text) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO seen VALUES (what, pg_try_advisory_xact_lock(99, k)) $$;
CREATE FUNCTION job(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM inside((args->>'k')::int, 'job');
	IF random() < 0.1 THEN
		RAISE EXCEPTION 'bad luck';
	END IF;
END $$;
SELECT jobqueue_configure('default', backoff => 'constant', backoff_base => '10 ms', max_attempts => 100);
END
	my $run = start_pgbench(<<'END', clients => 8, threads => 2, transactions => 150);
\set k random(1, 3)
\set n random(1, 100)
SELECT jobqueue_enqueue('job', jsonb_build_object('k', :k), key => 'k' || :k);
BEGIN;
\if :n < 50
SELECT jobqueue_xact_lock('k' || :k) AS locked \gset
\elif :n < 80
SELECT jobqueue_xact_lock('k' || :k, '3 ms') AS locked \gset
\else
SELECT jobqueue_try_lock('k' || :k) AS locked \gset
\endif
\if :locked
SELECT inside(:k, 'session');
\if :n >= 80
SELECT jobqueue_unlock('k' || :k);
\endif
\endif
COMMIT;
END
	$run->finish;
	unlike(${ $run->{out} }, qr/ERROR|aborted/, 'no errors') or diag(${ $run->{out} });
	wait_drained();
	is(sql("SELECT count(*) FILTER (WHERE NOT alone) FROM seen"), 0, 'nobody met another one');
	is(sql("SELECT count(*) FROM seen WHERE what = 'job'"), 1200, 'all jobs have run');
	note(sql("SELECT count(*) FROM seen WHERE what = 'session'") . ' times a session had a key');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	pass('all keys are free');
	sql("SELECT jobqueue_drop_queue('default')");
};

property 'kill -9 of a session frees its key with the restart' => sub {
	my $s = session();
	my $offset = crash_offset();

	ask($s, "SELECT jobqueue_lock('a')");
	kill_hard(pid($s));
	wait_crash_restart($offset);
	eval { $s->quit; };
	wait_for("SELECT jobqueue_whereis('a') IS NULL");
	is(sql("SELECT jobqueue_try_lock('a')"), 't', 'free');
};

property 'jobs that wait for a key leave their place to others' => sub {
	my $s = session();
	my $n = sql("SELECT setting::int - 1 FROM pg_settings WHERE name = 'jobqueue.max_workers'");

	$s->query_safe(q{SELECT jobqueue_lock('place')});
	my @waiting = map { enqueue(q{SELECT jobqueue_lock('place')}) } 1 .. $n;
	wait_for("SELECT max(waiting) = $n FROM jobqueue_keys WHERE key = 'place'");
	my $id = enqueue('SELECT 1');
	is(sql("SELECT state FROM jobqueue_wait($id)"), 'completed', 'another one runs');
	$s->query_safe(q{SELECT jobqueue_unlock('place')});
	is(sql("SELECT state FROM jobqueue_wait($_)"), 'completed', 'and they do in the end') foreach @waiting;
	$s->quit;
};

done_testing();
