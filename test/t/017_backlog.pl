# Long backlogs: their numbers, and that what is done with does not slow down
# what is to be done.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('backlog', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.max_workers = 4
jobqueue.max_workers_per_role = 1
autovacuum = off
END
sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
CREATE ROLE r3 LOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use'), jobqueue_grant('r3', 'use');
CREATE TABLE effects (
	n bigint GENERATED ALWAYS AS IDENTITY,
	job bigint, p int, attempt int, queue text, role name DEFAULT current_user);
GRANT INSERT ON effects TO PUBLIC;
CREATE FUNCTION effect(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO effects (job, p, attempt, queue)
		SELECT c.id, (args->>'p')::int, c.attempt, c.queue FROM jobqueue_current() c $$;
END

# properties that begin with nothing, even after a failure
sub backlog_property
{
	my ($name, $code, $how) = @_;
	($how // \&property)->($name, sub {
			sql('TRUNCATE effects, ran; SELECT jobqueue_sweep()');
			$code->();
		});
}

sub bulk
{
	my ($count, %opt) = @_;
	my %sys = map { $_ => delete $opt{$_} } ('role', 'db');
	my $p = delete $opt{p} // 0;

	sql("SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', $p), priority => $p"
		  . join('', map { ", $_ => $opt{$_}" } sort keys %opt)
		  . ")) FROM generate_series(1, $count) i", %sys);
}

# each role's only worker waits at a gate
sub stop_workers
{
	my (@roles) = @_;
	my $gate = close_gate(1);

	enqueue('gate', gate => 1, role => $_, priority => -1000, queue => 'gate')
	  foreach @roles;
	wait_for("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 1",
		scalar @roles);
	return $gate;
}

# a job of r2 runs that has the key k
sub use_key
{
	my $gate = close_gate(2);

	enqueue('gate', gate => 2, role => 'r2', key => 'k', queue => 'gate');
	wait_at_gate(1);
	return $gate;
}

sub check_effects
{
	my ($count) = @_;

	wait_drained();
	is( sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM effects'),
		"$count|$count|1", 'none lost, none twice');
	memory_empties('memory is empty');
	sql('TRUNCATE effects, ran');
}

sub check_effects_none
{
	wait_drained();
	is(sql('SELECT count(*) FROM effects'), 0, 'none has run');
	sql('TRUNCATE ran');
}

sub check_order
{
	is( sql(<<'END'), '', 'in order of priority and id');
WITH x AS (
	SELECT n, p, job, (p, job) < lag((p, job)) OVER (PARTITION BY role, queue ORDER BY n) AS bad
	FROM effects)
SELECT n, p, job FROM x WHERE bad ORDER BY n LIMIT 5
END
}

# jobs that have become due, and are in memory
sub due_for_r1
{
	my ($count, $db) = @_;
	my $command = defined $db ? 'note' : 'effect';

	sql_as('r1', "SELECT count(jobqueue_enqueue('$command', '{\"p\": 0}', queue => 'due', run_at => t + interval '0.5 s'))
		FROM (SELECT clock_timestamp() AS t OFFSET 0) x, generate_series(1, $count)", db => $db);
	wait_for("SELECT ready = $count FROM jobqueue_status WHERE queue = 'due'", 't', $db);
}

# as for check_numbers
sub due_and_others
{
	my ($due) = @_;
	my %n = (($due > 0 ? (due => $due) : ()), map { ("q$_", 30) } 1 .. 10);

	return join "\n", map { "$_|$n{$_}|0|0|0" } sort keys %n;
}

# numbers that are right in the end: "queue|ready|scheduled|blocked|held" a line
sub check_numbers
{
	my ($expected, $what) = @_;
	my $query = "SELECT coalesce(string_agg(format('%s|%s|%s|%s|%s', queue, ready, scheduled, blocked, held), E'\\n' ORDER BY queue), '')
		FROM jobqueue_status WHERE queue <> 'gate' AND ready + scheduled + blocked + held > 0";

	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	eval { wait_for($query, $expected); };
	is(sql($query), $expected, $what);
}

# What has been read of an index: entries and blocks.  Processes tell it at
# their end.
sub index_reads
{
	my ($index) = @_;
	my $pids = sql("SELECT coalesce(string_agg(pid::text, ','), '0') FROM pg_stat_activity
		WHERE backend_type IN ('jobqueue scheduler', 'jobqueue worker')");

	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid IN ($pids)");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid IN ($pids)");
	return split /\|/, sql(<<END);
SELECT s.idx_tup_read, i.idx_blks_read + i.idx_blks_hit
FROM pg_stat_user_indexes s JOIN pg_statio_user_indexes i USING (indexrelid)
WHERE s.indexrelname = '$index'
END
}

# an open snapshot: nothing that is deleted from now on can be removed
sub old_snapshot
{
	my $s = session();

	$s->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$s->query_safe('SELECT count(*) FROM jobqueue_job');
	return $s;
}

# ---- numbers ----------------------------------------------------------------

backlog_property 'numbers of a backlog, and after an immediate restart' => sub {
	my $gate = stop_workers('r1', 'r2');

	foreach my $i (0 .. 5)
	{
		bulk(5000,
			role => $i % 2 ? 'r1' : 'r2',
			queue => "'q" . $i % 3 . "'",
			p => 'i % 4');
	}
	bulk(70, role => 'r1', queue => "'q0'", run_at => "now() + interval '1 hour'");
	my $expected = "q0|10000|70|0|0\nq1|10000|0|0|0\nq2|10000|0|0|0";
	check_numbers($expected, 'while they come');
	node()->stop('immediate');
	node()->start;
	# their gate is open now: nothing may run
	is(sql('SELECT jobqueue_quiesce()'), 't', 'nothing runs');
	my $gone = sql("SELECT count(*) FROM effects");
	my $sums = sql("SELECT string_agg(format('%s|%s|%s|0|0', queue, r, s), E'\\n' ORDER BY queue)
		FROM (SELECT queue, count(*) FILTER (WHERE run_at IS NULL) AS r, count(run_at) AS s FROM jobqueue_job WHERE queue <> 'gate' GROUP BY 1) x");
	check_numbers($sums, "after a restart ($gone have run)");
	sql('SELECT jobqueue_resume()');
	wait_for('SELECT count(*) = 30000 FROM effects');
	check_order();
	sql('DELETE FROM jobqueue_job');
	check_effects(30000);
};

backlog_property 'numbers when rows come by hand' => sub {
	my $gate = stop_workers('r1');

	bulk(3000, role => 'r1');
	sql("INSERT INTO jobqueue_job (owner, priority, kind, command, args)
		SELECT 'r1', i % 5, 'f', 'public.effect(pg_catalog.jsonb)', jsonb_build_object('p', i % 5)
		FROM generate_series(1, 2000) i");
	check_numbers('default|5000|0|0|0', 'inserted');
	sql('DELETE FROM jobqueue_job WHERE id IN (SELECT id FROM jobqueue_job WHERE priority = 4)');
	sql('SELECT jobqueue_sweep()');
	check_numbers('default|4600|0|0|0', 'deleted, swept');
	bulk(100, role => 'r1');
	check_numbers('default|4700|0|0|0', 'and more of them');
	open_gate($gate);
	wait_drained();
	check_order();
	check_effects(4700);
};

backlog_property 'numbers of held rows' => sub {
	my $gate = stop_workers('r1');
	my $foreign = 'SET session_replication_role = replica; UPDATE jobqueue_job SET home = home + 1 WHERE';

	bulk(3000, role => 'r1', queue => "'a'");
	bulk(200, role => 'r1', queue => "'a'", run_at => "now() + interval '1 hour'");
	bulk(2000, role => 'r2', queue => "'b'", run_at => "now() + interval '1 hour'");
	sql("$foreign id % 3 = 0 AND queue <> 'gate'");
	my $expected = sql("SELECT string_agg(format('%s|%s|%s|0|%s', queue, r, s, h), E'\\n' ORDER BY queue)
		FROM (SELECT queue, count(*) FILTER (WHERE run_at IS NULL AND home = jobqueue_home()) AS r,
			count(*) FILTER (WHERE run_at IS NOT NULL AND home = jobqueue_home()) AS s,
			count(*) FILTER (WHERE home <> jobqueue_home()) AS h
			FROM jobqueue_job WHERE queue <> 'gate' GROUP BY 1) x");
	sql('SELECT jobqueue_sweep()');
	check_numbers($expected, 'ready and scheduled ones');
	sql('SELECT jobqueue_sweep()');
	check_numbers($expected, 'and the same once more');
	sql('SELECT jobqueue_adopt()');
	check_numbers("a|3000|200|0|0\nb|0|2000|0|0", 'adopted');
	open_gate($gate);
	wait_for('SELECT count(*) = 3000 FROM effects');
	check_order();
	sql('DELETE FROM jobqueue_job');
	check_effects(3000);
};

backlog_property 'numbers of jobs that become due where memory is full' => sub {
	my $gate = stop_workers('r1');

	bulk(1000, role => 'r1');
	bulk(1000, role => 'r1', run_at => "clock_timestamp() + interval '500 ms'");
	check_numbers('default|2000|0|0|0', 'they are ready');
	open_gate($gate);
	wait_drained();
	check_effects(2000);
};

backlog_property 'numbers of a hot key among a backlog' => sub {
	my $hold = close_gate(2);
	enqueue('gate', gate => 2, key => 'hot', role => 'r2', queue => 'gate');
	wait_at_gate(1);
	my $gate = stop_workers('r1');

	bulk(500, role => 'r1', key => "'hot'");
	bulk(1000, role => 'r1');
	check_numbers('default|1500|0|0|0', 'nobody has met the key yet');
	open_gate($gate);
	wait_for('SELECT count(*) = 1000 FROM effects');
	check_numbers('default|0|0|500|0', 'blocked');
	$gate = stop_workers('r1');
	bulk(1000, role => 'r1');
	check_numbers('default|1000|0|500|0', 'blocked, and others that are ready');
	sql('SELECT jobqueue_sweep()');
	# which of them wait for the key is known when they have been looked at
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	open_gate($gate);
	wait_for('SELECT count(*) = 2000 FROM effects');
	wait_for(q{SELECT ready = 0 AND blocked BETWEEN 436 AND 564 FROM jobqueue_status WHERE queue = 'default'});
	open_gate($hold);
	wait_drained();
	check_effects(2500);
};

# ---- dead index entries -----------------------------------------------------

backlog_property 'refill under an old snapshot: order, and no walk over dead entries' => sub {
	my $old = old_snapshot();

	bulk(30000, role => 'r1', p => 'i % 4');
	wait_for('SELECT count(*) = 30000 FROM effects');
	check_order();
	check_effects(30000);

	my $gate = stop_workers('r1');
	bulk(1000, role => 'r1', p => 'i % 7');
	my ($tuples, $blocks) = index_reads('jobqueue_job_ready');
	open_gate($gate);
	wait_drained();
	check_order();
	check_effects(1000);
	my ($tuples2, $blocks2) = index_reads('jobqueue_job_ready');
	cmp_ok($tuples2 - $tuples, '<', 10000, 'entries');
	cmp_ok($blocks2 - $blocks, '<', 6000, 'blocks');
	note sprintf 'entries %d, blocks %d', $tuples2 - $tuples, $blocks2 - $blocks;

	# a scheduler that starts looks for lanes
	($tuples, $blocks) = index_reads('jobqueue_job_ready');
	foreach my $i (1 .. 3)
	{
		my $pid;
		wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'")
		  if $i > 1;
		sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
		bulk(10, role => 'r1', run_at => 'clock_timestamp()');
		wait_drained();
	}
	check_effects(30);
	($tuples2, $blocks2) = index_reads('jobqueue_job_ready');
	cmp_ok($tuples2 - $tuples, '<', 1000, 'entries');
	# each looks through them once, when it starts
	cmp_ok($blocks2 - $blocks, '<', 3000, 'blocks');
	note sprintf 'entries %d, blocks %d', $tuples2 - $tuples, $blocks2 - $blocks;
	$old->query_safe('COMMIT');
};

backlog_property 'due and expired jobs under an old snapshot: no walk over dead entries' => sub {
	my $old = old_snapshot();

	bulk(20000, role => 'r1', run_at => 'clock_timestamp()');
	check_effects(20000);
	bulk(20000, role => 'r1', expires_at => "clock_timestamp() + interval '1 hour'");
	check_effects(20000);
	foreach my $opt ([ run_at => "clock_timestamp() + interval '1 ms'", 'jobqueue_job_due' ],
		[ expires_at => "clock_timestamp() + interval '1 hour'", 'jobqueue_job_expiry' ])
	{
		my ($tuples, $blocks) = index_reads($opt->[2]);
		foreach my $i (1 .. 20)
		{
			bulk(1, role => 'r1', $opt->[0] => $opt->[1]);
			wait_drained();
		}
		check_effects(20);
		my ($tuples2, $blocks2) = index_reads($opt->[2]);
		cmp_ok($tuples2 - $tuples, '<', 45000, "$opt->[2]: entries, 20 times");
		cmp_ok($blocks2 - $blocks, '<', 5000, "$opt->[2]: blocks");
		note sprintf '%s: entries %d, blocks %d', $opt->[2], $tuples2 - $tuples, $blocks2 - $blocks;
	}
	$old->query_safe('COMMIT');
};

backlog_property 'due jobs beside dead entries of jobs that would have expired' => sub {
	my $old = old_snapshot();

	bulk(20000, role => 'r1', expires_at => "clock_timestamp() + interval '1 hour'");
	check_effects(20000);
	my ($tuples, $blocks) = index_reads('jobqueue_job_expiry');
	foreach my $i (1 .. 20)
	{
		bulk(1, role => 'r1', run_at => "clock_timestamp() + interval '1 ms'");
		wait_drained();
	}
	check_effects(20);
	my ($tuples2, $blocks2) = index_reads('jobqueue_job_expiry');
	# a scheduler that starts may look at all of them
	cmp_ok($tuples2 - $tuples, '<', 60000, 'they are not walked over for each');
	note sprintf 'entries %d, blocks %d', $tuples2 - $tuples, $blocks2 - $blocks;
	$old->query_safe('COMMIT');
};

backlog_property 'thousands of jobs that expire at the same time' => sub {
	my $old = old_snapshot();

	foreach my $round (1 .. 2)
	{
		my $gate = stop_workers('r1');

		sql_as('r1', "SELECT count(jobqueue_enqueue('effect', '{}', expires_at => t + interval '3 s'))
			FROM (SELECT clock_timestamp() AS t OFFSET 0) x, generate_series(1, 3700)");
		is(sql("SELECT count(DISTINCT expires_at), count(*) FROM jobqueue_job WHERE expires_at IS NOT NULL"),
			'1|3700', 'all at one time');
		wait_for("SELECT count(*) = 3700 FROM jobqueue_history WHERE state = 'cancelled' AND reason = 'expired'");
		is(sql("SELECT count(*) FROM jobqueue_job"), 1, 'none is left');
		open_gate($gate);
		check_effects_none();
		sql('DELETE FROM jobqueue_archive');
	}
	$old->query_safe('COMMIT');
};

backlog_property 'thousands of rows of the history that are old at the same time' => sub {
	my $old = old_snapshot();

	sql("INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, expires_at, home, owner, priority, attempt, kind, state, queue, command)
		SELECT 900000000 + i, now(), now(), CASE WHEN i <= 4300 THEN now() ELSE now() + interval '1 hour' END,
			jobqueue_home(), 'r1', 0, 1, 'f', 'dead', 'default', 'x' FROM generate_series(1, 4400) i");
	wait_for('SELECT count(pg_terminate_backend(pid)) >= 0 FROM pg_stat_activity WHERE backend_type = \'jobqueue scheduler\'');
	bulk(1, role => 'r1', run_at => 'clock_timestamp()');
	wait_for('SELECT count(*) = 100 FROM jobqueue_archive');
	is(sql('SELECT count(*) FROM jobqueue_archive WHERE expires_at <= now()'), 0, 'none is left');
	check_effects(1);
	sql('DELETE FROM jobqueue_archive');
	$old->query_safe('COMMIT');
};

backlog_property 'rows that are due are found by index, though statistics say that there are none' => sub {
	my $gate = stop_workers('r1');
	my $read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'jobqueue_job_due'";
	my $before;

	sql('VACUUM jobqueue_job');
	is( sql("SELECT reltuples < 10, relpages > 100 FROM pg_class WHERE oid = 'jobqueue_job'::regclass"),
		't|t',
		'statistics of an empty table');
	$before = sql($read);
	sql_as('r1', "SELECT count(jobqueue_enqueue('effect', '{}', run_at => t + interval '3 s'))
		FROM (SELECT clock_timestamp() AS t OFFSET 0) x, generate_series(1, 20000)");
	wait_for('SELECT count(*) < 200 FROM jobqueue_job WHERE run_at IS NOT NULL');
	open_gate($gate);
	check_effects(20000);
	wait_for("SELECT ($read) >= $before + 19000");
	cmp_ok(sql($read) - $before, '<', 1_000_000, 'no row is read again and again');
};

# some wait for something, and none of them is worth looking at it again and again
backlog_property 'jobs that were due and had to give way to those of other queues keep nobody busy' => sub {
	my $gate = stop_workers('r1');

	due_for_r1(80);
	bulk(30, role => 'r1', queue => "'q$_'") foreach 1 .. 10;
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'
		AND state = 'idle' AND clock_timestamp() - state_change > interval '1 s'");
	check_numbers(due_and_others(80), 'numbers are right');
	open_gate($gate);
	check_order();
	check_effects(380);
};

backlog_property 'jobs that were due and had to give way while somebody has their rows locked are not lost' => sub {
	my $gate = stop_workers('r1');
	my $locker = session();

	due_for_r1(80);
	$locker->query_safe("BEGIN; SELECT count(*) FROM (SELECT FROM jobqueue_job WHERE queue = 'due' AND id % 4 = 0 FOR UPDATE) l");
	bulk(30, role => 'r1', queue => "'q$_'") foreach 1 .. 10;
	# what could be made ready has been
	wait_for("SELECT count(*) > 0 AND bool_and(id % 4 <> 0) FROM jobqueue_job WHERE queue = 'due' AND run_at IS NULL");
	$locker->query_safe('COMMIT');
	check_numbers(due_and_others(80), 'numbers are right');
	open_gate($gate);
	check_order();
	check_effects(380);
};

backlog_property 'a due job of a key with more jobs than memory keeps is found when it had to leave memory' => sub {
	my $other = use_key();

	my $late = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 5}', key => 'k', queue => 'due', priority => 5, run_at => clock_timestamp() + interval '1 h')});
	bulk(80, role => 'r1', queue => "'due'", key => "'k'");
	wait_for(q{SELECT blocked = 80 FROM jobqueue_status WHERE queue = 'due'});
	my $gate = stop_workers('r1');
	sql("SELECT jobqueue_reschedule($late, clock_timestamp() + interval '0.2 s')");
	wait_for(q{SELECT ready = 1 FROM jobqueue_status WHERE queue = 'due'});
	bulk(100, role => 'r2', queue => "'rest'");
	# the lane is to be read anew
	my $last = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 7}', queue => 'due', priority => 7)});
	sql("UPDATE jobqueue_job SET args = args WHERE id = $last");
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	open_gate($gate);
	open_gate($other);
	check_effects(182);
};

backlog_property 'a due job of a key with more jobs than memory keeps, of which the key did not know, is found' => sub {
	my $other = use_key();

	# before all that wait for the key, and nobody else knows of it
	sql_as('r1', q{BEGIN; SELECT jobqueue_enqueue('effect', '{"p": 5}', key => 'k', queue => 'due', priority => 5, run_at => clock_timestamp() + interval '10 ms'); PREPARE TRANSACTION 'late'});
	bulk(80, role => 'r1', queue => "'due'", key => "'k'");
	wait_for(q{SELECT blocked = 80 FROM jobqueue_status WHERE queue = 'due'});
	sql(q{COMMIT PREPARED 'late'});
	# all that is due has been looked at
	enqueue('note', what => 'met', queue => 'due', role => 'r1', run_at => '-infinity');
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'met'});
	open_gate($other);
	check_effects(81);
};

backlog_property 'a job that became due while its key was in use, and had to leave memory, is found' => sub {
	my $other = use_key();

	my $job = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 0}', key => 'k', queue => 'due')});
	wait_for(q{SELECT blocked = 1 FROM jobqueue_status WHERE queue = 'due'});
	my $gate = stop_workers('r1');
	# it waits for the key, and does not know that it is due
	sql("SELECT jobqueue_reschedule($job, clock_timestamp() + interval '0.1 s')");
	wait_for(q{SELECT ready = 1 FROM jobqueue_status WHERE queue = 'due'});
	bulk(120, role => 'r1', queue => "'due'", p => -1);
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	open_gate($other);
	wait_for(q{SELECT count(*) = 0 FROM jobqueue_job WHERE queue = 'gate' AND key = 'k'});
	open_gate($gate);
	check_effects(121);
};

backlog_property 'and one whose entry that waits for the key has its old priority' => sub {
	my $other = use_key();

	my $job = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 5}', key => 'k', queue => 'due', priority => 5)});
	wait_for(q{SELECT blocked = 1 FROM jobqueue_status WHERE queue = 'due'});
	my $gate = stop_workers('r1');
	sql("SELECT jobqueue_reschedule($job, clock_timestamp() + interval '0.2 s')");
	sql("SELECT jobqueue_reprioritize($job, 0)");
	wait_for(q{SELECT ready = 1 FROM jobqueue_status WHERE queue = 'due'});
	bulk(120, role => 'r1', queue => "'due'", p => -1);
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	# the key has no room for that entry any more
	bulk(40, role => 'r3', queue => "'rest'", p => 1, key => "'k'");
	wait_for(q{SELECT blocked = 40 FROM jobqueue_status WHERE queue = 'rest'});
	open_gate($gate);
	wait_for('SELECT count(*) >= 120 FROM effects');
	open_gate($other);
	check_effects(161);
};

# as if time had gone by: memory is not told
sub due_only_now
{
	my ($where) = @_;

	sql(<<END);
BEGIN;
ALTER TABLE jobqueue_job DISABLE TRIGGER jobqueue_job_guard;
UPDATE jobqueue_job SET run_at = clock_timestamp() WHERE queue = 'due' AND $where;
ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_guard;
COMMIT
END
}

# so that nothing has to leave memory any more
sub make_room
{
	is(sql(q{SELECT count(jobqueue_cancel(id)) FROM (SELECT id FROM jobqueue_job WHERE priority = -1 LIMIT 30) c}), 30, 'there is room');
}

backlog_property 'jobs that became due, and had to leave memory, while others were published that are due are not lost' => sub {
	my $gate = stop_workers('r1');
	my $due = q{run_at => clock_timestamp() + interval '0.1 s'};

	due_for_r1(80);
	arm('due-after-look');
	sql_as('r1', qq{SELECT jobqueue_enqueue('effect', '{"p": -2}', queue => 'due', priority => -2, $due)});
	caught('due-after-look');
	# next, the scheduler is to look for what has left memory, and for what is due
	bulk(30, role => 'r1', queue => "'due'", p => -1);
	sql_as('r1', qq{SELECT jobqueue_enqueue('effect', '{"p": -2}', queue => 'due', priority => -2, $due)});
	wait_for(q{SELECT max(run_at) < clock_timestamp() FROM jobqueue_job WHERE priority = -2});
	sql(q{SELECT jobqueue_pause('zz')});
	arm('settings-after-snapshot');
	release('due-after-look');
	caught('settings-after-snapshot');
	due_only_now('priority = 0');
	arm('due-made-ready');
	release('settings-after-snapshot');
	caught('due-made-ready');
	bulk(40, role => 'r1', queue => "'due'", p => -1);
	make_room();
	release('due-made-ready');
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	open_gate($gate);
	check_effects(122);
}, \&paused_property;

backlog_property 'and while it is looked for what had to leave memory' => sub {
	my $gate = stop_workers('r1');

	due_for_r1(80);
	arm('lost-begun');
	bulk(60, role => 'r1', queue => "'due'", p => -1);
	caught('lost-begun');
	due_only_now('priority = 0');
	make_room();
	release('lost-begun');
	wait_for('SELECT count(*) = 0 FROM jobqueue_status WHERE estimated');
	open_gate($gate);
	check_effects(110);
}, \&paused_property;

backlog_property 'due jobs of a key with more jobs than memory keeps are counted once, however often all that is due is looked at' => sub {
	my $other = use_key();

	sql_as('r1', "SELECT count(jobqueue_enqueue('effect', '{\"p\": 0}', key => 'k', queue => 'due', run_at => t + interval '0.5 s'))
		FROM (SELECT clock_timestamp() AS t OFFSET 0) x, generate_series(1, 80)");
	wait_for(q{SELECT blocked = 80 FROM jobqueue_status WHERE queue = 'due'});
	sql(q{SELECT jobqueue_pause('rest')});
	foreach my $i (1 .. 3)
	{
		sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 0}', queue => 'rest', run_at => clock_timestamp() + interval '0.1 s')});
		wait_for("SELECT ready = $i FROM jobqueue_status WHERE queue = 'rest'");
		my $last = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 7}', queue => 'rest', priority => 7, run_at => clock_timestamp() + interval '1 h')});
		sql("UPDATE jobqueue_job SET args = args WHERE queue = 'rest' AND run_at < clock_timestamp()");
		sql("SELECT jobqueue_cancel($last)");
		wait_for("SELECT ready = $i AND NOT estimated FROM jobqueue_status WHERE queue = 'rest'");
	}
	# what a worker was to meet of them it has met
	enqueue('note', what => 'met', queue => 'due', role => 'r1', priority => 9);
	wait_for(q{SELECT count(*) = 1 FROM ran WHERE what = 'met'});
	check_numbers("due|0|0|80|0\nrest|3|0|0|0", 'numbers are right');
	sql(q{SELECT jobqueue_resume('rest')});
	open_gate($other);
	check_effects(83);
};

backlog_property 'due jobs that are to be looked for anew are not written anew where there is room' => sub {
	my $gate = stop_workers('r1');

	due_for_r1(30);
	my $last = sql_as('r1', q{SELECT jobqueue_enqueue('effect', '{"p": 7}', queue => 'due', priority => 7)});
	sql("UPDATE jobqueue_job SET args = args WHERE id = $last");
	check_numbers('due|31|0|0|0', 'numbers are right');
	is(sql(q{SELECT count(*) FROM jobqueue_job WHERE queue = 'due' AND run_at IS NULL}), 1, 'none is written');
	open_gate($gate);
	check_order();
	check_effects(31);
};

backlog_property 'due jobs of another database that have to give way are counted' => sub {
	my $gate = stop_workers('r1');

	sql('CREATE DATABASE other');
	JobqueueTest::add_database('other');
	sql(q{SELECT jobqueue_grant('r1', 'use'), jobqueue_pause('due')}, db => 'other');
	due_for_r1(80, 'other');
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler' AND datname = 'other'});
	bulk(30, role => 'r1', queue => "'q$_'") foreach 1 .. 10;
	check_numbers(due_and_others(0), 'numbers are right');
	is(sql(q{SELECT count(*) FROM jobqueue_status WHERE queue = 'due' AND NOT estimated AND ready <> 80}, db => 'other'), 0, 'and there');
	wait_for(q{SELECT ready = 80 AND NOT estimated FROM jobqueue_status WHERE queue = 'due'}, 't', 'other');
	open_gate($gate);
	check_effects(300);
	sql('DROP DATABASE other WITH (FORCE)');
};

property 'a queue with as many jobs as memory keeps is given up without much stack' => sub {
	my $limit = PostgreSQL::Test::Utils::slurp_file("/proc/$$/limits") =~ /^Max stack size\s+(\w+)/m ? $1 : die;
	my $crash = crash_offset();

	# a server inherits it
	system_or_bail('prlimit', "--pid=$$", '--stack=1048576:');
	set_conf('jobqueue.max_ready_jobs' => 100000);
	node()->restart;
	system_or_bail('prlimit', "--pid=$$", "--stack=$limit:");
	sql(q{SELECT jobqueue_pause('many')});
	sql(q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}', queue => 'many')) FROM generate_series(1, 90000)});
	wait_for(q{SELECT ready = 90000 AND NOT estimated FROM jobqueue_status WHERE queue = 'many'});
	sql(q{SELECT jobqueue_reprioritize_where('many', NULL, NULL, 1)});
	wait_for(q{SELECT ready = 90000 AND NOT estimated FROM jobqueue_status WHERE queue = 'many'});
	unlike(slurp_file(node()->logfile, $crash), qr/terminated by signal/, 'no process has crashed');
	sql(q{SELECT jobqueue_cancel_where('many', NULL, NULL)});
};

done_testing();
