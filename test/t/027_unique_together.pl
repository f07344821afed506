# Uniqueness together with all else: savepoints, jobs run inline, control of many
# jobs, kills.
#
# The last property is random: JQ_SEED is where it begins, JQ_ROUNDS how long it
# goes on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;
use Together;

new_node('together', conf => <<'END');
deadlock_timeout = 20ms
jobqueue.max_workers = 4
END

sub locks_are_right
{
	my ($what) = @_;
	is(sql(unique_faults()), '', $what);
}

sub no_locks
{
	is(sql('SELECT count(*) FROM jobqueue_unique'), 0, 'no lock is left');
}

# ---- one's own jobs ---------------------------------------------------------

property 'jobs run inline do not take the unique_key of one that the same call is to write' => sub {
	sql(<<'END');
CREATE FUNCTION inner_one(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES (args->>'what');
	IF args ? 'key' THEN
		PERFORM jobqueue_enqueue('inner_one', '{"what": "inner"}', queue => 'i', unique_key => args->>'key', on_conflict => args->>'strategy');
	END IF;
END $$;
END
	foreach my $strategy ('skip', 'replace', 'update')
	{
		is( sql(<<END), "2\n0", "$strategy: each is enqueued once");
SET statement_timeout = '60 s';
SET jobqueue.inline = on;
SELECT count(*) FROM jobqueue_enqueue_many('inner_one',
	ARRAY['{"what": "one", "key": "b", "strategy": "$strategy"}', '{"what": "two"}']::jsonb[],
	queue => 'i', unique_keys => ARRAY['a', 'b'], on_conflict => 'replace') id WHERE id IS NOT NULL;
SELECT count(*) FROM jobqueue_job;
END
		is(ran(), 'one two', "$strategy does as skip");
		no_locks();
		forget();
	}
};

property 'a trigger on the jobs does not take the unique_key of the job that is being written' => sub {
	sql(<<'END');
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.args->>'what' = 'one' THEN
		PERFORM public.jobqueue_enqueue('public.note', '{"what": "meddled"}', queue => 'i', unique_key => 'b', on_conflict => NEW.args->>'strategy');
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER meddle BEFORE INSERT ON jobqueue_job FOR EACH ROW EXECUTE FUNCTION meddle();
SELECT jobqueue_pause('i');
END
	foreach my $strategy ('replace', 'update')
	{
		sql(qq{SET statement_timeout = '60 s'; SELECT jobqueue_enqueue('note', '{"what": "one", "strategy": "$strategy"}', queue => 'i', unique_key => 'b', on_conflict => 'replace')});
		is(sql(q{SELECT string_agg(args->>'what', ' ') FROM jobqueue_job}), 'one', "$strategy: one job of the key");
		locks_are_right('it has the lock');
	}
	sql(q{DROP TRIGGER meddle ON jobqueue_job; DROP FUNCTION meddle; SELECT jobqueue_resume('i')});
	wait_drained();
	no_locks();
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'a job run inline counts as running for the jobs that it runs' => sub {
	sql(<<'END');
CREATE FUNCTION outer_one(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES ('outer');
	PERFORM jobqueue_enqueue('inner_one', args || '{"what": "middle"}', queue => 'i');
END $$;
END
	foreach my $strategy ('replace', 'update')
	{
		sql(<<END);
SET jobqueue.inline = on;
SELECT jobqueue_enqueue('outer_one', '{"key": "a", "strategy": "$strategy"}', queue => 'i', unique_key => 'a');
END
		is(ran(), 'outer middle', "$strategy does as skip");
		is(sql('SELECT count(*) FROM jobqueue_archive'), 0, 'nothing was cancelled');
		no_locks();
		forget();
	}
};

property 'while_executing: what a job that is run inline runs inline is a part of it' => sub {
	sql(<<'END');
SET jobqueue.inline = on;
SELECT jobqueue_enqueue('SELECT jobqueue_enqueue(''note'', ''{"what": "inner"}'', unique_key => ''k'', unique_until => ''while_executing'')',
	unique_key => 'k', unique_until => 'while_executing');
END
	is(ran(), 'inner', 'it does not wait for its own end');
	no_locks();
	forget();
};

property 'a job of an open transaction is shown to nobody by the rollback of what was done to it' => sub {
	sql(q{SELECT jobqueue_pause('p')});
	foreach my $act (q{SELECT jobqueue_cancel((SELECT id FROM jobqueue_job))},
		q{SELECT jobqueue_enqueue('note', '{"what": "two"}', queue => 'p', unique_key => 'k', on_conflict => 'replace')})
	{
		my $s = session();

		$s->query_safe(q{BEGIN; SELECT jobqueue_enqueue('note', '{"what": "one"}', queue => 'p', unique_key => 'k')});
		$s->query_safe("SAVEPOINT a; $act; ROLLBACK TO a");
		is(sql(q{SELECT coalesce(sum(ready), 0) FROM jobqueue_status WHERE queue = 'p'}), 0, 'memory does not know it yet');
		$s->query_safe('COMMIT');
		is(sql(q{SELECT coalesce(sum(ready), 0) FROM jobqueue_status WHERE queue = 'p'}), 1, 'it does after the commit');
		sql(q{SELECT jobqueue_resume('p')});
		wait_drained();
		is(ran(), 'one', 'it runs, once');
		no_locks();
		forget();
		sql(q{SELECT jobqueue_pause('p')});
	}
	sql(q{SELECT jobqueue_resume('p')});
};

property 'while_executing: what an open transaction has run inline refuses another one at once' => sub {
	my $s = session();

	$s->query_safe(q{BEGIN; SET LOCAL jobqueue.inline = on});
	$s->query_safe(q{SELECT jobqueue_enqueue('note', '{"what": "one"}', unique_key => 'k', unique_until => 'while_executing')});
	my $two = enqueue('note', what => 'two', unique_key => 'k', unique_until => 'while_executing', on_conflict => 'raise');

	wait_state($two, 'dead');
	$s->query_safe('COMMIT');
	is(ran(), 'one', 'one has run');
	sql('DELETE FROM jobqueue_archive');
	forget();
};

property 'a deadlock of who acts on a job with who changes its row is found' => sub {
	sql(q{SELECT jobqueue_pause('p')});
	my $id = enqueue('note', what => 'one', queue => 'p');
	my $s = session();
	my $r = session();

	$s->query_safe("BEGIN; DELETE FROM jobqueue_job WHERE id = $id");
	sql(q{SELECT jobqueue_resume('p')});
	# a worker has seen that it is being deleted
	wait_quiet(queue => 'p');
	$r->query_safe(q{BEGIN; SET LOCAL statement_timeout = '60 s'; SELECT pg_advisory_xact_lock(77)});
	send_sql($r, "SELECT jobqueue_cancel($id)");
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	$s->query(q{SET LOCAL statement_timeout = '60 s'; SELECT pg_advisory_xact_lock(77)});

	$s->query('ROLLBACK');
	$r->query('ROLLBACK');
	like(PostgreSQL::Test::Utils::slurp_file(node()->logfile), qr/ERROR:  deadlock detected\n.*DETAIL:(?:.*\n)+?.*(?:pg_advisory_xact_lock|jobqueue_cancel)/, 'it is found');
	unlike(PostgreSQL::Test::Utils::slurp_file(node()->logfile), qr/due to statement timeout/, 'and not waited out');
	wait_drained();
	# if it is not the cancel that gives way, it may find the job running: that is not undone
	my $how = sql("SELECT outcome FROM jobqueue_recent WHERE id = $id ORDER BY ended_at DESC LIMIT 1");
	like($how, qr/^(completed|cancelled)$/, 'it runs after all');
	is(ran(), $how eq 'completed' ? 'one' : '', 'unless it was cancelled while it ran');
	sql('DELETE FROM jobqueue_archive');
	forget();
};

# ---- many that come back ----------------------------------------------------

# dead jobs with these keys
sub dead
{
	my ($keys, $until, $for) = @_;
	sql(<<END);
SELECT jobqueue_pause('d');
INSERT INTO jobqueue_archive (id, enqueued_at, ended_at, expires_at, home, owner, func_owner, priority, attempt, kind, state, queue, command, args, unique_key, unique_until, unique_for, on_conflict)
SELECT nextval('jobqueue_job_id_seq'), now(), now(), now() + interval '1 day', (SELECT home FROM jobqueue_meta), current_user::regrole, NULL, 0, 1, 's', 'dead', 'd', 'SELECT 1', NULL, k, '$until', $for, 's'
FROM unnest(ARRAY[$keys]) WITH ORDINALITY x(k, n) ORDER BY n;
END
}

property 'jobs that come back: of two with a key the first does' => sub {
	foreach my $mode ([ 'e', 'NULL' ], [ 's', 'NULL' ], [ 't', "interval '1 hour'" ], [ 'b', 'NULL' ])
	{
		dead(q{'a', 'b', 'a', 'c', 'b'}, @$mode);
		is(sql(q{SELECT jobqueue_retry_where('d', 'dead', NULL)}), 3, "until $mode->[0]: three come back");
		is(sql(q{SELECT string_agg(unique_key, '' ORDER BY id) FROM jobqueue_archive}), 'ab', 'the later ones stay');
		locks_are_right('the locks are theirs');
		sql(q{DELETE FROM jobqueue_archive; DELETE FROM jobqueue_job WHERE queue = 'd'; DELETE FROM jobqueue_unique});
	}
	dead(q{'a', 'b', 'a'}, 'w', 'NULL');
	is(sql(q{SELECT jobqueue_retry_where('d', 'dead', NULL)}), 3, 'while_executing: all come back');
	no_locks();
	sql(q{DELETE FROM jobqueue_job WHERE queue = 'd'});
};

property 'two sessions bring back the same jobs: each comes back once' => sub {
	dead(q{'a', 'b', 'a'}, 'e', 'NULL');
	my $s = session();
	my $r = session();

	$_->query_safe('SET client_min_messages = warning') foreach ($s, $r);
	is($s->query_safe(q{BEGIN; SELECT jobqueue_retry_where('d', 'dead', NULL)}), '2', 'the first one has them');
	send_sql($r, q{SELECT jobqueue_retry_where('d', 'dead', NULL)});
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	$s->query_safe('COMMIT');
	like($r->query('SELECT 1'), qr/^0$/m, 'the second one none');
	locks_are_right('each has its lock');
	is(sql('SELECT count(*) FROM jobqueue_job'), 2, 'two are there');

	# a rollback leaves them to the other one
	sql(q{SELECT jobqueue_cancel_where('d', NULL, NULL)});
	$s->query_safe(q{BEGIN; SELECT jobqueue_retry_where('d', NULL, NULL)});
	send_sql($r, q{SELECT jobqueue_retry_where('d', NULL, NULL)});
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	$s->query_safe('ROLLBACK');
	like($r->query('SELECT 1'), qr/^2$/m, 'the second one has them');
	locks_are_right('each has its lock');
	sql(q{SELECT jobqueue_resume('d')});
	wait_drained();
	no_locks();
	sql('DELETE FROM jobqueue_archive');
};

property 'who brings back a job waits for a transaction that has its unique_key, and no longer' => sub {
	dead(q{'a', 'b'}, 'e', 'NULL');
	my $s = session();
	my $r = session();

	$s->query_safe(q{BEGIN; SELECT jobqueue_enqueue('SELECT 1', queue => 'd', unique_key => 'b')});
	send_sql($r, q{SELECT jobqueue_retry_where('d', 'dead', NULL)});
	wait_for(q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted});
	$s->query_safe('COMMIT');
	like($r->query('SELECT 1'), qr/^1$/m, 'the other one comes back');
	locks_are_right('each has its lock');
	sql(q{SELECT jobqueue_resume('d')});
	wait_drained();
	no_locks();
	sql('DELETE FROM jobqueue_archive');
};

# ---- all at once ------------------------------------------------------------

property 'whatever is done at once, by whom it may be killed: the locks are those of the jobs' => sub {
	my $seed = $ENV{JQ_SEED} // 1;
	my $rounds = $ENV{JQ_ROUNDS} // 4;

	note "JQ_SEED=$seed JQ_ROUNDS=$rounds";
	sql(<<'END');
CREATE TABLE alone (job bigint, key text, began timestamptz, ended timestamptz, xid xid8 DEFAULT pg_current_xact_id());

CREATE FUNCTION one_of(VARIADIC text[]) RETURNS text LANGUAGE sql VOLATILE AS
	$$ SELECT $1[1 + floor(random() * cardinality($1))::int] $$;

-- one of the jobs there are
CREATE FUNCTION some_job(which text) RETURNS bigint LANGUAGE sql VOLATILE AS
	$$ SELECT id FROM (SELECT id FROM jobqueue_jobs WHERE queue = 's' AND state = which LIMIT 20) j ORDER BY random() LIMIT 1 $$;

CREATE FUNCTION enqueue_some(until text, strategy text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	lasts interval := CASE WHEN until = 'expired' OR random() < 0.2 THEN interval '30 ms' END;
	k text := one_of('a', 'b', 'c', 'd');
	n int := floor(random() * 8);
	args jsonb := jsonb_build_object('do', one_of('nothing', 'nothing', 'sleep', 'fail', 'snooze', 'discard', 'enqueue', 'many'),
		'key', CASE WHEN until LIKE '%while%' THEN k END);
BEGIN
	IF n < 4 THEN
		PERFORM jobqueue_enqueue('stress', args, queue => 's', unique_key => k, unique_until => until, unique_for => lasts,
			on_conflict => strategy, max_attempts => 3, priority => n,
			run_at => CASE WHEN random() < 0.3 THEN clock_timestamp() + random() * interval '30 ms' END,
			after => CASE WHEN random() < 0.1 THEN ARRAY[some_job('ready')] END,
			expires_at => CASE WHEN random() < 0.1 THEN clock_timestamp() + interval '50 ms' END,
			keep => CASE WHEN random() < 0.2 THEN interval '1 hour' END,
			tags => ARRAY[k]);
	ELSE
		PERFORM jobqueue_enqueue_many('stress', array_fill(args - 'key', ARRAY[n]), queue => 's',
			unique_keys => ARRAY(SELECT one_of('a', 'b', 'c', 'd', 'e', NULL) FROM generate_series(1, n)),
			keys => ARRAY(SELECT one_of('x', 'y', NULL) FROM generate_series(1, n)),
			unique_until => until, unique_for => lasts, on_conflict => strategy, max_attempts => 2);
	END IF;
END $$;

CREATE FUNCTION enqueue_some() RETURNS void LANGUAGE sql AS $$
	SELECT enqueue_some(one_of('executing', 'executed', 'expired', 'while_executing', 'until_and_while_executing'),
		one_of('skip', 'join', 'raise', 'replace', 'replace', 'update', 'reject', 'reschedule', 'log')) $$;

CREATE FUNCTION stress(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
BEGIN
	CASE args->>'do'
		WHEN 'sleep' THEN PERFORM pg_sleep(0.003);
		WHEN 'fail' THEN RAISE 'failed on purpose';
		WHEN 'snooze' THEN
			IF random() < 0.6 THEN PERFORM jobqueue_snooze(interval '5 ms'); END IF;
		WHEN 'discard' THEN PERFORM jobqueue_discard('not wanted');
		WHEN 'enqueue' THEN
			IF random() < 0.5 THEN PERFORM enqueue_some(); END IF;
		WHEN 'many' THEN
			BEGIN
				IF random() < 0.5 THEN PERFORM enqueue_some(); END IF;
				IF random() < 0.3 THEN RAISE 'never mind'; END IF;
			EXCEPTION WHEN raise_exception THEN NULL;
			END;
		ELSE NULL;
	END CASE;
	-- "update" may have given the args to one that runs beside others; run inline, it has no row
	IF args->>'key' IS NOT NULL AND coalesce((SELECT j.unique_until IN ('w', 'b') FROM jobqueue_job j WHERE j.id = (jobqueue_current()).id), true) THEN
		INSERT INTO alone (job, key, began, ended) VALUES ((jobqueue_current()).id, args->>'key', began, clock_timestamp());
	END IF;
END $$;

CREATE FUNCTION one_thing() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CASE floor(random() * 20)::int
		WHEN 0 THEN PERFORM jobqueue_cancel(some_job('ready'));
		WHEN 1 THEN PERFORM jobqueue_cancel(some_job('scheduled'));
		WHEN 2 THEN PERFORM jobqueue_cancel(some_job('running'));
		WHEN 3 THEN PERFORM jobqueue_cancel_where('s', one_of('ready', 'scheduled', 'blocked', NULL), one_of('a', 'b', 'c', 'd'));
		WHEN 4 THEN PERFORM jobqueue_retry(some_job(one_of('dead', 'cancelled')));
		WHEN 5 THEN PERFORM jobqueue_retry_where('s', one_of('dead', 'cancelled', NULL), one_of('a', 'b', 'c', 'd'));
		WHEN 6 THEN PERFORM jobqueue_purge('s', one_of('dead', 'cancelled', 'completed'));
		WHEN 7 THEN PERFORM jobqueue_reschedule_where('s', 'scheduled', NULL, one_of(NULL, clock_timestamp()::text)::timestamptz);
		WHEN 8 THEN PERFORM jobqueue_reprioritize_where('s', NULL, one_of('a', 'b'), 3);
		WHEN 9 THEN PERFORM jobqueue_run(some_job('ready'));
		WHEN 10, 11 THEN
			SET LOCAL jobqueue.inline = on;
			PERFORM enqueue_some();
			SET LOCAL jobqueue.inline = off;
		ELSE PERFORM enqueue_some();
	END CASE;
END $$;

-- some things, each in a subtransaction, of which some are rolled back
CREATE FUNCTION some_things() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 1 + floor(random() * 4)::int LOOP
		BEGIN
			PERFORM one_thing();
			IF random() < 0.3 THEN PERFORM one_thing(); END IF;
			IF random() < 0.3 THEN RAISE 'never mind'; END IF;
		EXCEPTION
			WHEN OTHERS THEN
				IF SQLSTATE LIKE 'XX%' THEN
					RAISE WARNING 'internal error: %', SQLERRM;
				END IF;
		END;
		SET LOCAL jobqueue.inline = off;
	END LOOP;
END $$;
SELECT jobqueue_configure('s', backoff_base => '5 ms', batch => 5);
SELECT jobqueue_configure('s', on_dead => 'note');
END
	my $load = <<'END';
\set r random(1, 1000000)
BEGIN;
SET LOCAL statement_timeout = '60 s';
SELECT setseed(:r / 1000000.0);
SELECT some_things();
\if :r % 7 = 0
ROLLBACK;
\else
END;
\endif
END
	foreach my $round (1 .. $rounds)
	{
		my $h = start_pgbench($load, clients => 5, transactions => $round % 2 ? 1000000 : 150,
			options => [ '--random-seed', $seed + $round, '--max-tries', 1 ]);

		if ($round % 2)
		{
			# a worker, then a client
			my $offset = crash_offset();
			my $pid = '';
			my $which = $round % 4 == 1 ?
				q{SELECT min(pid) FROM jobqueue_running} :
				q{SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'pgbench' AND query LIKE '%some_things%' AND state = 'active'};

			wait_for('SELECT count(*) > 60 FROM jobqueue_recent');
			$pid = sql($which) while $pid eq '';
			kill_hard($pid);
			wait_crash_restart($offset);
		}
		my $done = $h->finish;

		ok($done, "round $round: nobody has waited for ever") if $round % 2 == 0;
		diag ${ $h->{out} } if !$done && $round % 2 == 0;
		locks_are_right("round $round: the locks are right");
	}
	wait_for('SELECT (' . end_unique_circles() . ") + (SELECT count(*) FROM jobqueue_jobs WHERE state IN ('ready', 'scheduled', 'running')) = 0");
	locks_are_right('all has run');
	sql(q{SELECT jobqueue_cancel_where('s', NULL, NULL)});
	wait_drained();
	locks_are_right('all has ended');
	is(sql('SELECT count(*) FROM jobqueue_unique WHERE expires_at IS NULL'), 0, 'no lock is left');
	cmp_ok(sql('SELECT count(*) FROM alone'), '>', 10, 'jobs have run alone');
	# but what a job that is run inline runs inline itself: that is a part of it
	is( sql(<<'END'), '', 'no two of a key at once');
SELECT coalesce(string_agg(format('%s and %s', x.job, y.job), ', '), '') FROM alone x, alone y
WHERE x.key = y.key AND x.ctid < y.ctid AND x.xid <> y.xid AND x.began < y.ended AND y.began < x.ended
END
	my $log = PostgreSQL::Test::Utils::slurp_file(node()->logfile);

	is(join("\n", $log =~ /^.*(?:WARNING:  internal error:|TRAP:|PANIC:|due to statement timeout).*$/mg), '', 'nothing odd in the log');
	memory_empties('memory, too');
	sql('DELETE FROM jobqueue_archive');
};

node()->stop;
done_testing();
