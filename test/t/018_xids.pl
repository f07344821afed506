# Transaction ids run short: jobs are throttled, then stopped, and go on by
# themselves when vacuum has freed ids.
#
# The shortage is real: pg_resetwal moves the next id to where it is wanted, a
# stopped autovacuum leaves the limits where they are.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $xids_in_segment = 8192 * 4 * 32;    # of pg_xact
my $offset = 0;                         # in the log, where the server last started

new_node('xids', conf => <<END);
autovacuum_naptime = 1d
jobqueue.max_workers = 4
jobqueue.max_workers_per_role = 3
jobqueue.worker_idle_timeout = 1h
END
sql(q{ALTER DATABASE template0 ALLOW_CONNECTIONS true});
sql(<<'END');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION gate_fail(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM gate(args);
	RAISE EXCEPTION 'failed on purpose';
END $$;
-- ids of a client: so many transactions
CREATE PROCEDURE burn(n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		PERFORM pg_current_xact_id();
		COMMIT;
	END LOOP;
END $$;
END

sub control
{
	my ($name) = @_;
	my ($out) = run_command([ 'pg_controldata', node()->data_dir ]);

	$out =~ /^\Q$name\E:\s+(.*)$/m or die "no $name";
	return $1;
}

# Where the server warns: 40 million before half the circle from the oldest id.
my ($warn, $throttle);

sub read_limits
{
	my $oldest = sql('SELECT min(datfrozenxid::text::bigint) FROM pg_database');

	$warn = $oldest + 2**31 - 1 - 40_000_000;
	$throttle = int(($oldest + sql('SHOW autovacuum_freeze_max_age') + $warn) / 2);
}

# restart with that next id
sub restart_at
{
	my ($xid) = @_;
	my $file = sprintf '%s/pg_xact/%04X', node()->data_dir, int($xid / $xids_in_segment);

	node()->stop;
	append_to_file($file, "\0" x ($xids_in_segment / 4)) unless -e $file;
	command_ok([ 'pg_resetwal', '-x', $xid, node()->data_dir ], "next id $xid");
	$offset = -s node()->logfile;
	node()->start;
}

# how often since the last start
sub log_lines
{
	my ($pattern) = @_;
	my @found = slurp_file(node()->logfile, $offset) =~ /$pattern/g;

	return scalar @found;
}

# the state is seen before the line is written
sub logged_once
{
	my ($pattern, $what) = @_;

	node()->wait_for_log($pattern, $offset);
	is(log_lines($pattern), 1, $what);
}

# ids until no job is started
sub left
{
	return $warn - sql('SELECT txid_snapshot_xmax(txid_current_snapshot())');
}

# warnings are many: of each id, of each table
my $quiet = 'SET client_min_messages = error; SET log_min_messages = error;';

sub vacuum_all
{
	sql("$quiet VACUUM (FREEZE)", db => $_) foreach qw(template0 template1 postgres);
}

my $throttled = qr/WARNING:  transaction IDs run short: jobs are throttled/;
my $stopped = qr/WARNING:  transaction IDs run short: no more jobs are started/;
my $plenty = qr/LOG:  there are enough transaction IDs again/;
my $some_throttled = q{SELECT count(*) > 0 FROM jobqueue_workers WHERE state = 'throttled'};
my $some_stopped = q{SELECT count(*) > 0 FROM jobqueue_workers WHERE state = 'stopped: transaction ids'};
my $first_pid = q{SELECT min(pid) FROM jobqueue_workers WHERE state IN ('throttled', 'stopped: transaction ids')};

property 'up to the middle nothing is done' => sub {
	read_limits();
	restart_at($throttle - 100_000);
	sql(q{SELECT count(jobqueue_enqueue('nothing')) FROM generate_series(1, 20000)});
	wait_drained();
	is(log_lines($throttled), 0, 'not throttled');
	cmp_ok(left(), '>', $warn - $throttle, 'it was still before the middle');
};

property 'beyond the middle the log says so, once' => sub {
	restart_at($throttle + 1000);
	enqueue('note', what => $_) foreach (1 .. 10);
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 10, 'jobs run');
	logged_once($throttled, 'one warning');
	like(slurp_file(node()->logfile, $offset),
		qr/$throttled\n.*DETAIL:  9\d{8} transaction IDs are left before no more jobs are started, because of database "\w+"\. Jobs now use at most 26\d{4} of them a second/,
		'with figures');
	is(log_lines($stopped), 0, 'not stopped');
	forget();
};

# 50 a second
property 'ids of subtransactions count' => sub {
	restart_at($warn - 181_000);
	sql(<<'SQL');
CREATE FUNCTION savepoints() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 49 LOOP
		BEGIN
			INSERT INTO ran (what) VALUES ('sub');
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'rolled back';
			END IF;
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
END $$;
SQL
	sql(q{SELECT count(jobqueue_enqueue('savepoints')) FROM generate_series(1, 100)});
	wait_for($some_throttled);
	my ($t1, $n1) = (sql('SELECT extract(epoch FROM clock_timestamp())'), left());
	wait_for('SELECT sum(completed) > 10 FROM jobqueue_status');
	my ($n2, $t2) = (left(), sql('SELECT extract(epoch FROM clock_timestamp())'));
	cmp_ok($n1 - $n2, '>=', 50, 'ids are used');
	# each of three workers may have one job on account
	cmp_ok($n1 - $n2, '<=', 51 * ($t2 - $t1) + 3 * 50, sprintf '%d in %.1f s', $n1 - $n2, $t2 - $t1);
	sql('DELETE FROM jobqueue_job');
	forget();
};

# 5 a second
property 'throttled: jobs run, slower, and nothing else is slower' => sub {
	restart_at($warn - 18_100);
	sql(q{SELECT count(jobqueue_enqueue('nothing')) FROM generate_series(1, 10000)});
	wait_for($some_throttled);
	wait_for('SELECT sum(completed) > 20 FROM jobqueue_status');
	logged_once($throttled, 'one warning');
	# what may be used is bounded, on a slow machine, too
	my ($t1, $n1) = split /\|/, sql('SELECT extract(epoch FROM clock_timestamp()), (SELECT sum(completed) FROM jobqueue_status)');
	wait_for("SELECT sum(completed) > $n1 + 20 FROM jobqueue_status");
	my ($n2, $t2) = split /\|/, sql('SELECT (SELECT sum(completed) FROM jobqueue_status), extract(epoch FROM clock_timestamp())');
	# each of the workers may have one on account
	cmp_ok($n2 - $n1, '<=', 5.1 * ($t2 - $t1) + 4, sprintf '%d in %.1f s', $n2 - $n1, $t2 - $t1);
	my $last = enqueue('note', what => 'x', priority => 1);
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $last"), 'ready', 'enqueue and views work');
	my $id = enqueue('note', what => 'x', priority => -1);
	wait_state($id, 'completed');
	cmp_ok(sql('SELECT count(*) FROM jobqueue_job'), '>', 5000, 'the others wait');
	forget();
};

property 'a throttled worker can be cancelled, terminated and reconfigured' => sub {
	my $jobs_now = sub {
		is(sql('SELECT jobqueue_quiesce()'), 't', 'quiesce');
		wait_for("SELECT count(*) = 0 FROM jobqueue_workers WHERE state = 'throttled'");
		my $n = sql('SELECT count(*) + (SELECT sum(completed) FROM jobqueue_status) FROM jobqueue_job');
		sql('SELECT jobqueue_resume()');
		wait_for($some_throttled);
		return $n;
	};
	my $jobs = $jobs_now->();
	my $pid;

	sql('SELECT pg_cancel_backend(pid) FROM jobqueue_workers');
	wait_for($some_throttled);
	$pid = sql($first_pid) || 0 until $pid;
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT count(*) = 0 FROM jobqueue_workers WHERE pid = $pid");
	wait_for($some_throttled);
	# a waiting job of a throttled lane
	my $id = enqueue('note', what => 'never', priority => 1);
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'a job that waits is cancelled');
	is(sql("SELECT state FROM jobqueue_history WHERE id = $id"), 'cancelled', 'and gone');
	set_conf('jobqueue.enabled' => 'off');
	wait_for("SELECT count(*) = 0 FROM jobqueue_workers WHERE state <> 'idle'");
	set_conf('jobqueue.enabled' => undef);
	wait_for($some_throttled);
	is($jobs_now->(), $jobs, 'no job is lost');
	is(sql('SELECT max(attempt) FROM jobqueue_job'), 0, 'nor charged');
};

property 'DROP DATABASE while jobs are throttled' => sub {
	sql('CREATE DATABASE other');
	JobqueueTest::add_database('other');
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}')) FROM generate_series(1, 1000)}, db => 'other');
	wait_for($some_throttled, 't', 'other');
	sql('DROP DATABASE other');
	is(sql("SELECT count(*) FROM pg_database WHERE datname = 'other'"), 0, 'dropped');
};

property 'beyond the warn limit no job starts and nothing is lost' => sub {
	my $gate = close_gate(1);
	# memory forgets them, too; rows that are deleted it has until a worker meets them
	sql(q{SELECT jobqueue_cancel_where('default', NULL, NULL)});
	my $failing = enqueue('gate_fail', args => '{"gate": 1}', max_attempts => 1);
	my $running = enqueue('gate', gate => 1, what => 'running');
	wait_at_gate(2);
	my $burn = left() + 100;
	sql("$quiet SET synchronous_commit = off; CALL burn($burn)");
	cmp_ok(left(), '<', 0, 'the limit is passed');
	my @ids = map { enqueue('note', what => "s$_") } (1 .. 20);
	enqueue('note', what => 'due', run_at => 'yesterday');
	wait_for($some_stopped);
	logged_once($stopped, 'one warning');
	like(slurp_file(node()->logfile, $offset), qr/$stopped\n.*DETAIL:  Database "\w+" must be vacuumed within 3999\d{4} transactions\./, 'which database');
	open_gate($gate);
	wait_state($running, 'completed');
	wait_for("SELECT state = 'dead' FROM jobqueue_history WHERE id = $failing");
	pass('what ran has ended; its failure is recorded');
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	is(sql("SELECT string_agg(DISTINCT state, ' ') FROM jobqueue_jobs WHERE id IN (" . join(',', @ids) . ')'), 'ready', 'they wait');
	wait_for('SELECT sum(ready) = 21 AND sum(running) = 0 FROM jobqueue_status');
	pass('and are counted');
	is(sql("SELECT jobqueue_cancel($ids[0])"), 't', 'one is cancelled');
	is(ran(), 'running', 'none has run');

	# a worker that comes now does not start one, either
	my $pid;
	$pid = sql($first_pid) || 0 until $pid;
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT count(*) = 0 FROM jobqueue_workers WHERE pid = $pid");
	wait_for($some_stopped);
	sql('CREATE ROLE other_role');
	sql(q{SELECT jobqueue_grant('other_role', 'use')});
	sql(q{SET ROLE other_role; SELECT jobqueue_enqueue('note', '{"what": "other"}')});
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_workers WHERE role = 'other_role'::regrole AND state = 'stopped: transaction ids'});
	is(ran(), 'running', 'still none');
};

property 'after a restart they still wait' => sub {
	$offset = -s node()->logfile;
	node()->restart;
	wait_for($some_stopped);
	logged_once($stopped, 'the new server says it again');
	is(sql('SELECT count(*) FROM jobqueue_job'), 21, 'all there');
	is(ran(), 'running', 'none has run');
};

property 'jobs run again when vacuum has advanced the limit, without a restart' => sub {
	my $started = sql('SELECT pg_postmaster_start_time()');

	vacuum_all();
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM ran'), '22|22|1', 'each once');
	is(sql('SELECT pg_postmaster_start_time()'), $started, 'the same server');
	logged_once($plenty, 'the log says so');
	read_limits();
	cmp_ok(left(), '>', 2_000_000_000, 'there is plenty');
	forget();
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}')) FROM generate_series(1, 2000)});
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 2000, 'nothing is throttled');
	forget();
};

property 'the server has not crashed in all this' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

done_testing();
