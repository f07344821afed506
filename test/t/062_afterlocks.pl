# Who ends, or gives up, lets go of keys, jobs and unique_keys when its locks are
# released: whoever comes next does not meet them, though he asks without waiting.
# And who has committed is in nobody's way, though he has not let go yet.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('afterlocks');
sql(<<'END');
CREATE TABLE locked ();
CREATE FUNCTION lock_table(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	LOCK TABLE locked IN SHARE ROW EXCLUSIVE MODE NOWAIT;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;
CREATE FUNCTION lock_key(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT jobqueue_xact_lock('a key', '0') THEN
		RAISE EXCEPTION 'it is locked';
	END IF;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;
CREATE FUNCTION snoozes(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES (args->>'what');
	PERFORM jobqueue_snooze('1 hour');
END $$;
END

# a job of the unique_key that the others have, too
sub unique
{
	my ($command, $what, %opt) = @_;
	return enqueue($command, what => $what, unique_key => 'u', unique_until => 'while_executing',
		on_conflict => 'raise', max_attempts => 1, %opt);
}

# jobs of this queue run in sessions only
sub paused
{
	my ($queue) = @_;
	sql("SELECT jobqueue_pause('$queue')");
	return $queue;
}

sub tidy
{
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job');
	sql(q{SELECT jobqueue_resume(q) FROM unnest('{here, out}'::text[]) q});
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
}

# nothing but the first has run; the point lets its process go, and both have
sub only_then
{
	my ($point, $first, $all) = @_;

	wait_quiet();
	is(ran(), $first, 'not yet');
	release($point);
	wait_for("SELECT string_agg(what, ' ' ORDER BY n) = '$all' FROM ran");
	pass('it runs');
	is(sql(q{SELECT count(*) FROM jobqueue_history WHERE state = 'dead'}), 0, 'it did not fail');
}

# ---- workers ----------------------------------------------------------------

paused_property 'while_executing: locks of the one before are gone' => sub {
	arm('unique-before-locks');
	unique('lock_table', 'one');
	caught('unique-before-locks');
	unique('lock_table', 'two');
	only_then('unique-before-locks', 'one', 'one two');
	tidy();
};

paused_property 'while_executing: keys that the one before has locked are free' => sub {
	arm('unlock-after-locks');
	unique('lock_key', 'one');
	caught('unlock-after-locks');
	unique('lock_key', 'two');
	only_then('unlock-after-locks', 'one', 'one two');
	tidy();
};

paused_property 'while_executing: one that has committed refuses nobody, though it runs again' => sub {
	arm('unique-after-locks');
	unique('snoozes', 'one');
	caught('unique-after-locks');
	unique('note', 'two');
	only_then('unique-after-locks', 'one', 'one two');
	tidy();
};

paused_property 'while_executing: ordered, who meets one that has committed is not passed' => sub {
	sql(q{SELECT jobqueue_configure('ord', ordered => true)});
	arm('unique-after-locks');
	unique('note', 'one', queue => 'ord', key => 'k1');
	caught('unique-after-locks');
	my $two = unique('note', 'two', queue => 'ord', key => 'k2');
	enqueue('note', what => 'three', queue => 'ord', key => 'k2');
	wait_quiet(queue => 'ord');
	# again and again
	my $last = '';
	foreach (1 .. 5)
	{
		wait_for("SELECT e ~ '^could not be started' AND e <> '$last' FROM jobqueue_explain($two) e");
		$last = sql("SELECT jobqueue_explain($two)");
	}
	only_then('unique-after-locks', 'one', 'one two three');
	tidy();
};

# ---- sessions ---------------------------------------------------------------

paused_property 'jobqueue_run() waits for the end of a commit' => sub {
	arm('unique-after-locks');
	unique('note', 'one', queue => 'here');
	caught('unique-after-locks');
	my $two = unique('note', 'two', queue => paused('here'));
	my $s = session();
	my $pid = $s->query_safe('SELECT pg_backend_pid()');

	send_sql($s, "SELECT jobqueue_run($two)");
	wait_for("SELECT state = 'active' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	release('unique-after-locks');
	$s->query_safe('SELECT 1');
	is(ran(), 'one two', 'it has run');
	tidy();
};

foreach my $how ('ROLLBACK', 'ROLLBACK TO s')
{
	foreach my $what ('key', 'unique_key')
	{
		paused_property "$how: the $what of a job that ran here is free after its locks" => sub {
			my @opt = $what eq 'key' ? (key => 'k') : (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'reschedule', unique_for => '10 ms');
			my $job = enqueue('note', what => 'rolled back', queue => paused('here'), @opt);
			my $s = session();

			$s->query_safe('BEGIN');
			$s->query_safe('SAVEPOINT s') if $how ne 'ROLLBACK';
			$s->query_safe("LOCK TABLE locked; SELECT jobqueue_run($job)");
			# unique_keys are of their queue
			sql("SELECT jobqueue_resume('here')");
			arm('held-before-locks');
			send_sql($s, $how);
			caught('held-before-locks');
			enqueue('lock_table', what => 'two', queue => 'here', priority => -1, max_attempts => 1, @opt);
			wait_quiet();
			is(ran(), '', 'not yet');
			release('held-before-locks');
			wait_drained();
			$s->query_safe($how eq 'ROLLBACK' ? 'SELECT 1' : 'COMMIT');
			is(sql(q{SELECT string_agg(what, ', ' ORDER BY what) FROM ran}), 'rolled back, two', 'then both');
			is(sql(q{SELECT count(*) FROM jobqueue_history WHERE state = 'dead'}), 0, 'without a failure');
			tidy();
		};
	}
}

paused_property 'who waits for a job that runs in a session is told after its locks' => sub {
	my $job = enqueue('note', what => 'one', queue => paused('here'));
	my $s = session();
	my $waiter = session();
	my $pid = $waiter->query_safe('SELECT pg_backend_pid()');

	$s->query_safe("BEGIN; LOCK TABLE locked; SELECT jobqueue_run($job)");
	send_sql($waiter, "BEGIN; SELECT jobqueue_wait($job, '1 hour'); LOCK TABLE locked NOWAIT; INSERT INTO ran (what) VALUES ('told'); COMMIT");
	wait_for("SELECT state = 'active' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	arm('run-before-locks');
	send_sql($s, 'COMMIT');
	caught('run-before-locks');
	only_then('run-before-locks', 'one', 'one told');
	tidy();
};

# ---- consumers --------------------------------------------------------------

sub put
{
	my (%opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, queue => 'out'$list)");
}

sub fetch
{
	my ($s, $wait) = @_;
	return $s->query_safe("SELECT coalesce(string_agg(id::text, ' '), '') FROM jobqueue_fetch('out', 1, '$wait')");
}

foreach my $how ('ROLLBACK', 'ROLLBACK TO s')
{
	paused_property "$how: what was fetched can be fetched after its locks" => sub {
		my $job = put();
		my $s = session();
		my $next = session();

		$s->query_safe('BEGIN');
		$s->query_safe('SAVEPOINT s') if $how ne 'ROLLBACK';
		$s->query_safe('LOCK TABLE locked');
		is(fetch($s, 0), $job, 'fetched');
		arm('fetch-before-locks');
		send_sql($s, $how);
		caught('fetch-before-locks');
		is(fetch($next, 0), '', 'not yet');
		release('fetch-before-locks');
		$next->query_safe('BEGIN');
		is(fetch($next, '1 min'), $job, 'then it is');
		$next->query_safe("LOCK TABLE locked NOWAIT; SELECT jobqueue_complete($job); COMMIT");
		$s->query_safe($how eq 'ROLLBACK' ? 'SELECT 1' : 'COMMIT');
		tidy();
	};
}

# a session that has committed the failure of the job, and still holds its claim
sub fail_and_stand
{
	my ($job) = @_;
	my $s = session();

	$s->query_safe('BEGIN');
	is(fetch($s, 0), $job, 'fetched');
	$s->query_safe("SELECT jobqueue_fail($job, 'in vain', '1 hour')");
	arm('fetch-before-carry-out');
	send_sql($s, 'COMMIT');
	caught('fetch-before-carry-out');
}

paused_property 'a claim that has been given up refuses nobody' => sub {
	my %opt = (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'raise');
	my $next = session();

	fail_and_stand(put(%opt));
	my $two = put(%opt);
	is(fetch($next, 0), '', 'not yet');
	release('fetch-before-carry-out');
	$next->query_safe('BEGIN');
	is(fetch($next, '1 min'), $two, 'then it is');
	$next->query_safe("SELECT jobqueue_complete($two); COMMIT");
	is(sql(q{SELECT count(*) FROM jobqueue_history WHERE state = 'dead'}), 0, 'nor is it dead');
	tidy();
};

property 'a claim that has been extended refuses as before' => sub {
	my %opt = (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'raise');
	my $one = put(%opt);
	my ($id, $token) = split / /, sql(q{SELECT id || ' ' || token FROM jobqueue_fetch('out', lease => '1 h')});

	is($id, $one, 'leased');
	sql("SELECT jobqueue_extend($one, '2 h', '$token')");
	my $two = put(%opt);
	is(sql(q{SELECT count(*) FROM jobqueue_fetch('out')}), 0, 'another is not given');
	wait_state($two, 'dead');
	pass('it is refused');
	my $here = unique('note', 'two', queue => paused('out'));
	like(sql_error("SELECT jobqueue_run($here)"), qr/is executed now, by job $one/, 'in a session, too');
	sql("SELECT jobqueue_complete($one, token => '$token'); SELECT jobqueue_run($here)");
	is(ran(), 'two', 'until it is completed');
	tidy();
};

property 'jobqueue_run() does not wait for its own commit' => sub {
	my $one = put(unique_key => 'u', unique_until => 'while_executing');
	my $s = session();

	$s->query_safe('BEGIN');
	is(fetch($s, 0), $one, 'fetched');
	my $two = unique('note', 'two', queue => paused('out'));
	$s->query_safe("SELECT jobqueue_complete($one)");
	$s->query("SELECT jobqueue_run($two);\nROLLBACK");
	like($s->{stderr}, qr/is executed now, by job $one/, 'it cannot be run');
	tidy();
};

property 'who completes a job is not given the next of its unique_key, nor is that refused' => sub {
	my %opt = (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'raise');
	my $one = put(%opt);
	my $two = put(%opt, priority => 1);
	my $s = session();

	$s->query_safe('BEGIN');
	is(fetch($s, 0), $one, 'fetched');
	$s->query_safe("SELECT jobqueue_complete($one)");
	is(fetch($s, 0), '', 'not yet');
	$s->query_safe('COMMIT');
	is(fetch($s, '1 min'), $two, 'then it is');
	$s->query_safe("SELECT jobqueue_complete($two)");
	tidy();
};

property 'a claim whose end could not be committed refuses as before' => sub {
	my %opt = (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'raise');
	my $one = put(%opt);
	my ($s, $o) = (session(), session());

	sql('CREATE TABLE a (); CREATE TABLE b ()');
	is(fetch($s, 0), $one, 'fetched');
	$_->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE') foreach $s, $o;
	$s->query_safe('SELECT count(*) FROM a; INSERT INTO b DEFAULT VALUES');
	$o->query_safe('SELECT count(*) FROM b; INSERT INTO a DEFAULT VALUES');
	$s->query_safe("SELECT jobqueue_fail($one, 'in vain', '1 hour')");
	$o->query_safe('COMMIT');
	$s->query('COMMIT');
	like($s->{stderr}, qr/could not serialize access/, 'at the commit');
	$s->{stderr} = '';
	my $two = put(%opt);
	is(sql(q{SELECT count(*) FROM jobqueue_fetch('out')}), 0, 'another is not given');
	wait_state($two, 'dead');
	pass('it is refused');
	$s->query_safe("SELECT jobqueue_complete($one)");
	sql('DROP TABLE a, b');
	tidy();
};

paused_property 'ordered, a job that meets a claim that has been given up is not passed' => sub {
	my %opt = (unique_key => 'u', unique_until => 'while_executing', on_conflict => 'raise');
	sql(q{SELECT jobqueue_configure('out', ordered => true)});
	my $next = session();

	fail_and_stand(put(%opt, key => 'k1'));
	my ($two, $three) = (put(%opt, key => 'k2'), put(key => 'k2'));
	is(fetch($next, 0), '', 'neither is given');
	is(fetch($next, 0), '', 'at no time');
	release('fetch-before-carry-out');
	is(fetch($next, '1 min'), $two, 'then the first');
	$next->query_safe("SELECT jobqueue_complete($two)");
	is(fetch($next, '1 min'), $three, 'and the second');
	$next->query_safe("SELECT jobqueue_complete($three)");
	sql(q{SELECT jobqueue_configure('out', ordered => false)});
	tidy();
};

done_testing();
