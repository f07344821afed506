# jobqueue_explain(): each reason is made to happen, and is named.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# few workers, a small memory
new_node('explain', streaming => 1, conf => <<'END');
autovacuum_naptime = 1d
jobqueue.max_workers = 3
jobqueue.max_workers_per_role = 2
jobqueue.max_ready_jobs = 64
END

my $super = superuser();
my $time = qr/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[\d.]*\+00/;

sub why
{
	my ($id, %opt) = @_;
	return sql("SELECT jobqueue_explain($id)", %opt);
}

# becomes true and stays so
sub explained
{
	my ($id, $pattern, $name) = @_;
	my $answer;

	for (1 .. 1200)
	{
		$answer = why($id);
		last if $answer =~ $pattern;
		sql('SELECT pg_sleep(0.05)');
	}
	like($answer, $pattern, $name);
}

property 'running: in which process, since when, how far' => sub {
	my $gate = close_gate(1);
	my $id = enqueue(q{SELECT jobqueue_progress(0.5); SELECT gate('{"gate": 1}')}, max_attempts => 7);
	wait_at_gate(1);
	my $pid = sql("SELECT pid FROM jobqueue_running WHERE id = $id");
	like(why($id), qr/^running in pid $pid since $time, attempt 1 of 7, 50 % done$/, 'it says so');
	open_gate($gate);
	wait_drained();
	like(why($id), qr/^completed at $time in pid $pid, attempt 1, and not kept$/, 'and of its end');
	forget();
};

property 'a key: who holds it, how many stand before' => sub {
	my $gate = close_gate(1);
	my $holder = enqueue('gate', gate => 1, key => 'user:42');
	wait_at_gate(1);
	my $pid = sql("SELECT pid FROM jobqueue_running WHERE id = $holder");
	my @ids = map { enqueue('note', what => $_, key => 'user:42') } (1 .. 4);
	my $held = qr/^waits for key 'user:42', held by job $holder in pid $pid since $time,/;
	explained($ids[3], qr/$held 3 ahead$/, 'the last');
	like(why($ids[0]), qr/$held next in line$/, 'the first');
	# more than memory keeps
	sql(q{SELECT count(jobqueue_enqueue('note', '{}', key => 'user:42')) FROM generate_series(1, 100)});
	my $last = sql('SELECT max(id) FROM jobqueue_job');
	explained($last, qr/$held at least \d+ ahead$/, 'one in the table');
	open_gate($gate);
	wait_drained();
	forget();
};

property 'a limit of the queue: how many run; when the next token comes' => sub {
	sql(q{SELECT jobqueue_configure('limited', max_running => 1)});
	my $gate = close_gate(1);
	my $first = enqueue('gate', gate => 1, queue => 'limited');
	wait_at_gate(1);
	my @ids = map { enqueue('note', what => $_, queue => 'limited', key => 'free') } (1 .. 3);
	explained($ids[2], qr/^1 of 1 jobs of queue "limited" are running \(max_running\), 2 ahead$/, 'max_running');
	like(why($ids[0]), qr/^1 of 1 jobs of queue "limited" are running \(max_running\), next in line$/, 'the first');
	sql(q{SELECT jobqueue_pause('limited')});
	explained($ids[0], qr/^queue "limited" is paused /, 'a pause comes first');
	sql(q{SELECT jobqueue_resume('limited')});
	open_gate($gate);
	wait_drained();

	# the bucket is empty at first
	sql(q{SELECT jobqueue_configure('limited', max_running => 0, rate => 2, rate_per => '1 hour')});
	@ids = map { enqueue('note', what => $_, queue => 'limited') } (1 .. 2);
	explained($ids[1], qr/^next token of queue "limited" in 00:(29|30):\d\d \(rate 2 per 01:00:00\), 1 ahead$/, 'rate');
	sql(q{SELECT jobqueue_configure('limited', rate => 0)});
	wait_drained();
	forget();
};

property 'limits of a key: n of m, the next token, an order' => sub {
	sql(q{SELECT jobqueue_configure('shared', key_limit => 2)});
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, queue => 'shared', key => 'two') foreach (1 .. 2);
	wait_at_gate(2);
	my @ids = map { enqueue('note', what => $_, queue => 'shared', key => 'two') } (1 .. 2);
	# of those that wait for a worker or the key the worker may know first
	sql(q{ALTER SYSTEM SET jobqueue.max_workers_per_role = 3; SELECT pg_reload_conf()});
	explained($ids[1], qr/^waits for key 'two', 2 of 2 running, 1 ahead$/, 'key_limit');
	explained($ids[0], qr/^waits for key 'two', 2 of 2 running, next in line$/, 'the first');
	# a queue that allows less
	my $one = enqueue('note', what => 'one', key => 'two');
	explained($one, qr/^waits for key 'two', 2 of 2 running, 2 ahead$/, 'that wants it alone');
	open_gate($gate);
	wait_drained();
	sql(q{ALTER SYSTEM RESET jobqueue.max_workers_per_role; SELECT pg_reload_conf()});

	# buckets are empty at the start of the server
	sql(q{SELECT jobqueue_configure('krated', key_rate => 1, key_rate_per => '1 day')});
	@ids = map { enqueue('note', what => $_, queue => 'krated', key => 'slow') } (1 .. 2);
	explained($ids[1], qr/^next token of key 'slow' in 23:\d\d:\d\d \(key_rate 1 per 1 day\), 1 ahead$/, 'key_rate');
	sql(q{SELECT jobqueue_configure('krated', key_rate => 0)});
	wait_drained();

	sql(q{SELECT jobqueue_configure('ord', ordered => true, backoff_base => '1 hour')});
	my $bad = enqueue('fail', what => 'bad', queue => 'ord', key => 'line');
	wait_for("SELECT attempt > 0 AND state = 'scheduled' FROM jobqueue_jobs WHERE id = $bad");
	my $next = enqueue('note', what => 'next', queue => 'ord', key => 'line');
	explained($next, qr/^waits for job $bad of key 'line', which is to run again before it$/, 'ordered');
	like(why($bad), qr/^due in \d\d:\d\d:\d\d, at $time, after attempt 1 of 10 failed: failed on purpose$/, 'the one before it');
	is(sql("SELECT jobqueue_cancel($bad)"), 't', 'cancelled');
	explained($next, qr/^completed at/, 'no longer');
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'a key that a session holds by jobqueue_run()' => sub {
	my $s = session();
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	sql(q{SELECT jobqueue_pause('run')});
	my $run = enqueue('note', what => 'run', key => 'k', queue => 'run');
	$s->query_safe("BEGIN; SELECT jobqueue_run($run)");
	my $id = enqueue('note', what => 'waits', key => 'k');
	explained($id, qr/^waits for key 'k', held by job $run in pid $pid since $time, next in line$/, 'the waiter');
	like(why($run), qr/^held by a transaction in pid $pid that acts on it, since $time$/, 'the one that is run');
	$s->query_safe('ROLLBACK');
	wait_state($id, 'completed');
	like(why($run), qr/^queue "run" is paused until jobqueue_resume\('run'\)$/, 'paused again');
	sql(qq{SELECT jobqueue_resume('run')});
	wait_drained();
	forget();
};

property 'no worker of the role is free; then none at all' => sub {
	sql("CREATE ROLE other LOGIN; SELECT jobqueue_grant('other', 'use'); CREATE ROLE third LOGIN; SELECT jobqueue_grant('third', 'use')");
	my $gate = close_gate(1);
	enqueue('gate', gate => 1) foreach (1 .. 2);
	wait_at_gate(2);
	my @ids = map { enqueue('note', what => $_) } (1 .. 3);
	explained($ids[2], qr/^no worker is free: 2 of 2 workers of role "$super" are busy; ready, 2 ahead$/, 'of the role');
	enqueue('gate', gate => 1, role => 'other');
	wait_at_gate(3);
	my $id = enqueue('note', what => 'x', role => 'third');
	explained($id, qr/^no worker is free: 3 of 3 are busy; ready, next in line$/, 'of the server');
	open_gate($gate);
	wait_drained();
	forget();
};

property 'a long backlog: in memory, in the table' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1) foreach (1 .. 2);
	wait_at_gate(2);
	sql(q{SELECT count(jobqueue_enqueue('note', '{}')) FROM generate_series(1, 500)});
	my ($first, $last) = split /\|/, sql('SELECT min(id), max(id) FROM jobqueue_job j WHERE NOT EXISTS (SELECT FROM jobqueue_running r WHERE r.id = j.id)');
	explained($first, qr/; ready, next in line$/, 'the first');
	explained($last, qr/; ready, in the table until memory has room for it, at least \d+ ahead$/, 'the last');
	open_gate($gate);
	wait_drained();
	forget();
};

property 'jobqueue.enabled, jobqueue.max_workers' => sub {
	set_conf('jobqueue.enabled' => 'off');
	my $id = enqueue('note', what => 'x');
	explained($id, qr/^jobqueue.enabled is off$/, 'off');
	set_conf('jobqueue.enabled' => undef);
	wait_drained();
	set_conf('jobqueue.max_workers' => 0);
	wait_for('SELECT count(*) = 0 FROM jobqueue_workers');
	$id = enqueue('note', what => 'x');
	explained($id, qr/^jobqueue.max_workers is 0$/, 'none');
	set_conf('jobqueue.max_workers' => undef);
	wait_drained();
	forget();
};

property 'a role that may not connect, one without rights to be one' => sub {
	sql("CREATE ROLE locked LOGIN; SELECT jobqueue_grant('locked', 'use'); REVOKE CONNECT ON DATABASE postgres FROM PUBLIC");
	sql('SELECT jobqueue_quiesce()');
	my $id = sql(q{SET ROLE locked; SELECT jobqueue_enqueue('note', '{"what": "x"}')});
	sql('SELECT jobqueue_resume()');
	explained($id, qr/^(role "locked" has no CONNECT privilege on the database; it will be dead|dead since $time: the role has no CONNECT privilege on the database)$/, 'CONNECT');
	wait_for("SELECT state = 'dead' FROM jobqueue_jobs WHERE id = $id");
	like(why($id), qr/^dead since $time: the role has no CONNECT privilege on the database$/, 'then it is dead');
	sql('GRANT CONNECT ON DATABASE postgres TO PUBLIC; DELETE FROM jobqueue_archive');
  SKIP:
	{
		skip 'jobqueue_nobody is not needed', 1 if sql('SHOW server_version_num') >= 170000;
		sql("CREATE ROLE nologin; SELECT jobqueue_grant('nologin', 'use'); ALTER ROLE jobqueue_nobody NOLOGIN");
		$id = sql(q{SET ROLE nologin; SELECT jobqueue_enqueue('note', '{"what": "x"}')});
		explained($id, qr/^role "nologin" cannot log in, and role "jobqueue_nobody", as which its workers connect, does not exist or has been changed$/, 'NOLOGIN');
		sql('ALTER ROLE jobqueue_nobody LOGIN');
		sql("SELECT jobqueue_cancel($id)");
	}
	forget();
};

property 'a row that an open transaction deletes' => sub {
	my $s = session();
	my $xid;

	sql('SELECT jobqueue_quiesce()');
	my $id = enqueue('note', what => 'x');
	$s->query_safe("BEGIN; DELETE FROM jobqueue_job WHERE id = $id");
	$xid = $s->query_safe('SELECT pg_current_xact_id()');
	like(why($id), qr/^transaction $xid, which has not ended, changes or deletes its row$/, 'it waits');
	sql('SELECT jobqueue_resume()');
	explained($id, qr/^transaction $xid, which has not ended, changes or deletes its row$/, 'a worker has seen it');
	$s->query_safe('ROLLBACK');
	wait_drained();
	is(ran(), 'x', 'and runs');
	forget();
};

property 'a transaction that cancels many' => sub {
	my $s = session();
	my $id;

	$s->query_safe(q{SELECT jobqueue_enqueue('note', queue => 'many', run_at => '2999-01-01')});
	$s->query_safe(q{BEGIN; SELECT jobqueue_cancel_where('many', NULL, NULL)});
	$id = enqueue('note', what => 'x', queue => 'many');
	explained($id, qr/^a transaction that acts on many jobs of queue "many" has not ended$/, 'it waits');
	$s->query_safe('ROLLBACK');
	explained($id, qr/^completed at/, 'no longer');
	sql(q{SELECT jobqueue_cancel_where('many', NULL, NULL)});
	forget();
};

paused_property 'a job whose worker has ended' => sub {
	arm('scheduler-before-record');
	my $id = enqueue('SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)', max_attempts => 1);
	caught('scheduler-before-record');
	like(why($id), qr/^ended at $time \(the worker was terminated while it ran the job\), which is to be recorded$/, 'before');
	release('scheduler-before-record');
	explained($id, qr/^dead since $time: attempt 1 of 1 failed: the worker was terminated while it ran the job$/, 'after');
	sql('DELETE FROM jobqueue_archive');
};

paused_property 'jobs of a batch' => sub {
	# one worker takes them
	sql(q{SELECT jobqueue_configure('b', batch => 20, max_running => 1)});
	arm('batch-before-commit');
	my @ids = split /\|/, sql(q{SELECT jobqueue_enqueue('note', queue => 'b'), jobqueue_enqueue('note', queue => 'b'), jobqueue_enqueue('note', queue => 'b')});
	my $pid = caught('batch-before-commit');
	like(why($ids[0]), qr/^in a batch with \d others in pid $pid: done, or waiting for its turn$/, 'the first');
	release('batch-before-commit');
	wait_drained();
	forget();
};

property 'no background worker slot is left' => sub {
	# one for a worker besides logical replication, the launcher and a scheduler
	node()->append_conf('postgresql.conf', "max_worker_processes = 4\njobqueue.max_workers_per_role = 3\n");
	node()->restart;
	my $gate = close_gate(1);
	my @ids = map { enqueue('gate', gate => 1) } (1 .. 8);
	explained($ids[7], qr/^no background worker slot of the server is left \(max_worker_processes = 4\); ready, \d ahead$/, 'it names the setting');
	open_gate($gate);
	wait_drained();
	forget();
	node()->append_conf('postgresql.conf', "max_worker_processes = 16\n");
	node()->restart;
};

property 'nobody reads what belongs to others' => sub {
	my $gate = close_gate(1);
	my $id = enqueue('gate', gate => 1, key => 'secret');
	wait_at_gate(1);
	my $mine = enqueue('note', what => 'x', key => 'secret', role => 'other');
	explained($mine, qr/held by job $id/, 'a superuser sees all');
	like(why($mine, role => 'other'), qr/^waits for key 'secret', held by another role since $time, next in line$/, 'neither id nor pid');
	like(sql_error("SELECT jobqueue_explain($id)", role => 'other'), qr/permission denied for job $id/, 'nor the job');
	open_gate($gate);
	wait_drained();
	like(sql_error("SELECT jobqueue_explain($id)", role => 'other'), qr/permission denied for job $id/, 'nor what has become of it');
	forget();
};

property 'it writes nothing' => sub {
	wait_quiet();
	sql('CHECKPOINT');
	my $id = enqueue('note', run_at => '2999-01-01');
	my $s = session();
	$s->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1');
	like($s->query_safe("SELECT jobqueue_explain($id)"), qr/^due in \d+ days [\d:]+, at 2999-01-01 00:00:00\+00$/, 'read only');
	sql("SELECT jobqueue_cancel($id)");
	# neither what it knew nor the table: what is true now
	like($s->query_safe("SELECT jobqueue_explain($id)"), qr/^cancelled at $time$/, 'of now, not of the snapshot');
	is($s->query_safe('SELECT pg_current_xact_id_if_assigned() IS NULL'), 't', 'no transaction id');
	$s->query_safe('COMMIT');
	forget();
};

property 'on a standby' => sub {
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	node()->backup('base');
	$standby->init_from_backup(node(), 'base', has_streaming => 1);
	$standby->start;
	my $id = enqueue('note', run_at => '2999-01-01');
	node()->wait_for_catchup($standby, "replay", node()->lsn("insert"));
	is($standby->safe_psql('postgres', "SELECT jobqueue_explain($id)"), 'this server is a standby: jobs run on the primary', 'live');
	sql("SELECT jobqueue_cancel($id)");
	node()->wait_for_catchup($standby, "replay", node()->lsn("insert"));
	like($standby->safe_psql('postgres', "SELECT jobqueue_explain($id)"), qr/^cancelled at $time$/, 'in the history');
	like($standby->safe_psql('postgres', 'SELECT jobqueue_explain(123456789)'), qr/^no job 123456789 has been enqueued yet$/, 'unknown');
	$standby->stop;
};

property 'transaction ids are short' => sub {
	my $xids_in_segment = 8192 * 4 * 32;

	sql(q{ALTER DATABASE template0 ALLOW_CONNECTIONS true});
	my $oldest = sql('SELECT min(datfrozenxid::text::bigint) FROM pg_database');
	my $xid = $oldest + 2**31 - 1 - 40_000_000 + 1000;
	my $file = sprintf '%s/pg_xact/%04X', node()->data_dir, int($xid / $xids_in_segment);

	node()->stop;
	append_to_file($file, "\0" x ($xids_in_segment / 4)) unless -e $file;
	command_ok([ 'pg_resetwal', '-x', $xid, node()->data_dir ], "next id $xid");
	node()->start;
	my $id = sql(q{SET client_min_messages = error; SELECT jobqueue_enqueue('note', '{"what": "x"}')});
	explained($id, qr/^no job is started, as the server is short of transaction ids: VACUUM is needed$/, 'stopped');
	sql('SET client_min_messages = error; SET log_min_messages = error; VACUUM (FREEZE)', db => $_) foreach qw(template0 template1 postgres);
	wait_drained();
};

property 'the server has not crashed in all this' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

done_testing();
