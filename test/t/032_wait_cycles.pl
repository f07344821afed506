# Cycles of waits that go through a wait for jobs: one of them gives way.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('wait_cycles', conf => <<'END');
deadlock_timeout = 100ms
END

sql(<<'END');
CREATE TABLE things (id int PRIMARY KEY, n int DEFAULT 0);
INSERT INTO things SELECT i FROM generate_series(1, 10) i;
CREATE FUNCTION touch(int) RETURNS void LANGUAGE sql AS
	$$ UPDATE things SET n = n + 1 WHERE id = $1 $$;
CREATE TABLE parts (name text, id bigint);
CREATE FUNCTION part(text) RETURNS bigint LANGUAGE sql AS $$ SELECT id FROM parts WHERE name = $1 $$;
END

my $deadlock = qr/deadlock detected/;

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

sub session_begin
{
	my ($query) = @_;
	my $s = session();

	ask($s, 'BEGIN');
	ask($s, $query);
	return $s;
}

sub on_a_row
{
	wait_for(q{SELECT count(*) >= 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'});
	return;
}

sub ends_well
{
	my ($id, $name) = @_;
	is(sql("SELECT state FROM jobqueue_wait($id)"), 'completed', $name);
	return;
}

property 'a session waits for a job that waits for its row' => sub {
	my $s = session_begin('SELECT touch(1)');
	my $id = enqueue('SELECT touch(1)');

	on_a_row();
	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	my $answer = answer($s);
	like($answer, $deadlock, 'the session gives way');
	like($answer, qr/waits for job $id; blocked by process \d+\.\s+Process \d+ waits for a lock; blocked/,
		'and says of what');
	ends_well($id, 'the job has run');
};

property 'a session waits for a job that needs its key' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('a')");
	my $id = enqueue('SELECT 1', key => 'a');

	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	like(answer($s), $deadlock, 'the session gives way');
	ends_well($id, 'the job has run');
};

property 'a job waits for one that needs its key' => sub {
	my $id = enqueue(q{SELECT state FROM jobqueue_wait(part('child'))}, key => 'b',
		run_at => '2999-01-01');
	my $child = enqueue('SELECT 42', key => 'b', run_at => '2999-01-01');

	sql("INSERT INTO parts VALUES ('child', $child)");
	sql("SELECT jobqueue_reschedule($id, now())");
	wait_for("SELECT count(*) = 1 FROM jobqueue_running WHERE id = $id");
	sql("SELECT jobqueue_reschedule($child, now())");
	ends_well($id, 'it gives its key to that one, and runs again');
	is(sql("SELECT outcome || attempt || coalesce(result, '') FROM jobqueue_recent WHERE id = $id"),
		'completed1"completed"', 'uncharged');
	sql('DELETE FROM parts');
};

property 'two jobs wait for each other' => sub {
	my $one = enqueue(q{SELECT state FROM jobqueue_wait(part('two'))}, max_attempts => 1,
		run_at => '2999-01-01');
	my $two = enqueue(q{SELECT state FROM jobqueue_wait(part('one'))}, max_attempts => 1,
		run_at => '2999-01-01');

	sql("INSERT INTO parts VALUES ('one', $one), ('two', $two)");
	sql("SELECT jobqueue_reschedule(id, now()) FROM parts");
	is(sql("SELECT string_agg(state || coalesce(':' || result::text, ''), ' ' ORDER BY state)
			FROM jobqueue_wait(ARRAY[$one, $two])"),
		'completed:"dead" dead', 'one of them dies of it, the other is told');
	sql('DELETE FROM parts');
};

property 'a session waits for a job that is to run after one which needs its key' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('c')");
	my $first = enqueue('SELECT 1', key => 'c');
	my $id = sql("SELECT jobqueue_enqueue('SELECT 2', after => ARRAY[$first])");

	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	like(answer($s), $deadlock, 'the session gives way');
	ends_well($id, 'the job has run');
};

property 'a session waits for a job that is held by one which waits for its row' => sub {
	my $s = session_begin('SELECT touch(2)');
	my $id = enqueue('SELECT 1', run_at => '2999-01-01');
	my $holder = session_begin("SELECT jobqueue_reschedule($id, now())");

	send_sql($holder, 'SELECT touch(2); COMMIT');
	on_a_row();
	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	like(answer($s), $deadlock, 'the first session gives way');
	unlike(answer($holder), qr/ERROR/, 'the other goes on');
	ends_well($id, 'the job has run');
};

property 'a session waits for a job whose consumer waits for its row' => sub {
	my $s = session_begin('SELECT touch(3)');
	my $id = sql("SELECT jobqueue_enqueue(NULL, queue => 'outside')");
	my $consumer = session();

	is(ask($consumer, "SELECT id FROM jobqueue_fetch('outside', wait => '1 min')"), $id, 'fetched');
	send_sql($consumer, "BEGIN; SELECT touch(3); SELECT jobqueue_complete($id); COMMIT");
	on_a_row();
	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	like(answer($s), $deadlock, 'the session gives way');
	unlike(answer($consumer), qr/ERROR/, 'the consumer goes on');
	ends_well($id, 'the job is completed');
};

property 'a session waits for a job whose lease another one is about to end' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('l')");
	my $id = sql("SELECT jobqueue_enqueue(NULL, queue => 'outside')");
	my $token = sql("SELECT token FROM jobqueue_fetch('outside', wait => '1 min', lease => '1 h')");
	my $consumer = session_begin("SELECT jobqueue_complete($id, token => '$token')");

	send_sql($consumer, "SELECT jobqueue_xact_lock('l'); COMMIT");
	wait_for("SELECT count(*) = 1 FROM jobqueue_keys WHERE key = 'l' AND waiting = 1");
	send_sql($s, "SELECT jobqueue_wait($id); COMMIT");
	my @answers = (answer($s), answer($consumer));
	is(scalar(grep { $_ =~ $deadlock } @answers), 1, 'one of them gives way')
	  or diag(join "\n", @answers);
	sql("SELECT jobqueue_complete($id, token => '$token')") if $answers[1] =~ $deadlock;
	ends_well($id, 'the job is completed');
};

property 'a session waits for the key of a job whose lease another one is about to end' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('m')");
	my $id = sql("SELECT jobqueue_enqueue(NULL, queue => 'outside', key => 'n')");
	my $token = sql("SELECT token FROM jobqueue_fetch('outside', wait => '1 min', lease => '1 h')");
	my $consumer = session_begin("SELECT jobqueue_complete($id, token => '$token')");

	send_sql($consumer, "SELECT jobqueue_xact_lock('m'); COMMIT");
	wait_for("SELECT count(*) = 1 FROM jobqueue_keys WHERE key = 'm' AND waiting = 1");
	send_sql($s, "SELECT jobqueue_xact_lock('n', '10 s'); COMMIT");
	my @answers = (answer($s), answer($consumer));
	is(scalar(grep { $_ =~ $deadlock } @answers), 1, 'one of them gives way')
	  or diag(join "\n", @answers);
	sql("SELECT jobqueue_complete($id, token => '$token')") if $answers[1] =~ $deadlock;
	ends_well($id, 'the job is completed');
};

property 'a session waits for the key of a job that another one is about to lease' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('m')");
	my $id = sql("SELECT jobqueue_enqueue(NULL, queue => 'outside', key => 'n')");
	my $consumer = session_begin("SELECT id FROM jobqueue_fetch('outside', wait => '1 min', lease => '1 h')");

	send_sql($consumer, "SELECT jobqueue_xact_lock('m'); ROLLBACK");
	wait_for("SELECT count(*) = 1 FROM jobqueue_keys WHERE key = 'm' AND waiting = 1");
	send_sql($s, "SELECT jobqueue_xact_lock('n', '10 s'); ROLLBACK");
	my @answers = (answer($s), answer($consumer));
	is(scalar(grep { $_ =~ $deadlock } @answers), 1, 'one of them gives way')
	  or diag(join "\n", @answers);
	wait_for("SELECT jobqueue_cancel($id)");
};

property 'two sessions, one waits for a key, the other for a job' => sub {
	my $s1 = session_begin("SELECT jobqueue_xact_lock('d')");
	my $s2 = session_begin("SELECT jobqueue_xact_lock('e')");
	my $id = enqueue('SELECT 1', key => 'd');

	send_sql($s1, "SELECT jobqueue_xact_lock('e'); COMMIT");
	wait_for("SELECT count(*) = 1 FROM jobqueue_keys WHERE key = 'e' AND waiting = 1");
	send_sql($s2, "SELECT jobqueue_wait($id); COMMIT");
	my @answers = (answer($s1), answer($s2));
	is(scalar(grep { $_ =~ $deadlock } @answers), 1, 'one of them gives way')
	  or diag(join "\n", @answers);
	ends_well($id, 'the job has run');
};

property 'a key that has room for the job is nobody to wait for' => sub {
	sql("SELECT jobqueue_configure('shared', key_limit => 2)");
	my $offset = crash_offset();
	my $one = enqueue('SELECT 1', key => 'a', queue => 'shared', run_at => '2999-01-01');
	my $two = enqueue("SELECT (jobqueue_wait($one)).state", key => 'a', queue => 'shared', max_attempts => 1);
	my $s = session_begin("SELECT jobqueue_xact_lock('c')");
	my $t = session_begin("SELECT jobqueue_xact_lock('d')");

	# as long as it takes others to find a cycle
	send_sql($s, "SELECT jobqueue_xact_lock('d'); COMMIT");
	send_sql($t, "SELECT jobqueue_xact_lock('c'); COMMIT");
	answer($_) foreach $s, $t;
	wait_for('SELECT count(*) = 1 FROM jobqueue_running');
	sql("SELECT jobqueue_reschedule($one, now())");
	wait_state($_, 'completed') foreach $one, $two;
	my $log = PostgreSQL::Test::Utils::slurp_file(node()->logfile, $offset);
	is(scalar(() = $log =~ /ERROR:  deadlock detected/g), 1, 'none but the other one');
};

property 'who waits for any of some jobs is not told of a deadlock' => sub {
	my $s = session_begin("SELECT jobqueue_xact_lock('f')");
	my $needs = enqueue('SELECT 1', key => 'f');
	my $other = enqueue('SELECT touch(4)');

	my $row = session_begin('SELECT touch(5)');
	my $late = enqueue('SELECT touch(5)');
	on_a_row();
	send_sql($s, "SELECT id FROM jobqueue_wait(ARRAY[$needs, $late], any_of => true); COMMIT");
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%any_of%' AND wait_event IN ('JobqueueWait', 'Extension') AND pid <> pg_backend_pid()");
	# one that is in a cycle, and began later, has found it
	my $late_session = session_begin("SELECT jobqueue_xact_lock('g')");
	my $stuck = enqueue('SELECT 1', key => 'g');
	send_sql($late_session, "SELECT jobqueue_wait($stuck); COMMIT");
	like(answer($late_session), $deadlock, 'one that waits for all is told');
	ask($row, 'COMMIT');
	my $answer = answer($s);
	unlike($answer, qr/ERROR/, 'no error');
	ends_well($_, 'done') foreach ($needs, $other, $late, $stuck);
};

done_testing();
