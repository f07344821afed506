# TogetherLoad: jobs, sessions that lock their keys, those who wait for jobs,
# consumers and services, all at once; and a checker that compares what happened
# with what was promised.
#
# Who has something to himself (a key, a job, a service, a place in a queue)
# says from when to when in the server's log, which no rollback takes back;
# what was done is in tables.

package TogetherLoad;

use strict;
use warnings;

use Exporter 'import';
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);
use Together;

our @EXPORT = qw(
  make_load configure_load load_settings load_queues statement control settle
  check room an_enqueue many a_post ending
);

# of the server; what the checker reads is in its log
sub load_settings
{
	return <<'END';
jobqueue.max_workers = 5
max_worker_processes = 20
max_connections = 40
jobqueue.worker_max_jobs = 200
deadlock_timeout = 200ms
log_line_prefix = '%m [%p] %b '
log_error_verbosity = terse
log_statement = none
log_min_error_statement = fatal
END
}

my @queues = qw(plain lim keyed ord bat);

sub load_queues { return @queues; }

sub make_load
{
	sql(<<'END');
CREATE ROLE r1 LOGIN;
CREATE ROLE r2 LOGIN;
CREATE ROLE serves LOGIN;
GRANT serves TO r1, r2;
SELECT jobqueue_grant(r::regrole, l) FROM unnest('{r1,r2,serves}'::text[]) r, unnest('{use,consume,lock}'::text[]) l;

CREATE SEQUENCE numbers;
-- what was enqueued, and sent to services, written by the transaction that did
CREATE TABLE sent (id bigint, role name DEFAULT current_user);
CREATE INDEX ON sent (id);
CREATE TABLE posted (id bigint, service text, sender text, i bigint, in_order boolean);
CREATE INDEX ON posted (id);
-- what was done, by the transaction that did; no constraint: what happens twice
-- must be seen
CREATE TABLE effects (id bigint, who text);
CREATE INDEX ON effects (id);
CREATE TABLE handled (incarnation bigint, n bigint, id bigint, sender text, i bigint);
CREATE INDEX ON handled (id);
-- the tokens of leases, for everybody
CREATE TABLE tokens (id bigint, queue text, key text, token uuid, at timestamptz);
-- what was told of jobs, and answered by services, from the log
CREATE TABLE was_told (id bigint, state text);
CREATE TABLE answered (incarnation bigint, n bigint, i bigint);
CREATE TABLE locked (n int PRIMARY KEY, changed int DEFAULT 0);
INSERT INTO locked SELECT generate_series(0, 3);
GRANT ALL ON sent, posted, effects, handled, tokens, locked TO PUBLIC;
GRANT ALL ON SEQUENCE numbers TO PUBLIC;

-- what left the history: retried, or expired
CREATE TABLE left_history (id bigint, state text, again boolean, n bigint GENERATED ALWAYS AS IDENTITY);
CREATE INDEX ON left_history (id);
CREATE FUNCTION leaves_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = public AS $$
BEGIN
	INSERT INTO left_history VALUES (OLD.id, OLD.state,
		EXISTS (SELECT FROM jobqueue_job WHERE id = OLD.id));
	RETURN NULL;
END $$;
CREATE TRIGGER leaves_history AFTER DELETE ON jobqueue_archive
	FOR EACH ROW EXECUTE FUNCTION leaves_history();

-- ---- facts ----------------------------------------------------------------

-- who had this from then until now, alone (x) or with others (s)
CREATE FUNCTION had(what text, mode text, who text, since timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'HAD % % % % %', what, mode, who, extract(epoch FROM since),
		extract(epoch FROM clock_timestamp());
END $$;

-- a job that is begun, or goes on: its key, its place and itself
CREATE FUNCTION job_had(id bigint, queue text, key text, who text, since timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM had('job:' || id, 'x', who, since);
	IF key IS NOT NULL THEN
		PERFORM had('key:' || key, CASE queue WHEN 'keyed' THEN 's' ELSE 'x' END, who, since);
	END IF;
	-- jobqueue_run takes no place of its queue; consumers do
	IF queue = 'lim' AND (who NOT LIKE 'job%'
		OR (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) <> 'client backend') THEN
		PERFORM had('queue:' || queue, 's', who, since);
	END IF;
END $$;

CREATE FUNCTION begins(me bigint) RETURNS jobqueue_job LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = public AS $$
DECLARE
	j jobqueue_job;
	o record;
BEGIN
	SELECT * INTO j FROM jobqueue_job WHERE id = me;
	IF EXISTS (SELECT FROM effects WHERE id = me) THEN
		RAISE LOG 'VIOLATION: job % runs again after it was completed', me;
	END IF;
	-- jobqueue_run asks neither for dependencies nor for order
	IF j.command IS NOT NULL
		AND (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend' THEN
		RETURN j;
	END IF;
	IF j.after IS NOT NULL AND NOT EXISTS (SELECT FROM left_history WHERE id = me) THEN
		FOR o IN SELECT d.id, (SELECT state FROM jobqueue_archive a WHERE a.id = d.id) AS state
			FROM unnest(j.after) d(id)
			WHERE NOT EXISTS (SELECT FROM effects e WHERE e.id = d.id)
				AND NOT EXISTS (SELECT FROM left_history l WHERE l.id = d.id)
				AND EXISTS (SELECT FROM jobqueue_job l WHERE l.id = me)
		LOOP
			RAISE LOG 'VIOLATION: job % runs before % (%), one of %', me, o.id, o.state, j.after;
		END LOOP;
	END IF;
	IF j.queue = 'ord' AND j.key IS NOT NULL THEN
		FOR o IN SELECT * FROM jobqueue_job e WHERE e.queue = j.queue AND e.key = j.key
			AND (e.priority, e.id) < (j.priority, j.id)
			AND (e.attempt > 0 OR e.keeps_order)
		LOOP
			RAISE LOG 'VIOLATION: job % (attempt %) runs before %, attempt %, run_at %', me, j.attempt, o.id, o.attempt, o.run_at;
		END LOOP;
	END IF;
	RETURN j;
END $$;

-- what somebody was told has become of a job
CREATE FUNCTION told(job bigint, was text, result jsonb, error text) RETURNS void LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = public AS $$
DECLARE
	so_it_is boolean;
BEGIN
	IF was IS NULL THEN
		RETURN;
	END IF;
	RAISE LOG 'TOLD % %', job, was;
	so_it_is := CASE was
		WHEN 'completed' THEN EXISTS (SELECT FROM effects e WHERE e.id = job)
		ELSE EXISTS (SELECT FROM jobqueue_archive a WHERE a.id = job AND a.state = was
			UNION ALL SELECT FROM left_history l WHERE l.id = job AND l.state = was) END;
	IF NOT so_it_is THEN
		RAISE LOG 'VIOLATION: job % is not %, as was told (%)', job, was, error;
	END IF;
	IF was = 'completed' AND result IS DISTINCT FROM jsonb_build_object('id', job) THEN
		RAISE LOG 'VIOLATION: job % has another result than %', job, result;
	END IF;
END $$;

-- ---- what jobs and sessions do ----------------------------------------------

CREATE FUNCTION me() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	RETURN coalesce('job' || c.id || '-' || c.attempt || '-', 'session') || pg_backend_pid();
END $$;

CREATE FUNCTION some_sent(how_many int, behind int) RETURNS bigint[] LANGUAGE sql AS
	$$ SELECT coalesce(array_agg(id), '{}') FROM (SELECT id FROM (SELECT id FROM sent WHERE role = current_user
		ORDER BY id DESC LIMIT how_many * 4 OFFSET behind) s ORDER BY random() LIMIT how_many) t $$;

CREATE FUNCTION waits(ids bigint[], how_long interval, any_of boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	w record;
BEGIN
	IF cardinality(ids) = 1 THEN
		SELECT * INTO w FROM jobqueue_wait(ids[1], how_long);
		PERFORM told(ids[1], w.state, w.result, w.error);
	ELSE
		FOR w IN SELECT * FROM jobqueue_wait(ids, how_long, any_of) LOOP
			PERFORM told(w.id, w.state, w.result, w.error);
		END LOOP;
	END IF;
END $$;

-- A job may lock the key that it runs with, and shares it as before.
CREATE FUNCTION had_key(k text, since timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	PERFORM had('key:' || k, CASE WHEN c.queue = 'keyed' AND c.key = k THEN 's' ELSE 'x' END, me(), since);
END $$;

-- until the end of the transaction, or of the savepoint: the setting goes with
-- the key
CREATE FUNCTION lock_xact(key text, how_long interval) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF NOT jobqueue_xact_lock(key, how_long) THEN
		RETURN false;
	END IF;
	PERFORM had_key(key, clock_timestamp());
	IF coalesce(current_setting('x.' || key, true), '') = '' THEN
		PERFORM set_config('x.' || key, clock_timestamp()::text, true);
	END IF;
	RETURN true;
END $$;

-- until it is unlocked
CREATE FUNCTION lock_session(key text, how_long interval) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF NOT jobqueue_lock(key, how_long) THEN
		RETURN false;
	END IF;
	PERFORM had_key(key, clock_timestamp());
	IF coalesce(current_setting('s.' || key, true), '') = '' THEN
		PERFORM set_config('s.' || key, clock_timestamp()::text, false);
	END IF;
	RETURN true;
END $$;

-- whatever this session has it still has
CREATE FUNCTION still() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	at text;
BEGIN
	FOR k IN 0 .. 5 LOOP
		FOREACH at IN ARRAY ARRAY[current_setting('x.k' || k, true), current_setting('s.k' || k, true)] LOOP
			IF coalesce(at, '') <> '' THEN
				PERFORM had_key('k' || k, at::timestamptz);
				IF (jobqueue_current()).queue IS DISTINCT FROM 'keyed' AND jobqueue_whereis('k' || k) IS DISTINCT FROM pg_backend_pid() THEN
					RAISE LOG 'VIOLATION: % has lost key k%, since % of %', me(), k, at, jobqueue_whereis('k' || k);
				END IF;
			END IF;
		END LOOP;
	END LOOP;
END $$;

CREATE FUNCTION post(name text, what text, run_at timestamptz DEFAULT NULL, in_order boolean DEFAULT true) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	sender text := current_setting('application_name') || CASE WHEN (jobqueue_current()).id IS NULL THEN '' ELSE ' ' || me() END;
	i bigint := nextval('numbers');
	id bigint := jobqueue_send(name, jsonb_build_object('i', i, 'from', sender, 'do', what), run_at);
BEGIN
	INSERT INTO posted VALUES (id, name, sender, i, in_order AND run_at IS NULL);
END $$;

CREATE FUNCTION work(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
	c record;
	j jobqueue_job;
	what text := args->>'do';
	dice float8 := random();
	other text := 'k' || floor(random() * 6);
BEGIN
	SELECT * INTO c FROM jobqueue_current();
	j := begins(c.id);
	PERFORM job_had(c.id, c.queue, c.key, me(), began);
	IF dice < 0.2 THEN
		PERFORM pg_sleep(dice / 10);
	END IF;
	CASE what
	WHEN 'fail' THEN
		IF dice < 0.6 THEN
			RAISE EXCEPTION 'fails';
		END IF;
	WHEN 'fails' THEN
		RAISE EXCEPTION 'always fails';
	WHEN 'serialize' THEN
		IF dice < 0.5 THEN
			RAISE SQLSTATE '40001' USING MESSAGE = 'again';
		END IF;
	WHEN 'terminate' THEN
		IF dice < 0.5 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
			PERFORM pg_sleep(60);
		END IF;
	WHEN 'snooze' THEN
		IF dice < 0.6 THEN
			PERFORM jobqueue_snooze('0.05 s');
			RETURN NULL;
		END IF;
	WHEN 'wait' THEN
		PERFORM waits(some_sent(1, 0), '0.7 s', false);
	WHEN 'waits' THEN
		PERFORM waits(some_sent(4, 0), '0.5 s', dice < 0.6);
	WHEN 'lock' THEN
		IF lock_xact(other, '0.4 s') AND dice < 0.5 THEN
			PERFORM pg_sleep(dice / 10);
			PERFORM lock_xact('k' || floor(random() * 6), '0.4 s');
		END IF;
		PERFORM still();
	WHEN 'lock_session' THEN
		-- not unlocked
		IF jobqueue_try_lock(other) THEN
			PERFORM pg_sleep(dice / 10);
			PERFORM had_key(other, clock_timestamp());
		END IF;
	WHEN 'row' THEN
		UPDATE locked SET changed = changed + 1 WHERE n = floor(dice * 4);
		PERFORM lock_xact(other, '0.4 s');
	WHEN 'post' THEN
		PERFORM post('s' || floor(random() * 5), 'nothing');
	WHEN 'long' THEN
		PERFORM pg_sleep(dice * 0.3);
	ELSE
	END CASE;
	INSERT INTO effects VALUES (c.id, me());
	PERFORM job_had(c.id, c.queue, c.key, me(), began);
	IF j.unique_until IN ('w', 'b') AND j.unique_for IS NULL THEN
		PERFORM had('unique:' || j.queue || ':' || j.unique_key, 'x', me(), began);
	END IF;
	RETURN jsonb_build_object('id', c.id);
END $$;

-- ---- consumers ----------------------------------------------------------------

-- one that is claimed: finished in some way
CREATE FUNCTION finish(f jsonb, how text, queue text, since timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	id bigint := (f->>'id')::bigint;
	token uuid := (f->>'token')::uuid;
BEGIN
	CASE how
	WHEN 'complete' THEN
		PERFORM jobqueue_complete(id, jsonb_build_object('id', id), token);
		INSERT INTO effects VALUES (id, coalesce(token::text, me()));
	WHEN 'fail' THEN
		PERFORM jobqueue_fail(id, 'consumer fails', CASE WHEN random() < 0.5 THEN interval '0.1 s' END, token);
	WHEN 'release' THEN
		PERFORM jobqueue_release(id, token);
	WHEN 'extend' THEN
		IF token IS NULL THEN
			RETURN;
		END IF;
		PERFORM jobqueue_extend(id, '0.5 s', token);
	ELSE
		RETURN;
	END CASE;
	IF since IS NOT NULL THEN
		PERFORM job_had(id, queue, f->>'key', coalesce('lease' || token::text, 'claim' || me()), since);
	END IF;
END $$;

CREATE FUNCTION took(jobs jsonb, q text) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
	f jsonb;
	began timestamptz := clock_timestamp();
BEGIN
	FOR f IN SELECT jsonb_array_elements(jobs) LOOP
		PERFORM job_had((f->>'id')::bigint, q, f->>'key', coalesce('lease' || (f->>'token'), 'claim' || me()), began);
		PERFORM begins((f->>'id')::bigint);
	END LOOP;
	INSERT INTO tokens SELECT (x->>'id')::bigint, q, x->>'key', (x->>'token')::uuid, began
		FROM jsonb_array_elements(jobs) x WHERE x->>'token' IS NOT NULL;
	RETURN began;
END $$;

-- in the caller's transaction
CREATE FUNCTION take(q text, n int, lease interval) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	jobs jsonb;
BEGIN
	SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') INTO jobs FROM jobqueue_fetch(q, n, '0', lease) x;
	PERFORM took(jobs, q);
	RETURN jobs;
END $$;

CREATE PROCEDURE consume(q text, n int, how_long interval, lease interval, how text[], by_procedure boolean) LANGUAGE plpgsql AS $$
DECLARE
	jobs jsonb;
	f jsonb;
	began timestamptz;
	h text;
BEGIN
	IF by_procedure THEN
		CALL jobqueue_fetch_wait(q, n, how_long, lease, jobs);
		jobs := coalesce(jobs, '[]');
	ELSE
		SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') INTO jobs FROM jobqueue_fetch(q, n, how_long, lease) x;
	END IF;
	began := took(jobs, q);
	IF random() < 0.1 THEN
		ROLLBACK;
		RETURN;
	END IF;
	COMMIT;
	FOR f IN SELECT jsonb_array_elements(jobs) LOOP
		IF random() < 0.2 THEN
			PERFORM pg_sleep(random() * 0.1);
		END IF;
		h := how[1 + floor(random() * cardinality(how))];
		PERFORM finish(f, h, q, began);
		IF random() < 0.2 THEN
			ROLLBACK;
			PERFORM finish(f, 'complete', q, began);
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- whatever this session has left over
CREATE FUNCTION finish_mine(how text, n int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT id, queue, key FROM jobqueue_running WHERE pid = pg_backend_pid() ORDER BY random() LIMIT n LOOP
		PERFORM finish(to_jsonb(r), how, r.queue, clock_timestamp());
	END LOOP;
END $$;

-- anybody's lease, with a token that may be stale
CREATE FUNCTION finish_lease(how text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	SELECT * INTO r FROM (SELECT * FROM tokens ORDER BY at DESC LIMIT 12) t ORDER BY random() LIMIT 1;
	IF FOUND THEN
		PERFORM finish(to_jsonb(r), how, r.queue, r.at);
	END IF;
END $$;

-- ---- services -----------------------------------------------------------------

CREATE FUNCTION act(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
	me bigint := (state->>'incarnation')::bigint;
	n bigint := (state->>'n')::bigint;
	i bigint := (message->>'i')::bigint;
	dice float8 := random();
BEGIN
	PERFORM had('service:' || me, 'x', me(), began);
	IF i IS NULL THEN
		RETURN state;
	END IF;
	IF (SELECT max(h.n) FROM handled h WHERE incarnation = me) IS DISTINCT FROM nullif(n, 0) THEN
		RAISE LOG 'VIOLATION: state % of service % does not agree with its effects', n, me;
	END IF;
	n := n + 1;
	INSERT INTO handled VALUES (me, n, (jobqueue_current()).id, message->>'from', i);
	IF dice < 0.1 THEN
		PERFORM pg_sleep(dice);
	END IF;
	CASE message->>'do'
	WHEN 'fail' THEN
		IF dice < 0.5 THEN
			RAISE EXCEPTION 'fails';
		END IF;
	WHEN 'serialize' THEN
		IF dice < 0.5 THEN
			RAISE SQLSTATE '40001' USING MESSAGE = 'again';
		END IF;
	WHEN 'terminate' THEN
		IF dice < 0.5 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
			PERFORM pg_sleep(60);
		END IF;
	WHEN 'post' THEN
		-- those that are being stopped must not wait for each other
		BEGIN
			PERFORM post('s' || floor(random() * 5), 'nothing', CASE WHEN dice < 0.3 THEN clock_timestamp() + interval '0.2 s' END);
		EXCEPTION WHEN object_not_in_prerequisite_state OR undefined_object THEN
			NULL;
		END;
	WHEN 'lock' THEN
		PERFORM lock_xact('k' || floor(random() * 6), '0.2 s');
	ELSE
	END CASE;
	PERFORM had('service:' || me, 'x', me(), began);
	state := jsonb_build_object('incarnation', me, 'n', n, 'sum', (state->>'sum')::bigint + i);
	RETURN CASE WHEN message->>'do' = 'call' THEN jsonb_build_object('state', state,
		'reply', jsonb_build_object('incarnation', me, 'n', n, 'i', i)) ELSE state END;
END $$;

CREATE FUNCTION start(name text, restart text, max_restarts int) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	$$ SELECT jobqueue_start_service(name, 'act', jsonb_build_object('incarnation', nextval('numbers'), 'n', 0, 'sum', 0),
		restart, max_restarts, queue => CASE name WHEN 's1' THEN 'lim' WHEN 's2' THEN 'bat' ELSE 'default' END) $$;
ALTER FUNCTION start OWNER TO serves;

CREATE PROCEDURE call_it(name text, how_long interval) LANGUAGE plpgsql AS $$
DECLARE
	number bigint := nextval('numbers');
	reply jsonb;
BEGIN
	CALL jobqueue_call(name, jsonb_build_object('i', number, 'from', 'call', 'do', 'call'), reply, how_long);
	RAISE LOG 'ANSWERED % % %', reply->>'incarnation', reply->>'n', number;
	IF NOT EXISTS (SELECT FROM handled h WHERE h.i = number AND h.n = (reply->>'n')::bigint
		AND h.incarnation = (reply->>'incarnation')::bigint) THEN
		RAISE LOG 'VIOLATION: the reply % to % agrees with no effect', reply, number;
	END IF;
END $$;
END
}

# as queues and services are in the beginning of a round
sub configure_load
{
	sql(<<'END');
SELECT jobqueue_configure('plain', weight => 3, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4, keep => '1 minute');
SELECT jobqueue_configure('lim', max_running => 3, rate => 60, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4);
SELECT jobqueue_configure('keyed', key_limit => 2, key_rate => 20, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 3);
SELECT jobqueue_configure('ord', ordered => true, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4);
SELECT jobqueue_configure('bat', batch => 10, backoff_base => '0.1 s', backoff_max => '0.5 s', max_attempts => 4);
SELECT start('s' || i, CASE i WHEN 4 THEN 'transient' ELSE 'permanent' END, 1000) FROM generate_series(0, 4) i;
END
}

# ---- what clients do ---------------------------------------------------------

sub key { return "'k" . int(rand 6) . "'"; }
sub ending { return pick("COMMIT;\n", "COMMIT;\n", "ROLLBACK;\n"); }
sub service { return "'s" . int(rand 5) . "'"; }

my @kinds = (
	('nothing') x 8, qw(fail fail fails serialize terminate snooze
	  wait wait waits lock lock lock lock_session row post long));
my $gid = 0;

sub options
{
	my ($queue) = @_;
	my @o = ("queue => '$queue'");

	push @o, 'key => ' . key() if chance(0.5);
	push @o, 'priority => ' . int(rand 3) if chance(0.2);
	push @o, "run_at => clock_timestamp() + interval " . some_time(0.6) if chance(0.1);
	push @o, "expires_at => clock_timestamp() + interval " . some_time(2) if chance(0.05);
	push @o, 'max_attempts => ' . (1 + int rand 4) if chance(0.2);
	push @o, "tags => '{t" . int(rand 3) . "}'" if chance(0.3);
	push @o, 'after => some_sent(2, 3)' if chance(0.1);
	if (chance(0.2))
	{
		my $until = pick(qw(executing executed expired while_executing until_and_while_executing));
		push @o, "unique_key => 'u" . int(rand 5) . "', unique_until => '$until'";
		push @o, "unique_for => '" . (0.1 + rand) . " s'" if $until eq 'expired' || chance(0.3);
		push @o, "on_conflict => '" . pick(qw(skip join raise replace update reject reschedule log)) . "'";
	}
	return join ', ', @o;
}

sub an_enqueue
{
	my $command = chance(0.35) ? 'NULL' : "'work'";
	return sprintf "INSERT INTO sent SELECT x FROM jobqueue_enqueue(%s, '{\"do\": \"%s\"}', %s) x WHERE x IS NOT NULL;\n",
	  $command, pick(@kinds), options(pick(@queues));
}

sub many
{
	my $n = 2 + int rand pick(5, 30, 100);
	return sprintf "INSERT INTO sent SELECT x FROM jobqueue_enqueue_many(%s, array_fill('{\"do\": \"%s\"}'::jsonb, ARRAY[$n]), queue => '%s', keys => ARRAY[%s]) x;\n",
	  chance(0.3) ? 'NULL' : "'work'", pick(@kinds), pick(@queues),
	  join(', ', map { chance(0.3) ? 'NULL' : key() } 1 .. $n);
}

sub a_post
{
	return sprintf "SELECT post(%s, '%s'%s);\n", service(),
	  pick(('nothing') x 4, qw(fail serialize terminate post lock)),
	  chance(0.15) ? ", clock_timestamp() + interval " . some_time(0.5) : '';
}

sub a_lock
{
	return sprintf "SELECT %s(%s, %s);\n", pick(qw(lock_xact lock_xact lock_session)), key(), some_time(pick(0.02, 0.3));
}

sub unlock
{
	my $k = key();
	(my $name = $k) =~ s/'//g;
	return "SELECT set_config('s.$name', '', false);\nSELECT jobqueue_unlock($k);\n";
}

sub unlock_all
{
	return "DISCARD ALL;\n" if chance(0.5);
	return join('', map { "SELECT set_config('s.k$_', '', false);\n" } 0 .. 5)
	  . "SELECT pg_advisory_unlock_all();\n";
}

sub a_take
{
	return sprintf "SELECT take('%s', %d, %s);\n", pick(@queues), 1 + int rand 3,
	  chance(0.5) ? 'NULL' : "interval '0.4 s'";
}

sub consume
{
	my $ways = join ', ', map { "'$_'" } map { pick(('complete') x 5, qw(fail release extend leave)) } 1 .. 4;
	return sprintf "CALL consume('%s', %d, %s, %s, ARRAY[%s], %s);\n", pick(@queues), 1 + int rand pick(1, 6),
	  some_time(pick(0.001, 0.3)), chance(0.5) ? 'NULL' : "'" . pick(0.1, 0.4, 2) . " s'", $ways,
	  chance(0.3) ? 'true' : 'false';
}

# of somebody who has claims or locks
sub end_of_claim
{
	return sprintf "SELECT finish_lease('%s');\n", pick(qw(complete complete fail release extend)) if chance(0.5);
	return sprintf "SELECT finish_mine('%s', %d);\n", pick(qw(complete complete fail release)), 1 + int rand 3;
}

sub in_transaction
{
	my ($what) = @_;
	return "BEGIN;\n" . $what->() . "SAVEPOINT s;\n" . $what->() . $what->()
	  . pick("ROLLBACK TO s;\n", "RELEASE s;\n") . "SELECT still();\n" . $what->() . ending();
}

sub statement
{
	my ($who) = @_;
	my $dice = rand;

	if ($who eq 'consumer')
	{
		return consume() if $dice < 0.5;
		return end_of_claim() if $dice < 0.65;
		return in_transaction(sub { return chance(0.5) ? a_take() : end_of_claim() }) if $dice < 0.8;
		return "DISCARD ALL;\n" if $dice < 0.85;
		return a_lock() . "SELECT still();\n" . consume() . unlock_all() if $dice < 0.9;
		return "SELECT finish_mine('complete', 20);\n" if $dice < 0.96;
		return "\\connect -\n" if $dice < 0.97;
		return "SELECT pg_sleep(" . rand(0.2) . ");\n";
	}
	return join '', map { an_enqueue() } 0 .. rand 4 if $dice < 0.35;
	return many() if $dice < 0.38;
	return in_transaction(\&an_enqueue) if $dice < 0.42;
	if ($dice < 0.44)
	{
		my $g = 'g' . ++$gid;
		return "BEGIN;\n" . an_enqueue() . sprintf("SELECT post(%s, 'nothing', NULL, false);\n", service())
		  . "PREPARE TRANSACTION '$g';\n" . pick('COMMIT', 'COMMIT', 'ROLLBACK') . " PREPARED '$g';\n";
	}
	return sprintf "SELECT waits(some_sent(%d, %d), %s, %s);\n", pick(1, 1, 5, 60), int rand 10, some_time(pick(0.05, 1)),
	  pick('true', 'false')
	  if $dice < 0.52;
	return in_transaction(\&a_lock) if $dice < 0.60;
	return in_transaction(sub { return chance(0.5) ? a_lock() : sprintf "UPDATE locked SET changed = changed + 1 WHERE n = %d;\n", rand 4 })
	  if $dice < 0.63;
	return a_lock() . "SELECT still();\n" . (chance(0.7) ? unlock() : '') if $dice < 0.68;
	return unlock_all() if $dice < 0.70;
	return join '', map { a_post() } 0 .. rand 6 if $dice < 0.80;
	return in_transaction(\&a_post) if $dice < 0.83;
	return sprintf "CALL call_it(%s, %s);\n", service(), some_time(pick(0.1, 2)) if $dice < 0.87;
	my $some = sprintf '(some_sent(1, %d))[1]', int rand 20;
	return "SELECT jobqueue_cancel($some);\n" if $dice < 0.91;
	return "SELECT jobqueue_cancel((SELECT id FROM posted ORDER BY i DESC LIMIT 1));\n" if $dice < 0.92;
	return "SELECT jobqueue_retry((SELECT h.id FROM jobqueue_history h JOIN sent USING (id) WHERE state <> 'completed' AND owner = current_user::regrole::oid LIMIT 1 OFFSET " . int(rand 20) . "));\n"
	  if $dice < 0.94;
	return "SELECT jobqueue_explain($some);\n" if $dice < 0.95;
	return "BEGIN;\nSELECT jobqueue_run($some);\n" . ending() if $dice < 0.96;
	return "SET lock_timeout = '100ms';\n" . a_lock() . "RESET lock_timeout;\n" if $dice < 0.98;
	return "SELECT pg_sleep(" . rand(0.1) . ");\n";
}

sub control
{
	my $q = pick(@queues);
	my $tag = "'t" . int(rand 3) . "'";
	my $s = pick(
		"SELECT jobqueue_cancel_where('$q', NULL, $tag);\n",
		"SELECT jobqueue_cancel_where(NULL, 'running', $tag);\n",
		"SELECT jobqueue_reprioritize_where('$q', NULL, $tag, " . int(rand 3) . ");\n",
		"SELECT jobqueue_reschedule_where('$q', NULL, $tag, now() + interval '0.2 s');\n",
		"SELECT jobqueue_configure('lim', max_running => " . (1 + int rand 3) . ", rate => " . (20 + int rand 60) . ");\n",
		"SELECT jobqueue_configure('keyed', key_limit => " . (1 + int rand 2) . ", key_rate => " . (5 + int rand 30) . ");\n",
		"SELECT jobqueue_configure('bat', batch => " . (1 + int rand 20) . ");\n",
		"SELECT jobqueue_pause('$q');\nSELECT pg_sleep(0.2);\nSELECT jobqueue_resume('$q');\n",
		"SELECT jobqueue_quiesce('0.5 s');\nSELECT jobqueue_resume();\n",
		"SELECT jobqueue_sweep();\n",
		"VACUUM FULL jobqueue_job;\n",
		"VACUUM jobqueue_job, jobqueue_archive, jobqueue_unique, jobqueue_lease, jobqueue_service_current;\n",
		"ALTER SYSTEM SET jobqueue.max_workers = " . (2 + int rand 5) . ";\nSELECT pg_reload_conf();\n",
		"ALTER SYSTEM SET jobqueue.enabled = off;\nSELECT pg_reload_conf();\nSELECT pg_sleep(0.2);\nALTER SYSTEM SET jobqueue.enabled = on;\nSELECT pg_reload_conf();\n",
		"ALTER SYSTEM SET jobqueue.worker_idle_timeout = '" . pick(1, 60) . " s';\nSELECT pg_reload_conf();\n",
		(sprintf "SELECT jobqueue_stop_service(%s);\n", service()) x 2,
		(sprintf "SELECT start(%s, '%s', %d);\n", service(), pick(qw(permanent transient temporary)), pick(0, 3, 1000)) x 3,
		"SELECT start('s' || i, 'permanent', 1000) FROM generate_series(0, 4) i;\n",
		"SELECT count(*) FROM jobqueue_status;\nSELECT count(*) FROM jobqueue_jobs;\nSELECT count(*) FROM jobqueue_keys;\nSELECT count(*) FROM jobqueue_services;\n");

	$s = "BEGIN;\n$s" . ending() if $s !~ /quiesce|pg_sleep|VACUUM|SYSTEM/ && chance(0.3);
	return $s . "SELECT pg_sleep(" . rand(0.15) . ");\n";
}

# ---- the checker ---------------------------------------------------------------

# when the limits of queues were lifted
my $settled;

sub settle
{
	my $begin = time;

	set_conf('jobqueue.enabled' => 'on', 'jobqueue.max_workers' => 5,
		'jobqueue.worker_idle_timeout' => undef);
	sql('SELECT jobqueue_resume()');
	$settled = sql('SELECT extract(epoch FROM clock_timestamp())');
	foreach my $q (@queues)
	{
		sql("SELECT jobqueue_configure('$q', max_running => 0, rate => 0, key_rate => 0, key_limit => 1); SELECT jobqueue_resume('$q')");
	}
	end_prepared() while sql('SELECT count(*) FROM pg_prepared_xacts') > 0;
	# those without a command need somebody who fetches them; what has failed is
	# started again
	my $end = time + ($ENV{JQ_DRAIN} || $PostgreSQL::Test::Utils::timeout_default);
	my ($tries, $longest) = (0, 0);
	while (1)
	{
		my $left;
		my $from = time;

		node()->psql('postgres', join("\n", map { "SELECT finish(f, 'complete', '$_', NULL) FROM jsonb_array_elements(take('$_', 12, NULL)) f;" } @queues), on_error_stop => 0);
		# tried again where it fails, as much else may
		my $error;
		node()->psql('postgres', end_unique_circles(), stderr => \$error);
		$left = sql(<<'SQL');
SELECT FROM jobqueue_services s, start(s.name, 'permanent', 1000) WHERE status = 'failed';
SELECT FROM jobqueue_reschedule_where(NULL, 'scheduled', NULL, NULL, true);
SELECT (SELECT count(*) FROM jobqueue_job) + (SELECT count(*) FROM jobqueue_running);
SQL
		$tries++;
		$longest = time - $from if time - $from > $longest;
		last if $left =~ /^0$/m;
		if (time > $end)
		{
			diag sql("SELECT id, queue, owner, key, command IS NULL, priority, run_at, jobqueue_explain(id) FROM jobqueue_job");
			diag sql('SELECT * FROM jobqueue_keys');
			sleep $ENV{JQ_STAY} if $ENV{JQ_STAY};
			# who waited so long that nothing more could be tried has something else
			die sprintf("does not drain: %s left, the longest of %d tries took %.1f s\n", $left =~ /(\d+)\s*\z/, $tries, $longest);
		}
		usleep(50_000);
	}
	note sprintf 'drained in %.1f s', time - $begin;
}

# A session may lock the key of a job that it has fetched, and run a job of a key
# that it has locked.
sub same
{
	my ($one, $other) = @_;

	return 1 if $one eq $other;
	($one, $other) = ($other, $one) if $one !~ /^session/;
	return $one =~ /^session(\d+)$/ && $other =~ /^(?:claimsession|job.*-)$1$/;
}

# whoever has something to himself has it alone
sub overlaps
{
	my ($log) = @_;
	my (%had, @wrong);

	push @{ $had{$1} }, [ $4, $5, $2, $3 ]
	  while $log =~ /LOG:  HAD (\S+) (\S) (\S+) ([\d.]+) ([\d.]+)$/mg;
	foreach my $what (sort keys %had)
	{
		my @active;
		my $most = $what =~ /^queue/ ? 3 : 2;

		foreach my $h (sort { $a->[0] <=> $b->[0] } @{ $had{$what} })
		{
			my %shared;

			last if $what =~ /^queue/ && $h->[0] > $settled;
			@active = grep { $_->[1] > $h->[0] } @active;
			foreach my $o (@active)
			{
				next if same($o->[3], $h->[3]);
				if ($o->[2] eq 'x' || $h->[2] eq 'x')
				{
					push @wrong, "$what: $o->[3] $o->[0] - $o->[1], $h->[3] $h->[0] - $h->[1]";
				}
				else
				{
					$shared{ $o->[3] } = 1;
				}
			}
			push @wrong, "$what: $h->[3] and " . join(' ', sort keys %shared) if keys %shared >= $most;
			push @active, $h;
		}
	}
	note sprintf '%d things that somebody had to himself', scalar keys %had;
	return join "\n", @wrong[ 0 .. ($#wrong < 9 ? $#wrong : 9) ];
}

# check LOG: of the time since the last one
sub check
{
	my ($log) = @_;

	none('SELECT id, count(*) FROM effects GROUP BY id HAVING count(*) > 1',
		'none was completed twice');
	none(<<'END', 'none was lost');
SELECT DISTINCT id FROM sent s
WHERE NOT EXISTS (SELECT FROM effects e WHERE e.id = s.id)
	AND NOT EXISTS (SELECT FROM jobqueue_archive a WHERE a.id = s.id)
	AND NOT coalesce((SELECT NOT again FROM left_history l WHERE l.id = s.id ORDER BY n DESC LIMIT 1), false)
END
	none('SELECT id FROM effects WHERE id NOT IN (SELECT id FROM sent)',
		'none was done that was not enqueued');
	none("SELECT id, state FROM jobqueue_archive a JOIN sent USING (id) WHERE (state = 'completed') <> EXISTS (SELECT FROM effects e WHERE e.id = a.id)",
		'completed is what has had its effect');

	# services
	none('SELECT id, count(*) FROM handled GROUP BY id HAVING count(*) > 1',
		'no message was handled twice');
	none(<<'END', 'no message was lost');
SELECT id, service FROM posted p
WHERE NOT EXISTS (SELECT FROM handled h WHERE h.id = p.id)
	AND NOT EXISTS (SELECT FROM jobqueue_archive a WHERE a.id = p.id)
	AND NOT EXISTS (SELECT FROM left_history l WHERE l.id = p.id)
END
	none("SELECT id FROM handled WHERE sender <> 'call' AND id NOT IN (SELECT id FROM posted)",
		'no message was handled that was not sent');
	none(<<'END', 'messages were handled in the order in which they were sent');
SELECT incarnation, sender, i FROM (SELECT h.*, lag(h.i) OVER (PARTITION BY incarnation, h.sender ORDER BY n) AS before
	FROM handled h JOIN posted p USING (id) WHERE p.in_order) x WHERE before > i
END
	none('SELECT incarnation, count(*), min(n), max(n) FROM handled GROUP BY 1 HAVING count(*) <> max(n) OR min(n) <> 1 OR count(DISTINCT n) <> max(n)',
		'a state was left for each effect');
	none(<<'END', 'states agree with effects');
SELECT name, state FROM jobqueue_services, LATERAL
	(SELECT count(*) AS n, coalesce(sum(i), 0) AS sum FROM handled WHERE incarnation = (state->>'incarnation')::bigint) h
WHERE state->>'n' <> h.n::text OR state->>'sum' <> h.sum::text OR status <> 'running' OR waiting <> 0
END

	# memory
	none("SELECT * FROM jobqueue_unique WHERE (expires_at > now()) IS NOT FALSE AND unique_until <> 't' AND NOT EXISTS (SELECT FROM jobqueue_job j WHERE j.id = job)",
		'no unique_key is left without its job');
	none('SELECT * FROM jobqueue_dependency', 'no dependency is left');
	none('SELECT * FROM jobqueue_lease', 'no lease is left');
	memory_empties('memory is empty');
	eval { wait_for('SELECT count(*) = 0 FROM jobqueue_keys'); };
	none('SELECT * FROM jobqueue_keys', 'no key is left');
	none('SELECT queue, ready, blocked, running, spilled FROM jobqueue_status WHERE ready + blocked + running + spilled > 0',
		'no count is left');

	# the log
	is(overlaps($log), '', 'what somebody had to himself nobody else had');
	is(bad_lines($log), '', 'the log is clean');
	my @told = $log =~ /LOG:  TOLD (\d+ \w+)$/mg;
	my @answered = $log =~ /LOG:  ANSWERED (\d+ \d+ \d+)$/mg;
	sql('TRUNCATE was_told, answered');
	sql('INSERT INTO was_told VALUES ' . join(', ', map { my ($i, $s) = split / /; "($i, '$s')" } @told)) if @told;
	sql('INSERT INTO answered VALUES ' . join(', ', map { '(' . join(', ', split / /) . ')' } @answered)) if @answered;
	none(<<'END', 'what somebody was told holds over crashes');
SELECT DISTINCT id, state FROM was_told t WHERE NOT CASE state
	WHEN 'completed' THEN EXISTS (SELECT FROM effects e WHERE e.id = t.id)
	ELSE EXISTS (SELECT FROM jobqueue_archive a WHERE a.id = t.id AND a.state = t.state)
		OR EXISTS (SELECT FROM left_history l WHERE l.id = t.id AND l.state = t.state) END
END
	none('SELECT * FROM answered EXCEPT SELECT incarnation, n, i FROM handled', 'so do the answers of services');
	note sprintf '%d told, %d answered, ', scalar @told, scalar @answered;
	note sql(<<'END');
SELECT count(*) || ' jobs done, by ' || string_agg(DISTINCT n, ', ') FROM (SELECT count(*) OVER (PARTITION BY k) || ' ' || k AS n FROM
	(SELECT CASE WHEN who LIKE 'job%' THEN 'workers' WHEN who LIKE 'session%' THEN 'sessions' ELSE 'leases' END AS k FROM effects) x) y
UNION ALL SELECT count(*) || ' messages, ' || count(DISTINCT incarnation) || ' services' FROM handled
UNION ALL SELECT count(*) || ' leases' FROM tokens
UNION ALL SELECT string_agg(state || ' ' || n, ', ') FROM (SELECT state, count(*) AS n FROM (SELECT state FROM jobqueue_archive UNION ALL SELECT state FROM left_history) y GROUP BY state) x
END
}

# ---- what there is room for ------------------------------------------------------

# how many jobs one can fetch, and wait for
sub room
{
	my @room;

	sql("SELECT count(*) FROM jobqueue_enqueue_many(NULL, array_fill('{}'::jsonb, ARRAY[400]), queue => 'room')");
	my $s = session();
	push @room, $s->query_safe("SELECT count(*) FROM jobqueue_fetch('room', 300)");
	sql("SELECT jobqueue_cancel_where('room', NULL, NULL)");
	$s->quit;
	wait_drained();

	# the last one has his own cell only, or an error says that there is none
	my @ids = split /\n/, sql("SELECT jobqueue_enqueue_many('note', array_fill('{}'::jsonb, ARRAY[4201]), run_at => '2100-01-01', queue => 'room')");
	my $asleep = 0;
	my @waiters;
	foreach my $n (900, 900, 900, 900, 100, 100, 100, 100, 50, 50)
	{
		my $w = session();
		my $list = join ',', splice @ids, 0, $n;
		send_sql($w, "SELECT 'told' FROM jobqueue_wait('{$list}'::bigint[], '1 hour')");
		$asleep++;
		wait_for("SELECT count(*) = $asleep FROM pg_stat_activity WHERE query LIKE '%jobqueue_wait%' AND wait_event_type = 'Extension'");
		push @waiters, $w;
	}
	push @room, $asleep;
	sql("SELECT jobqueue_cancel_where('room', NULL, NULL)");
	$_->quit foreach @waiters;
	wait_drained();

	# jobs that wait, besides those that run
	my $gate = close_gate(1);
	my $job = enqueue('gate', gate => 1);
	wait_at_gate();
	enqueue("SELECT jobqueue_wait($job, '1 hour')") foreach 1 .. 4;
	wait_for("SELECT count(*) = 4 FROM pg_stat_activity WHERE backend_type = 'jobqueue worker' AND wait_event_type = 'Extension' AND query LIKE '%jobqueue_wait%'");
	enqueue('gate', gate => 1) foreach 1 .. 3;
	wait_at_gate(4);
	open_gate($gate);
	$gate->quit;
	wait_drained();
	sql('DELETE FROM jobqueue_archive; TRUNCATE ran');
	return "@room";
}

1;
