# Limits of queues: never exceeded, whatever dies or changes; nothing that is
# free is lost; nobody starves and nobody else waits.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

new_node('limits', conf => <<'END');
jobqueue.max_workers = 8
jobqueue.max_workers_per_role = 8
max_worker_processes = 24
END

# Jobs of this function know how many of them run: each has a shared lock for as
# long as its transaction lasts, which is less than it counts as running.  What
# is too many is a sequence, which no rollback undoes; so is how many started.
sql(<<'END');
CREATE SEQUENCE allowed MINVALUE 0;
CREATE SEQUENCE most MINVALUE 0 START 0;
GRANT ALL ON allowed, most TO PUBLIC;
CREATE FUNCTION together(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
	limit_now bigint := (SELECT last_value FROM allowed);
BEGIN
	PERFORM pg_advisory_xact_lock_shared(77, 0);
	n := (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
		AND classid = 77 AND objid = 0 AND granted);
	IF n > limit_now THEN
		RAISE LOG 'too many: % of %', n, limit_now;
	END IF;
	IF n > (SELECT last_value FROM most) THEN
		PERFORM setval('most', n);
	END IF;
	PERFORM pg_sleep(random() * (args->>'ms')::float / 1000);
	INSERT INTO ran (what) VALUES ('together');
END $$;
CREATE ROLE role_a LOGIN;
CREATE ROLE role_b LOGIN;
SELECT jobqueue_grant(r, 'use') FROM unnest('{role_a,role_b}'::regrole[]) r;
END

sub configure
{
	my ($queue, $settings) = @_;
	sql("SELECT jobqueue_configure('$queue', $settings)");
}

sub many
{
	my ($n, $command, $args, $queue, %opt) = @_;
	sql("SELECT count(jobqueue_enqueue('$command', '$args', queue => '$queue')) FROM generate_series(1, $n)", %opt);
}

# raise first what jobs compare with; lower it when those of before have ended
sub set_limit
{
	my ($n) = @_;
	my $before = sql('SELECT last_value FROM allowed');

	sql("SELECT setval('allowed', $n)") if $n > $before;
	configure('m', "max_running => $n");
	return if $n >= $before;
	my $running = sql(q{SELECT coalesce(string_agg(id::text, ','), '0') FROM jobqueue_running WHERE queue = 'm'});
	wait_for("SELECT count(*) = 0 FROM jobqueue_running WHERE id IN ($running)");
	sql("SELECT setval('allowed', $n)");
}

sub never_too_many
{
	ok(!node()->log_contains(qr/LOG:  too many: \d/), 'never more than allowed');
}

# so many jobs of the queue run at once: no place is lost, none is too many
sub places_are
{
	my ($n) = @_;
	my $gate = close_gate(900);

	configure('m', "max_running => $n");
	sql("SELECT jobqueue_enqueue('gate', '{\"gate\": 900}', queue => 'm') FROM generate_series(1, $n + 2)");
	wait_at_gate($n);
	is(sql(q{SELECT ready, running, at_limit FROM jobqueue_status WHERE queue = 'm'}),
		"2|$n|t", "$n places");
	open_gate($gate);
	wait_drained();
	forget();
}

property 'a limit holds under load, kills and changes' => sub {
	sql(q{SELECT setval('allowed', 3)});
	configure('m', 'max_running => 3, max_attempts => 1000');
	configure('other', 'max_attempts => 1000');
	my @load = map {
		start_pgbench(q{SELECT jobqueue_enqueue('together', '{"ms": 4}', queue => 'm') FROM generate_series(1, 10);
			SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other')},
			clients => 1, transactions => 300, role => $_)
	} qw(role_a role_b);
	srand(42);
	foreach my $round (1 .. 40)
	{
		sql(q{SELECT pg_terminate_backend(pid) FROM jobqueue_workers ORDER BY random() LIMIT 2});
		set_limit(1 + int(rand(7)));
	}
	$_->finish foreach @load;
	wait_for(q{SELECT count(*) = 600 FROM ran WHERE what = 'other'});
	wait_for(q{SELECT count(*) = 6000 FROM ran WHERE what = 'together'});
	wait_drained();
	never_too_many();
	cmp_ok(sql('SELECT last_value FROM most'), '>', 1, 'and several at once');
	forget();
	places_are(4);
};

property 'and when the server crashes' => sub {
	sql(q{SELECT setval('allowed', 2)});
	set_limit(2);
	many(300, 'together', '{"ms": 5}', 'm', role => 'role_a');
	many(300, 'together', '{"ms": 5}', 'm', role => 'role_b');
	foreach my $round (1 .. 3)
	{
		my $offset = crash_offset();

		wait_for(q{SELECT count(*) > 0 FROM jobqueue_running});
		kill_hard(sql('SELECT pid FROM jobqueue_workers LIMIT 1'));
		wait_crash_restart($offset);
	}
	wait_for(q{SELECT count(*) >= 590 FROM ran});
	wait_drained();
	never_too_many();
	forget();
	sql('DELETE FROM jobqueue_archive');
	places_are(3);
};

property 'jobs that run when a limit is set count' => sub {
	configure('m', 'max_running => 0');
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, what => "first", queue => 'm') for 1 .. 3;
	wait_at_gate(3);
	configure('m', 'max_running => 4');
	enqueue('gate', gate => 1, what => 'second', queue => 'm') for 1 .. 3;
	wait_at_gate(4);
	# lowered: none starts until fewer run
	configure('m', 'max_running => 1');
	sql(q{SELECT jobqueue_cancel(id) FROM jobqueue_running ORDER BY id LIMIT 3});
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_running});
	enqueue('note', what => 'other', queue => 'other');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'other'});
	is(sql(q{SELECT ready, running FROM jobqueue_status WHERE queue = 'm'}), '2|1', 'one runs');
	# raised: those that wait start at once
	configure('m', 'max_running => 2');
	wait_at_gate(2);
	configure('m', 'max_running => 0');
	wait_at_gate(3);
	open_gate($gate);
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'two roles share a limit and neither starves' => sub {
	sql(q{SELECT jobqueue_pause('shared')});
	configure('shared', 'max_running => 1');
	many(300, 'note', '{"what": "x"}', 'shared', role => 'role_a');
	many(300, 'note', '{"what": "x"}', 'shared', role => 'role_b');
	sql(q{SELECT jobqueue_resume('shared')});
	wait_for('SELECT count(*) = 600 FROM ran');
	# how many of the other's jobs had run before the last of the first to end
	my ($a, $b) = split /\|/, sql(q{SELECT count(*) FILTER (WHERE role = 'role_a'),
		count(*) FILTER (WHERE role = 'role_b') FROM (SELECT role FROM ran ORDER BY at LIMIT 450) x});
	cmp_ok($a, '>=', 50, "of the first 450, $a are of the one");
	cmp_ok($b, '>=', 50, "and $b of the other");
	forget();

	# a role whose jobs come while another has all places, and all workers
	set_conf('jobqueue.max_workers' => 2);
	configure('shared', 'max_running => 2');
	many(20000, 'together', '{"ms": 5}', 'shared', role => 'role_a');
	wait_for(q{SELECT count(*) > 10 FROM ran});
	sql(q{SELECT setval('allowed', 8)});
	enqueue('note', what => 'late', queue => 'shared', role => 'role_b') for 1 .. 5;
	wait_for(q{SELECT count(*) = 5 FROM ran WHERE what = 'late'});
	cmp_ok(sql(q{SELECT count(*) FROM jobqueue_job}), '>', 0, 'others still wait then');
	sql(q{SELECT jobqueue_cancel_where('shared', NULL, NULL)});
	set_conf('jobqueue.max_workers' => undef);
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'what is limited delays nobody, and wakes nobody' => sub {
	my $gate = close_gate(2);
	configure('slow', 'max_running => 1');
	enqueue('gate', gate => 2, what => 'slow', queue => 'slow') for 1 .. 200;
	wait_at_gate(1);
	many(1000, 'note', '{"what": "quick"}', 'quick');
	wait_for(q{SELECT count(*) = 1000 FROM ran WHERE what = 'quick'});
	is(sql(q{SELECT ready, running, wasted, at_limit FROM jobqueue_status WHERE queue = 'slow'}),
		'199|1|0|t', 'the other ran through');
	# jobs that come in addition start no worker
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_workers WHERE state <> 'idle'});
	sql(q{SELECT pg_terminate_backend(pid) FROM jobqueue_workers WHERE state = 'idle'});
	wait_for(q{SELECT count(*) = 1 FROM jobqueue_workers});
	# one that was on its way then is older
	my $since = sql('SELECT clock_timestamp()');
	enqueue('gate', gate => 2, what => 'slow', queue => 'slow') for 1 .. 20;
	enqueue('note', what => 'quick', queue => 'quick', role => 'role_b');
	wait_for(q{SELECT count(*) = 1001 FROM ran WHERE what = 'quick'});
	is(sql(qq{SELECT count(*) FROM jobqueue_workers WHERE role = current_user::regrole AND started_at > timestamptz '$since'}), 0,
		'no worker was started for them');
	configure('slow', 'max_running => 0');
	wait_for(q{SELECT count(*) >= 5 FROM jobqueue_running});
	open_gate($gate);
	wait_drained();
	forget();
};

# Since the bucket was empty at the moment $since, so many may have started by
# then; what is compared is when jobs really started, which is after that.
sub within_rate
{
	my ($per_second, $burst, $since, $what) = @_;

	is(sql(qq{SELECT count(*) FROM (
		SELECT row_number() OVER (ORDER BY at) AS n, extract(epoch FROM at) - $since AS t
		FROM ran WHERE what = 'rated') x WHERE n > $burst + $per_second * t}), 0, $what);
}

sub now
{
	return sql('SELECT extract(epoch FROM clock_timestamp())');
}

property 'a rate holds, from an empty bucket, also over crashes' => sub {
	my $since = now();
	configure('rated', 'rate => 40, max_attempts => 1000');
	many(400, 'note', '{"what": "rated"}', 'rated', role => 'role_a');
	many(400, 'note', '{"what": "rated"}', 'rated', role => 'role_b');
	foreach my $round (1 .. 3)
	{
		wait_for("SELECT count(*) > 15 * $round FROM ran");
		if ($round % 2)
		{
			my $offset = crash_offset();
			my $pid = '';
			$pid = sql('SELECT pid FROM jobqueue_workers LIMIT 1') until $pid ne '';
			kill_hard($pid);
			wait_crash_restart($offset);
		}
		else
		{
			node()->restart;
		}
	}
	wait_for('SELECT count(*) >= 120 FROM ran');
	within_rate(40, 0, $since, 'never more than came since it was set');
	my $roles = sql('SELECT count(DISTINCT role) FROM ran');
	is($roles, 2, 'of both roles');
	configure('rated', 'rate => 0');
	wait_for('SELECT count(*) = 800 FROM ran');
	wait_drained();
	forget();
};

property 'idle for a while, a bucket lets its burst through and no more' => sub {
	configure('rated', 'rate => 20');
	enqueue('note', what => 'rated', queue => 'rated') for 1 .. 3;
	wait_for('SELECT count(*) = 3 FROM ran');
	# full again: twenty of these run at once
	wait_for(q{SELECT clock_timestamp() > max(at) + interval '1.1 s' FROM ran});
	forget();
	my $since = now();
	many(60, 'note', '{"what": "rated"}', 'rated');
	wait_for('SELECT count(*) = 60 FROM ran');
	within_rate(20, 20, $since, 'burst and rate');
	forget();
};

property 'tokens of workers that are held up are part of the burst' => sub {
	configure('stalled', 'rate => 10');
	many(60, 'note', '{"what": "rated"}', 'stalled');
	my $lock = session();
	$lock->query_safe('BEGIN; LOCK TABLE jobqueue_job');
	# each worker takes a token and waits for the lock; the bucket fills up
	my $begin = now();
	wait_for("SELECT extract(epoch FROM clock_timestamp()) > $begin + 3");
	cmp_ok(sql(q{SELECT count(*) FROM pg_locks WHERE relation = 'jobqueue_job'::regclass AND NOT granted}), '>', 1, 'several are held up');
	my $since = now();
	$lock->query_safe('COMMIT');
	wait_for('SELECT count(*) = 60 FROM ran');
	sql("DELETE FROM ran WHERE extract(epoch FROM at) < $since");
	within_rate(10, 10, $since, 'burst and rate');
	forget();
};

property 'a rate that is changed under load holds' => sub {
	my $since = now();
	my $allowed = 0;
	configure('changed', 'rate => 30');
	many(300, 'note', '{"what": "rated"}', 'changed');
	foreach my $rate (100, 10, 200)
	{
		wait_for("SELECT count(*) > $allowed FROM ran");
		configure('changed', "rate => $rate");
		$allowed += 10;
	}
	wait_for('SELECT count(*) = 300 FROM ran');
	# the bucket began empty: all that came, at the highest of the rates
	within_rate(200, 0, $since, 'never more than came');
	forget();
};

property 'tokens of jobs that did not start are not lost' => sub {
	configure('stale', q{rate => 5, rate_per => '1 hour'});
	my @jobs = map { enqueue('note', what => 'stale', queue => 'stale') } 1 .. 10;
	# rows go without memory being told: their entries are taken in vain
	sql("DELETE FROM jobqueue_job WHERE id IN (" . join(',', @jobs[ 0 .. 6 ]) . ')');
	# three tokens
	configure('stale', q{rate => 1000000, rate_per => '1 ms'});
	wait_for('SELECT count(*) = 3 FROM ran');
	pass('the others ran');
	forget();
};

paused_property 'a place that was handed over is not lost with its worker' => sub {
	my $gate = close_gate(3);
	configure('handed', 'max_running => 1');
	enqueue('gate', gate => 3, what => 'a', queue => 'handed', role => 'role_a');
	wait_at_gate(1);
	# workers of both roles are idle and wait for their turn
	my $warm = close_gate(4);
	enqueue('gate', gate => 4, what => 'warm', queue => 'warm', role => $_) for qw(role_a role_b);
	wait_at_gate(3);
	open_gate($warm);
	wait_for(q{SELECT count(*) = 2 FROM ran});
	enqueue('note', what => 'b', queue => 'handed', role => 'role_b');
	enqueue('note', what => 'a2', queue => 'handed', role => 'role_a');
	wait_for(q{SELECT count(*) >= 2 FROM jobqueue_workers WHERE state = 'idle'});
	arm('worker-called');
	open_gate($gate);
	my $pid = caught('worker-called');
	# it has the place, so nobody else starts
	enqueue('note', what => 'other', queue => 'other', role => 'role_a');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'other'});
	is(sql(q{SELECT ready, running FROM jobqueue_status WHERE queue = 'handed'}), '2|0', 'nobody runs');
	sql("SELECT pg_terminate_backend($pid)");
	release('worker-called');
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what IN ('a', 'b', 'a2')}), 3, 'all ran');
	forget();
};

paused_property 'a limit that is set between the taking of a job and its start counts it' => sub {
	arm('worker-claimed');
	enqueue('note', what => 'first', queue => 'between');
	my $pid = caught('worker-claimed');
	configure('between', 'max_running => 1');
	enqueue('note', what => 'second', queue => 'between');
	enqueue('note', what => 'control', queue => 'control');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'control'});
	is(ran(), 'control', 'the second waits');
	release('worker-claimed');
	wait_drained();
	is(ran(), 'control first second', 'until the first has ended');
	forget();
};

property 'workers of a role are shared out by weight' => sub {
	set_conf('jobqueue.max_workers' => 1);
	sql('SELECT jobqueue_quiesce()');
	configure('w3', 'weight => 3');
	many(300, 'note', '{"what": "w3"}', 'w3');
	many(300, 'note', '{"what": "w1"}', 'w1');
	sql('SELECT jobqueue_resume()');
	wait_for('SELECT count(*) = 600 FROM ran');
	my $n = sql(q{SELECT count(*) FROM (SELECT what FROM ran ORDER BY n OFFSET 8 LIMIT 200) x WHERE what = 'w3'});
	cmp_ok($n, '>=', 140, "of 200, $n are of the one that weighs 3");
	cmp_ok($n, '<=', 160, 'and no more');
	is(sql(q{SELECT count(*) FROM (SELECT what FROM ran ORDER BY n LIMIT 600 OFFSET 450) x WHERE what = 'w3'}),
		0, 'when it had none left, the other had all');
	set_conf('jobqueue.max_workers' => undef);
	forget();
};

paused_property 'the memory of a queue is not reused while somebody has a place of it' => sub {
	sql('SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues');
	node()->append_conf('postgresql.conf', 'jobqueue.max_lanes = 8');
	node()->restart;
	configure('gone', 'max_running => 1');
	my $gate = close_gate(5);
	enqueue('gate', gate => 5, what => 'a', queue => 'gone', role => 'role_a');
	wait_at_gate(1);
	enqueue('note', what => 'warm', queue => 'warm', role => 'role_b');
	my $job = enqueue('note', what => 'b', queue => 'gone', role => 'role_b');
	wait_for(q{SELECT count(*) >= 1 FROM jobqueue_workers WHERE state = 'idle' AND role = 'role_b'::regrole});
	arm('worker-called');
	open_gate($gate);
	my $pid = caught('worker-called');
	# it has a place of a queue that has neither settings nor jobs any more
	sql("SELECT jobqueue_cancel($job)");
	sql(q{SELECT jobqueue_drop_queue('gone')});
	memory_empties('no job is left');
	# all lanes are needed for others, and then all places of queues
	sql('SELECT jobqueue_quiesce()');
	enqueue('note', what => 'other', queue => "q$_") for 1 .. 8;
	sql('SELECT jobqueue_resume()');
	wait_drained();
	enqueue('note', what => 'other', queue => "q$_") for 9 .. 20;
	wait_drained();
	forget();
	release('worker-called');
	wait_for("SELECT state = 'idle' FROM jobqueue_workers WHERE pid = $pid");
	foreach my $queue ('gone', map { "q$_" } 1 .. 20)
	{
		configure($queue, 'max_running => 1');
		enqueue('note', what => 'limited', queue => $queue);
		wait_for(qq{SELECT count(*) = 1 FROM ran WHERE what = 'limited'});
		forget();
		sql("SELECT jobqueue_drop_queue('$queue')");
	}
	pass('each has all its places');
};

done_testing();
