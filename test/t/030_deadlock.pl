# Cycles of waits that PostgreSQL does not see: one of them gives way.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('deadlock', conf => <<'END');
deadlock_timeout = 100ms
END

sql(<<'END');
CREATE TABLE things (id int PRIMARY KEY, n int DEFAULT 0);
INSERT INTO things SELECT i FROM generate_series(1, 10) i;
CREATE FUNCTION touch(int) RETURNS void LANGUAGE sql AS
	$$ UPDATE things SET n = n + 1 WHERE id = $1 $$;
END

sub ask
{
	my ($s, $query) = @_;
	return $s->query_safe($query);
}

# what a query that was sent has said, and with it all errors since
sub answer
{
	my ($s) = @_;
	my $out = $s->query('SELECT 1 WHERE false');
	my $err = $s->{stderr};

	$s->{stderr} = '';
	return "$out$err";
}

sub wait_in_line
{
	my ($key, $waiting) = @_;
	wait_for("SELECT coalesce(max(waiting), 0) FROM jobqueue_keys WHERE key = '$key'",
		$waiting // 1);
}

my $deadlock = qr/deadlock detected/;

# of these answers, one tells of a deadlock
sub one_gives_way
{
	my ($count, @answers) = @_;
	is(scalar(grep { $_ =~ $deadlock } @answers), $count, 'one of them gives way')
	  or diag(join "\n", @answers);
	is(scalar(grep { $_ =~ /ERROR/ && $_ !~ $deadlock } @answers), 0, 'without another error');
}

# so many times has a job been run again because of one
sub reruns
{
	my ($offset) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file(node()->logfile, $offset);
	return scalar(() = $log =~ /ERROR:  deadlock detected/g);
}

sub session_begin
{
	my ($query) = @_;
	my $s = session();

	ask($s, 'BEGIN');
	ask($s, $query);
	return $s;
}

property 'two sessions over two keys' => sub {
	foreach my $lock ('jobqueue_xact_lock', 'jobqueue_lock')
	{
		my $s1 = session_begin("SELECT $lock('a')");
		my $s2 = session_begin("SELECT $lock('b')");

		send_sql($s1, "SELECT $lock('b'); COMMIT; SELECT pg_advisory_unlock_all()");
		wait_in_line('b');
		send_sql($s2, "SELECT $lock('a'); COMMIT; SELECT pg_advisory_unlock_all()");
		my @answers = (answer($s1), answer($s2));
		one_gives_way(1, @answers);
		like((grep { $_ =~ $deadlock } @answers)[0],
			qr/Process \d+ waits for key "[ab]"; blocked by process \d+\.\s+Process \d+ waits for a key; blocked by process \d+\./,
			'and says of what');
		is(sql('SELECT count(*) FROM jobqueue_keys'), 0, 'all free');
	}
};

property 'a session has a row, a job the key' => sub {
	my $s = session_begin('SELECT touch(1)');

	enqueue('SELECT touch(1)', key => 'a');
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'});
	send_sql($s, "SELECT jobqueue_xact_lock('a'); COMMIT");
	my $answer = answer($s);
	like($answer, $deadlock, 'the session gives way');
	like($answer, qr/waits for key "a"; blocked by process \d+\.\s+Process \d+ waits for a lock/, 'and says of what');
	wait_drained();
	is(sql('SELECT n FROM things WHERE id = 1'), 1, 'the job has run');
};

property 'a job has a row, a session the key, the job asks for it' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('a')");
	my $offset = crash_offset();

	my $id = enqueue("SELECT touch(2); SELECT jobqueue_xact_lock('a')");
	wait_in_line('a');
	send_sql($s, 'SELECT touch(2); COMMIT');
	unlike(answer($s), qr/ERROR/, 'the session goes on');
	wait_drained();
	is(sql('SELECT n FROM things WHERE id = 2'), 2, 'so does the job');
	is(sql("SELECT outcome || attempt FROM jobqueue_recent WHERE id = $id"), 'completed1',
		'which ran again, uncharged');
	cmp_ok(reruns($offset), '>=', 1, 'after a deadlock');
};

property 'two jobs, each with its key, ask for the key of the other' => sub {
	my $gate = close_gate(1);
	my $offset = crash_offset();
	my @ids = map {
		enqueue("SELECT pg_advisory_xact_lock_shared(1); SELECT jobqueue_lock('$_->[1]')", key => $_->[0])
	} [ 'a', 'b' ], [ 'b', 'a' ];

	wait_at_gate(2);
	open_gate($gate);
	wait_drained();
	is(sql("SELECT string_agg(outcome || attempt, ' ') FROM jobqueue_recent WHERE id IN ($ids[0], $ids[1])"),
		'completed1 completed1', 'both complete, uncharged');
	is(reruns($offset), 1, 'one of them after a deadlock');
};

property 'three sessions: key, row, key' => sub {
	my $s1 = session_begin("SELECT jobqueue_xact_lock('a')");
	my $s2 = session_begin("SELECT jobqueue_xact_lock('b')");
	my $s3 = session_begin('SELECT touch(3)');

	send_sql($s2, 'SELECT touch(3); COMMIT');
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	send_sql($s3, "SELECT jobqueue_xact_lock('a'); COMMIT");
	wait_in_line('a');
	send_sql($s1, "SELECT jobqueue_xact_lock('b'); COMMIT");
	one_gives_way(1, map { answer($_) } $s1, $s3, $s2);
};

property 'three parties: two jobs and a session' => sub {
	my $s = session_begin('SELECT touch(4)');
	my $gate = close_gate(1);
	my $a = enqueue("SELECT pg_advisory_xact_lock_shared(1); SELECT jobqueue_xact_lock('b')", key => 'a');
	my $b = enqueue('SELECT touch(4)', key => 'b');

	# b has its key and waits for the row; a waits for b's; we for a's
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'});
	wait_at_gate();
	my $offset = crash_offset();
	open_gate($gate);
	wait_in_line('b');
	send_sql($s, "SELECT jobqueue_xact_lock('a'); COMMIT");
	my $answer = answer($s);
	wait_drained();
	is(reruns($offset), 1, 'one gives way');
	is(sql("SELECT string_agg(outcome || attempt, ' ') FROM jobqueue_recent WHERE id IN ($a, $b)"),
		'completed1 completed1', 'the jobs complete');
};

property 'waits that are no cycle go on' => sub {
	my $s1 = session_begin("SELECT jobqueue_xact_lock('a'), touch(5)");
	my $s2 = session_begin("SELECT jobqueue_xact_lock('b')");
	my $s3 = session();

	# a chain: s3 for b, s2 for the row of s1; each searches some times
	send_sql($s2, 'SELECT touch(5); COMMIT');
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	send_sql($s3, "SET deadlock_timeout = '1ms'; SELECT jobqueue_xact_lock('b'), jobqueue_xact_lock('a')");
	wait_in_line('b');
	my $s4 = session();
	send_sql($s4, "SET deadlock_timeout = '1ms'; SELECT jobqueue_xact_lock('a')");
	wait_in_line('a');
	# as long as it takes others to find a cycle
	my $s5 = session_begin("SELECT jobqueue_xact_lock('c')");
	my $s6 = session_begin("SELECT jobqueue_xact_lock('d')");
	send_sql($s5, "SELECT jobqueue_xact_lock('d'); COMMIT");
	wait_in_line('d');
	send_sql($s6, "SELECT jobqueue_xact_lock('c'); COMMIT");
	one_gives_way(1, answer($s5), answer($s6));
	ask($s1, 'COMMIT');
	unlike(answer($_), qr/ERROR/, 'no error') foreach $s2, $s3, $s4;
};

property 'many cycles at once: all end, one gives way in each' => sub {
	my @pairs;

	foreach my $i (1 .. 6)
	{
		push @pairs, [ session_begin("SELECT jobqueue_xact_lock('x$i')"),
			session_begin("SELECT jobqueue_xact_lock('y$i')") ];
	}
	foreach my $i (1 .. 6)
	{
		send_sql($pairs[$i - 1][0], "SELECT jobqueue_xact_lock('y$i'); COMMIT");
		send_sql($pairs[$i - 1][1], "SELECT jobqueue_xact_lock('x$i'); COMMIT");
	}
	one_gives_way(1, answer($_->[0]), answer($_->[1])) foreach @pairs;
};

property 'deadlocks are counted' => sub {
	wait_for('SELECT deadlocks >= 12 FROM pg_stat_database WHERE datname = current_database()');
	pass('in pg_stat_database');
};

done_testing();
