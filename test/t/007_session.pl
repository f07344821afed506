# No job leaves anything to the next; a cancel hits the job it is meant for.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

# one worker, which every job of the file has in turn
new_node('session', conf => <<'END');
jobqueue.max_workers_per_role = 1
jobqueue.worker_idle_timeout = 1h
jobqueue.capture_settings = 'app.tenant, work_mem'
END

sql(<<'END');
CREATE ROLE other;
CREATE ROLE worker LOGIN;
GRANT other TO worker;
SELECT jobqueue_grant('worker', 'use');
CREATE SEQUENCE seq;
GRANT USAGE ON SEQUENCE seq TO PUBLIC;
CREATE TABLE state (
	n bigint GENERATED ALWAYS AS IDENTITY, pid int, job bigint, what text);
GRANT INSERT ON state TO PUBLIC;
CREATE FUNCTION look() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO state (pid, job, what) SELECT
		pg_backend_pid(), (jobqueue_current()).id,
		concat_ws(E'\n',
			'user ' || current_user || ' ' || session_user || ' ' || current_setting('role'),
			'settings ' || (SELECT string_agg(name || '=' || setting, ' ' ORDER BY name)
				FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'jobqueue%'),
			'path ' || current_setting('search_path'),
			'work_mem ' || current_setting('work_mem'),
			'zone ' || current_setting('TimeZone'),
			'app.x ' || coalesce(current_setting('app.x', true), ''),
			'isolation ' || current_setting('transaction_isolation') || ' '
				|| current_setting('transaction_read_only'),
			'temp ' || coalesce(to_regclass('pg_temp.leak')::text, 'none'),
			'temp function ' || coalesce(to_regproc('pg_temp.leak')::text, 'none'),
			'prepared ' || (SELECT count(*) FROM pg_prepared_statements),
			'locks ' || (SELECT count(*) FROM pg_locks
				WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
			'channels ' || (SELECT count(*) FROM pg_listening_channels()),
			'cursors ' || (SELECT count(*) FROM pg_cursors WHERE name = 'leak'));
END $$;
END

my $clean;

sub look
{
	my $id = enqueue('look', role => 'worker');
	wait_state($id, 'completed');
	wait_drained();
	return sql("SELECT what FROM state WHERE job = $id");
}

$clean = look();
my $pid = sql('SELECT pid FROM state');
note $clean;

my %dirt = (
	'SET' => q{SET work_mem = '77MB'; SET TimeZone = 'Asia/Tokyo'; SET search_path = pg_catalog},
	'set_config()' => q{SELECT set_config('app.x', 'leak', false), set_config('work_mem', '78MB', false)},
	'SET SESSION CHARACTERISTICS' => q{SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY},
	'SET ROLE' => q{SET ROLE other},
	'set_config(role)' => q{SELECT set_config('role', 'other', false)},
	'SET SESSION AUTHORIZATION' => q{SET SESSION AUTHORIZATION worker},
	'RESET ALL' => q{RESET ALL; RESET ROLE; RESET SESSION AUTHORIZATION},
	'a temporary table' => q{CREATE TEMP TABLE leak (x int); INSERT INTO leak VALUES (1)},
	'a temporary function' => q{CREATE FUNCTION pg_temp.leak() RETURNS int LANGUAGE sql AS 'SELECT 1'},
	'PREPARE' => q{PREPARE leak AS SELECT 1},
	'a session advisory lock' => q{SELECT pg_advisory_lock(5), pg_advisory_lock_shared(6)},
	'LISTEN' => q{LISTEN leak},
	'a cursor WITH HOLD' => q{DECLARE leak CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 10)},
	'a failure amid' => q{CREATE TEMP TABLE leak (x int); SET work_mem = '79MB'; PREPARE leak AS SELECT 1; SELECT pg_advisory_lock(5); SELECT 1 / 0},
	'DISCARD ALL' => q{DISCARD ALL});

foreach my $what (sort keys %dirt)
{
	property "$what leaves nothing to the next job" => sub {
		my $id = enqueue($dirt{$what}, role => 'worker', max_attempts => 1);

		wait_drained();
		note(sql("SELECT outcome, error FROM jobqueue_recent WHERE id = $id"));
		is(look(), $clean, 'clean');
		is(sql('SELECT count(DISTINCT pid) FROM state'), 1, 'in the same worker');
	};
}

property 'lastval() leaves nothing to the next job' => sub {
	sql(<<'END');
CREATE FUNCTION use_sequence() RETURNS bigint LANGUAGE plpgsql AS
	$$ BEGIN RETURN nextval('seq'); END $$;
CREATE FUNCTION last() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN lastval();
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RETURN 'none';
END $$;
END
	sql('CREATE TABLE numbered (n int GENERATED ALWAYS AS IDENTITY, x int); GRANT INSERT ON numbered TO PUBLIC');
	foreach my $use ('use_sequence', q{SELECT nextval('seq')}, 'INSERT INTO numbered (x) VALUES (1)', q{SELECT jobqueue_enqueue('look')})
	{
		enqueue($use, role => 'worker');
		my $id = enqueue('last', role => 'worker', keep => '1 hour');
		wait_state($id, 'completed');
		wait_drained();
		is(sql("SELECT result #>> '{}' FROM jobqueue_history WHERE id = $id"),
			'none', "after $use");
	}
};

property 'a seed of random() leaves nothing to the next job' => sub {
	foreach my $how ('SELECT setseed(0.5)', 'SET seed = 0.5', 'SET LOCAL seed = 0.5', q{SELECT set_config('seed', '0.5', false)})
	{
		my %seen;

		foreach (1 .. 2)
		{
			enqueue($how, role => 'worker');
			my $id = enqueue('SELECT random()', role => 'worker', keep => '1 hour');
			wait_state($id, 'completed');
			wait_drained();
			$seen{ sql("SELECT result FROM jobqueue_history WHERE id = $id") }++;
		}
		is(keys %seen, 2, "two numbers after $how");
	}
};

property 'a replication origin leaves nothing to the next job' => sub {
	sql(<<'END');
SELECT pg_replication_origin_create('origin');
GRANT EXECUTE ON FUNCTION pg_replication_origin_session_setup(text), pg_replication_origin_session_is_setup() TO worker;
END
	foreach my $then ('', '; SELECT 1 / 0')
	{
		enqueue("SELECT pg_replication_origin_session_setup('origin')$then", role => 'worker', max_attempts => 1);
		my $id = enqueue('SELECT pg_replication_origin_session_is_setup()', role => 'worker', keep => '1 hour');
		wait_state($id, 'completed');
		wait_drained();
		is(sql("SELECT result FROM jobqueue_history WHERE id = $id"), 'false', "gone$then");
	}
	sql(q{SELECT pg_replication_origin_drop('origin')});
};

property 'search_path of the enqueuer holds' => sub {
	sql(<<'END');
CREATE SCHEMA t1; CREATE SCHEMA t2;
CREATE TABLE t1.accounts (x int); CREATE TABLE t2.accounts (x int);
INSERT INTO t1.accounts VALUES (0); INSERT INTO t2.accounts VALUES (0);
GRANT USAGE ON SCHEMA t1, t2 TO worker; GRANT ALL ON t1.accounts, t2.accounts TO worker;
CREATE FUNCTION t1.who() RETURNS void LANGUAGE sql AS 'UPDATE t1.accounts SET x = x + 100';
CREATE FUNCTION t2.who() RETURNS void LANGUAGE sql AS 'UPDATE t2.accounts SET x = x + 100';
CREATE FUNCTION add() RETURNS void LANGUAGE plpgsql AS
	'BEGIN UPDATE accounts SET x = x + 10; END';
END
	foreach my $i (1 .. 5)
	{
		sql_as('worker', "SET search_path = t$_, public; "
			  . "SELECT jobqueue_enqueue('UPDATE accounts SET x = x + 1'), "
			  . "jobqueue_enqueue('add'), jobqueue_enqueue('who')")
		  foreach ($i % 2 + 1, 1);
	}
	wait_drained();
	is(sql('SELECT t1.accounts.x, t2.accounts.x FROM t1.accounts, t2.accounts'),
		'777|333', 'each job found its own table and function');
	is(look(), $clean, 'nothing is left of it');
};

property 'captured settings hold while the job runs' => sub {
	my @ids = map {
		sql_as('worker', "SET app.tenant = '$_'; SET work_mem = '${_}MB'; SELECT jobqueue_enqueue(
			'INSERT INTO ran (what) SELECT current_setting(''app.tenant'') || current_setting(''work_mem'')')")
	} (42, 43);
	my $without = enqueue(
		q{INSERT INTO ran (what) SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')},
		role => 'worker');

	wait_drained();
	is(ran(), '4242MB 4343MB none', 'each its own, and none without');
	is(look(), $clean, 'nothing is left of it');
	forget();
};

property 'a job may set what it likes for itself' => sub {
	enqueue(q{SET work_mem = '99MB'; CREATE TEMP TABLE leak AS SELECT current_setting('work_mem') AS x;
		INSERT INTO ran (what) SELECT x FROM leak}, role => 'worker');
	wait_drained();
	is(ran(), '99MB', 'it held');
	forget();
};

property 'a plan made for one search_path is not used for another' => sub {
	my $text = 'INSERT INTO ran (what) SELECT x FROM accounts';

	sql('UPDATE t1.accounts SET x = 1; UPDATE t2.accounts SET x = 2');
	sql_as('worker', "SET search_path = t$_, public; SELECT jobqueue_enqueue('$text')")
	  foreach (1, 1, 1, 2, 2, 2, 1);
	wait_drained();
	is(ran(), '1 1 1 2 2 2 1', 'each its own');
	forget();
};

# ---- cancels ---------------------------------------------------------------

# Job seven is cancelled when it has got so far; whatever becomes of it, job
# eight, which the same worker has next, is not hit.
foreach my $point ('worker-claimed', 'worker-before-delete',
	'worker-before-commit', 'worker-after-commit')
{
	paused_property "cancel for job 7 at $point never hits job 8" => sub {
		arm($point);
		my $seven = enqueue('note', what => 'seven', role => 'worker');
		caught($point);
		my $eight = enqueue(
			q{SELECT pg_sleep(0.3); INSERT INTO ran (what) VALUES ('eight')},
			role => 'worker', max_attempts => 1);
		my $did = sql("SELECT jobqueue_cancel($seven)");
		release($point);
		wait_drained();
		is(sql("SELECT outcome FROM jobqueue_recent WHERE id = $eight"),
			'completed', 'job 8 was not hit');
		is(sql("SELECT attempt FROM ran WHERE what = 'eight'"), 1, 'not even once');
		my $ran = sql("SELECT count(*) FROM ran WHERE what = 'seven'");
		my $history = sql("SELECT count(*) FROM jobqueue_history WHERE id = $seven AND state = 'cancelled'");
		is($ran + $history, 1, 'job 7 either ran or is cancelled');
		is($ran, 1, 'it had been committed') if $point eq 'worker-after-commit';
		forget();
		is(look(), $clean, 'the worker is clean');
	};
}

property 'a storm of cancels hits only what is meant' => sub {
	my $s = session(role => 'worker');

	sql(q{CREATE FUNCTION nap(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_sleep(0.002); INSERT INTO ran (what) VALUES (args->>'what'); END $$});
	my $first = sql('SELECT last_value + 1 FROM jobqueue_job_id_seq');
	$s->query_safe(
		q{SELECT count(jobqueue_enqueue('nap', jsonb_build_object('what', i % 2), max_attempts => 1, tags => ARRAY[(i % 2)::text]))
		FROM generate_series(1, 1000) i});
	# the odd ones, as they run
	$s->query_safe(q{DO $$
		DECLARE
			j bigint;
		BEGIN
			WHILE EXISTS (SELECT FROM jobqueue_running) LOOP
				PERFORM jobqueue_cancel(r.id) FROM jobqueue_running r WHERE r.id % 2 = 1;
				COMMIT;
			END LOOP;
		END $$});
	wait_drained();
	is( sql("SELECT count(*) FROM jobqueue_recent WHERE id % 2 = 0 AND outcome <> 'completed' AND id >= $first"),
		0,
		'no even one was hit');
	is(sql('SELECT count(*) FROM ran WHERE job % 2 = 0'), 500, 'they all ran');
	is( sql('SELECT count(*) FROM ran r JOIN jobqueue_history h ON h.id = r.job'),
		0,
		'none ran and is cancelled');
	is( sql('SELECT (SELECT count(*) FROM ran) + (SELECT count(*) FROM jobqueue_history WHERE id >= ' . $first . q{ AND state = 'cancelled')}),
		1000,
		'each one or the other');
	forget();
};

property 'all this in one worker' => sub {
	is(sql('SELECT count(DISTINCT pid) FROM state'), 1, 'it was never replaced');
	is(sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid"), 1, 'and lives');
};

done_testing();
