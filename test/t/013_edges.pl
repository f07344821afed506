# Narrow places: moments and orders that a queue gets wrong at first.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('edges');
sql(<<'END');
CREATE ROLE app LOGIN;
SELECT jobqueue_grant('app', 'use');
CREATE TABLE done (id bigint);
GRANT ALL ON done TO PUBLIC;
CREATE FUNCTION mark() RETURNS void LANGUAGE sql AS
	$$ INSERT INTO done SELECT id FROM jobqueue_current() $$;
END

# the error of a query in a session that goes on
sub fails
{
	my ($s, $query) = @_;

	$s->query($query);
	my $error = $s->{stderr};
	$s->{stderr} = '';
	return $error;
}

property 'jobs that fall due while others are being published all run' => sub {
	sql(q{SELECT count(jobqueue_enqueue('mark', run_at => clock_timestamp() + i * interval '0.3 ms'))
		FROM generate_series(1, 3000) i});
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT id) FROM done'), '3000|3000', 'each once');
	sql('TRUNCATE done');
};

property 'an error while the tables are looked up leaves a session usable' => sub {
	my $locker = session();
	my $s = session();

	$locker->query_safe('BEGIN; LOCK TABLE jobqueue_job IN ACCESS EXCLUSIVE MODE');
	like(fails($s, q{SET lock_timeout = '50ms'; SELECT jobqueue_enqueue('mark')}),
		qr/lock timeout/, 'the first one fails');
	$locker->query_safe('COMMIT');
	$s->query_safe(q{RESET lock_timeout; SELECT jobqueue_enqueue('mark')});
	wait_drained();
	is(sql('SELECT count(*) FROM done'), 1, 'the second one ran');
	sql('TRUNCATE done');
	$_->quit foreach $locker, $s;
};

property 'a cancel under an older snapshot is an error and strands nothing' => sub {
	my $s = session();

	sql('SELECT jobqueue_quiesce()');
	$s->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM done');
	my $id = sql(q{SELECT jobqueue_enqueue('mark')});
	like(fails($s, "SELECT jobqueue_cancel($id)"),
		qr/could not serialize access/, 'it says so');
	$s->query_safe('ROLLBACK');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*) FROM done'), 1, 'the job ran');
	sql('TRUNCATE done');
	$s->quit;
};

property 'a rolled-back savepoint leaves nothing for the next transaction' => sub {
	my $s = session();

	$s->query_safe(q{BEGIN; SAVEPOINT a; SELECT jobqueue_enqueue('mark'); ROLLBACK TO a; COMMIT});
	$s->query_safe(q{SELECT jobqueue_enqueue('mark')});
	wait_drained();
	is(sql('SELECT count(*) FROM done'), 1, 'only the second');
	sql('TRUNCATE done');
	$s->quit;
};

property 'a hand-written row cannot crash a worker' => sub {
	foreach my $row (q{'x', 'BEGIN'}, q{'x', ''}, q{'x', 'SELECT 1; SELECT 2'},
		q{'f', 'pg_catalog.row_number()'}, q{'q', 'SELECT 1'}, q{'f', 'SELECT 1'})
	{
		# past the guard, too
		sql("SET session_replication_role = replica; ALTER TABLE jobqueue_job DISABLE TRIGGER ALL;
			INSERT INTO jobqueue_job (kind, command, max_attempts) VALUES ($row, 1);
			ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_guard; SELECT jobqueue_sweep()");
	}
	wait_for(q{SELECT count(*) = 6 FROM jobqueue_history WHERE state = 'dead'});
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'all are dead');
	is(sql(q{SELECT count(*) FROM jobqueue_history WHERE reason LIKE '%crash%'}), 0, 'by errors');
	sql('DELETE FROM jobqueue_archive');
};

property 'a refill passes over the jobs that run' => sub {
	my $gate = close_gate(1);

	sql(<<'END');
CREATE SEQUENCE starts;
CREATE FUNCTION start(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('starts'); -- is not rolled back
	PERFORM gate(args);
END $$;
END
	enqueue('start', gate => 1, what => "r$_") for 1 .. 2;
	wait_at_gate(2);
	sql('SELECT jobqueue_sweep()');
	# the one behind them runs after what the refill has brought
	enqueue('note', what => 'next', priority => 5);
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'next'});
	open_gate($gate);
	wait_drained();
	is(sql('SELECT last_value FROM starts'), 2, 'each was started once');
	is(sql(q{SELECT count(*) FROM ran WHERE what LIKE 'r%'}), 2, 'and ran');
	forget();
	sql('DROP SEQUENCE starts; DROP FUNCTION start');
	$gate->quit;
};

property 'a job that expires while its row is locked ends when that is free' => sub {
	my ($s, $o) = (session(), session());
	my ($locked, $held) = map { sql("SELECT jobqueue_enqueue('mark', run_at => 'tomorrow', expires_at => clock_timestamp() + interval '3 s')") } 1 .. 2;
	$s->query_safe("BEGIN; SELECT FROM jobqueue_job WHERE id = $locked FOR UPDATE");
	$o->query_safe("BEGIN; SELECT jobqueue_reprioritize($held, 3)");
	# the scheduler comes to those before it comes to this one
	my $other = sql("SELECT jobqueue_enqueue('mark', run_at => 'tomorrow', expires_at => clock_timestamp() + interval '3 s', keep => '1 h')");
	wait_state($other, 'cancelled');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id IN ($locked, $held)"), 2, 'they are passed over');
	$_->query_safe('ROLLBACK') foreach $s, $o;
	wait_for("SELECT count(*) = 2 FROM jobqueue_recent WHERE id IN ($locked, $held) AND outcome = 'cancelled'");
	$_->quit foreach $s, $o;
	sql('DELETE FROM jobqueue_archive');
};

property 'no query of the scheduler is compiled, whatever the settings are' => sub {
	return pass('this server has no JIT compilation') if sql('SELECT pg_jit_available()') ne 't';
	my %conf = (jit => 'on', jit_above_cost => 0, log_min_messages => 'debug1', log_line_prefix => '%b|');
	set_conf(%conf);
	my $offset = -s node()->logfile;
	node()->restart;
	is(sql('SELECT sum(i) FROM generate_series(1, 3) i'), '6', 'a query of a session');
	sql(q{SELECT jobqueue_enqueue('note', '{"what": "due"}', run_at => clock_timestamp() + interval '10 ms', tags => '{a}'),
		jobqueue_enqueue('note', run_at => 'tomorrow', expires_at => clock_timestamp() + interval '10 ms'),
		jobqueue_enqueue('SELECT 1/0', max_attempts => 1)});
	sql(q{SELECT jobqueue_sweep()});
	wait_drained();
	wait_for('SELECT count(*) = 2 FROM jobqueue_history');
	my $log = slurp_file(node()->logfile, $offset);
	like($log, qr/^client backend\|DEBUG:  time to inline/m, 'that is compiled');
	unlike($log, qr/^jobqueue scheduler\|DEBUG:  time to inline/m, 'and none of the scheduler');
	set_conf(map { $_ => undef } keys %conf);
	sql('DELETE FROM jobqueue_archive');
	forget();
};

done_testing();
