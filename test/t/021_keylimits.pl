# Limits of keys: several holders, a rate for each key, ordered queues.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('keylimits');
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use');
CREATE TABLE runs (
	job bigint, key text, queue text, most int,
	started timestamptz, ended timestamptz);
CREATE TABLE moods (what text PRIMARY KEY);
GRANT ALL ON runs, moods TO PUBLIC;
-- when a limit may have been in force: from before it was set until after the next
CREATE TABLE limits (
	n int GENERATED ALWAYS AS IDENTITY, queue text, key_limit int,
	since timestamptz DEFAULT clock_timestamp(),
	until timestamptz DEFAULT 'infinity');

CREATE FUNCTION work(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
	begun timestamptz := clock_timestamp();
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	PERFORM pg_sleep(random() * 0.002);
	INSERT INTO runs VALUES (c.id, c.key, c.queue, (args->>'most')::int,
		begun, clock_timestamp());
END $$;

-- fails as long as it is in a bad mood
CREATE FUNCTION moody(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM moods WHERE what = args->>'what') THEN
		RAISE EXCEPTION 'bad mood';
	END IF;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;

-- notes when it was given its key
CREATE FUNCTION hold(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
	taken timestamptz;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	SELECT since INTO STRICT taken FROM jobqueue_keys
		WHERE pid = pg_backend_pid() AND key = c.key;
	PERFORM pg_sleep(random() * 0.01);
	INSERT INTO runs VALUES (c.id, c.key, c.queue, NULL, taken, clock_timestamp());
END $$;

-- fails that often
CREATE FUNCTION fails(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT attempt FROM jobqueue_current()) <= (args->>'fails')::int THEN
		RAISE EXCEPTION 'not yet';
	END IF;
	PERFORM pg_sleep(random() * 0.005);
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;

SELECT jobqueue_configure('one'), jobqueue_configure('two', key_limit => 2),
	jobqueue_configure('three', key_limit => 3),
	jobqueue_configure('ord', ordered => true);
END

sub moody
{
	my ($what, %opt) = @_;

	return enqueue(
		'moody',
		what => $what,
		queue => 'ord',
		key => 'k',
		%opt);
}

sub bad_mood { sql("INSERT INTO moods VALUES ('$_')") foreach @_; }
sub good_mood { sql('TRUNCATE moods'); }

# the job has failed and waits to be run again
sub wait_failed
{
	my ($job) = @_;

	wait_for("SELECT attempt > 0 AND state = 'scheduled' FROM jobqueue_jobs WHERE id = $job");
}

sub holders { return sql('SELECT count(pid) FROM jobqueue_keys'); }

# ---- key_limit ---------------------------------------------------------------

property
  '8 workers, 3 queues of different limits, 2 roles: never more of a key than all of them allow'
  => sub {
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	foreach my $role ('r1', 'r2')
	{
		my $i = 0;

		foreach my $queue ('one', 'two', 'three')
		{
			$i++;
			sql_as($role,
				"SELECT count(jobqueue_enqueue('work', jsonb_build_object('most', $i),
				queue => '$queue', key => 'k' || i % 3)) FROM generate_series(1, 500) i");
		}
	}
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'),
		'3000|3000', 'each ran once');
	sql('CREATE INDEX ON runs (key, started); ANALYZE runs');
	is( sql(<<'END'), 0, 'never too many');
SELECT count(*) FROM runs a,
	LATERAL (SELECT count(*) AS n, min(b.most) AS most FROM runs b
		WHERE b.key = a.key AND b.started > a.started - interval '1 second'
		AND b.started <= a.started AND b.ended > a.started) x
WHERE x.n > x.most
END
	ok( sql(<<'END') > 0, 'and more than one where that is allowed');
SELECT count(*) FROM runs a, runs b
WHERE b.key = a.key AND b.job <> a.job AND b.started > a.started - interval '1 second'
	AND b.started <= a.started AND b.ended > a.started
END
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	sql('TRUNCATE runs');
  };

property
  '8 workers, killed at random, while limits change: never more of a key than its limit then'
  => sub {
	my @queues = ('one', 'two', 'three');
	my $total = 0;

	sql(q{INSERT INTO limits (queue, key_limit) VALUES ('one', 1), ('two', 2), ('three', 3)});
	foreach my $round (1 .. 24)
	{
		my $queue = $queues[ int rand 3 ];
		my $limit = 1 + int rand 4;

		$total += 100;
		sql(q{SELECT count(jobqueue_enqueue('hold', '{}', queue => (ARRAY['one', 'two', 'three'])[1 + i % 3], key => 'k' || i % 5)) FROM generate_series(1, 100) i}
		);
		sql("INSERT INTO limits (queue, key_limit) VALUES ('$queue', $limit)");
		sql("SELECT jobqueue_configure('$queue', key_limit => $limit)");
		sql(<<END);
UPDATE limits l SET until = clock_timestamp() WHERE queue = '$queue' AND until = 'infinity'
	AND n < (SELECT max(n) FROM limits m WHERE m.queue = l.queue)
END
		if ($round != 12)
		{
			sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running ORDER BY random() LIMIT 1');
			next;
		}
		my $crash = crash_offset();
		kill_hard(sql("SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'jobqueue worker'"));
		wait_crash_restart($crash);
	}
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'),
		"$total|$total", 'each ran once');
	sql('CREATE INDEX ON runs (key, started); ANALYZE runs');
	is( sql(<<'END'), 0, 'never too many');
SELECT count(*) FROM runs a,
	LATERAL (SELECT count(*) AS n, min(x.most) AS most FROM runs b,
		LATERAL (SELECT max(key_limit) AS most FROM limits l WHERE l.queue = b.queue
			AND l.since <= a.started AND l.until >= a.started) x
		WHERE b.key = a.key AND b.started <= a.started AND b.ended > a.started) y
WHERE y.n > y.most
END
	ok( sql(<<'END') > 0, 'and more than one where that is allowed');
SELECT count(*) FROM runs a, runs b
WHERE b.key = a.key AND b.job <> a.job AND b.started <= a.started AND b.ended > a.started
END
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	sql('TRUNCATE runs, limits');
	sql(q{SELECT jobqueue_configure('one', key_limit => 1), jobqueue_configure('two', key_limit => 2), jobqueue_configure('three', key_limit => 3)}
	);
};

property 'as many as the limit run, and the view shows each' => sub {
	my $gate = close_gate(1);

	enqueue('gate', gate => 1, queue => 'three', key => 'x') foreach 1 .. 5;
	wait_at_gate(3);
	wait_for('SELECT sum(blocked) = 2 FROM jobqueue_status');
	is(sql('SELECT count(*), count(DISTINCT pid), count(DISTINCT job), min(waiting), max(waiting) FROM jobqueue_keys'),
		'3|3|3|2|2', 'three of five');
	sql(q{SELECT jobqueue_configure('three', key_limit => 4)});
	wait_at_gate(4);
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	pass('one more after the limit was raised');
	sql(q{SELECT jobqueue_configure('three', key_limit => 3)});
	is(holders(), 4, 'what runs goes on when it is lowered');
	open_gate($gate);
	wait_drained();
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

property 'who wants a key for himself is not overtaken' => sub {
	foreach my $role ('r1', 'r2')
	{
		my $gate = close_gate(1);
		my @order;

		enqueue('gate', gate => 1, queue => 'three', key => 'x', role => 'r1')
		  foreach 1 .. 2;
		wait_at_gate(2);
		enqueue('note', what => 'one', queue => 'one', key => 'x',
			role => $role);
		wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
		sql_as('r1',
			q{SELECT count(jobqueue_enqueue('note', '{"what": "three"}', queue => 'three', key => 'x')) FROM generate_series(1, 30)}
		);
		wait_for('SELECT sum(blocked) = 31 FROM jobqueue_status');
		is(holders(), 2, "nobody passes it, though there is room ($role)");
		enqueue('note', what => 'urgent', queue => 'three', key => 'x',
			role => 'r1', priority => -1);
		wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'urgent'});
		pass('but what is more urgent');
		open_gate($gate);
		wait_drained();
		@order = split / /, ran();
		is("@order[0 .. 2]", 'urgent gate gate', 'first those that ran');
		# a worker of another role has to wake up for it in time
		ok((grep { $_ eq 'one' } @order[3 .. 9]) == 1, 'then it')
		  or diag "@order";
		is(scalar @order, 34, 'and all others');
		forget();
	}
};

property 'a paused queue keeps nobody from its key' => sub {
	my $gate = close_gate(1);

	enqueue('gate', gate => 1, queue => 'three', key => 'x') foreach 1 .. 2;
	wait_at_gate(2);
	enqueue('note', what => 'one', queue => 'one', key => 'x');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	sql(q{SELECT jobqueue_pause('one')});
	enqueue('note', what => 'three', queue => 'three', key => 'x');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'three'});
	pass('the other queue goes on');
	open_gate($gate);
	wait_for('SELECT count(*) = 1 FROM jobqueue_job');
	sql(q{SELECT jobqueue_resume('one')});
	wait_drained();
	is(ran(), 'three gate gate one', 'and it, too, in the end');
	forget();
};

property 'the end of one of several holders frees one place' => sub {
	my $gate = close_gate(1);
	my @jobs = map {
		enqueue('gate', gate => 1, what => $_, queue => 'three', key => 'x')
	} 1 .. 6;
	my $pid;

	wait_at_gate(3);
	wait_for('SELECT sum(blocked) = 3 FROM jobqueue_status');
	$pid = sql("SELECT pid FROM jobqueue_keys WHERE job = $jobs[1]");
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT count(*) = 0 FROM jobqueue_keys WHERE pid = $pid");
	wait_for(
		"SELECT count(*) = 1 FROM jobqueue_keys WHERE job = $jobs[3]");
	is(sql('SELECT string_agg(job::text, \' \' ORDER BY job) FROM jobqueue_keys'),
		"$jobs[0] $jobs[2] $jobs[3]", 'the next one has it');
	is(sql("SELECT jobqueue_cancel($jobs[2])"), 't', 'another is cancelled');
	wait_for("SELECT count(*) = 0 FROM jobqueue_keys WHERE job = $jobs[2]");
	wait_for('SELECT count(*) = 3 FROM jobqueue_keys');
	is(holders(), 3, 'one more');

	my $crash = crash_offset();
	kill_hard(sql("SELECT pid FROM jobqueue_keys WHERE job = $jobs[0]"));
	wait_crash_restart($crash);
	$gate = close_gate(2);
	wait_drained();
	is( sql('SELECT string_agg(DISTINCT what, \' \' ORDER BY what) FROM ran'),
		'1 2 4 5 6', 'after a crash all others have run');
	is(sql('SELECT count(*) FROM ran'), 5, 'once');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

property 'one process has a key once, and a batch ends all the same' => sub {
	my $total = 300;

	sql(q{SELECT jobqueue_configure('three', batch => 10)});
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	sql("SELECT count(jobqueue_enqueue('work', '{\"most\": 3}', queue => 'three', key => 'k' || i % 4)) FROM generate_series(1, $total) i");
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'),
		"$total|$total", 'each ran once');
	is( sql(<<'END'), 0, 'never too many');
SELECT count(*) FROM runs a,
	LATERAL (SELECT count(*) AS n FROM runs b
		WHERE b.key = a.key AND b.started <= a.started AND b.ended > a.started) x
WHERE x.n > 3
END
	sql(q{SELECT jobqueue_configure('three', batch => 1); TRUNCATE runs});
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
};

# ---- key_rate ----------------------------------------------------------------

property 'what has no token holds nothing' => sub {
	# buckets are empty at the start of the server
	sql(q{SELECT jobqueue_configure('rated', key_rate => 1, key_rate_per => '1 day')});
	enqueue('note', what => 'rated', queue => 'rated', key => 'x') foreach 1 .. 3;
	wait_for('SELECT sum(blocked) = 3 FROM jobqueue_status');
	is(sql('SELECT key, pid, waiting FROM jobqueue_keys'),
		'x||3', 'they wait for the key, which is free');
	enqueue('note', what => 'other', key => 'x');
	enqueue('note', what => 'none', queue => 'rated');
	wait_for('SELECT count(*) = 2 FROM ran');
	pass('other queues may have it; without a key there is no rate');
	sql(q{SELECT jobqueue_configure('rated', key_rate => 0)});
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'rated'}),
		3, 'without the rate all run');
	forget();
};

property 'never more than the rate and the burst, for each key' => sub {
	my $begin;

	sql(q{SELECT jobqueue_configure('rated', key_rate => 2, key_rate_per => '200 ms')});
	$begin = sql('SELECT clock_timestamp()');
	sql(q{SELECT count(jobqueue_enqueue('work', '{}', queue => 'rated', key => 'k' || i % 3)) FROM generate_series(1, 60) i});
	wait_drained();
	# of each 20, two come from a full bucket, the others one each 100 ms
	is( sql("SELECT count(*) FROM (SELECT key, max(started) AS last FROM runs GROUP BY key) x WHERE last < timestamptz '$begin' + 18 * interval '100 ms'"),
		0,
		'no key is faster');
	is( sql(<<END), 0, 'at no time');
SELECT count(*) FROM (SELECT started, row_number() OVER (PARTITION BY key ORDER BY started) AS n FROM runs) x
WHERE n > 2 + extract(epoch FROM started - timestamptz '$begin') * 10
END
	# a token is taken after the end of the job before and before the start
	is( sql(<<'END'), 0, 'nor over any period');
WITH r AS (SELECT key, started, row_number() OVER w AS n, lag(ended) OVER w AS before
	FROM runs WINDOW w AS (PARTITION BY key ORDER BY started))
SELECT count(*) FROM r a JOIN r b ON b.key = a.key AND b.n >= a.n
WHERE b.n - a.n + 1 > 2 + extract(epoch FROM b.started - a.before) * 10
END
	is(sql('SELECT count(*) FROM runs'), 60, 'all ran');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	sql('TRUNCATE runs');
};

property 'buckets are empty after a restart, and after a crash' => sub {
	my ($crash, $begin);

	sql(q{SELECT jobqueue_configure('rated', key_rate => 1, key_rate_per => '2 s')});
	sql(q{SELECT count(jobqueue_enqueue('work', '{}', queue => 'rated', key => 'x')) FROM generate_series(1, 2)});
	node()->restart;
	wait_for('SELECT count(*) = 2 FROM runs');
	# its shared memory is a little older than that
	is( sql(q{SELECT min(started) > pg_postmaster_start_time() + interval '1.5 s' FROM runs WHERE started > pg_postmaster_start_time()}),
		't',
		'no start within the time of the first token');
	sql('TRUNCATE runs');
	$begin = sql('SELECT clock_timestamp()');
	sql(q{SELECT count(jobqueue_enqueue('work', '{}', queue => 'rated', key => 'x')) FROM generate_series(1, 10)});
	foreach (1 .. 3)
	{
		wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'});
		$crash = crash_offset();
		kill_hard(sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'}));
		wait_crash_restart($crash);
		# rather one that is not counted than one too many
		is( sql("SELECT count(*) <= 1 + extract(epoch FROM clock_timestamp() - timestamptz '$begin') / 2 FROM runs"),
			't',
			'not more after a crash');
	}
	sql(q{SELECT jobqueue_configure('rated', key_rate => 0)});
	wait_drained();
	is(sql('SELECT count(*) FROM runs'), 10, 'none is lost');
	sql('TRUNCATE runs');
};

property 'a job that may have crashed the server needs a token, too' => sub {
	my ($gate, $crash, $begin);

	sql(q{SELECT jobqueue_configure('rated', key_rate => 1, key_rate_per => '1 s')});
	$gate = close_gate(1);
	enqueue('gate', gate => 1, what => 'a', queue => 'rated', key => 'z');
	wait_at_gate(1);
	enqueue('note', what => 'b', queue => 'rated', key => 'z');
	$begin = sql('SELECT clock_timestamp()');
	$crash = crash_offset();
	kill_hard(sql('SELECT pid FROM jobqueue_running'));
	wait_crash_restart($crash);
	wait_drained();
	is(ran(), 'a b', 'both ran');
	# the bucket was empty then
	is( sql("SELECT max(at) >= timestamptz '$begin' + interval '2 s' FROM ran"),
		't',
		'the second one with the second token');
	sql(q{SELECT jobqueue_configure('rated', key_rate => 0)});
	forget();
};

property 'a job that does not start uses no token' => sub {
	sql(q{SELECT jobqueue_configure('rated', key_rate => 1, key_rate_per => '10 s')});
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "no"}', queue => 'rated', key => 'y')) FROM generate_series(1, 40)});
	enqueue('note', what => 'yes', queue => 'rated', key => 'y');
	wait_for('SELECT sum(blocked) >= 40 FROM jobqueue_status');
	sql(q{SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE args->>'what' = 'no'});
	# with a token for each of them this would take minutes more than we wait
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'yes'});
	pass('the last one has had it');
	sql(q{SELECT jobqueue_configure('rated', key_rate => 0)});
	wait_drained();
	forget();
};

# ---- ordered -----------------------------------------------------------------

property 'a failed job keeps its place' => sub {
	my @jobs;

	bad_mood('b');
	@jobs = map { moody($_) } 'a', 'b', 'c', 'd';
	moody('other', key => 'l');
	enqueue('note', what => 'unordered', key => 'k');
	wait_failed($jobs[1]);
	wait_for(q{SELECT count(*) = 3 FROM ran});
	wait_for('SELECT sum(blocked) = 2 FROM jobqueue_status');
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}),
		'a other unordered', 'later ones wait, others do not');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $jobs[2]"),
		'blocked', 'as the view says');
	moody('delayed', run_at => '2100-01-01');
	good_mood();
	wait_for(q{SELECT count(*) = 6 FROM ran});
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY n) FROM ran WHERE what IN ('a', 'b', 'c', 'd')}),
		'a b c d', 'in order');
	moody('e');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'e'});
	pass('one that waits for its time holds nobody');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job');
	wait_drained();
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

property 'until it is cancelled, dead or gone' => sub {
	my $job;

	bad_mood('bad');
	$job = moody('bad');
	wait_failed($job);
	moody('good');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'cancelled');
	wait_drained();
	is(ran(), 'good', 'then the next one runs');
	forget();

	$job = moody('bad', max_attempts => 2);
	moody('good');
	wait_drained();
	is(ran(), 'good', 'or after it has died');
	is(sql("SELECT count(*) FROM jobqueue_recent WHERE id = $job AND outcome = 'failed'"),
		1, 'of its second attempt');
	forget();

	# it does not become ready before it is cancelled
	sql("SELECT jobqueue_configure('ord', backoff_base => '1 hour')");
	$job = moody('bad');
	wait_failed($job);
	moody('good');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	is( sql(q{SELECT jobqueue_cancel_where('ord', 'scheduled', NULL, false)}),
		1, 'cancelled by a filter');
	sql("SELECT jobqueue_configure('ord', backoff_base => '1 s')");
	wait_drained();
	is(ran(), 'good', 'then the next one runs');
	forget();

	$job = moody('bad');
	wait_failed($job);
	moody('good');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	sql("DELETE FROM jobqueue_job WHERE id = $job");
	wait_drained();
	is(ran(), 'good', 'or its row is gone, without a word');
	forget();

	$job = moody('bad');
	wait_failed($job);
	moody('good');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	sql(q{SELECT jobqueue_configure('ord', ordered => false)});
	wait_for(q{SELECT count(*) = 1 FROM ran});
	is(ran(), 'good', 'or the queue is not ordered any more');
	good_mood();
	wait_drained();
	sql(q{SELECT jobqueue_configure('ord', ordered => true)});
	forget();
};

property 'also over a restart, a crash, and for another role' => sub {
	my ($job, $crash);

	bad_mood('b');
	$job = moody('b');
	wait_failed($job);
	sql('SELECT jobqueue_pause(\'ord\')');
	moody('c');
	moody('d', role => 'r1');
	node()->restart;
	sql('SELECT jobqueue_resume(\'ord\')');
	wait_for('SELECT sum(blocked) = 2 FROM jobqueue_status');
	is(ran(), '', 'they wait');
	good_mood();
	wait_drained();
	like(ran(), qr/^b (c d|d c)$/, 'after a restart');
	forget();

	# one that runs when the server crashes is charged nothing, and comes first
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, what => 'b', queue => 'ord', key => 'k');
	wait_at_gate(1);
	moody('c');
	moody('d', role => 'r1');
	wait_for('SELECT sum(blocked) = 2 FROM jobqueue_status');
	$crash = crash_offset();
	kill_hard(sql('SELECT pid FROM jobqueue_running'));
	wait_crash_restart($crash);
	wait_drained();
	like(ran(), qr/^b (c d|d c)$/, 'after a crash');
	forget();
};

property 'with more waiting than memory keeps' => sub {
	my $job;

	set_conf('jobqueue.max_ready_jobs' => 100);
	node()->restart;
	bad_mood('0');
	$job = moody('0');
	wait_failed($job);
	sql(q{SELECT count(jobqueue_enqueue('moody', jsonb_build_object('what', i), queue => 'ord', key => 'k')) FROM generate_series(1, 500) i});
	sql(q{SELECT count(jobqueue_enqueue('moody', jsonb_build_object('what', i), queue => 'ord', key => 'l')) FROM generate_series(1001, 1500) i});
	wait_for(q{SELECT count(*) = 500 FROM ran WHERE what > '1000'});
	pass('another key goes on');
	is(sql('SELECT count(*) FROM ran'), 500, 'what stands behind it waits');
	good_mood();
	wait_drained();
	is( sql('SELECT count(*) FROM (SELECT what::int < lag(what::int) OVER (PARTITION BY what::int > 1000 ORDER BY n) AS bad FROM ran) x WHERE bad'),
		0,
		'all in order');
	is(sql('SELECT count(*) FROM ran'), 1001, 'each once');
	forget();
};

# still with that little memory
property
  'over failures, workers that are ended, a restart and a crash, with more than memory keeps'
  => sub {
	my $total = 480;
	my $left;

	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	sql(<<END);
SELECT count(jobqueue_enqueue('fails', jsonb_build_object('what', i, 'fails',
	CASE WHEN i % 53 = 0 THEN 2 WHEN i % 17 = 0 THEN 1 ELSE 0 END),
	queue => 'ord', key => 'k' || i % 6)) FROM generate_series(1, $total) i
END
	sql('SELECT jobqueue_resume()');
	foreach my $round (1 .. 12)
	{
		# when so many have run, whatever the machine
		$left = $total - 35 * $round;
		wait_for("SELECT count(*) <= $left FROM jobqueue_job");
		sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running ORDER BY random() LIMIT 1');
		node()->restart if $round == 4;
		if ($round == 8)
		{
			my $crash = crash_offset();

			kill_hard(sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue launcher'}));
			wait_crash_restart($crash);
		}
	}
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM ran'),
		"$total|$total", 'each ran once');
	is( sql('SELECT string_agg(what, \' \') FROM (SELECT what, what::int < lag(what::int) OVER (PARTITION BY what::int % 6 ORDER BY n) AS bad FROM ran) x WHERE bad'),
		'',
		'each key in order');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

# how many were cancelled: none where there are no pause points
sub cancel_as_it_is_put_off
{
	return 0 unless $JobqueueTest::has_pause;
	arm('order-put-off');
	sql(q{SELECT jobqueue_reschedule_where('ord', 'scheduled', NULL, NULL)});
	my $pid = caught('order-put-off');
	my $job = sql("SELECT id FROM jobqueue_running WHERE pid = $pid");
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'it is cancelled');
	release('order-put-off');
	wait_for("SELECT state = 'cancelled' FROM jobqueue_jobs WHERE id = $job");
	return 1;
}

property 'with more failed jobs than memory has keys for' => sub {
	sql("SELECT jobqueue_configure('ord', backoff_base => '1 hour')");
	bad_mood('bad');
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	foreach my $what ('bad', 'good', 'later')
	{
		sql("SELECT count(jobqueue_enqueue('moody', '{\"what\": \"$what\"}', queue => 'ord', key => 'k' || i)) FROM generate_series(1, 2000) i");
	}
	sql('SELECT jobqueue_resume()');
	wait_for('SELECT count(*) = 2000 FROM jobqueue_job WHERE attempt > 0');
	wait_for('SELECT count(*) > 0 FROM jobqueue_job WHERE keeps_order');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE keeps_order AND run_at > clock_timestamp() + interval '1 min'"), 0, 'who waits in the table looks again soon');
	enqueue('note', what => 'free', queue => 'ord', key => 'x');
	wait_for('SELECT count(*) = 1 FROM ran');
	pass('another key goes on');
	my $cancelled = cancel_as_it_is_put_off();
	sql("SELECT jobqueue_configure('ord', backoff_base => '1 s')");
	good_mood();
	wait_for("SELECT jobqueue_reschedule_where('ord', 'scheduled', NULL, NULL) = 0 AND NOT EXISTS (SELECT FROM jobqueue_job)");
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM ran'),
		join('|', (6001 - $cancelled) x 2), 'each ran once');
	is( sql('SELECT count(*) FROM (SELECT (job - lag(job) OVER (PARTITION BY job % 2000 ORDER BY n)) < 0 AS bad FROM ran WHERE what <> $$free$$) x WHERE bad'),
		0,
		'each key in order');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	set_conf('jobqueue.max_ready_jobs' => undef);
	node()->restart;
	forget();
};

property 'one that is marked keeps its place, too' => sub {
	my $job = moody('snoozed', run_at => '2100-01-01');

	sql("UPDATE jobqueue_job SET keeps_order = true WHERE id = $job");
	moody('next');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	is(ran(), '', 'the next one waits');
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'cancelled');
	wait_drained();
	is(ran(), 'next', 'and runs then');
	forget();
};

property 'in batches, too' => sub {
	sql(q{SELECT jobqueue_configure('ord', batch => 10)});
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all known before any starts');
	bad_mood('5', '17', '33');
	sql(q{SELECT count(jobqueue_enqueue('moody', jsonb_build_object('what', i), queue => 'ord', key => 'k' || i % 4)) FROM generate_series(1, 60) i});
	sql('SELECT jobqueue_resume()');
	# all of key k1 from 5 on
	wait_for('SELECT count(*) = 46 FROM ran');
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	is(sql('SELECT count(*) FROM ran'), 46, 'what may run has run');
	good_mood();
	wait_drained();
	is( sql('SELECT count(*) FROM (SELECT what::int < lag(what::int) OVER (PARTITION BY what::int % 4 ORDER BY n) AS bad FROM ran) x WHERE bad'),
		0,
		'each key in order');
	sql(q{SELECT jobqueue_configure('ord', batch => 1)});
	forget();
};

paused_property 'also between its failure and the record of it' => sub {
	my $job;

	bad_mood('b');
	arm('fail-before-record');
	$job = moody('b');
	caught('fail-before-record');
	moody('c');
	moody('other', key => 'l');
	wait_for(q{SELECT count(*) = 1 FROM ran});
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	is(ran(), 'other', 'the key is free, but the next one waits');
	release('fail-before-record');
	wait_failed($job);
	is(ran(), 'other', 'and goes on to wait');
	good_mood();
	wait_drained();
	is(ran(), 'other b c', 'for the job');
	forget();

	# its worker is ended: the scheduler records it
	my $gate = close_gate(1);
	arm('scheduler-before-record');
	$job = enqueue('gate', gate => 1, what => 'b', queue => 'ord', key => 'k');
	wait_at_gate(1);
	moody('c');
	wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
	sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running');
	caught('scheduler-before-record');
	moody('other', key => 'l');
	wait_for(q{SELECT count(*) = 1 FROM ran});
	is(ran(), 'other', 'nor while nobody has recorded it');
	release('scheduler-before-record');
	wait_failed($job);
	open_gate($gate);
	wait_drained();
	is(ran(), 'other b c', 'in order');
	forget();
};

paused_property 'a job that ends while the next one looks' => sub {
	my $job;

	bad_mood('b');
	$job = moody('b');
	wait_failed($job);
	arm('order-noted');
	moody('c');
	caught('order-noted');
	is(sql("SELECT jobqueue_cancel($job)"), 't', 'cancelled');
	release('order-noted');
	wait_drained();
	is(ran(), 'c', 'does not keep it for ever');
	good_mood();
	forget();
};

wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
done_testing();
