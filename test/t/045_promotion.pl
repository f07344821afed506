# A standby refuses what acts on jobs and keys, says why nothing runs, and keeps
# its memory empty. Promoted, it goes on from the rows alone: what waits, runs,
# depends on others, is limited, unique, scheduled or prepared.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = new_node('primary', streaming => 1);
my $standby = PostgreSQL::Test::Cluster->new('standby');
my $cascaded = PostgreSQL::Test::Cluster->new('cascaded');

sql(<<'END');
CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql
	AS 'SELECT to_jsonb(state::int + coalesce((message->>''add'')::int, 0))';
-- leaves a trace with which place of its queue it has found free: a view of what
-- runs would not be of one moment
CREATE FUNCTION crowd() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	place int := 1;
BEGIN
	WHILE NOT pg_try_advisory_xact_lock(45, place) LOOP
		place := place + 1;
	END LOOP;
	PERFORM pg_sleep(0.01);
	INSERT INTO ran (what) VALUES ('crowd ' || place);
END $$;
END

$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$standby->backup('base');
$cascaded->init_from_backup($standby, 'base', has_streaming => 1);
$cascaded->start;

sub on_standby
{
	my ($query) = @_;
	return $standby->safe_psql('postgres', $query);
}

# a worker's commits may be visible before they are written
sub wait_for_standby
{
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
}

sub wait_on_standby
{
	my ($query) = @_;
	$standby->poll_query_until('postgres', $query) or die "waited in vain for: $query\n";
}

my $connected = $standby->background_psql('postgres', on_error_stop => 0);

property 'what acts on jobs and keys is refused on a standby, with a hint' => sub {
	my $i = "'00000000-0000-0000-0000-000000000000'";
	foreach my $call (
		"enqueue('note')", "enqueue_many('note', array['{}'::jsonb])",
		"cancel(1)", "cancel_where('a', NULL, NULL)", "retry(1)", "retry_where('a', NULL, NULL)",
		"reschedule(1, now())", "reschedule_where('a', NULL, NULL, now())",
		"reprioritize(1, 1)", "reprioritize_where('a', NULL, NULL, 1)",
		"purge('a', 'dead')", "run(1)", "wait(1)", "wait(array[1])", "adopt()", "sweep()",
		"quiesce()", "resume()", "configure('a', batch => 2)", "pause('a')", "resume('a')",
		"drop_queue('a')", "start_service('s', 'add_up', '0')", "stop_service('s')",
		"send('s', '{}')", "schedule('s', \$\$\@daily\$\$, 'note')", "unschedule('s')",
		"schedule_run('s')", "schedule_pause('s')", "schedule_resume('s')",
		"grant('pg_monitor', 'use')", "revoke('pg_monitor', 'use')", "fetch('a')",
		"fetch('a', lease => '1 h')", "complete(1)", "fail(1)", "extend(1, '1 h', $i)",
		"release(1)", "release(1, $i)", "lock('a')", "xact_lock('a')", "try_lock('a')", "unlock('a')",
		"pause_role('pg_monitor')", "resume_role('pg_monitor')", "reassign('pg_monitor', 'pg_signal_backend')")
	{
		my ($name) = $call =~ /^(\w+)/;
		my (undef, undef, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nSELECT jobqueue_$call");
		$name =~ s/_many//;
		like($err, qr/25006: cannot execute jobqueue_$name\(\) during recovery\nHINT:.*connect to the primary/, $call);
	}
	foreach my $call ("call('s', '{}', NULL)", "fetch_wait('a')")
	{
		my ($name) = $call =~ /^(\w+)/;
		my (undef, undef, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nCALL jobqueue_$call");
		like($err, qr/25006: cannot execute jobqueue_$name\(\) during recovery\nHINT:/, $call);
	}
	my (undef, undef, $err) = $standby->psql('postgres', "SET jobqueue.inline = on; SELECT jobqueue_enqueue('note')");
	like($err, qr/during recovery/, 'inline');
	$connected->query("SELECT jobqueue_enqueue('note')");
	like($connected->{stderr}, qr/during recovery/, 'in a session that stays');
	$connected->{stderr} = '';
};

property 'views and explain say on a standby why nothing runs; its memory is empty' => sub {
	my $why = 'this server is a standby: jobs run on the primary';

	sql(q{SELECT jobqueue_configure('empty', max_running => 1, rate => 1), jobqueue_start_service('adds', 'add_up', '0')});
	my $gate = close_gate(1);
	my $running = enqueue('gate', gate => 1, what => 'gate', key => 'k', queue => 'empty');
	my $blocked = enqueue('note', what => 'k', key => 'k', queue => 'empty');
	my $later = enqueue('note', what => 'later', run_at => 'tomorrow');
	my $dead = enqueue('fail', max_attempts => 1);
	wait_at_gate();
	wait_state($dead, 'dead');
	wait_for_standby();
	foreach my $job ($running, $blocked, $later)
	{
		is(on_standby("SELECT jobqueue_explain($job)"), $why, 'explain');
		is(on_standby("SELECT reason FROM jobqueue_jobs WHERE id = $job"), $why, 'jobqueue_jobs');
	}
	is(on_standby("SELECT string_agg(state, ' ' ORDER BY id) FROM jobqueue_jobs WHERE id IN ($running, $blocked, $later, $dead)"),
		'ready ready scheduled dead', 'states as the table has them');
	like(on_standby("SELECT reason FROM jobqueue_jobs WHERE id = $dead"), qr/^(?!this server)/, 'not of what has ended');
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE reason IS NOT NULL AND id <> $dead"), 0, 'nor on the primary');
	is(on_standby("SELECT queue, scheduled, dead, estimated FROM jobqueue_status"), 'default|1|1|t', 'status: what tables know');
	foreach my $view (qw(running recent keys workers))
	{
		is(on_standby("SELECT count(*) FROM jobqueue_$view"), 0, "jobqueue_$view");
	}
	is(on_standby(q{SELECT jobqueue_whereis('k') IS NULL, jobqueue_service_state('adds'), jobqueue_whereis_service('adds') IS NULL}), 't|0|t', 'functions that read');
	foreach my $memory (qw(queue_stats running_jobs blocked_jobs recent_jobs held_keys processes))
	{
		is(on_standby("SELECT count(*) FROM jobqueue_$memory()"), 0, "memory: $memory");
	}
	is(on_standby("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'"), 0, 'no process');
	is($cascaded->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'"), 0, 'nor on the cascaded one');
	open_gate($gate);
	sql("SELECT jobqueue_cancel($later)");
	wait_drained();
	forget();
};

property 'promotion: all goes on, from the rows alone' => sub {
	my $gate = close_gate(2);
	my @unique = (queue => 'unique', unique_key => 'u', unique_until => 'until_and_while_executing');

	sql(q{SELECT jobqueue_configure('crowd', max_running => 2), jobqueue_configure('rated', key_rate => 2, key_rate_per => '4 s'),
		jobqueue_pause('asleep')});
	# done there, not again here
	enqueue('note', what => "done $_") foreach (1 .. 3);
	my $first = enqueue('note', what => 'done 4', keep => '1 h');
	wait_drained();
	# running when the primary dies
	my $running = enqueue('gate', gate => 2, what => 'ran again', @unique);
	my $behind = enqueue('note', what => 'behind it', after => "{$running}");
	wait_at_gate();
	enqueue('note', what => 'behind the first', queue => 'asleep', after => "{$first}");
	my $leased = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'leased', key => 'leased')});
	sql(q{SELECT token FROM jobqueue_fetch('leased', lease => '1 h')});
	sql("BEGIN; SELECT jobqueue_enqueue('note', '{\"what\": \"prepared\"}'); PREPARE TRANSACTION 'enqueued'");
	sql(q{CREATE ROLE sleeper; SELECT jobqueue_grant('sleeper', 'use'), jobqueue_pause_role('sleeper')});
	sql(q{SET ROLE sleeper; SELECT jobqueue_enqueue('note', '{"what": "of the sleeper"}'),
		jobqueue_schedule('of the sleeper', '1 second', 'note', '{"what": "of the sleeper"}')});
	# from here on nothing starts on the primary
	sql(q{SELECT jobqueue_schedule('hourly', '1 hour', 'note', '{"what": "late"}', catch_up => 'none'),
		jobqueue_schedule('made up', '@yearly', 'note', '{"what": "made up"}')});
	set_conf('jobqueue.enabled' => 'off');
	sql("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
	sql(q{SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', 'many ' || i), key => 'k' || i % 7, priority => i % 3))
		FROM generate_series(1, 5000) i});
	sql(q{SELECT count(jobqueue_enqueue('crowd', queue => 'crowd')) FROM generate_series(1, 40)});
	enqueue('note', what => 'rated', queue => 'rated', key => 'r') foreach (1 .. 2);
	sql(q{UPDATE jobqueue_schedule SET seen_to = now() - interval '400 days' WHERE name = 'made up'});
	sql(q{UPDATE jobqueue_schedule SET seen_to = now(), started_at = now() - interval '1 hour' + interval '1 second', next_run = '-infinity'
		WHERE name = 'hourly'});
	wait_for_standby();
	$primary->stop('immediate');
	wait_on_standby(q{SELECT clock_timestamp() > started_at + interval '1 hour' FROM jobqueue_schedule WHERE name = 'hourly'});
	wait_on_standby(q{SELECT clock_timestamp() > pg_postmaster_start_time() + interval '5 seconds'});
	my $before = on_standby('SELECT clock_timestamp()');
	$standby->promote;
	$JobqueueTest::node = $standby;
	is($connected->query_safe(q{SELECT jobqueue_try_lock('leased')}), 'f', 'the key of what is leased is not free, from the first moment on');

	wait_for(q{SELECT last_outcome = 'missed' FROM jobqueue_schedules WHERE name = 'hourly'});
	pass('an instant at which no primary was there was missed');
	wait_for('SELECT count(*) = 3 FROM jobqueue_job');
	is(sql('SELECT count(*) FROM jobqueue_lease'), 1, 'the lease holds');
	sql('SELECT jobqueue_release(job, token) FROM jobqueue_lease');
	sql("SELECT jobqueue_cancel($leased)");
	is(sql(q{SELECT count(*), count(DISTINCT job), max(attempt) FROM ran WHERE what LIKE 'many%'}), '5000|5000|1', 'what waited runs once');
	is(sql(q{SELECT string_agg(what, ', ' ORDER BY what) FROM ran WHERE what LIKE 'done%'}), 'done 1, done 2, done 3, done 4', 'what was done is not done again');
	is(sql(q{SELECT count(*) FILTER (WHERE what IN ('crowd 1', 'crowd 2')), count(*) FROM ran WHERE what LIKE 'crowd%'}), '40|40', 'max_running holds')
	  or diag(sql(q{SELECT what, count(*) FROM ran WHERE what LIKE 'crowd%' GROUP BY 1}));
	is(sql(qq{SELECT bool_and(at >= '$before'::timestamptz + nth * interval '2 seconds')
		FROM (SELECT at, row_number() OVER (ORDER BY at) AS nth FROM ran WHERE what = 'rated') r}), 't', 'buckets are empty in the beginning');
	is(sql(q{SELECT string_agg(what, ', ' ORDER BY n) FROM ran WHERE what IN ('ran again', 'behind it')}), 'ran again, behind it', 'what ran runs again, then what depends on it');
	is(sql(q{SELECT count(*) FROM jobqueue_unique}), 0, 'its unique_key is free');
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'made up'}), 1, 'schedules catch up');
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'late'}), 0, 'or do not');
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'of the sleeper'}), 0, 'a paused role is paused');
	sql(q{SELECT jobqueue_resume('asleep'), jobqueue_resume_role('sleeper')});
	wait_for(q{SELECT runs > 0 FROM jobqueue_schedules WHERE name = 'of the sleeper'});
	sql(q{SELECT jobqueue_unschedule('of the sleeper')});
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'behind the first'}), 1, 'what depends on a job that was done before');
};

property 'what was prepared on the old primary is published where it is committed' => sub {
	wait_quiet();
	sql("COMMIT PREPARED 'enqueued'");
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'prepared'}), 1, 'it runs');
};

property 'a session that was there before enqueues, locks and waits after' => sub {
	my $id = $connected->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "same session"}')});

	is($connected->query_safe("SELECT state FROM jobqueue_wait($id)"), 'completed', 'in the same session');
	is($connected->query_safe("SELECT jobqueue_try_lock('a')"), 't', 'a key');
};

property 'a cascaded standby follows, and stays silent' => sub {
	sql(q{SELECT jobqueue_pause('asleep')});
	my $id = enqueue('note', queue => 'asleep', what => 'cascaded');
	$standby->wait_for_catchup($cascaded, 'replay', $standby->lsn('insert'));
	like($cascaded->safe_psql('postgres', "SELECT jobqueue_explain($id)"), qr/^this server is a standby/, 'a standby still');
	is($cascaded->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'"), 0, 'silent');
	$standby->stop('immediate');
	$cascaded->promote;
	$JobqueueTest::node = $cascaded;
	sql(q{SELECT jobqueue_resume('asleep')});
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'cascaded'}), 1, 'promoted in its turn, it runs');
};

done_testing();
