# Roles: paused, resumed, their jobs given to others, dropped.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('roles', conf => <<'END');
jobqueue.max_ready_jobs = 200
jobqueue.max_lanes = 32
END
sql(<<'END');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE boss LOGIN;
CREATE ROLE consumer LOGIN;
SELECT jobqueue_grant(r::regrole, 'use') FROM unnest('{alice,bob,carol}'::text[]) r;
SELECT jobqueue_grant('boss', 'admin'), jobqueue_grant('consumer', 'consume');
CREATE SEQUENCE started;
GRANT ALL ON SEQUENCE started TO PUBLIC;
CREATE FUNCTION start(args jsonb) RETURNS void LANGUAGE sql AS
	$$ SELECT nextval('started'); INSERT INTO ran (what) VALUES ('start') $$;
CREATE FUNCTION count_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT to_jsonb(state::int + CASE WHEN message ? 'init' OR message ? 'down' THEN 0 ELSE 1 END) $$;
CREATE FUNCTION buried(job jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO ran (what) VALUES ('buried') $$;
END

# a job of that role does not run, while one of another role does
sub is_paused
{
	my ($role, $what) = @_;
	my $job = enqueue('note', what => 'paused', role => $role);

	enqueue('note', what => 'control', role => 'carol');
	wait_for(q{SELECT count(*) > 0 FROM ran WHERE what = 'control'});
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $job"), 'ready', $what);
	is(sql("SELECT jobqueue_explain($job)"), "role $role is paused until jobqueue_resume_role('$role')", "$what: explained");
	sql("SELECT jobqueue_cancel($job)");
	sql(q{DELETE FROM jobqueue_archive});
	forget();
}

sub runs
{
	my ($role, $what) = @_;

	enqueue('note', what => 'runs', role => $role);
	wait_for(q{SELECT count(*) > 0 FROM ran WHERE what = 'runs'});
	pass($what);
	forget();
}

sub resume_all
{
	sql('SELECT jobqueue_resume_role(role) FROM jobqueue_paused_roles');
	wait_drained();
	sql('DELETE FROM jobqueue_archive');
	forget();
}

# ---- pause -------------------------------------------------------------------

property 'nothing of a role starts after jobqueue_pause_role has returned' => sub {
	my $load = start_pgbench(
		q{SELECT count(jobqueue_enqueue('start', '{}', queue => 'q' || n % 3)) FROM generate_series(1, 5) n},
		clients => 2, transactions => 300, role => 'alice');
	my $s = session();

	foreach my $round (1 .. 10)
	{
		wait_for(q{SELECT count(*) > 0 FROM ran});
		$s->query_safe(q{SELECT jobqueue_pause_role('alice')});
		# what was taken before that may still begin
		my $running = $s->query_safe(q{SELECT count(*) FROM jobqueue_running});
		my $first = $s->query_safe('SELECT last_value FROM started');
		wait_for(q{SELECT count(*) = 0 FROM jobqueue_running});
		my $second = $s->query_safe('SELECT last_value FROM started');
		cmp_ok($second - $first, '<=', $running, "round $round: none but those taken");
		$s->query_safe('TRUNCATE ran');
		runs('carol', 'another role');
		is($s->query_safe('SELECT last_value FROM started'), $second, 'nor later');
		$s->query_safe(q{SELECT jobqueue_resume_role('alice')});
		last if sql('SELECT last_value FROM started') >= 2900;
	}
	$load->finish;
	wait_drained();
	is(sql('SELECT last_value FROM started'), 3000, 'each ran once');
	forget();
};

property 'what runs goes on, and its retry waits' => sub {
	my $gate = close_gate(1);
	my $job = enqueue('gate', gate => 1, what => 'goes on', role => 'alice');
	my $fails = enqueue(q{SELECT pg_advisory_xact_lock_shared(1); SELECT 1 / 0}, role => 'alice');
	wait_at_gate(2);
	sql(q{SELECT jobqueue_configure('default', backoff_base => '1 ms', backoff => 'constant')});
	sql(q{SELECT jobqueue_pause_role('alice')});
	is(sql('SELECT count(*) FROM jobqueue_running'), 2, 'they run');
	open_gate($gate);
	wait_for('SELECT count(*) = 0 FROM jobqueue_running');
	is(ran(), 'goes on', 'to their end');
	runs('carol', 'others run');
	is(sql("SELECT attempt FROM jobqueue_jobs WHERE id = $fails"), 1, 'the failed one is not tried again');
	sql("SELECT jobqueue_cancel($fails)");
	resume_all();
	sql(q{SELECT jobqueue_drop_queue('default')});
};

property 'a pause survives a restart and a crash' => sub {
	sql(q{SELECT jobqueue_pause_role('alice')});
	enqueue('note', what => 'before', role => 'alice');
	node()->restart;
	is_paused('alice', 'after a restart');
	node()->stop('immediate');
	node()->start;
	is_paused('alice', 'after a crash');
	is(sql('SELECT role, paused_by, paused_at < now() FROM jobqueue_paused_roles'), 'alice|' . superuser() . '|t', 'the view');
	sql(q{SELECT jobqueue_resume_role('alice')});
	wait_drained();
	is(ran(), 'before', 'and then it runs');
	node()->restart;
	runs('alice', 'after another restart');
};

property 'a pause is part of its transaction' => sub {
	sql(q{BEGIN; SELECT jobqueue_pause_role('alice'); ROLLBACK});
	runs('alice', 'rolled back');
	my $s = session();
	$s->query_safe(q{BEGIN; SELECT jobqueue_pause_role('alice')});
	runs('alice', 'not committed');
	$s->query_safe('COMMIT');
	is_paused('alice', 'committed');
	$s->query_safe(q{BEGIN; SELECT jobqueue_resume_role('alice'); ROLLBACK});
	is_paused('alice', 'a resumption that is rolled back');
	sql(q{BEGIN; SELECT jobqueue_resume_role('alice'); SAVEPOINT s; SELECT jobqueue_pause_role('alice'); ROLLBACK TO s; COMMIT});
	runs('alice', 'a pause in a subtransaction that is rolled back');
	sql(q{BEGIN; SELECT jobqueue_pause_role('alice'); PREPARE TRANSACTION 'pause'});
	runs('alice', 'prepared');
	sql(q{COMMIT PREPARED 'pause'});
	is_paused('alice', 'committed');
	sql(q{SELECT jobqueue_pause_role('alice')});
	is(sql('SELECT count(*) FROM jobqueue_paused_roles'), 1, 'twice is once');
	sql('TRUNCATE jobqueue_paused_role');
	runs('alice', 'rows removed by hand');
	sql(q{INSERT INTO jobqueue_paused_role (role) VALUES ('alice'::regrole)});
	is_paused('alice', 'a row written by hand');
	resume_all();
};

property 'pauses and resumptions at the same time: memory is what the table is' => sub {
	my $load = start_pgbench(
		q{\set n random(0, 1)
		\if :n
		SELECT jobqueue_pause_role('alice');
		\else
		SELECT jobqueue_resume_role('alice');
		\endif},
		clients => 4, transactions => 100);
	$load->finish;
	foreach my $role (qw(alice bob))
	{
		next if $role eq 'bob';
		if (sql(q{SELECT count(*) FROM jobqueue_paused_roles}))
		{
			is_paused($role, 'paused at the end');
			sql("SELECT jobqueue_resume_role('$role')");
		}
		runs($role, 'runs at the end');
	}
	resume_all();
};

paused_property 'a pause in another database, while a resumption is being read' => sub {
	sql('CREATE DATABASE beside');
	sql('CREATE EXTENSION jobqueue', db => 'beside');
	sql(q{SELECT jobqueue_pause_role('alice')});
	is_paused('alice', 'paused here');
	arm('settings-after-snapshot');
	sql(q{SELECT jobqueue_resume_role('alice')});
	caught('settings-after-snapshot');
	sql(q{SELECT jobqueue_pause_role('bob')}, db => 'beside');
	release('settings-after-snapshot');
	runs('alice', 'resumed here');
	runs('bob', 'a pause there is not one here');
	sql('DROP DATABASE beside');
};

property 'a paused role stops no other: keys, memory, workers' => sub {
	sql(q{SELECT jobqueue_pause_role('alice')});
	# more than memory holds, first in the line of a key that others want
	sql_as('alice', q{SELECT count(jobqueue_enqueue('note', '{"what": "alice"}', key => 'k')) FROM generate_series(1, 300)});
	sql_as('alice', q{SELECT count(jobqueue_enqueue('note', '{"what": "alice"}', queue => 'q' || n % 5)) FROM generate_series(1, 500) n});
	sql_as('bob', q{SELECT count(jobqueue_enqueue('note', '{"what": "bob"}', key => 'k')) FROM generate_series(1, 300)});
	wait_for(q{SELECT count(*) = 300 FROM ran});
	is(sql(q{SELECT DISTINCT what FROM ran}), 'bob', 'the other has run');
	my $s = session();
	$s->query_safe(q{SET statement_timeout = '20s'});
	is($s->query_safe(q{SELECT jobqueue_lock('k', '10 s')}), 't', 'a session gets the key');
	$s->query_safe(q{SELECT jobqueue_unlock('k')});
	is(sql(q{SELECT sum(ready) + sum(blocked) FROM jobqueue_status}), 800, 'the rest waits');
	resume_all();
	pass('and runs then');
};

property 'jobs of a paused role are not given to consumers, those of others are' => sub {
	my @mine = map { sql_as('alice', qq{SELECT jobqueue_enqueue(NULL, '$_', queue => 'out', key => CASE WHEN $_ > 2 THEN 'k' END, run_at => CASE WHEN $_ = 2 THEN now() + interval '10 ms' END)}) } 1 .. 4;
	sql(q{SELECT jobqueue_pause_role('alice')});
	my $other = sql_as('bob', q{SELECT jobqueue_enqueue(NULL, '"bob"', queue => 'out', key => 'k')});
	is(sql_as('consumer', q{SELECT string_agg(id::text, ' ') FROM jobqueue_fetch('out', 10)}), $other, 'only that of the other role');
	# without a place of theirs in memory, and after a restart
	node()->restart;
	wait_for(q{SELECT count(*) = 5 FROM jobqueue_jobs});
	is(sql_as('consumer', q{SELECT id FROM jobqueue_fetch('out', 10, '5 s', '1 hour')}), $other, 'with a lease, after a restart');
	sql(qq{SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease});
	# one waits
	my $s = session(role => 'consumer');
	send_sql($s, q{SELECT 'got ' || string_agg(id::text, ' ' ORDER BY id) FROM jobqueue_fetch('out', 10, '30 s')});
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%got%' AND pid <> pg_backend_pid() AND wait_event = 'Extension' OR wait_event = 'JobqueueFetch'});
	my $later = sql_as('alice', q{SELECT jobqueue_enqueue(NULL, '5', queue => 'out')});
	is(sql("SELECT jobqueue_explain($later)"), q{role alice is paused until jobqueue_resume_role('alice')}, 'explained');
	sql(q{SELECT jobqueue_resume_role('alice')});
	my $got = $s->query_safe(q{SELECT 1});
	my @got = ($got =~ /got ([\d ]+)/ ? split(/ /, $1) : ());
	cmp_ok(scalar @got, '>', 0, 'the one who waits is given some');
	push @got, split /\n/, sql_as('consumer', q{SELECT id FROM jobqueue_fetch('out', 10, lease => '1 hour')});
	$s->query_safe("SELECT jobqueue_complete($_)") for $got =~ /got ([\d ]+)/ ? split(/ /, $1) : ();
	sql(q{SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease});
	push @got, split /\n/, sql_as('consumer', q{SELECT id FROM jobqueue_fetch('out', 10, lease => '1 hour')});
	sql(q{SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease});
	# the second one of the key
	push @got, split /\n/, sql_as('consumer', q{SELECT id FROM jobqueue_fetch('out', 10, lease => '1 hour')});
	sql(q{SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease});
	my %seen = map { $_ => 1 } @got;
	is(join(' ', sort { $a <=> $b } keys %seen), join(' ', @mine, $later), 'each was given');
	wait_drained();
};

paused_property 'a role that is resumed while a consumer leaves its job: the job is not lost' => sub {
	foreach my $due ('', q{, run_at => now() + '1 ms'})
	{
		my $job = sql_as('alice', qq{SELECT jobqueue_enqueue(NULL, '1', queue => 'out'$due)});
		wait_state($job, 'ready');
		sql(q{SELECT jobqueue_pause_role('alice')});
		my $s = session(role => 'consumer');
		arm('fetch-role-paused');
		send_sql($s, q{SELECT 'got ' || id FROM jobqueue_fetch('out', 1, '10 s')});
		caught('fetch-role-paused');
		sql(q{SELECT jobqueue_resume_role('alice')});
		wait_for(qq{SELECT jobqueue_explain($job) !~ 'paused'});
		runs('alice', 'it is resumed');
		release('fetch-role-paused');
		like($s->query_safe(q{SELECT 1}), qr/got $job\b/, 'and the job is given');
		$s->query_safe("SELECT jobqueue_complete($job)");
		wait_drained();
	}
};

property 'schedules of a paused role do not fire; what was due is made up for as catch_up says' => sub {
	sql_as('alice', qq{SELECT jobqueue_schedule('$_', '1 second', 'note', '{"what": "$_"}', catch_up => '$_')}) for qw(none one all);
	sql_as('bob', q{SELECT jobqueue_schedule('bob', '1 second', 'note', '{"what": "bob"}')});
	wait_for(q{SELECT bool_and(runs > 0) FROM jobqueue_schedules});
	sql(q{SELECT jobqueue_pause_role('alice')});
	my $runs = q{SELECT string_agg(runs::text, ' ' ORDER BY name) FROM jobqueue_schedules WHERE owner = 'alice'::regrole};
	# what was firing when it was paused has fired: its rows are locked till then
	sql('SELECT count(*) FROM (SELECT FROM jobqueue_schedule FOR UPDATE) s');
	my $before = sql($runs);
	my $bob = sql(q{SELECT runs FROM jobqueue_schedules WHERE name = 'bob'});
	wait_for(qq{SELECT runs >= $bob + 3 FROM jobqueue_schedules WHERE name = 'bob'});
	is(sql($runs), $before, 'none fires, those of another role do');
	node()->restart;
	wait_for(qq{SELECT runs >= $bob + 5 FROM jobqueue_schedules WHERE name = 'bob'});
	is(sql($runs), $before, 'nor after a restart');
	sql(q{SELECT jobqueue_resume_role('alice')});
	wait_for(q{SELECT bool_and(last_run > clock_timestamp() - interval '2 s') FROM jobqueue_schedules WHERE owner = 'alice'::regrole});
	my ($all, $none, $one) = split / /, sql($runs);
	my ($all0, $none0, $one0) = split / /, $before;
	cmp_ok($all - $all0, '>=', 5, 'all');
	cmp_ok($one - $one0, '<', $all - $all0, 'one');
	sql_as('alice', qq{SELECT jobqueue_unschedule('$_')}) for qw(none one all);
	sql_as('bob', q{SELECT jobqueue_unschedule('bob')});
	resume_all();
};

property 'messages to services of a paused role wait' => sub {
	sql_as('alice', q{SELECT jobqueue_start_service('s', 'count_up', '0'), jobqueue_send('s', '{}')});
	wait_for(q{SELECT jobqueue_service_state('s') = '1'});
	sql(q{SELECT jobqueue_pause_role('alice')});
	sql_as('alice', q{SELECT jobqueue_send('s', '{}')});
	like(sql_error(q{CALL jobqueue_call('s', '{}', timeout => '100 ms')}, role => 'alice'), qr/timeout|time-out|did not|in time/i, 'a call has no reply');
	runs('carol', 'others run');
	is(sql(q{SELECT jobqueue_service_state('s')}), 1, 'nothing is handled');
	sql(q{SELECT jobqueue_resume_role('alice')});
	wait_for(q{SELECT jobqueue_service_state('s')::int >= 2});
	sql_as('alice', q{SELECT jobqueue_stop_service('s')});
	resume_all();
};

property 'who may pause' => sub {
	foreach my $role (qw(alice bob consumer))
	{
		like(sql_error(q{SELECT jobqueue_pause_role('carol')}, role => $role), qr/permission denied for function/, $role);
		like(sql_error(q{SELECT jobqueue_resume_role('carol')}, role => $role), qr/permission denied for function/, $role);
		like(sql_error(q{INSERT INTO jobqueue_paused_role (role) VALUES ('carol'::regrole)}, role => $role), qr/permission denied for table/, "$role: by hand");
	}
	sql('GRANT pg_write_all_data TO consumer');
	like(sql_error(q{INSERT INTO jobqueue_paused_role (role) VALUES ('carol'::regrole)}, role => 'consumer'), qr/row-level security/, 'pg_write_all_data');
	sql('REVOKE pg_write_all_data FROM consumer');
	is(sql_error(q{SELECT jobqueue_pause_role('carol'), jobqueue_resume_role('carol')}, role => 'boss'), '', 'an admin may');
	like(sql_error(q{SELECT jobqueue_pause_role('nobody_there')}), qr/does not exist/, 'no such role');
	like(sql_error(q{SELECT jobqueue_pause_role(4711)}), qr/role with OID 4711 does not exist/, 'no such number');
	like(sql_error(q{SELECT jobqueue_pause_role(NULL)}), qr/must not be null/, 'null');
	sql(q{SELECT jobqueue_pause_role('carol')});
	is(sql_as('alice', 'SELECT count(*) FROM jobqueue_paused_roles'), 0, 'others do not see it');
	is(sql_as($_, 'SELECT role FROM jobqueue_paused_roles'), 'carol', "$_ does") for qw(carol boss);
	sql(q{SELECT jobqueue_resume_role('carol')});
};

property 'NOLOGIN, VALID UNTIL and a connection limit do not stop jobs' => sub {
	sql(q{ALTER ROLE alice NOLOGIN VALID UNTIL '2000-01-01' CONNECTION LIMIT 0});
	my $job = sql(q{SET ROLE alice; SELECT jobqueue_enqueue('note', '{"what": "still"}')});
	sql(q{SET ROLE alice; SELECT jobqueue_schedule('still', '1 second', 'note', '{"what": "tick"}')});
	wait_for(q{SELECT runs > 0 FROM jobqueue_schedules});
	wait_drained();
	like(ran(), qr/still/, 'they run');
	sql(q{SELECT jobqueue_pause_role('alice')});
	is(sql(q{SET ROLE alice; SELECT jobqueue_unschedule('still')}), 't', 'jobqueue_pause_role does');
	sql(q{ALTER ROLE alice LOGIN VALID UNTIL 'infinity' CONNECTION LIMIT -1});
	resume_all();
};

property 'a pause goes with a dump, and holds where it is restored' => sub {
	sql(q{SELECT jobqueue_pause_role('alice')});
	sql('CREATE ROLE gone1; CREATE ROLE gone2; SELECT jobqueue_pause_role(\'gone1\'), jobqueue_pause_role(\'gone2\'); DROP ROLE gone1; DROP ROLE gone2');
	my $job = enqueue('note', what => 'dumped', role => 'alice');
	my $file = node()->basedir . '/dump.sql';
	node()->command_ok([ 'pg_dump', '-f', $file, node()->connstr('postgres') ], 'dumped');
	sql('CREATE DATABASE restored');
	node()->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, node()->connstr('restored') ], 'restored');
	is(sql(q{SELECT count(*) FROM jobqueue_paused_roles WHERE role = 'alice'::regrole}, db => 'restored'), 1, 'the row is there');
	sql('SELECT jobqueue_adopt()', db => 'restored');
	enqueue('note', what => 'control', role => 'carol', db => 'restored');
	wait_for(q{SELECT count(*) > 0 FROM ran WHERE what = 'control'}, 't', 'restored');
	is(sql("SELECT jobqueue_explain($job)", db => 'restored'), q{role alice is paused until jobqueue_resume_role('alice')}, 'nothing of it runs');
	sql(q{SELECT jobqueue_resume_role('alice')}, db => 'restored');
	wait_drained(db => 'restored');
	is(sql(q{SELECT count(*) FROM ran WHERE what = 'dumped'}), 0, 'a pause is of one database');
	sql(q{SELECT jobqueue_pause_role('alice')});
	sql(q{SELECT jobqueue_pause_role('bob')});
	is(sql('SELECT string_agg(role::text, \' \' ORDER BY role::text) FROM jobqueue_paused_roles'), 'alice bob', 'what was dropped is cleared away');
	sql('DROP DATABASE restored');
	resume_all();
};

# ---- reassign ----------------------------------------------------------------

property 'jobqueue_reassign gives everything, in every state; then the role can be dropped' => sub {
	sql(q{CREATE ROLE leaver LOGIN; GRANT leaver, carol TO boss; SELECT jobqueue_grant('leaver', 'use')});
	sql(q{CREATE TABLE left_behind (); ALTER TABLE left_behind OWNER TO leaver});
	sql(q{SELECT jobqueue_configure('default', backoff_base => '1 ms', backoff => 'constant'), jobqueue_configure('deadly', keep_dead => '1 hour')});
	sql(q{SELECT jobqueue_grant('leaver', 'admin')});
	sql_as('leaver', q{SELECT jobqueue_configure('deadly', on_dead => 'buried')});
	sql(q{SELECT jobqueue_revoke('leaver', 'admin')});
	my $gate = close_gate(1);
	my $running = enqueue('gate', gate => 1, what => 'running', role => 'leaver', key => 'k');
	my $failing = enqueue(q{SELECT pg_advisory_xact_lock_shared(1); SELECT 1 / ((jobqueue_current()).attempt - 1); INSERT INTO ran (what) VALUES ('failing')}, role => 'leaver');
	wait_at_gate(2);
	my %job = (
		blocked => enqueue('note', what => 'blocked', role => 'leaver', key => 'k'),
		after => enqueue('note', what => 'after', role => 'leaver', after => "{$running}"),
		due => enqueue('note', what => 'due', role => 'leaver', run_at => 'tomorrow'),
		unique => enqueue('note', what => 'unique', role => 'leaver', run_at => 'tomorrow', unique_key => 'u'),
		deadly => enqueue('fail', what => 'deadly', role => 'leaver', queue => 'deadly', max_attempts => 1, run_at => 'tomorrow'));
	sql(q{SELECT jobqueue_pause('waits')});
	$job{ready} = enqueue('note', what => 'ready', role => 'leaver', queue => 'waits');
	my $dead = enqueue('fail', what => 'dead', role => 'leaver', max_attempts => 1);
	wait_state($dead, 'dead');
	my $kept = enqueue('SELECT 1', role => 'leaver', keep => '1 hour');
	wait_for("SELECT state = 'completed' FROM jobqueue_jobs WHERE id = $kept");
	my $leased = sql_as('leaver', q{SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')});
	my $token = sql_as('consumer', q{SELECT token FROM jobqueue_fetch('out', lease => '1 hour')});
	my $outside = sql_as('leaver', q{SELECT jobqueue_enqueue(NULL, '{}', queue => 'out')});
	sql_as('leaver', q{SELECT jobqueue_start_service('s', 'count_up', '0'), jobqueue_send('s', '{}')});
	wait_for(q{SELECT jobqueue_service_state('s') = '1'});
	sql_as('leaver', q{SELECT jobqueue_schedule('yearly', '@yearly', 'note', '{"what": "yearly"}')});

	is(sql_as('boss', q{SELECT jobqueue_reassign('leaver', 'carol')}), 10, 'jobs that have not ended');
	sql('REASSIGN OWNED BY leaver TO carol; DROP OWNED BY leaver');
	is(sql(q{SELECT count(*) FROM jobqueue_jobs WHERE owner = 'leaver'::regrole}), 0, 'nothing is left of the role');
	is(sql(qq{SELECT count(*) FROM jobqueue_jobs WHERE owner = 'carol'::regrole AND id >= $running}), 12, 'the other one has it, with the history');
	is(sql('SELECT owner::text FROM jobqueue_services UNION ALL SELECT owner::text FROM jobqueue_schedules UNION ALL SELECT on_dead_owner::text FROM jobqueue_queue WHERE on_dead IS NOT NULL'), "carol\ncarol\ncarol", 'service, schedule, handler');
	sql('REVOKE leaver FROM boss');
	is(sql_error('DROP ROLE leaver'), '', 'the role is dropped, beside a running job');
	is(sql_as('carol', q{SELECT jobqueue_enqueue('note', unique_key => 'u')}), '', 'the unique_key is held');
	open_gate($gate);
	wait_for(qq{SELECT count(*) = 0 FROM jobqueue_jobs WHERE id IN ($running, $failing)});
	sql(q{SELECT jobqueue_resume('waits')});
	sql_as('carol', "SELECT jobqueue_reschedule($_, now())") for @job{qw(due unique deadly)};
	wait_for("SELECT state = 'dead' FROM jobqueue_jobs WHERE id = $job{deadly}");
	sql_as('consumer', "SELECT jobqueue_complete($leased, token => '$token')");
	is(sql_as('consumer', q{SELECT id FROM jobqueue_fetch('out', lease => '1 hour')}), $outside, 'a consumer gets the other one');
	sql('SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease');
	sql_as('carol', q{SELECT jobqueue_send('s', '{}')});
	wait_for(q{SELECT jobqueue_service_state('s') = '2'});
	sql_as('carol', q{SELECT jobqueue_stop_service('s'), jobqueue_schedule_run('yearly')});
	wait_drained();
	is(sql(q{SELECT string_agg(what || ' ' || role, ', ' ORDER BY what) FROM ran WHERE job <> }. $running),
		'after carol, blocked carol, buried carol, due carol, failing carol, ready carol, unique carol, yearly carol',
		'all run as the new one, each once; the one that failed, too');
	is(sql("SELECT what FROM ran WHERE job = $running"), 'running', 'what ran has ended as it was');
	is(sql_as('carol', "SELECT jobqueue_retry($dead)"), 't', 'a dead one can be retried by the new one');
	wait_for("SELECT state = 'dead' FROM jobqueue_jobs WHERE id = $dead");
	sql_as('carol', q{SELECT jobqueue_unschedule('yearly')});
	sql(q{SELECT jobqueue_drop_queue(queue) FROM jobqueue_queues});
	sql('REVOKE carol FROM boss; DROP TABLE left_behind; DELETE FROM jobqueue_archive');
	memory_empties('nothing is left in memory');
	forget();
};

property 'nobody climbs by jobqueue_reassign' => sub {
	my $super = superuser();
	my $job = enqueue('note', what => 'climb', role => 'alice', run_at => 'tomorrow');
	my $denied = qr/permission denied to reassign jobs\nHINT:  One needs the privileges of both roles/;

	like(sql_error("SELECT jobqueue_reassign('alice', '$super')", role => 'alice'), $denied, 'to a superuser');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}, role => 'alice'), $denied, 'to somebody else');
	like(sql_error(q{SELECT jobqueue_reassign('bob', 'alice')}, role => 'alice'), $denied, 'from somebody else');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}, role => 'boss'), $denied, 'an admin');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}, role => 'consumer'), qr/permission denied for function/, 'without the level');
	sql('GRANT bob TO alice');
	is(sql_as('alice', q{SELECT jobqueue_reassign('alice', 'bob')}), 1, 'a member of both');
	is(sql_as('alice', q{SELECT jobqueue_reassign('bob', 'alice')}), 1, 'and back');
	sql('REVOKE bob FROM alice; CREATE ROLE idler; GRANT idler TO alice');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'idler')}, role => 'alice'),
		qr/role "idler" may not have jobs\nHINT:  An administrator gives it that right by jobqueue_grant\('idler', 'use'\)/, 'to a role that may not enqueue');
	sql('REVOKE idler FROM alice; DROP ROLE idler');
	# a member that does not inherit has the privileges of neither
	sql('CREATE ROLE stranger NOINHERIT LOGIN; GRANT alice, bob TO stranger; SELECT jobqueue_grant(\'stranger\', \'use\')');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}, role => 'stranger'), $denied, 'NOINHERIT');
	sql('DROP OWNED BY stranger; DROP ROLE stranger');
  SKIP:
	{
		skip 'memberships without SET are of 16', 2 if sql('SHOW server_version_num') < 160000;
		sql('GRANT bob TO alice WITH INHERIT TRUE, SET FALSE');
		like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}, role => 'alice'), qr/permission denied to give jobs to role "bob"/, 'a member that cannot become it');
		sql('GRANT pg_write_all_data TO alice');
		like(sql_error(q{UPDATE jobqueue_job SET owner = 'bob'::regrole}, role => 'alice'), qr/permission denied to write a job of another role/, 'nor by hand');
		sql('REVOKE bob, pg_write_all_data FROM alice');
	}
	is(sql("SELECT owner FROM jobqueue_jobs WHERE id = $job"), 'alice', 'it is where it was');
	is(sql(q{SELECT jobqueue_reassign('alice', 'alice')}), 0, 'to itself');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 4711)}), qr/role with OID 4711 does not exist/, 'to nobody');
	like(sql_error(q{SELECT jobqueue_reassign(4711, 'alice')}, role => 'alice'), qr/role with OID 4711 does not exist/, 'from nobody');
	sql("SELECT jobqueue_cancel($job); DELETE FROM jobqueue_archive");
};

property 'schedules of the same name are not mixed up' => sub {
	sql_as($_, q{SELECT jobqueue_schedule('same', '@yearly', 'note')}) for qw(alice bob);
	my $job = enqueue('note', role => 'alice', run_at => 'tomorrow');
	like(sql_error(q{SELECT jobqueue_reassign('alice', 'bob')}), qr/ERROR:  both roles have a schedule "same"\nHINT:  Remove one/, 'an error');
	is(sql("SELECT owner FROM jobqueue_jobs WHERE id = $job"), 'alice', 'and nothing is changed');
	sql_as($_, q{SELECT jobqueue_unschedule('same')}) for qw(alice bob);
	sql("SELECT jobqueue_cancel($job); DELETE FROM jobqueue_archive");
};

property 'a message that is on its way when its service is given away is handled, as the new owner' => sub {
	sql_as('alice', q{SELECT jobqueue_start_service('moves', 'count_up', '0')});
	my $s = session(role => 'alice');
	$s->query_safe('BEGIN');
	my $message = $s->query_safe(q{SELECT jobqueue_send('moves', '{}')});
	sql(q{SELECT jobqueue_reassign('alice', 'bob')});
	$s->query_safe('COMMIT');
	wait_drained();
	is(sql(q{SELECT owner, state, failed FROM jobqueue_services WHERE name = 'moves'}), 'bob|1|0', 'the state');
	is(sql("SELECT owner, outcome FROM jobqueue_recent WHERE id = $message"), 'bob|completed', 'the message');
	is(sql('SELECT count(*) FROM jobqueue_history'), 0, 'none is lost');
	sql_as('bob', q{SELECT jobqueue_stop_service('moves')});
	memory_empties('nothing is left in memory');
};

property 'a schedule that fires while it is given away: its job goes along' => sub {
	sql_as('alice', q{SELECT jobqueue_schedule('moves', '@yearly', 'note', '{"what": "moves"}', queue => 'waits')});
	sql(q{SELECT jobqueue_pause('waits')});
	my ($fires, $s) = (session(role => 'alice'), session());
	$fires->query_safe(q{BEGIN; SELECT jobqueue_schedule_run('moves')});
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	send_sql($s, q{SELECT jobqueue_reassign('alice', 'bob')});
	wait_for("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
	$fires->query_safe('COMMIT');
	$s->query_safe('SELECT 1');
	is(sql(q{SELECT owner FROM jobqueue_jobs WHERE queue = 'waits'}), 'bob', 'the job is of the new one');
	sql(q{SELECT jobqueue_resume('waits')});
	wait_drained();
	is(ran(), 'moves', 'and runs');
	sql_as('bob', q{SELECT jobqueue_unschedule('moves')});
	sql(q{SELECT jobqueue_drop_queue('waits')});
	forget();
};

property 'a reassignment that is open: nothing is lost, doubled, or runs as two' => sub {
	foreach my $end (qw(COMMIT ROLLBACK))
	{
		my $s = session();
		sql(q{SELECT jobqueue_pause('default')});
		sql_as('alice', q{SELECT count(jobqueue_enqueue('note', '{"what": "many"}', key => CASE WHEN n % 3 = 0 THEN 'k' || n % 7 END)) FROM generate_series(1, 1000) n});
		$s->query_safe(q{BEGIN});
		is($s->query_safe(q{SELECT jobqueue_reassign('alice', 'bob')}), 1000, "$end: all");
		sql(q{SELECT jobqueue_resume('default')});
		sql_as('alice', q{SELECT count(jobqueue_enqueue('note', '{"what": "meanwhile"}')) FROM generate_series(1, 10)});
		runs('carol', 'others run');
		$s->query_safe($end);
		wait_drained();
		my $role = $end eq 'COMMIT' ? 'bob' : 'alice';
		is(sql(q{SELECT count(*), count(DISTINCT job), string_agg(DISTINCT role, ' ') FROM ran WHERE what = 'many'}), "1000|1000|$role", "$end: each once as $role");
		is(sql(q{SELECT count(*), string_agg(DISTINCT role, ' ') FROM ran WHERE what = 'meanwhile'}), '10|alice', 'what came later is of the old role');
		memory_empties('nothing is left in memory');
		forget();
	}
};

property 'to and fro under load: each runs once, as who it is' => sub {
	my $load = start_pgbench(
		q{SELECT count(jobqueue_enqueue('note', '{"what": "load"}', key => CASE WHEN n = 2 THEN (random() * 5)::int::text END)) FROM generate_series(1, 4) n},
		clients => 2, transactions => 300, role => 'alice');
	my $s = session();
	foreach my $round (1 .. 20)
	{
		$s->query_safe(q{SELECT jobqueue_reassign('alice', 'bob')});
		$s->query_safe(q{SELECT jobqueue_reassign('bob', 'carol')}) if $round % 2;
	}
	$load->finish;
	unlike(${ $load->{out} }, qr/ERROR|aborted/, 'no client has seen an error');
	wait_drained();
	is(sql(q{SELECT count(*), count(DISTINCT job) FROM ran WHERE what = 'load'}), '2400|2400', 'each once');
	is(sql(q{SELECT count(*) FROM jobqueue_history}), 0, 'none has failed');
	memory_empties('nothing is left in memory');
	forget();
};

property 'quotas count what a role is given' => sub {
	sql(q{SELECT jobqueue_pause('default')});
	set_conf('jobqueue.max_jobs_per_role' => 10);
	sql_as('alice', q{SELECT count(jobqueue_enqueue('note')) FROM generate_series(1, 10)});
	like(sql_error(q{SELECT jobqueue_enqueue('note')}, role => 'alice'), qr/ERROR/, 'alice has as many as she may');
	sql(q{SELECT jobqueue_reassign('alice', 'bob')});
	like(sql_error(q{SELECT jobqueue_enqueue('note')}, role => 'bob'), qr/ERROR/, 'now bob has');
	is(sql_error(q{SELECT jobqueue_enqueue('note')}, role => 'alice'), '', 'and alice has none');
	set_conf('jobqueue.max_jobs_per_role' => undef);
	sql(q{SELECT jobqueue_resume('default')});
	wait_drained();
	sql(q{SELECT jobqueue_drop_queue('default')});
	forget();
};

property 'what a role has that was dropped without that' => sub {
	sql(q{CREATE ROLE hasty LOGIN; SELECT jobqueue_grant('hasty', 'use')});
	sql_as('hasty', q{SELECT jobqueue_schedule('hasty', '@yearly', 'note', '{"what": "hasty"}')});
	my $due = enqueue('note', what => 'saved', role => 'hasty', run_at => 'tomorrow');
	my $oid = sql(q{SELECT 'hasty'::regrole::oid});
	sql('DROP OWNED BY hasty');
	my $later = enqueue('note', what => 'still', role => superuser());
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $due"), 'scheduled', 'DROP OWNED takes levels, not jobs');
	sql('DROP ROLE hasty');
	is(sql(qq{SELECT jobqueue_reassign($oid, 'bob')}), 1, 'a superuser may save it by its number');
	sql_as('bob', "SELECT jobqueue_reschedule($due, now()), jobqueue_schedule_run('hasty')");
	wait_drained();
	is(sql(q{SELECT string_agg(what || ' ' || role, ', ' ORDER BY what) FROM ran WHERE what <> 'still'}), 'hasty bob, saved bob', 'it runs');
	sql_as('bob', q{SELECT jobqueue_unschedule('hasty')});
	forget();
};

property 'the extension changes hands by REASSIGN OWNED' => sub {
	sql('CREATE ROLE builder SUPERUSER LOGIN; CREATE DATABASE built OWNER builder');
	sql_as('builder', 'CREATE EXTENSION jobqueue', db => 'built');
	sql(q{CREATE TABLE ran (role name DEFAULT current_user); GRANT ALL ON ran TO PUBLIC; SELECT jobqueue_grant('alice', 'use')}, db => 'built');
	my $s = session(db => 'built', role => 'alice');
	$s->query_safe(q{SELECT jobqueue_enqueue('INSERT INTO ran DEFAULT VALUES')});
	wait_drained(db => 'built');
	sql('REASSIGN OWNED BY builder TO ' . superuser(), db => 'built');
	sql('ALTER DATABASE built OWNER TO ' . superuser());
	is(sql_error('DROP ROLE builder'), '', 'the one who made it is dropped');
	$s->query_safe(q{SELECT jobqueue_enqueue('INSERT INTO ran DEFAULT VALUES')});
	wait_drained(db => 'built');
	is(sql('SELECT count(*) FROM ran', db => 'built'), 2, 'jobs run, by warm sessions and workers');
	$s->quit;
	sql('DROP DATABASE built');
};

node()->stop;
done_testing();
