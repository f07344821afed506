# Crashes under load: every effect exactly once, nothing left, nothing charged.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;
use Time::HiRes qw(time);

my $rounds = $ENV{JQ_CRASH_ROUNDS} || 20;

new_node('crash', conf => "checkpoint_timeout = 1h\n");
sql(<<'END');
CREATE TABLE sent (job bigint);
-- no constraint: what happens twice must be seen
CREATE TABLE effects (job bigint, attempt int, crashes int);
CREATE FUNCTION effect() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	INSERT INTO effects
	SELECT c.id, c.attempt, j.crashes FROM jobqueue_job j WHERE j.id = c.id;
	IF c.id % 16 = 0 THEN
		PERFORM pg_sleep(0.01);
	END IF;
END $$;
END

my $load = <<'END';
\set k random(0, 30)
INSERT INTO sent SELECT jobqueue_enqueue('effect', key => CASE WHEN :k < 10 THEN 'k' || :k END,
	priority => :k % 3,
	run_at => CASE WHEN :k = 30 THEN clock_timestamp() + interval '0.1 s' END);
END

# under load CODE ends the server; returns when it is up again
sub round
{
	my ($end) = @_;
	my $h = start_pgbench($load, clients => 4, transactions => 1000000);
	my $before = sql('SELECT count(*) FROM effects');

	wait_for("SELECT count(*) >= $before + 200 FROM effects");
	$end->();
	$h->finish;
}

sub check
{
	my ($what) = @_;

	wait_drained();
	is(sql('SELECT count(*) FROM (SELECT job FROM effects GROUP BY job HAVING count(*) > 1) x'),
		0, "$what: none twice");
	is(sql('SELECT count(*) FROM sent WHERE job NOT IN (SELECT job FROM effects)'),
		0, "$what: none lost");
	is(sql('SELECT count(*) FROM effects WHERE job NOT IN (SELECT job FROM sent)'),
		0, "$what: none that was not committed");
	is(sql('SELECT count(*) FROM effects WHERE attempt <> 1'),
		0, "$what: no attempt charged");
	is(sql('SELECT count(*) FROM jobqueue_history'), 0, "$what: none given up");
	memory_empties("$what: memory is empty");
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	note sql('SELECT count(*) FROM effects') . ' jobs';
}

sub forget_all
{
	sql('TRUNCATE sent, effects');
}

property "kill -9 of a worker, $rounds times" => sub {
	foreach my $i (1 .. $rounds)
	{
		round(
			sub {
				my $offset = crash_offset();
				my $pid = '';

				# while there is none whose job was killed before, which would
				# be given up: a worker soon has the next job
				while ($pid eq '')
				{
					$pid = sql('SELECT min(pid) FROM jobqueue_running WHERE NOT EXISTS (SELECT FROM jobqueue_job WHERE crashes > 0)');
				}
				kill_hard($pid);
				wait_crash_restart($offset);
			});
	}
	check('worker');
	cmp_ok(sql('SELECT count(*) FROM effects WHERE crashes > 0'),
		'<=', $rounds, 'crashes are counted for those that were killed alone');
	forget_all();
};

property "kill -9 of a client, $rounds times" => sub {
	foreach my $i (1 .. $rounds)
	{
		round(
			sub {
				my $offset = crash_offset();
				my $pid = '';

				while ($pid eq '')
				{
					$pid = sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench' AND state <> 'idle' LIMIT 1");
				}
				kill_hard($pid);
				wait_crash_restart($offset);
			});
	}
	check('client');
	is(sql('SELECT count(*) FROM effects WHERE crashes > 0'),
		0, 'no job is blamed');
	forget_all();
};

property "immediate stop, $rounds times" => sub {
	foreach my $i (1 .. $rounds)
	{
		round(sub { node()->stop('immediate'); node()->start });
	}
	check('immediate stop');
	is(sql('SELECT count(*) FROM effects WHERE crashes > 0'),
		0, 'no job is blamed');
	forget_all();
};

property 'fast restart, 5 times' => sub {
	foreach my $i (1 .. 5)
	{
		round(sub { node()->restart });
	}
	check('fast restart');
	is(sql('SELECT count(*) FROM effects WHERE crashes > 0'),
		0, 'no job is blamed');
	forget_all();
};

foreach my $point (
	'worker-claimed', 'worker-before-delete',
	'worker-before-commit', 'worker-after-commit')
{
	paused_property "kill -9 of a worker at $point" => sub {
		arm($point);
		sql("INSERT INTO sent SELECT jobqueue_enqueue('effect', key => 'p')");
		my $offset = crash_offset();
		kill 9, caught($point);
		wait_crash_restart($offset);
		wait_for('SELECT count(*) = 1 FROM effects');
		check($point);
		forget_all();
	};
}

foreach my $point ('fail-before-record', 'fail-after-record')
{
	paused_property "kill -9 of a worker at $point" => sub {
		sql("CREATE SEQUENCE IF NOT EXISTS fails; ALTER SEQUENCE fails RESTART;
			CREATE OR REPLACE FUNCTION fail_once() RETURNS void LANGUAGE plpgsql AS
			'BEGIN IF nextval(''fails'') = 1 THEN RAISE EXCEPTION ''once''; END IF;
			INSERT INTO ran (what) VALUES (''second''); END'");
		arm($point);
		enqueue('fail_once');
		my $offset = crash_offset();
		kill 9, caught($point);
		wait_crash_restart($offset);
		wait_drained();
		is(ran(), 'second', 'it ran again');
		forget();
	};
}

paused_property 'kill -9 of a client that has committed and not published' => sub {
	my $s = session();

	arm('enqueue-before-publish');
	send_sql($s, q{SELECT jobqueue_enqueue('note', '{"what": "p"}')});
	my $offset = crash_offset();
	kill 9, caught('enqueue-before-publish');
	wait_crash_restart($offset);
	wait_drained();
	is(ran(), 'p', 'the job runs');
	forget();
};

foreach my $point ('refill-after-snapshot', 'scheduler-before-record')
{
	paused_property "termination of a scheduler at $point" => sub {
		my $gate;

		arm($point);
		if ($point =~ /record/)
		{
			enqueue('SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)', max_attempts => 1);
		}
		else
		{
			enqueue('note', what => 'x');
			sql('SELECT jobqueue_sweep()');
		}
		my $pid = caught($point);
		enqueue('note', what => 'y');
		sql("SELECT pg_terminate_backend($pid)");
		release($point);
		wait_drained();
		like(ran(), qr/y/, 'the queue goes on');
		is(sql('SELECT count(*) FROM jobqueue_history'),
			($point =~ /record/ ? 1 : 0),
			'the failure is recorded');
		sql('DELETE FROM jobqueue_archive');
		forget();
	};
}

done_testing();
