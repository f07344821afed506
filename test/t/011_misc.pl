# Settings, limits, memory.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

property 'not preloaded: a clear error, no crash' => sub {
	new_node('notloaded', extension => 0);
	node()->stop;
	node()->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
	# settings of a library that is not there are unknown, not wrong
	node()->start;
	my $error = sql_error(q{CREATE EXTENSION jobqueue; SELECT jobqueue_enqueue('SELECT 1')});
	like($error, qr/shared_preload_libraries/, 'it names the setting');
	foreach my $query (
		'CREATE EXTENSION IF NOT EXISTS jobqueue',
		'SELECT * FROM jobqueue_status', 'SELECT * FROM jobqueue_jobs',
		'SELECT * FROM jobqueue_running', 'SELECT jobqueue_cancel(1)',
		'SELECT jobqueue_quiesce()', 'SELECT jobqueue_sweep()',
		q{INSERT INTO jobqueue_job (command) VALUES ('SELECT 1')})
	{
		sql_error($query);
	}
	is(sql('SELECT 1'), 1, 'the server lives');
	unlike(slurp_file(node()->logfile), qr/terminated by signal|TRAP/, 'and has not crashed');
	node()->stop;
};

new_node('misc');

property 'jobqueue.enabled = off: nothing runs' => sub {
	sql("ALTER SYSTEM SET jobqueue.enabled = off");
	node()->restart;
	enqueue('note', what => 'x');
	enqueue('note', what => 'due', run_at => 'yesterday');
	is(sql('SELECT count(*) FROM jobqueue_job'), 2, 'they are enqueued');
	# off means that not even a process is there to run them
	wait_for("SELECT count(*) = 0 FROM jobqueue_workers");
	is(ran(), '', 'not run');
	set_conf('jobqueue.enabled' => undef);
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"), 'due x', 'run when on again');
	forget();
};

property 'quiesce finishes what runs and starts nothing' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1);
	wait_at_gate(1);
	is(sql("SELECT jobqueue_quiesce('100 ms')"), 'f', 'something still runs');
	my $id = enqueue('note', what => 'x');
	enqueue('note', what => 'due', run_at => 'yesterday');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id"), 'ready', 'enqueued, not started');
	open_gate($gate);
	is(sql('SELECT jobqueue_quiesce()'), 't', 'now it has ended');
	is(ran(), 'gate', 'only it');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"), 'due gate x', 'after resume');
	forget();
};

property 'worker_max_jobs' => sub {
	set_conf('jobqueue.worker_max_jobs' => 10);
	sql('SELECT jobqueue_quiesce()');
	sql('SELECT pg_terminate_backend(pid) FROM jobqueue_workers');
	wait_for('SELECT count(*) = 0 FROM jobqueue_workers');
	sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "x"}', key => 'k')) FROM generate_series(1, 100)});
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*), max(attempt) FROM ran'), '100|1', 'all ran, uncharged');
	cmp_ok(sql('SELECT max(c) FROM (SELECT count(*) AS c FROM ran GROUP BY pid) x'),
		'<=', 10, 'none did more');
	set_conf('jobqueue.worker_max_jobs' => undef);
	forget();
};

property 'worker_idle_timeout' => sub {
	set_conf('jobqueue.worker_idle_timeout' => '1s');
	enqueue('note', what => 'x');
	wait_drained();
	wait_for('SELECT count(*) = 0 FROM jobqueue_workers');
	enqueue('note', what => 'y');
	wait_drained();
	is(ran(), 'x y', 'a new one comes');
	set_conf('jobqueue.worker_idle_timeout' => undef);
	forget();
};

property 'more roles than workers' => sub {
	set_conf('jobqueue.worker_idle_timeout' => '1h');
	sql(q{DO $$ BEGIN FOR i IN 1 .. 30 LOOP
		EXECUTE format('CREATE ROLE tenant%s', i);
		EXECUTE format('SELECT jobqueue_grant(%L, %L)', 'tenant' || i, 'use');
		END LOOP; END $$});
	foreach my $round (1 .. 2)
	{
		sql(join ';', map { ("SET ROLE tenant$_", q{SELECT jobqueue_enqueue('note', '{"what": "t"}') FROM generate_series(1, 3)}, 'RESET ROLE') } (1 .. 30));
		wait_drained();
	}
	is(sql('SELECT count(*), count(DISTINCT role), max(attempt) FROM ran'), '180|30|1', 'all ran');
	set_conf('jobqueue.worker_idle_timeout' => undef);
	forget();
};

property 'long jobs of one role leave a worker for others' => sub {
	my $gate = close_gate(1);
	sql(q{SELECT count(jobqueue_enqueue('gate', '{"gate": 1}')) FROM generate_series(1, 20)});
	wait_at_gate(7);
	sql(q{SET ROLE tenant1; SELECT jobqueue_enqueue('note', '{"what": "other"}')});
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'other'");
	wait_for('SELECT count(*) = 7 FROM jobqueue_running');
	pass('seven of eight');
	open_gate($gate);
	wait_drained();
	forget();
};

SKIP:
{
	skip 'no /proc', 3 unless -r '/proc/self/status';

	my $anon = sub {
		my $pid = sql("SELECT pid FROM jobqueue_workers WHERE jobs > 0 ORDER BY jobs DESC LIMIT 1");
		my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s*(\d+)/m;
		note "pid $pid: $kb kB";
		return ($pid, $kb);
	};

	# The first tenth fills caches; the rest must not grow it.
	my $flat = sub {
		my ($what, $count, $query) = @_;

		property "worker memory is flat: $what" => sub {
			sql('SELECT jobqueue_quiesce()');
			sql('SELECT pg_terminate_backend(pid) FROM jobqueue_workers');
			wait_for('SELECT count(*) = 0 FROM jobqueue_workers');
			sql('SELECT jobqueue_resume()');
			my $tenth = $count / 10;
			sql(sprintf $query, 1, $tenth);
			wait_drained();
			my ($pid, $before) = $anon->();
			sql(sprintf $query, $tenth + 1, $count);
			wait_drained();
			my ($pid2, $after) = $anon->();
			is($pid2, $pid, 'the same worker');
			cmp_ok($after - $before, '<', 3072, 'kB more');
			sql('DELETE FROM jobqueue_archive');
		};
	};

	set_conf(
		'jobqueue.max_workers_per_role' => 1,
		'jobqueue.worker_max_memory' => 0,
		'jobqueue.worker_idle_timeout' => '1h');
	$flat->('distinct texts', 200000,
		q{SELECT count(jobqueue_enqueue('SELECT ' || i || ', $1', '{"a": "bcd"}')) FROM generate_series(%d, %d) i});
	$flat->('functions, distinct keys and queues', 100000,
		q{SELECT count(jobqueue_enqueue('note', '{"a": "bcd"}', key => 'k' || i, queue => 'q' || i %% 50, tags => ARRAY['x'])) FROM generate_series(%d, %d) i});
	$flat->('failures', 10000,
		q{SELECT count(jobqueue_enqueue('SELECT 1 / 0 + ' || i, max_attempts => 1)) FROM generate_series(%d, %d) i});
	$flat->('session state', 5000,
		q{SELECT count(jobqueue_enqueue('SET work_mem = ''5MB''; CREATE TEMP TABLE t' || i || ' (x int); PREPARE p AS SELECT ' || i)) FROM generate_series(%d, %d) i});
	set_conf(
		'jobqueue.max_workers_per_role' => undef,
		'jobqueue.worker_max_memory' => undef,
		'jobqueue.worker_idle_timeout' => undef);
	sql('TRUNCATE ran');
}

property 'more queues than lanes' => sub {
	node()->append_conf('postgresql.conf', "jobqueue.max_lanes = 8\n");
	node()->restart;
	node()->append_conf('postgresql.conf', "jobqueue.max_lanes = 1024\n");
	foreach my $round (1 .. 2)
	{
		sql(q{SELECT count(jobqueue_enqueue('note', '{"what": "q"}', queue => 'queue' || i % 50)) FROM generate_series(1, 500) i});
		wait_drained();
	}
	is(sql('SELECT count(*), max(attempt) FROM ran'), '1000|1', 'all ran');
	forget();
};

property 'no worker slot left: it goes on with what there is and says so' => sub {
	node()->append_conf('postgresql.conf', "max_worker_processes = 4\n");
	my $offset = -s node()->logfile;
	node()->restart;
	my $gate = close_gate(1);
	sql(q{SELECT count(jobqueue_enqueue('gate', '{"gate": 1}')) FROM generate_series(1, 100)});
	ok(node()->wait_for_log(qr/max_worker_processes/, $offset), 'the log names the setting');
	open_gate($gate);
	wait_drained();
	is(sql('SELECT count(*), max(attempt) FROM ran'), '100|1', 'all ran');
	forget();
	node()->append_conf('postgresql.conf', "max_worker_processes = 16\n");
	node()->restart;
};

property 'a large argument and a long command' => sub {
	sql(q{SELECT jobqueue_enqueue('INSERT INTO ran (what) SELECT length($1->>''x'')', jsonb_build_object('x', repeat('x', 900000)))});
	sql(q{SELECT jobqueue_enqueue('INSERT INTO ran (what) SELECT length(''' || repeat('y', 500000) || ''')') FROM generate_series(1, 20)});
	wait_drained();
	is(sql("SELECT string_agg(what || ':' || count, ' ' ORDER BY what) FROM (SELECT what, count(*) FROM ran GROUP BY 1) r"),
		'500000:20 900000:1', 'they arrive');
	like(sql_error(q{SELECT jobqueue_enqueue('note', jsonb_build_object('x', repeat('x', 2000000)))}),
		qr/max_args_size/, 'too large');
	forget();
};

property 'the server has not crashed in all this' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

done_testing();
