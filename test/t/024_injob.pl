# Progress, snooze, discard: seen by others, through crashes and terminations.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('injob');
sql(<<'END');
CREATE SEQUENCE runs;
GRANT ALL ON SEQUENCE runs TO PUBLIC;
-- snoozes as often, then is done
CREATE FUNCTION snooze(args jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES (coalesce(args->>'what', 'run'));
	IF (SELECT count(*) FROM ran WHERE job = (jobqueue_current()).id) <= (args->>'times')::int THEN
		PERFORM jobqueue_snooze((args->>'delay')::interval);
	END IF;
	RETURN 'done';
END $$;
CREATE ROLE member LOGIN;
CREATE ROLE watcher LOGIN;
CREATE ROLE stranger LOGIN;
SELECT jobqueue_grant(r, 'use') FROM unnest('{member,stranger}'::regrole[]) r;
SELECT jobqueue_grant('watcher', 'monitor');
END

property 'progress is seen by others before the transaction ends' => sub {
	my $gate = close_gate(1);
	my $id = sql_as('member', q{SELECT jobqueue_enqueue($$SELECT jobqueue_progress(0.25, 'a quarter'); SELECT gate('{"gate": 1}');
		SELECT jobqueue_progress(0.75); SELECT gate('{"gate": 2}')$$)});
	my $gate2 = close_gate(2);
	my $query = 'SELECT progress, progress_message FROM jobqueue_running';
	wait_for("SELECT progress = 0.25 FROM jobqueue_running");
	is(sql($query), '0.25|a quarter', 'a superuser sees it');
	is(sql($query, role => 'member'), '0.25|a quarter', 'the owner sees it');
	is(sql($query, role => 'watcher'), '0.25|', 'a monitor does not see the message');
	is(sql($query, role => 'stranger'), '', 'others see nothing');
	open_gate($gate);
	wait_for("SELECT progress = 0.75 FROM jobqueue_running");
	is(sql($query), '0.75|', 'the next one, without a message');
	open_gate($gate2);
	wait_drained();
	$gate = close_gate(1);
	enqueue('gate', gate => 1, role => 'member');
	wait_at_gate(1);
	is(sql('SELECT progress IS NULL AND progress_message IS NULL FROM jobqueue_running'), 't', 'nothing of it is left for the next job of the worker');
	open_gate($gate);
	wait_drained();
	forget();
};

paused_property 'progress while a job ends, and in a batch' => sub {
	# one worker takes both
	sql(q{SELECT jobqueue_configure('b', batch => 20, max_running => 1)});
	arm('worker-before-delete');
	sql(q{SELECT jobqueue_enqueue('SELECT jobqueue_progress(1, ''all'')', queue => 'b'), jobqueue_enqueue('note', '{"what": "next"}', queue => 'b')});
	caught('worker-before-delete');
	is(sql('SELECT progress, progress_message FROM jobqueue_running WHERE command IS NOT NULL'), '1|all', 'before the commit');
	release('worker-before-delete');
	wait_drained();
	arm('fail-before-record');
	enqueue(q{SELECT jobqueue_progress(0.5, 'half'), 1/0}, max_attempts => 1);
	caught('fail-before-record');
	is(sql('SELECT count(*), count(progress) FROM jobqueue_running'), '1|0', 'none once it has failed');
	release('fail-before-record');
	wait_drained();
	forget();
};

property 'a snoozed job runs again when its time has come' => sub {
	my ($id, $waits) = split /\|/, sql(q{SELECT
		jobqueue_enqueue('snooze', '{"times": 3, "delay": "1 s"}', key => 'k', max_attempts => 1),
		jobqueue_enqueue('note', '{"what": "other"}', key => 'k')});
	wait_drained();
	is(sql("SELECT count(*), max(attempt) FROM ran WHERE job = $id"), '4|1', 'each time, as the first attempt');
	is(sql("SELECT bool_and(n < 2) FROM (SELECT row_number() OVER (ORDER BY n) - 1 AS n, job FROM ran) r WHERE job = $waits"), 't', 'its key is free meanwhile');
	is(sql("SELECT string_agg(outcome, ' ' ORDER BY ended_at) FROM jobqueue_recent WHERE id = $id"), 'snoozed snoozed snoozed completed', 'each run is noted');
	is(sql("SELECT completed FROM jobqueue_status WHERE queue = 'default'") > 0, 1, 'counted once completed');
	forget();
};

foreach my $point ('worker-before-delete', 'worker-before-commit', 'worker-after-commit')
{
	paused_property "snooze: kill -9 of the worker at $point" => sub {
		my $id;
		my $done = $point eq 'worker-after-commit';

		arm($point);
		$id = enqueue('snooze', args => '{"times": 1, "delay": "1 day"}');
		my $pid = caught($point);
		# what has committed is to be durable
		sql('CREATE TABLE flush_now ()') if $done;
		my $offset = crash_offset();
		kill 9, $pid;
		wait_crash_restart($offset);
		wait_state($id, 'scheduled');
		is(sql("SELECT count(*), max(attempt) FROM ran WHERE job = $id"), '1|1', 'its effects once, with its new time');
		is(sql("SELECT attempt FROM jobqueue_jobs WHERE id = $id"), 0, 'not charged');
		sql("SELECT jobqueue_cancel($id)");
		sql('DROP TABLE IF EXISTS flush_now');
		forget();
	};
}

foreach my $queue ('default', 'b')
{
	paused_property "snooze: termination of the worker after its commit, queue $queue" => sub {
		my $id;

		arm('worker-after-commit');
		$id = enqueue('snooze', args => '{"times": 1, "delay": "1 s"}', queue => $queue, max_attempts => 1);
		sql('SELECT pg_terminate_backend(' . caught('worker-after-commit') . ')');
		release('worker-after-commit');
		wait_drained();
		is(sql("SELECT count(*), max(attempt) FROM ran WHERE job = $id"), '2|1', 'neither lost nor charged');
		forget();
	};
}

foreach my $point ('worker-after-commit', 'worker-noted-end')
{
	paused_property "a snoozed job can be cancelled until it has let go: at $point" => sub {
		my $id;

		arm($point);
		$id = enqueue('snooze', args => '{"times": 1, "delay": "1 s"}');
		caught($point);
		is(sql("SELECT jobqueue_cancel($id)"), 't', 'it runs');
		release($point);
		wait_state($id, 'cancelled');
		is(sql("SELECT count(*) FROM ran"), 1, 'what it had committed stays');
		is(sql("SELECT count(*) FROM jobqueue_job"), 0, 'and it does not come again');
		sql('DELETE FROM jobqueue_archive');
		forget();
	};
}

foreach my $point ('worker-after-commit', 'batch-noted-ends')
{
	paused_property "a snoozed job of a batch can be cancelled until it has let go: at $point" => sub {
		my @ids;

		sql(q{SELECT jobqueue_configure('c', batch => 20, max_running => 1), jobqueue_pause('c')});
		@ids = map { enqueue('snooze', args => '{"times": 1, "delay": "1 s"}', queue => 'c', key => "k$_") } (1 .. 3);
		arm($point);
		sql(q{SELECT jobqueue_resume('c')});
		caught($point);
		is(sql('SELECT count(*) FROM ran'), 3, 'they have run together');
		is(sql("SELECT jobqueue_cancel($ids[0]), jobqueue_cancel($ids[2])"), 't|t', 'they run');
		release($point);
		wait_state($ids[0], 'cancelled');
		wait_state($ids[2], 'cancelled');
		wait_drained();
		is(sql("SELECT string_agg(n::text, ' ' ORDER BY job) FROM (SELECT job, count(*) AS n FROM ran GROUP BY 1) r"), '1 2 1', 'the other one comes again, they do not');
		is(sql('SELECT count(*) FROM jobqueue_keys'), 0, 'no key is left');
		sql('DELETE FROM jobqueue_archive');
		forget();
	};
}

paused_property 'a discard whose record fails is still one' => sub {
	my $id;

	arm('scheduler-before-record');
	sql(q{CREATE FUNCTION nope() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$});
	sql('CREATE TRIGGER nope BEFORE INSERT ON jobqueue_archive EXECUTE FUNCTION nope()');
	$id = enqueue(q{SELECT jobqueue_discard('closed account')});
	caught('scheduler-before-record');
	sql('DROP TRIGGER nope ON jobqueue_archive; DROP FUNCTION nope');
	release('scheduler-before-record');
	wait_state($id, 'dead');
	is(sql("SELECT reason, attempt, errors->0->>'sqlstate', jsonb_array_length(errors) FROM jobqueue_history WHERE id = $id"),
		'closed account|1|JQ001|1', 'with its reason');
	sql('DELETE FROM jobqueue_archive');
};

property 'quota: many sessions at once' => sub {
	sql('ALTER ROLE member SET jobqueue.max_jobs_per_role = 100');
	sql('SELECT jobqueue_quiesce()');
	my @benches = map {
		start_pgbench("SELECT jobqueue_enqueue('note');\n", clients => 4, transactions => 50, role => 'member')
	} (1 .. 2);
	$_->finish foreach @benches;
	is(sql('SELECT count(*) FROM jobqueue_job'), 100, 'neither more nor less');
	like(${ $benches[0]->{out} } . ${ $benches[1]->{out} }, qr/quota of 100 jobs of role "member" is reached/, 'refused');
	sql('SELECT jobqueue_resume()');
	wait_drained();
	sql_as('member', q{SELECT jobqueue_enqueue('note', '{"what": "again"}')});
	wait_drained();
	like(ran(), qr/again/, 'room when they have ended');
	sql('ALTER ROLE member RESET ALL');
	forget();
};

property 'quota: what is prepared counts until it is committed or rolled back' => sub {
	my $enqueue = sub { return "SELECT count(jobqueue_enqueue('note', run_at => '2999-01-01')) FROM generate_series(1, $_[0])"; };
	my $refused = qr/quota of 10 jobs of role "member" is reached/;
	my $prepare = sub { sql_as('member', 'BEGIN; ' . $enqueue->($_[1]) . "; PREPARE TRANSACTION '$_[0]'"); };

	sql('ALTER ROLE member SET jobqueue.max_jobs_per_role = 10');
	$prepare->('a', 6);
	$prepare->('b', 4);
	like(sql_error($enqueue->(1), role => 'member'), $refused, 'prepared, not committed');
	sql_as('member', "ROLLBACK PREPARED 'b'");
	sql_as('member', "COMMIT PREPARED 'a'");
	is(sql_as('member', $enqueue->(4)), 4, 'what was rolled back makes room');
	like(sql_error($enqueue->(1), role => 'member'), $refused, 'what was committed does not');
	sql_as('member', 'SELECT jobqueue_cancel_where(NULL, NULL, NULL, true)');
	$prepare->('c', 5);
	node()->restart;
	is(sql_as('member', $enqueue->(2)), 2, 'after a restart it is not known');
	sql_as('member', "COMMIT PREPARED 'c'");
	is(sql_as('member', $enqueue->(3)), 3, 'until it has committed');
	like(sql_error($enqueue->(1), role => 'member'), $refused, 'then it counts');
	is(sql_as('member', 'SELECT jobqueue_cancel_where(NULL, NULL, NULL, true)'), 10, 'never more');
	sql('ALTER ROLE member RESET ALL; DELETE FROM jobqueue_archive');
};

property 'the server has not crashed but by our hand' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|reference leak/, 'log');
};

done_testing();
