# Outside consumers: leases, and what fetched jobs have in common with others:
# keys, limits, order, unique keys, cancels, rights.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

# room for 64 claims
my $node = new_node('lease', conf => "jobqueue.max_ready_jobs = 512\n");

# a job without a command, in the queue
sub put
{
	my ($queue, %opt) = @_;
	my $role = delete $opt{role};
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, queue => '$queue'$list)", role => $role);
}

# fetch with a lease in a session of its own: (id, token)
sub lease
{
	my ($queue, $time, $more) = @_;
	$more //= '';
	my $out = sql("SELECT id || ' ' || token FROM jobqueue_fetch('$queue', lease => '$time'$more)");
	return split / /, $out;
}

sub fetch
{
	my ($s, $queue, $more) = @_;
	$more //= '';
	return $s->query_safe("SELECT coalesce(string_agg(id::text, ' '), '') FROM jobqueue_fetch('$queue', 10$more)");
}

# whatever is left; what memory has of deleted rows is dropped by who takes it
sub clean
{
	sql('DELETE FROM jobqueue_job; DELETE FROM jobqueue_archive');
	sql('SELECT jobqueue_sweep()');
	memory_empties('nothing is left in memory');
}

property 'a lease outlives its session, and its token is checked' => sub {
	my $id = put('l', key => 'k');
	my ($got, $token) = lease('l', '1 h');
	is($got, $id, 'leased');
	is(sql("SELECT job || ' ' || (pid IS NULL) FROM jobqueue_keys"), "$id true", 'the lease has the key, no process');
	like(sql_error("SELECT jobqueue_complete($id)"), qr/is leased with another token/, 'not without a token');
	like(sql_error("SELECT jobqueue_complete($id, token => gen_random_uuid())"), qr/is leased with another token/, 'not with another one');
	is(sql("SELECT count(*) FROM jobqueue_fetch('l')"), '0', 'nobody else gets it');
	is(sql("SELECT jobqueue_extend($id, '2 h', '$token') > now() + '119 min'"), 't', 'extended');
	is(sql("SELECT leased_until > now() + '119 min' FROM jobqueue_running"), 't', 'as all can see');
	sql("SELECT jobqueue_complete($id, '1', '$token')");
	is(sql('SELECT count(*) FROM jobqueue_lease'), '0', 'no lease is left');
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')"), qr/is not fetched/, 'not twice');
	clean();
};

property 'a lease that is over is a failed attempt, its token is of no use' => sub {
	my $id = put('l');
	my ($got, $token) = lease('l', '10 ms');
	wait_for("SELECT attempt = 1 FROM jobqueue_job");
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')"), qr/is not fetched|the lease of job $id has ended/, 'too late');
	my $s = session();
	my ($again, $other) = split / /, $s->query_safe("SELECT id || ' ' || token FROM jobqueue_fetch('l', lease => '1 h', wait => '1 min')");
	is($again, $id, 'fetched again');
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')"), qr/is leased with another token/, 'a stale token');
	is(sql("SELECT (errors->0->>'error') LIKE 'consumer lost%' FROM jobqueue_job"), 't', 'consumer lost');
	sql("SELECT jobqueue_release($id, '$other')");
	is(sql('SELECT attempt FROM jobqueue_job'), '1', 'a release is not charged');
	clean();
};

property 'a lease does not end under a running complete' => sub {
	my ($s, $o) = (session(), session());
	my ($a, $b) = (put('l'), put('l'));
	# nothing is between the two that could last
	my $begin = sub {
		my ($of) = @_;
		my $token = $of->query_safe(<<'END');
SELECT id, token FROM jobqueue_fetch('l', lease => '5 s') \gset
BEGIN;
SELECT jobqueue_complete(:id, token => :'token') \g /dev/null
\echo :token
END
		return $token;
	};
	my $ta = $begin->($s);
	$begin->($o);
	# a third one ends after both
	put('l', key => 'last');
	lease('l', '5 s');
	wait_for("SELECT count(*) = 1 FROM jobqueue_job WHERE key = 'last' AND attempt = 1");
	is(sql("SELECT count(*) FROM jobqueue_job WHERE attempt > 0"), '1', 'neither of the two is lost');
	like(sql_error("SELECT jobqueue_complete($a, token => '$ta')"), qr/another transaction has to do/, 'nobody else touches it');
	$s->query_safe('COMMIT');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $a"), '0', 'completed');
	$o->query_safe('ROLLBACK');
	wait_for("SELECT attempt = 1 FROM jobqueue_job WHERE id = $b");
	pass('the other is lost when that has been given up');
	clean();
};

property 'leases, with their keys, survive restart and crash' => sub {
	my $id = put('l', key => 'k', unique_key => 'u', unique_until => 'while_executing');
	my $over = put('l');
	my ($got, $token) = lease('l', '1 h');
	my ($got2, $token2) = lease('l', '1 h');
	my $waiting = enqueue('note', key => 'k', what => 'next');
	$node->restart;
	wait_for("SELECT count(*) = 2 FROM jobqueue_running WHERE leased_until IS NOT NULL");
	is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, 'it has its key');
	wait_state($waiting, 'blocked');
	is(sql("SELECT count(*) FROM jobqueue_fetch('l', 5)"), '0', 'nobody else gets them');
	my $offset = crash_offset();
	my $s = session();
	kill_hard($s->query_safe('SELECT pg_backend_pid()'));
	wait_crash_restart($offset);
	wait_for("SELECT count(*) = 2 FROM jobqueue_running WHERE leased_until IS NOT NULL");
	sql("SELECT jobqueue_complete($id, token => '$token')");
	wait_for("SELECT count(*) = 1 FROM ran WHERE job = $waiting");
	is(ran(), 'next', 'the job that waited for the key has run');
	sql("SELECT jobqueue_fail($over, 'no', '1 h', '$token2')");
	is(sql('SELECT attempt FROM jobqueue_job'), '1', 'failed once');
	forget();
	clean();
};

property 'a lease has its key, and is known, before memory has read it' => sub {
	my $id = put('l', key => 'k');
	my ($got, $token) = lease('l', '1 h');
	my $other = enqueue('note', what => 'runs');
	wait_state($other, 'completed');
	my $same = sql(q{SELECT jobqueue_enqueue('SELECT 1', key => 'k', run_at => 'tomorrow')});
	set_conf('jobqueue.enabled' => 'off');
	$node->restart;
	my ($s, $waits, $ends) = map { session() } 1 .. 3;
	is($s->query_safe("SELECT jobqueue_try_lock('k')"), 'f', 'nobody else has its key');
	is($s->query_safe("SELECT jobqueue_lock('k', '10 ms')"), 'f', 'nor who waits for it');
	is($s->query_safe("SELECT jobqueue_try_lock('other')"), 't', 'others are free');
	like(sql_error("SELECT jobqueue_run($same)"), qr/key "k" of job $same is held/, 'nor a job');
	send_sql($waits, "SELECT jobqueue_lock('k')");
	send_sql($ends, "SELECT jobqueue_extend($id, '2 h', '$token') > now()");
	set_conf('jobqueue.enabled' => 'on');
	$other = enqueue('note', what => 'runs');
	wait_state($other, 'completed');
	$ends->query('SELECT 1');
	is($ends->{stderr}, '', 'whoever has the token is not told that it has ended');
	is(sql("SELECT id FROM jobqueue_running WHERE leased_until > now() + '1 h 30 min'"), $id, 'memory has it');
	wait_for("SELECT job = $id AND waiting = 1 FROM jobqueue_keys WHERE key = 'k'");
	sql("SELECT jobqueue_complete($id, token => '$token')");
	$waits->query_safe('SELECT 1');
	is(sql("SELECT job IS NULL AND pid IS NOT NULL FROM jobqueue_keys WHERE key = 'k'"), 't', 'then who waits has the key');
	$_->quit foreach $s, $waits, $ends;
	forget();
	clean();
};

property 'DISCARD ALL ends what a session has fetched' => sub {
	my $id = put('l', key => 'k');
	my $s = session();
	is(fetch($s, 'l'), $id, 'fetched');
	$s->query_safe('DISCARD ALL');
	wait_for("SELECT attempt = 1 FROM jobqueue_job");
	is(sql('SELECT count(*) FROM jobqueue_keys WHERE pid IS NOT NULL'), '0', 'the key is free');
	is($s->query_safe("SELECT id FROM jobqueue_fetch('l', wait => '1 min')"), $id, 'fetched again');
	$s->query("DISCARD ALL;\nSELECT jobqueue_complete($id)");
	like($s->{stderr}, qr/job $id is not fetched/, 'it is told so, even at once');
	clean();
};

property 'cancel: the consumer is told, and the job is not run again' => sub {
	my $id = put('l', key => 'k');
	my $s = session();
	is(fetch($s, 'l'), $id, 'fetched');
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled');
	is(sql("SELECT count(*) FROM jobqueue_keys"), '1', 'it still has its key');
	$s->query("SELECT jobqueue_complete($id)");
	wait_state($id, 'cancelled');
	$s = session();
	is(sql('SELECT count(*) FROM jobqueue_keys'), '0', 'its key is free');
	$id = put('l');
	is(fetch($s, 'l'), $id, 'another one');
	sql("SELECT jobqueue_cancel($id)");
	$s->quit;
	wait_state($id, 'cancelled');
	$id = put('l');
	my ($got, $token) = lease('l', '1 h');
	sql('SELECT jobqueue_cancel_where(NULL, \'running\', NULL)');
	like(sql_error("SELECT jobqueue_extend($id, '1 h', '$token')"), qr/was cancelled/, 'one that is leased');
	wait_state($id, 'cancelled');
	$s = session();
	$id = put('l');
	is($s->query_safe("BEGIN; SELECT id FROM jobqueue_fetch('l')"), $id, 'fetched, not committed');
	sql("SELECT jobqueue_cancel($id)");
	$s->query_safe('ROLLBACK');
	wait_state($id, 'cancelled');
	$s->quit;
	clean();
};

property 'limits count what is fetched, over workers and consumers' => sub {
	sql(q{SELECT jobqueue_configure('lim', max_running => 2)});
	my @ids = map { put('lim') } 1 .. 3;
	my $s = session();
	is(fetch($s, 'lim'), "@ids[0, 1]", 'no more than two');
	my $job = enqueue('note', queue => 'lim', what => 'worker');
	wait_for("SELECT jobqueue_explain($job) LIKE '2 of 2 jobs of queue%'");
	$s->query_safe("SELECT jobqueue_complete($ids[0])");
	wait_for("SELECT count(*) = 1 FROM ran");
	is(fetch($s, 'lim', ", '1 min'"), $ids[2], 'the third');
	$s->query_safe("SELECT jobqueue_complete(id) FROM unnest('{$ids[1],$ids[2]}'::bigint[]) id");
	# a waiting consumer is handed the place
	my $gate = close_gate(1);
	my @gates = map { enqueue('gate', queue => 'lim', gate => 1) } 1 .. 2;
	wait_at_gate(2);
	$s->query_safe('CREATE TEMP TABLE got AS SELECT NULL::bigint AS id WHERE false');
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('lim', 1, '1 min')");
	my $id = put('lim');
	open_gate($gate);
	is($s->query_safe('SELECT id FROM got'), $id, 'woken when a worker has ended');
	$s->query_safe("SELECT jobqueue_complete($id)");
	sql(q{SELECT jobqueue_configure('lim', max_running => 0, rate => 1, rate_per => '1 day')});
	put('lim');
	is(fetch($s, 'lim'), '', 'no token');
	$s->quit;
	forget();
	sql(q{SELECT jobqueue_configure('lim', rate => 0)});
	clean();
};

property 'pause and quiesce keep consumers from fetching' => sub {
	my $id = put('p');
	sql(q{SELECT jobqueue_pause('p')});
	my $s = session();
	my $nothing = "SELECT id FROM jobqueue_fetch('p', wait => '10 ms')";
	like(sql_error($nothing), qr/queue "p" is paused/, 'paused');
	like(sql_error("CALL jobqueue_fetch_wait('p', wait => '0')"), qr/queue "p" is paused/, 'for the procedure, too');
	sql(q{SELECT jobqueue_resume('p')});
	sql('SELECT jobqueue_quiesce()');
	is(fetch($s, 'p', ", '10 ms'"), '', 'quiesced');
	sql('SELECT jobqueue_resume()');
	is(fetch($s, 'p', ", '1 min'"), $id, 'resumed');
	is(sql("SELECT jobqueue_quiesce('0')"), 'f', 'what a session has fetched is waited for');
	sql('SELECT jobqueue_resume()');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
};

property 'ordered: later jobs of the key wait for one that failed' => sub {
	sql(q{SELECT jobqueue_configure('o', ordered => true)});
	my @ids = map { put('o', key => 'k') } 1 .. 2;
	my $s = session();
	is(fetch($s, 'o'), $ids[0], 'the first');
	$s->query_safe("SELECT jobqueue_fail($ids[0], 'not now', '1 h')");
	is(fetch($s, 'o'), '', 'the second waits');
	wait_for("SELECT jobqueue_explain($ids[1]) LIKE 'waits for job $ids[0] of key%'");
	sql("SELECT jobqueue_reschedule($ids[0], NULL)");
	is(fetch($s, 'o', ", '1 min'"), $ids[0], 'the first again');
	$s->quit;
	$s = session();
	is(fetch($s, 'o', ", '1 min'"), $ids[0], 'its consumer was lost: the first again, not the second');
	$s->query_safe("SELECT jobqueue_fail($ids[0], 'not now', '1 h')");
	sql("SELECT jobqueue_cancel($ids[0])");
	is(fetch($s, 'o', ", '1 min'"), $ids[1], 'now the second');
	$s->query_safe("SELECT jobqueue_complete($ids[1])");
	$s->quit;
	clean();
};

property 'unique while executing, and until executing' => sub {
	my $a = put('u', unique_key => 'x', unique_until => 'while_executing');
	my $b = put('u', unique_key => 'x', unique_until => 'while_executing');
	my $s = session();
	is(fetch($s, 'u'), $a, 'only the first');
	is(sql("SELECT state || ': ' || reason FROM jobqueue_jobs WHERE id = $b"), 'cancelled: a job of unique_key "x" is running', 'the other as on_conflict says');
	my $c = put('u', unique_key => 'x', unique_until => 'while_executing', on_conflict => 'reschedule', unique_for => '1 h');
	is(fetch($s, 'u'), '', 'nor a third one');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $c"), 'scheduled', 'that is put off');
	$s->query_safe("SELECT jobqueue_complete($a)");
	sql("SELECT jobqueue_reschedule($c, NULL)");
	is(fetch($s, 'u', ", '1 min'"), $c, 'now it may');
	$s->query_safe("SELECT jobqueue_complete($c)");
	my $d = put('u', unique_key => 'y', unique_until => 'executing');
	is(put('u', unique_key => 'y', unique_until => 'executing'), '', 'a duplicate');
	$s->query_safe('BEGIN');
	is(fetch($s, 'u'), $d, 'fetched');
	$s->query_safe('ROLLBACK');
	is(put('u', unique_key => 'y', unique_until => 'executing'), '', 'still a duplicate');
	is(fetch($s, 'u'), $d, 'fetched');
	isnt(put('u', unique_key => 'y', unique_until => 'executing'), '', 'none any more');
	$s->quit;
	wait_for("SELECT attempt = 1 FROM jobqueue_job WHERE id = $d");
	clean();
};

property 'consumers have rights on queues' => sub {
	sql(q{CREATE ROLE consumer LOGIN; CREATE ROLE enqueuer LOGIN; SELECT jobqueue_grant('enqueuer', 'use')});
	my $id = put('allowed', role => 'enqueuer');
	like(sql_error("SELECT * FROM jobqueue_fetch('allowed')", role => 'consumer'), qr/permission denied/, 'without the level');
	sql(q{SELECT jobqueue_grant('consumer', 'consume', 'allowed')});
	like(sql_error("SELECT * FROM jobqueue_fetch('other')", role => 'consumer'), qr/permission denied to fetch from queue "other"/, 'of another queue');
	is(sql_as('consumer', "SELECT jobqueue_complete(id) FROM jobqueue_fetch('allowed')"), '', 'fetched and completed');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $id"), '0', 'gone');
	like(sql_error("SELECT jobqueue_enqueue(NULL)", role => 'consumer'), qr/permission denied/, 'a consumer enqueues nothing');
	sql(q{SELECT jobqueue_grant('consumer', 'consume')});
	is(sql_as('consumer', "SELECT count(*) FROM jobqueue_fetch('other')"), '0', 'of all queues');
	my $s = session(role => 'consumer');
	is(fetch($s, 'other'), '', 'a session');
	sql(q{SELECT jobqueue_revoke('consumer', 'consume')});
	like(sql_error("SELECT * FROM jobqueue_fetch('allowed')", role => 'consumer'), qr/permission denied/, 'revoked');
	like(sql_error("SELECT jobqueue_grant('consumer', 'use', 'q')"), qr/is not given for a queue/, 'no other level is of a queue');
	$s->quit;
};

property 'jobqueue_fetch_wait() gives what is true of each job' => sub {
	# each enqueued at a time of its own
	sql(qq{SELECT jobqueue_enqueue(NULL, $_, queue => 'all')})
		foreach 'NULL', q{'{"n": [1, null]}', key => 'k', tags => '{a,"b c"}'}, q{'"text"', priority => 7}, q{'8', key => 'l'};
	my $jobs = sql("CALL jobqueue_fetch_wait('all', 10, lease => '1 h')");
	is(sql(qq{SELECT jsonb_agg(jsonb_build_object('id', id, 'args', args, 'key', key, 'attempt', attempt + 1,
			'priority', priority, 'tags', tags, 'enqueued_at', enqueued_at, 'token', l.token) ORDER BY priority, id)
		FROM jobqueue_job j JOIN jobqueue_lease l ON l.job = j.id WHERE queue = 'all'}), $jobs, 'as the rows say it');
	is(sql(q{SELECT count(DISTINCT enqueued_at) FROM jobqueue_job WHERE queue = 'all'}), '4', 'which are not the same');
	sql('SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease');
};

property 'jobqueue_fetch_wait() holds no snapshot while it waits' => sub {
	my $s = session();
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	send_sql($s, "CALL jobqueue_fetch_wait('fw', 3)");
	wait_for("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	is(sql("SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $pid"), 't', 'no xmin');
	my $id = put('fw');
	wait_for("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid");
	is(sql("SELECT pid FROM jobqueue_running WHERE id = $id"), $pid, 'fetched');
	like(sql("SELECT jobqueue_explain($id)"), qr/^fetched by pid $pid since .*, attempt 1 of 10$/, 'explained');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
};

property 'a job may fetch with a lease only' => sub {
	my $id = put('j');
	my $job = enqueue(q{SELECT id FROM jobqueue_fetch('j')}, max_attempts => 1);
	wait_state($job, 'dead');
	like(sql("SELECT errors->0->>'error' FROM jobqueue_jobs WHERE id = $job"), qr/a job cannot fetch jobs for its session/, 'refused');
	$job = enqueue(q{SELECT id FROM jobqueue_fetch('j', lease => '1 h')});
	wait_state($job, 'completed');
	sql("SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease");
	clean();
};

property 'more than memory has room for: an error that says so' => sub {
	sql("SELECT count(jobqueue_enqueue(NULL, queue => 'l')) FROM generate_series(1, 38)");
	my $s = session();
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('l', 100)"), '32', 'so many');
	like(sql_error("SELECT * FROM jobqueue_fetch('l')"), qr/too many jobs are fetched/, 'and no more');
	my $worker = enqueue('note', what => 'runs');
	wait_state($worker, 'completed');
	is($s->query_safe("SELECT count(*) FROM (SELECT jobqueue_complete(id) FROM jobqueue_running WHERE pid = pg_backend_pid() OFFSET 0) x"), '32', 'completed');
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('l', 100)"), '6', 'then the others');
	$s->query_safe("SELECT jobqueue_release(id) FROM jobqueue_running WHERE pid = pg_backend_pid()");
	$s->quit;
	forget();
	clean();
};

property 'a job that this transaction ends cannot come back in it' => sub {
	my $id = put('l', max_attempts => 1);
	like(sql_error("BEGIN; SELECT id FROM jobqueue_fetch('l'); SELECT jobqueue_fail($id); SELECT jobqueue_retry($id)"), qr/is ended by its consumer in this transaction/, 'refused');
	is(sql("BEGIN; SELECT count(*) FROM jobqueue_fetch('l'); SELECT jobqueue_fail($id); COMMIT; SELECT jobqueue_retry($id)"), "1\n\nt", 'after the commit it may');
	wait_state($id, 'ready');
	clean();
};

paused_property 'terminated while it carries out its commit: the job is gone' => sub {
	my $id = put('l', key => 'k');
	my $s = session();
	is(fetch($s, 'l'), $id, 'fetched');
	arm('fetch-before-carry-out');
	send_sql($s, "SELECT jobqueue_complete($id)");
	my $pid = caught('fetch-before-carry-out');
	is(sql("SELECT count(*) FROM jobqueue_job"), '0', 'it has committed');
	sql("SELECT pg_terminate_backend($pid)");
	release('fetch-before-carry-out');
	wait_gone($pid);
	is(sql("SELECT outcome FROM jobqueue_recent WHERE id = $id"), 'completed', 'completed');
	is(sql('SELECT count(*) FROM jobqueue_keys'), '0', 'its key is free');
	clean();
};

property 'leases are read after a start, however full memory is by then' => sub {
	sql('ALTER SYSTEM SET jobqueue.max_lanes = 8; ALTER SYSTEM SET jobqueue.max_ready_jobs = 128');
	# memory is full of jobs; then there is no lane left
	foreach my $queues (1, 20)
	{
		my $id = put('l', key => 'k');
		my (undef, $token) = lease('l', '1 h');

		# nobody reads leases for a while after the start
		sql("BEGIN; LOCK TABLE jobqueue_lease; PREPARE TRANSACTION 'unread'");
		$node->restart;
		sql("SELECT count(jobqueue_enqueue('note', '{\"what\": \"x\"}', queue => 'q' || i % $queues)) FROM generate_series(1, 200) i");
		wait_for('SELECT count(*) > 0 FROM pg_locks WHERE NOT granted');
		sql("ROLLBACK PREPARED 'unread'");
		wait_for('SELECT count(*) = 200 FROM ran');
		is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, "$queues queues: the lease has its key");
		sql("SELECT jobqueue_complete($id, '1', '$token')");
		wait_drained();
		forget();
		memory_empties('nothing is left in memory');
	}
};

property 'leases are read after a start, however full memory is of jobs of another database' => sub {
	sql('CREATE DATABASE other');
	JobqueueTest::add_database('other');
	# no role may run more at once; so one of each queue waits at the gate
	foreach my $queues (1, 20)
	{
		my $id = put('l', key => 'k');
		my (undef, $token) = lease('l', '1 h');

		sql("BEGIN; LOCK TABLE jobqueue_lease; PREPARE TRANSACTION 'unread'");
		$node->restart;
		my $gate = close_gate(1, db => 'other');
		enqueue('gate', gate => 1, db => 'other', queue => 'q0') foreach (1 .. 7);
		wait_at_gate(7);
		sql("SELECT count(jobqueue_enqueue('note', '{\"what\": \"x\"}', queue => 'q' || i % $queues)) FROM generate_series(1, 200) i", db => 'other');
		sql('SELECT jobqueue_sweep()');
		wait_for('SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation IS NOT NULL');
		sql("ROLLBACK PREPARED 'unread'");
		wait_for("SELECT job = $id FROM jobqueue_keys WHERE key = 'k'");
		is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, "$queues queues: the lease has its key");
		sql("SELECT jobqueue_complete($id, '1', '$token')");
		open_gate($gate);
		wait_drained(db => 'other');
		is(sql(q{SELECT count(*) FROM ran WHERE what = 'x'}, db => 'other'), '200', 'the other ones have run');
		forget(db => 'other');
		memory_empties('nothing is left in memory');
	}
};

done_testing();
