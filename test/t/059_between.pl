# What happens to a job between two looks at it: its row is changed by hand, the
# one before it ends, its service goes.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('between', conf => "deadlock_timeout = 100ms\n");

# a job without a command, in the queue
sub put
{
	my ($queue, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, queue => '$queue'$list)");
}

# what the session is given, at once
sub fetch
{
	my ($s, $queue) = @_;
	return $s->query_safe("SELECT coalesce(string_agg(id::text, ' '), '') FROM jobqueue_fetch('$queue', 10)");
}

# the session asks, and waits for a minute at most; got() is the answer
sub send_fetch
{
	my ($s, $queue) = @_;
	$s->query_safe('SET client_min_messages = warning; CREATE TEMP TABLE IF NOT EXISTS got (id bigint); TRUNCATE got');
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('$queue', 10, '1 min')");
}

sub got
{
	my ($s) = @_;
	return $s->query_safe(q{SELECT coalesce(string_agg(id::text, ' '), '') FROM got});
}

sub complete
{
	my ($s, @ids) = @_;
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids;
}

sub clean
{
	wait_drained();
	# what memory has of deleted rows
	sql('SELECT jobqueue_sweep()');
	memory_empties('memory is empty');
	sql('DELETE FROM jobqueue_archive; TRUNCATE ran');
}

# ---- consumers --------------------------------------------------------------

# the first job of key k of an ordered queue has failed, and is to run again tomorrow
sub first_failed
{
	my ($s) = @_;

	sql(q{SELECT jobqueue_configure('ord', ordered => true, backoff => 'constant', backoff_base => '1 day')});
	my $first = put('ord', key => 'k');
	is(fetch($s, 'ord'), $first, 'the first');
	$s->query_safe("SELECT jobqueue_fail($first)");
	wait_for("SELECT attempt = 1 FROM jobqueue_jobs WHERE id = $first");
	return $first;
}

paused_property 'a job that ends while a consumer looks at the next one of its key' => sub {
	my ($s, $o) = (session(), session());

	my $first = first_failed($s);
	my $second = put('ord', key => 'k');
	arm('order-noted');
	send_fetch($o, 'ord');
	caught('order-noted');
	is(sql("SELECT jobqueue_cancel($first)"), 't', 'it is cancelled');
	release('order-noted');
	is(got($o), $second, 'does not keep it for ever');
	complete($o, $second);
	clean();
};

foreach my $end ('SELECT jobqueue_cancel(%d)', 'SELECT jobqueue_reschedule(%d, NULL)',
	'DELETE FROM jobqueue_job WHERE id = %d; SELECT jobqueue_sweep()')
{
	property "a failed job keeps consumers from the next one of its key until $end" => sub {
		my $s = session();

		my $first = first_failed($s);
		my $second = put('ord', key => 'k');
		is(fetch($s, 'ord'), '', 'the next one waits');
		wait_for("SELECT jobqueue_explain($second) ~ '^waits for job $first'");
		sql(sprintf($end, $first));
		foreach my $id ($end =~ /reschedule/ ? $first : (), $second)
		{
			send_fetch($s, 'ord');
			is(got($s), $id, "job $id is given");
			complete($s, $id);
		}
		clean();
	};
}

paused_property 'a consumer is not refused for a job of its unique_key that has just been completed' => sub {
	my ($s, $o) = (session(), session());

	foreach my $until ('while_executing', 'until_and_while_executing')
	{
		my %unique = (unique_key => 'u', unique_until => $until, on_conflict => 'raise');
		my $first = put('u', %unique);
		is(fetch($s, 'u'), $first, "$until: the first");
		arm('fetch-before-carry-out');
		send_sql($s, "SELECT jobqueue_complete($first)");
		caught('fetch-before-carry-out');
		my $second = put('u', %unique);
		send_fetch($o, 'u');
		wait_for(qq{SELECT jobqueue_explain($second) ~ '^could not be started at .* and is tried again'});
		release('fetch-before-carry-out');
		is(got($o), $second, 'the second');
		complete($o, $second);
		$s->query_safe('SELECT 1');
		clean();
	}
};

foreach my $end ('ROLLBACK', 'COMMIT')
{
	property "a consumer comes to a row that is being changed, then $end" => sub {
		my ($s, $o) = (session(), session());

		sql(q{SELECT jobqueue_pause('q')});
		my $plain = put('q');
		my $due = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'q', key => 'k', run_at => now() + '1 ms')});
		my $deleted = put('q');
		$o->query_safe('BEGIN');
		$o->query_safe("UPDATE jobqueue_job SET tags = '{x}' WHERE id IN ($plain, $due)");
		$o->query_safe("DELETE FROM jobqueue_job WHERE id = $deleted");
		send_fetch($s, 'q');
		sql(q{SELECT jobqueue_resume('q')});
		foreach my $id ($plain, $due, $deleted)
		{
			wait_for(qq{SELECT jobqueue_explain($id) ~ '^transaction \\d+, which has not ended, changes or deletes its row'});
		}
		$o->query_safe($end);
		my %seen = map { $_ => 1 } split / /, got($s);
		cmp_ok(scalar keys %seen, '>', 0, 'who waits is given some');
		my @left = grep { !$seen{$_} && ($end eq 'ROLLBACK' || $_ != $deleted) } $plain, $due, $deleted;
		while (@left)
		{
			send_fetch($s, 'q');
			$seen{$_} = 1 foreach split / /, got($s);
			my $n = @left;
			@left = grep { !$seen{$_} } @left;
			last if @left == $n;
		}
		is(join(' ', sort { $a <=> $b } keys %seen),
			join(' ', $plain, $due, $end eq 'ROLLBACK' ? $deleted : ()),
			'then all that are there');
		complete($s, keys %seen);
		clean();
	};

	property "a job is completed while its row is being changed, then $end" => sub {
		my ($s, $o) = (session(), session());

		foreach my $how ("UPDATE jobqueue_job SET tags = '{x}'", 'DELETE FROM jobqueue_job')
		{
			foreach my $keep (undef, '1 day')
			{
				my $id = put('q', ($keep ? (keep => $keep) : ()));
				my $gone = $how =~ /DELETE/ && $end eq 'COMMIT';
				my $what = "$how, " . ($keep ? 'kept' : 'not kept');

				is(fetch($s, 'q'), $id, $what);
				$o->query_safe("BEGIN; $how WHERE id = $id");
				send_sql($s, "SELECT 'done ' || coalesce(jobqueue_complete($id)::text, '')");
				wait_for('SELECT count(*) = 1 FROM pg_locks WHERE NOT granted');
				$o->query_safe($end);
				my $answer = $s->query('SELECT 1');
				if ($gone)
				{
					unlike($answer, qr/done/, 'it cannot be completed');
					like($s->{stderr}, qr/the row of job $id was deleted/, 'as is said');
					$s->{stderr} = '';
					$s->query_safe("SELECT jobqueue_release($id)");
					is(fetch($s, 'q'), '', 'nobody is given it');
				}
				else
				{
					like($answer, qr/done/, 'it is completed');
				}
				wait_drained();
				is(sql("SELECT count(*) FROM jobqueue_archive WHERE id = $id"), $keep && !$gone ? 1 : 0, 'the history');
			}
		}
		clean();
	};
}

property 'a consumer comes to a row that is not what memory knows' => sub {
	my $s = session();

	sql(q{SELECT jobqueue_pause('q')});
	my ($foreign, $moved, $later, $last) = map { put('q', priority => $_) } 0, 0, 0, 1;
	# no trigger tells of it
	sql(<<END);
SET session_replication_role = replica;
UPDATE jobqueue_job SET home = home + 1 WHERE id = $foreign;
UPDATE jobqueue_job SET priority = 2 WHERE id = $moved;
UPDATE jobqueue_job SET priority = 3, run_at = now() + '1 day' WHERE id = $later;
END
	send_fetch($s, 'q');
	sql(q{SELECT jobqueue_resume('q')});
	my @got = split / /, got($s);
	if (@got == 1)
	{
		send_fetch($s, 'q');
		push @got, split / /, got($s);
	}
	is("@got", "$last $moved", 'each in the place that it has');
	complete($s, @got);
	is(sql("SELECT jobqueue_explain($foreign)"), 'held, as it comes from another database, until jobqueue_adopt()', 'one of another home is held');
	like(sql("SELECT jobqueue_explain($later)"), qr/^due in /, 'one for later waits');
	sql("SELECT jobqueue_cancel($later)");
	sql("SELECT jobqueue_cancel($foreign)");
	clean();
};

property 'a job that has expired, and whose row is locked, is not given to a consumer' => sub {
	my ($s, $o) = (session(), session());

	sql(q{SELECT jobqueue_pause('q')});
	my $id = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'q', expires_at => now() + '3 s')});
	$o->query_safe("BEGIN; SELECT FROM jobqueue_job WHERE id = $id FOR UPDATE");
	wait_for("SELECT jobqueue_explain($id) ~ '^expired at .*, and will be cancelled'");
	sql(q{SELECT jobqueue_resume('q')});
	is(fetch($s, 'q'), '', 'it is not given');
	$o->query_safe('COMMIT');
	wait_state($id, 'cancelled');
	clean();
};

property 'a lease of a job that had a time outlives the server' => sub {
	my $id = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'q', key => 'k', run_at => now() + '1 ms')});
	wait_state($id, 'ready');
	unlike(sql("SELECT jobqueue_explain($id)"), qr/^due/, 'when that has come it is not what it waits for');
	my ($got, $token) = split / /, sql(q{SELECT id || ' ' || token FROM jobqueue_fetch('q', wait => '1 min', lease => '1 hour')});
	is($got, $id, 'leased');
	node()->restart;
	my $next = put('q', key => 'k');
	sql("SELECT jobqueue_release($id, token => '$token')");
	is(sql(q{SELECT id FROM jobqueue_fetch('q', wait => '1 min')}), $id, 'given back, it is the first again');
	sql("SELECT jobqueue_cancel(id) FROM jobqueue_job");
	clean();
};

# ---- workers ------------------------------------------------------------------

property 'a worker comes to a row that is being changed: it is as it was left' => sub {
	my $o = session();

	sql(q{SELECT jobqueue_pause('w')});
	my $keyed = enqueue('note', what => 'keyed', queue => 'w', key => 'k');
	my $later = enqueue('note', what => 'later', queue => 'w');
	my $due = enqueue('note', what => 'due', queue => 'w', run_at => 'tomorrow');
	my $foreign = enqueue('note', what => 'foreign', queue => 'w');
	sql("UPDATE jobqueue_job SET run_at = now() WHERE id = $due");
	like(sql("SELECT jobqueue_explain($due)"), qr/^queue "?w"? is paused/, 'due, but paused');
	$o->query_safe('BEGIN; SET LOCAL session_replication_role = replica');
	$o->query_safe("UPDATE jobqueue_job SET tags = '{x}' WHERE id IN ($keyed, $due)");
	$o->query_safe("UPDATE jobqueue_job SET run_at = now() + '500 ms' WHERE id = $later");
	$o->query_safe("UPDATE jobqueue_job SET home = home + 1 WHERE id = $foreign");
	sql(q{SELECT jobqueue_resume('w')});
	foreach my $id ($keyed, $later, $due, $foreign)
	{
		wait_for(qq{SELECT jobqueue_explain($id) ~ '^transaction \\d+, which has not ended, changes or deletes its row'});
	}
	$o->query_safe('COMMIT');
	wait_for('SELECT count(*) = 3 FROM ran');
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'due keyed later', 'what may run has run');
	is(sql("SELECT jobqueue_explain($foreign)"), 'held, as it comes from another database, until jobqueue_adopt()', 'one of another home is held');
	sql("SELECT jobqueue_cancel($foreign)");
	clean();
};

property 'a job that cannot be started is tried again, uncharged' => sub {
	my $o = session();

	sql(q{CREATE ROLE impatient LOGIN; SELECT jobqueue_grant('impatient', 'use'); ALTER ROLE impatient SET lock_timeout = '100ms'});
	sql(q{SELECT jobqueue_pause('w')});
	my $id = enqueue('note', what => 'x', queue => 'w', unique_key => 'u', unique_until => 'executing', role => 'impatient');
	my $offset = crash_offset();
	$o->query_safe('BEGIN; LOCK TABLE jobqueue_unique IN ACCESS EXCLUSIVE MODE');
	sql(q{SELECT jobqueue_resume('w')});
	wait_for(qq{SELECT jobqueue_explain($id) ~ '^could not be started at .* and is tried again'});
	$o->query_safe('COMMIT');
	wait_drained();
	is(sql('SELECT what, attempt FROM ran'), 'x|1', 'it runs when it can');
	ok(node()->log_contains("job $id could not be started: canceling statement due to lock timeout", $offset), 'the log says why it did not');
	clean();
};

paused_property 'a cancel that comes before the job has begun' => sub {
	arm('worker-claimed');
	my $id = enqueue('note', what => 'x');
	caught('worker-claimed');
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'it is taken');
	release('worker-claimed');
	wait_state($id, 'cancelled');
	is(ran(), '', 'the job has not run');
	clean();
};

paused_property 'the jobs that it waited for have just ended' => sub {
	my $gate = close_gate(1);
	my $first = enqueue('gate', gate => 1, what => 'first');
	my $second = enqueue('note', what => 'second', after => "{$first}");

	wait_at_gate(1);
	arm('after-before-look');
	open_gate($gate);
	caught('after-before-look');
	wait_state($first, 'completed');
	is(sql("SELECT jobqueue_explain($second)"), 'the jobs that it waited for are completed, which is about to be seen', 'explained');
	release('after-before-look');
	wait_drained();
	is(ran(), 'first second', 'it runs');
	clean();
};

# ---- services -----------------------------------------------------------------

property 'a service that is deleted while it handles a message: what the handler did is undone' => sub {
	sql(<<'END');
CREATE FUNCTION handle(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'gate' THEN
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO ran (what) VALUES ('handled');
		IF message ? 'fail' THEN
			RAISE 'failed on purpose';
		END IF;
	END IF;
	RETURN state;
END $$;
END
	foreach my $message ('{"gate": 1}', '{"gate": 1, "fail": 1}')
	{
		sql(q{SELECT jobqueue_start_service('s', 'handle', '{}')});
		wait_drained();
		my $gate = close_gate(1);
		my $id = sql("SELECT jobqueue_send('s', '$message')");
		wait_at_gate(1);
		sql(q{DELETE FROM jobqueue_service_current USING jobqueue_service s WHERE service = s.id AND s.name = 's';
			DELETE FROM jobqueue_service WHERE name = 's'});
		open_gate($gate);
		wait_state($id, 'dead');
		is(ran(), '', "$message: nothing is left of it");
		is(sql("SELECT reason FROM jobqueue_archive WHERE id = $id"), 'its service has ended', 'the reason');
		clean();
	}
};

# ---- the rest -------------------------------------------------------------------

property 'a wait for two jobs that wait for this session gives way' => sub {
	my $s = session();

	sql('CREATE TABLE things (n int); INSERT INTO things VALUES (0)');
	$s->query_safe('BEGIN; UPDATE things SET n = 1');
	my @ids = map { enqueue('UPDATE things SET n = n + 1') } 1, 2;
	wait_for(q{SELECT count(*) >= 2 FROM pg_locks WHERE NOT granted});
	$s->query("SELECT count(*) FROM jobqueue_wait(ARRAY[$ids[0], $ids[1]]::bigint[])");
	like($s->{stderr}, qr/deadlock detected.*waits for 2 jobs/s, 'and says for what');
	$s->{stderr} = '';
	$s->query_safe('ROLLBACK');
	wait_drained();
	is(sql('SELECT n FROM things'), 2, 'both have run');
	clean();
};

property 'a role whose workers fail at their start: after a reload they are started at once' => sub {
	my $offset = crash_offset();

	sql(q{CREATE ROLE broken LOGIN; SELECT jobqueue_grant('broken', 'use'); SELECT jobqueue_pause('w')});
	enqueue('note', what => 'x', queue => 'w', role => 'broken');
	sql(q{ALTER ROLE broken SET session_preload_libraries = 'no_such_library'});
	sql(q{SELECT jobqueue_resume('w')});
	node()->wait_for_log(qr/could not access file "no_such_library"(?s:.*)could not access file "no_such_library"/, $offset);
	is(ran(), '', 'the job waits');
	sql('ALTER ROLE broken RESET session_preload_libraries');
	sql('SELECT pg_reload_conf()');
	wait_drained();
	is(ran(), 'x', 'and runs');
	clean();
};

property 'a database that was closed by hand: nobody tries to connect, its job runs when it is open again' => sub {
	my $offset = crash_offset();

	sql('CREATE DATABASE closed');
	sql('CREATE EXTENSION jobqueue; CREATE TABLE there (n int)', db => 'closed');
	my $s = session(db => 'closed');
	# no hook sees that
	sql(q{UPDATE pg_database SET datallowconn = false WHERE datname = 'closed'});
	sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'closed' AND backend_type LIKE 'jobqueue%'});
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'closed' AND backend_type LIKE 'jobqueue%'});
	$s->query_safe(q{SELECT jobqueue_enqueue('INSERT INTO there VALUES (1)')});
	enqueue('note', what => 'x');
	wait_drained();
	is(ran(), 'x', 'a job of another one runs');
	is($s->query_safe('SELECT count(*) FROM there'), 0, 'its own does not');
	sql('ALTER DATABASE closed ALLOW_CONNECTIONS true');
	wait_for('SELECT count(*) = 1 FROM there', 't', 'closed');
	ok(!node()->log_contains(qr/FATAL:.*not currently accepting connections/, $offset), 'nobody has tried before');
	$s->quit;
	sql('DROP DATABASE closed WITH (FORCE)');
	clean();
};

property 'the launcher ends alone: jobs go on' => sub {
	my $started = sql('SELECT pg_postmaster_start_time()');
	my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'});

	sql("SELECT pg_terminate_backend($pid)");
	wait_gone($pid);
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'});
	enqueue('note', what => 'x');
	wait_drained();
	is(ran(), 'x', 'it has run');
	is(sql('SELECT pg_postmaster_start_time()'), $started, 'the server has not started anew');
	clean();
};

property 'the extension is created in a part of a transaction, or in a prepared one: its jobs are its own' => sub {
	sql('CREATE DATABASE other');
	foreach my $how (
		'BEGIN; SAVEPOINT a; CREATE EXTENSION jobqueue; RELEASE a; COMMIT',
		'BEGIN; DROP EXTENSION jobqueue; SAVEPOINT a; CREATE EXTENSION jobqueue; RELEASE a; COMMIT',
		'BEGIN; SAVEPOINT a; DROP EXTENSION jobqueue; CREATE EXTENSION jobqueue; ROLLBACK TO a; COMMIT',
		q{BEGIN; DROP EXTENSION jobqueue; CREATE EXTENSION jobqueue; PREPARE TRANSACTION 'c'; COMMIT PREPARED 'c'})
	{
		my $kept = $how =~ /ROLLBACK TO/;
		my $before = $kept ? sql('SELECT max(job) FROM there', db => 'other') : 0;
		sql($how, db => 'other');
		sql('CREATE TABLE IF NOT EXISTS there (job bigint); TRUNCATE there', db => 'other');
		my @ids = map { sql('SELECT jobqueue_enqueue($$INSERT INTO there SELECT id FROM jobqueue_current()$$)', db => 'other') } 1 .. 3;
		wait_drained(db => 'other');
		is(sql(q{SELECT string_agg(job::text, ' ' ORDER BY job) FROM there}, db => 'other'), "@ids", $how);
		cmp_ok($ids[0], $kept ? '>' : '==', $kept ? $before : 1, $kept ? 'they go on' : 'they begin anew');
	}
	sql('DROP DATABASE other WITH (FORCE)');
};

property 'a job that crashes the server, and is deleted before that is recorded' => sub {
	# for test/coverage.sh: a crash takes along what processes have counted
	node()->restart;
	my $id = enqueue('hang');
	my $pid;

	wait_for("SELECT pid IS NOT NULL FROM jobqueue_running WHERE id = $id");
	$pid = sql("SELECT pid FROM jobqueue_running WHERE id = $id");
	sql("BEGIN; DELETE FROM jobqueue_job WHERE id = $id; PREPARE TRANSACTION 'p'");
	my $offset = crash_offset();
	kill_hard($pid);
	wait_crash_restart($offset);
	wait_for(qq{SELECT jobqueue_explain($id) ~ '^transaction \\d+, which has not ended, changes or deletes its row'});
	sql(q{COMMIT PREPARED 'p'});
	wait_drained();
	is(sql("SELECT count(*) FROM jobqueue_history WHERE id = $id"), 0, 'nothing is left of it');
	is(enqueue('note', what => 'next') > $id, 1, 'another one is enqueued');
	wait_drained();
	is(ran(), 'next', 'and runs');
	clean();
};

done_testing();
