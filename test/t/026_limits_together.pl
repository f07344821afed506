# Limits of queues and of keys, where they meet each other and the ways in which
# a job can leave a worker without having ended.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('together', conf => <<'END');
jobqueue.max_ready_jobs = 1024
jobqueue.max_workers_per_role = 8
END
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
CREATE ROLE other;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use');

-- Counts its starts in a sequence, which no rollback undoes, and compares: since
-- that moment no more than burst and rate may have come.  conflict: it is rolled
-- back as if by another transaction.
CREATE FUNCTION start(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	n bigint := nextval((args->>'seq')::regclass);
	t float := extract(epoch FROM clock_timestamp()) - (args->>'since')::float;
BEGIN
	IF n > (args->>'burst')::float + t * (args->>'rate')::float THEN
		RAISE LOG 'too fast: % after %', n, t;
	END IF;
	IF args ? 'conflict' THEN
		RAISE EXCEPTION 'conflict' USING ERRCODE = 'serialization_failure';
	END IF;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;

-- fails as long as it is in a bad mood
CREATE TABLE moods (what text PRIMARY KEY);
CREATE FUNCTION moody(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM moods WHERE what = args->>'what') THEN
		RAISE EXCEPTION 'bad mood';
	END IF;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;
GRANT SELECT ON moods TO PUBLIC;
END

sub now { return sql('SELECT extract(epoch FROM clock_timestamp())'); }

sub configure
{
	my ($queue, $settings) = @_;
	sql("SELECT jobqueue_configure('$queue', $settings)");
}

sub starts
{
	my ($seq) = @_;
	sql("CREATE SEQUENCE $seq; GRANT ALL ON SEQUENCE $seq TO PUBLIC");
}

sub start_args
{
	my ($seq, $since, $burst, $rate, $more) = @_;
	return qq({"seq": "$seq", "since": $since, "burst": $burst, "rate": $rate$more});
}

sub never_too_fast
{
	my ($name) = @_;
	ok(!node()->log_contains(qr/LOG:  too fast: \d/), $name);
}

# ---- reruns ------------------------------------------------------------------

property 'a job that is run again needs a token of its queue each time' => sub {
	starts('s1');
	my $since = now();
	configure('rated', 'rate => 8');    # the bucket is empty at first
	my $id = enqueue('start', queue => 'rated', max_attempts => 1,
		args => start_args('s1', $since, 0, 8, ', "conflict": 1'));
	wait_state($id, 'dead');
	never_too_fast('never faster than the rate');
	is(sql('SELECT last_value FROM s1'), 11, 'and as often as without a limit');
	is(sql("SELECT attempt FROM jobqueue_archive WHERE id = $id"), 1, 'charged once');
	sql('DELETE FROM jobqueue_archive');
};

property 'and one of its key' => sub {
	starts('s2');
	configure('krated', q{key_rate => 2, key_rate_per => '500 ms', key_limit => 3});
	my $since = now();
	my $id = enqueue('start', queue => 'krated', key => 'k', max_attempts => 1,
		args => start_args('s2', $since, 2, 4, ', "conflict": 1'));
	my $second = enqueue('start', queue => 'krated', key => 'k',
		args => start_args('s2', $since, 2, 4, ', "what": "second"'));
	wait_state($id, 'dead');
	wait_drained();
	never_too_fast('never faster than the rate');
	is(sql('SELECT last_value FROM s2'), 12, 'as often as without a limit');
	is(ran(), 'second', 'and the next one');
	forget();
	sql('DELETE FROM jobqueue_archive');
};

property 'in a batch, too' => sub {
	starts('s3');
	starts('s4');
	my $since = now();
	configure('rbatch', 'rate => 8, batch => 5');
	my @ids;
	my $args = start_args('s3', $since, 0, 8, ', "what": "x"');
	sql(qq{SELECT count(jobqueue_enqueue('start', '$args', queue => 'rbatch')) FROM generate_series(1, 4)});
	my $bad = enqueue('start', queue => 'rbatch', max_attempts => 1,
		args => start_args('s3', $since, 0, 8, ', "conflict": 1'));
	sql(qq{SELECT count(jobqueue_enqueue('start', '$args', queue => 'rbatch')) FROM generate_series(1, 4)});
	wait_state($bad, 'dead');
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 8, 'the others ran once');
	forget();

	# two keys, of which one fails: the other one starts once more
	configure('kbatch', q{key_rate => 1, key_rate_per => '400 ms', batch => 5});
	is(sql('SELECT jobqueue_quiesce()'), 't', 'both are ready before any starts');
	$since = now();
	enqueue('start', queue => 'kbatch', key => 'a',
		args => start_args('s4', $since, 1, 2.5, ', "what": "y"'));
	starts('s5');
	enqueue('start', queue => 'kbatch', key => 'b', max_attempts => 1,
		args => start_args('s5', $since, 1, 2.5, ', "conflict": 1'));
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(ran(), 'y', 'it ran');
	never_too_fast('never faster than the rate');
	is(sql('SELECT last_value FROM s5'), 11, 'what runs in a batch counts, too');
	forget();
	sql('DELETE FROM jobqueue_archive');
};

# ---- the order of a key --------------------------------------------------------

paused_property 'a job that is given back before it began is not passed by a later one of its key' => sub {
	foreach my $how ('role', 'terminate')
	{
		my $first;

		arm('worker-claimed');
		$first = enqueue('note', what => 'first', key => 'k', role => 'r1');
		my $pid = caught('worker-claimed');
		enqueue('note', what => 'second', key => 'k', role => 'r1');
		wait_for('SELECT sum(blocked) = 1 FROM jobqueue_status');
		if ($how eq 'role')
		{
			# its worker must not run it any more
			sql('GRANT other TO r1');
			arm('worker-gave-back');
			release('worker-claimed');
			caught('worker-gave-back');
			enqueue('note', what => 'control', key => 'l', role => 'r1');
			wait_for(q{SELECT count(*) > 0 FROM ran WHERE what = 'control'});
			is(ran(), 'control', 'nobody has the key before it is back');
			release('worker-gave-back');
		}
		else
		{
			sql("SELECT pg_terminate_backend($pid)");
		}
		wait_drained();
		is(sql(q{SELECT string_agg(what, ' ' ORDER BY n) FROM ran WHERE what <> 'control'}),
			'first second', "in order ($how)");
		forget();
	}
	sql('REVOKE other FROM r1');
};

# ---- ordered queues -------------------------------------------------------------

paused_property 'many orders of one key: nothing passes a failure that is not recorded yet' => sub {
	foreach my $i (1 .. 3)
	{
		configure("o$i", q{ordered => true, backoff_base => '1 hour'});
		sql("INSERT INTO moods VALUES ('bad$i')");
		my $id = enqueue('moody', what => "bad$i", queue => "o$i", key => 'k');
		wait_for("SELECT state = 'scheduled' FROM jobqueue_jobs WHERE id = $id");
		# it looks, and notes for whom it waits
		enqueue('moody', what => "next$i", queue => "o$i", key => 'k');
		wait_for("SELECT sum(blocked) = $i FROM jobqueue_status");
	}
	configure('o4', q{ordered => true, backoff_base => '1 hour'});
	sql(q{INSERT INTO moods VALUES ('a')});
	arm('fail-before-record');
	my $id = enqueue('moody', what => 'a', queue => 'o4', key => 'k');
	caught('fail-before-record');
	enqueue('moody', what => 'b', queue => 'o4', key => 'k');
	wait_for(q{SELECT blocked = 1 FROM jobqueue_status WHERE queue = 'o4'});
	my $begin = now();
	wait_for("SELECT extract(epoch FROM clock_timestamp()) > $begin + 3");
	enqueue('note', what => 'control', key => 'l');
	wait_for('SELECT count(*) > 0 FROM ran');
	is(ran(), 'control', 'the next one waits for the record');
	release('fail-before-record');
	wait_for("SELECT state = 'scheduled' FROM jobqueue_jobs WHERE id = $id");
	is(ran(), 'control', 'and then for the job');
	sql('TRUNCATE moods');
	sql(q{SELECT jobqueue_reschedule(id, now()) FROM jobqueue_jobs WHERE state = 'scheduled'});
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY n) FROM ran WHERE what ~ '^[ab]$'}), 'a b', 'in order');
	is(sql(q{SELECT count(*) FROM ran}), 9, 'all ran');
	forget();
};

property 'more failures at once than a key has room for' => sub {
	configure('wide', 'ordered => true, key_limit => 6, max_attempts => 1');
	foreach my $round (1 .. 4)
	{
		my $lock = session();
		my $gate = close_gate(1);
		my @ids = map { enqueue('gate', gate => 1, what => $_, queue => 'wide', key => 'k') } 1 .. 5;

		wait_at_gate(5);
		# the record of the last failure has to wait
		$lock->query_safe("BEGIN; SELECT FROM jobqueue_job WHERE id = $ids[4] FOR UPDATE");
		foreach my $id (@ids)
		{
			sql("SELECT pg_terminate_backend(pid) FROM jobqueue_running WHERE id = $id");
			wait_for("SELECT count(*) = 0 FROM jobqueue_running WHERE id = $id");
		}
		wait_for(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler' AND wait_event_type = 'Lock'});
		enqueue('note', what => 'late', queue => 'wide', key => 'k');
		enqueue('note', what => 'control', queue => 'wide', key => 'l');
		wait_for('SELECT count(*) > 0 FROM ran');
		is(ran(), 'control', 'a later one waits until all are recorded');
		$lock->query_safe('COMMIT');
		wait_drained();
		is(ran(), 'control late', 'and then runs');
		open_gate($gate);
		forget();
		sql('DELETE FROM jobqueue_archive');
	}
};

# ---- buckets of keys --------------------------------------------------------------

property 'a key_rate that is made faster holds, and holds up nobody' => sub {
	# a token that takes half an hour to come has been taken
	configure('kchange', q{key_rate => 1000, key_rate_per => '100 s'});
	enqueue('note', what => 'x', queue => 'kchange', key => 'k');
	wait_drained();
	configure('kchange', q{key_rate => 2, key_rate_per => '1 hour'});
	enqueue('note', what => 'x', queue => 'kchange', key => 'k');
	wait_drained();
	forget();
	starts('s6');
	my $since = now();
	my $args = start_args('s6', $since, 10, 10, ', "what": "x"');
	configure('kchange', q{key_rate => 10, key_rate_per => '1 s'});
	sql(qq{SELECT count(jobqueue_enqueue('start', '$args', queue => 'kchange', key => 'k')) FROM generate_series(1, 30)});
	wait_for('SELECT count(*) >= 10 FROM ran');
	configure('kchange', q{key_rate => 5, key_rate_per => '1 s'});
	wait_for('SELECT count(*) >= 15 FROM ran');
	configure('kchange', q{key_rate => 10, key_rate_per => '1 s'});
	wait_drained();
	never_too_fast('never more than the burst and the fastest rate');
	is(sql('SELECT count(*) FROM ran'), 30, 'all ran');
	forget();
};

paused_property 'a token that comes back when the rate is faster is one token' => sub {
	starts('s7');
	wait_for(q{SELECT pg_postmaster_start_time() < clock_timestamp() - interval '20 s'});
	configure('back', q{key_rate => 1, key_rate_per => '20 s', key_limit => 2});
	arm('worker-claimed');
	my $since = now();
	# it is taken at the slow rate, with the only token
	enqueue('note', what => 'y', queue => 'back', key => 'k');
	my $pid = caught('worker-claimed');
	configure('back', q{key_rate => 100, key_rate_per => '20 s', key_limit => 2});
	my $args = start_args('s7', $since, 2, 5, ', "what": "z"');
	sql(qq{SELECT count(jobqueue_enqueue('start', '$args', queue => 'back', key => 'k')) FROM generate_series(1, 100)});
	wait_for('SELECT sum(blocked) > 0 FROM jobqueue_status');
	sql("SELECT pg_terminate_backend($pid)");
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'y'});
	wait_for(q{SELECT count(*) > 10 FROM ran});
	never_too_fast('no burst comes with it');
	sql(q{SELECT jobqueue_cancel_where('back', NULL, NULL)});
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'with more keys than there are buckets some wait, and none is too fast' => sub {
	wait_for(q{SELECT pg_postmaster_start_time() < clock_timestamp() - interval '8 s'});
	configure('kmany', q{key_rate => 1, key_rate_per => '8 s'});
	is(sql('SELECT jobqueue_quiesce()'), 't', 'all are known before any starts');
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "1"}', queue => 'kmany', key => 'm' || i)) FROM generate_series(1, 2600) i});
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "2"}', queue => 'kmany', key => 'm' || i)) FROM generate_series(1, 20) i});
	my $begin = now();
	sql('SELECT jobqueue_resume()');
	wait_drained();
	# there are 2 buckets for each job that memory has room for
	cmp_ok(sql("SELECT count(*) FROM ran WHERE extract(epoch FROM at) < $begin + 8"), '<=', 2048, 'no more keys than buckets');
	is(sql("SELECT count(*) FROM ran WHERE what = '2' AND extract(epoch FROM at) < $begin + 8"), 0, 'nor more of a key than its rate');
	is(sql('SELECT count(*), count(DISTINCT job) FROM ran'), '2620|2620', 'and all ran');
	forget();
};

# ---- all at once --------------------------------------------------------------

property 'queues of crossed limits share keys: nobody waits for ever' => sub {
	configure('a', 'max_running => 1');
	configure('b', 'key_limit => 3, weight => 3');
	my $gate = close_gate(1);
	# the only place of a is taken, and one waits for the key with those of b
	enqueue('gate', gate => 1, queue => 'a', key => 'x', what => 'a1');
	wait_at_gate(1);
	enqueue('gate', gate => 1, queue => 'b', key => 'y', what => 'b') foreach 1 .. 2;
	wait_at_gate(3);
	my $a2 = enqueue('note', queue => 'a', key => 'y', what => 'a2');
	wait_for(q{SELECT at_limit FROM jobqueue_status WHERE queue = 'a'});
	# it waits for a place of its queue, so others of b share the key
	enqueue('note', queue => 'b', key => 'y', what => 'b2');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'b2'});
	open_gate($gate);
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran}), 5, 'all ran');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	forget();
};

sql(<<'END');
GRANT pg_monitor TO r1;
CREATE TABLE runs (job bigint, key text, queue text, started timestamptz, begun timestamptz, ended timestamptz);
CREATE TABLE limits (
	n int GENERATED ALWAYS AS IDENTITY, queue text, max_running int, key_limit int,
	since timestamptz DEFAULT clock_timestamp(), until timestamptz DEFAULT 'infinity');
GRANT ALL ON runs TO PUBLIC;
-- of its key a run is from when it was given that; of its queue, from its start
CREATE FUNCTION hold(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
	taken timestamptz;
	begun timestamptz := clock_timestamp();
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	SELECT since INTO STRICT taken FROM jobqueue_keys
		WHERE pid = pg_backend_pid() AND key = c.key;
	PERFORM pg_sleep(random() * 0.01);
	IF random() < 0.02 THEN
		RAISE EXCEPTION USING ERRCODE = '40001';
	END IF;
	INSERT INTO runs VALUES (c.id, c.key, c.queue, taken, begun, clock_timestamp());
END $$;
END

property 'limits of queues and of keys that change, kills, a crash: never more than allowed' => sub {
	my @queues = ('p', 'q', 'r');
	my $total = 0;

	configure('p', 'max_running => 1, key_limit => 1, max_attempts => 1000, backoff_base => \'1 ms\'');
	configure('q', 'max_running => 3, key_limit => 3, max_attempts => 1000, weight => 3, backoff_base => \'1 ms\'');
	configure('r', 'max_running => 2, key_limit => 2, max_attempts => 1000, rate => 300, batch => 4, ordered => true, backoff_base => \'1 ms\'');
	sql(q{INSERT INTO limits (queue, max_running, key_limit) VALUES ('p', 1, 1), ('q', 3, 3), ('r', 2, 2)});
	srand(7);
	foreach my $round (1 .. 20)
	{
		my $queue = $queues[ int rand 3 ];
		my $max = 1 + int rand 4;
		my $limit = 1 + int rand 4;
		my $many = q{SELECT count(jobqueue_enqueue('hold', '{}', queue => (ARRAY['p', 'q', 'r'])[1 + i % 3], key => 'k' || i % 5)) FROM generate_series(1, 40) i};

		sql($many);
		sql($many, role => 'r1');
		sql("BEGIN; $many; PREPARE TRANSACTION 'round'");
		sql("INSERT INTO limits (queue, max_running, key_limit) VALUES ('$queue', $max, $limit)");
		configure($queue, "max_running => $max, key_limit => $limit");
		sql(<<END);
UPDATE limits l SET until = clock_timestamp() WHERE queue = '$queue' AND until = 'infinity'
	AND n < (SELECT max(n) FROM limits m WHERE m.queue = l.queue)
END
		sql("SELECT jobqueue_pause('$queue')");
		if ($round == 10)
		{
			my $crash = crash_offset();
			kill_hard(sql("SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'jobqueue worker'"));
			wait_crash_restart($crash);
		}
		else
		{
			sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running ORDER BY random() LIMIT 1');
		}
		sql("COMMIT PREPARED 'round'");
		sql("SELECT jobqueue_resume('$queue')");
		$total += 120;
	}
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job) FROM runs'), "$total|$total", 'each ran once');
	sql('CREATE INDEX ON runs (started); ANALYZE runs');
	is(sql(<<'END'), 0, 'never too many of a key');
SELECT count(*) FROM runs a,
	LATERAL (SELECT count(*) AS n, min(x.most) AS most FROM runs b,
		LATERAL (SELECT max(key_limit) AS most FROM limits l WHERE l.queue = b.queue
			AND l.since <= a.started AND l.until >= a.started) x
		WHERE b.key = a.key AND b.started <= a.started AND b.ended > a.started) y
WHERE y.n > y.most
END
	# it had its place since then, or a little before
	is(sql(<<'END'), 0, 'nor of a queue');
SELECT count(*) FROM runs a,
	LATERAL (SELECT max(max_running) AS most FROM limits l WHERE l.queue = a.queue
		AND l.since <= a.begun AND l.until >= a.started - interval '1 s') x,
	LATERAL (SELECT count(*) AS n FROM runs b
		WHERE b.queue = a.queue AND b.begun <= a.begun AND b.ended > a.begun) y
WHERE y.n > x.most
END
	cmp_ok(sql(<<'END'), '>', 0, 'and more than one where that is allowed');
SELECT count(*) FROM runs a, runs b
WHERE b.queue = a.queue AND b.job <> a.job AND b.begun <= a.begun AND b.ended > a.begun
END
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'nothing is left');
	memory_empties('nor in memory');
};

property 'the server has not crashed by itself' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|signal 6|signal 11|reference leak/, 'log');
};

done_testing();
