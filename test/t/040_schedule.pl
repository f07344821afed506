# Schedules: each instant fires once, whatever happens to clock, server, rows.
#
# The clock by which schedules are due is set by the test (test builds only).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('schedule', conf => <<'END');
timezone = 'UTC'
max_worker_processes = 24
END
sql(<<'END');
CREATE ROLE a;
CREATE ROLE b LOGIN;
SELECT jobqueue_grant('a', 'use'), jobqueue_grant('b', 'use');
END

my $has_clock = node()->psql('postgres', <<'END') == 0;
CREATE FUNCTION jq_clock_set(timestamptz) RETURNS void
	AS '$libdir/jobqueue', 'jq_clock_set' LANGUAGE C;
CREATE FUNCTION jq_clock_show() RETURNS timestamptz
	AS '$libdir/jobqueue', 'jq_clock_show' LANGUAGE C;
END

sub clock
{
	my ($time) = @_;
	sql($time ? "SELECT jq_clock_set('$time')" : 'SELECT jq_clock_set(NULL)');
}

sub clock_property
{
	my ($name, $code) = @_;

	return property($name, sub {
		$code->();
		sql('SELECT count(jobqueue_unschedule(name)) FROM jobqueue_schedules');
		wait_drained();
		forget();
		clock();
	}) if $has_clock;
  SKIP:
	{
		skip "$name: the clock cannot be set in this build", 1;
	}
}

# make schedule(s): name, cron, rest of the arguments
sub schedule
{
	my ($name, $cron, %opt) = @_;
	my $command = delete $opt{command} // 'note';
	my $role = delete $opt{role};
	my $db = delete $opt{db};
	my $list = join '', map { ", $_ => $opt{$_}" } sort keys %opt;

	return sql(qq{SELECT jobqueue_schedule('$name', '$cron', \$\$$command\$\$, '{"what": "$name"}'$list)},
		role => $role, db => $db);
}

# until the schedule is due next then
sub wait_next
{
	my ($name, $time, %opt) = @_;
	wait_for("SELECT next_run = '$time' FROM jobqueue_schedules WHERE name = '$name'", 't', $opt{db});
}

sub outcome
{
	my ($name) = @_;
	return sql("SELECT last_run, last_outcome, runs FROM jobqueue_schedules WHERE name = '$name'");
}

clock_property fires_at_the_instant_and_not_before => sub {
	clock('2030-03-30 23:58:00+00');
	schedule('berlin', '30 2 * * *', timezone => "'Europe/Berlin'");
	schedule('every', '1 hour');
	sql(q{SELECT jobqueue_schedule('later', '0 12 * * *', 'note', '{"what": "later"}')});
	wait_next('berlin', '2030-03-31 01:00+00');
	is(sql(q{SELECT next_run - '2030-03-30 23:58:00+00' < '1 hour 1 min' FROM jobqueue_schedules WHERE name = 'every'}), 't', 'an interval');
	clock('2030-03-31 00:59:40+00');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'every'});
	wait_drained();
	is(ran(), 'every', 'only what is due');
	clock('2030-03-31 01:00:00+00');
	wait_next('berlin', '2030-04-01 00:30+00');
	wait_drained();
	is(ran(), 'every berlin', 'at the jump');
	is(outcome('berlin'), '2030-03-31 01:00:00+00|completed|1', 'last run');
	is(outcome('later'), '||0', 'not yet');
};

clock_property no_instant_fires_twice_when_the_clock_is_set_back => sub {
	clock('2030-05-01 11:59:30+00');
	schedule('noon', '0 12 * * *');
	schedule('minute', '* * * * *');
	clock('2030-05-01 12:00:01+00');
	wait_next('noon', '2030-05-02 12:00+00');
	wait_next('minute', '2030-05-01 12:01+00');
	wait_drained();
	clock('2030-05-01 11:58:00+00');
	# all are looked at anew
	sql('UPDATE jobqueue_schedule SET tags = NULL');
	wait_next('noon', '2030-05-02 12:00+00');
	schedule('probe', '* * * * *');
	clock('2030-05-01 12:00:30+00');
	wait_next('probe', '2030-05-01 12:01+00');
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'minute noon probe', 'once');
	clock('2030-05-01 12:01:02+00');
	wait_next('minute', '2030-05-01 12:02+00');
	is(outcome('noon'), '2030-05-01 12:00:00+00|completed|1', 'noon once');
	is(sql(q{SELECT runs FROM jobqueue_schedules WHERE name = 'minute'}), '2', 'it goes on');
	# the same expression once more does not fire it again either
	clock('2030-05-01 11:59:00+00');
	schedule('noon', '0 12 * * *');
	is(sql(q{SELECT next_run FROM jobqueue_schedules WHERE name = 'noon'}), '2030-05-02 12:00:00+00', 'replaced');
};

clock_property no_instant_fires_twice_when_the_expression_is_changed => sub {
	clock('2030-05-03 11:59:30+00');
	schedule('noon', '0 12 * * *');
	schedule('interval', '1 day');
	clock('2030-05-03 12:00:01+00');
	wait_next('noon', '2030-05-04 12:00+00');
	# as for who has asked for the time before noon, and waited for the row then
	clock('2030-05-03 11:59:50+00');
	schedule('noon', '0 12,13 * * *', catch_up => q{'all'});
	schedule('interval', '0 12 * * *');
	schedule('probe', '* * * * *');
	clock('2030-05-03 12:00:05+00');
	wait_next('probe', '2030-05-03 12:01+00');
	wait_next('noon', '2030-05-03 13:00+00');
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'interval noon probe', 'once');
	# far ahead, by a clock that was wrong: it begins anew
	sql(q{UPDATE jobqueue_schedule SET seen_to = '2031-01-01', next_run = '2031-01-01' WHERE name = 'noon'});
	schedule('noon', '0 12,13,14 * * *');
	is(sql(q{SELECT next_run FROM jobqueue_schedules WHERE name = 'noon'}), '2030-05-03 13:00:00+00', 'anew');
};

clock_property a_jump_of_the_clock_is_made_up_for_as_catch_up_says => sub {
	clock('2030-06-01 10:30:00+00');
	schedule("$_->[0] $_->[1]", '0 * * * *', catch_up => "'$_->[0]'", overlap => "'$_->[1]'")
	  foreach map { my $c = $_; map { [ $c, $_ ] } qw(skip queue allow) } qw(none one all);
	clock('2030-06-02 11:30:00+00');
	wait_for(q{SELECT bool_and(next_run = '2030-06-02 12:00+00') FROM jobqueue_schedules});
	wait_drained();
	is(sql(q{SELECT string_agg(what || ' ' || n, ', ' ORDER BY what) FROM (SELECT what, count(*) AS n FROM ran GROUP BY 1) x}),
		'all allow 25, all queue 25, all skip 25, one allow 1, one queue 1, one skip 1', 'how often');
	is(sql(q{SELECT DISTINCT last_outcome FROM jobqueue_schedules WHERE catch_up = 'none'}), 'missed', 'missed');
	is(sql(q{SELECT DISTINCT last_run FROM jobqueue_schedules WHERE catch_up <> 'none'}), '2030-06-02 11:00:00+00', 'last run');
	# the last one is on time, if little late; the server was there at that moment
	clock('2030-06-02 12:00:00.05+00');
	wait_for(q{SELECT bool_and(next_run = '2030-06-02 13:00+00') FROM jobqueue_schedules});
	wait_drained();
	is(sql(q{SELECT sum(runs) FROM jobqueue_schedules}), 3 * 25 + 3 + 9, 'each once');
};

clock_property no_storm_after_years => sub {
	clock('2030-06-01 10:30:00+00');
	schedule('one', '* * * * * *');
	schedule('all', '* * * * * *', catch_up => q{'all'});
	schedule('interval', '1 second', catch_up => q{'all'}, overlap => q{'allow'});
	schedule('sparse', '0 0 29 2 *', catch_up => q{'all'});
	clock('2035-06-01 10:30:00+00');
	wait_for(q{SELECT bool_and(last_run >= '2032-01-01') FROM jobqueue_schedules});
	sql(q{SELECT count(jobqueue_schedule_pause(name)) FROM jobqueue_schedules});
	wait_drained();
	is(sql(q{SELECT string_agg(name, ' ' ORDER BY name) FROM jobqueue_schedules WHERE
		CASE name WHEN 'one' THEN runs < 100 WHEN 'sparse' THEN runs = 1 ELSE runs BETWEEN 1000 AND 1100 END}),
		'all interval one sparse', 'bounded');
};

clock_property overlap_says_what_becomes_of_a_run_that_has_not_ended => sub {
	my $gate = close_gate(1);

	clock('2030-07-01 00:00:30+00');
	foreach my $overlap (qw(skip queue allow))
	{
		sql(qq{SELECT jobqueue_schedule('$overlap', '* * * * *', 'gate', '{"gate": 1, "what": "$overlap"}', overlap => '$overlap')});
	}
	clock('2030-07-01 00:01:00+00');
	wait_at_gate(3);
	clock('2030-07-01 00:02:00+00');
	wait_for(q{SELECT bool_and(next_run = '2030-07-01 00:03+00') FROM jobqueue_schedules});
	wait_at_gate(4);
	is(sql(q{SELECT string_agg(name || ' ' || runs || ' ' || last_outcome, ', ' ORDER BY name) FROM jobqueue_schedules}),
		'allow 2 running, queue 2 waiting, skip 1 skipped', 'while they run');
	is(sql(q{SELECT last_run FROM jobqueue_schedules WHERE name = 'skip'}), '2030-07-01 00:01:00+00', 'skipped is not a run');
	open_gate($gate);
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'allow allow queue queue skip', 'ran');
	clock('2030-07-01 00:03:00+00');
	wait_for(q{SELECT runs = 2 FROM jobqueue_schedules WHERE name = 'skip'});
	# one that waits for its next attempt has not ended
	sql(q{SELECT jobqueue_schedule('skip', '* * * * *', 'fail', '{"what": "skip"}')});
	sql(q{SELECT jobqueue_configure('default', backoff_base => '1 hour')});
	wait_for(q{SELECT last_outcome = 'completed' FROM jobqueue_schedules WHERE name = 'skip'});
	clock('2030-07-01 00:04:00+00');
	wait_for(q{SELECT runs = 3 AND EXISTS (SELECT FROM jobqueue_jobs WHERE id = last_job AND state = 'scheduled')
		FROM jobqueue_schedules WHERE name = 'skip'});
	clock('2030-07-01 00:05:00+00');
	wait_for(q{SELECT last_outcome = 'skipped' FROM jobqueue_schedules WHERE name = 'skip'});
	sql(q{SELECT jobqueue_cancel(last_job) FROM jobqueue_schedules WHERE name = 'skip'});
	sql(q{SELECT jobqueue_configure('default', backoff_base => '1 second')});
};

clock_property a_crash_before_the_commit_fires_once => sub {
	schedule('daily', '0 0 * * *', overlap => q{'allow'});
	my $instant = sql(q{SELECT next_run FROM jobqueue_schedules WHERE name = 'daily'});
	arm('schedule-before-commit');
	clock($instant);
	my $pid = caught('schedule-before-commit');
	is(sql('SELECT count(*) FROM jobqueue_job'), 0, 'not yet');
	my $crash = crash_offset();
	kill_hard($pid);
	wait_crash_restart($crash);
	# with the crash the clock is the server's again
	clock($instant);
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'daily'});
	wait_drained();
	is(ran(), 'daily', 'once');
	$crash = crash_offset();
	kill_hard(sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'}));
	wait_crash_restart($crash);
	schedule('probe', '0 0 * * *');
	clock($instant);
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'probe'});
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY n) FROM ran}), 'daily probe', 'still once');
} if $JobqueueTest::has_pause;

clock_property what_is_missed_while_the_server_is_down_is_made_up_for => sub {
	schedule('none', '1 second', catch_up => q{'none'}, overlap => q{'allow'});
	schedule('one', '@yearly');
	schedule('all', '@yearly', catch_up => q{'all'});
	node()->stop;
	node()->start;
	# a clock that shows what was due while it was down
	sql(q{UPDATE jobqueue_schedule SET seen_to = date_trunc('year', now()) - interval '40 months', started_at = now() - interval '1 hour'
		WHERE name IN ('one', 'all')});
	wait_for(q{SELECT count(*) = 2 FROM jobqueue_schedules WHERE name IN ('one', 'all') AND runs > 0});
	is(sql(q{SELECT string_agg(name || ' ' || runs, ', ' ORDER BY name) FROM jobqueue_schedules WHERE name <> 'none'}), 'all 4, one 1', 'runs');
	# it fires on, and nothing that was due before the start
	wait_for(q{SELECT last_run > pg_postmaster_start_time() FROM jobqueue_schedules WHERE name = 'none'});
	sql(q{SELECT jobqueue_unschedule('none')});
};

clock_property changed_or_removed_while_due => sub {
	my ($keeper, $remover) = (session(), session());

	clock('2030-08-01 00:00:30+00');
	schedule($_, '* * * * *') foreach qw(removed kept paused changed other);
	$remover->query_safe('BEGIN; SELECT jobqueue_unschedule($$removed$$); SELECT jobqueue_schedule_pause($$paused$$);'
		  . 'SELECT jobqueue_schedule($$changed$$, $$@daily$$, $$note$$)');
	$keeper->query_safe('BEGIN; SELECT jobqueue_unschedule($$kept$$)');
	clock('2030-08-01 00:01:00+00');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'other'});
	is(sql('SELECT sum(runs) FROM jobqueue_schedules'), 1, 'nobody waits for them');
	$remover->query_safe('COMMIT');
	$keeper->query_safe('ROLLBACK');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'kept'});
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'kept other', 'what fires');
	is(sql(q{SELECT next_run FROM jobqueue_schedules WHERE name = 'changed'}), '2030-08-02 00:00:00+00', 'changed');
};

clock_property others_are_on_time_while_somebody_has_a_schedule_locked => sub {
	my $locker = session();

	schedule('locked', '1 second');
	$locker->query_safe(q{BEGIN; SELECT jobqueue_schedule_pause('locked')});
	sql(q{SELECT jobqueue_schedule('other', '* * * * * *', $$INSERT INTO ran (what)
		SELECT s || ' late by ' || (jq_clock_show() - s::timestamptz) FROM current_setting('jobqueue.scheduled_for') s$$, overlap => 'allow')});
	wait_for(q{SELECT runs >= 1 FROM jobqueue_schedules WHERE name = 'other'});
	# the locked one is looked at now, and then each second
	clock('2030-08-01 12:00:00.5+00');
	wait_for(q{SELECT count(*) >= 6 FROM ran WHERE what LIKE '2030%'});
	$locker->query_safe('ROLLBACK');
	sql(q{SELECT jobqueue_unschedule('other')});
	wait_drained();
	is(sql(q{SELECT min(split_part(what, ' late by ', 2)::interval) < '0.3 seconds' FROM ran WHERE what LIKE '2030%'}), 't', 'they do not wait for the next look');
};

clock_property removed_while_it_fires => sub {
	my $s = session();

	clock('2030-08-02 00:00:30+00');
	schedule('x', '* * * * *');
	arm('schedule-locked');
	clock('2030-08-02 00:01:00+00');
	caught('schedule-locked');
	send_sql($s, q{SELECT jobqueue_unschedule('x')});
	wait_for(q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted});
	release('schedule-locked');
	$s->query_safe('SELECT 1');
	wait_drained();
	is(ran(), 'x', 'it was due before');
	is(sql('SELECT count(*) FROM jobqueue_schedules'), 0, 'removed');
} if $JobqueueTest::has_pause;

clock_property what_cannot_be_run_is_noted_and_does_not_stop_others => sub {
	sql(<<'END');
CREATE FUNCTION gone(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION taken(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION swapped(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE SCHEMA hidden;
CREATE FUNCTION hidden.f(jsonb) RETURNS void LANGUAGE sql AS '';
GRANT USAGE ON SCHEMA hidden TO a;
CREATE ROLE dropped;
SELECT jobqueue_grant('dropped', 'use');
END
	clock('2030-09-01 00:00:30+00');
	sql(qq{SET ROLE a; SELECT jobqueue_schedule('$_', '* * * * *', '$_')}) foreach qw(gone taken swapped hidden.f);
	sql(q{SET ROLE dropped; SELECT jobqueue_schedule('dropped', '* * * * *', 'note')});
	sql(q{SELECT jobqueue_schedule('poison', '* * * * *', 'SELECT ''poison''')});
	schedule("good $_", '* * * * *') foreach 1 .. 5;
	sql(<<'END');
DROP FUNCTION gone;
REVOKE EXECUTE ON FUNCTION taken FROM PUBLIC;
ALTER FUNCTION swapped OWNER TO b;
REVOKE USAGE ON SCHEMA hidden FROM a;
SELECT jobqueue_revoke('dropped', 'use');
DROP OWNED BY dropped;
DROP ROLE dropped;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no poison'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON jobqueue_job FOR EACH ROW WHEN (NEW.command LIKE '%poison%') EXECUTE FUNCTION refuse();
END
	clock('2030-09-01 00:01:00+00');
	wait_for(q{SELECT bool_and(next_run = '2030-09-01 00:02+00' OR paused) FROM jobqueue_schedules});
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), join(' ', map { "good $_" } 1 .. 5), 'the good ones');
	is(sql(q{SELECT string_agg(name || ': ' || last_outcome || ' ' || regexp_replace(last_error, '\d+', 'N'), '; ' ORDER BY name)
		FROM jobqueue_schedules WHERE name NOT LIKE 'good%' AND runs = 0}),
		'dropped: error its owner does not exist any more; gone: error function public.gone(pg_catalog.jsonb) does not exist; '
		  . 'hidden.f: error permission denied for schema hidden; poison: error no poison; '
		  . 'swapped: error function public.swapped(pg_catalog.jsonb) has another owner than when the job was enqueued; '
		  . 'taken: error permission denied for function taken', 'the others');
	is(sql(q{SELECT paused FROM jobqueue_schedules WHERE name = 'dropped'}), 't', 'nobody will be its owner again');
	sql(<<'END');
DROP TRIGGER refuse ON jobqueue_job;
CREATE FUNCTION gone(jsonb) RETURNS void LANGUAGE sql AS '';
GRANT EXECUTE ON FUNCTION taken TO PUBLIC;
END
	clock('2030-09-01 00:02:00+00');
	wait_for(q{SELECT count(*) = 3 FROM jobqueue_schedules WHERE name IN ('gone', 'taken', 'poison') AND runs = 1});
	is(sql(q{SELECT count(*) FROM jobqueue_schedules WHERE name IN ('gone', 'taken', 'poison') AND last_error IS NULL}), 3, 'and again');
	wait_drained();
	sql('DROP FUNCTION gone, taken, swapped, refuse; DROP SCHEMA hidden CASCADE');
};

clock_property a_job_knows_the_instant_it_is_for => sub {
	sql(q{CREATE FUNCTION instant(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF (jobqueue_current()).attempt < (args->>'attempts')::int THEN RAISE 'once more'; END IF;
			INSERT INTO ran (what) VALUES (current_setting('jobqueue.scheduled_for')
				|| coalesce(current_setting('app.tenant', true), ''));
		END $$});
	sql(q{SELECT jobqueue_configure('default', backoff_base => '0.1 second')});
	clock('2030-07-02 00:00:30+00');
	sql(q{SET datestyle = 'German'; SET timezone = 'Asia/Kolkata'; SET jobqueue.capture_settings = 'app.tenant, datestyle';
		SET app.tenant = ' 42';
		SELECT jobqueue_schedule('all', '* * * * *', 'instant', '{"attempts": 2}', catch_up => 'all')});
	clock('2030-07-02 00:03:30+00');
	wait_next('all', '2030-07-02 00:04+00');
	wait_drained();
	is(sql('SELECT string_agg(what, $$, $$ ORDER BY what) FROM ran'),
		join(', ', map { "2030-07-02 00:0$_:00+00 42" } 1 .. 3), 'each its own, and the settings that were captured');
	forget();
	sql(q{SELECT jobqueue_enqueue('instant', '{"attempts": 1}')});
	wait_drained();
	is(ran(), '', 'a job of none');
	sql(q{SELECT jobqueue_configure('default', backoff_base => '1 second'); DROP FUNCTION instant});
};

clock_property nothing_fires_while_jobqueue_is_not_enabled => sub {
	clock('2030-07-03 00:00:30+00');
	schedule('all', '* * * * *', catch_up => q{'all'});
	schedule('later', '@yearly');
	clock('2030-07-03 00:01:00+00');
	wait_next('all', '2030-07-03 00:02+00');
	wait_drained();
	# the scheduler stays, for the sake of what is fetched, and does other things
	my $held = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'held')});
	my $consumer = session();
	$consumer->query_safe(q{SELECT id FROM jobqueue_fetch('held')});
	set_conf('jobqueue.enabled' => 'off', 'jobqueue.worker_idle_timeout' => '1s');
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue worker'});
	clock('2030-07-03 00:02:00+00');
	schedule('probe', '* * * * *');
	sql(q{UPDATE jobqueue_schedule SET tags = NULL WHERE name = 'later'});
	sql('SELECT jobqueue_sweep()');
	wait_for('SELECT bool_and(NOT estimated) FROM jobqueue_status');
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'}), 1, 'a scheduler is there');
	is(sql(q{SELECT runs FROM jobqueue_schedules WHERE name = 'all'}), 1, 'nothing fires while it is off');
	$consumer->query_safe("SELECT jobqueue_complete($held)");
	clock('2030-07-03 00:04:00+00');
	set_conf('jobqueue.enabled' => undef, 'jobqueue.worker_idle_timeout' => undef);
	wait_next('all', '2030-07-03 00:05+00');
	wait_next('later', '2031-01-01 00:00+00');
	wait_drained();
	is(sql(q{SELECT string_agg(what || ' ' || n, ', ' ORDER BY what) FROM (SELECT what, count(*) AS n FROM ran GROUP BY 1) x}), 'all 4, probe 1', 'made up for');
};

clock_property a_role_that_may_not_enqueue_any_more_does_not_fire => sub {
	clock('2030-07-04 00:00:30+00');
	sql(q{SET ROLE a; SELECT jobqueue_schedule('of a', '* * * * *', 'note', '{"what": "of a"}')});
	sql(q{SELECT jobqueue_revoke('a', 'use')});
	clock('2030-07-04 00:01:00+00');
	wait_next('of a', '2030-07-04 00:02+00');
	is(sql(q{SELECT runs, last_outcome, last_error FROM jobqueue_schedules}), '0|error|its owner may not make schedules any more', 'taken');
	sql(q{SELECT jobqueue_grant('a', 'use')});
	clock('2030-07-04 00:02:00+00');
	wait_next('of a', '2030-07-04 00:03+00');
	wait_drained();
	is(ran(), 'of a', 'given again');
};

clock_property a_zone_that_comes_back => sub {
	clock('2030-07-05 10:00:00+00');
	schedule('lost', '30 * * * *', timezone => q{'Europe/Berlin'}, catch_up => q{'all'});
	schedule('probe', '0 * * * *');
	# as if the system had lost it
	sql(q{ALTER TABLE jobqueue_schedule DISABLE TRIGGER jobqueue_schedule_guard;
		UPDATE jobqueue_schedule SET timezone = 'Europe/Atlantis' WHERE name = 'lost'});
	my $log = -s node()->logfile;
	clock('2030-07-05 10:30:00+00');
	node()->wait_for_log(qr/schedule "lost" of role with OID \d+ did not fire: time zone "Europe\/Atlantis" not recognized/, $log);
	wait_for(q{SELECT last_outcome = 'error' FROM jobqueue_schedules WHERE name = 'lost'});
	is(sql(q{SELECT last_error, runs, date_trunc('second', next_run) FROM jobqueue_schedules WHERE name = 'lost'}),
		'time zone "Europe/Atlantis" not recognized|0|2030-07-05 11:30:00+00', 'looked at again in an hour');
	sql(q{UPDATE jobqueue_schedule SET timezone = 'Europe/Berlin' WHERE name = 'lost';
		ALTER TABLE jobqueue_schedule ENABLE ALWAYS TRIGGER jobqueue_schedule_guard});
	clock('2030-07-05 11:30:00+00');
	wait_next('lost', '2030-07-05 12:30+00');
	wait_drained();
	is(sql(q{SELECT runs, last_error IS NULL FROM jobqueue_schedules WHERE name = 'lost'}), '2|t', 'nothing is lost');
};

clock_property the_quota_of_the_owner_holds => sub {
	set_conf('jobqueue.max_jobs_per_role' => 2);
	sql('SELECT jobqueue_pause($$default$$)');
	clock('2030-09-02 00:00:30+00');
	sql(q{SET ROLE a; SELECT jobqueue_schedule('q', '* * * * *', 'note', '{"what": "q"}', overlap => 'allow', catch_up => 'one')});
	foreach my $minute (1 .. 3)
	{
		clock("2030-09-02 00:0$minute:00+00");
		wait_next('q', '2030-09-02 00:0' . ($minute + 1) . '+00');
	}
	is(sql(q{SELECT runs, last_outcome, last_error FROM jobqueue_schedules}), '2|error|quota of 2 jobs of role "a" is reached', 'refused');
	set_conf('jobqueue.max_jobs_per_role' => undef);
	sql('SELECT jobqueue_resume($$default$$)');
};

clock_property many_schedules_of_many_roles_in_many_databases => sub {
	my @dbs = ('postgres', map { "db$_" } 1 .. 6);

	foreach my $db (@dbs[ 1 .. $#dbs ])
	{
		sql("CREATE DATABASE $db");
		JobqueueTest::add_database($db);
		sql($_, db => $db) foreach "SELECT jobqueue_grant('a', 'use'), jobqueue_grant('b', 'use')";
	}
	clock('2030-10-01 00:00:30+00');
	foreach my $db (@dbs)
	{
		sql(qq{SET ROLE $_; SELECT count(jobqueue_schedule(current_user || ' ' || i, CASE WHEN i <= 50 THEN '1 0 1 10 *' ELSE i % 60 || ' 12 * * *' END,
			'note', jsonb_build_object('what', i))) FROM generate_series(1, 500) i}, db => $db) foreach qw(a b);
	}
	clock('2030-10-01 00:01:00+00');
	foreach my $db (@dbs)
	{
		wait_for(q{SELECT count(*) = 100 FROM jobqueue_schedules WHERE runs = 1}, 't', $db);
		wait_drained(db => $db);
		is(sql('SELECT role, count(*), count(DISTINCT what) FROM ran GROUP BY role ORDER BY role', db => $db), "a|50|50\nb|50|50", "each as its owner in $db");
		is(sql(q{SELECT count(*) FROM jobqueue_schedules WHERE runs = 0 AND next_run BETWEEN '2030-10-01 12:00+00' AND '2030-10-01 12:59+00'}, db => $db), 900, 'the rest waits');
	}
	# nothing to do until noon: no process is kept for it
	wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'});
	pass('no scheduler while nothing is due');
	sql("DROP DATABASE $_ WITH (FORCE)") foreach @dbs[ 1 .. $#dbs ];
};

clock_property nobody_starves_where_schedulers_are_few => sub {
	my @dbs = map { "few$_" } 1 .. 8;

	foreach my $db (@dbs)
	{
		sql("CREATE DATABASE $db");
		JobqueueTest::add_database($db);
		schedule('second', '1 second', db => $db);
	}
	wait_for(q{SELECT runs >= 2 FROM jobqueue_schedules}, 't', $_) foreach @dbs;
	pass('each has fired');
	sql("DROP DATABASE $_ WITH (FORCE)") foreach @dbs;
};

clock_property made_in_a_prepared_transaction => sub {
	clock('2030-11-01 00:00:30+00');
	sql(q{BEGIN; SELECT jobqueue_schedule('p', '* * * * *', 'note', '{"what": "p"}'); PREPARE TRANSACTION 'p'});
	schedule('other', '* * * * *');
	clock('2030-11-01 00:01:00+00');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules});
	sql(q{COMMIT PREPARED 'p'});
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'p'});
	wait_drained();
	is(sql(q{SELECT string_agg(what, ' ' ORDER BY what) FROM ran}), 'other p', 'fires');
};

clock_property a_dump_brings_schedules_that_are_held_until_they_are_adopted => sub {
	clock('2030-12-01 00:00:30+00');
	schedule('s', '* * * * *', role => undef);
	sql(q{SET ROLE a; SELECT jobqueue_schedule('of a', '@daily', 'note', '{"what": "of a"}')});
	my $file = node()->basedir . '/dump.sql';
	node()->command_ok([ 'pg_dump', '-f', $file, '-d', node()->connstr('postgres') ], 'dump');
	sql('CREATE DATABASE copy');
	node()->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', node()->connstr('copy') ], 'restore');
	clock('2030-12-01 00:01:00+00');
	wait_next('s', '2030-12-01 00:02+00');
	sql(q{SELECT jobqueue_schedule('probe', '* * * * *', 'note', '{"what": "probe"}')}, db => 'copy');
	clock('2030-12-01 00:02:00+00');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 'probe'}, 't', 'copy');
	is(sql(q{SELECT string_agg(name || ' ' || owner || ' ' || coalesce(next_run::text, 'held'), ', ' ORDER BY name) FROM jobqueue_schedules
		WHERE name <> 'probe'}, db => 'copy'), 'of a a held, s ' . superuser() . ' held', 'held');
	sql('SELECT jobqueue_adopt()', db => 'copy');
	wait_for(q{SELECT runs = 1 FROM jobqueue_schedules WHERE name = 's'}, 't', 'copy');
	wait_next('of a', '2030-12-02 00:00+00', db => 'copy');
	sql('DROP DATABASE copy WITH (FORCE)');
};

clock_property without_a_set_clock_it_fires_by_itself => sub {
	schedule('second', '* * * * * *', overlap => q{'allow'});
	wait_for(q{SELECT runs >= 5 FROM jobqueue_schedules WHERE name = 'second'});
	sql(q{SELECT jobqueue_unschedule('second')});
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'second'}) >= 5, 1, 'runs');
};

done_testing();
