# Settings of queues that change while jobs wait, run and fail; control of more
# jobs than memory holds; expiry and pruning.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('settings', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.flush_interval = 1000ms
wal_writer_delay = 10000ms
autovacuum = off
END
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use');
CREATE TABLE effects (
	n bigint GENERATED ALWAYS AS IDENTITY, job bigint, p int, queue text,
	role name DEFAULT current_user, max_attempts int, level text);
GRANT INSERT ON effects TO PUBLIC;
CREATE FUNCTION effect(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO effects (job, p, queue, max_attempts, level)
		SELECT c.id, (args->>'p')::int, c.queue, c.max_attempts, current_setting('synchronous_commit')
		FROM jobqueue_current() c $$;
END

sub drop_queues
{
	wait_drained();
	sql('SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues');
	sql('DELETE FROM jobqueue_archive; TRUNCATE effects, ran');
}

sub none_lost
{
	my ($count) = @_;

	wait_drained();
	is( sql('SELECT count(*), count(DISTINCT job) FROM effects'),
		"$count|$count", 'none lost, none twice');
	memory_empties('memory is empty');
}

# ---- settings ---------------------------------------------------------------

property 'settings are in force after a restart and a crash' => sub {
	sql(q{SELECT jobqueue_configure('q', max_attempts => 7, synchronous_commit => 'local', keep => '1 day')});
	my $job = enqueue('effect', queue => 'q', run_at => 'tomorrow');
	foreach my $how ('fast', 'immediate')
	{
		node()->stop($how);
		node()->start;
		is( sql(q{SELECT max_attempts, synchronous_commit, keep FROM jobqueue_queues}),
			'7|local|1 day', "stored ($how)");
		enqueue('effect', queue => 'q');
		wait_for('SELECT count(*) > 0 FROM effects');
		is(sql('SELECT max_attempts, level FROM effects'), '7|local', "in force ($how)");
		is(sql("SELECT max_attempts, keep FROM jobqueue_jobs WHERE id = $job"), '7|1 day', "shown ($how)");
		sql('TRUNCATE effects');
	}
	sql("SELECT jobqueue_cancel($job)");
	drop_queues();
};

property 'a job sees settings that belong together' => sub {
	sql(<<'END');
DO $$
BEGIN
	FOR i IN 1..200 LOOP
		PERFORM jobqueue_configure('q', max_attempts => 1 + i % 2,
			synchronous_commit => CASE i % 2 WHEN 0 THEN 'local' ELSE 'off' END);
		PERFORM jobqueue_enqueue('effect', '{}', queue => 'q') FROM generate_series(1, 5);
		COMMIT;
	END LOOP;
END $$
END
	none_lost(1000);
	is( sql('SELECT DISTINCT max_attempts, level FROM effects EXCEPT VALUES (1, \'local\'), (2, \'off\')'),
		'', 'no other pair');
	drop_queues();
};

property 'settings change while jobs run, fail, and come in batches' => sub {
	sql(q{SELECT jobqueue_configure('q', backoff_base => '0')});
	my $bench = start_pgbench(<<'END', clients => 2, transactions => 100);
\set k random(1, 5)
SELECT jobqueue_enqueue('effect', '{"p": 1}', queue => 'q', key => 'k' || :k) FROM generate_series(1, 10);
SELECT jobqueue_enqueue('SELECT 1/0', queue => 'q', max_attempts => 2);
END
	sql(<<'END');
DO $$
BEGIN
	FOR i IN 1..100 LOOP
		PERFORM jobqueue_configure('q', batch => 1 + i % 20, max_attempts => 1 + i % 9,
			backoff => (ARRAY['linear', 'constant', 'exponential'])[1 + i % 3],
			timeout => make_interval(hours => 1 + i), keep_dead => make_interval(days => i),
			synchronous_commit => (ARRAY['on', 'off', ''])[1 + i % 3]);
		COMMIT;
		PERFORM jobqueue_reprioritize_where('q', NULL, NULL, i % 5);
		COMMIT;
		PERFORM jobqueue_reschedule_where('q', CASE i % 2 WHEN 0 THEN 'ready' ELSE 'scheduled' END, NULL,
			CASE i % 2 WHEN 0 THEN clock_timestamp() + interval '10 ms' END);
		COMMIT;
	END LOOP;
END $$
END
	$bench->finish;
	none_lost(2000);
	is(sql("SELECT count(*), min(attempt), max(attempt) FROM jobqueue_history WHERE state = 'dead'"),
		'200|2|2', 'each that fails has failed twice');
	drop_queues();
};

property 'synchronous_commit of the queue: what has ended is on disk' => sub {
	my $durable = sub {
		my ($count) = @_;
		my $last = sql("SELECT jobqueue_enqueue('effect', '{}', queue => 'q') FROM generate_series(1, $count) i ORDER BY 1 DESC LIMIT 1");
		wait_state($last, 'completed');
		return sql("SELECT lsn <= pg_current_wal_flush_lsn() FROM jobqueue_recent WHERE id = $last");
	};

	sql(q{SELECT jobqueue_configure('q', synchronous_commit => 'on')});
	is($durable->(1), 't', 'alone');
	sql(q{SELECT jobqueue_configure('q', batch => 10)});
	is($durable->(30), 't', 'in a batch');
	drop_queues();
};

# ---- control ----------------------------------------------------------------

property 'more jobs than memory holds: other priorities, other times' => sub {
	sql('SELECT jobqueue_quiesce()');
	foreach my $role ('r1', 'r2')
	{
		sql(<<END, role => $role);
SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', i % 3), queue => 'q' || i % 2,
	key => CASE i % 4 WHEN 0 THEN 'hot' WHEN 1 THEN 'k' || i END, tags => ARRAY[(i % 3)::text],
	run_at => CASE i % 10 WHEN 0 THEN now() + interval '1 day' END))
FROM generate_series(1, 6000) i
END
	}
	sql("SELECT jobqueue_reprioritize_where(NULL, NULL, t, -t::int) FROM unnest('{0,1,2}'::text[]) t");
	is(sql("SELECT jobqueue_reschedule_where(NULL, 'scheduled', NULL, NULL)"), 1200, 'those that were scheduled');
	is(sql("SELECT jobqueue_reschedule_where('q0', NULL, '1', now() + interval '1 day')"), 2000, 'those of a queue and tag');
	sql('SELECT jobqueue_resume()');
	wait_for("SELECT count(*) = 10000 FROM effects");
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'scheduled'"), 2000, 'the others wait for their time');
	is(sql("SELECT count(*) FROM effects WHERE queue = 'q0' AND p = 1"), 0, 'none of them has run');
	is(sql("SELECT jobqueue_reschedule_where('q0', NULL, NULL, NULL)"), 2000, 'and now');
	none_lost(12000);
	drop_queues();
};

property 'a million in small: cancel, retry, purge' => sub {
	sql(q{SELECT jobqueue_pause('q')});
	sql("SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', i), queue => 'q',
		key => CASE i % 2 WHEN 0 THEN 'hot' END)) FROM generate_series(1, 5000) i");
	is(sql("SELECT jobqueue_cancel_where('q', NULL, NULL)"), 5000, 'cancelled');
	is(sql("SELECT jobqueue_retry_where('q', NULL, NULL)"), 5000, 'back again');
	sql(q{SELECT jobqueue_cancel_where('q', NULL, NULL)});
	sql(q{SELECT jobqueue_retry_where('q', 'cancelled', NULL), jobqueue_resume('q')});
	none_lost(5000);
	is(sql("SELECT jobqueue_purge('q', NULL)"), 0, 'nothing is left in the history');
	drop_queues();
};

paused_property 'a job that has been taken keeps its time and priority' => sub {
	arm('worker-claimed');
	my $job = enqueue('note', what => 'x');
	caught('worker-claimed');
	is(sql("SELECT jobqueue_reschedule($job, now() + interval '1 day')"), 'f', 'not rescheduled');
	is(sql("SELECT jobqueue_reprioritize($job, 3)"), 'f', 'not reprioritized');
	is(sql("SELECT jobqueue_reschedule_where(NULL, NULL, NULL, now() + interval '1 day', everything => true)"), 0, 'nor by filter');
	release('worker-claimed');
	wait_drained();
	is(ran(), 'x', 'it has run');
	drop_queues();
};

foreach my $how (
	[ "SELECT jobqueue_reschedule(%d, now() + interval '1 day')", 'one' ],
	[ "SELECT jobqueue_reschedule_where(NULL, NULL, 't', now() + interval '1 day')", 'many' ])
{
	paused_property "rescheduled while the scheduler publishes it as due ($how->[1])" => sub {
		arm('due-after-look');
		my $job = sql(q{SELECT jobqueue_enqueue('note', '{"what": "x"}', tags => '{t}',
			run_at => clock_timestamp() + interval '1 s')});
		caught('due-after-look');
		like(sql(sprintf $how->[0], $job), qr/^(t|1)$/, 'rescheduled');
		release('due-after-look');
		wait_quiet();
		is(ran(), '', 'it does not run');
		wait_state($job, 'scheduled');
		sql("SELECT jobqueue_reschedule($job, NULL)");
		wait_drained();
		is(ran(), 'x', 'and then it does');
		drop_queues();
	};
}

paused_property 'the transaction is open while the scheduler publishes it as due' => sub {
	arm('due-after-look');
	my $job = sql(q{SELECT jobqueue_enqueue('note', '{"what": "x"}', run_at => clock_timestamp() + interval '1 s')});
	caught('due-after-look');
	my $s = session();
	$s->query_safe('BEGIN');
	$s->query_safe("SELECT jobqueue_reprioritize($job, 2)");
	release('due-after-look');
	wait_quiet();
	is(ran(), '', 'it does not run');
	$s->query_safe('ROLLBACK');
	wait_drained();
	is(ran(), 'x', 'after the rollback it does');
	drop_queues();
};

# Whoever has ended a job has it claimed for a moment after his commit; so it is
# not published before he has let it go.
foreach my $retry ('jobqueue_retry(:job)', "jobqueue_retry_where(NULL, NULL, 't')")
{
	my $comes_back = sub {
		my ($point, $job, $queue) = @_;
		my $bench = start_pgbench("SELECT $retry;", clients => 1,
			transactions => 1, options => [ '-D', "job=$job" ]);

		wait_for("SELECT EXISTS (SELECT FROM jobqueue_job WHERE id = $job)
			OR EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%_retry%' AND pid <> pg_backend_pid() AND wait_event_type IN ('Extension', 'Lock'))");
		wait_quiet(queue => $queue);
		release($point);
		$bench->finish;
		wait_drained();
		is(ran(), 'x', 'it runs once more');
	};

	paused_property "a dead job is retried before its worker has let it go: $retry" => sub {
		sql('CREATE TABLE good ()');
		arm('fail-after-record');
		my $job = enqueue(q{SELECT 1 / count(*), note('{"what": "x"}') FROM pg_class WHERE relname = 'bad'},
			max_attempts => 1, tags => '{t}');
		caught('fail-after-record');
		sql('ALTER TABLE good RENAME TO bad');
		$comes_back->('fail-after-record', $job, 'default');
		sql('DROP TABLE bad');
		drop_queues();
	};

	paused_property "a cancelled job is retried before its claim has been let go: $retry" => sub {
		sql(q{SELECT jobqueue_pause('q')});
		my $job = enqueue('note', what => 'x', queue => 'q', tags => '{t}');
		arm('enqueue-before-publish');
		my $cancel = start_pgbench("SELECT jobqueue_cancel($job);", clients => 1, transactions => 1);
		caught('enqueue-before-publish');
		sql(q{SELECT jobqueue_resume('q')});
		$comes_back->('enqueue-before-publish', $job, 'q');
		$cancel->finish;
		drop_queues();
	};
}

# ---- expiry -----------------------------------------------------------------

property 'a job expires at its time, whatever keeps it from running' => sub {
	my $gate = close_gate(1);
	my $expires = sql("SELECT clock_timestamp() + interval '0.5 s'");

	enqueue('gate', gate => 1, key => 'k');
	wait_at_gate();
	sql(q{SELECT jobqueue_pause('paused')});
	enqueue('note', what => 'x', tags => '{blocked}', key => 'k', expires_at => $expires);
	enqueue('note', what => 'x', tags => '{paused}', queue => 'paused', expires_at => $expires);
	enqueue('note', what => 'x', tags => '{scheduled}', run_at => 'tomorrow', expires_at => $expires);
	my $later = enqueue('note', what => 'x', tags => '{rescheduled}', run_at => 'tomorrow', expires_at => $expires);
	sql("SELECT jobqueue_reschedule($later, now() + interval '2 days')");
	wait_for(q{SELECT count(*) = 4 FROM jobqueue_history WHERE state = 'cancelled' AND reason = 'expired'});
	is( sql(q{SELECT string_agg(tags[1], ' ' ORDER BY tags[1]), bool_and(ended_at >= '} . $expires . q{') FROM jobqueue_history}),
		'blocked paused rescheduled scheduled|t', 'each of them, and not before');
	wait_for("SELECT count(*) = 4 FROM jobqueue_recent WHERE outcome = 'cancelled' AND error = 'expired'");
	pass('and the ring says so');
	open_gate($gate);
	wait_drained();
	is(ran(), 'gate', 'none has run');
	sql(q{SELECT jobqueue_resume('paused')});
	drop_queues();
};

property 'a retried job does not expire again' => sub {
	my $job = enqueue('note', what => 'x', expires_at => 'yesterday');
	wait_state($job, 'cancelled');
	is(sql("SELECT jobqueue_retry_where(NULL, 'cancelled', NULL)"), 1, 'retried');
	wait_drained();
	is(ran(), 'x', 'it runs');
	drop_queues();
};

property 'jobs that expired while the server was down' => sub {
	my $job = enqueue('note', what => 'x', run_at => 'tomorrow',
		expires_at => sql("SELECT clock_timestamp() + interval '0.2 s'"));
	node()->restart;
	wait_state($job, 'cancelled');
	is(sql("SELECT reason FROM jobqueue_history WHERE id = $job"), 'expired', 'are cancelled after its start');
	drop_queues();
};

# ---- pruning ----------------------------------------------------------------

sub old_history
{
	my ($count, $when) = @_;

	sql("INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, expires_at, home, owner, priority, attempt, kind, state, queue, command)
		SELECT 900000000 + i, now(), now(), $when, jobqueue_home(), current_user::regrole, 0, 1, 'f', 'dead', 'default', 'x'
		FROM generate_series(1, $count) i");
}

sub stop_scheduler
{
	wait_for("SELECT count(pg_terminate_backend(pid)) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
}

# a scheduler prunes as it starts
# it is delayed in any case: the moment is that of the enqueue
sub enqueue_soon
{
	my ($what) = @_;
	return sql(qq{SELECT jobqueue_enqueue('note', '{"what": "$what"}', run_at => clock_timestamp() + interval '0.3 s')});
}

sub new_scheduler
{
	stop_scheduler();
	enqueue_soon('wake');
}

property 'keep and keep_dead: the history is pruned' => sub {
	sql(q{SELECT jobqueue_configure('short', keep => '1 us', keep_dead => '0', max_attempts => 1),
		jobqueue_configure('long', keep => '1 day', max_attempts => 1)});
	foreach my $queue ('short', 'long')
	{
		enqueue('note', what => 'x', queue => $queue);
		enqueue('SELECT 1/0', queue => $queue);
	}
	wait_drained();
	new_scheduler();
	wait_for("SELECT count(*) = 0 FROM jobqueue_history WHERE queue = 'short'");
	is(sql("SELECT count(*) FROM jobqueue_history WHERE queue = 'long'"), 2, 'the others stay');
	drop_queues();
};

property 'the history is pruned where nothing else needs a scheduler' => sub {
	my $left = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'";

	wait_for($left);
	my $job = enqueue('note', what => 'x', keep => '100 ms');
	wait_state($job, 'completed');
	wait_for('SELECT count(*) = 0 FROM jobqueue_archive');
	pass('a kept job has gone');
	wait_for($left);
	$job = enqueue('note', what => 'x', tags => '{t}', run_at => 'tomorrow');
	sql(q{SELECT jobqueue_configure('default', keep_dead => '100 ms')});
	is(sql("SELECT jobqueue_cancel_where(NULL, NULL, 't')"), 1, 'cancelled');
	wait_for('SELECT count(*) = 0 FROM jobqueue_archive');
	pass('and a cancelled one');
	drop_queues();
};

paused_property 'a long history is pruned beside other work' => sub {
	old_history(30000, 'now()');
	arm('prune-part');
	new_scheduler();
	caught('prune-part');
	is(sql('SELECT count(*) FROM jobqueue_archive'), 25000, 'a part is gone');
	arm('due-after-look');
	enqueue_soon('due');
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE run_at > clock_timestamp()");
	release('prune-part');
	caught('due-after-look');
	is(sql('SELECT count(*) FROM jobqueue_archive'), 25000, 'what is due comes first');
	release('due-after-look');
	wait_for('SELECT count(*) = 0 FROM jobqueue_archive');
	wait_drained();
	pass('then the rest');
	drop_queues();
};

property 'what an old snapshot keeps of the history is read once' => sub {
	my $old = session();
	my $read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'jobqueue_archive_expiry'";

	$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$old->query_safe('SELECT count(*) FROM jobqueue_job');
	old_history(20000, "now() - i * interval '1 s'");
	stop_scheduler();
	my $before = sql($read);
	new_scheduler();
	wait_for('SELECT count(*) = 0 FROM jobqueue_archive');
	wait_drained();
	stop_scheduler(); # it tells what it has read
	cmp_ok(sql($read) - $before, '<', 60000, 'so many entries were read');
	$old->query_safe('COMMIT');
	drop_queues();
};

# ---- a lane without a place -------------------------------------------------

new_node('lanes', conf => 'jobqueue.max_lanes = 8');

property 'rescheduled where memory has no place for the lane' => sub {
	my $job = enqueue('note', what => 'x', queue => 'late', run_at => 'tomorrow');

	node()->restart; # its lane is not known
	sql("SELECT jobqueue_quiesce()");
	enqueue('note', what => $_, queue => "q$_") foreach 1 .. 8;
	is(sql("SELECT jobqueue_reschedule_where('late', NULL, NULL, NULL)"), 1, 'rescheduled');
	sql("SELECT jobqueue_resume()");
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 9, 'all have run');
};

sub empty_memory
{
	sql('SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues');
	sql('DELETE FROM jobqueue_job; DELETE FROM jobqueue_archive; TRUNCATE ran');
	node()->restart;
}

property 'paused queues that are empty keep no place from others' => sub {
	empty_memory();
	foreach my $queue (map { "p$_" } 1 .. 8)
	{
		sql("SELECT jobqueue_pause('$queue')");
		enqueue('note', what => $queue, queue => $queue);
	}
	sql('SELECT jobqueue_cancel_where(NULL, NULL, NULL, true)');
	enqueue('note', what => 'alive', queue => 'alive');
	wait_drained();
	is(ran(), 'alive', 'it runs');
	foreach my $queue (map { "p$_" } 1 .. 8)
	{
		enqueue('note', what => $queue, queue => $queue);
		sql("SELECT jobqueue_resume('$queue')");
	}
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 9, 'resumed, they run');
};

property 'paused queues with jobs give their places to others, and lose no job' => sub {
	empty_memory();
	foreach my $queue (map { "p$_" } 1 .. 8)
	{
		sql("SELECT jobqueue_pause('$queue')");
		enqueue('note', what => "$queue before", queue => $queue) for 1 .. 3;
	}
	enqueue('note', what => 'alive', queue => "alive$_") for 1 .. 4;
	wait_for('SELECT count(*) = 4 FROM ran');
	forget();
	# some of them have no lane now
	foreach my $queue (map { "p$_" } 1 .. 8)
	{
		enqueue('note', what => "$queue after", queue => $queue) for 1 .. 2;
	}
	enqueue('note', what => 'alive', queue => "alive$_") for 1 .. 4;
	wait_for('SELECT count(*) = 4 FROM ran');
	forget();
	sql("SELECT jobqueue_resume('p$_')") for 1 .. 8;
	wait_drained();
	is(sql(q{SELECT count(*), count(DISTINCT job) FROM ran}), '40|40', 'each job has run once');
	is(sql(q{SELECT count(*) FROM ran WHERE what LIKE '%before'}), 24, 'those that were there before');
	empty_memory();
};

property 'settings that are read anew find what paused queues have' => sub {
	empty_memory();
	foreach my $queue (map { "p$_" } 1 .. 8)
	{
		sql("SELECT jobqueue_pause('$queue')");
		enqueue('note', what => $queue, queue => $queue);
	}
	enqueue('note', what => 'alive', queue => 'alive');
	wait_for('SELECT count(*) = 1 FROM ran');
	forget();
	sql('TRUNCATE jobqueue_queue');
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran}), 8, 'all have run');
	empty_memory();
};

done_testing();
