# Jobs that wait for others: long chains, many at once, races, crashes, dumps.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('after', conf => <<'END');
jobqueue.max_workers = 4
jobqueue.max_workers_per_role = 2
autovacuum = off
END
sql(<<'END');
-- no order is kept by locks here: what ran before whom is told by ids
CREATE TABLE trace (n bigint GENERATED ALWAYS AS IDENTITY, job bigint, what text);
CREATE FUNCTION trace(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO trace (job, what) VALUES ((jobqueue_current()).id, args->>'what') $$;
CREATE FUNCTION chain(length int, first bigint DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE last bigint := first;
BEGIN
	FOR i IN 1 .. length LOOP
		last := jobqueue_enqueue('trace', '{"what": "link"}', after => ARRAY[last]);
	END LOOP;
	RETURN last;
END $$;
CREATE FUNCTION one(what text, VARIADIC deps bigint[] DEFAULT '{}') RETURNS bigint LANGUAGE sql AS
	$$ SELECT jobqueue_enqueue('trace', jsonb_build_object('what', what), tags => ARRAY[what], after => deps) $$;
END

sub clean_property
{
	my ($name, $code) = @_;
	property($name, sub { sql('TRUNCATE trace, ran; DELETE FROM jobqueue_archive'); $code->() });
}

sub clean_paused_property
{
	my ($name, $code) = @_;
	paused_property($name, sub { sql('TRUNCATE trace, ran; DELETE FROM jobqueue_archive'); $code->() });
}

# how many links of chains ran before the one that they waited for
sub out_of_order
{
	return sql('SELECT count(*) FROM (SELECT job < max(job) OVER (ORDER BY n) AS late FROM trace) x WHERE late');
}

sub no_edges_left
{
	wait_for('SELECT count(*) = 0 FROM jobqueue_dependency');
	memory_empties('memory is empty');
}

clean_property 'chain_of_10000_runs_in_order' => sub {
	my $head = enqueue('trace', what => 'head');

	sql("SELECT chain(10000, $head)");
	wait_for('SELECT count(*) = 10001 FROM trace');
	is(out_of_order(), 0, 'one after the other');
	wait_drained();
	no_edges_left();
};

clean_property 'cancel_goes_down_a_chain_of_10000' => sub {
	my $gate = close_gate(1);
	my $head = enqueue('gate', gate => 1, max_attempts => 1);

	wait_at_gate();
	sql("SELECT chain(10000, $head)");
	wait_for('SELECT count(*) = 10000 FROM jobqueue_dependency');
	sql("SELECT jobqueue_cancel($head)");
	wait_drained();
	is(sql('SELECT state, reason, count(*) FROM jobqueue_history GROUP BY 1, 2 ORDER BY 3'),
		"cancelled|cancelled while it ran|1\ncancelled|job $head that it waited for was cancelled: cancelled while it ran|10000",
		'all are cancelled, and say why');
	is(sql('SELECT count(*) FROM trace'), 0, 'none has run');
	no_edges_left();
	open_gate($gate);
};

clean_property 'fan_out_and_fan_in_of_1000' => sub {
	my $top = enqueue('trace', what => 'top');
	my $bottom = sql("SELECT one('bottom', VARIADIC array_agg(m)) FROM jobqueue_enqueue_many('trace', "
		  . "ARRAY(SELECT '{\"what\": \"middle\"}'::jsonb FROM generate_series(1, 1000)), after => '{$top}') m");

	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'bottom'");
	wait_drained();
	is(sql('SELECT what, count(*) FROM trace GROUP BY 1 ORDER BY min(n)'),
		"top|1\nmiddle|1000\nbottom|1", 'top, middle, bottom');
	is(sql("SELECT count(*) FROM trace WHERE n > (SELECT n FROM trace WHERE what = 'bottom')"),
		0, 'the bottom is the last');
	no_edges_left();
};

# with one transaction that ends more of them than a request can name
clean_property 'many_ends_at_once_reach_all_that_wait' => sub {
	foreach my $n (2000, 8500)
	{
		my $last;

		sql("SELECT jobqueue_pause('default')");
		sql("SELECT count(one('dep')) FROM generate_series(1, $n)");
		$last = sql("SELECT one('fan-in', VARIADIC array_agg(id)) FROM jobqueue_job");
		wait_for("SELECT count(*) = $n FROM jobqueue_dependency");
		sql("SELECT one('own', id) FROM jobqueue_job WHERE tags = '{dep}' AND id % 10 = 0");
		is(sql("SELECT jobqueue_cancel_where(NULL, NULL, 'dep')"), $n, "$n are cancelled");
		wait_for('SELECT count(*) = 0 FROM jobqueue_job');
		is(sql("SELECT count(DISTINCT id) FROM jobqueue_history WHERE state = 'cancelled' AND tags <> '{dep}'"),
			1 + int($n / 10), 'all that wait are');
		sql("SELECT jobqueue_resume('default'); DELETE FROM jobqueue_archive");
		no_edges_left();
	}
};

clean_property 'layers_that_all_wait_for_all_run_in_order' => sub {
	my $ids = sql("SELECT array_agg(one('layer 0')) FROM generate_series(1, 20)");

	foreach my $layer (1 .. 10)
	{
		$ids = sql("SELECT array_agg(one('layer $layer', VARIADIC '$ids')) FROM generate_series(1, 20)");
	}
	wait_for('SELECT count(*) = 220 FROM trace');
	is(out_of_order_layers(), 0, 'no layer begins before the one above has ended');
	no_edges_left();
};

sub out_of_order_layers
{
	return sql(q{SELECT count(*) FROM (SELECT l, max(l) OVER (ORDER BY n) AS m FROM
		(SELECT n, substr(what, 7)::int AS l FROM trace) x) y WHERE l < m});
}

clean_property 'random_graphs_are_kept_by_8_clients' => sub {
	my $bench = start_pgbench(<<'END', clients => 8, transactions => 50);
SELECT jobqueue_enqueue('trace', '{"what": "a"}', priority => (random() * 10)::int) AS a \gset
SELECT jobqueue_enqueue('trace', jsonb_build_object('what', 'after ' || :a), after => ARRAY[:a]) AS b \gset
BEGIN;
SELECT jobqueue_enqueue('trace', jsonb_build_object('what', 'after ' || :b), after => ARRAY[:a, :b], priority => -5) AS c \gset
SELECT jobqueue_enqueue('trace', jsonb_build_object('what', 'after ' || :c), after => ARRAY[:c]) AS d \gset
END;
END

	$bench->finish;
	is($bench->result(0), 0, 'no error') or diag ${ $bench->{out} };
	wait_drained();
	is(sql('SELECT count(*) FROM trace'), 1600, 'all have run');
	is(sql("SELECT count(*) FROM trace t WHERE what LIKE 'after%' AND NOT EXISTS "
			  . "(SELECT FROM trace d WHERE d.job = substr(t.what, 7)::bigint AND d.n < t.n)"),
		0, 'each after what it waited for');
	no_edges_left();
};

# ---- races -------------------------------------------------------------------

clean_paused_property 'end_between_enqueue_and_publication' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);
	my $s = session();

	wait_at_gate();
	arm('after-before-push');
	send_sql($s, "SELECT one('waits', $dep)");
	caught('after-before-push');
	open_gate($gate);
	wait_state($dep, 'completed');
	is(sql('SELECT count(*) FROM trace'), 0, 'nobody knows of it yet');
	release('after-before-push');
	wait_for('SELECT count(*) = 1 FROM trace');
	pass('it has run');
	no_edges_left();
};

clean_paused_property 'end_between_commit_and_request' => sub {
	my $dep;

	# the worker has committed and told nobody
	arm('worker-after-commit');
	$dep = enqueue('trace', what => 'dep');
	caught('worker-after-commit');
	sql("SELECT one('waits', $dep)");
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	release('worker-after-commit');
	wait_drained();
	no_edges_left();
};

clean_paused_property 'end_while_the_scheduler_looks' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);

	wait_at_gate();
	arm('after-before-look');
	sql("SELECT one('waits', $dep)");
	caught('after-before-look');
	open_gate($gate);
	wait_state($dep, 'completed');
	release('after-before-look');
	wait_for('SELECT count(*) = 1 FROM trace');
	wait_drained();
	# and after it has looked, but not committed
	$gate = close_gate(1);
	$dep = enqueue('gate', gate => 1);
	wait_at_gate();
	arm('after-before-commit');
	sql("SELECT one('waits', $dep)");
	caught('after-before-commit');
	open_gate($gate);
	wait_state($dep, 'completed');
	release('after-before-commit');
	wait_for('SELECT count(*) = 2 FROM trace');
	no_edges_left();
};

clean_property 'two_last_ones_end_at_once' => sub {
	foreach my $round (1 .. 20)
	{
		my $gate = close_gate(1);
		my $a = enqueue('gate', gate => 1);
		my $b = enqueue('gate', gate => 1);

		sql("SELECT one('both', $a, $b)");
		wait_at_gate(2);
		open_gate($gate);
		$gate->quit;
		wait_drained();
	}
	is(sql('SELECT count(*) FROM trace'), 20, 'each has run once');
	no_edges_left();
};

clean_property 'a_row_that_somebody_has_locked_is_let_go_later' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);
	my $waits = sql("SELECT one('waits', $dep)");
	my $s = session();

	wait_at_gate();
	$s->query_safe("BEGIN; SELECT id FROM jobqueue_job WHERE id = $waits FOR UPDATE");
	open_gate($gate);
	wait_state($dep, 'completed');
	# others are not held up
	sql("SELECT one('other', " . enqueue('trace', what => 'first') . ')');
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'other'");
	is(sql("SELECT count(*) FROM trace WHERE what = 'waits'"), 0, 'it waits for the lock');
	$s->query_safe('COMMIT');
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	no_edges_left();
};

clean_property 'the_scheduler_sleeps_while_a_row_is_locked' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);
	my $waits = sql("SELECT one('waits', $dep)");
	my $s = session();
	my $asleep = 0;

	wait_at_gate();
	$s->query_safe("BEGIN; SELECT id FROM jobqueue_job WHERE id = $waits FOR UPDATE");
	open_gate($gate);
	wait_state($dep, 'completed');
	# the edge goes with the first look; the row is to be looked at again
	wait_for('SELECT count(*) = 0 FROM jobqueue_dependency');
	foreach (1 .. 20)
	{
		$asleep += sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler' AND state = 'idle' AND wait_event_type IS NOT NULL");
	}
	cmp_ok($asleep, '>=', 10, 'between two looks it sleeps');
	$s->query_safe('COMMIT');
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	no_edges_left();
};

clean_paused_property 'end_while_the_scheduler_looks_at_all' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);

	wait_at_gate();
	sql("SELECT one('waits', $dep)");
	wait_for('SELECT count(*) = 1 FROM jobqueue_dependency');
	arm('after-looked');
	sql('SELECT jobqueue_sweep()');
	caught('after-looked');
	open_gate($gate);
	wait_state($dep, 'completed');
	release('after-looked');
	wait_for('SELECT count(*) = 1 FROM trace');
	pass('it has run');
	no_edges_left();
};

clean_paused_property 'many_that_wait_hold_up_no_others' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);

	wait_at_gate();
	sql("SELECT count(one('waits', $dep)) FROM generate_series(1, 1200)");
	wait_for('SELECT count(*) = 1200 FROM jobqueue_dependency');
	# it takes several transactions to let them go
	arm('after-before-commit');
	open_gate($gate);
	caught('after-before-commit');
	sql(q{INSERT INTO jobqueue_job (command, args, run_at) VALUES ('note', '{"what": "due"}', now())});
	# that one goes on, and the next one is caught
	sql("SELECT jq_pause_arm('after-before-commit')");
	caught('after-before-commit');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'due'");
	pass('what is due has run meanwhile');
	release('after-before-commit');
	wait_for('SELECT count(*) = 1200 FROM trace');
	no_edges_left();
};

clean_paused_property 'many_that_wait_for_one_that_lives_again' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1, run_at => '2999-01-01');
	my $s = session();

	sql("SELECT count(one('waits', $dep)) FROM generate_series(1, 600)");
	wait_for('SELECT count(*) = 600 FROM jobqueue_dependency');
	arm('after-before-push');
	send_sql($s, "SELECT jobqueue_cancel($dep)");
	caught('after-before-push');
	sql("SELECT jobqueue_retry($dep)");
	wait_at_gate();
	release('after-before-push');
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler' AND state = 'idle'");
	is(sql('SELECT count(*) FROM jobqueue_dependency'), 600, 'they wait for it');
	open_gate($gate);
	wait_for('SELECT count(*) = 600 FROM trace');
	no_edges_left();
};

clean_paused_property 'how_it_ended_is_there_until_it_was_seen' => sub {
	my $dep = enqueue('trace', what => 'dep', run_at => '2999-01-01');
	my $waits = sql("SELECT one('waits', $dep)");
	my $s = session();

	wait_for('SELECT count(*) = 1 FROM jobqueue_dependency');
	# it is cancelled, and nobody has been told
	arm('after-before-push');
	send_sql($s, "SELECT jobqueue_cancel($dep)");
	caught('after-before-push');
	is(sql('SELECT jobqueue_purge(NULL, NULL, everything => true)'), 0, 'it is not purged');
	release('after-before-push');
	wait_state($waits, 'cancelled');
	is(sql('SELECT count(*) FROM trace'), 0, 'what waits has not run');
	no_edges_left();
	is(sql('SELECT jobqueue_purge(NULL, NULL, everything => true)'), 2, 'now it is');
};

clean_property 'a_dependency_that_is_being_changed_is_not_waited_for' => sub {
	my $dep = enqueue('trace', what => 'dep', run_at => '2999-01-01');
	my $s = session();

	$s->query_safe("BEGIN; SELECT jobqueue_reprioritize($dep, 1)");
	sql("SET statement_timeout = '60s'; SELECT one('waits', $dep)");
	pass('the enqueue did not wait');
	$s->query_safe("SELECT jobqueue_reschedule($dep, NULL); COMMIT");
	wait_for('SELECT count(*) = 2 FROM trace');
	is(sql("SELECT string_agg(what, ' ' ORDER BY n) FROM trace"), 'dep waits', 'in order');
	no_edges_left();
};

clean_property 'a_cancel_rolled_back_lets_it_run' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);
	my $waits = sql("SELECT one('waits', $dep)");
	my $s = session();

	wait_at_gate();
	$s->query_safe("BEGIN; SELECT jobqueue_cancel($waits)");
	open_gate($gate);
	wait_state($dep, 'completed');
	sql("SELECT one('other', " . enqueue('trace', what => 'first') . ')');
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'other'");
	is(sql("SELECT count(*) FROM trace WHERE what = 'waits'"), 0, 'it is held');
	$s->query_safe('ROLLBACK');
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	no_edges_left();
};

clean_property 'an_uncommitted_dependency_is_waited_for' => sub {
	my $other = session();
	my $s = session();
	my $dep = $other->query_safe("BEGIN; SELECT one('dep')");

	$dep =~ s/\D//g;
	send_sql($s, "SELECT one('waits', $dep)");
	wait_for("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted");
	$other->query_safe('COMMIT');
	wait_for('SELECT count(*) = 2 FROM trace');
	is(sql("SELECT string_agg(what, ' ' ORDER BY n) FROM trace"), 'dep waits', 'in order');
	# and prepared
	sql('TRUNCATE trace');
	$dep = $other->query_safe("BEGIN; SELECT one('dep'); PREPARE TRANSACTION 'p'");
	$dep =~ s/\D//g;
	send_sql($s, "SELECT one('waits', $dep)");
	wait_for("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted");
	sql("COMMIT PREPARED 'p'");
	wait_for('SELECT count(*) = 2 FROM trace');
	is(sql("SELECT string_agg(what, ' ' ORDER BY n) FROM trace"), 'dep waits', 'in order');
	no_edges_left();
};

clean_property 'one_that_waits_may_be_prepared' => sub {
	my $gate = close_gate(1);
	my $dep = enqueue('gate', gate => 1);

	sql("BEGIN; SELECT one('waits', $dep); PREPARE TRANSACTION 'p'");
	wait_at_gate();
	open_gate($gate);
	wait_state($dep, 'completed');
	sql("COMMIT PREPARED 'p'");
	wait_for('SELECT count(*) = 1 FROM trace');
	no_edges_left();
};

# ---- restarts ----------------------------------------------------------------

clean_property 'waiting_jobs_survive_a_restart' => sub {
	my $dep;

	sql('SELECT jobqueue_quiesce()');
	$dep = enqueue('trace', what => 'dep');
	sql("SELECT chain(100, $dep)");
	$node->restart;
	wait_for('SELECT count(*) = 101 FROM trace');
	is(out_of_order(), 0, 'in order');
	no_edges_left();
};

clean_property 'crashes_lose_none_and_start_none_early' => sub {
	my @heads;

	foreach my $round (1 .. 5)
	{
		my $offset = crash_offset();
		my $whom = $round % 2 ? 'jobqueue scheduler' : 'jobqueue worker';
		my $head = enqueue('trace', what => 'head');

		push @heads, $head;
		sql("SELECT chain(300, $head); SELECT chain(300, $head)");
		wait_for("SELECT count(*) > 100 FROM trace WHERE job > $head");
		wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = '$whom'");
		kill_hard(sql("SELECT pid FROM pg_stat_activity WHERE backend_type = '$whom' LIMIT 1"));
		wait_crash_restart($offset);
	}
	wait_for('SELECT count(*) = 0 FROM jobqueue_job');
	is(sql('SELECT count(DISTINCT job), count(*) FROM trace'), '3005|3005', 'each has run once');
	foreach my $head (@heads)
	{
		is(sql("SELECT count(*) FROM (SELECT job < max(job) OVER (PARTITION BY (job - $head - 1) / 300 ORDER BY n) AS late FROM trace WHERE job BETWEEN $head + 1 AND $head + 600) x WHERE late"),
			0, 'in order');
	}
	no_edges_left();
};

clean_paused_property 'a_crash_between_end_and_request' => sub {
	my $dep;
	my $pid;
	my $offset = crash_offset();

	sql('SELECT jobqueue_quiesce()');
	$dep = enqueue('trace', what => 'dep', queue => 'q');
	sql("SELECT one('waits', $dep)");
	wait_for('SELECT count(*) = 1 FROM jobqueue_dependency');
	arm('worker-after-commit');
	sql('SELECT jobqueue_resume()');
	$pid = caught('worker-after-commit');
	# the commit is on disk, nobody knows of it
	sql('SELECT pg_switch_wal()');
	kill_hard($pid);
	wait_crash_restart($offset);
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	is(sql("SELECT count(*) FROM trace WHERE what = 'dep'"), 1, 'and what it waited for has run once');
	no_edges_left();
};

clean_paused_property 'a_job_may_end_while_the_first_look_is_on' => sub {
	my ($first, $second);

	sql(q{SELECT jobqueue_pause('q')});
	$first = enqueue('trace', what => 'first', queue => 'q');
	$second = enqueue('trace', what => 'second', queue => 'q');
	sql("SELECT one('waits', $first, $second)");
	wait_for('SELECT count(*) = 2 FROM jobqueue_dependency');
	# memory knows of no job that others wait for
	set_conf('jobqueue.enabled' => 'off');
	$node->restart;
	arm('after-cleaned');
	arm('after-before-commit');
	set_conf('jobqueue.enabled' => undef);
	caught('after-cleaned');
	sql("SELECT jobqueue_run($first)");
	release('after-cleaned');
	caught('after-before-commit');
	release('after-before-commit');
	sql("SELECT jobqueue_run($second)");
	wait_for("SELECT count(*) = 1 FROM trace WHERE what = 'waits'");
	sql(q{SELECT jobqueue_resume('q')});
	no_edges_left();
};

clean_property 'the_end_of_the_scheduler_loses_nothing' => sub {
	my $dep = enqueue('trace', what => 'head');

	sql("SELECT chain(500, $dep)");
	foreach my $round (1 .. 3)
	{
		wait_for('SELECT count(*) > ' . 100 * $round . ' FROM trace');
		wait_for("SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'");
	}
	wait_for('SELECT count(*) = 501 FROM trace');
	is(out_of_order(), 0, 'in order');
	no_edges_left();
};

# ---- dumps -------------------------------------------------------------------

clean_property 'restored_jobs_wait_for_each_other' => sub {
	my $file = $node->basedir . '/after.sql';
	my $dep;

	sql('SELECT jobqueue_quiesce()');
	$dep = enqueue('trace', what => 'head');
	sql("SELECT chain(50, $dep)");
	wait_for('SELECT count(*) = 50 FROM jobqueue_dependency');
	$node->command_ok([ 'pg_dump', '-f', $file, $node->connstr('postgres') ], 'dump');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	is(sql('SELECT count(*) FROM trace'), 51, 'all have run here');
	sql('CREATE DATABASE copy');
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, $node->connstr('copy') ], 'restore');
	is(sql('SELECT state, count(*) FROM jobqueue_jobs GROUP BY 1', db => 'copy'), 'held|51', 'all are held');
	is(sql('SELECT jobqueue_adopt()', db => 'copy'), 51, 'adopted');
	wait_drained(db => 'copy');
	is(sql('SELECT count(*), count(*) FILTER (WHERE late) FROM (SELECT job < max(job) OVER (ORDER BY n) AS late FROM trace) x', db => 'copy'),
		'51|0', 'and run there, in order');
	sql('DROP DATABASE copy WITH (FORCE)');
};

done_testing();
