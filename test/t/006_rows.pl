# What happens to the rows of jobs behind the queue's back.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

# one worker, so that a gate stops all
new_node('rows', conf => "jobqueue.max_workers_per_role = 1\n");

# A job at a gate, others behind it. Returns the gate.
sub stop_worker
{
	my $gate = close_gate(1);

	enqueue('gate', gate => 1, priority => -100);
	wait_at_gate(1);
	return $gate;
}

sub expect
{
	my ($ran, $what) = @_;

	wait_drained();
	is(ran(), $ran, $what);
	forget();
}

# ---- locks on a row --------------------------------------------------------

property 'FOR KEY SHARE on the row of a waiting job' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe("SELECT FROM jobqueue_job WHERE id = $id FOR KEY SHARE");
	open_gate($gate);
	# its delete waits for us
	wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event <> 'advisory'");
	$s->query_safe('COMMIT');
	expect('gate x', 'it ran once');
};

property 'FOR KEY SHARE on the row of a running job' => sub {
	my $gate = stop_worker();
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe('SELECT FROM jobqueue_job FOR KEY SHARE');
	enqueue('note', what => 'next');
	open_gate($gate);
	wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event <> 'advisory'");
	is(ran(), '', 'it waits with its delete');
	$s->query_safe('ROLLBACK');
	expect('gate next', 'it ran once');
};

property 'FOR UPDATE on the row of a waiting job' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe("SELECT FROM jobqueue_job WHERE id = $id FOR UPDATE");
	open_gate($gate);
	wait_for("SELECT count(*) = 1 FROM ran");
	$s->query_safe('COMMIT');
	expect('gate x', 'it ran once');
};

property 'an update of the row of a waiting job' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'old');
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe(qq(UPDATE jobqueue_job SET args = '{"what": "new"}' WHERE id = $id));
	open_gate($gate);
	wait_for('SELECT count(*) = 1 FROM ran');
	$s->query_safe('COMMIT');
	expect('gate new', 'it ran once, in its new form');
};

property 'an update that moves a waiting job in time, queue and priority' => sub {
	my $gate = stop_worker();
	my $first = enqueue('note', what => 'a');
	my $second = enqueue('note', what => 'b');
	my $third = enqueue('note', what => 'c');

	sql(qq(UPDATE jobqueue_job SET run_at = 'tomorrow' WHERE id = $first;
		UPDATE jobqueue_job SET queue = 'other', priority = 7 WHERE id = $second));
	open_gate($gate);
	wait_quiet();
	wait_quiet(queue => 'other');
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'b c gate', 'the one that is due tomorrow waits');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $first"),
		'scheduled', 'it is scheduled');
	sql("UPDATE jobqueue_job SET run_at = NULL WHERE id = $first");
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'a b c gate', 'until it is told otherwise');
	forget();
};

foreach my $end ('ROLLBACK', 'COMMIT')
{
	property "an uncommitted DELETE of a waiting job, then $end" => sub {
		my $gate = stop_worker();
		my $id = enqueue('note', what => 'x');
		my $s = session();

		$s->query_safe('BEGIN');
		$s->query_safe("DELETE FROM jobqueue_job WHERE id = $id");
		open_gate($gate);
		# the one behind it has run: it has been met
		enqueue('note', what => 'y', priority => 5);
		wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'y'");
		$s->query_safe($end);
		expect($end eq 'COMMIT' ? 'gate y' : 'gate y x',
			'not stranded, not run twice');
		memory_empties('memory is empty');
	};

	property "an uncommitted cancel of a waiting job, then $end" => sub {
		my $gate = stop_worker();
		my $id = enqueue('note', what => 'x');
		my $s = session();

		$s->query_safe('BEGIN');
		is($s->query_safe("SELECT jobqueue_cancel($id)"), 't', 'cancel');
		open_gate($gate);
		enqueue('note', what => 'y', priority => 5);
		wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'y'");
		$s->query_safe($end);
		expect($end eq 'COMMIT' ? 'gate y' : 'gate y x',
			'not stranded, not run twice');
		is(sql("SELECT count(*) FROM jobqueue_history WHERE id = $id"),
			$end eq 'COMMIT' ? 1 : 0, 'history');
	};

	property "an uncommitted DELETE of a running job, then $end" => sub {
		my $gate = stop_worker();
		my $s = session();

		$s->query_safe('BEGIN');
		$s->query_safe('DELETE FROM jobqueue_job');
		open_gate($gate);
		wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event <> 'advisory'");
		$s->query_safe($end);
		enqueue('note', what => 'y', priority => 5);
		expect($end eq 'COMMIT' ? 'y' : 'gate y',
			'either the effect and the delete, or neither');
	};
}

property 'a cancel in a subtransaction that is rolled back' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');

	sql("BEGIN; SAVEPOINT s; SELECT jobqueue_cancel($id); ROLLBACK TO s; COMMIT");
	open_gate($gate);
	expect('gate x', 'it ran');
};

property 'a session that ends with an uncommitted cancel' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');
	my $s = session();

	$s->query_safe('BEGIN');
	$s->query_safe("SELECT jobqueue_cancel($id)");
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	open_gate($gate);
	sql("SELECT pg_terminate_backend($pid)");
	expect('gate x', 'it ran');
};

property 'VACUUM FULL of the table with a backlog' => sub {
	my $gate = stop_worker();

	sql(q{SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', i % 2))) FROM generate_series(1, 500) i});
	sql(q{DELETE FROM jobqueue_job WHERE args->>'what' = '1'});
	# beside a running job; enqueue is not held up either
	sql('VACUUM FULL jobqueue_job');
	enqueue('note', what => 'after');
	open_gate($gate);
	wait_drained();
	is(sql('SELECT what, count(*) FROM ran GROUP BY 1 ORDER BY 1'),
		"0|250\nafter|1\ngate|1", 'all that remain ran once');
	forget();
};

property 'CLUSTER and REINDEX under load' => sub {
	my $h = start_pgbench(
		q{SELECT jobqueue_enqueue('note', '{"what": "c"}')},
		clients => 2, transactions => 1500);

	foreach my $i (1 .. 5)
	{
		sql('CLUSTER jobqueue_job USING jobqueue_job_pkey');
		sql('REINDEX TABLE CONCURRENTLY jobqueue_job');
		sql('VACUUM FULL jobqueue_job');
	}
	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM ran'),
		'3000|3000|1', 'each ran once');
	forget();
};

property 'an application\'s foreign key to a job' => sub {
	sql('CREATE TABLE app (job bigint REFERENCES jobqueue_job ON DELETE CASCADE, x int)');
	sql(q{INSERT INTO app SELECT jobqueue_enqueue('note', '{"what": "fk"}'), 1});
	sql(q{WITH j AS (SELECT jobqueue_enqueue('note', '{"what": "fk"}') AS id FROM generate_series(1, 20))
		INSERT INTO app SELECT id, 2 FROM j});
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 21, 'they ran');
	is(sql('SELECT count(*) FROM app'), 0, 'and the rows that hung on them are gone');
	sql('DROP TABLE app');
	enqueue('note', what => 'next');
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 22, 'and without it again');
	forget();
};

# ---- two-phase commit ------------------------------------------------------

property 'COMMIT PREPARED in another session' => sub {
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "p"}'); PREPARE TRANSACTION 'p'});
	wait_quiet();
	is(ran(), '', 'not before');
	sql(q{COMMIT PREPARED 'p'});
	expect('p', 'it ran');
};

property 'ROLLBACK PREPARED' => sub {
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "p"}'); PREPARE TRANSACTION 'p'});
	sql(q{ROLLBACK PREPARED 'p'});
	wait_quiet();
	expect('', 'nothing ran');
};

property 'a prepared transaction of a small id, committed after larger ones' => sub {
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "p"}'); PREPARE TRANSACTION 'p'});
	enqueue('note', what => 'x') foreach (1 .. 5);
	wait_for('SELECT count(*) = 5 FROM ran');
	sql(q{COMMIT PREPARED 'p'});
	expect('x x x x x p', 'it ran');
};

property 'COMMIT PREPARED after a restart' => sub {
	sql(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "now"}'),
		jobqueue_enqueue('note', '{"what": "due"}', run_at => clock_timestamp() + interval '10 ms');
		PREPARE TRANSACTION 'p'});
	node()->restart;
	wait_quiet();
	is(ran(), '', 'not before');
	sql(q{COMMIT PREPARED 'p'});
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'due now', 'they ran');
	forget();
};

property 'a DELETE in a prepared transaction that is rolled back' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');

	sql("BEGIN; DELETE FROM jobqueue_job WHERE id = $id; PREPARE TRANSACTION 'p'");
	open_gate($gate);
	enqueue('note', what => 'y', priority => 5);
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'y'");
	sql("ROLLBACK PREPARED 'p'");
	expect('gate y x', 'not stranded');
};

property 'a cancel is refused by PREPARE TRANSACTION' => sub {
	my $gate = stop_worker();
	my $id = enqueue('note', what => 'x');

	like(
		sql_error("BEGIN; SELECT jobqueue_cancel($id); PREPARE TRANSACTION 'p'"),
		qr/ERROR/, 'an error');
	open_gate($gate);
	expect('gate x', 'it ran');
};

# ---- rows that do not come through jobqueue_enqueue ------------------------

property 'INSERT and COPY into the table' => sub {
	sql(q{INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "insert"}')});
	sql(q{INSERT INTO jobqueue_job (command, args, queue, key, priority, run_at)
		VALUES ('note', '{"what": "insert2"}', 'q', 'k', 3, clock_timestamp() + interval '0.2 s')});
	sql(q{INSERT INTO jobqueue_job (command) VALUES ('INSERT INTO ran (what) VALUES ($$text$$)')});
	sql(qq{COPY jobqueue_job (command, args) FROM STDIN;\nnote\t{"what": "copy"}\nnote\t{"what": "copy"}\n\\.\n});
	wait_drained();
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran"),
		'copy copy insert insert2 text', 'all ran');
	forget();
};

property 'an INSERT that is rolled back' => sub {
	sql(q{BEGIN; INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "no"}'); ROLLBACK});
	wait_quiet();
	expect('', 'nothing ran');
};

property 'jobqueue_sweep finds rows that announced themselves to nobody' => sub {
	sql(q{BEGIN; ALTER TABLE jobqueue_job DISABLE TRIGGER ALL;
		INSERT INTO jobqueue_job (command, kind, func_owner, args)
		SELECT 'public.note(pg_catalog.jsonb)', 'f', proowner, '{"what": "s"}' FROM pg_proc WHERE proname = 'note';
		ALTER TABLE jobqueue_job ENABLE TRIGGER ALL;
		ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_guard; COMMIT});
	sql('SELECT jobqueue_sweep()');
	expect('s', 'it ran');
};

# ---- dump and restore ------------------------------------------------------

sub dump_and_restore
{
	my ($from, $to) = @_;
	my $file = node()->basedir . "/$to.sql";

	node()->command_ok([ 'pg_dump', '-f', $file, $from ], 'dump');
	sql("CREATE DATABASE $to");
	node()->command_ok(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $file, $to ],
		'restore');
}

property 'a restore into another database is held until jobqueue_adopt' => sub {
	my $gate = stop_worker();

	enqueue('note', what => $_, key => 'k') foreach ('a', 'b');
	enqueue('note', what => 'due', run_at => '2000-01-01');
	enqueue('note', what => 'later', run_at => '2100-01-01');
	my $cancelled = enqueue('note', what => 'cancelled', run_at => 'tomorrow');
	sql("SELECT jobqueue_cancel($cancelled)");
	dump_and_restore('postgres', 'restored');
	open_gate($gate);
	wait_for('SELECT count(*) = 1 FROM jobqueue_job');
	is(ran(), 'gate a b due', 'they run where they were enqueued');

	wait_quiet(db => 'restored');
	is(ran(db => 'restored'), '', 'not in the copy');
	is( sql("SELECT state, count(*) FROM jobqueue_jobs WHERE state <> 'cancelled' GROUP BY 1 ORDER BY 1",
			db => 'restored'),
		'held|5', 'they are held');
	wait_for("SELECT held = 5 FROM jobqueue_status WHERE queue = 'default'", 't', 'restored');
	is(sql('SELECT jobqueue_adopt()', db => 'restored'), 5, 'adopted');
	wait_for('SELECT count(*) = 1 FROM jobqueue_job', 't', 'restored');
	is(sql("SELECT string_agg(what, ' ' ORDER BY what) FROM ran", db => 'restored'),
		'a b due gate', 'they run');
	is(sql("SELECT state FROM jobqueue_jobs WHERE run_at > now()", db => 'restored'),
		'scheduled', 'what is due later waits');
	is(sql('SELECT jobqueue_retry(' . $cancelled . ')', db => 'restored'), 't', 'the history came along');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'cancelled'", 't', 'restored');
	sql('DROP DATABASE restored WITH (FORCE)');
	sql('SELECT jobqueue_cancel(id) FROM jobqueue_job; DELETE FROM jobqueue_archive');
	forget();
};

property 'ids after a restore do not collide' => sub {
	my $id = enqueue('note', what => 'x');

	wait_drained();
	dump_and_restore('postgres', 'restored2');
	cmp_ok(enqueue('note', what => 'y', db => 'restored2'), '>', $id, 'they go on');
	wait_drained(db => 'restored2');
	sql('DROP DATABASE restored2 WITH (FORCE)');
	forget();
};

property 'the job of a dropped role is dead, here and where it is restored' => sub {
	sql(q{CREATE ROLE leaver LOGIN; SELECT jobqueue_grant('leaver', 'use')});
	sql('SELECT jobqueue_quiesce()');
	my $id = enqueue('note', what => 'no', role => 'leaver');
	sql('DROP OWNED BY leaver');
	sql('DROP ROLE leaver');
	dump_and_restore('postgres', 'restored3');
	sql('SELECT jobqueue_resume()');
	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"),
		qr/role/, 'the error says why');
	sql('SELECT jobqueue_adopt()', db => 'restored3');
	wait_state($id, 'dead', db => 'restored3');
	is(ran(), '', 'it did not run here');
	is(ran(db => 'restored3'), '', 'nor there');
	sql('DROP DATABASE restored3 WITH (FORCE)');
	sql('DELETE FROM jobqueue_archive');
};

done_testing();
