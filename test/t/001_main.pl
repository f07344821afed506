# The main path: enqueue in a transaction, run after it, end well or badly.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('main');

# ---- enqueue and the end of its transaction --------------------------------

property 'commit runs a job once' => sub {
	my $id = enqueue('note', what => 'one');

	wait_state($id, 'completed');
	wait_drained();
	is(ran(), 'one', 'the job ran');
	is(sql('SELECT (job, attempt) FROM ran'), "($id,1)",
		'it knows its id and attempt');
	forget();
};

property 'rollback publishes nothing' => sub {
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "no"}');
		SELECT count(jobqueue_enqueue('note', '{"what": "no"}'))
		FROM generate_series(1, 1000); ROLLBACK});
	wait_quiet();
	is(ran(), '', 'nothing ran');
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'no row');
	memory_empties('memory knows of nothing');
};

property 'rollback to savepoint publishes nothing, commit exactly what remained'
  => sub {
	sql(<<'END');
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "a"}', priority => 1);
SAVEPOINT s;
SELECT jobqueue_enqueue('note', '{"what": "no"}');
SAVEPOINT s2;
SELECT jobqueue_enqueue('note', '{"what": "no"}');
RELEASE s2;
ROLLBACK TO s;
SELECT jobqueue_enqueue('note', '{"what": "b"}', priority => 1);
SAVEPOINT t;
SELECT jobqueue_enqueue('note', '{"what": "c"}', priority => 1);
SAVEPOINT t2;
SELECT jobqueue_enqueue('note', '{"what": "no"}');
ROLLBACK TO t2;
RELEASE t;
DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		BEGIN
			PERFORM jobqueue_enqueue('note', '{"what": "d"}', priority => 1);
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'x';
			END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END $$;
COMMIT;
END
	wait_drained();
	is( sql('SELECT what, count(*) FROM ran GROUP BY 1 ORDER BY 1'),
		"a|1\nb|1\nc|1\nd|50",
		'what was kept ran once, nothing else did');
	forget();
  };

property 'nothing runs before its transaction commits' => sub {
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "late"}')});
	wait_quiet();
	is(ran(), '', 'not while the transaction is open');
	$s->query_safe('COMMIT');
	wait_drained();
	is(ran(), 'late', 'after it');
	forget();
};

property 'nothing runs before the locks of its transaction are gone' => sub {
	sql(<<'END');
CREATE TABLE locked (x int);
INSERT INTO locked SELECT generate_series(1, 100);
CREATE FUNCTION meet_locks(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM locked WHERE x = (args->>'i')::int FOR UPDATE NOWAIT;
	INSERT INTO ran (what) VALUES (pg_try_advisory_xact_lock((args->>'i')::int));
END $$;
END
	my $s = session();

	# in one session, so that the workers are warm and quick
	foreach my $i (1 .. 100)
	{
		$s->query_safe(
			"BEGIN; UPDATE locked SET x = x WHERE x = $i; SELECT pg_advisory_xact_lock($i);
			SELECT jobqueue_enqueue('meet_locks', '{\"i\": $i}', max_attempts => 1); COMMIT");
	}
	wait_drained();
	is(sql('SELECT what, count(*) FROM ran GROUP BY 1'),
		'true|100', 'all jobs met a free row and lock');
	forget();
	sql('DROP TABLE locked');
};

paused_property 'a committed job is visible before it is published' => sub {
	my $s = session();

	arm('enqueue-before-publish');
	send_sql($s,
		q{BEGIN; SELECT pg_advisory_xact_lock(77); SELECT jobqueue_enqueue('note', '{"what": "p"}'); COMMIT}
	);
	my $pid = caught('enqueue-before-publish');
	is( sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype = 'advisory'"),
		0,
		'its locks are gone');
	is(sql('SELECT count(*) FROM jobqueue_job'), 1, 'its row is there');
	is(ran(), '', 'it has not run');
	release('enqueue-before-publish');
	wait_drained();
	is(ran(), 'p', 'it runs when published');
	forget();
};

property 'a function replaced in the same transaction runs in its new form' =>
  sub {
	my $s = session();

	foreach my $i (1 .. 50)
	{
		$s->query_safe(
			"BEGIN; CREATE OR REPLACE FUNCTION changing() RETURNS void LANGUAGE plpgsql AS
			'BEGIN INSERT INTO ran (what) VALUES ($i); END';
			SELECT jobqueue_enqueue('changing', key => 'changing'); COMMIT");
	}
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 50, 'all ran');
	# never in an older form; a newer one may have come meanwhile
	is( sql('SELECT count(*) FROM (SELECT what::int < row_number() OVER (ORDER BY job) AS old FROM ran) x WHERE old'),
		0,
		'each in the form that was enqueued with it, or a newer one');
	forget();
  };

property 'priority, then id, within a queue' => sub {
	sql('CREATE ROLE orderly LOGIN');
	sql("SELECT jobqueue_grant('orderly', 'use')");
	set_conf('jobqueue.max_workers_per_role' => 1);
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'orderly', priority => -100);
	wait_at_gate(1);

	# in one transaction, in several, and with the extremes
	sql_as('orderly',
		q{SELECT jobqueue_enqueue('note', format('{"what": "%s"}', i % 5)::jsonb, priority => i % 5 - 2)
		FROM generate_series(1, 50) i});
	foreach my $i (-32768, 32767, 0, -1, 1, 0)
	{
		enqueue('note', what => 'x', role => 'orderly', priority => $i);
	}
	my $expected = sql(
		'SELECT string_agg(id::text, chr(32) ORDER BY priority, id) FROM jobqueue_job WHERE priority <> -100'
	);
	open_gate($gate);
	wait_drained();
	is( sql("SELECT string_agg(job::text, ' ' ORDER BY n) FROM ran WHERE what <> 'gate'"),
		$expected,
		'in order');
	set_conf('jobqueue.max_workers_per_role' => undef);
	forget();
};

# ---- due times and failures ------------------------------------------------

property 'a delayed job runs when it is due, not before' => sub {
	my ($begin) = split /\|/, sql(q{SELECT now(), jobqueue_enqueue('note', format('{"what": "%s"}', ms)::jsonb,
			run_at => now() + ms * interval '1 ms')
		FROM unnest(ARRAY[1500, 700, 1100]) ms});
	my $far = enqueue('note', what => 'far', run_at => 'tomorrow');

	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $far"),
		'scheduled', 'state of a job that waits for its time');
	wait_for('SELECT count(*) = 3 FROM ran');
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what::int) FROM ran}),
		'700 1100 1500', 'each once');
	is( sql("SELECT count(*) FROM ran WHERE at < '$begin'::timestamptz + what::int * interval '1 ms'"),
		0,
		'none early');
	ok(sql("SELECT jobqueue_cancel($far)") eq 't', 'cancel one');
	wait_drained();
	forget();
};

property 'a run_at in the past is now' => sub {
	enqueue('note', what => 'past', run_at => 'yesterday');
	wait_drained();
	is(ran(), 'past', 'it ran');
	forget();
};

property 'a failed job is rolled back and tried again with backoff' => sub {
	sql(<<'END');
CREATE SEQUENCE tries;
CREATE FUNCTION third_time_lucky(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('try');
	PERFORM pg_advisory_xact_lock_shared((args->>'gate')::bigint);
	IF nextval('tries') < 3 THEN
		RAISE EXCEPTION 'not yet';
	END IF;
END $$;
END
	my $gate = close_gate(6);
	my $id = enqueue('third_time_lucky', gate => 6, queue => 'backoff');

	# paused while it runs: there is time to look at it after its failure
	wait_at_gate(1);
	sql("SELECT jobqueue_pause('backoff')");
	my $before = sql('SELECT clock_timestamp()');
	open_gate($gate);
	wait_for("SELECT attempt = 1 FROM jobqueue_jobs WHERE id = $id");
	is(ran(), '', 'nothing of the first attempt remains');
	like(
		sql("SELECT errors FROM jobqueue_jobs WHERE id = $id"),
		qr/not yet/, 'its error is kept');
	# when it failed is between the two
	ok( sql("SELECT run_at >= timestamptz '$before' + interval '0.8 s' AND run_at <= (errors->0->>'at')::timestamptz + interval '1.3 s' FROM jobqueue_job WHERE id = $id")
		  eq 't',
		'about a second to wait');
	sql("SELECT jobqueue_resume('backoff')");
	wait_drained();
	is(sql('SELECT what, attempt FROM ran'), 'try|3', 'the third succeeded');
	ok( sql("SELECT max(started_at) - min(started_at) > interval '2.3 s' FROM jobqueue_recent WHERE id = $id")
		  eq 't',
		'1 s, then 2 s, less 20 % at most');
	sql("SELECT jobqueue_drop_queue('backoff')");
	forget();
};

property 'after max_attempts a job is dead, and jobqueue_retry starts it anew'
  => sub {
	my $id = enqueue('fail', what => 'x', max_attempts => 1);

	wait_state($id, 'dead');
	wait_drained();
	is(ran(), '', 'rolled back');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/failed on purpose/, 'the error is in the history');
	sql('CREATE OR REPLACE FUNCTION fail(args jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO ran (what) VALUES (args->>$k$what$k$) $$');
	is(sql("SELECT jobqueue_retry($id)"), 't', 'retry says it did something');
	wait_state($id, 'completed');
	is(sql('SELECT what, attempt FROM ran'), 'x|1', 'with attempts reset');
	is(sql("SELECT count(*) FROM jobqueue_history WHERE id = $id"),
		0, 'no longer in the history');
	is(sql("SELECT jobqueue_retry($id)"), 'f', 'nothing left to retry');
	sql('CREATE OR REPLACE FUNCTION fail(args jsonb) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION $e$failed on purpose$e$; END $$');
	forget();
  };

property 'max_attempts counts attempts' => sub {
	my $id = enqueue('fail', max_attempts => 2);

	wait_state($id, 'dead');
	is(sql("SELECT attempt, jsonb_array_length(errors) FROM jobqueue_history WHERE id = $id"),
		'2|2', 'two attempts, two errors');
};

property 'an error at commit is an error of the job' => sub {
	sql(<<'END');
CREATE TABLE deferred (x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO deferred VALUES (1);
END
	my $id = enqueue('INSERT INTO deferred VALUES (1)', max_attempts => 1);

	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/duplicate key/, 'it says so');
	is(sql('SELECT count(*) FROM deferred'), 1, 'rolled back');
	sql('DROP TABLE deferred');
};

property 'serialization failures are rerun at once, uncharged' => sub {
	sql(<<'END');
CREATE SEQUENCE serial_tries;
CREATE FUNCTION serialization() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('s');
	IF nextval('serial_tries') < 3 THEN
		RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure';
	END IF;
END $$;
END
	enqueue('serialization', max_attempts => 1);
	wait_drained();
	is(sql('SELECT what, attempt FROM ran'), 's|1', 'it ran in the end');
	forget();
};

property 'an expired job is not started' => sub {
	my $gate = close_gate(2);
	enqueue('gate', gate => 2, key => 'e');
	wait_at_gate(1);
	my $id = sql(q{SELECT jobqueue_enqueue('note', '{"what": "expired"}', key => 'e',
		expires_at => clock_timestamp() + interval '0.3 s')});
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE id = $id AND expires_at > clock_timestamp()");
	open_gate($gate);
	wait_drained();
	is(ran(), 'gate', 'it did not run');
	is(sql("SELECT state, reason FROM jobqueue_history WHERE id = $id"),
		'cancelled|expired', 'the history says why');
	forget();
};

# ---- cancel and timeout ----------------------------------------------------

property 'cancel of a waiting job' => sub {
	my $gate = close_gate(3);
	enqueue('gate', gate => 3, key => 'c');
	wait_at_gate(1);
	my $blocked = enqueue('note', what => 'blocked', key => 'c');
	my $later = enqueue('note', what => 'later', run_at => 'tomorrow');

	wait_state($blocked, 'blocked');
	foreach my $id ($blocked, $later)
	{
		is(sql("SELECT jobqueue_cancel($id)"), 't', 'says it did something');
		is(sql("SELECT state FROM jobqueue_history WHERE id = $id"),
			'cancelled', 'it is in the history');
		is(sql("SELECT jobqueue_cancel($id)"), 'f', 'the second says it did not');
	}
	is(sql('SELECT jobqueue_cancel(0)'), 'f', 'nor is there a job 0');
	open_gate($gate);
	wait_drained();
	is(ran(), 'gate', 'neither ran');
	is(sql("SELECT jobqueue_retry($blocked)"), 't', 'one can be retried');
	wait_drained();
	is(ran(), 'gate blocked', 'and runs');
	forget();
};

property 'cancel of a running job' => sub {
	my $id = enqueue(
		q{INSERT INTO ran (what) VALUES ('never'); SELECT pg_sleep(3600)});

	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id"), 'running', 'it runs');
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'says it did something');
	wait_drained();
	is(sql("SELECT state FROM jobqueue_history WHERE id = $id"),
		'cancelled', 'it is in the history');
	is(ran(), '', 'rolled back');
};

property 'a hung job ends at its timeout' => sub {
	my $id = enqueue('hang', timeout => '200 ms', max_attempts => 1);

	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/time/, 'the error says so');
	wait_drained();
};

sql(<<'END');
CREATE FUNCTION stubborn() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		BEGIN
			PERFORM pg_sleep(3600);
		EXCEPTION WHEN query_canceled THEN
			NULL;
		END;
	END LOOP;
END $$;
END

property 'a job that swallows the cancel of its timeout ends too' => sub {
	my $id = enqueue('stubborn',
		timeout => '200 ms',
		max_attempts => 1,
		key => 'stubborn');

	wait_state($id, 'dead');
	wait_drained();
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	pass('its key is free');
};

property 'a job that swallows a cancel ends too' => sub {
	my $id = enqueue('stubborn', key => 'stubborn');

	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	is(sql("SELECT jobqueue_cancel($id)"), 't', 'cancel');
	wait_state($id, 'cancelled');
	wait_drained();
};

property 'a stray cancel is not charged' => sub {
	my $gate = close_gate(4);
	enqueue('gate', gate => 4, max_attempts => 1);
	wait_at_gate(1);
	my ($pid, $since) = split /\|/, sql('SELECT pid, started_at FROM jobqueue_running');
	is(sql("SELECT pg_cancel_backend($pid)"), 't', 'cancel its worker');
	wait_for("SELECT count(*) = 1 FROM jobqueue_running WHERE started_at > '$since'");
	wait_at_gate(1);
	open_gate($gate);
	wait_drained();
	is(sql('SELECT what, attempt FROM ran'), 'gate|1', 'it ran again');
	forget();
};

property 'an idle worker survives a cancel' => sub {
	enqueue('note', what => 'x');
	wait_drained();
	wait_for("SELECT count(*) > 0 FROM jobqueue_workers WHERE state = 'idle'");
	sql('SELECT pg_cancel_backend(pid) FROM jobqueue_workers');
	enqueue('note', what => 'y') foreach (1 .. 3);
	wait_drained();
	is(ran(), 'x y y y', 'the queue goes on');
	is(sql('SELECT count(*) FROM ran WHERE attempt <> 1'), 0, 'nothing was charged');
	forget();
};

property 'pg_terminate_backend of a worker is charged, and another takes over'
  => sub {
	my $gate = close_gate(5);
	my $id = enqueue('gate', gate => 5);
	wait_at_gate(1);
	my $pid = sql('SELECT pid FROM jobqueue_running');
	sql("SELECT pg_terminate_backend($pid)");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	open_gate($gate);
	wait_drained();
	is(sql("SELECT what, attempt, pid <> $pid FROM ran"), 'gate|2|t', 'it ran again');
	forget();
  };

property 'a job that ends its own worker is charged' => sub {
	my $id = enqueue('SELECT pg_terminate_backend(pg_backend_pid()); SELECT pg_sleep(60)',
		max_attempts => 1);

	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/./, 'with an error');
	wait_drained();
};

# ---- where jobs come from --------------------------------------------------

property 'jobs from triggers, functions and jobs' => sub {
	sql(<<'END');
CREATE TABLE source (x int);
CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', 'row'));
	RETURN NEW;
END $$;
CREATE FUNCTION on_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', 'statement'));
	RETURN NULL;
END $$;
CREATE FUNCTION parent(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (args->>'depth')::int > 0 THEN
		PERFORM jobqueue_enqueue('parent', jsonb_build_object('depth', (args->>'depth')::int - 1))
		FROM generate_series(1, 3);
	END IF;
	INSERT INTO ran (what) VALUES ('parent');
END $$;
CREATE TRIGGER r BEFORE INSERT ON source FOR EACH ROW EXECUTE FUNCTION on_row();
CREATE TRIGGER s AFTER INSERT ON source FOR EACH STATEMENT EXECUTE FUNCTION on_statement();
INSERT INTO source SELECT generate_series(1, 10);
SELECT jobqueue_enqueue('parent', '{"depth": 4}');
SELECT count(jobqueue_enqueue('note', '{"what": "bulk"}')) FROM generate_series(1, 10000);
END
	wait_drained();
	is( sql('SELECT what, count(*) FROM ran GROUP BY 1 ORDER BY 1'),
		"bulk|10000\nparent|121\nrow|10\nstatement|1",
		'each ran once');
	forget();
};

property 'jobqueue_enqueue_many' => sub {
	sql(<<'END');
SELECT jobqueue_enqueue_many('note',
	(SELECT array_agg(jsonb_build_object('what', i) ORDER BY i) FROM generate_series(1, 100) i),
	array_fill('many'::text, ARRAY[100]));
END
	wait_drained();
	is( sql('SELECT count(*) FROM (SELECT what::int - row_number() OVER (ORDER BY n) AS d FROM ran) x WHERE d <> 0'),
		0,
		'in order on their key');
	is(sql('SELECT count(*) FROM ran'), 100, 'all');
	forget();
};

property 'what a command may be' => sub {
	sql(<<'END');
CREATE PROCEDURE commits(args jsonb) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('before');
	COMMIT;
	INSERT INTO ran (what) VALUES ('after');
END $$;
CREATE PROCEDURE plain() LANGUAGE sql AS $$ INSERT INTO ran (what) VALUES ('plain') $$;
CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42';
END
	my @ids = (
		enqueue('plain'),
		enqueue(q{INSERT INTO ran (what) VALUES ($1->>'what')}, what => 'text'),
		enqueue(q{CREATE TEMP TABLE t AS SELECT 'multi' AS x; INSERT INTO ran (what) SELECT x FROM t}),
		enqueue('VACUUM ran'),
		enqueue(q{CALL commits('{}')}),
		enqueue('answer', keep => '1 hour'));

	wait_drained();
	is( sql('SELECT string_agg(what, chr(32) ORDER BY what) FROM ran'),
		'after before multi plain text',
		'all ran');
	is( sql("SELECT outcome, count(*) FROM jobqueue_recent WHERE id BETWEEN $ids[0] AND $ids[-1] GROUP BY 1"),
		'completed|6',
		'all completed');
	is(sql("SELECT state, result FROM jobqueue_history WHERE id = $ids[-1]"),
		'completed|42', 'the result of one that is kept');
	forget();
};

property 'jobqueue_run runs a job in the caller\'s transaction' => sub {
	my $id = enqueue('note', what => 'here', run_at => 'tomorrow');

	sql("BEGIN; SELECT jobqueue_run($id); ROLLBACK");
	is(ran(), '', 'rolled back');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id"),
		'scheduled', 'and still to be done');
	sql("BEGIN; SELECT jobqueue_run($id); COMMIT");
	is(ran(), 'here', 'committed');
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'and done');
	forget();
};

property 'nothing of all this is left' => sub {
	wait_drained();
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	wait_for('SELECT coalesce(sum(ready + blocked + running + spilled + held + scheduled), 0) = 0 FROM jobqueue_status');
	pass('memory is empty');
	unlike(PostgreSQL::Test::Utils::slurp_file(node()->logfile),
		qr/TRAP:|PANIC|terminated by signal|reference leak|was leaked/,
		'no crash, no leak in the log');
};

done_testing();
