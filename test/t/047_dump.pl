# Dump and restore, and clones: everything that a database has of jobqueue is
# there afterwards, and nothing of it runs before jobqueue_adopt().

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('dump', conf => "jobqueue.max_workers = 4\n");
my $dir = $node->basedir;

$node->safe_psql('postgres', <<'END');
CREATE ROLE alice LOGIN; CREATE ROLE bob NOLOGIN; CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN; CREATE ROLE admin LOGIN;
END

# ---- a database with a bit of everything -----------------------------------

# jobs that run wait at gate 1, which the caller has closed
sub fill
{
	my ($db) = @_;

	sql(<<'END', db => $db);
GRANT USAGE ON SCHEMA public TO PUBLIC;
SELECT jobqueue_grant(r::regrole, 'use') FROM unnest('{alice,bob}'::text[]) r;
SELECT jobqueue_grant('carol', 'monitor'), jobqueue_grant('admin', 'admin'),
	jobqueue_grant('alice', 'lock'),
	jobqueue_grant('dave', 'consume', 'out'), jobqueue_grant('admin', 'consume');
CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'add' THEN
		INSERT INTO ran (what) VALUES ('add ' || (message->>'add'));
	END IF;
	RETURN to_jsonb(state::int + coalesce((message->>'add')::int, 0));
END $$;
CREATE FUNCTION answer() RETURNS jsonb LANGUAGE sql AS $$ SELECT '42'::jsonb $$;
CREATE TABLE customer (id int PRIMARY KEY, name text);
CREATE FUNCTION welcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.jobqueue_enqueue('public.note', jsonb_build_object('what', 'welcome ' || NEW.id), 'triggered');
	RETURN NULL;
END $$;
CREATE TRIGGER welcome AFTER INSERT ON customer FOR EACH ROW EXECUTE FUNCTION welcome();
INSERT INTO customer VALUES (1, 'one');
SELECT jobqueue_configure('full', max_running => 3, rate => 10, rate_per => '1 min',
	key_limit => 2, weight => 3, ordered => true, max_attempts => 4, backoff => 'linear',
	backoff_base => '2 s', timeout => '5 min', keep => '1 day', keep_dead => '3 days',
	synchronous_commit => 'on', on_dead => 'note', batch => 5);
SELECT jobqueue_configure('ordered', ordered => true);
END
	wait_for("SELECT count(*) = 0 FROM jobqueue_job", 't', $db);

	my %id;
	$id{kept} = enqueue('answer', db => $db, keep => '1 day');
	$id{dead} = enqueue('fail', db => $db, what => 'f', max_attempts => 1);
	$id{retrying} = enqueue('fail', db => $db, what => 'f', key => 'kr', queue => 'ordered', role => 'alice');
	wait_state($id{$_}, { kept => 'completed', dead => 'dead' }->{$_}, db => $db) foreach ('kept', 'dead');
	wait_for("SELECT attempt = 1 AND run_at > now() FROM jobqueue_job WHERE id = $id{retrying}", 't', $db);
	sql("UPDATE jobqueue_job SET run_at = 'tomorrow' WHERE id = $id{retrying}", db => $db);
	sql("SELECT jobqueue_pause('paused')", db => $db);
	$id{behind} = enqueue('note', db => $db, what => 'behind', key => 'kr', queue => 'ordered', role => 'alice');
	$id{cancelled} = enqueue('note', db => $db, what => 'cancelled', run_at => 'tomorrow');
	sql("SELECT jobqueue_cancel($id{cancelled})", db => $db);
	$id{scheduled} = enqueue('note', db => $db, what => 'scheduled', run_at => 'tomorrow', priority => 3);
	$id{ready} = enqueue('note', db => $db, what => 'ready', queue => 'paused', role => 'alice',
		tags => '{a,b}', timeout => '1 min', max_attempts => 7, keep => '1 h');
	$id{running} = enqueue('gate', db => $db, what => 'running', gate => 1, key => 'k');
	wait_at_gate(1, db => $db);
	$id{blocked} = enqueue('note', db => $db, what => 'blocked', key => 'k');
	$id{after} = enqueue('note', db => $db, what => 'after', after => "{$id{running}, $id{kept}}");
	$id{after_done} = enqueue('note', db => $db, what => 'after_done', queue => 'paused', after => "{$id{kept}}");
	$id{unique} = enqueue('note', db => $db, what => 'unique', unique_key => 'u', queue => 'paused');
	$id{expired} = enqueue('note', db => $db, what => 'expired', unique_key => 'e', unique_until => 'expired',
		unique_for => '1 day');
	$id{sql} = enqueue(q(INSERT INTO ran (what) SELECT $1->>'what'), db => $db, what => 'sql', queue => 'paused',
		expires_at => '2100-01-01');
	$id{large} = sql(q{SELECT jobqueue_enqueue('note', jsonb_build_object('what', 'large', 'x', string_agg(md5(i::text), '')), 'paused')
		FROM generate_series(1, 3000) i}, db => $db);
	$id{nobody} = sql(q{SET ROLE bob; SET search_path = public, pg_temp;
		SELECT jobqueue_enqueue('note', '{"what": "nobody"}', 'paused', 'kb', 5)}, db => $db);
	$id{out} = sql(q{SELECT jobqueue_enqueue(NULL, '{"out": 1}', 'out')}, db => $db);
	$id{leased} = sql(q{SELECT jobqueue_enqueue(NULL, '{"out": 2}', 'out', 'kl', -1)}, db => $db);
	sql(q{SELECT * FROM jobqueue_fetch('out', lease => '1 h')}, db => $db);
	sql(q{SELECT jobqueue_start_service('adds', 'add_up', '5', queue => 'slow')}, db => $db);
	wait_for("SELECT waiting = 0 FROM jobqueue_services", 't', $db);
	sql(q{SELECT jobqueue_pause('slow'); SELECT jobqueue_send('adds', '{"add": 1}'), jobqueue_send('adds', '{"add": 2}'),
		jobqueue_send('adds', '{"add": 4}', 'tomorrow')}, db => $db);
	sql(q{SELECT jobqueue_schedule('nightly', '0 3 * * *', 'note', '{"what": "nightly"}', timezone => 'Europe/Berlin');
		SELECT jobqueue_schedule('often', '1 second', 'note', '{"what": "often"}', queue => 'paused', overlap => 'skip')},
		db => $db);
	sql(q{SELECT jobqueue_schedule('nightly', '0 4 * * *', 'note', '{"what": "hers"}')},
		db => $db, role => 'alice');
	sql("SELECT jobqueue_schedule_pause('nightly')", db => $db, role => 'alice');
	# it has been due once
	wait_for("SELECT count(*) = 1 FROM jobqueue_schedules WHERE name = 'often' AND runs > 0", 't', $db);
	sql("SELECT jobqueue_schedule_pause('often')", db => $db);
	return %id;
}

my @tables = qw(job archive unique lease consumer queue service service_current schedule);

# All of it, as text. A queue's version is given by each database, and so is the
# moment at which a schedule is looked at next.
sub contents
{
	my ($db, @which) = @_;

	return join("\n", map {
		sql("SELECT '$_', (to_jsonb(t) - 'version' - 'next_run')::text COLLATE \"C\" FROM jobqueue_$_ t ORDER BY 2", db => $db)
	} @which ? @which : @tables);
}

sub rights
{
	my ($db) = @_;

	return sql(<<'END', db => $db);
SELECT p.oid::regprocedure::text COLLATE "C", ARRAY(SELECT a::text COLLATE "C" FROM unnest(proacl) a ORDER BY 1)
FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
UNION ALL
SELECT c.oid::regclass::text, ARRAY(SELECT a::text COLLATE "C" FROM unnest(relacl) a ORDER BY 1)
FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
ORDER BY 1
END
}

sub triggers
{
	my ($db) = @_;

	return sql(<<'END', db => $db);
SELECT tgname, tgenabled FROM pg_trigger t JOIN pg_depend d ON d.objid = t.tgrelid AND d.deptype = 'e'
WHERE NOT tgisinternal ORDER BY 1
END
}

# Everything that it could do it has done: jobs in every lane, had they been
# allowed to run.
sub settled
{
	my ($db) = @_;

	wait_quiet(db => $db);
	wait_quiet(db => $db, role => 'alice');
	wait_quiet(db => $db, queue => 'ordered', role => 'alice');
	wait_for("SELECT NOT bool_or(estimated) FROM jobqueue_status", 't', $db);
}

sub restore
{
	my ($db) = @_;

	sql("CREATE DATABASE $db");
	pg_restore($db, 'src.custom', '-1');
}

sql('CREATE DATABASE src');
JobqueueTest::add_database('src');
my $gate = $node->background_psql('src');
$gate->query_safe("SET application_name = 'whole file'; SELECT pg_advisory_lock(1)");
my %id = fill('src');
my $before = contents('src');
my $ran = ran(db => 'src');
my $max = sql('SELECT max(id) FROM jobqueue_job', db => 'src');
my $held = sql('SELECT count(*) FROM jobqueue_job', db => 'src');    # in a copy

# only what differs is shown
sub same_rows
{
	my ($db, $name) = @_;
	my %missing = map { $_ => 1 } split /\n/, $before;
	my @more = grep { !delete $missing{$_} } split /\n/, contents($db);

	is(join("\n", (map { "too much: $_" } @more), map { "missing: $_" } sort keys %missing), '', $name);
}

sub pg_dump
{
	my ($file, @options) = @_;

	$node->command_ok([ 'pg_dump', '-f', "$dir/$file", @options ], "pg_dump $file");
}

sub pg_restore
{
	my ($db, $file, @options) = @_;

	$node->command_ok([ 'pg_restore', '-d', $db, @options, "$dir/$file" ],
		"pg_restore $file @options");
}

pg_dump('src.sql', 'src');
pg_dump('src.custom', '-Fc', 'src');
pg_dump('src.dir', '-Fd', '-j', '2', 'src');

my %way = (
	plain => sub {
		$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null',
			'-f', "$dir/src.sql", $_[0] ], 'psql');
	},
	custom => sub { pg_restore($_[0], 'src.custom', '-1'); },
	'directory, in parallel' => sub { pg_restore($_[0], 'src.dir', '-j', '3', '--exit-on-error'); },
	'schema, then data' => sub {
		pg_restore($_[0], 'src.custom', '--schema-only');
		is(sql('SELECT count(*) FROM jobqueue_job', db => $_[0]), 0, 'the schema alone has no jobs');
		# as told in README: no trigger of an application fires
		local $ENV{PGOPTIONS} = '-c session_replication_role=replica';
		pg_restore($_[0], 'src.custom', '--data-only', '-1');
	});

foreach my $way (sort keys %way)
{
	property "a restore has everything: $way" => sub {
		sql('CREATE DATABASE copy');
		$way{$way}->('copy');
		same_rows('copy', 'the same rows');
		is(rights('copy'), rights('src'), 'the same rights');
		is(triggers('copy'), triggers('src'), 'triggers fire as before');
		settled('copy');
		is(ran(db => 'copy'), $ran, 'nothing has run');
		same_rows('copy', 'nothing has changed');
		is(sql("SELECT count(*) FROM jobqueue_job WHERE queue = 'triggered'", db => 'copy'), 0,
			'no trigger has enqueued anything');
		cmp_ok(enqueue('note', db => 'copy', run_at => 'tomorrow'), '>', $max, 'ids go on');
		is(sql("SELECT home = (SELECT home FROM jobqueue_meta) FROM jobqueue_job ORDER BY id DESC LIMIT 1", db => 'copy'),
			't', 'and new jobs are at home');
		sql('DROP DATABASE copy WITH (FORCE)');
	};
}

# ---- held, and adopted ------------------------------------------------------

sub why
{
	my ($db, $id) = @_;
	return sql("SELECT jobqueue_explain($id)", db => $db);
}

# from the state that fill() has left to the end of all that can end
sub run_it_out
{
	my ($db) = @_;

	is(sql('SELECT jobqueue_adopt()', db => $db), $held, 'all are adopted');
	is(sql('SELECT jobqueue_adopt()', db => $db), 0, 'and no more the second time');
	# the gate is not closed here: what ran there runs from the beginning
	wait_for("SELECT count(*) = 3 FROM ran WHERE what IN ('running', 'blocked', 'after')", 't', $db);
	is(sql("SELECT what FROM ran WHERE what IN ('running', 'blocked', 'after') ORDER BY n LIMIT 1", db => $db),
		'running', 'by key and after each other');
	is(sql("SELECT count(*) FROM ran WHERE what IN ('ready', 'large', 'sql', 'nobody', 'unique')", db => $db), 0,
		'a paused queue is paused');
	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id{behind}", db => $db), 'blocked',
		'the order of an ordered queue holds');
	is(sql(q{SELECT jobqueue_enqueue('note', queue => 'paused', unique_key => 'u', on_conflict => 'join')}, db => $db),
		$id{unique}, 'a unique key is taken');
	is(sql(q{SELECT jobqueue_enqueue('note', unique_key => 'e', unique_until => 'expired', unique_for => '1 day') IS NULL},
		db => $db), 't', 'for as long as it was to be');
	# the lease was given elsewhere
	is(sql(q{SELECT string_agg(f.id || ' ' || (args->>'out'), ', ' ORDER BY f.id) FROM jobqueue_fetch('out', max => 5) f},
		db => $db, role => 'dave'), "$id{out} 1, $id{leased} 2", 'outside consumers fetch');
	sql(q{SELECT jobqueue_resume('paused')}, db => $db);
	wait_for("SELECT count(*) = 8 FROM ran WHERE what IN ('ready', 'large', 'sql', 'nobody', 'unique', 'after_done', 'often', 'expired')",
		't', $db);
	is(sql("SELECT string_agg(what || ' ' || role, ', ' ORDER BY what) FROM ran WHERE what IN ('ready', 'nobody')", db => $db),
		'nobody bob, ready alice', 'each as its owner');
	sql(q{SELECT jobqueue_resume('slow')}, db => $db);
	wait_for("SELECT state = '8' FROM jobqueue_services WHERE name = 'adds'", 't', $db);
	is(sql("SELECT string_agg(what, ' ' ORDER BY n) FROM ran WHERE what LIKE 'add%'", db => $db), 'add 1 add 2',
		'a service has its state, and its messages in order');
	is(sql("SELECT status, waiting FROM jobqueue_services", db => $db), 'running|1', 'it is running');
	is(sql("SELECT jobqueue_retry($id{dead})", db => $db), 't', 'the dead can be tried again');
	is(sql("SELECT result FROM jobqueue_jobs WHERE id = $id{kept}", db => $db), '42', 'results are there');
	is(sql("SELECT count(next_run) FROM jobqueue_schedules", db => $db), 1, 'what is not paused is due');
	sql(q{SELECT jobqueue_schedule_resume('often')}, db => $db);
	wait_for(q{SELECT count(*) > 2 FROM ran WHERE what = 'often'}, 't', $db);
	wait_quiet(db => $db);
	is(sql("SELECT what, count(*) FROM ran WHERE what NOT IN ('often', 'f') GROUP BY 1 HAVING count(*) > 1", db => $db), '',
		'nothing has run twice');
}

property 'what is held says so' => sub {
	restore('held');
	settled('held');
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'", db => 'held'), $held, 'jobs');
	is(sql("SELECT sum(held), sum(ready + scheduled + blocked + running) FROM jobqueue_status", db => 'held'),
		"$held|0", 'status');
	like(why('held', $id{$_}), qr/^held, as it comes from another database/, "explain: $_")
		foreach (sort grep { !/kept|dead|cancelled|expired/ } keys %id);
	is(sql('SELECT name, status FROM jobqueue_services', db => 'held'), 'adds|held', 'services');
	is(sql('SELECT count(*), count(next_run) FROM jobqueue_schedules', db => 'held'), '3|0', 'schedules');
	is(sql("SELECT count(*) FROM jobqueue_fetch('out', max => 5)", db => 'held'), 0, 'consumers get nothing');
	like(sql_error("SELECT jobqueue_run($id{blocked})", db => 'held'), qr/held because it comes from another/, 'run by hand');
	is(sql("SELECT paused, max_running, weight FROM jobqueue_queues WHERE queue IN ('paused', 'full') ORDER BY 1", db => 'held'),
		"f|3|3\nt||1", 'queues have their settings');
};

property 'a message to a held service stands behind the held ones' => sub {
	my $id = sql(q{SELECT jobqueue_send('adds', '{"add": 100}')}, db => 'held');

	is(sql("SELECT state FROM jobqueue_jobs WHERE id = $id", db => 'held'), 'held', 'held');
	sql("SELECT jobqueue_resume('slow')", db => 'held');
	wait_quiet(db => 'held', queue => 'slow');
	is(sql('SELECT state FROM jobqueue_services', db => 'held'), '5', 'the state is as it was');
	is(sql("SELECT jobqueue_cancel($id)", db => 'held'), 't', 'it can be cancelled');
	sql("SELECT jobqueue_pause('slow')", db => 'held');
};

property 'adopt, rolled back' => sub {
	is(sql("BEGIN; SELECT jobqueue_adopt(); ROLLBACK", db => 'held'), $held, 'adopted');
	settled('held');
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'", db => 'held'), $held, 'held again');
	is(ran(db => 'held'), $ran, 'nothing has run');
};

property 'a dump of what is held is held, too' => sub {
	pg_dump('again.custom', '-Fc', 'held');
	sql('CREATE DATABASE again');
	pg_restore('again', 'again.custom', '-1');
	settled('again');
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'", db => 'again'), $held, 'held');
	sql('DROP DATABASE again WITH (FORCE)');
};

property 'adopted, everything goes on' => sub {
	run_it_out('held');
	is(ran(db => 'src'), $ran, 'where it comes from nothing has changed');
	same_rows('src', 'no row either');
	sql('DROP DATABASE held WITH (FORCE)');
};

property 'adopt beside jobs that run and are enqueued' => sub {
	restore('busy');
	my $h = start_pgbench(q{SELECT jobqueue_enqueue('note', '{"what": "new"}', key => 'k')},
		clients => 2, transactions => 100, db => 'busy');

	is(sql('SELECT jobqueue_adopt()', db => 'busy'), $held, 'adopted');
	ok($h->finish, 'enqueued') or diag ${ $h->{out} };
	wait_for("SELECT count(*) = 203 FROM ran WHERE what IN ('running', 'blocked', 'after', 'new')", 't', 'busy');
	is(sql("SELECT count(*) FROM ran GROUP BY job HAVING count(*) > 1", db => 'busy'), '', 'each ran once');
	sql('DROP DATABASE busy WITH (FORCE)');
};

# ---- clones -----------------------------------------------------------------

property 'a clone by CREATE DATABASE runs nothing, and goes on when it is adopted' => sub {
	restore('origin');
	# idle workers and schedulers leave for it
	sql('CREATE DATABASE clone TEMPLATE origin');
	is(contents('clone'), contents('origin'), 'the same rows');
	is(sql('SELECT jobqueue_adopt()', db => 'origin'), $held, 'its origin is adopted');
	sql('DROP DATABASE clone');
	wait_for("SELECT count(*) = 3 FROM ran WHERE what IN ('running', 'blocked', 'after')", 't', 'origin');
	wait_for('SELECT count(*) = 0 FROM jobqueue_running', 't', 'origin');
	sql('CREATE DATABASE clone TEMPLATE origin');
	my $there = ran(db => 'clone');
	my $rows = contents('clone');
	my $id = enqueue('note', what => 'new', db => 'clone');
	my $n = sql('SELECT count(*) FROM jobqueue_job', db => 'clone');
	wait_for("SELECT count(*) = $n FROM jobqueue_jobs WHERE state = 'held'", 't', 'clone');
	like(why('clone', $id), qr/^held/, 'jobs that are enqueued there are held, too');
	is(sql('SELECT count(next_run) FROM jobqueue_schedules', db => 'clone'), 0, 'schedules');
	is(sql('SELECT status FROM jobqueue_services', db => 'clone'), 'held', 'services');
	wait_for("SELECT sum(held) = $n AND NOT bool_or(estimated) FROM jobqueue_status", 't', 'clone');
	# and one that comes when all have been counted
	enqueue('note', what => 'new', db => 'clone');
	$n++;
	wait_for("SELECT sum(held) = $n AND NOT bool_or(estimated) FROM jobqueue_status", 't', 'clone');
	enqueue('note', what => 'later', queue => $_, run_at => 'tomorrow', db => 'clone') foreach ('paused', 'new');
	$id = enqueue('note', what => 'waits', queue => 'paused', db => 'clone');
	$n += 3;
	wait_for("SELECT sum(held) = $n AND NOT bool_or(estimated) FROM jobqueue_status", 't', 'clone');
	is(sql('SELECT sum(ready), sum(scheduled) FROM jobqueue_status', db => 'clone'), '0|0', 'each is counted once, as held');
	is(ran(db => 'clone'), $there, 'nothing has run');
	is(sql('SELECT jobqueue_adopt()', db => 'clone'), $n, 'adopted');
	wait_for("SELECT count(*) = 2 FROM ran WHERE what = 'new'", 't', 'clone');
	isnt(sql('SELECT home FROM jobqueue_meta', db => 'clone'), sql('SELECT home FROM jobqueue_meta', db => 'origin'),
		'it is an installation of its own');
	sql('SELECT jobqueue_resume(q) FROM unnest($${paused,slow}$$::text[]) q', db => $_) foreach ('origin', 'clone');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'large'", 't', $_) foreach ('origin', 'clone');
	sql("DROP DATABASE $_ WITH (FORCE)") foreach ('origin', 'clone');
};

property 'a copy can be emptied without running anything' => sub {
	restore('staging');
	is(sql("SELECT jobqueue_cancel($id{ready})", db => 'staging'), 't', 'one is cancelled');
	is(sql("SELECT jobqueue_cancel_where('paused', 'held', NULL)", db => 'staging'),
		sql("SELECT count(*) - 1 FROM jobqueue_job WHERE queue = 'paused'", db => 'src'), 'and those of a queue');
	wait_for("SELECT sum(held) = (SELECT count(*) FROM jobqueue_job) AND NOT bool_or(estimated) FROM jobqueue_status", 't', 'staging');
	sql(<<'END', db => 'staging');
BEGIN;
TRUNCATE jobqueue_job, jobqueue_archive, jobqueue_unique, jobqueue_dependency, jobqueue_lease,
	jobqueue_schedule, jobqueue_service, jobqueue_service_current;
SELECT jobqueue_adopt();
COMMIT;
SELECT jobqueue_resume(queue) FROM jobqueue_queues WHERE paused;
END
	wait_for("SELECT sum(held) = 0 AND NOT bool_or(estimated) FROM jobqueue_status", 't', 'staging');
	settled('staging');
	is(ran(db => 'staging'), $ran, 'nothing has run');
	enqueue('note', what => 'here', db => 'staging');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'here'", 't', 'staging');
	sql('DROP DATABASE staging WITH (FORCE)');
};

property 'a database can be held by hand' => sub {
	restore('physical');
	sql('SELECT jobqueue_adopt()', db => 'physical');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'after'", 't', 'physical');
	my $n = sql('SELECT count(*) FROM jobqueue_job', db => 'physical');
	# as told in README, for a copy of the data directory
	sql('UPDATE jobqueue_meta SET database = 0', db => 'physical');
	sql("SELECT jobqueue_resume(queue) FROM jobqueue_queues WHERE paused", db => 'physical');
	enqueue('note', what => 'new', db => 'physical');
	is(sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'", db => 'physical'), $n + 1, 'held');
	is(sql('SELECT status FROM jobqueue_services', db => 'physical'), 'held', 'services');
	is(sql('SELECT jobqueue_adopt()', db => 'physical'), $n + 1, 'adopted');
	wait_for("SELECT count(*) = 3 FROM ran WHERE what IN ('new', 'ready', 'large')", 't', 'physical');
	sql('DROP DATABASE physical WITH (FORCE)');
};

# ---- parts of a dump ----------------------------------------------------------

property 'one table alone: ids go on above it once it is adopted' => sub {
	sql('CREATE DATABASE part');
	sql('CREATE EXTENSION jobqueue', db => 'part');
	pg_restore('part', 'src.custom', '--data-only', '-t', 'jobqueue_job');
	is(sql('SELECT count(*) FROM jobqueue_job', db => 'part'), $held, 'its rows');
	sql("SELECT jobqueue_pause('default'), jobqueue_adopt()", db => 'part');
	cmp_ok(sql(q{SELECT jobqueue_enqueue('SELECT 1')}, db => 'part'), '>', $max, 'a new id');
	sql('DROP DATABASE part WITH (FORCE)');
};

property 'a restore with triggers disabled: queues have their settings all the same' => sub {
	sql('CREATE DATABASE part');
	pg_restore('part', 'src.custom', '--schema-only');
	# memory has a setting of before
	sql("SELECT jobqueue_configure('slow', max_running => 2)", db => 'part');
	enqueue('note', what => 'x', queue => 'slow', db => 'part');
	wait_for("SELECT count(*) = 1 FROM ran", 't', 'part');
	sql('TRUNCATE ran, jobqueue_queue', db => 'part');
	pg_restore('part', 'src.custom', '--data-only', '--disable-triggers', '-1');
	is(sql('SELECT jobqueue_adopt()', db => 'part'), $held, 'adopted');
	wait_for("SELECT count(*) = 1 FROM ran WHERE what = 'after'", 't', 'part');
	is(sql("SELECT count(*) FROM ran WHERE what LIKE 'add%'", db => 'part'), 0, 'a paused queue is paused');
	sql('DROP DATABASE part WITH (FORCE)');
};

# ---- roles ------------------------------------------------------------------

property 'where a role is missing, its jobs are nobody\'s and all others are there' => sub {
	restore('roles');
	sql('CREATE ROLE leaver LOGIN; SELECT jobqueue_grant($$leaver$$, $$use$$)', db => 'roles');
	sql('CREATE ROLE another LOGIN; SELECT jobqueue_grant($$another$$, $$use$$)', db => 'roles');
	# in the dump there is a name for one, and a number for the other
	sql_as($_, q{SELECT jobqueue_schedule('same', '@daily', 'SELECT 1')}, db => 'roles') foreach (qw(leaver another));
	sql('DROP OWNED BY another; DROP ROLE another', db => 'roles');
	my $id = enqueue('note', what => 'lost', run_at => 'tomorrow', db => 'roles', role => 'leaver');
	pg_dump('roles.sql', '--no-owner', '--no-privileges', 'roles');
	sql('DROP OWNED BY leaver', db => 'roles');
	sql('DROP DATABASE roles WITH (FORCE)');
	sql('DROP ROLE leaver');
	sql('CREATE DATABASE roles');
	my ($out, $err);
	$node->command_checks_all([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-1', '-f', "$dir/roles.sql", 'roles' ],
		0, [], [ qr/WARNING:  role "leaver" does not exist/ ], 'restored');
	# whoever looks for jobs of roles that have gone leaves these alone
	sql('CREATE ROLE other; DROP ROLE other');
	wait_quiet(db => 'roles');
	is(sql("SELECT state, owner FROM jobqueue_jobs WHERE id = $id", db => 'roles'), 'held|-', 'held, of nobody');
	is(sql("SELECT count(*) FROM jobqueue_job", db => 'roles'), $held + 1, 'all are there');
	is(sql("SELECT count(*) FROM jobqueue_schedules WHERE name = 'same' AND owner::oid = 0", db => 'roles'), 2,
		'and schedules of one name, which had different owners');
	sql("UPDATE jobqueue_job SET owner = 'alice' WHERE id = $id", db => 'roles');
	is(sql("SELECT owner FROM jobqueue_jobs WHERE id = $id", db => 'roles'), 'alice', 'and can be given an owner');
	sql("UPDATE jobqueue_job SET owner = '-', run_at = NULL WHERE id = $id", db => 'roles');
	sql('SELECT jobqueue_adopt()', db => 'roles');
	wait_state($id, 'dead', db => 'roles');
	sql('DROP DATABASE roles WITH (FORCE)');
};

# ---- the whole cluster --------------------------------------------------------

property 'pg_dumpall into another server' => sub {
	my $other = PostgreSQL::Test::Cluster->new('other');

	$other->init;
	$other->append_conf('postgresql.conf', <<'END');
shared_preload_libraries = 'jobqueue'
max_worker_processes = 16
lc_messages = 'C'
END
	$other->start;
	$node->command_ok([ 'pg_dumpall', '-f', "$dir/all.sql" ], 'dump');
	$other->command_checks_all([ 'psql', '-Xq', '-o', '/dev/null', '-f', "$dir/all.sql", 'postgres' ], 0, [],
		[ qr/^(psql:[^\n]*ERROR:  role "\w+" already exists\n)*$/ ], 'restore');
	local $JobqueueTest::node = $other;
	same_rows('src', 'the same rows');
	is(rights('src'), do { local $JobqueueTest::node = $node; rights('src') }, 'the same rights');
	settled('src');
	is(ran(db => 'src'), $ran, 'nothing has run');
	run_it_out('src');
	$other->stop;
};

done_testing();
