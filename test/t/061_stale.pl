# What is known of a job, or of the schema, is older than what is in the table: jobs
# that are changed while somebody has them claimed, or waits for their key, where
# memory has room for few; and messages that could not be started for that.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

new_node('stale', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.max_workers = 4
jobqueue.max_workers_per_role = 1
autovacuum = off
END

# more jobs than memory keeps
sub fill
{
	my ($command, $queue, $priority) = @_;

	sql("SELECT count(jobqueue_enqueue($command, '{\"what\": \"x\"}', queue => '$queue', priority => $priority)) FROM generate_series(1, 300)");
}

# the only worker waits
sub stop_worker
{
	my $gate = close_gate(1);

	enqueue('gate', gate => 1, queue => 'gate');
	wait_at_gate(1);
	return $gate;
}

# memory has what it has room for of the table
sub wait_read
{
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
}

# what a scheduler that is asked meanwhile does not know yet
sub while_scheduler_stands
{
	my ($code) = @_;
	my $scheduler = q{FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'};
	my $pid;

	# it holds no lock where it waits, and is still there when it stands
	for (;;)
	{
		wait_for("SELECT count(*) = 1 $scheduler AND wait_event_type = 'Extension'");
		$pid = sql("SELECT pid $scheduler");
		next unless $pid;
		kill('STOP', $pid);
		last if sql("SELECT count(*) $scheduler AND pid = $pid AND wait_event_type = 'Extension'");
		kill('CONT', $pid);
	}
	my $got = eval { $code->() };
	my $error = $@;
	kill('CONT', $pid);
	die $error if $error ne '';
	return $got;
}

# what the scheduler was asked for before has been served: it serves what is due
# before other things, so a second one comes after them
sub wait_served
{
	foreach my $i (1 .. 2)
	{
		sql(q{SELECT jobqueue_enqueue('note', '{"what": "later"}', run_at => clock_timestamp() + interval '0.1 s')});
		wait_for("SELECT count(*) = $i FROM ran WHERE what = 'later'");
	}
}

sub check_drained
{
	wait_drained();
	memory_empties('all have run, and memory is empty');
	forget();
}

property 'one that is changed with many others while a session runs it, which is undone, is not lost' => sub {
	my $gate = stop_worker();
	my $mine = close_gate(2);
	my $job = enqueue('gate', gate => 2, queue => 'z', priority => 3, tags => '{t}');
	my $s = session();
	my $pid = $s->query_safe('SELECT pg_backend_pid()');

	send_sql($s, "SELECT jobqueue_run($job)");
	wait_at_gate(2);
	fill(q{'note'}, 'z', 2);
	is(sql(q{SELECT jobqueue_reprioritize_where('z', NULL, 't', 1)}), 1, 'it is changed');
	wait_read();
	sql("SELECT pg_cancel_backend($pid)");
	$s->query('SELECT 1');
	open_gate($mine);
	open_gate($gate);
	check_drained();
};

paused_property 'one that is changed with many others before the commit of another change is told is not lost' => sub {
	my $gate = stop_worker();
	my $job = enqueue('note', what => 'x', queue => 'z', priority => 0, tags => '{t}');
	my $s = session();

	fill(q{'note'}, 'z', 2);
	arm('enqueue-before-publish');
	send_sql($s, "SELECT jobqueue_reprioritize($job, 3)");
	caught('enqueue-before-publish');
	is(sql(q{SELECT jobqueue_reprioritize_where('z', NULL, 't', 1)}), 1, 'it is changed');
	wait_read();
	release('enqueue-before-publish');
	$s->query('SELECT 1');
	open_gate($gate);
	check_drained();
};

paused_property 'one that is changed by hand while a worker has it that ends before it begins is not lost' => sub {
	arm('worker-claimed');
	my $job = enqueue('note', what => 'changed', queue => 'z', priority => 3);
	my $pid = caught('worker-claimed');

	fill(q{'note'}, 'z', 2);
	sql("UPDATE jobqueue_job SET priority = 1 WHERE id = $job");
	wait_read();
	sql("SELECT pg_terminate_backend($pid)");
	release('worker-claimed');
	check_drained();
};

paused_property 'one that is made ready by hand when its failure has just been recorded runs' => sub {
	sql(q{SELECT jobqueue_configure('slow', backoff_base => '1 hour')});
	arm('fail-after-record');
	my $job = enqueue('fail', what => 'once', queue => 'slow', max_attempts => 2);
	caught('fail-after-record');
	sql("UPDATE jobqueue_job SET run_at = NULL WHERE id = $job");
	wait_read();
	release('fail-after-record');
	wait_state($job, 'dead');
	is(sql("SELECT attempt FROM jobqueue_history WHERE id = $job"), 2, 'a second time');
	forget();
};

property 'one that is changed by hand while a consumer has it, whose fetch is undone, is not lost' => sub {
	my $job = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'c', priority => 3)});
	my $s = session();

	$s->query_safe(q{BEGIN; SELECT id FROM jobqueue_fetch('c')});
	fill('NULL', 'c', 2);
	sql("UPDATE jobqueue_job SET priority = 1 WHERE id = $job");
	wait_read();
	$s->query_safe('ROLLBACK');
	wait_for(q{SELECT count(jobqueue_complete(id)) >= 0 AND NOT EXISTS (SELECT FROM jobqueue_job WHERE queue = 'c') FROM jobqueue_fetch('c', 50)});
	check_drained();
};

property 'no later one of its key passes one that was looked at while it was given back' => sub {
	my ($s, $other) = (session(), session());
	my $job = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'c', key => 'k')});

	$s->query_safe(q{BEGIN; SELECT id FROM jobqueue_fetch('c')});
	sql(q{SELECT jobqueue_enqueue(NULL, queue => 'c', key => 'k')});
	sql("UPDATE jobqueue_job SET priority = priority WHERE id = $job");
	wait_read();
	my $got = while_scheduler_stands(sub {
		$s->query_safe('ROLLBACK');
		return $other->query_safe(q{SELECT id FROM jobqueue_fetch('c')});
	});
	is($got, $job, 'it comes first');
	$other->query_safe("SELECT jobqueue_complete($job)");
	sql(q{SELECT jobqueue_complete(id) FROM jobqueue_fetch('c')});
	check_drained();
};

property 'one that is looked at while the next consumer has it leaves nothing in memory' => sub {
	my ($s, $other) = (session(), session());
	my $job = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'c')});

	$s->query_safe(q{BEGIN; SELECT id FROM jobqueue_fetch('c')});
	sql("UPDATE jobqueue_job SET priority = priority WHERE id = $job");
	wait_read();
	my $got = while_scheduler_stands(sub {
		$s->query_safe('ROLLBACK');
		return $other->query_safe(q{SELECT id FROM jobqueue_fetch('c')});
	});
	is($got, $job, 'he has it');
	wait_served();
	$other->query_safe("SELECT jobqueue_complete($job)");
	check_drained();
};

paused_property 'one that is given back where memory is full is counted once' => sub {
	arm('worker-claimed');
	my $job = enqueue('note', what => 'x', queue => 'z', priority => 3);
	my $pid = caught('worker-claimed');

	sql("UPDATE jobqueue_job SET priority = priority WHERE id = $job");
	wait_read();
	fill(q{'note'}, 'z', 2);
	sql(q{SELECT jobqueue_pause('z')});
	sql("SELECT pg_terminate_backend($pid)");
	release('worker-claimed');
	wait_served();
	is(sql(q{SELECT sum(ready) FROM jobqueue_status WHERE queue = 'z'}), 301, 'it is');
	sql(q{SELECT jobqueue_resume('z')});
	check_drained();
};

property 'who waits for a later job of the key is not kept by one whose row he has changed' => sub {
	my $gate = stop_worker();
	my $s = session();

	sql(q{SELECT jobqueue_configure('o', ordered => true)});
	my $first = enqueue('note', what => 'one', queue => 'o', key => 'k');
	my $second = enqueue('note', what => 'two', queue => 'o', key => 'k');
	$s->query_safe("BEGIN; UPDATE jobqueue_job SET tags = '{x}' WHERE id = $first");
	open_gate($gate);
	is($s->query_safe("SELECT state FROM jobqueue_wait($second, '1 min')"), 'completed', 'it runs');
	$s->query_safe('ROLLBACK');
	check_drained();
};

paused_property 'one whose key is changed by hand while it waits for the old one is not lost' => sub {
	my $s = session();
	my $gate = stop_worker();

	$s->query_safe(q{SELECT jobqueue_lock('k1')});
	my $job = enqueue('note', what => 'moved', queue => 'z', key => 'k1');
	open_gate($gate);
	wait_for(q{SELECT blocked = 1 FROM jobqueue_status WHERE queue = 'z'});
	$gate = stop_worker();
	# its old entry is back in the lane when the new one comes
	arm('refill-after-snapshot');
	sql("UPDATE jobqueue_job SET key = 'k2' WHERE id = $job");
	caught('refill-after-snapshot');
	$s->query_safe(q{SELECT jobqueue_unlock('k1')});
	wait_for(q{SELECT blocked = 0 FROM jobqueue_status WHERE queue = 'z'});
	release('refill-after-snapshot');
	wait_read();
	# and the old key has more jobs than memory keeps, all before it
	sql(q{SELECT jobqueue_pause('z')});
	$s->query_safe(q{SELECT jobqueue_lock('k1')});
	open_gate($gate);
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'y', key => 'k1', priority => -1)) FROM generate_series(1, 200)});
	wait_for(q{SELECT blocked = 200 FROM jobqueue_status WHERE queue = 'y'});
	sql(q{SELECT jobqueue_resume('z')});
	enqueue('note', what => 'met', queue => 'z', priority => 9);
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'met'});
	$s->query_safe(q{SELECT jobqueue_unlock('k1')});
	check_drained();
};

property 'paused queues do not keep a job of another one from memory' => sub {
	sql(q{SELECT jobqueue_configure('p' || i), jobqueue_pause('p' || i) FROM generate_series(1, 9) i});
	sql(q{SELECT count(jobqueue_enqueue('note', queue => 'p' || i)) FROM generate_series(1, 9) i, generate_series(1, 16)});
	enqueue('note', what => 'free', queue => 'z');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'free'});
	sql(q{SELECT jobqueue_resume('p' || i) FROM generate_series(1, 9) i});
	check_drained();
};

property 'the numbers of a paused queue are right when what is in the table only is cancelled, or moved' => sub {
	sql(q{SELECT jobqueue_configure('p'), jobqueue_pause('p')});
	wait_read();
	fill(q{'note'}, 'p', 0);
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'p', key => 'k')) FROM generate_series(1, 50)});
	is(sql(q{SELECT ready, estimated FROM jobqueue_status WHERE queue = 'p'}), '350|f', 'they are');
	sql(q{SELECT count(jobqueue_reprioritize(id, 1)) FROM (SELECT id FROM jobqueue_job ORDER BY id OFFSET 150 LIMIT 20) x});
	is(sql(q{SELECT ready, estimated FROM jobqueue_status WHERE queue = 'p'}), '350|f', 'also after some of them were moved');
	sql(q{SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_job ORDER BY id OFFSET 140) x});
	is(sql(q{SELECT ready, estimated FROM jobqueue_status WHERE queue = 'p'}), '140|f', 'and cancelled');
	sql('SELECT count(jobqueue_cancel(id)) FROM jobqueue_job');
	is(sql(q{SELECT ready, spilled, estimated FROM jobqueue_status WHERE queue = 'p'}), '0|0|f', 'all of them');
	sql(q{SELECT jobqueue_resume('p')});
	check_drained();
};

property 'as many jobs of a key that is held count as blocked as there are' => sub {
	my $s = session();
	my $numbers = sub { return sql(q{SELECT (SELECT sum(blocked) FROM jobqueue_status), (SELECT waiting FROM jobqueue_keys WHERE key = 'k')}); };

	$s->query_safe(q{SELECT jobqueue_lock('k')});
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'z', key => 'k')) FROM generate_series(1, 200)});
	wait_for(q{SELECT blocked = 200 FROM jobqueue_status WHERE queue = 'z'});
	my $gate = stop_worker();
	fill(q{'note'}, 'z', 0);
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'z', key => 'k')) FROM generate_series(1, 150)});
	sql(q{SELECT count(jobqueue_reprioritize(id, 1)) FROM (SELECT id FROM jobqueue_job WHERE key = 'k' ORDER BY id DESC LIMIT 100) x});
	sql(q{SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_job WHERE key = 'k' ORDER BY id DESC LIMIT 150) x});
	is($numbers->(), '200|200', 'beside some that have gone, and were not looked at yet');
	open_gate($gate);
	wait_for(q{SELECT count(*) = 200 FROM jobqueue_job});
	is($numbers->(), '200|200', 'also when all others have run');
	sql(q{SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_job ORDER BY id DESC LIMIT 50) x});
	is($numbers->(), '150|150', 'and fewer when some of those have gone');
	$s->query_safe(q{SELECT jobqueue_unlock('k')});
	check_drained();
};

property 'what is about to be cancelled, which is undone, is counted once' => sub {
	my $s = session();

	sql(q{SELECT jobqueue_configure('p'), jobqueue_pause('p')});
	wait_read();
	fill(q{'note'}, 'p', 0);
	$s->query_safe(q{BEGIN; SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_job ORDER BY id DESC LIMIT 20) x; ROLLBACK});
	is(sql(q{SELECT ready, estimated FROM jobqueue_status WHERE queue = 'p'}), '300|f', 'it is');
	sql(q{SELECT jobqueue_resume('p')});
	check_drained();
};

paused_property 'later messages wait for one that could not be started' => sub {
	sql(q{CREATE FUNCTION handle(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql
		AS $$ SELECT CASE WHEN message ? 'init' THEN state ELSE state || message END $$});
	sql(q{SELECT jobqueue_start_service('s', 'handle', '[]')});
	wait_drained();
	arm('message-before-look');
	my $first = sql(q{SELECT jobqueue_send('s', '1')});
	caught('message-before-look');
	sql(q{SELECT jobqueue_send('s', i::text::jsonb) FROM generate_series(2, 4) i});
	# the only worker gets something else to do after it
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, priority => -9);
	my $offset = -s node()->logfile;
	sql('ALTER TABLE jobqueue_service RENAME TO elsewhere');
	release('message-before-look');
	wait_at_gate(1);
	node()->wait_for_log(qr/WARNING: .* job $first could not be started/, $offset);
	sql('ALTER TABLE elsewhere RENAME TO jobqueue_service');
	open_gate($gate);
	wait_drained();
	is(sql(q{SELECT jobqueue_service_state('s')}), '[1, 2, 3, 4]', 'they have been handled in order');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

paused_property 'the schema is renamed while a message is about to be handled' => sub {
	sql('CREATE DATABASE other');
	sql('CREATE SCHEMA one; CREATE EXTENSION jobqueue SCHEMA one', db => 'other');
	sql(q{CREATE FUNCTION handle(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT message'}, db => 'other');
	sql(q{SELECT one.jobqueue_start_service('s', 'public.handle', '0')}, db => 'other');
	wait_for('SELECT count(*) = 0 FROM one.jobqueue_job', 't', 'other');
	arm('message-before-look');
	sql(q{SELECT one.jobqueue_send('s', '1')}, db => 'other');
	caught('message-before-look');
	my $offset = -s node()->logfile;
	# as long as a name can be, and longer with its quotes
	my $name = '"' . 'New ""' . 'o' x 58 . '"';
	sql("ALTER SCHEMA one RENAME TO $name", db => 'other');
	release('message-before-look');
	wait_for("SELECT count(*) = 0 FROM $name.jobqueue_job", 't', 'other');
	is(sql("SELECT $name.jobqueue_service_state('s')", db => 'other'), '1', 'it is handled');
	sql("SELECT $name.jobqueue_enqueue('SELECT 1', after => ARRAY[$name.jobqueue_enqueue('SELECT 1')])", db => 'other');
	wait_for("SELECT count(*) = 0 FROM $name.jobqueue_job", 't', 'other');
	unlike(slurp_file(node()->logfile, $offset), qr/could not be started|ERROR/, 'at once, and nothing else fails');
	sql('DROP DATABASE other WITH (FORCE)');
};

node()->stop;
done_testing();
