# What has been told survives a failover with synchronous replication; copies of
# a server (point-in-time recovery, a clone, the old primary) run what they
# should, and nothing else.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $a = new_node('a', streaming => 1, conf => <<'END');
wal_log_hints = on
wal_keep_size = 512MB
max_replication_slots = 4
END
my $b = PostgreSQL::Test::Cluster->new('b');
my $local = 'SET synchronous_commit = local;';

$a->enable_archiving;
$a->restart;
$a->backup('base');
sql(<<'END');
CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT jsonb_build_object('state', s, 'reply', s) FROM to_jsonb(coalesce(state::int, 0) + coalesce((message->>'add')::int, 0)) s $$;
END

sub ids
{
	my ($word, $text) = @_;
	return $text =~ /^$word (\d+)$/mg;
}

sub silent
{
	my ($node, $what) = @_;
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('jobqueue worker', 'jobqueue scheduler')}),
		0, $what // 'silent');
}

property 'point-in-time recovery: what ran after the point runs again, what was done before does not' => sub {
	my $copy = PostgreSQL::Test::Cluster->new('copy');

	enqueue('note', what => 'before');
	wait_drained();
	sql(q{SELECT jobqueue_pause('asleep')});
	my $waiting = enqueue('note', what => 'waiting', queue => 'asleep', unique_key => 'u');
	sql(q{SELECT pg_create_restore_point('the point')});
	sql(q{SELECT jobqueue_resume('asleep')});
	enqueue('note', what => 'after');
	wait_drained();
	my $wal = sql('SELECT pg_walfile_name(pg_current_wal_lsn())');
	sql('SELECT pg_switch_wal()');
	wait_for("SELECT last_archived_wal >= '$wal' FROM pg_stat_archiver");

	$copy->init_from_backup($a, 'base', has_restoring => 1, standby => 0);
	$copy->append_conf('postgresql.conf', "recovery_target_name = 'the point'\nhot_standby = on\narchive_mode = off\n");
	$copy->start;
	$copy->poll_query_until('postgres', "SELECT pg_get_wal_replay_pause_state() = 'paused'");
	silent($copy, 'while it is paused at the point nothing runs');
	like($copy->safe_psql('postgres', "SELECT jobqueue_explain($waiting)"), qr/^this server is a standby/, 'and explain says so');
	$copy->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	$copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	$JobqueueTest::node = $copy;
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $waiting"), 'ready', 'its job waits as it did');
	wait_for("SELECT jobqueue_explain($waiting)", q{queue "asleep" is paused until jobqueue_resume('asleep')});
	sql(q{SELECT jobqueue_resume('asleep')});
	wait_drained();
	wait_quiet();
	is(ran(), 'before waiting', 'what was done is not done again, what waited is, what came later never was');
	is(sql('SELECT count(*) FROM jobqueue_unique'), 0, 'unique keys are freed');
	$JobqueueTest::node = $a;
	$copy->stop;
	forget();
};

property 'a clone that is started by itself is the same installation: it runs what waits unless it is told not to' => sub {
	my $clone = PostgreSQL::Test::Cluster->new('clone');

	sql(q{SELECT jobqueue_pause('asleep')});
	my $id = enqueue('note', what => 'cloned', queue => 'asleep');
	$a->backup('clone');
	$clone->init_from_backup($a, 'clone');
	$clone->append_conf('postgresql.conf', "jobqueue.enabled = off\narchive_mode = off\n");
	$clone->start;
	$JobqueueTest::node = $clone;
	sql(q{SELECT jobqueue_resume('asleep')});
	is(sql("SELECT jobqueue_explain($id)"), 'jobqueue.enabled is off', 'told not to');
	silent($clone);
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'"), 0, 'not held');
	set_conf('jobqueue.enabled' => 'on');
	wait_drained();
	is(ran(), 'cloned', 'told to');

	# or it is held as a whole, and becomes another installation
	my $held = enqueue('note', what => 'held', run_at => 'tomorrow');
	sql(q{SELECT jobqueue_schedule('often', '1 second', 'note', '{"what": "scheduled"}')});
	set_conf('jobqueue.enabled' => 'off');
	sql('UPDATE jobqueue_meta SET database = 0');
	forget();
	sql(q{ALTER SYSTEM SET jobqueue.enabled = on});
	$clone->restart;
	sql("SELECT jobqueue_reschedule($held, now())");
	enqueue('note', what => 'new');
	is(sql(q{SELECT string_agg(DISTINCT state, ' ') FROM jobqueue_jobs WHERE ended_at IS NULL}), 'held', 'held by hand');
	is(sql('SELECT count(*) FROM jobqueue_schedules WHERE next_run IS NOT NULL'), 0, 'schedules, too');
	is(sql("SELECT jobqueue_cancel($held), jobqueue_unschedule('often'), jobqueue_adopt() > 0"), 't|t|t', 'until it is adopted');
	wait_quiet();
	is(ran(), 'new', 'nothing has run before');
	$JobqueueTest::node = $a;
	$clone->stop;
	sql("SELECT jobqueue_cancel($id)");
};

property 'with a standby that does not answer nobody is told, and a cancel warns as that of a COMMIT does' => sub {
	my ($enqueuer, $waiter, $other, $consumer, $caller) = map { session() } 1 .. 5;

	$a->backup('standby');
	$b->init_from_backup($a, 'standby', has_streaming => 1);
	$b->append_conf('postgresql.conf', "archive_mode = off\n");
	$b->start;
	sql(q{SELECT jobqueue_configure('strict', synchronous_commit => 'on'), jobqueue_start_service('adds', 'add_up', '0')});
	my $fetched = enqueue('note', what => 'x') && sql(q{SELECT jobqueue_enqueue(NULL, queue => 'fetched')});
	is($consumer->query_safe(q{SELECT id FROM jobqueue_fetch('fetched')}), $fetched, 'fetched');
	wait_for('SELECT count(*) = 1 FROM jobqueue_job');
	set_conf(synchronous_standby_names => '*');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
	$b->stop('immediate');
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_replication});

	my $job = sql("$local SELECT jobqueue_enqueue('note', '{\"what\": \"waited for\"}')");
	my $strict = sql("$local SELECT jobqueue_enqueue('note', '{\"what\": \"strict\"}', queue => 'strict')");
	my $timed = sql("$local SELECT jobqueue_enqueue('note', '{\"what\": \"timed\"}', queue => 'strict', timeout => '1 s')");
	wait_for("SELECT count(*) > 0 FROM jobqueue_recent WHERE id = $job AND outcome = 'completed'");
	send_sql($enqueuer, q{SELECT 'enqueued ' || jobqueue_enqueue('note', '{"what": "enqueued"}')});
	send_sql($waiter, "SELECT 'told ' || state FROM jobqueue_wait($job)");
	send_sql($consumer, "SELECT 'done ' || jobqueue_complete($fetched)");
	# its message is sent in silence, and handled; the reply is not told
	$caller->query_safe('SET synchronous_commit = local');
	is($caller->query_safe(q{CALL jobqueue_call('adds', '{"add": 1}', NULL)}), '1', 'a call that asks for less is answered');
	$caller->query_safe('RESET synchronous_commit');
	send_sql($caller, q{CALL jobqueue_call('adds', '{"add": 1}', NULL)});
	send_sql($other, "SELECT 'told, too: ' || state FROM jobqueue_wait($job)");
	wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'}, 5);
	wait_for("SELECT count(*) = 1 FROM jobqueue_running WHERE id = $strict");
	like(sql("SELECT jobqueue_explain($strict)"), qr/^running in pid/, 'a worker waits too, where the queue says so');
	# the time-out of a job that is over in all but the answer of the standby ends that wait alone
	wait_state($timed, 'completed');
	sql("$local SELECT jobqueue_cancel($strict)");
	wait_state($strict, 'completed');
	is(sql(qq{SELECT count(*) FROM ran WHERE what IN ('strict', 'timed')}), 2, 'jobs that could not be replicated have run once');

	my $offset = crash_offset();
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%''told ''%' AND pid <> pg_backend_pid()});
	unlike($waiter->query('SELECT 1'), qr/told/, 'who waited for the job is not told');
	like($waiter->{stderr}, qr/ERROR:  canceling statement due to user request\s+CONTEXT:  waiting for a standby to confirm the end of the job/, 'and why');
	$waiter->{stderr} = '';
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%enqueued%'});
	like($enqueuer->query('SELECT 1'), qr/enqueued \d+/, 'an enqueue is done');
	like($enqueuer->{stderr}, qr/WARNING:  canceling wait for synchronous replication/, 'with the warning of COMMIT');
	$enqueuer->{stderr} = '';
	is($waiter->query_safe("$local SELECT state FROM jobqueue_wait($job)"), 'completed', 'who asks for less is told');
	send_sql($waiter, "RESET synchronous_commit; SELECT 'told ' || state FROM jobqueue_wait($job)");
	wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'}, 4);
	$b->start;
	like($waiter->query('SELECT 1'), qr/told completed/, 'told when the standby answers');
	like($other->query('SELECT 1'), qr/told, too: completed/, 'and so is whoever else waited');
	like($consumer->query('SELECT 1'), qr/done/, 'and done');
	like($caller->query('SELECT 3'), qr/^2$/m, 'and answered');
	wait_drained();
	forget();
};

my $asleep;

property 'what has been told survives the failover to a synchronous standby' => sub {
	my (@clients, @told);

	sql(q{SELECT jobqueue_pause('asleep')});
	$asleep = enqueue('note', what => 'asleep', queue => 'asleep');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
	foreach my $n (1 .. 3)
	{
		my $file = $a->basedir . "/client_$n.sql";
		append_to_file($file, <<END x 2000);
SELECT jobqueue_enqueue('note', '{"what": "job"}', key => 'k$n') AS id \\gset
\\warn enqueued :id
SELECT state FROM jobqueue_wait(:id) \\gset
\\warn told :id
SELECT jobqueue_enqueue(NULL, queue => 'q$n') AS id \\gset
\\warn offered :id
SELECT id, token FROM jobqueue_fetch('q$n', lease => '1 h') \\gset
\\warn fetched :id
BEGIN;
INSERT INTO ran (what, job) VALUES ('consumed', :id);
SELECT jobqueue_complete(:id, token => :'token') AS done \\gset
COMMIT;
\\warn completed :id
END
		my $text = '';
		push @told, \$text;
		local %ENV = $a->_get_env();
		push @clients, IPC::Run::start([ $a->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $file, 'postgres' ],
			'<', \undef, '>', \my $out, '2>', \$text, IPC::Run::timeout(300));
	}
	foreach my $i (0 .. $#clients)
	{
		$clients[$i]->pump until (() = ids('completed', ${ $told[$i] })) >= 20;
	}
	$a->stop('immediate');
	$_->finish foreach @clients;
	my $all = join '', map { $$_ } @told;
	$b->promote;
	$JobqueueTest::node = $b;
	set_conf(synchronous_standby_names => undef);

	my %of;
	foreach my $word (qw(enqueued told offered fetched completed))
	{
		my @ids = ids($word, $all);
		note "$word: " . @ids;
		$of{$word} = 'ANY (ARRAY[' . join(',', @ids) . ']::bigint[])';
	}
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $of{told}"), 0, 'what was told to be completed is not there any more');
	is(sql("SELECT count(*) FROM ran WHERE job = $of{told}"), scalar(() = ids('told', $all)), 'nor lost');
	is(sql("SELECT count(*) FROM jobqueue_job WHERE id = $of{completed}"), 0, 'what a consumer has completed is not there any more');
	is(sql("SELECT count(*) FROM ran WHERE job = $of{completed}"), scalar(() = ids('completed', $all)), 'nor lost');
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE command IS NOT NULL AND queue <> 'asleep'");
	is(sql("SELECT count(*), count(DISTINCT job) FROM ran WHERE job = $of{enqueued}"),
		join('|', (scalar(() = ids('enqueued', $all))) x 2), 'what was enqueued has run, once');
	is(sql("SELECT count(*) FROM (SELECT job FROM ran WHERE job = $of{offered} UNION SELECT id FROM jobqueue_job WHERE id = $of{offered}) o"),
		scalar(() = ids('offered', $all)), 'what was offered is there or done');
	is(sql("SELECT count(*) FROM (SELECT job FROM ran WHERE job = $of{fetched} UNION SELECT job FROM jobqueue_lease WHERE job = $of{fetched}) o"),
		scalar(() = ids('fetched', $all)), 'what was fetched is leased or done');
	is(sql('SELECT count(*) FROM (SELECT FROM ran GROUP BY job HAVING count(*) > 1) twice'), 0, 'nothing twice');
	sql('SELECT jobqueue_release(job, token) FROM jobqueue_lease');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE command IS NULL');
};

property 'an old primary that comes back as one is a second server: jobqueue.enabled = off keeps it quiet' => sub {
	sql(q{SELECT jobqueue_resume('asleep')});
	wait_drained();
	is(sql("SELECT count(*) FROM ran WHERE job = $asleep"), 1, 'it ran on the new primary');
	$a->append_conf('postgresql.conf', "synchronous_standby_names = ''\njobqueue.enabled = off\n");
	unlink $a->data_dir . '/postgresql.auto.conf';
	append_to_file($a->data_dir . '/postgresql.auto.conf', '');
	$a->start;
	$JobqueueTest::node = $a;
	sql(q{SELECT jobqueue_resume('asleep')});
	is(sql("SELECT jobqueue_explain($asleep)"), 'jobqueue.enabled is off', 'quiet');
	silent($a);
	set_conf('jobqueue.enabled' => 'on');
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE id = $asleep");
	is(sql("SELECT count(*) FROM ran WHERE job = $asleep"), 1, 'else it runs what the other one has run');
	$a->stop('immediate');
	$JobqueueTest::node = $b;
};

property 'rejoined by pg_rewind it is a standby like any other' => sub {
	my $conf = slurp_file($a->data_dir . '/postgresql.conf');

	sql('CHECKPOINT');
	enqueue('note', what => 'meanwhile');
	wait_drained();
	command_ok([ 'pg_rewind', '--target-pgdata', $a->data_dir, '--source-server', $b->connstr('postgres') ], 'pg_rewind');
	unlink $a->data_dir . '/postgresql.conf';
	append_to_file($a->data_dir . '/postgresql.conf', $conf . "jobqueue.enabled = on\narchive_mode = off\n");
	$a->enable_streaming($b);
	$a->start;
	my $scheduled = enqueue('note', what => 'scheduled', run_at => 'tomorrow');
	$b->wait_for_catchup($a, 'replay', $b->lsn('insert'));
	silent($a);
	is($a->safe_psql('postgres', "SELECT jobqueue_explain($scheduled)"), 'this server is a standby: jobs run on the primary', 'explain');
	is($a->safe_psql('postgres', 'SELECT count(*) FROM ran'), sql('SELECT count(*) FROM ran'), 'what it did alone is gone');
	# and back
	sql('SELECT jobqueue_quiesce()');
	my $last = enqueue('note', what => 'last');
	$b->stop('fast');
	$a->promote;
	$JobqueueTest::node = $a;
	wait_for("SELECT count(*) = 1 FROM ran WHERE job = $last");
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $scheduled"), 'scheduled', 'after a switchover what waits runs there');
};

done_testing();
