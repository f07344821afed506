# Jobs that change, or come back under their number, while somebody has them
# claimed who does not know of it: whoever meets their entry takes it for one that
# is not needed.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('comeback', conf => <<'END');
jobqueue.max_workers = 2
jobqueue.max_workers_per_role = 2
END

# both workers wait
sub stop_both
{
	my $gate = close_gate(1);

	enqueue('gate', gate => 1) foreach 1 .. 2;
	wait_at_gate(2);
	return $gate;
}

# a worker has met what came before in that queue
sub wait_passed
{
	enqueue('note', what => 'passed', queue => 'z');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'passed'});
}

# a cancelled job of which memory has an entry
sub forgotten_job
{
	my ($command, $queue) = @_;

	sql(qq{BEGIN; SELECT jobqueue_cancel(jobqueue_enqueue($command, '{"what": "back"}', queue => '$queue')); COMMIT});
	return sql(q{SELECT max(id) FROM jobqueue_jobs WHERE state = 'cancelled'});
}

# a worker has found that a job is gone, and it has come back since: its number,
# and that of the process
sub comes_back_behind_a_worker
{
	my $s = session();

	sql(q{SELECT jobqueue_pause('z')});
	my $job = forgotten_job(q{'note'}, 'z');
	$s->query_safe("BEGIN; SELECT jobqueue_retry($job)");
	arm('worker-found-none');
	sql(q{SELECT jobqueue_resume('z')});
	my $pid = caught('worker-found-none');
	$s->query_safe('COMMIT');
	return ($job, $pid);
}

# and a consumer: its number, and the session
sub comes_back_behind_a_consumer
{
	my ($s, $consumer) = (session(), session());
	my $job = forgotten_job('NULL', 'c');

	$s->query_safe("BEGIN; SELECT jobqueue_retry($job)");
	arm('fetch-found-none');
	send_sql($consumer, q{SELECT id FROM jobqueue_fetch('c')});
	caught('fetch-found-none');
	$s->query_safe('COMMIT');
	return ($job, $consumer);
}

paused_property 'one that others made ready just before it was cancelled runs when that is undone' => sub {
	my $gate = stop_both();
	my $job = enqueue('note', what => 'late', queue => 'z', run_at => 'tomorrow');
	my $s = session();

	arm('control-looked');
	$s->query_safe('BEGIN');
	send_sql($s, "SELECT jobqueue_cancel($job)");
	caught('control-looked');
	sql(q{SELECT jobqueue_reschedule_where('z', 'scheduled', NULL, NULL)});
	wait_for(q{SELECT ready = 1 FROM jobqueue_status WHERE queue = 'z'});
	release('control-looked');
	like($s->query('SELECT 1'), qr/^t$/m, 'it is cancelled');
	open_gate($gate);
	wait_passed();
	$s->query_safe('ROLLBACK');
	wait_drained();
	is(ran(), 'gate gate passed late', 'it has run');
	memory_empties('memory is empty');
	forget();
};

paused_property 'one that is retried while a worker finds out that it is gone runs' => sub {
	my ($job) = comes_back_behind_a_worker();

	wait_passed();
	release('worker-found-none');
	wait_drained();
	is(ran(), 'passed back', 'it has run');
	memory_empties('memory is empty');
	forget();
};

paused_property 'one that is retried while a consumer finds out that it is gone can be fetched' => sub {
	my ($job, $consumer) = comes_back_behind_a_consumer();

	is(sql(q{SELECT id FROM jobqueue_fetch('c')}), '', 'the other one has it');
	release('fetch-found-none');
	my $fetched = $consumer->query('SELECT 1') =~ /^$job$/m;
	$consumer->quit;
	$fetched ||= sql(q{SELECT id FROM jobqueue_fetch('c')}) eq $job;
	ok($fetched, 'it is given');
	wait_for("SELECT jobqueue_cancel($job)");
	wait_drained();
};

paused_property 'one that is cancelled when it has come back does not run' => sub {
	my ($job) = comes_back_behind_a_worker();

	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('worker-found-none');
	wait_drained();
	is(ran(), '', 'it has not run');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'cancelled', 'and is cancelled');

	($job, my $consumer) = comes_back_behind_a_consumer();
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('fetch-found-none');
	unlike($consumer->query('SELECT 1'), qr/^$job$/m, 'it is not given');
	wait_drained();
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'cancelled', 'and is cancelled');
};

paused_property 'who finds no row can be terminated though the table is locked' => sub {
	my $s = session();

	sql(q{SELECT jobqueue_pause('z')});
	forgotten_job(q{'note'}, 'z');
	arm('worker-found-none');
	sql(q{SELECT jobqueue_resume('z')});
	my $pid = caught('worker-found-none');
	$s->query_safe('BEGIN; LOCK TABLE jobqueue_job IN ACCESS EXCLUSIVE MODE');
	release('worker-found-none');
	wait_for("SELECT count(*) = 1 FROM pg_locks WHERE pid = $pid AND NOT granted");
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	$s->query_safe('ROLLBACK');
	wait_drained();
	memory_empties('memory is empty');
};

foreach my $how ('cancelled', 'cancelled, and its worker terminated,')
{
	paused_property "one that is $how while a worker that found no row waits for the table does not run" => sub {
		my $s = session();
		my ($job, $pid) = comes_back_behind_a_worker();

		$s->query_safe('BEGIN; LOCK TABLE jobqueue_job IN ACCESS EXCLUSIVE MODE');
		release('worker-found-none');
		wait_for("SELECT count(*) = 1 FROM pg_locks WHERE pid = $pid AND NOT granted");
		# it is to find both signals when it looks
		kill('STOP', $pid), kill('TERM', $pid) if $how =~ /terminated/;
		like($s->query("SELECT jobqueue_cancel($job)"), qr/^t$/m, 'it is cancelled');
		kill('CONT', $pid);
		wait_for("SELECT count(*) = 0 FROM pg_locks WHERE pid = $pid AND NOT granted");
		$s->query_safe('COMMIT');
		wait_drained();
		is(ran(), '', 'it has not run');
		is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'cancelled', 'and is cancelled');
	};
}

paused_property 'one that is cancelled when its failure has been recorded does not run again' => sub {
	arm('fail-after-record');
	my $job = enqueue('fail', what => 'failed');
	caught('fail-after-record');
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('fail-after-record');
	wait_drained();
	is(sql("SELECT state, attempt FROM jobqueue_jobs WHERE id = $job"), 'cancelled|1', 'it is');
	forget();
};

paused_property 'a message that is cancelled when it is put off is not handled' => sub {
	sql(q{CREATE FUNCTION handle(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
		BEGIN
			IF message ? 'fail' THEN RAISE 'no'; END IF;
			INSERT INTO ran (what) VALUES (coalesce(message->>'what', 'begin'));
			RETURN state;
		END $$});
	sql(q{SELECT jobqueue_start_service('s', 'handle', '{}', max_restarts => 1)});
	sql(q{SELECT jobqueue_send('s', '{"fail": 1}')});
	wait_for(q{SELECT status = 'failed' FROM jobqueue_services WHERE name = 's'});
	sql(q{SELECT jobqueue_cancel(id) FROM jobqueue_jobs WHERE args ? 'fail'});
	arm('message-before-put-off');
	sql(q{SELECT jobqueue_send('s', '{"what": "not wanted"}')});
	caught('message-before-put-off');
	my $job = sql(q{SELECT id FROM jobqueue_jobs WHERE args->>'what' = 'not wanted'});
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('message-before-put-off');
	wait_for("SELECT state = 'cancelled' FROM jobqueue_jobs WHERE id = $job");
	sql(q{SELECT jobqueue_start_service('s', 'handle', '{}')});
	sql(q{SELECT jobqueue_send('s', '{"what": "next"}')});
	wait_drained();
	unlike(ran(), qr/not wanted/, 'it has not been handled');
	sql(q{SELECT jobqueue_stop_service('s')});
	wait_drained();
	forget();
};

paused_property 'one that is cancelled when a consumer finds its row locked is not given to the next' => sub {
	my $job = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'c')});
	my ($s, $consumer) = (session(), session());

	$s->query_safe("BEGIN; DELETE FROM jobqueue_job WHERE id = $job");
	arm('fetch-taken');
	send_sql($consumer, q{SELECT id FROM jobqueue_fetch('c')});
	caught('fetch-taken');
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('fetch-taken');
	unlike($consumer->query('SELECT 1'), qr/^$job$/m, 'it is not given');
	$s->query_safe('ROLLBACK');
	wait_drained();
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'cancelled', 'and is cancelled');
	wait_for("SELECT owner = current_user::regrole FROM jobqueue_recent WHERE id = $job");
	pass('which its owner is told');
};

paused_property 'one that was cancelled too late, whose worker was terminated then, has completed' => sub {
	my $s = session();

	arm('worker-before-commit');
	my $job = enqueue('note', what => 'done');
	my $pid = caught('worker-before-commit');
	arm('control-looked');
	send_sql($s, "SELECT jobqueue_cancel($job)");
	caught('control-looked');
	arm('worker-after-commit');
	release('worker-before-commit');
	caught('worker-after-commit');
	release('control-looked');
	$s->query('SELECT 1');
	arm('scheduler-before-record');
	sql("SELECT pg_terminate_backend($pid)");
	release('worker-after-commit');
	caught('scheduler-before-record');
	release('scheduler-before-record');
	# the scheduler is done with it
	enqueue('note', what => 'next', run_at => sql(q{SELECT clock_timestamp() + interval '10 ms'}));
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'next'});
	wait_drained();
	is(sql("SELECT string_agg(outcome, ' ') FROM jobqueue_recent WHERE id = $job"), 'completed', 'that is what is told');
	forget();
};

paused_property 'one that others changed just before it was cancelled leaves nothing in memory' => sub {
	my $s = session();

	foreach my $how ([ '-infinity', q{jobqueue_reprioritize_where('c', NULL, NULL, 5)} ],
		[ 'tomorrow', q{jobqueue_reschedule_where('c', 'scheduled', NULL, NULL)} ])
	{
		my $job = sql("SELECT jobqueue_enqueue(NULL, queue => 'c', run_at => '$how->[0]')");

		wait_for(q{SELECT ready + scheduled = 1 FROM jobqueue_status WHERE queue = 'c'});
		arm('control-looked');
		send_sql($s, "SELECT jobqueue_cancel($job)");
		caught('control-looked');
		sql("SELECT $how->[1]");
		wait_for(q{SELECT ready = 1 AND NOT estimated AND spilled = 0 FROM jobqueue_status WHERE queue = 'c'});
		release('control-looked');
		like($s->query('SELECT 1'), qr/^t$/m, "$how->[1]: it is cancelled");
		wait_drained();
		is(sql(q{SELECT ready FROM jobqueue_status WHERE queue = 'c'}), 0, 'numbers are right');
	}
};

paused_property 'one that is retried while somebody else acts on it is acted on' => sub {
	my $gate = stop_both();
	my $job = enqueue('note', what => 'not wanted', queue => 'z');
	my ($s, $other) = (session(), session());

	arm('control-looked');
	arm('control-found-none');
	send_sql($s, "SELECT jobqueue_cancel($job)");
	caught('control-looked');
	sql(q{SELECT jobqueue_cancel_where('z', NULL, NULL)});
	$other->query_safe("BEGIN; SELECT jobqueue_retry($job)");
	release('control-looked');
	caught('control-found-none');
	$other->query_safe('COMMIT');
	open_gate($gate);
	wait_passed();
	# it is not to begin before it is acted on
	$gate = stop_both();
	release('control-found-none');
	like($s->query('SELECT 1'), qr/^t$/m, 'it is cancelled');
	open_gate($gate);
	wait_drained();
	is(ran(), 'gate gate passed gate gate', 'it has not run');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'cancelled', 'and is not lost');
	memory_empties('memory is empty');
	forget();
};

paused_property 'one that is retried while the scheduler lets it go runs' => sub {
	my $gate = stop_both();

	sql(q{SELECT jobqueue_pause('first')});
	my $first = enqueue('note', what => 'first', queue => 'first');
	my $job = enqueue('note', what => 'back', queue => 'z', after => "{$first}");
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_dependency});
	arm('after-before-look');
	sql("SELECT jobqueue_run($first)");
	caught('after-before-look');
	sql("SELECT jobqueue_cancel($job)");
	sql("SELECT jobqueue_retry($job)");
	arm('after-before-commit');
	release('after-before-look');
	caught('after-before-commit');
	open_gate($gate);
	wait_passed();
	release('after-before-commit');
	wait_drained();
	is(ran(), 'first gate gate passed back', 'it has run');
	memory_empties('memory is empty');
	sql(q{SELECT jobqueue_resume('first')});
	forget();
};

node()->stop;
done_testing();
