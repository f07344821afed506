# Outside consumers: how claims end when clients go, jobs are cancelled or memory
# is full; and what queues do for them as for workers.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

# room for 64 claims
my $node = new_node('ends', conf => "jobqueue.max_ready_jobs = 512\n");

# a job without a command, in the queue
sub put
{
	my ($queue, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, queue => '$queue'$list)");
}

sub fetch
{
	my ($s, $queue, $more) = @_;
	$more //= '';
	return $s->query_safe("SELECT coalesce(string_agg(id::text, ' '), '') FROM jobqueue_fetch('$queue', 10$more)");
}

# fetch with a lease in a session of its own: (id, token)
sub lease
{
	my ($queue, $time) = @_;
	return split / /, sql("SELECT id || ' ' || token FROM jobqueue_fetch('$queue', lease => '$time')");
}

sub pid_of
{
	my ($s) = @_;
	return $s->query_safe('SELECT pg_backend_pid()');
}

# wait for a job; what comes is in the temporary table got
sub send_wait
{
	my ($s, $queue, $more) = @_;
	$more //= '';
	my $pid = $s->query_safe('SET client_min_messages = warning; CREATE TEMP TABLE IF NOT EXISTS got (id bigint); TRUNCATE got; SELECT pg_backend_pid()');
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('$queue', 10, '1 min'$more)");
	wait_for("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	return $pid;
}

sub got
{
	my ($s) = @_;
	return $s->query_safe(q{SELECT coalesce(string_agg(id::text, ' '), '') FROM got});
}

# kill -9 of the client of a session
sub kill_client
{
	my ($s) = @_;
	kill('KILL', $s->{run}->{KIDS}->[0]->{PID}) or die "no client to kill\n";
}

sub clean
{
	sql('DELETE FROM jobqueue_job; DELETE FROM jobqueue_archive');
	sql('SELECT jobqueue_sweep()');
	memory_empties('nothing is left in memory');
}

property 'kill -9 of the client: its job and its key are with the next one, without a backoff' => sub {
	sql(q{SELECT jobqueue_configure('q', backoff => 'constant', backoff_base => '1 h')});
	my $id = put('q', key => 'k');
	my ($s, $o) = (session(), session());
	is(fetch($s, 'q'), $id, 'fetched');
	send_wait($o, 'q');
	kill_client($s);
	is(got($o), $id, 'the next one has it');
	is(sql("SELECT attempt || ' ' || (errors->0->>'error') FROM jobqueue_job"), '1 consumer lost: its session ended before the job', 'it was an attempt');
	is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, 'with its key');
	$o->query_safe("SELECT jobqueue_complete($id)");
	$o->quit;
	clean();
};

property 'a lease that is over: the job is with the next one, without a backoff' => sub {
	my $id = put('q');
	my $o = session();
	is((lease('q', '10 ms'))[0], $id, 'leased');
	is(fetch($o, 'q', ", '1 min'"), $id, 'the next one has it');
	$o->query_safe("SELECT jobqueue_complete($id)");
	$o->quit;
	clean();
};

property 'a client that goes while it waits is noticed, and given nothing' => sub {
	my $s = session();
	my $pid = send_wait($s, 'q', ", lease => '1 h'");
	my $offset = crash_offset();
	kill_client($s);
	wait_gone($pid);
	# who would notice it only when he answers could not send it
	unlike(slurp_file($node->logfile, $offset), qr/could not send data to client/, 'while it slept');
	like(slurp_file($node->logfile, $offset), qr/connection to client lost/, 'as what it was');
	my $id = put('q');
	is((lease('q', '1 h'))[0], $id, 'the job is there for others');
	sql("SELECT jobqueue_release(job, token) FROM jobqueue_lease");
	clean();
};

property 'the same in jobqueue_fetch_wait()' => sub {
	my $s = session();
	my $pid = pid_of($s);
	my $offset = crash_offset();
	send_sql($s, "CALL jobqueue_fetch_wait('q', 1, '1 min', '1 h')");
	wait_for("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	kill_client($s);
	wait_gone($pid);
	unlike(slurp_file($node->logfile, $offset), qr/could not send data to client/, 'while it slept');
};

property 'cancel of a leased job ends the lease: job and key are free at once' => sub {
	my $id = put('q', key => 'k');
	my $next = put('q', key => 'k');
	my ($got, $token) = lease('q', '1 h');
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled');
	wait_state($id, 'cancelled');
	my $s = session();
	is(fetch($s, 'q', ", '1 min'"), $next, 'the next job of the key');
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')"), qr/job $id was cancelled/, 'its consumer is told');
	is(sql('SELECT count(*) FROM jobqueue_lease'), '0', 'no lease is left');
	$s->query_safe("SELECT jobqueue_complete($next)");
	$s->quit;
	clean();
};

property 'cancel of a leased job that is about to be completed, and is not' => sub {
	my $id = put('q', key => 'k');
	my ($got, $token) = lease('q', '1 h');
	my $s = session();
	$s->query_safe("BEGIN; SELECT jobqueue_complete($id, token => '$token')");
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled');
	$s->query_safe('ROLLBACK');
	wait_state($id, 'cancelled');
	is(sql('SELECT count(*) FROM jobqueue_keys'), '0', 'the key is free');
	$id = put('q', key => 'k');
	$s->query_safe("BEGIN; SELECT id FROM jobqueue_fetch('q', lease => '1 h')");
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled before the fetch has committed');
	$s->query_safe('COMMIT');
	wait_state($id, 'cancelled');
	$s->quit;
	clean();
};

paused_property 'what was enqueued is fetched while the table is read, without a wait' => sub {
	arm('refill-after-snapshot');
	sql('SELECT jobqueue_sweep()');
	caught('refill-after-snapshot');
	my $id = put('q');
	my $s = session();
	my $pid = $s->query_safe('SET client_min_messages = warning; CREATE TEMP TABLE got (id bigint); SELECT pg_backend_pid()');
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('q')");
	wait_for("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	release('refill-after-snapshot');
	is($s->query_safe('SELECT id FROM got'), $id, 'it is there');
	$s->query_safe("SELECT jobqueue_complete($id)");
	is(fetch($s, 'q'), '', 'and there is no more');
	$s->quit;
	clean();
};

property 'a job that was cancelled while its failure was about to commit does not run again' => sub {
	my $id = put('q');
	my $s = session();
	is(fetch($s, 'q'), $id, 'fetched');
	$s->query_safe("BEGIN; SELECT jobqueue_fail($id, 'no', '0')");
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled, as it says');
	$s->query_safe('COMMIT');
	wait_state($id, 'cancelled');
	pass('it is');
	$s->quit;
	clean();
};

paused_property 'a job that was cancelled while it was given back does not run again' => sub {
	my $id = put('q');
	my $s = session();
	is(fetch($s, 'q'), $id, 'fetched');
	arm('fetched-let-go');
	send_sql($s, "SELECT jobqueue_release($id)");
	caught('fetched-let-go');
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancelled, as it says');
	release('fetched-let-go');
	$s->query('SELECT 1');
	wait_state($id, 'cancelled');
	is(fetch($s, 'q'), '', 'it is not there');
	$s->quit;
	clean();
};

paused_property 'no later job of its key passes one that is given back' => sub {
	my @ids = map { put('q', key => 'k') } 1 .. 2;
	my $s = session();
	my $o = session();
	is(fetch($s, 'q'), $ids[0], 'the first one is fetched');
	is(fetch($o, 'q'), '', 'the other one waits for the key');
	arm('fetched-let-go');
	send_sql($s, "SELECT jobqueue_release($ids[0])");
	caught('fetched-let-go');
	is(fetch($o, 'q'), '', 'it waits while that is given back');
	release('fetched-let-go');
	$s->query('SELECT 1');
	is(fetch($o, 'q'), $ids[0], 'and comes after it');
	# likewise where a fetch is rolled back
	$o->query_safe("SELECT jobqueue_release($ids[0])");
	$s->query_safe('BEGIN');
	is(fetch($s, 'q'), $ids[0], 'fetched once more');
	arm('fetched-let-go');
	send_sql($s, 'ROLLBACK');
	caught('fetched-let-go');
	is(fetch($o, 'q'), '', 'the other one waits');
	release('fetched-let-go');
	$s->query('SELECT 1');
	is(fetch($o, 'q'), $ids[0], 'first the one that was given back');
	$o->query_safe("SELECT jobqueue_complete($ids[0])");
	is(fetch($o, 'q'), $ids[1], 'then the other one');
	$o->query_safe("SELECT jobqueue_complete($ids[1])");
	$s->quit;
	$o->quit;
	clean();
};

property 'one queue cannot have all claims, and a full table wakes who waits when there is room' => sub {
	sql("SELECT count(jobqueue_enqueue(NULL, queue => 'greedy')) FROM generate_series(1, 100)");
	my $s = session();
	my $o = session();
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('greedy', 100)"), '32', 'half of them');
	like(sql_error("SELECT * FROM jobqueue_fetch('greedy')"), qr/too many jobs are fetched/, 'and no more');
	my $id = put('other');
	is(fetch($o, 'other'), $id, 'another queue has room');
	$o->query_safe("SELECT jobqueue_complete($id)");
	is(sql("SELECT count(*) FROM jobqueue_fetch('empty', 100)"), '0', 'nothing to fetch is no error');
	send_wait($o, 'greedy');
	$s->query_safe('SELECT jobqueue_complete(min(id)) FROM jobqueue_running');
	is($o->query_safe('SELECT count(*) FROM got'), '1', 'there was room for one more');
	$o->query_safe('SELECT jobqueue_release(id) FROM got');
	$s->query_safe('SELECT jobqueue_release(id) FROM jobqueue_running WHERE pid = pg_backend_pid()');
	$s->quit;
	$o->quit;
	clean();
};

property 'nor does it take all keys that claims may have' => sub {
	# 16 in all, of a queue as many as it leaves to others
	sql(q{SELECT count(jobqueue_enqueue(NULL, queue => 'greedy', key => 'g' || i)) FROM generate_series(1, 10) i});
	sql(q{SELECT count(jobqueue_enqueue(NULL, queue => 'greedy', unique_key => 'g' || i, unique_until => 'while_executing')) FROM generate_series(1, 10) i});
	my $s = session();
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('greedy', 8)"), '8', 'half of them');
	like(sql_error("SELECT * FROM jobqueue_fetch('greedy')"), qr/too many jobs are fetched/, 'and no more');
	sql(q{SELECT jobqueue_enqueue(NULL, queue => 'modest', key => 'm')});
	is(sql(q{SELECT key FROM jobqueue_fetch('modest')}), 'm', 'another queue has its own');
	my $first = sql('SELECT min(id) FROM jobqueue_job');
	$s->query_safe('DISCARD ALL');
	# claims that are lost keep their room until that is recorded
	wait_for("SELECT count(*) = 9 FROM jobqueue_job WHERE id >= $first AND attempt = 1");
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_running});
	my $got = '';
	until ($got =~ /^\d+$/ && $got == 8)
	{
		$got = $s->query("BEGIN; SELECT count(*) FROM jobqueue_fetch('greedy', 8)");
		$s->query($got eq '8' ? 'COMMIT' : 'ROLLBACK');
	}
	is($got, '8', 'and they come back');
	$s->quit;
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_running});
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_jobs');
	sql('DELETE FROM jobqueue_archive');
};

property 'of jobs whose unique_keys find no room a fetch gives those that do, in order' => sub {
	# 16 in all, of a queue as many as it leaves to others
	my @ids = map { sql(qq{SELECT jobqueue_enqueue(NULL, queue => 'greedy', unique_key => 'u$_', unique_until => 'while_executing')}) } 1 .. 20;
	my $fetch = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM jobqueue_fetch('greedy', 20)";
	my ($s, $o, $w) = (session(), session(), session());
	is($s->query_safe($fetch), "@ids[0 .. 7]", 'half of what there is');
	like(sql_error($fetch), qr/too many jobs are fetched/, 'no room for more');
	sql(q{SELECT jobqueue_enqueue(NULL, queue => 'modest', key => 'm', unique_key => 'm', unique_until => 'while_executing')});
	my ($modest) = split / /, $o->query_safe(q{SELECT id FROM jobqueue_fetch('modest')});
	send_wait($w, 'greedy');
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids[0, 1];
	is(got($w), $ids[8], 'now there is room beside the other queue, for one that waited');
	$o->query_safe("SELECT jobqueue_complete($modest)");
	is($w->query_safe($fetch), $ids[9], 'what the other queue had');
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids[2 .. 7];
	is($s->query_safe($fetch), "@ids[10 .. 15]", 'the next ones');
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids[10 .. 15];
	is($s->query_safe($fetch), "@ids[16 .. 19]", 'the rest');
	$_->quit foreach $s, $o, $w;
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_running});
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_jobs');
	sql('DELETE FROM jobqueue_archive');
};

# Two jobs of one unique_key, the first of which has still to ask for the lock that
# the second one has: their ids
sub asks_before_its_holder
{
	my ($s, %key) = @_;
	my %unique = (%key, unique_key => 'u', unique_until => 'until_and_while_executing');
	my $first = put('q', %unique);
	my $later = put('q', %unique, on_conflict => 'reschedule');

	is(fetch($s, 'q'), $first, 'the first has both');
	$s->query_safe("SELECT jobqueue_complete($first)");
	my $other = put('q', %unique);
	is(sql("SELECT jobqueue_reschedule($later, NULL)"), 't', 'one that waits for the lock comes before the one that has it');
	return ($later, $other);
}

property 'of two jobs of a unique_key that are fetched together the one that has its lock starts' => sub {
	my $s = session();
	my ($later, $other) = asks_before_its_holder($s);
	is(fetch($s, 'q'), $other, 'and does not keep it from starting');
	$s->query_safe("SELECT jobqueue_complete($other)");
	sql("SELECT jobqueue_reschedule($later, NULL)");
	is(fetch($s, 'q'), $later, 'then it may');
	$s->query_safe("SELECT jobqueue_complete($later)");
	$s->quit;
	clean();
};

property 'a job that is not to start keeps no other one of its key, or of a full queue, waiting' => sub {
	my $s = session();
	my ($later, $other) = asks_before_its_holder($s, key => 'k');
	sql(q{SELECT jobqueue_configure('q', max_running => 1)});
	$s->query_safe('BEGIN');
	is(fetch($s, 'q'), $other, 'which has the key, and the place, at once');
	$s->query_safe('ROLLBACK');
	is(sql(q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM jobqueue_jobs WHERE state IN ('ready', 'blocked')}), "$later $other", 'a rollback brings back both');
	is(fetch($s, 'q'), $other, 'and nothing has changed');
	$s->query_safe("SELECT jobqueue_complete($other)");
	sql("SELECT jobqueue_reschedule($later, NULL)");
	is(fetch($s, 'q'), $later, 'then it may');
	$s->query_safe("SELECT jobqueue_complete($later)");
	sql(q{SELECT jobqueue_configure('q', max_running => 0)});
	$s->quit;
	clean();
};

paused_property 'a job that another one overtakes while it asks for its lock gives that back' => sub {
	my %unique = (unique_key => 'u', unique_until => 'until_and_while_executing');
	my $s = session();
	my $other = session();
	my $first = put('q', %unique);
	my $later = put('q', %unique, on_conflict => 'reschedule');

	sql("SELECT jobqueue_cancel($first)");
	sql("SELECT jobqueue_reschedule($later, NULL)");
	arm('unique-asked');
	send_sql($s, "SELECT count(*) || ' given' FROM jobqueue_fetch('q')");
	caught('unique-asked');
	my $overtakes = put('q', unique_key => 'u', unique_until => 'while_executing');
	is(fetch($other, 'q'), $overtakes, 'that one starts');
	release('unique-asked');
	like($s->query('SELECT 1'), qr/0 given/, 'and the other one does not');
	is(sql("SELECT on_conflict FROM jobqueue_job WHERE id = $later AND run_at > now()"), 'R', 'it is to ask again');
	is(sql('SELECT count(*) FROM jobqueue_unique'), 0, 'it has no lock');
	$other->query_safe("SELECT jobqueue_complete($overtakes)");
	sql("SELECT jobqueue_reschedule($later, NULL)");
	is(fetch($s, 'q'), $later, 'then it starts');
	$s->query_safe("SELECT jobqueue_complete($later)");
	$s->quit;
	$other->quit;
	clean();
};

paused_property 'a job that comes back has its key alone, though it had given it away' => sub {
	my ($s, $o, $other) = (session(), session(), session());
	my $busy = put('q', unique_key => 'u', unique_until => 'while_executing');
	is(fetch($other, 'q'), $busy, 'its unique_key is in use');
	my $id = put('q', key => 'k', unique_key => 'u', unique_until => 'while_executing');
	$s->query_safe('BEGIN');
	is(fetch($s, 'q'), '', 'the other one is not to start');
	is(sql("SELECT count(*) FROM jobqueue_keys WHERE key = 'k'"), 0, 'its key is free');
	$other->query_safe("SELECT jobqueue_complete($busy)");
	arm('fetched-given-back');
	send_sql($s, 'ROLLBACK');
	caught('fetched-given-back');
	is(fetch($o, 'q'), $id, 'it is back');
	release('fetched-given-back');
	$s->query_safe('SELECT 1');
	my $next = put('q', key => 'k');
	is(fetch($s, 'q'), '', 'and has its key, still');
	$o->query_safe("SELECT jobqueue_complete($id)");
	is(fetch($s, 'q'), $next, 'then the next one');
	$s->query_safe("SELECT jobqueue_complete($next)");
	$_->quit foreach $s, $o, $other;
	clean();
};

property 'jobs that are not to start are ended, where these alone find no room' => sub {
	my $insert = "SELECT jobqueue_enqueue(NULL, queue => 'greedy', unique_key => 'u', unique_until => 'while_executing'";
	my $s = session();
	my $id = sql("$insert)");
	is(fetch($s, 'greedy'), $id, 'its unique_key is held');
	sql("$insert, key => 'k' || i, on_conflict => 'reject') FROM generate_series(1, 20) i");
	foreach my $call ('jobqueue_fetch', 'jobqueue_fetch_wait')
	{
		my $left = sql(q{SELECT count(*) FROM jobqueue_jobs WHERE state = 'ready'});
		is(sql($call eq 'jobqueue_fetch' ? "SELECT count(*) FROM $call('greedy', 20)" : "CALL $call('greedy', 20, '0')"), $call eq 'jobqueue_fetch' ? 0 : '[]', "$call: none is given, and that is no error");
		cmp_ok(sql(q{SELECT count(*) FROM jobqueue_jobs WHERE state = 'ready'}), '<', $left, 'some have ended');
	}
	is(fetch($s, 'greedy', ", '1 min'"), '', 'nor does it wait with those that it ends');
	sql("SELECT count(*) FROM jobqueue_fetch('greedy', 20)") foreach 1 .. 2;
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'ready'"), '0', 'all have ended');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
	clean();
};

paused_property 'no room for one queue does not keep a consumer of another from a job' => sub {
	sql("SELECT count(jobqueue_enqueue(NULL, queue => 'greedy')) FROM generate_series(1, 40)");
	my ($s, $o) = (session(), session());
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('greedy', 100)"), '32', 'as many as it may have');
	arm('fetch-before-list');
	$o->query_safe('CREATE TEMP TABLE got (id bigint)');
	send_sql($o, "INSERT INTO got SELECT id FROM jobqueue_fetch('other', 1, '1 min')");
	caught('fetch-before-list');
	like(sql_error("SELECT * FROM jobqueue_fetch('greedy')"), qr/too many jobs are fetched/, 'no room');
	my $id = put('other');
	release('fetch-before-list');
	is(got($o), $id, 'it has the job');
	$o->query_safe("SELECT jobqueue_complete($id)");
	$s->query_safe('SELECT jobqueue_release(id) FROM jobqueue_running WHERE pid = pg_backend_pid()');
	$s->quit;
	$o->quit;
	clean();
};

property 'a rate: a consumer that waits is woken when a token comes' => sub {
	sql(q{SELECT jobqueue_configure('rate', rate => 4, rate_per => '1 s')});
	my $s = session();
	my $id = put('rate');
	is(fetch($s, 'rate', ", '1 min'"), $id, 'the first');
	send_wait($s, 'rate');
	my @ids = map { put('rate') } 1 .. 2;
	is(got($s), $ids[0], 'one');
	is(fetch($s, 'rate', ", '1 min'"), $ids[1], 'and another one');
	$s->query_safe("SELECT jobqueue_complete(id) FROM unnest('{$id,$ids[0],$ids[1]}'::bigint[]) id");
	$s->quit;
	sql(q{SELECT jobqueue_configure('rate', rate => 0)});
	clean();
};

property 'key_limit: so many jobs of a key are fetched, by one session too' => sub {
	sql(q{SELECT jobqueue_configure('two', key_limit => 2)});
	my @ids = map { put('two', key => 'k') } 1 .. 4;
	my ($s, $o) = (session(), session());
	is(fetch($s, 'two'), "@ids[0, 1]", 'two');
	is(fetch($o, 'two'), '', 'no more');
	$s->query_safe("SELECT jobqueue_complete($ids[1])");
	is(fetch($o, 'two', ", '1 min'"), $ids[2], 'then the next');
	kill_client($s);
	wait_for("SELECT attempt = 1 AND state = 'ready' FROM jobqueue_jobs WHERE id = $ids[0]");
	is(fetch($o, 'two', ", '1 min'"), $ids[0], 'the one of a client that has gone');
	$o->query_safe("SELECT jobqueue_complete(id) FROM unnest('{$ids[0],$ids[2]}'::bigint[]) id");
	is(fetch($o, 'two', ", '1 min'"), $ids[3], 'and the last');
	$o->query_safe("SELECT jobqueue_complete($ids[3])");
	$o->quit;
	clean();
};

property 'after: a consumer that waits is woken when the last dependency is completed' => sub {
	my ($s, $o) = (session(), session());
	my $first = put('a');
	my $worker = enqueue('note', what => 'x', after => "{$first}");
	my $last = put('b', after => "{$first,$worker}");
	send_wait($o, 'b');
	is(fetch($s, 'a'), $first, 'the first');
	$s->query_safe("SELECT jobqueue_complete($first)");
	is(got($o), $last, 'the last');
	is(ran(), 'x', 'after that of a worker');
	$o->query_safe("SELECT jobqueue_complete($last)");
	my $doomed = put('a', max_attempts => 1);
	my $dependant = put('b', after => "{$doomed}");
	is(fetch($s, 'a'), $doomed, 'one that will be dead');
	$s->query_safe("SELECT jobqueue_fail($doomed)");
	wait_state($dependant, 'cancelled');
	$doomed = put('a', max_attempts => 1);
	$dependant = put('b', after => "{$doomed}");
	is(fetch($s, 'a'), $doomed, 'one whose consumer is lost');
	kill_client($s);
	wait_state($dependant, 'cancelled');
	$o->quit;
	forget();
	clean();
};

property 'run_at and expires_at: a waiting consumer is woken when a job is due, and gets none that has expired' => sub {
	my $s = session();
	send_wait($s, 'q');
	my $id = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'q', run_at => now() + '300 ms')});
	is(got($s), $id, 'due');
	$s->query_safe("SELECT jobqueue_complete($id)");
	my $expired = sql(q{SELECT jobqueue_pause('q'); SELECT jobqueue_enqueue(NULL, queue => 'q', expires_at => now() + '1 ms')});
	wait_state($expired, 'cancelled');
	sql(q{SELECT jobqueue_resume('q')});
	is(fetch($s, 'q'), '', 'not the expired one');
	# what was fetched in time is not cancelled
	$id = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'q', expires_at => now() + '5 s')});
	is(fetch($s, 'q'), $id, 'in time');
	$expired = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'never', expires_at => now() + '5500 ms')});
	wait_state($expired, 'cancelled');
	$s->query_safe("SELECT jobqueue_complete($id)");
	wait_state($id, 'completed');
	$s->quit;
	clean();
};

property 'resume after pause, and after quiesce, wakes consumers that wait' => sub {
	my $s = session();
	my $id = put('q');
	sql(q{SELECT jobqueue_pause('q')});
	send_wait($s, 'q');
	sql(q{SELECT jobqueue_resume('q')});
	is(got($s), $id, 'after pause');
	$s->query_safe("SELECT jobqueue_release($id)");
	sql('SELECT jobqueue_quiesce()');
	send_wait($s, 'q');
	sql('SELECT jobqueue_resume()');
	is(got($s), $id, 'after quiesce');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
	clean();
};

property 'a complete cannot be prepared, and the claim stays' => sub {
	my $id = put('q', key => 'k');
	my ($got, $token) = lease('q', '1 h');
	like(sql_error("BEGIN; SELECT jobqueue_complete($id, token => '$token'); PREPARE TRANSACTION 'p'"), qr/cannot PREPARE a transaction that has fetched or ended jobs/, 'refused');
	is(sql('SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing is prepared');
	is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, 'it is leased');
	sql("SELECT jobqueue_complete($id, token => '$token')");
	clean();
};

property 'a fetch that found nothing can be prepared, and the session fetches on' => sub {
	my $s = session();
	is($s->query_safe("BEGIN; SELECT count(*) FROM jobqueue_fetch('q'); PREPARE TRANSACTION 'p'"), '0', 'prepared');
	my @ids = (put('q'), put('q'));
	is($s->query_safe("BEGIN; SELECT id FROM jobqueue_fetch('q'); SELECT id FROM jobqueue_fetch('q'); ROLLBACK"), join("\n", @ids), 'fetched');
	is(fetch($s, 'q'), "@ids", 'given back, and fetched again');
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids;
	sql(q{COMMIT PREPARED 'p'});
	$s->quit;
	clean();
};

property 'a wait that was cancelled while no job starts is given no place' => sub {
	my ($gone, $o, $s) = (session(), session(), session());
	sql(q{SELECT jobqueue_configure('one', max_running => 1)});
	my @ids = (put('one'), put('one'));
	set_conf('jobqueue.enabled' => 'off');
	1 until $gone->query_safe('SHOW jobqueue.enabled') eq 'off';
	my $pid = send_wait($gone, 'one');
	sql("SELECT pg_cancel_backend($pid)");
	wait_for("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid");
	set_conf('jobqueue.enabled' => undef);
	foreach my $session ($o, $s)
	{
		1 until $session->query_safe('SHOW jobqueue.enabled') eq 'on';
	}
	is(fetch($o, 'one', ", '1 min'"), $ids[0], 'one is fetched');
	send_wait($s, 'one');
	$o->query_safe("SELECT jobqueue_complete($ids[0])");
	is(got($s), $ids[1], 'its place is for who waits');
	$s->query_safe("SELECT jobqueue_complete($ids[1])");
	$_->quit foreach $gone, $o, $s;
	clean();
};

property 'the error of a consumer is cut where it is very long' => sub {
	my $id = put('q');
	my $s = session();
	is(fetch($s, 'q'), $id, 'fetched');
	$s->query_safe("SELECT jobqueue_fail($id, repeat('ä', 1000000))");
	is(sql("SELECT octet_length(errors->0->>'error') FROM jobqueue_job"), '16384', 'cut');
	$s->quit;
	clean();
};

property 'keys of fetched jobs have places of their own: who needs one more is told, others go on' => sub {
	my @ids = map { put('q', key => "key$_") } 1 .. 9;
	my $plain = put('plain');
	my ($s, $o) = (session(), session());
	is($s->query_safe("SELECT count(*) FROM jobqueue_fetch('q', 100)"), '8', 'so many keys: half of all');
	like(sql_error("SELECT * FROM jobqueue_fetch('q')"), qr/too many jobs are fetched/, 'and no more');
	is(fetch($o, 'plain'), $plain, 'a job without key');
	my $worker = enqueue('note', what => 'x', key => 'other');
	wait_state($worker, 'completed');
	pass('a worker has its key');
	$o->query_safe("SELECT jobqueue_complete($plain)");
	send_wait($o, 'q');
	$s->query_safe("SELECT jobqueue_complete($ids[3])");
	is(got($o), $ids[8], 'who waits is woken when one is free');
	$o->query_safe("SELECT jobqueue_complete($ids[8])");
	$s->query_safe('SELECT jobqueue_complete(id) FROM jobqueue_running WHERE pid = pg_backend_pid()');
	$s->quit;
	$o->quit;
	forget();
	clean();
};

property 'after a restart leases of one key count for its key_limit' => sub {
	sql(q{SELECT jobqueue_configure('two', key_limit => 2)});
	my @ids = map { put('two', key => 'k') } 1 .. 3;
	my @leases = map { [ lease('two', '1 h') ] } 1 .. 2;
	$node->restart;
	wait_for('SELECT count(*) = 2 FROM jobqueue_running WHERE leased_until IS NOT NULL');
	is(sql("SELECT count(*) FROM jobqueue_keys WHERE key = 'k' AND job IS NOT NULL"), '2', 'both have it');
	my $s = session();
	is(fetch($s, 'two', ", '10 ms'"), '', 'no third one');
	sql("SELECT jobqueue_complete($_->[0], token => '$_->[1]')") foreach @leases;
	is(fetch($s, 'two', ", '1 min'"), $ids[2], 'then the third');
	$s->query_safe("SELECT jobqueue_complete($ids[2])");
	$s->quit;
	clean();
};

property 'dump and restore: a lease ends with jobqueue_adopt(), its token is of no use there' => sub {
	my $id = put('q', key => 'k');
	my ($got, $token) = lease('q', '1 h');
	my $dump = $node->basedir . '/leased.sql';
	sql('CREATE DATABASE restored');
	$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres'), '-e', 'jobqueue' ], 'dumped');
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restored');
	is(sql('SELECT count(*) FROM jobqueue_lease', db => 'restored'), '1', 'with its lease');
	is(sql('SELECT state FROM jobqueue_jobs', db => 'restored'), 'held', 'held, as all of another home');
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')", db => 'restored'), qr/is not fetched/, 'nobody has it there');
	is(sql('SELECT jobqueue_adopt()', db => 'restored'), '1', 'adopted');
	is(sql('SELECT count(*) FROM jobqueue_lease', db => 'restored'), '0', 'no lease');
	like(sql_error("SELECT jobqueue_complete($id, token => '$token')", db => 'restored'), qr/is not fetched/, 'the token is of no use');
	is(sql(q{SELECT id || ' ' || attempt FROM jobqueue_fetch('q', wait => '1 min')}, db => 'restored'), "$id 1", 'it may be fetched, uncharged');
	is(sql("SELECT jobqueue_complete($id, token => '$token')"), '', 'in its own database the lease holds');
	sql('DROP DATABASE restored WITH (FORCE)');
	clean();
};

done_testing();
