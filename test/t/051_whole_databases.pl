# What is done to whole databases, to the extension in them and to its schema,
# while jobs wait and run: nothing is in the way, and everything goes on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('whole_databases', conf => <<'END');
jobqueue.worker_idle_timeout = 1h
jobqueue.max_workers = 4
autovacuum = off
END
sql('CREATE ROLE a LOGIN');

# with an idle worker in it
sub new_database
{
	my ($db) = @_;

	sql("CREATE DATABASE $db");
	JobqueueTest::add_database($db);
	sql(q{CREATE TABLE ran_at (at timestamptz DEFAULT clock_timestamp(), what text)}, db => $db);
	$JobqueueTest::tidy_db = $db;
	warm_up($db);
}

sub warm_up
{
	my ($db) = @_;

	enqueue('note', what => 'warm', db => $db);
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'warm'}, 't', $db);
	sql(q{DELETE FROM ran WHERE what = 'warm'}, db => $db);
	wait_for("SELECT count(*) > 0 FROM jobqueue_workers WHERE state = 'idle'", 't', $db);
}

sub runs_jobs
{
	my ($db, $what) = @_;

	warm_up($db);
	pass($what);
}

sub log_since
{
	my ($offset, $pattern) = @_;
	my $log = slurp_file(node()->logfile, $offset);
	my $n = () = $log =~ /$pattern/g;

	return $n;
}

# a scheduler that stands still in the database
sub busy_scheduler
{
	my ($db) = @_;

	for (;;)
	{
		arm('settings-after-snapshot');
		sql('SELECT jobqueue_sweep()', db => $db);
		my $pid = caught('settings-after-snapshot');
		# that of another database may have come first
		return $pid if sql("SELECT datname FROM pg_stat_activity WHERE pid = $pid") eq $db;
		release('settings-after-snapshot');
	}
}

new_database('one');

property 'a database is copied from a session in it, beside its idle workers' => sub {
	foreach my $strategy ('wal_log', 'file_copy')
	{
		warm_up('one');
		is(sql_error("CREATE DATABASE copy TEMPLATE one STRATEGY $strategy", db => 'one'), '', $strategy);
		sql('SELECT jobqueue_adopt()', db => 'copy');
		runs_jobs('copy', 'jobs run in the copy');
		runs_jobs('one', 'and in the original');
		is(sql_error('DROP DATABASE copy'), '', 'dropped beside its idle worker');
	}
};

paused_property 'a statement that waits for our processes and is cancelled leaves the database as it was' => sub {
	new_database('two');
	busy_scheduler('two');
	like(sql_error("SET statement_timeout = '1s'; DROP DATABASE two"), qr/statement timeout/, 'cancelled');
	release('settings-after-snapshot');
	runs_jobs('two', 'jobs run');
};

paused_property 'a session that ends while it waits for our processes leaves the database as it was' => sub {
	busy_scheduler('two');
	my $s = session();
	send_sql($s, 'DROP DATABASE two');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%' AND wait_event = 'Extension'});
	sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%'});
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%'});
	eval { $s->quit };
	release('settings-after-snapshot');
	runs_jobs('two', 'jobs run');
};

property 'a session that ends while it waits for others leaves the database as it was' => sub {
	my $other = session(db => 'two');
	my $s = session();
	$other->query('SELECT 1');
	send_sql($s, 'DROP DATABASE two');
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'two' AND backend_type LIKE 'jobqueue%'});
	sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%'});
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%'});
	eval { $s->quit };
	$other->quit;
	runs_jobs('two', 'jobs run');
};

property 'jobs in the way of ALTER DATABASE are told of; when they end it goes on' => sub {
	my $job = enqueue('hang', db => 'two');

	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'two' AND wait_event = 'PgSleep'});
	my $s = session();
	send_sql($s, 'ALTER DATABASE two RENAME TO zwei');
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'object' AND mode = 'AccessExclusiveLock' AND classid = 'pg_database'::regclass});
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = 'two' AND wait_event = 'PgSleep'});
	wait_for(q{SELECT count(*) = 1 FROM pg_database WHERE datname = 'zwei'});
	$s->query('SELECT 1');
	like($s->{stderr}, qr/NOTICE:  1 job of jobqueue runs in database "two".*HINT: .*jobqueue_quiesce/s, 'a notice');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'zwei' AND wait_event = 'PgSleep'});
	pass('renamed; the job runs again');
	sql("SELECT jobqueue_cancel($job)", db => 'zwei');
	wait_drained(db => 'zwei');
	sql('ALTER DATABASE zwei RENAME TO two');
	runs_jobs('two', 'jobs run');
};

property 'no job runs where connections are not allowed; all run when they are again' => sub {
	sql(q{SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO ran_at (what) VALUES (1)')}, db => 'two');
	wait_for('SELECT count(*) > 0 FROM ran_at', 't', 'two');
	my $s = session(db => 'two');
	my $offset = -s node()->logfile;
	sql('ALTER DATABASE two ALLOW_CONNECTIONS false');
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'two' AND backend_type LIKE 'jobqueue%'});
	my $n = $s->query_safe('SELECT count(*) FROM ran_at');
	$s->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "ready"}')});
	$s->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "due"}', run_at => now())});
	enqueue('note', what => 'other', db => 'one');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'other'}, 't', 'one');
	is($s->query_safe('SELECT count(*) FROM ran_at'), $n, 'no schedule');
	is($s->query_safe('SELECT count(*) FROM ran'), 0, 'no job');
	is(log_since($offset, 'FATAL'), 0, 'nobody tries');
	sql('ALTER DATABASE two ALLOW_CONNECTIONS true');
	wait_for(q{SELECT count(*) = 2 FROM ran}, 't', 'two');
	wait_for("SELECT count(*) > $n FROM ran_at", 't', 'two');
	$s->quit;
	sql(q{SELECT jobqueue_unschedule('s')}, db => 'two');
	forget(db => 'two');
};

property 'a template database runs jobs, and nobody stays in it' => sub {
	sql('ALTER DATABASE two IS_TEMPLATE true');
	runs_jobs('two', 'jobs run');
	is(sql_error('CREATE DATABASE copy TEMPLATE two'), '', 'copied');
	sql('DROP DATABASE copy');
	sql(q{SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO ran_at (what) VALUES (2)')}, db => 'two');
	node()->restart;
	is(sql_error('CREATE DATABASE copy TEMPLATE two'), '', 'copied');
	sql('DROP DATABASE copy');
	sql(q{TRUNCATE ran_at}, db => 'two');
	# after a start nobody looks into templates
	sql('ALTER DATABASE two IS_TEMPLATE false');
	wait_for('SELECT count(*) > 0 FROM ran_at', 't', 'two');
	sql(q{SELECT jobqueue_unschedule('s')}, db => 'two');
	runs_jobs('two', 'jobs run in what was a template');
};

property 'workers do not count against limits of connections' => sub {
	sql('ALTER DATABASE two CONNECTION LIMIT 0; CREATE ROLE limited LOGIN CONNECTION LIMIT 0');
	sql(q{SELECT jobqueue_grant('limited', 'use'); GRANT ALL ON ran TO limited}, db => 'two');
	sql(q{SET SESSION AUTHORIZATION limited; SELECT jobqueue_enqueue('note', '{"what": "limited"}')}, db => 'two');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'limited'}, 't', 'two');
	pass('the job ran');
	sql('ALTER DATABASE two CONNECTION LIMIT -1');
	forget(db => 'two');
};

property 'a database that is half dropped is left alone' => sub {
	new_database('half');
	sql(q{SELECT jobqueue_schedule('s', '1 second', 'SELECT 1')}, db => 'half');
	sql(q{SELECT jobqueue_enqueue('SELECT pg_sleep(3600)')}, db => 'half');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'half' AND wait_event = 'PgSleep'});
	my $offset = -s node()->logfile;
	# as an interrupted DROP DATABASE leaves it
	sql(q{UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half';
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'half'});
	sql('ALTER DATABASE one CONNECTION LIMIT -1'); # all databases are looked at
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'half'});
	runs_jobs('one', 'others go on');
	node()->restart;
	runs_jobs('one', 'others go on after a restart');
	is(log_since($offset, 'invalid database'), 0, 'nobody tries to connect');
	is(sql_error('DROP DATABASE half'), '', 'it can be dropped');
};

property 'a database that nobody can connect to does not stop others and is tried seldom' => sub {
	new_database('broken');
	my $path = node()->data_dir . '/base/' . sql(q{SELECT oid FROM pg_database WHERE datname = 'broken'}) . '/PG_VERSION';
	sql(q{SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO ran_at (what) VALUES (3)')}, db => 'broken');
	set_conf('jobqueue.enabled' => 'off');
	enqueue('note', what => $_, db => 'broken') foreach 1 .. 3;
	my $offset = -s node()->logfile;
	sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'broken' AND backend_type LIKE 'jobqueue%'});
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'broken'});
	rename $path, "$path.away" or die;
	set_conf('jobqueue.enabled' => undef);
	runs_jobs('one', 'others go on');
	# the second try comes a second after the first, the third two later
	node()->wait_for_log(qr/(not a valid data directory.*){4}/s, $offset);
	cmp_ok(log_since($offset, 'FATAL:  "base'), '<=', 10, 'not again and again');
	rename "$path.away", $path or die;
	sql('SELECT pg_reload_conf()');
	wait_for(q{SELECT count(*) = 3 FROM ran}, 't', 'broken');
	wait_for(q{SELECT count(*) > 0 FROM ran_at}, 't', 'broken');
	pass('when it can be connected to again all goes on');
	sql(q{SELECT jobqueue_unschedule('s')}, db => 'broken');
	is(sql_error('DROP DATABASE broken'), '', 'dropped');
};

property 'a change of one database leaves the workers of others alone' => sub {
	my $idle = q{SELECT string_agg(pid::text, ',' ORDER BY pid) FROM jobqueue_workers WHERE state = 'idle'};

	warm_up('two');
	warm_up('one');
	foreach my $change ('CONNECTION LIMIT -1', 'ALLOW_CONNECTIONS true', "SET my.x = 'y'", 'RESET ALL')
	{
		my $pids = sql($idle, db => 'one');
		sql("ALTER DATABASE two $change; ALTER ROLE a RESET my.x");
		warm_up('one');
		is(sql($idle, db => 'one'), $pids, $change);
	}
};

paused_property 'a database that lost its name to the one that is dropped keeps its jobs' => sub {
	sql('CREATE DATABASE other');
	sql(q{SELECT jobqueue_pause('p'); SELECT jobqueue_enqueue('note', '{"what": "waits"}', queue => 'p') FROM generate_series(1, 3)}, db => 'two');
	busy_scheduler('two');
	my $s = session();
	send_sql($s, 'DROP DATABASE two');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE two%' AND wait_event = 'Extension'});
	sql(q{BEGIN; UPDATE pg_database SET datname = 'kept' WHERE datname = 'two';
		UPDATE pg_database SET datname = 'two' WHERE datname = 'other'; COMMIT});
	release('settings-after-snapshot');
	wait_for(q{SELECT count(*) = 0 FROM pg_database WHERE datname = 'two'});
	$s->quit;
	sql(q{SELECT jobqueue_resume('p')}, db => 'kept');
	wait_for(q{SELECT count(*) = 3 FROM ran WHERE what = 'waits'}, 't', 'kept');
	pass('they have run');
	sql(q{UPDATE pg_database SET datname = 'two' WHERE datname = 'kept'});
	forget(db => 'two');
};

property 'SET TABLESPACE beside idle workers' => sub {
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	sql("CREATE TABLESPACE place LOCATION '$dir'");
	warm_up('two');
	is(sql_error('ALTER DATABASE two SET TABLESPACE place'), '', 'moved');
	runs_jobs('two', 'jobs run');
	is(sql_error('ALTER DATABASE two SET TABLESPACE pg_default'), '', 'and back');
	runs_jobs('two', 'jobs run');
	sql('DROP TABLESPACE place');
};

property 'databases made from one template are different homes' => sub {
	sql('CREATE DATABASE tpl');
	sql('CREATE EXTENSION jobqueue', db => 'tpl');
	sql("CREATE DATABASE $_ TEMPLATE tpl") foreach ('t1', 't2');
	sql(q{SELECT jobqueue_enqueue('SELECT 1', run_at => 'tomorrow')}, db => 't1');
	is(sql('SELECT state FROM jobqueue_jobs', db => 't1'), 'held', 'new jobs are held');
	like(sql('SELECT jobqueue_explain(id) FROM jobqueue_jobs', db => 't1'), qr/jobqueue_adopt/, 'and say why');
	sql('SELECT jobqueue_adopt()', db => $_) foreach ('t1', 't2');
	is(sql('SELECT state FROM jobqueue_jobs', db => 't1'), 'scheduled', 'adopted');
	my %home = map { sql('SELECT home FROM jobqueue_meta', db => $_) => 1 } ('tpl', 't1', 't2');
	is(scalar keys %home, 3, 'each has an identity of its own');
	my $row = sql('COPY jobqueue_job TO STDOUT', db => 't1');
	(my $file = node()->basedir . '/row') =~ s/'/''/g;
	sql("COPY jobqueue_job TO '$file'", db => 't1');
	sql("COPY jobqueue_job FROM '$file'", db => 't2');
	is(sql('SELECT state FROM jobqueue_jobs', db => 't2'), 'held', 'a row of the one is held in the other');
	sql("DROP DATABASE $_") foreach ('tpl', 't1', 't2');
};

property 'the extension is dropped while a job runs' => sub {
	my $gate = close_gate(8, db => 'two');
	enqueue('gate', gate => 8, db => 'two', key => 'k');
	wait_at_gate(1);
	enqueue('note', what => 'behind', key => 'k', db => 'two');
	sql('BEGIN; DROP EXTENSION jobqueue CASCADE; ROLLBACK', db => 'two');
	is(sql('SELECT count(*) FROM jobqueue_running', db => 'two'), 1, 'rolled back: the job runs');
	open_gate($gate);
	wait_drained(db => 'two');
	is(ran(db => 'two'), 'gate behind', 'both have run');
	forget(db => 'two');
	$gate = close_gate(8, db => 'two');
	enqueue('gate', gate => 8, db => 'two', key => 'k');
	wait_at_gate(1);
	enqueue('note', what => 'behind', key => 'k', db => 'two');
	sql('DROP EXTENSION jobqueue CASCADE', db => 'two');
	open_gate($gate);
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'two' AND backend_type = 'jobqueue worker' AND state = 'active'});
	is(ran(db => 'two'), '', 'the effects of the job are rolled back');
	sql('BEGIN; CREATE EXTENSION jobqueue; ROLLBACK', db => 'two');
	is(sql(q{SELECT count(*) FROM pg_extension WHERE extname = 'jobqueue'}, db => 'two'), 0, 'created and rolled back');
	sql('CREATE EXTENSION jobqueue', db => 'two');
	enqueue('note', what => 'new', key => 'k', db => 'two');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'new'}, 't', 'two');
	is(ran(db => 'two'), 'new', 'the key is free');
	forget(db => 'two');
};

# everything that finds tables or functions of ours
my $everything = <<'END';
SELECT jobqueue_configure('q', max_running => 3);
SELECT jobqueue_enqueue('note', '{"what": "e"}', queue => 'q', key => 'k', unique_key => 'u', keep => '1h');
SELECT jobqueue_enqueue_many('note', ARRAY['{"what": "m"}', '{"what": "m"}']::jsonb[]);
SELECT jobqueue_enqueue('note', '{"what": "after"}', after => ARRAY[jobqueue_enqueue('note', '{"what": "before"}')]);
SELECT jobqueue_enqueue('note', '{"what": "due"}', run_at => now() + '10 ms');
SELECT jobqueue_enqueue('note', '{"what": "expires"}', expires_at => now() + '1 day');
SELECT jobqueue_enqueue('fail', '{"what": "f"}', max_attempts => 1, queue => 'dead');
SELECT jobqueue_schedule('s', '@hourly', 'note', '{"what": "s"}');
SELECT jobqueue_schedule_run('s');
SELECT jobqueue_schedule_pause('s'); SELECT jobqueue_schedule_resume('s');
SELECT jobqueue_unschedule('s');
SELECT jobqueue_start_service('svc', 'handler', '0');
SELECT jobqueue_send('svc', '1');
SELECT jobqueue_service_state('svc');
SELECT jobqueue_explain(jobqueue_enqueue('note', '{"what": "x"}', run_at => 'tomorrow', tags => ARRAY['t']));
SELECT jobqueue_reschedule_where(NULL, NULL, 't', 'tomorrow');
SELECT jobqueue_reprioritize_where(NULL, NULL, 't', 5);
SELECT jobqueue_cancel_where(NULL, NULL, 't');
SELECT jobqueue_retry_where('default', 'cancelled', NULL);
SELECT jobqueue_enqueue(NULL, '{"what": "fetched"}', queue => 'out');
SELECT jobqueue_complete(id, token => token) FROM jobqueue_fetch('out', wait => '5s', lease => '1 min');
SELECT jobqueue_purge('default', 'cancelled');
SELECT jobqueue_try_lock('sess'); SELECT jobqueue_unlock('sess');
SELECT jobqueue_pause('q'); SELECT jobqueue_resume('q');
SELECT jobqueue_sweep(); SELECT jobqueue_adopt();
SELECT count(*) FROM jobqueue_status; SELECT count(*) FROM jobqueue_jobs; SELECT count(*) FROM jobqueue_history;
SELECT count(*) FROM jobqueue_queues; SELECT count(*) FROM jobqueue_schedules; SELECT count(*) FROM jobqueue_services;
SELECT count(*) FROM jobqueue_keys; SELECT count(*) FROM jobqueue_workers; SELECT count(*) FROM jobqueue_running;
SELECT jobqueue_stop_service('svc');
SELECT jobqueue_grant('a', 'use'); SELECT jobqueue_revoke('a', 'use');
END

property 'the schema is renamed while sessions, workers and the scheduler are at work' => sub {
	sql('CREATE DATABASE three');
	sql('ALTER DATABASE three SET search_path = public, jq, jq2');
	sql('CREATE SCHEMA jq; CREATE EXTENSION jobqueue SCHEMA jq', db => 'three');
	sql(<<'END', db => 'three');
CREATE TABLE ran (n bigint GENERATED ALWAYS AS IDENTITY, what text, job bigint);
CREATE FUNCTION note(args jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO ran (what) VALUES (args->>'what') $$;
CREATE FUNCTION fail(args jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'on purpose'; END $$;
CREATE FUNCTION handler(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT to_jsonb(state::int + CASE WHEN jsonb_typeof(message) = 'number' THEN message::int ELSE 0 END) $$;
END
	my $s = session(db => 'three');
	my $round = sub {
		my ($when) = @_;
		my $error = '';

		foreach my $query (split /;\s*/, $everything)
		{
			$s->{stderr} = '';
			$s->query($query);
			$error .= "$query: $s->{stderr}\n" if $s->{stderr} =~ /ERROR/;
		}
		is($error, '', "$when: everything can be called");
		wait_drained(db => 'three');
		is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM (SELECT DISTINCT what FROM ran) r}, db => 'three'),
			'after before due e expires m s x', "$when: all jobs have run");
		is(sql(q{SELECT count(*) FROM jobqueue_history WHERE queue = 'dead' AND state = 'dead' AND errors::text LIKE '%on purpose%'},
			db => 'three'), 1, "$when: what failed is dead");
		sql(q{TRUNCATE ran; SELECT jobqueue_purge('dead', 'dead')}, db => 'three');
	};
	$round->('before');
	sql('ALTER SCHEMA jq RENAME TO jq2', db => 'three');
	$round->('renamed');
	node()->stop('immediate');
	node()->start;
	$s = session(db => 'three');
	$round->('renamed, after a restart');
	like(sql_error('ALTER EXTENSION jobqueue SET SCHEMA public', db => 'three'), qr/does not support SET SCHEMA/, 'SET SCHEMA');
	$s->quit;
};

property 'what a role leaves behind when it is dropped' => sub {
	sql(q{CREATE ROLE leaver LOGIN; CREATE ROLE heir});
	sql(q{SELECT jobqueue_grant('leaver', 'use'); GRANT ALL ON ran TO leaver}, db => 'one');
	sql(q{SELECT jobqueue_pause('q')}, db => 'one');
	sql(q{SELECT jobqueue_enqueue('note', '{"what": "now"}', queue => 'q');
		SELECT jobqueue_enqueue('note', '{"what": "later"}', run_at => 'tomorrow');
		SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')}, db => 'one', role => 'leaver');
	# the rows are nobody's objects
	like(sql_error('DROP ROLE leaver'), qr/cannot be dropped/, 'rights are in the way of DROP ROLE');
	sql('REASSIGN OWNED BY leaver TO heir; DROP OWNED BY leaver', db => 'one');
	is(sql('SELECT count(*) FROM jobqueue_jobs', db => 'one'), 3, 'jobs are no objects: they stay');
	sql('REASSIGN OWNED BY leaver TO heir; DROP OWNED BY leaver');
	sql('DROP ROLE leaver');
	sql(q{SELECT jobqueue_resume('q'); SELECT jobqueue_reschedule_where('default', 'scheduled', NULL, 'now')}, db => 'one');
	wait_for(q{SELECT count(*) = 2 FROM jobqueue_history WHERE state = 'dead' AND errors::text ~ 'role with OID \d+ does not exist'}, 't', 'one');
	is(sql(q{SELECT count(jobqueue_complete(id)) FROM jobqueue_fetch('out')}, db => 'one'), 1, 'a consumer can still have those for it');
	is(sql(q{SELECT count(*) FROM ran WHERE what IN ('now', 'later')}, db => 'one'), 0, 'nothing ran');
	runs_jobs('one', 'jobs of others run');
};

paused_property 'a session that ends at the end of DROP DATABASE leaves another one that had the name as it was' => sub {
	my $s = session();
	new_database('named');
	arm('database-left');
	send_sql($s, 'DROP DATABASE IF EXISTS named');
	caught('database-left');
	sql('ALTER DATABASE named RENAME TO renamed');
	arm('database-done');
	release('database-left');
	my $pid = caught('database-done');
	sql("SELECT pg_terminate_backend($pid)");
	wait_gone($pid);
	eval { $s->quit };
	release('database-done');
	runs_jobs('renamed', 'jobs run');
	$JobqueueTest::tidy_db = 'one';
	sql('DROP DATABASE renamed');
};

property 'settings of the role and the database hold from the next job on' => sub {
	sql(q{CREATE FUNCTION setting(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO ran (what) SELECT current_setting('work_mem') || '/' || coalesce(current_setting('my.x', true), '') || '/' || current_user $$},
		db => 'one');
	sql(q{SELECT jobqueue_grant('a', 'use'); GRANT ALL ON ran TO a; GRANT USAGE ON SCHEMA public TO a}, db => 'one');
	my $run = sub {
		my $id = enqueue('public.setting', args => '{}', role => 'a', db => 'one');
		wait_drained(db => 'one');
		my $was = ran(db => 'one');
		forget(db => 'one');
		return $was;
	};
	forget(db => 'one');
	$run->();
	sql(q{ALTER ROLE a SET work_mem = '7MB'});
	is($run->(), '7MB//a', 'of the role');
	sql(q{ALTER DATABASE one SET my.x = 'd'; ALTER ROLE a IN DATABASE one SET work_mem = '8MB'; ALTER ROLE a SET role = 'heir'});
	is($run->(), '8MB/d/a', 'of the database, of the role in it; SET role is not for jobs');
	sql(q{ALTER ROLE a RESET ALL; ALTER ROLE a IN DATABASE one RESET ALL; ALTER DATABASE one RESET ALL});
	is($run->(), '4MB//a', 'and those of nobody');

	# its worker is warm, and known to the settings of before
	sql(q{BEGIN; ALTER ROLE a SET work_mem = '9MB'; PREPARE TRANSACTION 'settings'}, db => 'one');
	is($run->(), '4MB//a', 'prepared: not yet');
	sql(q{COMMIT PREPARED 'settings'}, db => 'one');
	is($run->(), '9MB//a', 'prepared and committed');
	sql('BEGIN; ALTER ROLE a RESET work_mem; '
		  . join('', map { "CREATE ROLE many$_; ALTER ROLE many$_ SET my.x = '1'; " } 1 .. 9)
		  . q{PREPARE TRANSACTION 'settings'}, db => 'one');
	sql(q{COMMIT PREPARED 'settings'}, db => 'one');
	is($run->(), '4MB//a', 'together with many others');
	sql(q{BEGIN; ALTER ROLE a SET work_mem = '10MB'; PREPARE TRANSACTION 'settings'}, db => 'one');
	node()->restart;
	is($run->(), '4MB//a', 'after a restart: not yet');
	sql(q{COMMIT PREPARED 'settings'}, db => 'one');
	is($run->(), '10MB//a', 'after a restart: committed');
	sql('ALTER ROLE a RESET ALL');
	sql("DROP ROLE many$_") foreach (1 .. 9);
};

property 'a database that takes connections again by COMMIT PREPARED has its jobs run' => sub {
	foreach my $restart (0, 1)
	{
		enqueue('note', what => "again $restart", run_at => 'tomorrow', db => 'one');
		sql('ALTER DATABASE one ALLOW_CONNECTIONS false');
		wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'one'});
		sql(q{BEGIN; ALTER DATABASE one ALLOW_CONNECTIONS true; PREPARE TRANSACTION 'open'});
		node()->restart if $restart;
		sql(q{COMMIT PREPARED 'open'});
		sql('UPDATE jobqueue_job SET run_at = NULL', db => 'one');
		wait_drained(db => 'one');
		is(ran(db => 'one'), "again $restart", 'it ran');
		forget(db => 'one');
	}
};

done_testing();
