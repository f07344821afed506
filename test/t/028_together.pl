# Everything at once, under random faults: queues with all kinds of limits,
# jobs that do whatever jobs may do, control beside them, processes that are
# terminated and killed.  At the end of each round the limits are lifted, what
# is left drains, and a checker compares what happened with what was promised.
#
# JQ_SEED repeats the choices (not the timing); JQ_ROUNDS, JQ_SECONDS make it
# longer.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);
use Together;

# make test makes the same choices each time, a long run others
my $seed = $ENV{JQ_SEED} || ($ENV{JQ_SECONDS} ? int(time * 1000) % 1_000_000 : 2);
my $rounds = $ENV{JQ_ROUNDS} || 2;
my $seconds = $ENV{JQ_SECONDS} || 10;
my $faults = $ENV{JQ_FAULTS} // 1;

seed_is($seed);

new_node('together', conf => <<'END');
jobqueue.max_ready_jobs = 150
jobqueue.max_workers = 5
max_worker_processes = 16
max_connections = 40
jobqueue.max_lanes = 16
jobqueue.worker_max_jobs = 200
log_line_prefix = '%m [%p] %b '
END

my @queues = qw(plain lim keyed ord bat dying);

sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
CREATE ROLE r3 NOLOGIN;
SELECT jobqueue_grant('r1', 'use'), jobqueue_grant('r2', 'use'), jobqueue_grant('r3', 'use');
ALTER ROLE r2 SET jobqueue.max_jobs_per_role = 300;

-- what was enqueued, written by the transaction that did
CREATE TABLE sent (id bigint, role name DEFAULT current_user, at timestamptz DEFAULT clock_timestamp());
CREATE INDEX ON sent (id);
-- what jobs did, written by theirs; no constraint: what happens twice must be seen
CREATE TABLE effects (id bigint, kind text, queue text, key text, unique_key text,
	unique_until "char", attempt int, role name DEFAULT current_user, pid int DEFAULT pg_backend_pid(),
	xid xid8 DEFAULT pg_current_xact_id(), started timestamptz, ended timestamptz DEFAULT clock_timestamp(),
	session text DEFAULT nullif(current_setting('application_name'), ''));
CREATE INDEX ON effects (id);
CREATE TABLE buried (id bigint, call bigint DEFAULT (jobqueue_current()).id);
GRANT SELECT, INSERT ON sent, effects, buried TO PUBLIC;
-- what left the history: retried or purged
CREATE TABLE left_history (id bigint, state text, queue text, args jsonb, again boolean,
	n bigint GENERATED ALWAYS AS IDENTITY);
CREATE INDEX ON left_history (id);
-- while the limits were lifted
CREATE TABLE settled (began timestamptz, ended timestamptz);
CREATE FUNCTION leaves_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = public AS $$
BEGIN
	INSERT INTO left_history VALUES (OLD.id, OLD.state, OLD.queue, OLD.args,
		EXISTS (SELECT FROM jobqueue_job WHERE id = OLD.id));
	RETURN NULL;
END $$;
CREATE TABLE deleted (id bigint);
CREATE FUNCTION job_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = public AS $$
BEGIN
	INSERT INTO deleted VALUES (OLD.id);
	RETURN NULL;
END $$;
CREATE TRIGGER job_deleted AFTER DELETE ON jobqueue_job
	FOR EACH ROW EXECUTE FUNCTION job_deleted();
CREATE TRIGGER leaves_history AFTER DELETE ON jobqueue_archive
	FOR EACH ROW EXECUTE FUNCTION leaves_history();

-- May this job run now?  What is wrong goes to the log, which no rollback takes
-- back.
CREATE FUNCTION begins(me bigint) RETURNS jobqueue_job LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = public AS $$
DECLARE
	j jobqueue_job;
	o record;
BEGIN
	SELECT * INTO j FROM jobqueue_job WHERE id = me;
	IF NOT FOUND THEN
		RETURN NULL;			-- cancelled meanwhile
	END IF;
	IF EXISTS (SELECT FROM effects WHERE id = me AND kind = 'done') THEN
		RAISE LOG 'VIOLATION: job % runs again after it was completed', me;
	END IF;
	-- jobqueue_run asks neither for dependencies nor for order
	IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend' THEN
		RETURN j;
	END IF;
	IF j.after IS NOT NULL AND NOT EXISTS (SELECT FROM left_history WHERE id = me) THEN
		FOR o IN SELECT d.id, EXISTS (SELECT FROM jobqueue_job l WHERE l.id = d.id) AS lives,
				(SELECT state FROM jobqueue_archive l WHERE l.id = d.id) AS state
			FROM unnest(j.after) d(id)
			WHERE NOT EXISTS (SELECT FROM effects e WHERE e.id = d.id AND e.kind = 'done')
				AND NOT EXISTS (SELECT FROM left_history l WHERE l.id = d.id)
				AND NOT EXISTS (SELECT FROM deleted l WHERE l.id = d.id)
				AND EXISTS (SELECT FROM jobqueue_job l WHERE l.id = me)
		LOOP
			RAISE LOG 'VIOLATION: job % runs before % (lives: %, %), one of %', me, o.id, o.lives, o.state, j.after;
		END LOOP;
	END IF;
	IF j.queue = 'ord' AND j.key IS NOT NULL THEN
		FOR o IN SELECT * FROM jobqueue_job e WHERE e.queue = j.queue AND e.key = j.key
			AND (e.priority, e.id) < (j.priority, j.id)
			AND (e.attempt > 0 OR e.keeps_order)
		LOOP
			RAISE LOG 'VIOLATION: job % (attempt %) runs before %, attempt %, run_at %, crashes %, xmin %', me, j.attempt, o.id, o.attempt, o.run_at, o.crashes, pg_snapshot_xmin(pg_current_snapshot());
		END LOOP;
	END IF;
	IF j.expires_at < j.enqueued_at THEN
		RAISE LOG 'VIOLATION: job % was never to run', me;
	END IF;
	RETURN j;
END $$;

CREATE FUNCTION work(args jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c record;
	j jobqueue_job;
	started timestamptz := clock_timestamp();
	what text := args->>'do';
	n int := hashtext((jobqueue_current()).key);
	dice float8 := random();
	kind text := 'done';
	free boolean := true;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	IF c.id IS NULL THEN
		RAISE EXCEPTION 'not in a job';
	END IF;
	j := begins(c.id);
	IF c.key IS NOT NULL THEN
		IF c.queue = 'keyed' THEN
			free := pg_try_advisory_xact_lock_shared(1, n);
		ELSE
			free := pg_try_advisory_xact_lock(1, n);
		END IF;
		IF NOT free THEN
			RAISE LOG 'VIOLATION: job % of queue % runs, key % is held by %', c.id, c.queue, c.key,
				(SELECT array_agg(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1 AND objid = n::oid AND granted);
		END IF;
	END IF;
	IF j.unique_until IN ('w', 'b') AND j.unique_key IS NOT NULL
		AND NOT pg_try_advisory_xact_lock(2, hashtext(j.queue || ' ' || j.unique_key)) THEN
		RAISE LOG 'VIOLATION: job % of queue % runs, unique_key % too', c.id, c.queue, j.unique_key;
	END IF;
	CASE what
	WHEN 'fail' THEN
		IF dice < 0.6 THEN
			RAISE EXCEPTION 'fails';
		END IF;
	WHEN 'fails' THEN
		RAISE EXCEPTION 'always fails';
	WHEN 'snooze' THEN
		IF dice < 0.6 THEN
			PERFORM jobqueue_snooze('0.05 s');
			kind := 'snoozed';
		END IF;
	WHEN 'discard' THEN
		IF dice < 0.3 THEN
			PERFORM jobqueue_discard('discarded');
		END IF;
	WHEN 'progress' THEN
		PERFORM jobqueue_progress(dice, 'some');
	WHEN 'serialize' THEN
		IF dice < 0.5 THEN
			RAISE SQLSTATE '40001' USING MESSAGE = 'again';
		END IF;
	WHEN 'terminate' THEN
		IF dice < 0.5 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
			PERFORM pg_sleep(60);
		END IF;
	WHEN 'successor' THEN
		IF dice < 0.7 THEN
			INSERT INTO sent SELECT jobqueue_enqueue('work', jsonb_build_object('do', 'successor'),
				queue => c.queue, key => c.key, after => CASE WHEN dice < 0.2 THEN ARRAY[c.id] END);
		END IF;
	WHEN 'long' THEN
		PERFORM pg_sleep(dice * 0.3);
	ELSE
	END CASE;
	IF dice < 0.2 THEN
		PERFORM pg_sleep(dice / 10);
	END IF;
	INSERT INTO effects (id, kind, queue, key, unique_key, unique_until, attempt, started)
		VALUES (c.id, kind, c.queue, c.key, j.unique_key, j.unique_until, c.attempt, started);
	RETURN what;
END $$;

CREATE PROCEDURE pieces() LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	FOR i IN 1 .. 3 LOOP
		IF c.key IS NOT NULL AND c.queue <> 'keyed' AND NOT pg_try_advisory_xact_lock(1, hashtext(c.key)) THEN
			RAISE LOG 'VIOLATION: job % of queue % runs, key % is held', c.id, c.queue, c.key;
		END IF;
		COMMIT;
	END LOOP;
END $$;

CREATE FUNCTION bury(job jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO buried (id) VALUES ((job->>'id')::bigint) $$;

-- a small graph of dependencies
CREATE FUNCTION dag(wide int, deep int, q text[], what text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	above bigint[];
	here bigint[];
	id bigint;
BEGIN
	FOR d IN 1 .. deep LOOP
		here := '{}';
		FOR w IN 1 .. wide LOOP
			id := jobqueue_enqueue('work', jsonb_build_object('do', what[1 + floor(random() * cardinality(what))]),
				queue => q[1 + floor(random() * cardinality(q))], after => above,
				key => CASE WHEN random() < 0.3 THEN 'k' || floor(random() * 6) END,
				run_at => CASE WHEN random() < 0.1 THEN now() + interval '0.2 s' END);
			INSERT INTO sent VALUES (id);
			here := here || id;
		END LOOP;
		above := here;
	END LOOP;
END $$;
END

# as they are in the beginning of a round
sub configure
{
	sql(<<'END');
SELECT jobqueue_configure('plain', weight => 3, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4, keep => '1 minute');
SELECT jobqueue_configure('lim', max_running => 2, rate => 50, backoff_base => '0.1 s', backoff_max => '0.5 s');
SELECT jobqueue_configure('keyed', key_limit => 2, key_rate => 10, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 3);
SELECT jobqueue_configure('ord', ordered => true, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4);
SELECT jobqueue_configure('bat', batch => 20, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4);
SELECT jobqueue_configure('dying', backoff_base => '0.1 s', backoff_max => '0.2 s', max_attempts => 2, on_dead => 'bury');
SELECT jobqueue_configure('on_dead', backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 100);
END
}

# ---- what clients send -----------------------------------------------------

my @kinds = (
	('nothing') x 10, qw(fail fail fails snooze discard progress serialize
	  terminate successor long));
my $gid = 0;

# arguments of an enqueue, after command and args
sub options
{
	my ($many) = @_;
	my $queue = pick(@queues);
	my @o = ("queue => '$queue'");

	push @o, 'key => ' . "'k" . int(rand 6) . "'"
	  if !$many && chance($queue eq 'plain' ? 0.3 : 0.6);
	push @o, 'priority => ' . int(rand 3) if chance(0.3);
	push @o, "run_at => clock_timestamp() + interval '" . rand(1) . " s'" if chance(0.15);
	push @o, "expires_at => clock_timestamp() + interval '" . rand(2) . " s'" if chance(0.1);
	push @o, 'max_attempts => ' . (1 + int rand 4) if chance(0.2);
	push @o, "keep => '1 minute'" if chance(0.1);
	push @o, "tags => '{t" . int(rand 3) . "}'" if chance(0.3);
	push @o, "timeout => '0.1 s'" if chance(0.1);
	push @o, 'after => (SELECT array_agg(id) FROM (SELECT id FROM sent WHERE role = current_user ORDER BY id DESC LIMIT 20) s WHERE random() < 0.1)'
	  if chance(0.15);
	if (!$many && chance(0.35))
	{
		push @o, "unique_key => 'u" . int(rand 5) . "'";
		my $until = pick(qw(executing executed expired while_executing until_and_while_executing));
		push @o, "unique_until => '$until'";
		push @o, "unique_for => '" . (0.1 + rand) . " s'" if $until eq 'expired' || chance(0.3);
		push @o, "on_conflict => '" . pick(qw(skip join raise replace update reject reschedule log)) . "'";
	}
	return join ', ', @o;
}

sub one_enqueue
{
	return sprintf "INSERT INTO sent SELECT x FROM jobqueue_enqueue('work', '{\"do\": \"%s\"}', %s) x WHERE x IS NOT NULL;\n",
	  pick(@kinds), options();
}

# commands that are not a function; those outside of a transaction block, which
# may run twice, are not looked for afterwards
sub one_text
{
	my $o = options();

	$o =~ s/, unique_.*//;
	return "SELECT jobqueue_enqueue('" . pick('CALL pieces()', 'VACUUM sent') . "', $o);\n"
	  if chance(0.4);
	return "INSERT INTO sent SELECT jobqueue_enqueue('"
	  . pick(
		'SELECT 1/0',
		"INSERT INTO effects (id, kind, queue, key, started) SELECT id, ''done'', queue, key, clock_timestamp() FROM jobqueue_current()")
	  . "', $o);\n";
}

sub one_many
{
	my $n = 2 + int rand pick(10, 30, 200);
	my $args = join ', ', map { sprintf q('{"do": "%s"}'), pick(@kinds) } 1 .. $n;
	my @more;

	push @more, 'keys => ARRAY[' . join(', ', map { chance(0.3) ? 'NULL' : "'k" . int(rand 6) . "'" } 1 .. $n) . ']'
	  if chance(0.7);
	push @more, 'unique_keys => ARRAY[' . join(', ', map { chance(0.3) ? 'NULL' : "'u" . int(rand 40) . "'" } 1 .. $n) . ']'
	  if chance(0.2);
	return sprintf "INSERT INTO sent SELECT x FROM jobqueue_enqueue_many('work', ARRAY[%s]::jsonb[], %s) x WHERE x IS NOT NULL;\n",
	  $args, join(', ', options(1), @more);
}

sub array_of { return 'ARRAY[' . join(', ', map { "'$_'" } @_) . ']'; }

sub statement
{
	my $dice = rand;

	return one_enqueue() if $dice < 0.5;
	return one_many() if $dice < 0.58;
	return one_text() if $dice < 0.6;
	return sprintf "SELECT dag(%d, %d, %s, %s);\n", 1 + int rand 3, 2 + int rand 3,
	  array_of(map { pick(@queues) } 1 .. 2), array_of(map { pick(@kinds) } 1 .. 4)
	  if $dice < 0.66;
	return "BEGIN;\n" . one_enqueue() . "SAVEPOINT s;\n" . one_enqueue() . one_many()
	  . pick("ROLLBACK TO s;\n", "RELEASE s;\n") . one_enqueue() . pick("COMMIT;\n", "COMMIT;\n", "ROLLBACK;\n")
	  if $dice < 0.76;
	if ($dice < 0.82)
	{
		my $g = 'g' . ++$gid;
		return "BEGIN;\n" . one_enqueue() . one_enqueue() . "PREPARE TRANSACTION '$g';\n"
		  . pick('COMMIT', 'COMMIT', 'ROLLBACK') . " PREPARED '$g';\n";
	}
	my $some = '(SELECT id FROM sent WHERE role = current_user ORDER BY id DESC LIMIT 1 OFFSET ' . int(rand 40) . ')';
	return "SELECT jobqueue_cancel($some);\n" if $dice < 0.86;
	return "SELECT jobqueue_retry((SELECT id FROM jobqueue_history WHERE state <> 'completed' AND owner = current_user::regrole::oid LIMIT 1 OFFSET " . int(rand 20) . "));\n"
	  if $dice < 0.90;
	return "SELECT jobqueue_reschedule($some, now() + interval '0.3 s'), jobqueue_reprioritize($some, 1);\n"
	  if $dice < 0.93;
	return "SELECT jobqueue_explain($some);\n" if $dice < 0.94;
	return "BEGIN;\nSET LOCAL jobqueue.inline = on;\n" . one_enqueue() . pick("COMMIT;\n", "ROLLBACK;\n")
	  if $dice < 0.95;
	return "BEGIN;\nSELECT jobqueue_run($some);\n" . pick("COMMIT;\n", "ROLLBACK;\n") if $dice < 0.97;
	return "SELECT pg_sleep(" . rand(0.3) . ");\n";
}

sub control
{
	my $q = pick(@queues);
	my $tag = "'t" . int(rand 3) . "'";
	my $s = pick(
		"SELECT jobqueue_cancel_where('$q', NULL, $tag);\n",
		"SELECT jobqueue_cancel_where(NULL, 'running', $tag);\n",
		"SELECT jobqueue_retry_where('$q', '" . pick(qw(dead cancelled)) . "', NULL);\n",
		"SELECT jobqueue_retry_where('$q', NULL, $tag);\n",
		"SELECT jobqueue_reschedule_where('$q', NULL, $tag, now() + interval '0.2 s');\n",
		"SELECT jobqueue_reschedule_where('$q', 'scheduled', NULL, NULL);\n",
		"SELECT jobqueue_reprioritize_where('$q', NULL, $tag, " . int(rand 3) . ");\n",
		"SELECT jobqueue_purge('$q', NULL);\n",
		"SELECT jobqueue_configure('lim', max_running => " . (1 + int rand 3) . ", rate => " . (20 + int rand 60) . ");\n",
		"SELECT jobqueue_configure('keyed', key_limit => " . (1 + int rand 3) . ", key_rate => " . (5 + int rand 30) . ");\n",
		"SELECT jobqueue_configure('bat', batch => " . (1 + int rand 30) . ");\n",
		"SELECT jobqueue_configure('plain', weight => " . (1 + int rand 10) . ");\n",
		"SELECT jobqueue_pause('$q');\nSELECT pg_sleep(0.2);\nSELECT jobqueue_resume('$q');\n",
		"SELECT jobqueue_quiesce('1 s');\nSELECT jobqueue_resume();\n",
		"SELECT jobqueue_sweep();\n",
		"VACUUM FULL jobqueue_job;\n",
		"REINDEX TABLE jobqueue_job;\n",
		"VACUUM jobqueue_job, jobqueue_archive, jobqueue_unique;\n",
		"DELETE FROM jobqueue_job WHERE id = (SELECT id FROM jobqueue_job WHERE queue <> 'on_dead' ORDER BY random() LIMIT 1);\n",
		"SELECT jobqueue_drop_queue('unused'), jobqueue_configure('unused', batch => 3);\n",
		"ALTER SYSTEM SET jobqueue.max_workers = " . (2 + int rand 5) . ";\nSELECT pg_reload_conf();\n",
		"ALTER SYSTEM SET jobqueue.enabled = off;\nSELECT pg_reload_conf();\nSELECT pg_sleep(0.2);\nALTER SYSTEM SET jobqueue.enabled = on;\nSELECT pg_reload_conf();\n",
		"SELECT count(*) FROM jobqueue_status;\nSELECT count(*) FROM jobqueue_jobs;\nSELECT count(*) FROM jobqueue_keys;\n");

	$s = "BEGIN;\n$s" . pick('COMMIT', 'ROLLBACK') . ";\n"
	  if $s !~ /quiesce|pg_sleep|VACUUM|SYSTEM/ && chance(0.3);
	return $s . "SELECT pg_sleep(" . rand(0.3) . ");\n";
}

clients_are(
	sub { return $_[0] eq 'control' ? control() : statement(); },
	first => { r3 => "SET ROLE r3;\n" },
	statements => 600);

# ---- faults ----------------------------------------------------------------

my $crashes = 0;

sub fault
{
	my (undef, $fault) = next_fault(
		('terminate worker') x 6,
		('cancel worker') x 5,
		('terminate client') x 3,
		('cancel client') x 3,
		('terminate scheduler') x 3,
		'terminate launcher',
		'kill worker',
		'kill client',
		'kill scheduler',
		'immediate');

	return if $fault =~ /^kill|immediate/ && $crashes-- <= 0;
	process_fault($fault);
}

# ---- the checker -----------------------------------------------------------

sub settle
{
	my $begin = time;

	set_conf('jobqueue.enabled' => 'on', 'jobqueue.max_workers' => 5);
	sql("SELECT jobqueue_resume(); INSERT INTO settled VALUES (clock_timestamp(), 'infinity')");
	foreach my $q (@queues)
	{
		sql("SELECT jobqueue_configure('$q', max_running => 0, rate => 0, key_rate => 0, key_limit => 1); SELECT jobqueue_resume('$q')");
	}
	end_prepared() while sql('SELECT count(*) FROM pg_prepared_xacts') > 0;
	sql("SELECT jobqueue_reschedule_where(NULL, 'scheduled', NULL, NULL, true)");
	wait_drained();
	sql("UPDATE settled SET ended = clock_timestamp() WHERE ended = 'infinity'");
	note sprintf 'drained in %.1f s', time - $begin;
}

sub check
{
	none('SELECT id, count(*) FROM effects WHERE kind = \'done\' GROUP BY id HAVING count(*) > 1',
		'none was completed twice');
	none(<<'END', 'none was lost');
SELECT DISTINCT id FROM sent s
WHERE NOT EXISTS (SELECT FROM effects e WHERE e.id = s.id AND e.kind = 'done')
	AND NOT EXISTS (SELECT FROM jobqueue_archive a WHERE a.id = s.id)
	AND NOT EXISTS (SELECT FROM deleted d WHERE d.id = s.id)
	AND NOT coalesce((SELECT NOT again FROM left_history l WHERE l.id = s.id ORDER BY n DESC LIMIT 1), false)
END
	none("SELECT id FROM effects WHERE kind = 'done' AND id NOT IN (SELECT id FROM sent)",
		'none ran that was not enqueued');
	none("SELECT id, state FROM jobqueue_archive a WHERE (state = 'completed') <> EXISTS (SELECT FROM effects e WHERE e.id = a.id AND e.kind = 'done') AND command LIKE '%work(%'",
		'completed is what has had its effect');
	none("SELECT key, a.id, b.id, a.queue, b.queue FROM effects a JOIN effects b USING (key) WHERE a.id < b.id AND a.xid <> b.xid AND a.queue <> 'keyed' AND a.started < b.ended AND b.started < a.ended",
		'no two jobs of a key at a time');
	# what a session runs itself takes no place
	none(<<'END',
WITH places AS (SELECT * FROM effects WHERE queue = 'lim' AND session IS NULL)
SELECT id, started, n FROM places a,
	LATERAL (SELECT count(*) AS n FROM places b WHERE b.started <= a.started AND b.ended > a.started) x
WHERE n > 3 AND NOT EXISTS (SELECT FROM settled s WHERE a.started BETWEEN s.began AND s.ended)
END
		'max_running was kept');
	none(<<'END', 'one call for each death');
SELECT id, deaths, calls FROM
	(SELECT id, count(*) AS deaths FROM
		(SELECT id FROM jobqueue_archive WHERE queue = 'dying' AND state = 'dead'
		UNION ALL SELECT id FROM left_history WHERE queue = 'dying' AND state = 'dead') d GROUP BY id) d
	FULL JOIN
	(SELECT id, count(*) AS calls FROM
		(SELECT id FROM buried
		UNION ALL SELECT (args->>'id')::bigint FROM jobqueue_archive WHERE queue = 'on_dead' AND state <> 'completed') c GROUP BY id) c
	USING (id)
WHERE deaths IS DISTINCT FROM calls
END
	none("SELECT * FROM jobqueue_unique WHERE (expires_at > now()) IS NOT FALSE AND unique_until <> 't' AND NOT EXISTS (SELECT FROM jobqueue_job j WHERE j.id = job)",
		'no unique_key is left without its job');
	none("SELECT id, queue, unique_key, unique_until FROM jobqueue_job j WHERE unique_until IN ('e', 's', 'b')",
		'no row is left');
	none('SELECT * FROM jobqueue_dependency', 'no dependency is left');
	memory_empties('memory is empty');
	eval { wait_for('SELECT count(*) = 0 FROM jobqueue_keys'); };
	none('SELECT * FROM jobqueue_keys', 'no key is left');
	none('SELECT queue, ready, blocked, running, spilled FROM jobqueue_status WHERE ready + blocked + running + spilled > 0',
		'no count is left');
	is(bad_lines(slurp_file(node()->logfile)), '', 'the log is clean');
	note sql(<<'END');
SELECT string_agg(queue || ' ' || n, ', ') FROM (SELECT queue, count(*) AS n FROM effects GROUP BY queue) x
UNION ALL SELECT string_agg(state || ' ' || n, ', ') FROM (SELECT state, count(*) AS n FROM (SELECT state FROM jobqueue_archive UNION ALL SELECT state FROM left_history) y GROUP BY state) x
END
}

foreach my $round (1 .. $rounds)
{
	property "round $round, seed $seed" => sub {
		my $end = time + $seconds;

		configure();
		forget_faults();
		$crashes = 2;
		start_clients(qw(r1 r1 r2 r3 control));
		while (time < $end)
		{
			usleep(100_000 + rand(400_000));
			fault() if $faults;
			revive_clients();
			end_prepared() if chance(0.3);
		}
		stop_clients();
		note done_faults();
		settle();
		check();
	};
}

done_testing();
