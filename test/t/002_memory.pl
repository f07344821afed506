# Full memory, refill and commits that cross it.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('memory', conf => <<'END');
jobqueue.max_ready_jobs = 100
jobqueue.max_workers_per_role = 1
END
sql(<<'END');
CREATE TABLE effects (
	n bigint GENERATED ALWAYS AS IDENTITY,
	job bigint, priority int, attempt int);
GRANT INSERT ON effects TO PUBLIC;
CREATE FUNCTION effect(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO effects (job, priority, attempt)
		SELECT c.id, (args->>'p')::int, c.attempt FROM jobqueue_current() c $$;
-- one worker: what it does is in order
CREATE ROLE single LOGIN;
SELECT jobqueue_grant('single', 'use');
END

my $one_job = <<'END';
\set p random(-3, 3)
SELECT jobqueue_enqueue('effect', '{"p": :p}', priority => :p);
END

# how many, all different, none charged; and nothing left
sub check_effects
{
	my ($count, $what) = @_;

	wait_drained();
	is( sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM effects'),
		"$count|$count|1",
		"$what: none lost, none twice");
	memory_empties("$what: memory is empty");
	sql('TRUNCATE effects');
}

# every job ran after those of smaller priority and id
sub check_order
{
	is( sql(<<'END'), '', 'in order of priority and id');
WITH x AS (
	SELECT n, priority, job, (priority, job) < lag((priority, job)) OVER (ORDER BY n) AS bad
	FROM effects)
SELECT n, priority, job, bad FROM x
WHERE n BETWEEN (SELECT min(n) - 3 FROM x WHERE bad) AND (SELECT min(n) + 3 FROM x WHERE bad)
ORDER BY n
END
}

property 'full memory: order is kept where commits were in order' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	my $h = start_pgbench($one_job,
		clients => 8, transactions => 2500, role => 'single');
	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	is(sql('SELECT count(*) FROM jobqueue_job'), 20001, 'nothing has run');
	# the number is right when all rows have been counted
	wait_for('SELECT sum(spilled) > 15000 AND NOT bool_or(estimated) FROM jobqueue_status');
	pass('most are not in memory');
	open_gate($gate);
	wait_drained();
	check_order();
	check_effects(20000, 'in order');
};

property 'a bulk larger than memory in one transaction' => sub {
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', i % 7), priority => i % 7))
		FROM generate_series(1, 20000) i});
	wait_drained();
	check_order();
	check_effects(20000, 'bulk');
};

paused_property 'a bulk larger than memory: refill is quicker than the commit' => sub {
	my $bulk = session(role => 'single');
	arm('enqueue-before-push');
	send_sql($bulk,
		q{SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', i % 7), priority => i % 7))
		FROM generate_series(1, 2000) i});
	caught('enqueue-before-push');
	# the scheduler has read what the commit could not keep in mind
	wait_for('SELECT ready > 0 FROM jobqueue_status');
	release('enqueue-before-push');
	$bulk->query_safe('SELECT 1');
	wait_drained();
	check_order();
	check_effects(2000, 'bulk');
};

property 'late commit of a small id: before what memory knows' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	my $late = session(role => 'single');
	$late->query_safe('BEGIN');
	my $small = $late->query_safe(
		q{SELECT jobqueue_enqueue('effect', '{"p": 0}')});
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 1000)});
	$late->query_safe('COMMIT');
	open_gate($gate);
	wait_drained();
	is(sql('SELECT job FROM effects ORDER BY n LIMIT 1'),
		$small, 'the small id runs first');
	check_effects(1001, 'late commit');
};

property 'late commit of a small id: after all that is larger has run' => sub {
	my $late = session(role => 'single');
	$late->query_safe('BEGIN');
	$late->query_safe(q{SELECT jobqueue_enqueue('effect', '{"p": 0}')});
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 1000)});
	wait_drained();
	$late->query_safe('COMMIT');
	wait_for('SELECT count(*) = 1001 FROM effects');
	check_effects(1001, 'late commit');
};

property 'late commit of a small id: in the midst of many that pass it' => sub {
	my @late = map { session(role => 'single') } (1 .. 5);

	foreach my $s (@late)
	{
		$s->query_safe('BEGIN');
		$s->query_safe(q{SELECT jobqueue_enqueue('effect', '{"p": 0}')});
		sql_as('single',
			q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 1000)});
		wait_for('SELECT count(*) > 300 FROM effects');
	}
	$_->query_safe('COMMIT') foreach @late;
	wait_for('SELECT count(*) = 5005 FROM effects');
	check_effects(5005, 'late commits');
};

# The scheduler has its snapshot; what it knows is already old.
paused_property 'refill during commits' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	my $late = session(role => 'single');
	$late->query_safe('BEGIN');
	$late->query_safe(q{SELECT jobqueue_enqueue('effect', '{"p": 1}', priority => 1)});
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 300)});
	arm('refill-after-snapshot');
	open_gate($gate);
	caught('refill-after-snapshot');

	# a small key, larger ones, many that push others out
	$late->query_safe('COMMIT');
	sql_as('single', $_)
	  foreach (
		q{SELECT jobqueue_enqueue('effect', '{"p": 5}', priority => 5)},
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 50)},
		q{SELECT count(jobqueue_enqueue('effect', '{"p": -5}', priority => -5)) FROM generate_series(1, 200)}
	  );
	release('refill-after-snapshot');
	wait_for('SELECT count(*) = 552 FROM effects');
	check_effects(552, 'refill');
};

paused_property 'a commit that refill has seen before it was published' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 300)});
	my $slow = session(role => 'single');
	arm('enqueue-before-publish');
	send_sql($slow, q{SELECT jobqueue_enqueue('effect', '{"p": 0}')});
	caught('enqueue-before-publish');
	open_gate($gate);
	wait_for('SELECT count(*) = 301 FROM effects');
	release('enqueue-before-publish');
	$slow->query_safe('SELECT 1');
	wait_quiet(role => 'single');
	check_effects(301, 'published late');
};

paused_property 'a job that runs while a refill sees its row' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 300)});
	arm('worker-before-commit');
	open_gate($gate);
	# the first is stopped after its work; the rest of memory cannot go on
	caught('worker-before-commit');
	sql('SELECT jobqueue_sweep()');
	arm('refill-after-snapshot');
	release('worker-before-commit');
	caught('refill-after-snapshot');
	# by now it or others have ended; their rows are in that snapshot
	release('refill-after-snapshot');
	wait_for('SELECT count(*) = 300 FROM effects');
	check_effects(300, 'running ones');
};

property 'order holds beside a full memory of another role' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, priority => -100);
	wait_at_gate(1);
	sql(q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}')) FROM generate_series(1, 2000)});
	# memory is full of jobs that cannot run now
	sql_as('single',
		q{SELECT count(jobqueue_enqueue('effect', jsonb_build_object('p', i % 3), priority => i % 3))
		FROM generate_series(1, 500) i});
	wait_for('SELECT count(*) = 500 FROM effects');
	pass('jobs of the other role have run');
	open_gate($gate);
	wait_for('SELECT count(*) = 2500 FROM effects');
	check_effects(2500, 'both roles');
};

property 'full memory: 20,000 jobs of mixed priority from 8 clients' => sub {
	set_conf('jobqueue.max_workers_per_role' => 0);
	my $h = start_pgbench($one_job, clients => 8, transactions => 2500);

	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	check_effects(20000, 'while they run');
};

property 'keys and full memory' => sub {
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, key => 'hot');
	wait_at_gate(1);
	sql(q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}', key => 'hot')) FROM generate_series(1, 40)});
	sql(q{SELECT count(jobqueue_enqueue('effect', '{"p": 0}', key => 'k' || i % 9)) FROM generate_series(1, 2000) i});
	wait_for('SELECT count(*) = 2000 FROM effects');
	pass('others pass those that wait for a key');
	open_gate($gate);
	wait_for('SELECT count(*) = 2040 FROM effects');
	check_effects(2040, 'keys');
};

property 'restart with a backlog' => sub {
	set_conf('jobqueue.max_workers_per_role' => undef);
	node()->restart;
	forget();
	my $gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'single', priority => -100);
	wait_at_gate(1);
	my $h = start_pgbench($one_job,
		clients => 4, transactions => 1000, role => 'single');
	ok($h->finish, 'enqueued');
	my $due = sql(q{SELECT jobqueue_enqueue('effect', '{"p": 0}', run_at => clock_timestamp() + interval '1 s')});
	node()->restart;
	wait_for('SELECT count(*) = 4001 FROM effects');
	is( sql("SELECT count(*) FROM (SELECT (priority, job) < lag((priority, job)) OVER (ORDER BY n) AS bad FROM effects WHERE job <> $due) x WHERE bad"),
		0,
		'in order of priority and id');
	check_effects(4001, 'after a restart');
	is(ran(), 'gate', 'what a shutdown interrupted ran again');
	is(sql('SELECT attempt FROM ran'), 1, 'and was not charged');
	forget();
};

done_testing();
