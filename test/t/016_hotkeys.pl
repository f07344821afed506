# Keys with more jobs than memory keeps waiters of: the rest waits in the table,
# delays nothing else, and comes in its turn.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('hotkeys', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.max_workers = 4
max_worker_processes = 32
END
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use');
END

# The jobs of this file, in a database.
sub make_work
{
	my (%opt) = @_;

	sql(<<'END', %opt);
CREATE TABLE runs (
	n bigint GENERATED ALWAYS AS IDENTITY,
	job bigint, p int, key text, queue text, role name, attempt int, alone boolean);
GRANT ALL ON runs TO PUBLIC;

-- leaves a trace; the advisory lock, held to the end of the transaction, is
-- free unless another job of the key runs
CREATE FUNCTION work(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO runs (job, p, key, queue, role, attempt, alone)
		SELECT c.id, coalesce((args->>'p')::int, 0), c.key, c.queue, current_user, c.attempt,
			c.key IS NULL OR pg_try_advisory_xact_lock(hashtext(c.key))
		FROM jobqueue_current() c $$;

-- the same, but its first attempt fails
CREATE FUNCTION work_at_last(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (jobqueue_current()).attempt = 1 THEN
		RAISE EXCEPTION 'once';
	END IF;
	PERFORM work(args);
END $$;
CREATE SEQUENCE works;
END
}
make_work();

# properties that begin with nothing, even after a failure
sub hot_property
{
	my ($name, $code) = @_;
	property($name, sub { sql('TRUNCATE runs'); $code->(); });
}

sub hot_paused_property
{
	my ($name, $code) = @_;
	paused_property($name, sub { sql('TRUNCATE runs'); $code->(); });
}

# the SQL that enqueues so many jobs; others => what is given to enqueue, as SQL
# of i
sub sql_of_bulk
{
	my ($count, %opt) = @_;
	my $p = delete $opt{p} // 0;
	my $command = delete $opt{command} // 'work';

	return "SELECT count(jobqueue_enqueue('$command', jsonb_build_object('p', $p), priority => $p"
	  . join('', map { ", $_ => $opt{$_}" } sort keys %opt)
	  . ")) FROM generate_series(1, $count) i;\n";
}

# the same, in one transaction
sub bulk
{
	my ($count, %opt) = @_;
	my %sys = map { $_ => delete $opt{$_} } ('role', 'db');

	sql(sql_of_bulk($count, %opt), %sys);
}

# the same, each in a transaction of its own: workers meet them one by one
sub singles
{
	my ($count, $key, $p, %opt) = @_;
	my $h = start_pgbench(
		qq(SELECT jobqueue_enqueue('work', '{"p": $p}', key => '$key', priority => $p);),
		clients => 1, transactions => $count, %opt);

	$h->finish or die "pgbench: ${ $h->{out} }";
}

# A job that holds the key at a gate.  Returns the gate.
sub hold_key
{
	my ($key, $number, %opt) = @_;
	my $gate = close_gate($number);

	$opt{priority} //= -1000;
	enqueue('gate', gate => $number, key => $key, %opt);
	wait_for("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $number");
	return $gate;
}

# each ran once and alone; nothing is left
sub check_runs
{
	my ($count, %opt) = @_;
	my $tries = $opt{tries} // 1;

	wait_drained(db => $opt{db});
	is( sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM runs', db => $opt{db}),
		"$count|$count|$tries",
		'none lost, none twice');
	is(sql('SELECT count(*) FROM runs WHERE NOT alone', db => $opt{db}),
		0, 'one of a key at a time');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys', 't', $opt{db});
	wait_for('SELECT coalesce(sum(ready + blocked + running), 0) = 0 FROM jobqueue_status',
		't', $opt{db});
	sql('TRUNCATE runs, ran', db => $opt{db});
}

# Rows that are met twice, or read ahead, are counted so: the numbers of a key
# that has more jobs than memory keeps are not exact.
sub nearly
{
	my ($got, $expected, $what) = @_;

	cmp_ok(abs($got - $expected), '<=', 64, $what) or diag "$got, not $expected";
}

# within each key, queue and role, from run number $from on
sub check_order
{
	my ($from, %opt) = @_;

	$from //= 0;
	is( sql(<<END, db => $opt{db}), '', 'in order of priority and id');
WITH x AS (
	SELECT n, p, job, key, (p, job) < lag((p, job)) OVER (PARTITION BY key, queue, role ORDER BY n) AS bad
	FROM runs WHERE n > $from AND key IS NOT NULL)
SELECT n, p, job, key FROM x WHERE bad ORDER BY n LIMIT 5
END
}

sub wasted
{
	return sql('SELECT sum(wasted) FROM jobqueue_status');
}

# the worker's part of what it can know has been done: memory is at rest
sub wait_rest
{
	my ($query, $expected) = @_;

	wait_quiet();
	wait_for($query, $expected);
}

# ---- order and numbers ------------------------------------------------------

hot_property 'a hot key: its 5,000 jobs run in order, one at a time' => sub {
	my $gate = hold_key('hot', 1);
	bulk(2000, key => "'hot'", p => 'i % 7');
	my $h = start_pgbench(<<'END', clients => 4, transactions => 250);
\set p random(-3, 3)
SELECT jobqueue_enqueue('work', '{"p": :p}', key => 'hot', priority => :p);
END
	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	bulk(2000, key => "'hot'", p => '-(i % 5)');
	is(sql('SELECT count(*) FROM jobqueue_job'), 5001, 'none has run');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(5000);
};

hot_property 'a hot key: jobs that come while it runs have their place' => sub {
	my $from;

	bulk(2000, key => "'hot'", p => 'i % 7');
	foreach my $round (1 .. 5)
	{
		# goes before all others of the key
		my $gate = hold_key('hot', 1);
		$from = sql('SELECT coalesce(max(n), 0) FROM runs');
		bulk(200, key => "'hot'", p => 'i % 9 - 4');
		my $h = start_pgbench(<<'END', clients => 2, transactions => 50);
\set p random(-9, 9)
SELECT jobqueue_enqueue('work', '{"p": :p}', key => 'hot', priority => :p);
END
		ok($h->finish, 'enqueued') or diag ${ $h->{out} };
		open_gate($gate);
		wait_for("SELECT count(*) > 100 FROM runs WHERE n > $from");
		check_order($from);
	}
	wait_drained();
	check_order($from);
	check_runs(3500);
};

hot_property 'a hot key: none is lost where commits and runs cross' => sub {
	my $h = start_pgbench(<<'END', clients => 8, transactions => 250);
\set p random(-3, 3)
SELECT jobqueue_enqueue('work', '{"p": :p}', key => 'hot', priority => :p);
END
	bulk(500, key => "'hot'", p => 'i % 7 - 3') foreach (1 .. 4);
	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	check_runs(4000);
};

hot_property 'a hot key delays nothing else, and costs no dispatch' => sub {
	my $wasted = wasted();
	my $gate = hold_key('hot', 1);
	bulk(3000, key => "'hot'");
	bulk(500);
	bulk(500, key => "'k' || i % 50");
	wait_for('SELECT count(*) = 1000 FROM runs');
	is(sql('SELECT count(*) FROM jobqueue_job'), 3001, 'all others have run');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(4000);

	# together: no hot one runs before the others are there
	sql('BEGIN;' . sql_of_bulk(5000, key => "'hot'") . sql_of_bulk(100, key => "'k' || i") . 'COMMIT');
	wait_drained();
	cmp_ok( sql("SELECT count(*) FROM runs WHERE key = 'hot'
			AND n < (SELECT max(n) FROM runs WHERE key <> 'hot')"),
		'<', 2500,
		'those that came later were through before half of the hot ones');
	check_order();
	check_runs(5100);
	# a row that ended between a refill's look and its push is met once more
	cmp_ok(wasted() - $wasted, '<=', 5, 'no dispatch was wasted');
};

hot_property 'what hot keys have in memory leaves room for others' => sub {
	set_conf('jobqueue.max_workers' => 16);
	# more waiters than memory has entries
	my @gates = map { hold_key("hot$_", $_) } (1 .. 12);
	foreach my $i (1 .. 12)
	{
		singles(100, "hot$i", 0);
	}
	bulk(300);
	wait_for('SELECT count(*) = 300 FROM runs');
	is(sql('SELECT count(*) FROM jobqueue_job'),
		1212, 'the others have run');
	open_gate($_) foreach @gates;
	wait_drained();
	check_order();
	check_runs(1500);
	set_conf('jobqueue.max_workers' => 4);
};

hot_property 'several hot keys, two queues, two roles' => sub {
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	foreach my $i (0 .. 19)
	{
		bulk(250,
			role => $i % 2 ? 'r1' : 'r2',
			key => "'k' || " . $i % 5,
			queue => $i / 5 % 2 ? "'a'" : "'b'",
			p => 'i % 3');
	}
	sql('SELECT jobqueue_resume()');
	wait_drained();
	check_order();
	check_runs(5000);

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
	check_runs(4000);
};

hot_property '200 hot keys' => sub {
	my $gate = hold_key('k1', 1);
	my $wasted = wasted();

	bulk(10000, key => "'k' || i % 200");
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(10000);
	is(wasted() - $wasted, 0, 'no dispatch was wasted');
};

hot_property 'waiting jobs of a held key are blocked, and counted exactly' => sub {
	my $gate = hold_key('hot', 1);

	bulk(1000, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	is(sql("SELECT string_agg(DISTINCT state, ' ') FROM jobqueue_jobs WHERE command ~ 'work'"),
		'blocked', 'all are blocked');
	nearly(sql('SELECT waiting FROM jobqueue_keys'), 1000, 'all wait for the key');
	is( sql("SELECT ready, blocked, running, spilled, estimated FROM jobqueue_status WHERE queue = 'default'"),
		'0|1000|1|0|f', 'and the queue says so');

	# later ones, of any priority
	bulk(30, key => "'hot'", p => 5);
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	bulk(30, key => "'hot'", p => 3);
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	bulk(30, key => "'hot'", p => -3);
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	nearly(sql('SELECT waiting FROM jobqueue_keys'), 1090, 'those of smaller priority, too');
	nearly(sql("SELECT blocked FROM jobqueue_status WHERE queue = 'default'"), 1090, 'and the queue says so');
	is(sql("SELECT string_agg(DISTINCT state, ' ') FROM jobqueue_jobs WHERE command ~ 'work'"),
		'blocked', 'all are blocked');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(1090);
};

hot_property 'numbers of a hot key in two queues' => sub {
	my $gate = hold_key('hot', 1, queue => 'a');

	bulk(300, key => "'hot'", queue => "'a'");
	bulk(200, key => "'hot'", queue => "'b'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	nearly(sql('SELECT waiting FROM jobqueue_keys'), 500, 'waiting');
	nearly(sql("SELECT blocked FROM jobqueue_status WHERE queue = 'a'"), 300, 'its own in a');
	nearly(sql("SELECT blocked FROM jobqueue_status WHERE queue = 'b'"), 200, 'its own in b');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(500);
};

# ---- other ways to come and to go -------------------------------------------

hot_property 'delayed jobs of a hot key' => sub {
	my $gate = hold_key('hot', 1);

	bulk(500, key => "'hot'");
	bulk(300, key => "'hot'", run_at => "clock_timestamp() + i % 3 * interval '300 ms'");
	bulk(10, key => "'hot'", run_at => "clock_timestamp() + interval '1 hour'");
	wait_for('SELECT sum(scheduled) = 10 FROM jobqueue_status');
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	wait_for('SELECT waiting BETWEEN 736 AND 864 FROM jobqueue_keys');
	open_gate($gate);
	wait_for('SELECT count(*) = 800 FROM runs');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	is( sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'scheduled'"),
		10, 'those that are not due wait for their time');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job');
	check_runs(800);

	# they come while the key is worked on
	bulk(1000, key => "'hot'", run_at => "clock_timestamp() + i % 100 * interval '10 ms'");
	check_runs(1000);
};

hot_property 'jobs of a hot key that fail at first' => sub {
	bulk(300, key => "'hot'");
	bulk(30, key => "'hot'", command => 'work_at_last');
	bulk(300, key => "'hot'");
	check_runs(630, tries => 2);
};

hot_property 'jobqueue_cancel() of jobs of a hot key' => sub {
	my $gate = hold_key('hot', 1);
	my $others = 'FROM (SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE id % 2 = 0 AND priority > -1000) x';

	bulk(1000, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	my $even = sql('SELECT count(*) FROM jobqueue_job WHERE id % 2 = 0 AND priority > -1000');
	sql("BEGIN; SELECT count(*) $others; ROLLBACK");
	is(sql('SELECT count(*) FROM jobqueue_job'), 1001, 'rolled back');
	is(sql("SELECT count(*) $others"), $even, 'cancelled');
	sql('BEGIN; SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE priority > -1000; ROLLBACK');
	open_gate($gate);
	wait_drained();
	check_order();
	is(sql('SELECT count(*) FROM runs WHERE job % 2 = 0'), 0, 'none of them ran');
	check_runs(1000 - $even);
	sql('DELETE FROM jobqueue_archive');
};

hot_property 'all jobs of a hot key are cancelled, or deleted by hand' => sub {
	foreach my $how ('SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE priority > -1000',
		'DELETE FROM jobqueue_job WHERE priority > -1000')
	{
		my $gate = hold_key('hot', 1);

		bulk(1000, key => "'hot'");
		wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
		sql($how);
		open_gate($gate);
		check_runs(0, tries => '');
		bulk(10, key => "'hot'");
		check_runs(10);
	}
	sql('DELETE FROM jobqueue_archive');
};

hot_property 'jobqueue_run() of a job of a hot key' => sub {
	my $gate = hold_key('hot', 1);

	bulk(500, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	my $last = sql('SELECT max(id) FROM jobqueue_job');
	like(sql_error("SELECT jobqueue_run($last)"),
		qr/key "hot" of job $last is held/, 'not while the key is held');
	is(sql('SELECT jobqueue_quiesce(\'1 ms\')'), 'f', 'no more are started');
	open_gate($gate);
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	my $s = session();
	$s->query_safe('BEGIN');
	$s->query_safe("SELECT jobqueue_run($last)");
	sql('SELECT jobqueue_resume()');
	wait_quiet();
	is(sql('SELECT count(*) FROM runs'), 0, 'the key is held by the session');
	$s->query_safe('COMMIT');
	wait_drained();
	is(sql('SELECT job FROM runs ORDER BY n LIMIT 1'), $last, 'it ran first');
	check_order(1 + sql('SELECT min(n) - 1 FROM runs'));
	check_runs(500);

	# and rolled back
	$gate = hold_key('hot', 1);
	bulk(500, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	$last = sql('SELECT max(id) FROM jobqueue_job');
	sql('SELECT jobqueue_quiesce(\'1 ms\')');
	open_gate($gate);
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	sql("BEGIN; SELECT jobqueue_run($last); ROLLBACK");
	sql('SELECT jobqueue_resume()');
	wait_drained();
	check_order();
	check_runs(500);
};

hot_property 'waiting jobs of a hot key are counted in each of its queues' => sub {
	my $gate = hold_key('hot', 1);

	# whichever is read first goes past rows of the other
	bulk(1200, key => "'hot'", queue => "'q' || i / 301 % 2");
	foreach my $queue (qw(q0 q1))
	{
		my $real = sql("SELECT count(*) FROM jobqueue_job WHERE queue = '$queue'");

		wait_rest("SELECT ready FROM jobqueue_status WHERE queue = '$queue'", 0);
		nearly(sql("SELECT blocked FROM jobqueue_status WHERE queue = '$queue'"), $real, $queue);
	}
	sql('SELECT jobqueue_sweep()');
	wait_rest("SELECT sum(ready) FROM jobqueue_status WHERE NOT estimated", 0);
	nearly(sql("SELECT sum(blocked) FROM jobqueue_status"), 1200, 'and after all has been read again');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(1200);
};

hot_property 'jobqueue_sweep() with a hot key' => sub {
	my $gate = hold_key('hot', 1);

	bulk(500, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	sql('SELECT jobqueue_sweep()');
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	nearly(sql('SELECT waiting FROM jobqueue_keys'), 500, 'waiting');
	is(sql("SELECT ready, running, estimated FROM jobqueue_status WHERE queue = 'default'"),
		'0|1|f', 'nothing is ready');
	nearly(sql("SELECT blocked FROM jobqueue_status WHERE queue = 'default'"), 500, 'blocked');
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(500);

	bulk(2000, key => "'hot'");
	foreach my $i (1 .. 10)
	{
		wait_for("SELECT count(*) > 150 * $i FROM runs");
		sql('SELECT jobqueue_sweep()');
	}
	wait_drained();
	check_order();
	check_runs(2000);
};

hot_property 'after jobqueue_sweep() a job of smaller priority still goes first' => sub {
	my $gate = hold_key('hot', 1);

	singles(200, 'hot', 0);
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	sql('SELECT jobqueue_sweep()');
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	singles(3, 'hot', -100);
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(203);
};

hot_property 'rows of another installation among those of a hot key' => sub {
	my $gate = hold_key('hot', 1);

	bulk(500, key => "'hot'");
	sql('SET session_replication_role = replica; UPDATE jobqueue_job SET home = home + 1 WHERE id % 3 = 0 AND priority > -1000');
	my $held = sql('SELECT count(*) FROM jobqueue_job WHERE home <> jobqueue_home()');
	cmp_ok($held, '>', 100, 'some are held');
	sql('SELECT jobqueue_sweep()');
	open_gate($gate);
	wait_for("SELECT count(*) = 500 - $held FROM runs");
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	is( sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'"),
		$held, 'they stay');
	check_order();
	sql('SELECT jobqueue_adopt()');
	check_runs(500);
};

hot_property 'what a hot key has of roles that may not see each other' => sub {
	my $gate = hold_key('hot', 1, role => 'r1', queue => 'a');

	bulk(300, role => 'r1', key => "'hot'", queue => "'a'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	bulk(1, role => 'r2', key => "'hot'", queue => "'a'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	nearly(sql_as('r2', "SELECT blocked FROM jobqueue_status WHERE queue = 'a'"),
		1, 'each sees its own');
	open_gate($gate);
	wait_drained();
	check_runs(301);
};

hot_property 'a role that has no worker now does not keep a key from another' => sub {
	set_conf('jobqueue.max_workers_per_role' => 2);
	my $gate = hold_key('hot', 1, role => 'r1');

	singles(100, 'hot', 0, role => 'r1');
	wait_quiet(role => 'r1');
	singles(100, 'hot', 0, role => 'r2');
	wait_quiet(role => 'r2');
	# both workers of r1 have something better to do
	my $other = close_gate(2);
	enqueue('gate', gate => 2, role => 'r1', priority => -2000) foreach (1, 2);
	wait_at_gate(2);
	open_gate($gate);
	wait_at_gate(2);
	my $ok = eval { wait_for('SELECT count(*) = 100 FROM runs'); 1 };
	ok($ok, 'those of the other role run');
	open_gate($other);
	wait_drained();
	check_order();
	check_runs(200);
	set_conf('jobqueue.max_workers_per_role' => undef);
};

# ---- commits and deaths during a refill -------------------------------------

# A hot key whose refill stands at its pause point; what it was read for is
# free.  $late: a session that has one job more after each 20 of the 500, in a
# transaction that is open.
my @late_ids;

sub refill_caught
{
	my ($late) = @_;

	@late_ids = ();
	my $gate = hold_key('hot', 1);

	$late->query_safe('BEGIN') if $late;
	foreach my $i (1 .. 25)
	{
		bulk(20, key => "'hot'");
		push @late_ids, $late->query_safe(q{SELECT jobqueue_enqueue('work', '{"p": 0}', key => 'hot')})
		  if $late;
	}
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	arm('key-refill-after-snapshot');
	open_gate($gate);
	return caught('key-refill-after-snapshot');
}

hot_paused_property 'commits while a hot key is refilled' => sub {
	my $late = session();

	refill_caught($late);
	# also what stands in the midst of that which is being read
	$late->query_safe('COMMIT');
	my $ids = join ',', @late_ids;
	my $first = enqueue('work', args => '{"p": -5}', key => 'hot', priority => -5);
	my $last = enqueue('work', args => '{"p": 0}', key => 'hot');
	my $after = enqueue('work', args => '{"p": 5}', key => 'hot', priority => 5);
	release('key-refill-after-snapshot');
	wait_drained();
	is( sql("SELECT string_agg(job::text, ' ' ORDER BY n DESC) FROM (SELECT * FROM runs WHERE job NOT IN ($ids) ORDER BY n DESC LIMIT 2) x"),
		"$after $last", 'the largest come last');
	is( sql("SELECT n, p, job FROM (SELECT *, (p, job) < lag((p, job)) OVER (ORDER BY n) AS bad FROM runs WHERE job NOT IN ($ids, $first)) x WHERE bad"),
		'', 'those that were committed in order are in order');
	check_runs(528);
};

hot_paused_property 'commits while a hot key is refilled and held' => sub {
	my $late = session();

	refill_caught($late);
	# it goes before all others of the key
	my $gate = hold_key('hot', 2);
	my $from = sql('SELECT coalesce(max(n), 0) FROM runs');
	$late->query_safe('COMMIT');
	bulk(100, key => "'hot'", p => 'i % 5 - 2');
	enqueue('work', args => qq({"p": $_}), key => 'hot', priority => $_) foreach (3, -3, 0);
	release('key-refill-after-snapshot');
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	nearly(sql('SELECT waiting FROM jobqueue_keys'),
		sql('SELECT count(*) - 1 FROM jobqueue_job'), 'all are known to wait');
	open_gate($gate);
	wait_drained();
	check_order($from);
	check_runs(628);
};

hot_paused_property 'the scheduler is terminated while it refills a hot key' => sub {
	foreach my $held (0, 1)
	{
		my $pid = refill_caught();
		my $gate = $held ? hold_key('hot', 2) : undef;
		my $from = sql('SELECT coalesce(max(n), 0) FROM runs');

		bulk(20, key => "'hot'", p => '-1');
		sql("SELECT pg_terminate_backend($pid)");
		release('key-refill-after-snapshot');
		open_gate($gate) if $held;
		wait_drained();
		check_order($from) if $held;
		check_runs(520);
	}
};

hot_paused_property 'jobqueue_sweep() while a hot key is refilled' => sub {
	refill_caught();
	sql('SELECT jobqueue_sweep()');
	bulk(20, key => "'hot'", p => '-1');
	release('key-refill-after-snapshot');
	check_runs(520);
};

hot_property 'the scheduler is terminated again and again beside a hot key' => sub {
	bulk(3000, key => "'hot'", p => 'i % 5');
	foreach my $i (1 .. 3)
	{
		wait_for("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
		wait_for("SELECT count(*) > 600 * $i FROM runs");
	}
	wait_drained();
	check_order();
	check_runs(3000);
};

hot_property 'a hot key goes on after the scheduler has left and come again' => sub {
	my $gate = hold_key('hot', 1);

	bulk(500, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
	# something else makes it come
	my $due = enqueue('note', what => 'due', run_at => sql("SELECT clock_timestamp() + interval '2 s'"));
	wait_for("SELECT count(*) = 1 FROM ran WHERE job = $due");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(500);
};

hot_property 'the worker that holds a hot key is terminated' => sub {
	my $gate = hold_key('hot', 1);

	bulk(1000, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	foreach my $i (1 .. 3)
	{
		my $pid = sql('SELECT pid FROM jobqueue_keys');
		sql("SELECT pg_terminate_backend($pid)");
		# it is tried again at once, and is the first of its key
		wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND pid <> $pid");
	}
	open_gate($gate);
	wait_drained();
	check_order();
	check_runs(1000);
};

hot_property 'the worker that holds a hot key is killed' => sub {
	my $gate = hold_key('hot', 1);

	bulk(1000, key => "'hot'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	my $offset = crash_offset();
	kill 9, sql('SELECT pid FROM jobqueue_running');
	wait_crash_restart($offset);
	wait_drained();
	check_order();
	check_runs(1000);
};

hot_property 'an immediate restart with a hot key' => sub {
	hold_key('hot', 1);
	bulk(1000, key => "'hot'", p => 'i % 3');
	bulk(1000, key => "'hot'", queue => "'other'");
	wait_rest('SELECT sum(ready) FROM jobqueue_status', 0);
	node()->stop('immediate');
	node()->start;
	wait_drained();
	check_order();
	check_runs(2000);
};

# ---- no trace ---------------------------------------------------------------

hot_property 'DROP EXTENSION leaves no trace of a hot key' => sub {
	sql('CREATE DATABASE other');
	JobqueueTest::add_database('other');
	make_work(db => 'other');
	foreach my $held (0, 1)
	{
		my $gate = close_gate(1, db => 'other');
		enqueue('gate', gate => 1, key => 'hot', priority => -1000, db => 'other');
		wait_at_gate(1, db => 'other');
		bulk(1000, key => "'hot'", db => 'other');
		wait_quiet(db => 'other');
		wait_for('SELECT sum(ready) FROM jobqueue_status', 0, 'other');
		if ($held)
		{
			sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running; DROP EXTENSION jobqueue CASCADE', db => 'other');
			open_gate($gate);
		}
		else
		{
			open_gate($gate);
			sql('SELECT jobqueue_quiesce(); DROP EXTENSION jobqueue CASCADE', db => 'other');
		}
		$gate->quit;
		sql('DROP TABLE ran; DROP TABLE runs; DROP SEQUENCE works; DROP FUNCTION note, gate, fail, hang, work, work_at_last;
			DROP FUNCTION IF EXISTS jq_pause_arm, jq_pause_caught, jq_pause_release', db => 'other');
		JobqueueTest::add_database('other');
		make_work(db => 'other');
		sql('SELECT jobqueue_resume()', db => 'other');
		wait_for('SELECT count(*) = 0 FROM jobqueue_keys', 't', 'other');
		is(sql('SELECT coalesce(sum(ready + blocked + running + spilled), 0) FROM jobqueue_status', db => 'other'),
			0, 'nothing is left');
		bulk(300, key => "'hot'", db => 'other');
		wait_drained(db => 'other');
		check_order(0, db => 'other');
		check_runs(300, db => 'other');
	}
};

hot_property 'DROP DATABASE leaves no trace of a hot key' => sub {
	my $gate = close_gate(1, db => 'other');

	enqueue('gate', gate => 1, key => 'hot', priority => -1000, db => 'other');
	wait_at_gate(1, db => 'other');
	bulk(1000, key => "'hot'", db => 'other');
	wait_quiet(db => 'other');
	sql('DROP DATABASE other WITH (FORCE)');
	eval { $gate->quit; };
	sql('CREATE DATABASE other');
	JobqueueTest::add_database('other');
	make_work(db => 'other');
	is(sql('SELECT count(*) FROM jobqueue_keys', db => 'other'), 0, 'no keys');
	bulk(300, key => "'hot'", db => 'other');
	wait_drained(db => 'other');
	check_order(0, db => 'other');
	check_runs(300, db => 'other');
	sql('DROP DATABASE other WITH (FORCE)');

	# what it had in memory is free
	bulk(500, key => "'hot'");
	wait_drained();
	check_order();
	check_runs(500);
};

done_testing();
