# Many databases on one server: each has its turn, and what is dropped leaves
# nothing behind.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('many_databases', conf => <<'END');
jobqueue.max_databases = 8
jobqueue.max_lanes = 16
jobqueue.max_ready_jobs = 1000
jobqueue.max_workers = 3
jobqueue.max_workers_per_role = 3
max_worker_processes = 9
jobqueue.worker_idle_timeout = 1h
autovacuum = off
fsync = off
END
sql('CREATE ROLE a LOGIN');

sub new_tenant
{
	my ($db) = @_;
	sql("CREATE DATABASE $db TEMPLATE tpl");
	sql('SELECT jobqueue_adopt()', db => $db);
}

sql('CREATE DATABASE tpl');
JobqueueTest::add_database('tpl');
sql(q{SELECT jobqueue_grant('a', 'use'); GRANT ALL ON ran TO a;
	CREATE FUNCTION handler(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state'}, db => 'tpl');
my $has_memory_use = node()->psql('postgres', <<'END') == 0;
CREATE FUNCTION memory_use() RETURNS text AS '$libdir/jobqueue', 'jq_memory_use' LANGUAGE C;
END

# Jobs that wait for everything that can be waited for, one that runs, one that
# is leased, and settings; then the database goes.
property 'a dropped database leaves nothing in memory' => sub {
	# an extra look: what others left
	my $empty = 'entries 0, lanes 0, queues 0, held 0, fetched 0, spilled keys 0, orders 0';
	my $rounds = $ENV{JQ_DATABASE_ROUNDS} // 20;

	foreach my $round (1 .. $rounds)
	{
		new_tenant('tenant');
		sql(<<'END', db => 'tenant');
SELECT jobqueue_configure('paused', max_running => 1); SELECT jobqueue_pause('paused');
SELECT jobqueue_configure('rate', rate => 1, rate_per => '1 day');
SELECT jobqueue_configure('keyrate', key_rate => 1, key_rate_per => '1 day');
SELECT jobqueue_configure('ordered', ordered => true, backoff_base => '1 hour');
SELECT jobqueue_enqueue(NULL, queue => 'out', key => 'leased') FROM generate_series(1, 5);
SELECT jobqueue_enqueue(NULL, queue => 'out2') FROM generate_series(1, 5);
END
		sql(q{SELECT id FROM jobqueue_fetch('out', lease => '1 day', wait => '10 s')}, db => 'tenant');
		sql(<<'END', db => 'tenant');
SELECT jobqueue_enqueue('note', queue => 'paused') FROM generate_series(1, 10);
SELECT jobqueue_enqueue('note', queue => 'rate', args => '{}') FROM generate_series(1, 10);
SELECT jobqueue_enqueue('note', queue => 'keyrate', key => 'r', args => '{}') FROM generate_series(1, 10);
SELECT jobqueue_enqueue('fail', queue => 'ordered', key => 'o', args => '{}') FROM generate_series(1, 10);
SELECT jobqueue_enqueue('note', args => '{}', key => 'leased') FROM generate_series(1, 10);
SELECT jobqueue_enqueue('hang', key => 'k');
SELECT jobqueue_enqueue('note', key => 'k', args => '{}') FROM generate_series(1, 100);
SELECT jobqueue_enqueue('note', args => '{}', after => ARRAY[max(id)]) FROM jobqueue_job;
SELECT jobqueue_enqueue('note', args => '{}', unique_key => 'u', run_at => 'tomorrow', expires_at => now() + '2 days');
SELECT jobqueue_schedule('s', '1 second', 'note', '{}');
SELECT jobqueue_start_service('svc', 'handler', '{}');
END
		wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'tenant' AND wait_event = 'PgSleep'});
		note sql('SELECT memory_use()') if $round == 1 && $has_memory_use;
		sql('DROP DATABASE tenant WITH (FORCE)');
		note sql('SELECT memory_use()') if $has_memory_use;
	}
	wait_for('SELECT memory_use()', $empty) if $has_memory_use;
	JobqueueTest::enqueue('note', what => 'still');
	wait_for(q{SELECT count(*) = 1 FROM ran});
	pass("$rounds databases have come and gone, with places for 8");
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'jobqueue worker'}), 1, 'no worker is left');
};

property 'databases without the extension take no place from those with it' => sub {
	sql("CREATE DATABASE plain$_") foreach 1 .. 12;
	new_tenant('last');
	sql(q{CREATE TABLE fired (x int); SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO fired VALUES (1)')}, db => 'last');
	wait_for('SELECT count(*) > 0 FROM fired', 't', 'last');
	sql(q{SELECT jobqueue_schedule_pause('s'); TRUNCATE fired; UPDATE jobqueue_schedule SET paused = false}, db => 'last');
	my $offset = -s node()->logfile;
	node()->restart;
	# nobody connects to it meanwhile but to look
	wait_for('SELECT count(*) > 0 FROM fired', 't', 'last');
	pass('its schedules fire after a restart, though it is the last of many');
	unlike(slurp_file(node()->logfile, $offset), qr/more databases than/, 'no warning');
	sql("DROP DATABASE plain$_") foreach 1 .. 12;
	sql('DROP DATABASE last');
};

property 'a database that found no place comes when there is one' => sub {
	my @dbs = map { "n$_" } 1 .. 7;

	set_conf('jobqueue.max_databases' => 40);
	node()->restart;
	new_tenant($_) foreach @dbs;
	sql(q{CREATE TABLE fired (x int); SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO fired VALUES (1)')}, db => 'n7');
	my $offset = -s node()->logfile;
	set_conf('jobqueue.max_databases' => undef);
	node()->restart;
	node()->wait_for_log(qr/more databases than jobqueue can look after/, $offset);
	sql('TRUNCATE fired', db => 'n7');
	sql('DROP DATABASE n1');
	wait_for('SELECT count(*) > 0 FROM fired', 't', 'n7');
	pass('when one of the others is dropped');
	sql("DROP DATABASE n$_") foreach 2 .. 7;
};

property 'each of more busy databases than schedulers has its turn' => sub {
	set_conf('jobqueue.max_databases' => 40);
	node()->restart;
	my @dbs = map { "t$_" } 1 .. 8;
	new_tenant($_) foreach @dbs;
	sql(q{CREATE TABLE fired (x int); SELECT jobqueue_schedule('s', '1 second', 'INSERT INTO fired VALUES (1)')}, db => $_) foreach @dbs;
	# each goes through more than one round of all
	foreach my $db (@dbs, @dbs)
	{
		my $n = sql('SELECT runs FROM jobqueue_schedules', db => $db);
		wait_for("SELECT runs > $n FROM jobqueue_schedules", 't', $db);
	}
	pass('all have had it, and again');
	sql("DROP DATABASE $_ WITH (FORCE)") foreach @dbs;
};

property 'more databases with jobs than processes, or lanes' => sub {
	my @dbs = map { "t$_" } 1 .. 12;
	new_tenant($_) foreach @dbs;
	enqueue('note', what => 'x', db => $_) foreach @dbs;
	enqueue('note', what => 'y', db => $_, role => 'a') foreach @dbs;
	wait_drained(db => $_) foreach @dbs;
	is(join(' ', map { sql('SELECT count(*) FROM ran', db => $_) } @dbs), join(' ', (2) x 12), 'all have run');
	# ready jobs whose database was not looked at since the start
	set_conf('jobqueue.enabled' => 'off');
	enqueue('note', what => 'z', db => $_) foreach @dbs;
	node()->restart;
	set_conf('jobqueue.enabled' => undef);
	foreach my $db (@dbs)
	{
		wait_for(q{SELECT count(*) = 3 FROM ran}, 't', $db);
	}
	pass('and those that were there when the server started');
	sql("DROP DATABASE $_") foreach @dbs;
	pass('dropped');
};

done_testing();
