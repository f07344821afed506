# Several databases of one server, and what is done to whole databases.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('databases', extension => 0, conf => <<'END');
jobqueue.worker_idle_timeout = 1h
autovacuum = off
END
sql('CREATE ROLE owner CREATEDB LOGIN; CREATE ROLE nobody_special LOGIN');

# a database with the extension in a schema of its own and idle workers of two
# roles in it
sub new_database
{
	my ($db) = @_;

	sql("CREATE DATABASE $db OWNER owner");
	sql("ALTER DATABASE $db SET search_path = public, jq");
	sql('CREATE SCHEMA jq; CREATE EXTENSION jobqueue SCHEMA jq;', db => $db);
	sql(<<'END', db => $db);
SELECT jobqueue_grant('owner', 'use');
GRANT USAGE ON SCHEMA jq TO PUBLIC;
CREATE TABLE ran (n bigint GENERATED ALWAYS AS IDENTITY, what text, job bigint DEFAULT (jobqueue_current()).id);
GRANT ALL ON ran TO PUBLIC;
CREATE FUNCTION note(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO ran (what) VALUES (args->>'what') $$;
CREATE FUNCTION gate(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared((args->>'gate')::bigint);
	INSERT INTO ran (what) VALUES ('gate');
END $$;
END
	warm_up($db);
}

sub warm_up
{
	my ($db) = @_;

	enqueue('note', what => 'warm', db => $db);
	enqueue('note', what => 'warm', db => $db, role => 'owner');
	wait_for(q{SELECT count(*) = 2 FROM ran WHERE what = 'warm'}, 't', $db);
	sql(q{DELETE FROM ran WHERE what = 'warm'}, db => $db);
	wait_for("SELECT count(DISTINCT role) = 2 FROM jobqueue_workers WHERE state = 'idle'", 't', $db);
}

# of ours; a scheduler comes and goes by itself
sub our_processes
{
	my ($where) = @_;
	return sql("SELECT coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') FROM pg_stat_activity
		WHERE backend_type LIKE 'jobqueue%' " . ($where // ''));
}

property 'two databases at once, the extension in any schema' => sub {
	new_database('one');
	new_database('two');
	$JobqueueTest::tidy_db = 'one';
	my $gate = close_gate(1, db => 'one');
	enqueue('gate', gate => 1, key => 'x', db => 'one');
	wait_at_gate(1);
	enqueue('note', what => 'two', key => 'x', db => 'two');
	wait_drained(db => 'two');
	is(ran(db => 'two'), 'two', 'a key of one is not a key of the other');
	is(sql('SELECT count(*) FROM jobqueue_keys', db => 'two'), 0, 'nor seen there');
	is(sql('SELECT count(*) FROM jobqueue_keys', db => 'one'), 1, 'but here');
	open_gate($gate);
	wait_drained(db => 'one');
	my @h = map {
		start_pgbench(
			q{SELECT jobqueue_enqueue('note', '{"what": "b"}', key => 'k' || :client_id)},
			clients => 2, transactions => 1000, db => $_)
	} ('one', 'two');
	$_->finish foreach @h;
	foreach my $db ('one', 'two')
	{
		wait_drained(db => $db);
		is(sql(q{SELECT count(*), count(DISTINCT job) FROM ran WHERE what = 'b'}, db => $db),
			'2000|2000', "all jobs of $db ran once");
		forget(db => $db);
	}
};

property 'the schema is renamed' => sub {
	my $s = session(db => 'two');
	my $first = enqueue('note', what => 'a', db => 'two');

	enqueue('note', what => 'b', after => "{$first}", db => 'two');
	wait_drained(db => 'two');
	sql(q{CREATE FUNCTION keep(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT message'}, db => 'two');
	$s->query_safe(q{SELECT jobqueue_start_service('s', 'keep', '{}'); SELECT jobqueue_send('s', '1')});
	$s->query_safe('ALTER SCHEMA jq RENAME TO qj; SET search_path = public, qj');
	$s->query_safe(q{SELECT jobqueue_send('s', '2')});
	$first = $s->query_safe(q{SELECT jobqueue_enqueue('INSERT INTO ran (what) VALUES (1)')});
	$s->query_safe(qq{SELECT jobqueue_enqueue('INSERT INTO ran (what) VALUES (2)', after => '{$first}')});
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = '2'", 't', 'two');
	wait_for("SELECT count(*) = 0 FROM qj.jobqueue_job", 't', 'two');
	is($s->query_safe(q{SELECT jobqueue_service_state('s')}), '2', 'a service has its messages');
	is($s->query_safe(q{SELECT jobqueue_stop_service('s')}), 't', 'and ends');
	forget(db => 'two');
	$s->query_safe('ALTER SCHEMA qj RENAME TO jq; RESET search_path');
	warm_up('two');
	$s->quit;
	pass('jobs run before and after');
};

property 'an unprivileged DROP DATABASE disturbs nobody' => sub {
	# those of the last job may have made room for others
	warm_up('one');
	my $before = our_processes("AND datname = 'one' AND backend_type = 'jobqueue worker'");

	isnt($before, '', 'there are workers');
	foreach my $query ('DROP DATABASE one', 'DROP DATABASE one WITH (FORCE)',
		'ALTER DATABASE one RENAME TO uno', 'CREATE DATABASE uno TEMPLATE one')
	{
		like(sql_error($query, role => 'nobody_special'), qr/ERROR/, $query);
	}
	like(sql_error('DROP DATABASE no_such_database'), qr/does not exist/, 'an error');
	is(our_processes('AND pid IN (' . ($before =~ s/ /, /gr) . ')'), $before, 'they are still there');
	enqueue('note', what => 'x', db => 'one');
	wait_drained(db => 'one');
	forget(db => 'one');
};

property 'CREATE DATABASE TEMPLATE beside idle workers; the clone is held' => sub {
	enqueue('note', what => 'later', run_at => 'tomorrow', db => 'one');
	warm_up('one');
	sql('CREATE DATABASE clone TEMPLATE one', role => 'owner');
	sql('ALTER DATABASE clone SET search_path = public, jq');
	is(sql('SELECT state FROM jobqueue_jobs', db => 'clone'), 'held', 'jobs of the clone are held');
	is(sql('SELECT state FROM jobqueue_jobs', db => 'one'), 'scheduled', 'those of the original are not');
	sql("UPDATE jobqueue_job SET run_at = NULL", db => 'clone');
	is(sql('SELECT jobqueue_adopt()', db => 'clone'), 1, 'adopted');
	wait_for('SELECT count(*) = 1 FROM ran', 't', 'clone');
	enqueue('note', what => 'new', db => 'clone');
	wait_drained(db => 'clone');
	is(ran(db => 'clone'), 'later new', 'they run');
	is(ran(db => 'one'), '', 'there only');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job', db => 'one');
};

property 'ALTER DATABASE RENAME beside idle workers' => sub {
	warm_up('clone');
	sql('ALTER DATABASE clone RENAME TO renamed', role => 'owner')
	  if sql_error('ALTER DATABASE clone OWNER TO owner') eq '';
	forget(db => 'renamed');
	enqueue('note', what => 'after', db => 'renamed');
	wait_drained(db => 'renamed');
	is(ran(db => 'renamed'), 'after', 'jobs run after it');
};

property 'ALTER DATABASE SET TABLESPACE beside idle workers' => sub {
	warm_up('renamed');
	is(sql_error('ALTER DATABASE renamed SET TABLESPACE pg_default'), '', 'done');
	forget(db => 'renamed');
	enqueue('note', what => 'after', db => 'renamed');
	wait_drained(db => 'renamed');
	is(ran(db => 'renamed'), 'after', 'jobs run after it');
};

property 'DROP DATABASE beside idle workers' => sub {
	warm_up('renamed');
	is(sql_error('DROP DATABASE renamed', role => 'owner'), '', 'dropped');
	sql('CREATE DATABASE renamed');
	sql('DROP DATABASE renamed');
};

property 'DROP DATABASE beside a running job' => sub {
	new_database('three');
	my $gate = close_gate(1, db => 'three');
	enqueue('gate', gate => 1, db => 'three');
	wait_at_gate(1);
	open_gate($gate);
	enqueue('SELECT pg_sleep(3600)', db => 'three');
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	$gate->quit;
	like(sql_error('DROP DATABASE three'), qr/being accessed/, 'it counts as a session');
	is(sql('SELECT count(*) FROM jobqueue_running', db => 'three'), 1, 'and is not disturbed');
	is(sql_error('DROP DATABASE three WITH (FORCE)'), '', 'WITH (FORCE) ends it');
	enqueue('note', what => 'x', db => 'one');
	wait_drained(db => 'one');
	pass('the other databases go on');
};

property 'DROP and CREATE EXTENSION beside idle workers' => sub {
	warm_up('two');
	enqueue('note', what => 'never', run_at => 'tomorrow', db => 'two');
	# what a consumer has goes, too, and with it the key
	sql("SELECT jobqueue_enqueue(NULL, queue => 'leased', key => 'leased')", db => 'two');
	is(sql("SELECT count(*) FROM jobqueue_fetch('leased', wait => '1 min', lease => '1 hour')", db => 'two'), 1, 'leased');
	sql('DROP EXTENSION jobqueue CASCADE', db => 'two');
	is(sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'jobqueue%'", db => 'two'),
		0, 'nothing is left');
	like(sql_error("SELECT jobqueue_enqueue('note')", db => 'two'), qr/does not exist/, 'gone');
	sql('CREATE EXTENSION jobqueue SCHEMA jq', db => 'two');
	sql("SELECT jobqueue_grant('owner', 'use')", db => 'two');
	enqueue('note', what => 'again', key => 'leased', db => 'two');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'again'}, 't', 'two');
	wait_drained(db => 'two');
	pass('jobs run again');
};

property 'DROP EXTENSION is rolled back' => sub {
	sql('BEGIN; DROP EXTENSION jobqueue CASCADE; ROLLBACK', db => 'one');
	enqueue('note', what => 'x', db => 'one');
	wait_drained(db => 'one');
	pass('jobs run');
};

property 'CREATE EXTENSION and the first job in one transaction' => sub {
	sql('CREATE DATABASE fresh');
	sql("BEGIN; CREATE EXTENSION jobqueue; CREATE TABLE t (x int);
		SELECT jobqueue_enqueue('INSERT INTO t VALUES (1)'); COMMIT", db => 'fresh');
	wait_for('SELECT count(*) = 1 FROM t', 't', 'fresh');
	sql("BEGIN; DROP EXTENSION jobqueue; CREATE EXTENSION jobqueue;
		SELECT jobqueue_enqueue('INSERT INTO t VALUES (2)'); COMMIT", db => 'fresh');
	wait_for('SELECT count(*) = 2 FROM t', 't', 'fresh');
	sql('BEGIN; DROP EXTENSION jobqueue; CREATE EXTENSION jobqueue; ROLLBACK', db => 'fresh');
	sql("SELECT jobqueue_enqueue('INSERT INTO t VALUES (3)')", db => 'fresh');
	wait_for('SELECT count(*) = 3 FROM t', 't', 'fresh');
	pass('they ran');
};

property 'the extension in a template database' => sub {
	sql('CREATE EXTENSION jobqueue', db => 'template1');
	sql('CREATE DATABASE from_template');
	sql('CREATE DATABASE from_template2');
	sql('CREATE TABLE t (x int)', db => 'from_template');
	sql('SELECT jobqueue_adopt()', db => 'from_template');
	sql("SELECT jobqueue_enqueue('INSERT INTO t VALUES (1)')", db => 'from_template');
	wait_for('SELECT count(*) = 1 FROM t', 't', 'from_template');
	pass('jobs run in what was made from it');
	node()->restart;
	sql('CREATE DATABASE from_template3');
	pass('nobody of ours stays in template1');
	sql('DROP EXTENSION jobqueue', db => 'template1');
	sql("DROP DATABASE from_template$_") foreach ('', 2, 3);
	sql('DROP DATABASE fresh');
};

# user and system ticks, and how often it slept
sub activity
{
	my ($pid) = @_;
	my ($stat, $status) = map { slurp_file("/proc/$pid/$_") } ('stat', 'status');
	my @fields = split ' ', $stat =~ s/^.*\) //r;
	my ($switches) = $status =~ /^voluntary_ctxt_switches:\s*(\d+)/m;

	return ($fields[11] + $fields[12], $switches);
}

SKIP:
{
	skip 'no /proc', 1 unless -r '/proc/self/stat';

	property 'idle for 10 s: no transaction, no CPU from us' => sub {
		enqueue('note', what => 'tomorrow', run_at => 'tomorrow', db => 'one');
		warm_up('one');
		# the scheduler goes when it has had nothing to do for a while
		wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue scheduler%'");
		my @pids = split ' ', our_processes();
		cmp_ok(scalar @pids, '>=', 3, 'a launcher and two workers');
		# until what was done before is in the statistics; sessions report when
		# they end
		wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'");
		my $count = q{SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname <> 'postgres'};
		my $done = '';
		for (;;)
		{
			my $now = sql($count);
			last if $now eq $done;
			$done = $now;
			select undef, undef, undef, 1.5;
		}
		my $xid = sql('SELECT pg_snapshot_xmax(pg_current_snapshot())');
		my %before = map { $_ => [ activity($_) ] } @pids;
		# the one place where time itself is the matter
		sleep 10;
		foreach my $pid (@pids)
		{
			my ($cpu, $switches) = activity($pid);
			my $what = sql("SELECT backend_type FROM pg_stat_activity WHERE pid = $pid");

			is($cpu, $before{$pid}[0], "$what: no CPU");
			cmp_ok($switches - $before{$pid}[1], '<=', 2, "$what: no wake-ups");
		}
		is(sql('SELECT pg_snapshot_xmax(pg_current_snapshot())'), $xid, 'no transaction id');
		is(sql($count), $done, 'no transaction');
		is(our_processes(), join(' ', @pids), 'no process came or went');
	};
}

done_testing();
