# Jobs that crash the server.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('quarantine', conf => "max_prepared_transactions = 2\n");

# The shell that COPY starts is a child of the worker.
sql(<<'END');
CREATE FUNCTION crash() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('crash');
	COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID';
END $$;
CREATE FUNCTION crash_at_gate(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM gate(args);
	PERFORM crash();
END $$;
CREATE TABLE switch (crash boolean);
INSERT INTO switch VALUES (true);
CREATE FUNCTION crash_if() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT crash FROM switch) THEN
		PERFORM crash();
	END IF;
	INSERT INTO ran (what) VALUES ('survived');
END $$;
END

sub crash_count
{
	my $log = PostgreSQL::Test::Utils::slurp_file(node()->logfile);
	return scalar(() = $log =~ /was terminated by signal 9/g);
}

# Lets jobs run that crash the server, which may take the answer with it.
sub let_crash
{
	my ($sql) = @_;
	my $offset = crash_offset();

	node()->psql('postgres', $sql);
	wait_crash_restart($offset);
}

# a job that does, and the restart after it
sub enqueue_crash
{
	my ($command, %opt) = @_;

	sql("SELECT jobqueue_pause('crash')");
	my $id = enqueue($command, queue => 'crash', %opt);
	let_crash("SELECT jobqueue_resume('crash')");
	return $id;
}

property
  'a function that crashes the server is dead after two crashes while the jobs beside it finish'
  => sub {
	my $gate = close_gate(1);
	my @beside =
	  map { enqueue('gate', gate => 1, what => "b$_", max_attempts => 1) } (1 .. 4);
	wait_at_gate(4);
	# the session that holds the gate goes with the first crash
	my $crasher = enqueue_crash('crash', max_attempts => 100);

	wait_state($crasher, 'dead');
	wait_drained();
	is(crash_count(), 2, 'it crashed the server twice');
	like(sql("SELECT concat(errors, reason) FROM jobqueue_history WHERE id = $crasher"),
		qr/crash/i, 'the history says why it is dead');
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'b1 b2 b3 b4', 'the others finished, once');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'and were not charged');
	is(sql('SELECT count(*) FROM jobqueue_history'), 1, 'only one is dead');
	forget();
  };

property 'a dead crasher can be retried' => sub {
	my $before = crash_count();
	my $id = enqueue_crash('crash_if', key => 'crash');

	wait_state($id, 'dead');
	is(crash_count() - $before, 2, 'two crashes');
	sql('UPDATE switch SET crash = false');
	is(sql("SELECT jobqueue_retry($id)"), 't', 'retry');
	wait_drained();
	is(ran(), 'survived', 'it ran');
	forget();
};

property 'one crash from outside does not end a job' => sub {
	foreach my $i (1 .. 2)
	{
		my $gate = close_gate(1);
		my $id = enqueue('gate', gate => 1, what => "g$i");
		wait_at_gate(1);
		my $offset = crash_offset();
		kill_hard(sql("SELECT pid FROM jobqueue_running WHERE id = $id"));
		wait_crash_restart($offset);
		wait_drained();
	}
	is(ran(), 'g1 g2', 'each ran');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'and was not charged');
	forget();
};

property 'the crash of a client blames no job, however often' => sub {
	sql(<<'END');
CREATE TABLE door (open boolean);
INSERT INTO door VALUES (false);
CREATE FUNCTION hold(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT (SELECT open FROM door) LOOP
		PERFORM pg_sleep(0.05);
	END LOOP;
	INSERT INTO ran (what)
	SELECT crashes FROM jobqueue_job WHERE id = (SELECT id FROM jobqueue_current());
END $$;
END
	enqueue('hold', what => $_, max_attempts => 1) foreach (1 .. 3);
	foreach my $i (1 .. 3)
	{
		wait_for('SELECT count(*) = 3 FROM jobqueue_running');
		my $client = session();
		my $offset = crash_offset();
		kill 9, $client->query_safe('SELECT pg_backend_pid()');
		wait_crash_restart($offset);
	}
	sql('UPDATE door SET open = true');
	wait_drained();
	is(ran(), '0 0 0', 'all ran, without a crash to their name');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'and were not charged');
	forget();
};

property 'a crash that cannot be recorded yet is, before the job runs again; others go on' => sub {
	my $before = crash_count();
	sql("SELECT jobqueue_pause('default')");
	my $id = enqueue('crash', max_attempts => 100);
	sql("BEGIN; SELECT FROM jobqueue_job WHERE id = $id FOR UPDATE; PREPARE TRANSACTION 'held'");
	let_crash("SELECT jobqueue_resume('default')");
	enqueue('note', what => "n$_") foreach (1 .. 3);
	wait_for("SELECT count(*) = 3 FROM ran");
	is(crash_count() - $before, 1, 'one crash');
	is(sql("SELECT crashes FROM jobqueue_job WHERE id = $id"), 0, 'which is not in its row');
	let_crash("ROLLBACK PREPARED 'held'");
	wait_state($id, 'dead');
	is(crash_count() - $before, 2, 'after two crashes it is dead');
	forget();
};

property 'also where the row was about to be deleted, and was not' => sub {
	my $before = crash_count();
	my $gate = close_gate(1);
	my $id = enqueue('crash_at_gate', gate => 1, queue => 'q', max_attempts => 100);
	wait_at_gate(1);
	sql("SELECT jobqueue_pause('q')");
	sql("BEGIN; DELETE FROM jobqueue_job WHERE id = $id; PREPARE TRANSACTION 'held'");
	my $offset = crash_offset();
	open_gate($gate);
	wait_crash_restart($offset);
	# a scheduler has been there
	enqueue('note', what => 'n', run_at => '-infinity');
	wait_for('SELECT count(*) = 1 FROM ran');
	sql("ROLLBACK PREPARED 'held'");
	$gate = close_gate(1);
	sql("SELECT jobqueue_resume('q')");
	wait_at_gate(1);
	is(sql("SELECT crashes FROM jobqueue_job WHERE id = $id"), 1, 'it is in its row when it runs again');
	$offset = crash_offset();
	open_gate($gate);
	wait_crash_restart($offset);
	wait_state($id, 'dead');
	is(crash_count() - $before, 2, 'after two crashes it is dead');
	forget();
};

paused_property 'a job that ended just before its worker was killed is not blamed'
  => sub {
	arm('worker-after-commit');
	my $id = enqueue('note', what => 'done');
	my $offset = crash_offset();
	kill 9, caught('worker-after-commit');
	wait_crash_restart($offset);
	wait_drained();
	enqueue('note', what => 'next');
	wait_drained();
	is(ran(), 'done next', 'each ran once');
	forget();
  };

done_testing();
