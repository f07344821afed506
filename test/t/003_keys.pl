# One running job per key, and a key that is free when its holder ends.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('keys');
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use');
CREATE TABLE totals (key text PRIMARY KEY, total int);
INSERT INTO totals SELECT 'k' || i, 0 FROM generate_series(0, 4) i;
CREATE TABLE runs (
	n bigint GENERATED ALWAYS AS IDENTITY,
	job bigint, key text, queue text, role name, pid int, alone boolean,
	started timestamptz, ended timestamptz);
GRANT ALL ON totals, runs TO PUBLIC;

-- Three proofs that nobody else of the key runs: the advisory lock, held to
-- the end of the transaction, is free; the read-modify-write loses nothing;
-- and the intervals do not overlap.
CREATE FUNCTION work() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
	free boolean;
	begun timestamptz := clock_timestamp();
	t int;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	free := pg_try_advisory_xact_lock(hashtext(c.key));
	SELECT total INTO t FROM totals WHERE key = c.key;
	PERFORM pg_sleep(random() * 0.001);
	UPDATE totals SET total = t + 1 WHERE key = c.key;
	INSERT INTO runs (job, key, queue, role, pid, alone, started, ended)
	VALUES (c.id, c.key, c.queue, current_user, pg_backend_pid(), free,
			begun, clock_timestamp());
END $$;
END

sub check_runs
{
	my ($count) = @_;

	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'),
		"$count|$count", 'each ran once');
	is(sql('SELECT count(*) FROM runs WHERE NOT alone'),
		0, 'none met another of its key');
	is(sql('SELECT sum(total) FROM totals'), $count, 'no update lost');
	is( sql('SELECT count(*) FROM (SELECT started < lag(ended) OVER (PARTITION BY key ORDER BY started) AS bad FROM runs) x WHERE bad'),
		0,
		'no two intervals of a key overlap');
	is( sql('SELECT count(*) FROM (SELECT job < lag(job) OVER (PARTITION BY key, queue, role ORDER BY n) AS bad FROM runs) x WHERE bad'),
		0,
		'in order of id within key, queue and role');
	ok(sql('SELECT count(DISTINCT pid) > 1 FROM runs') eq 't',
		'by several workers');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	sql('TRUNCATE runs; UPDATE totals SET total = 0');
}

property
  '8 workers, 5,000 jobs, 5 keys, 2 queues, 2 roles: never two of a key at once'
  => sub {
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	foreach my $i (0 .. 9)
	{
		sql_as($i % 2 ? 'r1' : 'r2',
			"SELECT count(jobqueue_enqueue('work', key => 'k' || i % 5,
				queue => CASE WHEN i / 5 % 2 = 0 THEN 'a' ELSE 'b' END))
			FROM generate_series(1, 500) i");
	}
	sql('SELECT jobqueue_resume()');
	wait_drained();
	check_runs(5000);
  };

property 'never two of a key at once while they come' => sub {
	my $script = <<'END';
\set k random(0, 4)
\set q random(0, 1)
SELECT jobqueue_enqueue('work', key => 'k' || :k, queue => CASE :q WHEN 0 THEN 'a' ELSE 'b' END);
END
	my @h = map {
		start_pgbench($script,
			clients => 4, transactions => 500, role => $_)
	} ('r1', 'r2');

	ok($_->finish, 'enqueued') or diag ${ $_->{out} } foreach @h;
	wait_drained();
	# commits were not in order of ids
	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'),
		'4000|4000', 'each ran once');
	is(sql('SELECT count(*) FROM runs WHERE NOT alone'), 0, 'alone');
	is(sql('SELECT sum(total) FROM totals'), 4000, 'no update lost');
	sql('TRUNCATE runs; UPDATE totals SET total = 0');
};

property 'what waits for a key delays nothing else' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, key => 'x');
	wait_at_gate(1);
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', key => 'x')) FROM generate_series(1, 100)});
	enqueue('note', what => 'free', priority => 10);
	enqueue('note', what => 'y', priority => 10, key => 'y');
	wait_for('SELECT count(*) = 2 FROM ran');
	wait_for('SELECT count(*) = 1 FROM jobqueue_running');
	pass('no worker is busy with them');
	is(sql('SELECT sum(blocked) FROM jobqueue_status'), 100, 'they are blocked');
	is(sql('SELECT key, waiting FROM jobqueue_keys'), 'x|100', 'on the key');
	open_gate($gate);
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 103, 'all ran');
	forget();
};

property 'waiters of a key go by priority, then id' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, key => 'x', priority => -100);
	wait_at_gate(1);
	enqueue('note', what => "p$_", key => 'x', priority => $_)
	  foreach (3, 1, 2, 1, 0);
	wait_for('SELECT sum(blocked) = 5 FROM jobqueue_status');
	open_gate($gate);
	wait_drained();
	is(ran(), 'gate p0 p1 p1 p2 p3', 'in order');
	forget();
};

property 'keys compare by full text and are of one database, not of a queue' =>
  sub {
	my $long = 'k' x 254;
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, key => "${long}a", queue => 'one');
	wait_at_gate(1);
	enqueue('note', what => 'b', key => "${long}b");
	enqueue('note', what => 'short', key => $long);
	wait_for('SELECT count(*) = 2 FROM ran');
	my $id = enqueue('note', what => 'a', key => "${long}a", queue => 'two', role => 'r1');
	wait_state($id, 'blocked');
	open_gate($gate);
	wait_drained();
	is(ran(), 'b short gate a', 'in order');
	forget();
  };

# Somebody holds key x; job "next" waits for it; the holder ends somehow; next
# runs while nothing else could have made it run.
sub key_is_free_after
{
	my ($how, $command, $end, %opt) = @_;

	property "a key is free after $how" => sub {
		my $gate = close_gate(9);
		my $id = enqueue($command, gate => 9, key => 'x', max_attempts => 1, %opt);
		my $next;

		if ($end)
		{
			wait_at_gate(1) unless $opt{timeout};
			$next = enqueue('note', what => 'next', key => 'x');
			# it may have run by now if the holder ends by itself
			wait_for("SELECT EXISTS (SELECT FROM jobqueue_jobs WHERE id = $next AND state = 'blocked')"
				  . ($opt{timeout} ? " OR EXISTS (SELECT FROM ran WHERE job = $next)" : ''));
			$end->($id, sql("SELECT pid FROM jobqueue_running WHERE id = $id"), $gate);
		}
		else
		{
			$next = enqueue('note', what => 'next', key => 'x');
		}
		wait_for("SELECT count(*) = 1 FROM ran WHERE job = $next");
		open_gate($gate) unless $how =~ /commit/;
		wait_drained();
		wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
		is(sql('SELECT max(attempt) FROM ran'), 1, 'the next ran at once');
		forget();
	};
}

key_is_free_after('commit', 'gate', sub { open_gate($_[2]) });
key_is_free_after('an error', 'fail', undef);
key_is_free_after('cancel', 'gate', sub { sql("SELECT jobqueue_cancel($_[0])") });
key_is_free_after('timeout', 'gate', sub { }, timeout => '500 ms');
key_is_free_after('pg_terminate_backend', 'gate',
	sub { sql("SELECT pg_terminate_backend($_[1])") });
key_is_free_after('the end of its own worker',
	'SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)', undef);

property 'a key is free after an error of a job that is tried again' => sub {
	my $first = enqueue('fail', key => 'x', what => 'no');
	my $next = enqueue('note', what => 'next', key => 'x');

	wait_for("SELECT count(*) = 1 FROM ran WHERE job = $next");
	is(sql("SELECT jobqueue_cancel($first)"), 't', 'it still waits for its time');
	wait_drained();
	forget();
};

property 'a key is free after kill -9 of its worker' => sub {
	my $gate = close_gate(9);
	my $first = enqueue('gate', gate => 9, key => 'x');
	wait_at_gate(1);
	my $next = enqueue('note', what => 'next', key => 'x');
	wait_state($next, 'blocked');
	my $offset = crash_offset();
	kill_hard(sql("SELECT pid FROM jobqueue_running WHERE id = $first"));
	wait_crash_restart($offset);
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'gate next', 'both ran');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'no attempt was charged');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

paused_property 'a key is held until the commit is complete' => sub {
	arm('worker-after-commit');
	my $first = enqueue('note', what => 'first', key => 'x');
	caught('worker-after-commit');
	is(ran(), 'first', 'committed');
	my $next = enqueue('note', what => 'next', key => 'x');
	wait_state($next, 'blocked');
	release('worker-after-commit');
	wait_drained();
	is(ran(), 'first next', 'then it is free');
	forget();
};

foreach my $point ('worker-claimed', 'worker-before-delete',
	'worker-before-commit', 'worker-after-commit')
{
	paused_property "a key is free when its worker is terminated at $point" => sub {
		arm($point);
		my $first = enqueue('note', what => 'first', key => 'x');
		my $pid = caught($point);
		my $next = enqueue('note', what => 'next', key => 'x');
		wait_state($next, 'blocked');
		sql("SELECT pg_terminate_backend($pid)");
		release($point);
		wait_drained();
		is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
			'first next', 'both ran once');
		wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
		forget();
	};
}

foreach my $point ('fail-before-record', 'fail-after-record')
{
	paused_property "a failing job is not lost when its worker is terminated at $point"
	  => sub {
		sql("CREATE SEQUENCE IF NOT EXISTS fails; ALTER SEQUENCE fails RESTART;
			CREATE OR REPLACE FUNCTION fail_once() RETURNS void LANGUAGE plpgsql AS
			'BEGIN IF nextval(''fails'') = 1 THEN RAISE EXCEPTION ''once''; END IF;
			INSERT INTO ran (what) VALUES (''second''); END'");
		arm($point);
		enqueue('fail_once', key => 'x');
		my $pid = caught($point);
		enqueue('note', what => 'next', key => 'x');
		wait_for('SELECT count(*) = 1 FROM ran');
		pass('its key was free');
		sql("SELECT pg_terminate_backend($pid)");
		release($point);
		wait_drained();
		is(ran(), 'next second', 'it ran again');
		is(sql("SELECT attempt FROM ran WHERE what = 'second'"),
			2, 'charged once');
		forget();
	  };
}

property 'a key sees what its holder before did, at any isolation level' => sub {
	sql(q{CREATE ROLE rr LOGIN; ALTER ROLE rr SET default_transaction_isolation = 'repeatable read';
		SELECT jobqueue_grant('rr', 'use')});
	# several workers of the role are there before the first job
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'rr') foreach (1 .. 3);
	wait_at_gate(3);
	open_gate($gate);
	wait_drained();
	forget();
	sql_as('rr',
		"SELECT count(jobqueue_enqueue('work', key => 'k' || i % 5)) FROM generate_series(1, 1000) i");
	wait_drained();
	check_runs(1000);
};

done_testing();
