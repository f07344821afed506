# Batches: several jobs in one transaction, each as if it were alone.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

# one worker for each role, so that jobs enqueued together are taken together
new_node('batch', conf => <<'END');
jobqueue.max_workers_per_role = 1
END
sql(<<'END');
ALTER TABLE ran ADD xid text DEFAULT pg_current_xact_id()::text;
CREATE SEQUENCE tries;
GRANT ALL ON SEQUENCE tries TO PUBLIC;
CREATE FUNCTION maybe_fail(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('tries');
	INSERT INTO ran (what) VALUES (args->>'what');
	IF args ? 'fail' THEN
		RAISE EXCEPTION 'failed on purpose';
	END IF;
END $$;
SELECT jobqueue_configure('b', batch => 50);
END

# jobs of queue b, enqueued in one transaction; their ids
sub enqueue_together
{
	my (@jobs) = @_;
	my $list = join ', ', map { "jobqueue_enqueue($_, queue => 'b')" } @jobs;

	return split /\|/, sql("SELECT $list");
}

sub note_of { return map { qq('note', '{"what": "$_"}') } @_; }

sub xids { return sql('SELECT count(DISTINCT xid) FROM ran'); }

# no batch that failed is to be remembered
sub fresh
{
	wait_drained();
	forget();
	sql('DELETE FROM jobqueue_archive');
	# as many as would run alone
	sql(q{SELECT count(jobqueue_enqueue('note', '{}', queue => 'b')) FROM generate_series(1, 60)});
	wait_drained();
	forget();
}

sub outcomes
{
	my (@ids) = @_;

	return sql(sprintf <<'END', join(',', @ids));
SELECT string_agg(outcome || ' ' || attempt, ', ' ORDER BY id, ended_at)
FROM jobqueue_recent WHERE id IN (%s)
END
}

property 'jobs that are ready together share transactions' => sub {
	fresh();
	my @ids = enqueue_together(note_of('a' .. 'j'));
	wait_drained();
	is(ran(), 'a b c d e f g h i j', 'in order');
	cmp_ok(xids(), '<', 10, 'in less transactions');
	is(outcomes(@ids), join(', ', ('completed 1') x 10), 'each noted');
};

property 'a long job is not followed by others in its transaction' => sub {
	fresh();
	enqueue_together(q{'SELECT pg_sleep(1.1); INSERT INTO ran (what) VALUES (''long'')'}, note_of('a'));
	wait_drained();
	is(ran(), 'long a', 'in order');
	is(xids(), 2, 'each in its own');
};

property 'results and the history are those of single jobs' => sub {
	fresh();
	my @ids = enqueue_together(map { qq('SELECT \$1->>''n''', '{"n": $_}', keep => '1 day') } 1 .. 5);
	wait_drained();
	is(sql(q{SELECT string_agg(result::text, ' ' ORDER BY id) FROM jobqueue_history WHERE state = 'completed'}),
		'"1" "2" "3" "4" "5"', 'kept');
	is(sql(sprintf q{SELECT string_agg(result, ' ' ORDER BY id) FROM jobqueue_recent WHERE id IN (%s)}, join ',', @ids),
		'"1" "2" "3" "4" "5"', 'recent');
	is(sql(sprintf q{SELECT count(*) FROM jobqueue_recent r WHERE id IN (%s) AND started_at <= ended_at AND enqueued_at <= started_at}, join ',', @ids),
		5, 'times of its own');
};

property 'one of 100 fails: the others are done once, it is charged once an attempt' => sub {
	fresh();
	sql(q{SELECT setval('tries', 1, false)});
	sql(<<'END');
SELECT count(jobqueue_enqueue('maybe_fail', CASE WHEN i = 40 THEN '{"fail": 1}' ELSE '{}' END::jsonb,
	queue => 'b', max_attempts => 1)) FROM generate_series(1, 100) i
END
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM ran'), '99|99|1', 'each once');
	is(sql(q{SELECT count(*), max(attempt), max(jsonb_array_length(errors)) FROM jobqueue_history WHERE state = 'dead'}),
		'1|1|1', 'one is dead, of one attempt');
};

property 'after a failed batch jobs run alone, for a while' => sub {
	fresh();
	enqueue_together(note_of('a'), q('maybe_fail', '{"fail": 1}', max_attempts => 1), note_of('b' .. 'z'));
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran}), 26, 'all ran');
	forget();
	sql(q{SELECT count(jobqueue_enqueue('note', '{}', queue => 'b')) FROM generate_series(1, 20)});
	wait_drained();
	is(xids(), 20, 'alone');
	forget();
	sql(q{SELECT count(jobqueue_enqueue('note', '{}', queue => 'b')) FROM generate_series(1, 100)});
	wait_drained();
	cmp_ok(xids(), '<', 100, 'and together again');
};

property 'errors of a statement, of a timeout and of a deferred constraint are those of their jobs' => sub {
	sql(<<'END');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
END
	foreach my $case (
		[ q{'SELECT 1/0'}, '22012', 'division by zero' ],
		[ q{'SELECT pg_sleep(60)', timeout => '200 ms'}, '57014', 'job timed out' ],
		[ q{'INSERT INTO child VALUES (1)'}, '23503', 'at commit: insert or update' ])
	{
		fresh();
		my ($command, $state, $message) = @$case;
		my @ids = enqueue_together(note_of('a', 'b'), "$command, max_attempts => 1", note_of('c', 'd'));
		wait_drained();
		is(ran(), 'a b c d', "$state: the others ran");
		like(sql(q{SELECT id, errors->0->>'sqlstate', errors->0->>'error' FROM jobqueue_history}),
			qr/^$ids[2]\|$state\|$message/, 'the right one is dead');
	}
};

property 'what a job sets is not seen by the next' => sub {
	sql(q{CREATE SCHEMA other; CREATE FUNCTION tell() RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.ran (what) VALUES (current_setting('work_mem') || ',' || current_user || ',' ||
			current_setting('search_path') || ',' || coalesce(current_setting('my.own', true), '')) $$;
		CREATE ROLE nobody_special});
	sql(q{GRANT nobody_special TO CURRENT_USER});
	my @texts = (
		q{SET LOCAL work_mem = '99MB'; SET LOCAL my.own = 'x'},
		q{SET work_mem = '98MB'},
		q{SELECT set_config('work_mem', '97MB', true)},
		q{SELECT set_config('work_mem', '96MB', false)},
		q{SET LOCAL ROLE nobody_special},
		q{SET LOCAL search_path = other},
		q{CREATE TEMP TABLE t (a int) ON COMMIT DROP; INSERT INTO t VALUES (1)},
		q{CREATE TEMP TABLE t (a int); INSERT INTO t VALUES (1)},
		q{DECLARE c CURSOR WITH HOLD FOR SELECT 1},
		q{PREPARE p AS SELECT 1},
		q{SET CONSTRAINTS ALL IMMEDIATE});
	fresh();
	enqueue_together('$$public.tell$$');
	wait_drained();
	my $clean = ran();
	foreach my $text (@texts)
	{
		fresh();
		# twice, as it must not find what it has left itself
		my @ids = enqueue_together("\$\$public.tell\$\$", "\$\$$text\$\$", "\$\$public.tell\$\$", "\$\$$text\$\$", "\$\$public.tell\$\$");
		wait_drained();
		is(ran(), "$clean $clean $clean", $text);
		is(outcomes(@ids), join(', ', ('completed 1') x 5), 'and no error');
	}
	sql('REVOKE nobody_special FROM CURRENT_USER');
};

property 'a constraint that one job has made immediate is deferred for the next' => sub {
	fresh();
	enqueue_together(q{'SET CONSTRAINTS ALL IMMEDIATE'},
		q{'INSERT INTO child VALUES (2); INSERT INTO parent VALUES (2)'});
	wait_drained();
	is(sql('SELECT id FROM child'), 2, 'at its end');
	is(sql('SELECT count(*) FROM jobqueue_history'), 0, 'no error');
};

property 'lastval() finds nothing of the job before in the batch' => sub {
	fresh();
	sql('CREATE TABLE numbered (n int GENERATED ALWAYS AS IDENTITY, x int)');
	sql(<<'END');
CREATE FUNCTION last() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	before bigint := 0;
BEGIN
	BEGIN
		before := lastval();
	EXCEPTION WHEN object_not_in_prerequisite_state THEN
		NULL;
	END;
	INSERT INTO numbered (x) VALUES (before);
END $$;
END
	enqueue_together((q{'last'}) x 3);
	wait_drained();
	is(sql('SELECT max(x), count(*), count(DISTINCT xmin::text) FROM numbered'), '0|3|1', 'in one batch');
};

property 'jobs that are not for a batch run as ever among those that are' => sub {
	fresh();
	my @ids = enqueue_together(
		note_of('a'), q{'VACUUM child'}, note_of('b'),
		q{'note', '{"what": "late"}', expires_at => now() - interval '1 s'},
		note_of('c'));
	wait_drained();
	is(ran(), 'a b c', 'in order');
	is(outcomes(@ids), 'completed 1, completed 1, completed 1, cancelled 0, completed 1', 'each in its way');
};

property 'at other isolation levels each job has its transaction' => sub {
	foreach my $level ('repeatable read', 'serializable')
	{
		(my $role = $level) =~ s/ /_/;
		sql(qq{CREATE ROLE $role LOGIN; SELECT jobqueue_grant('$role', 'use');
			ALTER ROLE $role SET default_transaction_isolation = '$level'});
		fresh();
		sql_as($role, q{SELECT count(jobqueue_enqueue('note', '{}', queue => 'b')) FROM generate_series(1, 20)});
		wait_drained();
		is(xids(), 20, $level);
	}
};

paused_property 'a job that is done in an open batch can be cancelled' => sub {
	foreach my $which (0 .. 2)
	{
		fresh();
		arm('batch-before-commit');
		my @ids = enqueue_together(note_of('a', 'b', 'c'));
		caught('batch-before-commit');
		is(sql(q{SELECT running FROM jobqueue_status WHERE queue = 'b'}), 3, 'all count as running');
		is(sql(q{SELECT count(*) FROM jobqueue_running}), 3, 'and are shown');
		is(sql("SELECT jobqueue_cancel($ids[$which])"), 't', 'cancelled');
		release('batch-before-commit');
		wait_drained();
		my @rest = grep { $_ ne (qw(a b c))[$which] } qw(a b c);
		is(ran(), "@rest", 'the others ran');
		is(sql('SELECT id, state, reason FROM jobqueue_history'),
			"$ids[$which]|cancelled|cancelled while it ran", 'that one did not');
	}
};

paused_property 'of a batch two jobs are cancelled' => sub {
	fresh();
	arm('batch-before-commit');
	my @ids = enqueue_together(note_of('a', 'b', 'c', 'd'));
	my $pid = caught('batch-before-commit');
	is(sql("SELECT count(*) FROM unnest(ARRAY[$ids[0], $ids[2]]) i WHERE jobqueue_cancel(i)"), 2, 'both');
	release('batch-before-commit');
	wait_drained();
	is(ran(), 'b d', 'the others ran');
	is(sql(q{SELECT count(*) FROM jobqueue_history WHERE state = 'cancelled'}), 2, 'those did not');
};

paused_property 'a cancelled job of a batch stays cancelled when its worker is terminated' => sub {
	fresh();
	arm('batch-before-commit');
	my @ids = enqueue_together(note_of('a', 'b', 'c'));
	my $pid = caught('batch-before-commit');
	is(sql("SELECT jobqueue_cancel($ids[0]), pg_terminate_backend($pid)"), 't|t', 'both');
	release('batch-before-commit');
	wait_drained();
	is(ran(), 'b c', 'the others ran');
	is(sql('SELECT id, state FROM jobqueue_history'), "$ids[0]|cancelled", 'that one did not');
};

paused_property 'a pause lets a batch finish and take no more' => sub {
	fresh();
	arm('batch-between-jobs');
	enqueue_together(note_of('a', 'b', 'c'));
	caught('batch-between-jobs');
	sql(q{SELECT jobqueue_pause('b')});
	release('batch-between-jobs');
	wait_for('SELECT count(*) = 1 FROM ran');
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	is(ran(), 'a', 'the first one only');
	sql(q{SELECT jobqueue_resume('b')});
	wait_drained();
	is(ran(), 'a b c', 'the others later');
};

paused_property 'a quiesce waits for a batch' => sub {
	fresh();
	arm('batch-before-commit');
	enqueue_together(note_of('a', 'b', 'c'));
	caught('batch-before-commit');
	is(sql(q{SELECT jobqueue_quiesce('50 ms')}), 'f', 'still there');
	release('batch-before-commit');
	is(sql(q{SELECT jobqueue_quiesce()}), 't', 'ended');
	is(ran(), 'a b c', 'all of it');
	sql(q{SELECT jobqueue_resume()});
};

paused_property 'a worker that is terminated gives back what was done, uncharged' => sub {
	fresh();
	arm('batch-before-commit');
	sql(q{CREATE ROLE owner LOGIN; SELECT jobqueue_grant('owner', 'use')});
	my $list = join ', ', map { qq{jobqueue_enqueue('note', '{"what": "$_"}', queue => 'b', key => '$_')} } 'a', 'b', 'c';
	sql_as('owner', "SELECT $list");
	my $pid = caught('batch-before-commit');
	is(sql('SELECT count(*) FROM jobqueue_keys WHERE pid IS NOT NULL'), 3, 'it holds three keys');
	is(sql('SET ROLE owner; SELECT count(*) FROM jobqueue_keys'), 3, 'whoever sees the jobs sees them');
	sql("SELECT pg_terminate_backend($pid)");
	release('batch-before-commit');
	wait_drained();
	is(ran(), 'a b c', 'run once, in order');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'uncharged');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	pass('no key is held');
};

property 'of a batch only the job that ran is charged for a terminated worker' => sub {
	fresh();
	my $gate = close_gate(6);
	my @ids = enqueue_together(note_of('a', 'b'), q{'gate', '{"gate": 6, "what": "c"}'});
	wait_at_gate(1);
	sql('SELECT pg_terminate_backend(pid) FROM jobqueue_running WHERE command IS NOT NULL');
	wait_for(q{SELECT string_agg(what, ' ' ORDER BY n) FROM ran}, 'a b');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'not the first two');
	wait_for("SELECT attempt = 1 FROM jobqueue_jobs WHERE id = $ids[2]");
	open_gate($gate);
	wait_drained();
	is(sql(q{SELECT attempt FROM ran WHERE what = 'c'}), 2, 'but the third');
};

property 'a job that ends its worker at the commit is found' => sub {
	sql(<<'END');
CREATE TABLE bomb (a int);
CREATE FUNCTION explode() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER explode AFTER INSERT ON bomb DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION explode();
END
	fresh();
	my @ids = enqueue_together(note_of('a'), q{'INSERT INTO bomb VALUES (1)', max_attempts => 1}, note_of('b', 'c'));
	wait_drained();
	is(ran(), 'a b c', 'the others ran once');
	is(sql(q{SELECT id, attempt, state FROM jobqueue_history}), "$ids[1]|1|dead", 'it is dead');
};

property 'kill -9 in a batch: all run again, one is marked' => sub {
	fresh();
	my $gate = close_gate(7);
	my @ids = enqueue_together(note_of('a', 'b'), q{'gate', '{"gate": 7, "what": "c"}'}, note_of('d'));
	wait_at_gate(1);
	my $offset = crash_offset();
	kill_hard(sql('SELECT pid FROM jobqueue_running LIMIT 1'));
	wait_crash_restart($offset);
	$gate->quit;
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'a b c d', 'each once');
	is(sql('SELECT max(attempt) FROM ran'), 1, 'uncharged');
};

property 'each once, whatever happens to the workers' => sub {
	fresh();
	set_conf('jobqueue.max_workers_per_role' => 4);
	sql(q{SELECT count(jobqueue_enqueue('maybe_fail', '{}', queue => 'b', key => CASE WHEN i % 3 = 0 THEN (i % 7)::text END))
		FROM generate_series(1, 6000) i});
	foreach my $round (1 .. 12)
	{
		my $pid = sql('SELECT pid FROM jobqueue_running LIMIT 1');

		last if $pid eq '';
		if ($round % 4 == 0)
		{
			my $offset = crash_offset();
			kill_hard($pid);
			wait_crash_restart($offset);
		}
		else
		{
			sql("SELECT pg_terminate_backend($pid)");
			wait_gone($pid);
		}
		sql(q{SELECT count(jobqueue_enqueue('maybe_fail', '{}', queue => 'b')) FROM generate_series(1, 500)});
	}
	wait_drained();
	my $n = sql('SELECT count(*) FROM ran');
	cmp_ok($n, '>=', 6000, 'all ran');
	is(sql('SELECT count(DISTINCT job) FROM ran'), $n, 'each once');
	is(sql('SELECT count(*) FROM jobqueue_history'), 0, 'none is dead');
	wait_for('SELECT count(*) = 0 FROM jobqueue_keys');
	pass('no key is left');
	memory_empties('nor a claim');
};

property 'jobs of a key never overlap, and see what the last one did' => sub {
	fresh();
	sql(<<'END');
CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL);
INSERT INTO counter SELECT i::text, 0 FROM generate_series(0, 9) i;
-- an update is lost if another job has read the same number
CREATE FUNCTION count_up(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	old int := (SELECT n FROM counter WHERE key = args->>'key');
BEGIN
	UPDATE counter SET n = old + 1 WHERE key = args->>'key';
END $$;
SELECT count(jobqueue_enqueue('count_up', jsonb_build_object('key', i % 10), queue => 'b', key => (i % 10)::text))
FROM generate_series(1, 5000) i;
END
	wait_drained();
	is(sql('SELECT sum(n), min(n), max(n) FROM counter'), '5000|500|500', 'none lost');
	set_conf('jobqueue.max_workers_per_role' => 1);
};

paused_property 'DROP EXTENSION waits for a batch, and no more' => sub {
	sql('CREATE DATABASE dropped');
	JobqueueTest::add_database('dropped');
	sql(q{SELECT jobqueue_configure('b', batch => 50);
		CREATE TABLE kept (a int);
		SELECT jobqueue_enqueue('INSERT INTO kept VALUES (0)');}, db => 'dropped');
	wait_drained(db => 'dropped');
	arm('batch-between-jobs');
	sql(q{SELECT jobqueue_enqueue('INSERT INTO kept VALUES (1)', queue => 'b'), jobqueue_enqueue('INSERT INTO kept VALUES (2)', queue => 'b')}, db => 'dropped');
	caught('batch-between-jobs');
	my $s = session(db => 'dropped');
	send_sql($s, 'SET client_min_messages = warning; DROP EXTENSION jobqueue CASCADE');
	wait_for(q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted});
	release('batch-between-jobs');
	$s->query_safe('SELECT 1');
	$s->quit;
	like(sql('SELECT count(*) FROM kept', db => 'dropped'), qr/^[23]$/, 'what had begun is done');
	is(sql(q{SELECT count(*) FROM pg_extension WHERE extname = 'jobqueue'}, db => 'dropped'), 0, 'dropped');
	fresh();
	enqueue_together(note_of('a', 'b'));
	wait_drained();
	is(ran(), 'a b', 'other databases go on');
};

node()->stop;
done_testing();
