# Outside consumers: jobs without a command, claims of sessions, waiting.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('fetch');
sql('CREATE TABLE effects (what text)');

# ids in order of what is fetched
sub fetch
{
	my ($s, $queue, $max, $more) = @_;
	$more //= '';
	return $s->query_safe(
		"SELECT coalesce(string_agg(id::text, ' ' ORDER BY n), '') FROM "
		  . "jobqueue_fetch('$queue', $max$more) WITH ORDINALITY AS f(id, args, key, attempt, priority, tags, enqueued_at, token, n)");
}

# a job without a command, in the queue
sub put
{
	my ($queue, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, queue => '$queue'$list)");
}

sub claims_end
{
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys WHERE pid IS NOT NULL');
}

sub clean
{
	sql('DELETE FROM jobqueue_job; DELETE FROM jobqueue_archive; TRUNCATE effects');
}

property 'workers leave jobs without a command to consumers, in a mixed queue' => sub {
	my @ids = map { put('mixed') } 1 .. 3;
	my $gate = close_gate(1);
	my $other = enqueue('gate', queue => 'mixed', gate => 1);
	wait_at_gate(1);
	my $s = session();
	is(fetch($s, 'mixed', 10), "@ids", 'all of them, in order, and no other');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $other"), 'running', 'a worker has that one');
	open_gate($gate);
	$s->query_safe("SELECT jobqueue_complete($_)") foreach @ids;
	wait_drained();
	is(sql("SELECT count(*) FROM jobqueue_recent WHERE outcome = 'completed' AND queue = 'mixed'"), '4', 'all completed');
	$s->quit;
	forget();
};

property 'in order of priority, over all roles' => sub {
	sql(q{CREATE ROLE a LOGIN; CREATE ROLE b LOGIN; SELECT jobqueue_grant(r, 'use') FROM unnest('{a,b}'::regrole[]) r});
	my @ids = map { sql_as($_->[0], "SELECT jobqueue_enqueue(NULL, queue => 'roles', priority => $_->[1])") } ['a', 2], ['b', 1], ['a', 0], ['b', 2];
	my $s = session();
	is(fetch($s, 'roles', 10), "@ids[2, 1, 0, 3]", 'in order');
	is($s->query_safe('SELECT count(*) FROM (SELECT jobqueue_complete(id) FROM jobqueue_jobs OFFSET 0) x'), '4', 'completed');
	$s->quit;
};

property 'completion and effects are one' => sub {
	my $id = put('q');
	my $s = session();
	is(fetch($s, 'q', 1), $id, 'fetched');
	$s->query_safe("BEGIN; INSERT INTO effects VALUES ('first'); SELECT jobqueue_complete($id, '{\"a\": 1}')");
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $id"), '1', 'not gone before the commit');
	$s->query_safe('ROLLBACK');
	is(sql('SELECT count(*) FROM effects'), '0', 'rolled back');
	is(fetch(session(), 'q', 1), '', 'the claim is still there');
	$s->query_safe("BEGIN; INSERT INTO effects VALUES ('second'); SELECT jobqueue_complete($id, '{\"a\": 1}'); COMMIT");
	is(sql('SELECT what FROM effects'), 'second', 'committed');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $id"), '0', 'gone');
	is(sql("SELECT outcome || ' ' || result FROM jobqueue_recent WHERE id = $id"), 'completed {"a": 1}', 'noted with its result');
	like(sql_error("SELECT jobqueue_complete($id)"), qr/is not fetched/, 'nobody completes it twice');
	$s->quit;
	clean();
};

property 'a rollback of the fetch gives the jobs back uncharged' => sub {
	my @ids = map { put('q', key => "k$_") } 1 .. 3;
	my ($s, $o) = (session(), session());
	$s->query_safe('BEGIN');
	is(fetch($s, 'q', 1), $ids[0], 'the first');
	$s->query_safe('SAVEPOINT x');
	is(fetch($s, 'q', 1), $ids[1], 'the second, in a subtransaction');
	is(fetch($o, 'q', 1), $ids[2], 'another session gets the third');
	$s->query_safe('ROLLBACK TO x');
	is(fetch($o, 'q', 1), $ids[1], 'and the second after ROLLBACK TO');
	$s->query_safe("SELECT jobqueue_complete($ids[0])");
	$s->query_safe('ROLLBACK');
	is(fetch($o, 'q', 1), $ids[0], 'and the first after ROLLBACK, though it was completed in there');
	is(sql('SELECT sum(attempt) FROM jobqueue_job'), '0', 'nothing is charged');
	$o->query_safe("SELECT jobqueue_release(id) FROM unnest('{@{[join ',', @ids]}}'::bigint[]) id");
	is(fetch($s, 'q', 9), "@ids", 'released, all are back in order');
	$s->query_safe("SELECT jobqueue_complete(id) FROM unnest('{@{[join ',', @ids]}}'::bigint[]) id");
	$s->quit;
	$o->quit;
	memory_empties('nothing is left in memory');
};

property 'a claim that its session leaves behind is a failed attempt' => sub {
	my $id = put('q', key => 'k', max_attempts => 2);
	my $s = session();
	is(fetch($s, 'q', 1), $id, 'fetched');
	is(sql("SELECT job FROM jobqueue_keys WHERE key = 'k'"), $id, 'it has its key');
	$s->quit;
	wait_for("SELECT attempt = 1 FROM jobqueue_job WHERE id = $id");
	like(sql("SELECT errors->0->>'error' FROM jobqueue_job WHERE id = $id"), qr/consumer lost/, 'consumer lost');
	$s = session();
	is($s->query_safe("SELECT id FROM jobqueue_fetch('q', 1, '1 min')"), $id, 'fetched again');
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT state = 'dead' FROM jobqueue_jobs WHERE id = $id");
	claims_end();
	pass('the key is free');
	wait_for("SELECT count(*) = 1 FROM jobqueue_recent WHERE id = $id AND outcome = 'dead'");
	pass('and the ring says so');
	clean();
};

property 'terminated in the fetching transaction: not charged' => sub {
	my $id = put('q');
	my $s = session();
	$s->query_safe('BEGIN');
	is(fetch($s, 'q', 1), $id, 'fetched');
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	sql("SELECT pg_terminate_backend($pid)");
	wait_gone($pid);
	$s = session();
	is(fetch($s, 'q', 1), $id, 'back at once');
	is(sql("SELECT attempt FROM jobqueue_job"), '0', 'not charged');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
};

property 'fail: tried again when it says, dead after max_attempts' => sub {
	my $id = put('q', max_attempts => 2);
	my $s = session();
	is(fetch($s, 'q', 1), $id, 'fetched');
	is($s->query_safe("BEGIN; SELECT at BETWEEN now() + '23 h' AND now() + '25 h' FROM (SELECT jobqueue_fail($id, 'no luck', '1 day') AS at OFFSET 0) x; ROLLBACK"), 't', 'says when');
	is(sql("SELECT attempt FROM jobqueue_job"), '0', 'rolled back');
	$s->query_safe("SELECT jobqueue_fail($id, 'no luck', '0')");
	is(sql("SELECT attempt || ' ' || (errors->0->>'error') FROM jobqueue_job"), '1 no luck', 'charged');
	is(fetch($s, 'q', 1, ", wait => '1 min'"), $id, 'fetched again');
	is($s->query_safe("SELECT jobqueue_fail($id, 'no luck') IS NULL"), 't', 'the last attempt');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id"), 'dead', 'dead');
	$s->query_safe("SELECT jobqueue_retry($id)");
	is(fetch($s, 'q', 1), $id, 'retried by hand');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
	clean();
};

property 'a waiting consumer is woken by the commit' => sub {
	my ($s, $o) = (session(), session());
	$s->query_safe('CREATE TEMP TABLE got AS SELECT NULL::bigint AS id WHERE false');
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('w', 5, '1 min')");
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO got%' AND wait_event_type = 'Extension'");
	$o->query_safe("BEGIN; SELECT jobqueue_enqueue(NULL, queue => 'w')");
	my $id = $o->query_safe("SELECT max(id) FROM jobqueue_job");
	$o->query_safe('COMMIT');
	is($s->query_safe('SELECT id FROM got'), $id, 'got it');
	$s->query_safe("SELECT jobqueue_complete($id)");
	send_sql($s, "INSERT INTO got SELECT id FROM jobqueue_fetch('w', 5, '1 min')");
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO got%' AND wait_event_type = 'Extension'");
	sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO got%'");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO got%' AND state = 'active'");
	$id = put('w');
	is(fetch($o, 'w', 5), $id, 'one that was cancelled waits no more');
	$o->query_safe("SELECT jobqueue_complete($id)");
	$o->quit;
	$s->quit;
};

paused_property 'a consumer that is woken and goes away wakes the next' => sub {
	my ($s, $o) = (session(), session());
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	arm('fetch-before-sleep');
	send_sql($s, "SELECT id FROM jobqueue_fetch('w', 5, '1 min')");
	is(caught('fetch-before-sleep'), $pid, 'the first is in the list');
	my $id = put('w');
	$o->query_safe('CREATE TEMP TABLE got AS SELECT NULL::bigint AS id WHERE false');
	sql("SELECT pg_terminate_backend($pid)");
	release('fetch-before-sleep');
	wait_gone($pid);
	is(fetch($o, 'w', 5, ", wait => '1 min'"), $id, 'the job is there for others');
	$o->query_safe("SELECT jobqueue_complete($id)");
	$o->quit;
};

property 'refused where the snapshot is older, and in PREPARE' => sub {
	my $id = put('q');
	like(sql_error(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT * FROM jobqueue_fetch('q')}), qr/snapshot is older/, 'REPEATABLE READ');
	like(sql_error(q{BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM jobqueue_fetch('q')}), qr/snapshot is older/, 'SERIALIZABLE');
	like(sql_error(q{BEGIN; SELECT * FROM jobqueue_fetch('q'); PREPARE TRANSACTION 'x'}), qr/cannot PREPARE/, 'PREPARE');
	my $s = session();
	is(fetch($s, 'q', 1), $id, 'it is there all the time');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
};

property 'kill -9 of a consumer: the server restarts, nothing is charged' => sub {
	my $id = put('q', key => 'k');
	my $s = session();
	is(fetch($s, 'q', 1), $id, 'fetched');
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	my $offset = crash_offset();
	kill_hard($pid);
	wait_crash_restart($offset);
	wait_for("SELECT state = 'ready' FROM jobqueue_jobs WHERE id = $id");
	$s = session();
	is(fetch($s, 'q', 1, ", wait => '1 min'"), $id, 'fetched again');
	is(sql('SELECT attempt FROM jobqueue_job'), '0', 'not charged');
	$s->query_safe("SELECT jobqueue_complete($id)");
	$s->quit;
};

property 'a consumer may lock the key of a job that it has fetched' => sub {
	my $id = put('q', key => 'k');
	my ($s, $o) = (session(), session());

	is(fetch($s, 'q', 1), $id, 'fetched');
	is($o->query_safe(q{SELECT jobqueue_try_lock('k')}), 'f', 'others may not');
	is($s->query_safe(q{SELECT jobqueue_try_lock('k')}), 't', 'it may');
	$s->query_safe("SELECT jobqueue_complete($id)");
	is($o->query_safe(q{SELECT jobqueue_try_lock('k')}), 'f', 'nor when the job is done');
	$s->query_safe(q{SELECT jobqueue_unlock('k')});
	is($o->query_safe(q{SELECT jobqueue_lock('k')}), 't', 'but then');
	$o->quit;
	$s->quit;
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	pass('all free');
};

property 'what the last holder of a key has done is on disk before a consumer has it' => sub {
	set_conf('wal_writer_delay' => '10s', 'jobqueue.flush_interval' => 1000);
	my $s = session();
	my $gate = close_gate(1);
	my $job = enqueue('gate', gate => 1, key => 'disk');
	wait_at_gate();
	my $mine = put('disk', key => 'disk');
	send_sql($s, "SELECT 'flushed ' || (pg_current_wal_flush_lsn() >="
		  . " (SELECT lsn FROM jobqueue_recent_jobs() WHERE id = $job))"
		  . " FROM jobqueue_fetch('disk', wait => '1 min')");
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT ''flushed%' AND wait_event_type = 'Extension'});
	open_gate($gate);
	like(scalar($s->query('SELECT 1 WHERE false')), qr/flushed true/, 'it is');
	$s->query_safe("SELECT jobqueue_complete($mine)");
	$s->quit;
	wait_drained();
	set_conf('wal_writer_delay' => undef, 'jobqueue.flush_interval' => undef);
};

done_testing();
