# Settings of queues: durable, in force at once, whatever comes in between.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('queues', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.max_lanes = 8
END
sql('CREATE SEQUENCE started');
sql(<<'END');
CREATE FUNCTION start(args jsonb) RETURNS void LANGUAGE sql AS
	$$ SELECT nextval('started'); INSERT INTO ran (what) VALUES ('start') $$;
END

# a job of that queue does not run, while one of another queue does
sub is_paused
{
	my ($queue, $what) = @_;
	my $job = enqueue('note', what => 'paused', queue => $queue);

	enqueue('note', what => 'control', queue => 'control');
	wait_for("SELECT count(*) > 0 FROM ran WHERE what = 'control'");
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'ready', $what);
	sql("SELECT jobqueue_cancel($job)");
	forget();
}

sub runs
{
	my ($queue, $what) = @_;

	enqueue('note', what => 'runs', queue => $queue);
	wait_for("SELECT count(*) > 0 FROM ran WHERE what = 'runs'");
	pass($what);
	forget();
}

sub drop_all
{
	sql('SELECT jobqueue_resume(queue) FROM jobqueue_queues');
	wait_drained();
	sql('SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues');
	forget();
}

property 'a pause survives a restart, a crash and kill -9' => sub {
	sql(q{SELECT jobqueue_pause('q'), jobqueue_configure('b', batch => 7)});
	enqueue('note', what => 'before', queue => 'q');
	node()->restart;
	is_paused('q', 'after a restart');
	node()->stop('immediate');
	node()->start;
	is_paused('q', 'after a crash');
	my $offset = crash_offset();
	my $s = session();
	$s->query_safe('SELECT 1');
	kill_hard(sql('SELECT pid FROM jobqueue_workers LIMIT 1'));
	wait_crash_restart($offset);
	is_paused('q', 'after kill -9 of a worker');
	is(sql('SELECT queue, paused, batch FROM jobqueue_queues ORDER BY queue'), "b|f|7\nq|t|1", 'as it was');
	sql(q{SELECT jobqueue_resume('q')});
	wait_drained();
	is(ran(), 'before', 'and then it runs');
	node()->restart;
	runs('q', 'a resumed one after a restart');
	drop_all();
};

property 'nothing starts after pause has returned' => sub {
	my $load = start_pgbench(
		q{SELECT count(jobqueue_enqueue('start', '{}', queue => 'busy')) FROM generate_series(1, 5)},
		clients => 2, transactions => 400);
	my $s = session();

	$s->query_safe('SELECT 1');
	foreach my $round (1 .. 20)
	{
		wait_for(q{SELECT count(*) > 0 FROM ran});
		$s->query_safe(q{SELECT jobqueue_pause('busy')});
		# what was taken before that may still begin
		my $running = $s->query_safe(
			q{SELECT count(*) FROM jobqueue_running WHERE queue = 'busy'});
		my $first = $s->query_safe('SELECT last_value FROM started');
		wait_for(q{SELECT count(*) = 0 FROM jobqueue_running WHERE queue = 'busy'});
		my $second = $s->query_safe('SELECT last_value FROM started');
		cmp_ok($second - $first, '<=', $running, "round $round: none but those taken");
		$s->query_safe('TRUNCATE ran');
		runs('control', 'another queue');
		is($s->query_safe('SELECT last_value FROM started'), $second, 'nor later');
		$s->query_safe(q{SELECT jobqueue_resume('busy')});
		last if sql('SELECT last_value FROM started') >= 3900;
	}
	$load->finish;
	wait_drained();
	is(sql('SELECT last_value FROM started'), 4000, 'each ran once');
	drop_all();
};

property 'a full paused queue starves nobody' => sub {
	sql(q{SELECT jobqueue_pause('full')});
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "full"}', queue => 'full')) FROM generate_series(1, 1000)});
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "other"}', queue => 'other')) FROM generate_series(1, 1000)});
	wait_for(q{SELECT count(*) = 1000 FROM ran});
	is(sql('SELECT DISTINCT what FROM ran'), 'other', 'the other ran through');
	# one by one, and some that fall due
	sql(q{SELECT jobqueue_enqueue('note', '{"what": "full"}', queue => 'full', run_at => clock_timestamp() + interval '50 ms')}) for 1 .. 20;
	start_pgbench(q{SELECT jobqueue_enqueue('note', '{"what": "other"}', queue => 'other');
		SELECT jobqueue_enqueue('note', '{"what": "full"}', queue => 'full');},
		clients => 2, transactions => 300)->finish;
	wait_for(q{SELECT count(*) = 1600 FROM ran});
	is(sql('SELECT DISTINCT what FROM ran'), 'other', 'and again');
	is(sql(q{SELECT count(*) FROM jobqueue_jobs WHERE state = 'ready'}), 1620, 'the rest is there');
	forget();
	sql(q{SELECT jobqueue_resume('full')});
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 1620, 'then it runs');
	drop_all();
};

property 'settings are part of a dump' => sub {
	my $file = node()->basedir . '/queues.sql';

	sql(q{SELECT jobqueue_pause('q'), jobqueue_configure('b', batch => 5)});
	sql(q{SELECT jobqueue_configure('b', batch => 6)}) for 1 .. 3;
	node()->command_ok([ 'pg_dump', '-f', $file, 'postgres' ], 'dump');
	sql('CREATE DATABASE restored');
	node()->command_ok([ 'psql', '-q', '-X', '-v', 'ON_ERROR_STOP=1', '-f', $file, 'restored' ], 'restore');
	is(sql('SELECT queue, paused, batch FROM jobqueue_queues ORDER BY queue', db => 'restored'), "b|f|6\nq|t|1", 'all there');
	my $job = enqueue('note', what => 'q', queue => 'q', db => 'restored');
	enqueue('note', what => 'r', queue => 'r', db => 'restored');
	wait_for(q{SELECT count(*) FROM ran WHERE what = 'r'}, 1, 'restored');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job", db => 'restored'), 'ready', 'in force');
	sql(q{SELECT jobqueue_resume('q')}, db => 'restored');
	wait_drained(db => 'restored');
	is_paused('q', 'the other database has its own');
	sql('DROP DATABASE restored');
	drop_all();
};

property 'an extension that is created again has no settings' => sub {
	sql('CREATE DATABASE again');
	foreach my $round (1 .. 2)
	{
		JobqueueTest::add_database('again') if $round == 1;
		sql('CREATE EXTENSION jobqueue', db => 'again') if $round == 2;
		is(sql('SELECT count(*) FROM jobqueue_queues', db => 'again'), 0, 'none');
		my $job = enqueue('note', what => 'q', queue => 'q', db => 'again');
		wait_for(q{SELECT count(*) FROM ran}, $round, 'again');
		# versions begin anew, too
		sql(q{SELECT jobqueue_configure('q', batch => i) FROM generate_series(2, 30) i}, db => 'again')
		  if $round == 1;
		sql(q{SELECT jobqueue_pause('q')}, db => 'again');
		$job = enqueue('note', what => 'q', queue => 'q', db => 'again');
		enqueue('gate', gate => 1, queue => 'r', db => 'again');
		wait_for(q{SELECT count(*) FROM ran}, $round + 1, 'again');
		is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job", db => 'again'), 'ready', 'paused');
		sql(q{DELETE FROM ran WHERE what = 'gate'}, db => 'again');
		sql('ALTER TABLE ran ALTER job DROP DEFAULT, ALTER attempt DROP DEFAULT; DROP EXTENSION jobqueue', db => 'again');
	}
	sql('DROP DATABASE again');
};

property 'more queues with settings than memory has place for' => sub {
	sql(q{SELECT jobqueue_pause('q' || i) FROM generate_series(1, 30) i});
	enqueue('note', what => "q$_", queue => "q$_") for 1, 2, 28, 29;
	runs('free', 'one without settings runs');
	is(sql(q{SELECT count(*) FROM jobqueue_job}), 4, 'the paused ones do not');
	node()->restart;
	runs('free', 'after a restart, too');
	is(sql(q{SELECT count(*) FROM jobqueue_job}), 4, 'and the paused ones do not');
	sql(q{SELECT jobqueue_resume('q28')});
	wait_for('SELECT count(*) FROM ran', 1);
	is(ran(), 'q28', 'one of them resumed');
	sql(q{SELECT jobqueue_resume('q' || i) FROM generate_series(1, 30) i});
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 4, 'all resumed');
	drop_all();
};

paused_property 'two changes applied in the wrong order leave the later one' => sub {
	foreach my $order ([ 'pause', 'resume' ], [ 'resume', 'pause' ])
	{
		my $late = session();

		sql(q{SELECT jobqueue_configure('q', batch => 2)});
		arm('enqueue-before-publish');
		send_sql($late, "SELECT jobqueue_$order->[0]('q')");
		caught('enqueue-before-publish');
		sql("SELECT jobqueue_$order->[1]('q')");
		release('enqueue-before-publish');
		$late->query_safe('SELECT 1');
		$order->[1] eq 'pause' ? is_paused('q', 'pause was later') : runs('q', 'resume was later');
		drop_all();
	}
};

paused_property 'a dropped queue stays dropped when an older change is applied late' => sub {
	my $late = session();

	sql(q{SELECT jobqueue_configure('q', batch => 2)});
	arm('enqueue-before-publish');
	send_sql($late, q{SELECT jobqueue_pause('q')});
	caught('enqueue-before-publish');
	sql(q{SELECT jobqueue_drop_queue('q')});
	# its place in memory goes to others
	enqueue('note', what => "x$_", queue => "x$_") for 1 .. 40;
	wait_drained();
	release('enqueue-before-publish');
	$late->query_safe('SELECT 1');
	forget();
	runs('q', 'it runs');
};

paused_property 'a reading of the settings yields to what came after its snapshot' => sub {
	sql(q{SELECT jobqueue_configure('q', batch => 2), jobqueue_pause('r')});
	runs('free', 'all is read');
	arm('settings-after-snapshot');
	sql(q{UPDATE jobqueue_queue SET batch = 3 WHERE name = 'q'});
	caught('settings-after-snapshot');
	sql(q{SELECT jobqueue_pause('q'), jobqueue_pause('new')});
	sql(q{SELECT jobqueue_resume('r')});
	my $job = enqueue('note', what => 'free', queue => 'free');
	is(sql(q{SELECT state FROM jobqueue_jobs WHERE id = } . $job), 'ready', 'nothing runs meanwhile');
	release('settings-after-snapshot');
	wait_state($job, 'completed');
	is_paused('q', 'paused since');
	is_paused('new', 'paused since, and new');
	runs('r', 'resumed since');
	drop_all();
};

paused_property 'COMMIT PREPARED lets nothing start until the settings are read' => sub {
	runs('q', 'it is known');
	my $s = session();
	$s->query_safe(q{BEGIN; SELECT jobqueue_pause('q'); PREPARE TRANSACTION 'pause'});
	runs('q', 'not before');
	arm('settings-after-snapshot');
	$s->query_safe(q{COMMIT PREPARED 'pause'});
	caught('settings-after-snapshot');
	my $job = enqueue('note', what => 'q', queue => 'q');
	release('settings-after-snapshot');
	is_paused('q', 'paused');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'ready', 'that one, too');
	$s->query_safe(q{BEGIN; SELECT jobqueue_resume('q'); PREPARE TRANSACTION 'resume'});
	node()->restart;
	sql(q{COMMIT PREPARED 'resume'});
	wait_drained();
	is(ran(), 'q', 'prepared before a restart');
	drop_all();
};

property 'jobs for which memory has no lane are not counted, and the view says so' => sub {
	is(sql('SELECT jobqueue_quiesce()'), 't', 'nothing runs');
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'many' || i)) FROM generate_series(1, 20) i});
	is(sql('SELECT sum(ready) < 20 AND bool_and(estimated) FROM jobqueue_status'), 't', 'too small');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 20, 'all ran');
	wait_for('SELECT NOT bool_or(estimated) FROM jobqueue_status');
	forget();
};

node()->stop;
done_testing();
