# Chaos: the load of TogetherLoad.pm and more, under faults of all kinds in
# random order, several at once: processes that are killed, the server that is
# stopped, disks that are full, tables that are rebuilt, a standby that takes
# over.  After each round all is lifted, what is left drains, and the checker
# compares what happened with what was promised.
#
# The seed decides the order of the faults and what each client does; it is
# printed first, and with each violation, together with the number of the last
# fault before it was seen.
#
#	JQ_SEED			repeats the choices (not the timing)
#	JQ_SECONDS		how long, without the beginning and the last drain (30)
#	JQ_CHAOS		how many faults at most (0 = no limit)
#	JQ_ONLY			a pattern: only these kinds of fault
#	JQ_STAY			a file: as long as it is there, a server that does not drain is
#					left as it is
#	JQ_SMALL_DISK	a directory on a file system of a few MiB: without it no disk
#					gets full
#	JQ_SMALL_WAL	the same for WAL, of 160 MiB or more
#
# "make chaos" runs it for 10 minutes.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use POSIX ':sys_wait_h';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);
use Together;
use TogetherLoad;

# make test makes the same choices each time, a long run others
my $seed = $ENV{JQ_SEED} || ($ENV{JQ_SECONDS} ? int(time * 1000) % 1_000_000 : 2);
my $seconds = $ENV{JQ_SECONDS} || 30;
my $most = $ENV{JQ_CHAOS} || 0;
my $only = $ENV{JQ_ONLY} || '';
my $small = $ENV{JQ_SMALL_DISK} || '';
my $small_wal = $ENV{JQ_SMALL_WAL} || '';

# some run with less lanes than there are queues and roles
my $max_lanes = $seed % 2 ? 64 : 16;

# a round is long enough for many faults, and short enough to be looked through
my $round_seconds = $seconds < 60 ? $seconds / 2 : 30;

seed_is($seed);
# to be seen without the log
diag "seed $seed";

# ---- the server ----------------------------------------------------------------

# where WAL is: of the server, and of the one that takes over from it
my @wal = $small_wal ? map { "$small_wal/wal$_" } 0 .. 1 : ();

new_node('chaos', streaming => 1,
	initdb => @wal ? [ '--waldir', $wal[0], '--wal-segsize', 1 ] : undef,
	conf => load_settings() . <<"END" . (@wal ? <<"END" : ''));
log_line_prefix = '%m [%p] %b %e '
jobqueue.max_ready_jobs = 150
jobqueue.max_lanes = $max_lanes
max_parallel_workers = 16
max_wal_senders = 4
wal_level = replica
wal_keep_size = '128MB'
max_wal_size = '256MB'
authentication_timeout = '10s'
timezone = 'UTC'
END
wal_keep_size = '40MB'
max_wal_size = '48MB'
min_wal_size = '4MB'
END

make_load();
sql(<<'END');
-- schedules: when they fired, by the row of each, and what their jobs did
CREATE TABLE fired (schedule bigint, run timestamptz, job bigint);
CREATE TABLE ticks (id bigint, schedule text);
GRANT ALL ON fired, ticks TO PUBLIC;
CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = public AS $$
BEGIN
	INSERT INTO fired VALUES (NEW.id, NEW.last_run, NEW.last_job);
	RETURN NULL;
END $$;
CREATE TRIGGER fires AFTER UPDATE ON jobqueue_schedule FOR EACH ROW
	WHEN (NEW.last_job IS DISTINCT FROM OLD.last_job) EXECUTE FUNCTION fires();
CREATE FUNCTION tick(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	me bigint := (jobqueue_current()).id;
BEGIN
	IF EXISTS (SELECT FROM ticks WHERE id = me) THEN
		RAISE LOG 'VIOLATION: job % of a schedule runs again after it was completed', me;
	END IF;
	PERFORM had('job:' || me, 'x', me(), clock_timestamp());
	INSERT INTO ticks VALUES (me, args->>'name');
END $$;

-- what takes the slots of background workers: each row of a parallel scan
CREATE TABLE wide WITH (parallel_workers = 8) AS SELECT i FROM generate_series(1, 3000) i;

-- a trigger of the user's on the jobs
CREATE FUNCTION looks_on() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN RETURN NULL; END $$;

-- many savepoints, of which some are rolled back, one in the other or not
CREATE FUNCTION storm(n int, deep int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		BEGIN
			INSERT INTO sent SELECT x FROM jobqueue_enqueue('work', '{"do": "nothing"}',
				queue => (ARRAY['plain', 'lim', 'keyed', 'ord', 'bat'])[1 + floor(random() * 5)],
				key => CASE WHEN random() < 0.5 THEN 'k' || floor(random() * 6) END,
				run_at => CASE WHEN random() < 0.1 THEN clock_timestamp() + interval '0.1 s' END) x;
			IF random() < 0.2 THEN
				PERFORM lock_xact('k' || floor(random() * 6), '0.01 s');
			END IF;
			IF random() < 0.1 THEN
				PERFORM post('s' || floor(random() * 5), 'nothing');
			END IF;
			IF deep > 0 AND random() < 0.3 THEN
				PERFORM storm(3, deep - 1);
			END IF;
			IF random() < 0.4 THEN
				RAISE 'never mind';
			END IF;
		EXCEPTION WHEN raise_exception OR deadlock_detected THEN
			NULL;
		END;
	END LOOP;
END $$;
END

my $has_clock = node()->psql('postgres', <<'END') == 0;
CREATE FUNCTION jq_clock_set(timestamptz) RETURNS void
	AS '$libdir/jobqueue', 'jq_clock_set' LANGUAGE C;
END
my $has_pause = $JobqueueTest::has_pause;

my @places;		# of the tables on the small disk, one used at a time

if ($small)
{
	@places = map { "$small/place$_" } 0 .. 1;
	mkdir $_ foreach @places;
	sql("CREATE TABLESPACE small LOCATION '$places[0]'");
	sql("ALTER TABLE $_ SET TABLESPACE small") foreach qw(jobqueue_job jobqueue_archive effects);
	sql('ALTER INDEX jobqueue_job_pkey SET TABLESPACE small');
}
else
{
	note 'no small disk: it will not get full';
}
note 'no small disk for WAL: it will not get full' unless @wal;

sub schedules
{
	sql(join ';', map {
			my ($name, $cron, $overlap, $catch_up) = @$_;
			"SELECT jobqueue_schedule('$name', '$cron', 'tick', '{\"name\": \"$name\"}', queue => 'ticks', overlap => '$overlap', catch_up => '$catch_up')"
		}
		[ 'second', '* * * * * *', 'allow', 'one' ],
		[ 'minute', '* * * * *', 'queue', 'one' ],
		[ 'hour', '0 * * * *', 'skip', 'none' ],
		[ 'interval', '2 seconds', 'skip', 'one' ],
		[ 'all', '*/20 * * * * *', 'queue', 'all' ]);
}

# ---- what clients do, beside the load ----------------------------------------------

my @who = qw(r1 r2 super storm consumer consumer control);

sub stormy
{
	my $dice = rand;

	return sprintf "SELECT storm(%d, %d);\n", 1 + int rand pick(10, 90), int rand 3 if $dice < 0.2;
	return "BEGIN;\n" . join('', map { "SAVEPOINT s$_;\n" . an_enqueue() . (chance(0.3) ? "ROLLBACK TO s" . (1 + int rand $_) . ";\n" : '') } 1 .. 2 + int rand 20) . ending()
	  if $dice < 0.4;
	return "BEGIN;\n" . an_enqueue() . an_enqueue() . "SELECT pg_sleep(" . rand(0.5) . ");\n" . ending() if $dice < 0.5;
	return "BEGIN;\nSET LOCAL jobqueue.inline = on;\n" . an_enqueue() . ending() if $dice < 0.55;
	return "BEGIN ISOLATION LEVEL " . pick('REPEATABLE READ', 'SERIALIZABLE') . ";\n" . an_enqueue() . a_post() . ending() if $dice < 0.65;
	return "SELECT jobqueue_schedule_" . pick(qw(run pause resume)) . "('" . pick(qw(second minute hour interval all)) . "');\n" if $dice < 0.7;
	return many() if $dice < 0.75;
	# what was told to be there is there
	return sprintf "INSERT INTO sent SELECT jobqueue_enqueue('work', '{\"do\": \"nothing\"}', queue => '%s') RETURNING 'ACK ' || id;\n", pick(load_queues())
	  if $dice < 0.95;
	return "SELECT pg_sleep(" . rand(0.1) . ");\n";
}

clients_are(
	sub {
		my ($who) = @_;
		return ($who eq 'control' ? control() : $who eq 'storm' ? stormy() : statement($who))
		  . (chance(0.3) ? sprintf "SELECT pg_sleep(%.3f);\n", rand 0.05 : '');
	},
	statements => 120);

# ---- faults ------------------------------------------------------------------------

my @undo;		# [ when, what ], of faults that go on for a while
my @beside;		# processes that do something meanwhile
my @logs;		# [ file, how far it was read ]: those of this round
my $log = '';	# of this round
my $last = 'none';
my $standbys = 0;
my $down = 0;
my $gids = 0;

# do that a little later; what holds up processes not later than a restart
sub later
{
	my ($wait, $code, $holds_up) = @_;
	push @undo, [ time + $wait, $code, $holds_up ];
}

sub let_go
{
	my @now = grep { $_->[2] } @undo;

	@undo = grep { !$_->[2] } @undo;
	$_->[1]->() foreach @now;
}

sub try { ask($_[0]); }

my %frozen;

sub thaw
{
	kill('CONT', $_) foreach @_;
	delete @frozen{@_};
}

# who stands at the point must go on: where interrupts are held off nothing else
# ends it, and the session that asks may be held up itself, by one that is frozen
sub release_point
{
	my ($point, $before) = @_;
	my $end = time + 20;
	my $tries = 0;

	until (defined ask(($before // '') . "SELECT jq_pause_release('$point')"))
	{
		note "pause point $point could not be released" unless $tries++;
		# with the server they have all gone
		return unless -e node()->data_dir . '/postmaster.pid';
		die "nobody could release pause point $point\n" if time > $end;
		thaw(keys %frozen);
		usleep(50_000);
	}
}

# SQL that takes its time, beside all else
sub beside
{
	my ($text, %opt) = @_;

	return if @beside > 8;
	local %ENV = node()->_get_env(PGAPPNAME => 'beside', PGOPTIONS => '-c lock_timeout=1500 -c client_min_messages=error');
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$PostgreSQL::Test::Utils::log_path/053_chaos_beside.log";
		open STDERR, '>&', \*STDOUT;
		exec(node()->installed_command('psql'), '-X', '-q', '-a', '-U', superuser(),
			(map { ('-c', $_) } split /;\n/, $text), 'postgres')
		  or POSIX::_exit(1);
	}
	push @beside, $pid;
}

sub reap
{
	@beside = grep { waitpid($_, WNOHANG) == 0 } @beside;
}

sub undo_what_is_due
{
	my ($all) = @_;
	my @due = grep { $all || $_->[0] <= time } @undo;

	@undo = grep { !$all && $_->[0] > time } @undo;
	$_->[1]->() foreach @due;
}

sub a_table { return pick(qw(jobqueue_job jobqueue_job jobqueue_archive jobqueue_unique jobqueue_dependency jobqueue_lease jobqueue_queue jobqueue_service jobqueue_service_current jobqueue_schedule effects sent handled posted)); }

# until the server has come back by itself
sub wait_up
{
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	while ((ask('SELECT 1') // '') ne '1')
	{
		die "the server does not come back\n" if time > $end;
		usleep(10_000);
	}
}

# the server cannot start before the last of its processes has gone
sub kill_postmaster
{
	my $pid = node()->{_pid};
	my @pids = ($pid, split /\n/, `pgrep -P $pid`);
	my $end = time + 5;

	node()->kill9;
	usleep(5_000) while time < $end && grep { kill(0, $_) } @pids;
}

sub start_again
{
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	# children of a postmaster that was killed may still be there
	until (node()->start(fail_ok => 1))
	{
		die "the server does not start\n" if time > $end;
		usleep(50_000);
		# one that does not die at once may have been taken for the new one
		node()->{_pid} = undef;
	}
}

# one that has gone for good, and does not come back by itself
sub start_if_gone
{
	return if -e node()->data_dir . '/postmaster.pid';
	node()->{_pid} = undef;
	node()->start(fail_ok => 1);
}

sub wait_up_or_start
{
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	while ((ask('SELECT 1') // '') ne '1')
	{
		die "the server does not come back\n" if time > $end;
		start_if_gone();
		usleep(20_000);
	}
}

sub restart
{
	my ($how) = @_;

	let_go();
	if ($how eq 'kill')
	{
		kill_postmaster();
	}
	elsif (!node()->stop($how, fail_ok => 1))
	{
		die "the server has gone, or does not stop\n";
	}
	start_again();
}

sub prepare
{
	my $gid = 'c' . ++$gids;
	try("BEGIN; " . join('', map { an_enqueue() } 0 .. rand 4) . (chance(0.3) ? "SELECT post('s0', 'nothing', NULL, false);" : '') . "PREPARE TRANSACTION '$gid'");
	return $gid;
}

# A physical standby takes over.  Whatever somebody was told since it is
# synchronous it must know, and it has the rest up to some moment.
sub promotion
{
	my $old = node();
	my $name = 'standby' . ++$standbys;
	my $new = PostgreSQL::Test::Cluster->new($name);
	my @map = (@places ? ('-T', "$places[0]=$places[1]") : (), @wal ? ('--waldir', $wal[1]) : ());

	# a process that is frozen may hold a lock that everybody needs
	let_go();
	if (@places)
	{
		system('rm', '-rf', $places[1]);
		mkdir $places[1];
	}
	system('rm', '-rf', $wal[1]) if @wal;
	{
		local %ENV = $old->_get_env();
		# the disk may be full
		unlink "$small/ballast" if $small;
		PostgreSQL::Test::Utils::system_log('pg_basebackup', '-D', $new->data_dir, '-h', $old->host, '-p', $old->port, '-U', superuser(), '--checkpoint', 'fast', '--no-sync', @map) == 0
		  or return;
	}
	chmod 0700, $new->data_dir;
	$new->append_conf('postgresql.conf', sprintf "port = %d\nunix_socket_directories = '%s'\n", $new->port, $new->host);
	$new->enable_streaming($old);
	$new->start;
	try("ALTER SYSTEM SET synchronous_standby_names = '*'");
	try('SELECT pg_reload_conf()');
	my $end = time + 30;
	my $sync = '';
	until ($sync eq 'sync' || time > $end)
	{
		$old->psql('postgres', 'SELECT sync_state FROM pg_stat_replication', stdout => \$sync);
		$sync //= '';
		revive_clients();
		usleep(20_000);
	}
	usleep(rand(600_000));
	read_log();
	if ($sync ne 'sync')
	{
		# as it never was
		$new->stop('immediate');
		$new->clean_node;
		try('ALTER SYSTEM RESET synchronous_standby_names');
		try('SELECT pg_reload_conf()');
		return;
	}
	let_go();
	if (chance(0.5)) { kill_postmaster(); } else { $old->stop('immediate'); }
	$new->promote;
	$new->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	$JobqueueTest::node = $new;
	read_log();
	push @logs, [ $new->logfile, 0 ];
	@places = reverse @places;
	later(1, sub { system('rm', '-rf', $old->data_dir, @wal ? $wal[1] : ()); });
	@wal = reverse @wal;
}

sub setting
{
	my ($name, $value, $wait) = @_;

	try("ALTER SYSTEM SET $name = $value");
	try('SELECT pg_reload_conf()');
	later($wait, sub {
		try("ALTER SYSTEM RESET $name");
		try('SELECT pg_reload_conf()');
	});
}

my @points = qw(worker-before-commit worker-after-commit order-noted
  after-before-commit worker-unique-released worker-gave-back worker-claimed
  worker-called worker-before-delete wait-row-gone wait-registered
  wait-before-sleep wait-before-flush unlock-after-locks unique-held
  unique-asked unique-before-hold unique-before-locks unique-after-locks settings-after-snapshot
  held-before-locks fetch-before-locks run-before-locks scheduler-before-record
  scheduler-before-lost schedule-locked schedule-before-commit
  order-put-off refill-after-snapshot quota-before-settle quota-after-snapshot
  prune-part lost-begun worker-noted-end batch-noted-ends
  message-before-look message-before-put-off lock-woken lock-before-line key-refill-after-snapshot
  fetched-let-go fetched-given-back fetch-taken fetch-leased fetch-before-sleep fetch-before-list
  fetch-before-carry-out fail-before-record fail-after-record
  enqueue-before-push enqueue-before-publish due-after-look due-made-ready
  worker-found-none fetch-found-none control-looked control-found-none
  complete-before-commit batch-between-jobs batch-before-commit after-looked
  after-cleaned after-before-push after-before-look);

# kind => [ weight, what it does ]
my %faults = (
	# processes
	(map { my $f = $_; $f => [ 10, sub { process_fault($f); } ] } 'terminate worker', 'cancel worker'),
	(map { my $f = $_; $f => [ 6, sub { process_fault($f); } ] } 'terminate client', 'cancel client', 'drop client', 'terminate scheduler'),
	(map { my $f = $_; $f => [ 2, sub { process_fault($f); } ] } 'cancel scheduler', 'terminate launcher', 'cancel launcher'),
	'terminate many' => [ 2, sub { try("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('jobqueue worker', 'jobqueue scheduler')"); } ],
	(map {
		my $whom = $_;
		"freeze $whom" => [ $whom eq 'client' ? 5 : 3, sub {
			my $pid = a_pid($whom);
			my $wait = rand 0.8;
			return unless $pid;
			kill('STOP', $pid);
			$frozen{$pid} = 1;
			later($wait, sub { thaw($pid); }, 1);
			# it may hold what a question of ours waits for
			system("(sleep $wait; kill -CONT $pid) > /dev/null 2>&1 &");
		} ]
	} qw(worker client scheduler)),
	(map {
		my $whom = $_;
		"kill $whom" => [ 0.8, sub {
			my $pid = a_pid($whom);
			let_go();
			return unless $pid && kill('KILL', $pid);
			# not before it has been noticed
			my $end = time + 5;
			usleep(5_000) while kill(0, $pid) && time < $end;
			wait_up();
		} ]
	} 'worker', 'client', 'scheduler', 'launcher', 'checkpointer'),
	'kill postmaster' => [ 1.2, sub { restart('kill'); } ],
	'stop immediate' => [ 1.2, sub { restart('immediate'); } ],
	'stop fast' => [ 1.2, sub { restart('fast'); } ],
	'promotion' => [ 0.35, \&promotion ],

	# prepared transactions
	'prepared' => [ 5, sub {
		my $gid = prepare();
		my $how = pick('COMMIT', 'COMMIT', 'ROLLBACK');
		later(rand 1.5, sub { try("$how PREPARED '$gid'"); });
	} ],
	'prepared over a restart' => [ 0.8, sub {
		my @gids = map { prepare() } 1 .. 3;
		my $how = pick('COMMIT', 'COMMIT', 'ROLLBACK');
		restart(pick(qw(kill immediate fast)));
		try("$how PREPARED '$_'") foreach @gids;
	} ],

	# settings and limits
	'setting' => [ 6, sub {
		my ($name, @values) = @{ pick(
			[ 'jobqueue.max_workers', 1 .. 7 ],
			[ 'jobqueue.max_workers', 0 ],
			[ 'jobqueue.max_workers_per_role', 1 .. 3 ],
			[ 'jobqueue.enabled', 'off' ],
			[ 'jobqueue.worker_idle_timeout', "'10 ms'", "'1 s'" ],
			[ 'jobqueue.worker_max_jobs', 1, 5, 1000 ],
			[ 'jobqueue.flush_interval', 0, "'100 ms'" ],
			[ 'jobqueue.max_jobs_per_role', 30, 300 ],
			[ 'deadlock_timeout', "'10 ms'" ],
			[ 'idle_in_transaction_session_timeout', "'100 ms'" ],
			[ 'work_mem', "'64 kB'" ]) };
		my $value = pick(@values);
		my $wait = rand 1;
		setting($name, $value, $wait);
	} ],
	'limits' => [ 8, sub {
		my $q = pick(load_queues());
		try(pick(
			"SELECT jobqueue_configure('lim', max_running => " . (1 + int rand 3) . ", rate => " . (20 + int rand 60) . ")",
			"SELECT jobqueue_configure('keyed', key_limit => " . (1 + int rand 2) . ", key_rate => " . (5 + int rand 30) . ")",
			"SELECT jobqueue_configure('bat', batch => " . (1 + int rand 30) . ")",
			"SELECT jobqueue_configure('plain', weight => " . (1 + int rand 10) . ", synchronous_commit => '" . pick(qw(on off local)) . "')"));
	} ],
	'pause' => [ 4, sub {
		my $q = pick(load_queues());
		try("SELECT jobqueue_pause('$q')");
		later(rand 1, sub { beside("SELECT jobqueue_resume('$q')"); });
	} ],
	'quiesce' => [ 1, sub { beside("SELECT jobqueue_quiesce('0.3 s');\nSELECT jobqueue_resume()"); } ],
	'role' => [ 3, sub {
		beside(pick(
			"ALTER ROLE r1 SET work_mem = '" . (64 + int rand 1000) . "kB'",
			'ALTER ROLE r2 SET jobqueue.max_jobs_per_role = ' . (50 + int rand 300),
			'ALTER ROLE r2 RESET jobqueue.max_jobs_per_role',
			"GRANT pg_monitor TO r1;\nREVOKE pg_monitor FROM r1"));
	} ],

	# tables
	'index' => [ 3, sub {
		beside(pick("CREATE INDEX chaos_index ON jobqueue_job (enqueued_at, id)", 'CREATE INDEX CONCURRENTLY chaos_index ON jobqueue_job (enqueued_at)',
			'CREATE INDEX chaos_index ON effects (who)', 'CREATE INDEX CONCURRENTLY chaos_index ON sent (role)')
			. ";\nSELECT pg_sleep(" . rand(0.5) . ");\nDROP INDEX IF EXISTS chaos_index");
	} ],
	'reindex' => [ 4, sub { beside('REINDEX ' . pick('TABLE', 'TABLE CONCURRENTLY', 'TABLE CONCURRENTLY') . ' ' . a_table()); } ],
	'rewrite' => [ 5, sub { beside(pick('VACUUM FULL ' . a_table(), 'VACUUM FULL jobqueue_job', 'CLUSTER jobqueue_job USING jobqueue_job_pkey')); } ],
	'vacuum' => [ 5, sub { beside(pick('VACUUM ', 'ANALYZE ', 'VACUUM (ANALYZE) ', 'VACUUM (FREEZE) ') . a_table()); } ],
	'alter' => [ 4, sub {
		beside(pick(
			'ALTER TABLE effects ADD COLUMN chaos int DEFAULT 1;\nALTER TABLE effects DROP COLUMN chaos' =~ s/\\n/\n/r,
			'ALTER TABLE sent ADD COLUMN chaos text;\nALTER TABLE sent DROP COLUMN chaos' =~ s/\\n/\n/r,
			'ALTER TABLE jobqueue_job SET (fillfactor = ' . (50 + int rand 50) . ')',
			'ALTER FUNCTION work(jsonb) COST ' . (1 + int rand 1000),
			'ALTER FUNCTION act(jsonb, jsonb) COST ' . (1 + int rand 1000),
			"COMMENT ON FUNCTION work(jsonb) IS 'x'"));
	} ],
	'trigger' => [ 3, sub {
		beside('CREATE OR REPLACE TRIGGER looks_on AFTER ' . pick('INSERT', 'UPDATE', 'DELETE', 'INSERT OR DELETE') . ' ON jobqueue_job FOR EACH ROW EXECUTE FUNCTION looks_on()'
			. ";\nSELECT pg_sleep(" . rand(0.5) . ");\nDROP TRIGGER IF EXISTS looks_on ON jobqueue_job");
	} ],
	'lock' => [ 4, sub {
		beside('BEGIN; LOCK TABLE ' . a_table() . ' IN ' . pick('SHARE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE', 'SHARE ROW EXCLUSIVE') . ' MODE; SELECT pg_sleep(' . rand(0.5) . '); COMMIT');
	} ],
	'rows' => [ 3, sub {
		beside('BEGIN; SELECT count(*) FROM (SELECT FROM jobqueue_job WHERE id % 3 = 0 FOR ' . pick('UPDATE', 'SHARE', 'KEY SHARE') . ' SKIP LOCKED) x; SELECT pg_sleep(' . rand(0.5) . '); ' . pick('COMMIT', 'ROLLBACK'));
	} ],
	'snapshot' => [ 3, sub { beside('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobqueue_job; SELECT pg_sleep(' . rand(2) . '); COMMIT'); } ],
	'checkpoint' => [ 2, sub { beside(pick('CHECKPOINT', 'SELECT pg_switch_wal()', 'SELECT pg_reload_conf()')); } ],
	'sweep' => [ 2, sub { try('SELECT jobqueue_sweep()'); } ],

	# memory, slots, disk
	'flood' => [ 3, sub {
		my $n = 200 + int rand 500;
		beside(sprintf "INSERT INTO sent SELECT jobqueue_enqueue_many('work', array_fill('{\"do\": \"nothing\"}'::jsonb, ARRAY[$n]), queue => '%s', priority => %d, keys => %s)",
			pick(load_queues()), int rand 3,
			pick('NULL', "array_fill('k0'::text, ARRAY[$n])", "ARRAY(SELECT 'f' || i FROM generate_series(1, $n) i)", "ARRAY(SELECT 'f' || i % 20 FROM generate_series(1, $n) i)"));
	} ],
	'slots taken' => [ 2, sub {
		beside("SET max_parallel_workers_per_gather = 16;\nSET parallel_setup_cost = 0;\nSET parallel_tuple_cost = 0;\nSET min_parallel_table_scan_size = 0;\nSELECT count(*) FROM wide WHERE i % 10 > 0 OR pg_sleep(" . rand(0.02) . ') IS NOT NULL');
	} ],
	'clock' => [ $has_clock ? 4 : 0, sub {
		my $to = pick(
			'NULL', 'NULL',
			"clock_timestamp() + interval '" . (rand 5) . " s'",
			"clock_timestamp() - interval '" . (rand 5) . " s'",
			"clock_timestamp() + interval '" . (rand 300) . " s'",
			"clock_timestamp() - interval '" . (rand 300) . " s'",
			"clock_timestamp() + interval '" . (rand 5) . " h'");
		try("SELECT jq_clock_set($to)");
	} ],
	'pause point' => [ $has_pause ? 12 : 0, sub {
		my $point = pick(@points);
		try("SELECT jq_pause_arm('$point')");
		later(0.05 + rand 0.6, sub { release_point($point); }, 1);
	} ],
	'end at a pause point' => [ $has_pause ? 6 : 0, sub {
		my $point = pick(@points);
		my $how = pick(qw(terminate terminate cancel));
		try("SELECT jq_pause_arm('$point')");
		later(0.05 + rand 0.3, sub {
			release_point($point, "SELECT pg_${how}_backend(jq_pause_caught('$point')); ");
		}, 1);
	} ],
	'kill at a pause point' => [ $has_pause ? 0.8 : 0, sub {
		my $point = pick(@points);
		try("SELECT jq_pause_arm('$point')");
		later(0.05 + rand 0.3, sub {
			my $pid = ask("SELECT jq_pause_caught('$point')") // '';
			let_go();
			kill('KILL', $pid) if $pid =~ /^\d+$/;
			usleep(20_000);
			wait_up();
			release_point($point);
		}, 1);
	} ],
	'disk full' => [ $small ? 1.5 : 0, sub {
		my $wait = rand 0.8;
		system("dd if=/dev/zero of=$small/ballast bs=64k 2>/dev/null");
		# nor could the server start, should it be recovering from a crash just now
		later($wait, sub { unlink "$small/ballast"; start_if_gone(); }, 1);
	} ],
	'WAL full' => [ @wal ? 0.8 : 0, sub {
		my $end = time + 2;
		let_go();
		system("dd if=/dev/zero of=$small_wal/ballast bs=64k 2>/dev/null");
		# segments that are there already are filled first; then all ends
		1 while time < $end && defined try("SELECT pg_logical_emit_message(false, '', repeat('x', 900000)) IS NULL");
		usleep(rand(500_000));
		unlink "$small_wal/ballast";
		wait_up_or_start();
	} ],
);

# each kind as often as it weighs, in an order that a seed finds again
my @kinds;
foreach my $kind (sort keys %faults)
{
	push @kinds, ($kind) x int($faults{$kind}[0] * 20 + 0.5) if $kind =~ /$only/;
}

# ---- the log -------------------------------------------------------------------------

# Errors of the server's own (class XX), but those that PostgreSQL has for what is
# done to tables at the same time, and for parallel queries whose leader has gone,
# and warnings that are not known.
my $known_error = qr/tuple concurrently (?:updated|deleted)|could not attach to per-session DSM segment|could not open relation with OID|cache lookup failed for index|cannot reindex invalid index|could not send data to client: Bad file descriptor/;
my $known_warning = qr/terminating connection because of (?:crash of another|unexpected postmaster)|no background worker slot|there is no transaction in progress|there is already a transaction|you don't own a lock|has not locked|is dead: the server crashed|service ".*" has failed|could not be started|canceling (?:the )?wait for synchronous|did not (?:end|stop)|there is no active transaction|skipping .* --- |crashed twice|more queues (?:have settings|and roles)|cannot reindex invalid index|skipping reindex of invalid index|is not a PostgreSQL (?:backend|server) process|could not send signal to process \d+: No such process/;

sub odd_lines
{
	my ($text) = @_;
	my @odd;

	push @odd, bad_lines($text) || ();
	push @odd, grep { !/$known_error/ } $text =~ /^(.* XX\d\d\d .*)$/mg;
	push @odd, grep { !/$known_warning/ } $text =~ /^(.* WARNING:  .*)$/mg;
	return join "\n", @odd;
}

my @violations;
my %orphan;		# processes that ended in a parallel query, without a postmaster
my %no_space;	# those that ended as there was no room for WAL

# What came into the log; what is wrong is told at once, with the number of the
# fault.
sub read_log
{
	foreach my $l (@logs)
	{
		open my $fh, '<', $l->[0] or next;
		seek $fh, $l->[1], 0;
		local $/;
		my $text = <$fh> // '';
		# whole lines
		$text =~ s/[^\n]*\z//;
		$l->[1] += length $text;
		# a fault of PostgreSQL's: when the postmaster was killed, the leader of a
		# parallel query does not get to the end of its transaction, and the last
		# functions of the process expect that it did
		$orphan{$_} = 1 foreach $text =~ /\[(\d+)\].*postmaster exited during a parallel transaction$/mg;
		$text =~ s/^TRAP:(.*pgstat.*PID: (\d+)\))$/$orphan{$2} ? $1 : $&/gme;
		$text =~ s/^.*\[(\d+)\] .*(?:LLVMJitContext in use count|Abort(?:Sub)?Transaction while in ABORT state).*\n/$orphan{$1} ? '' : $&/gme;
		# likewise who has committed, and waits for the checkpointer to take files that
		# are to be removed
		$text =~ s/^.*(?:AbortTransaction while in COMMIT state|cannot abort transaction \d+, it was already committed).*\n//gm
		  if $text =~ /unexpected postmaster exit|postmaster exited/;
		# who finds no room for WAL ends, and the server starts anew
		$no_space{$_} = 1 foreach $text =~ /\[(\d+)\] .*PANIC: .*No space left on device(?: at character \d+)?$/mg;
		$text =~ s/PANIC(: .*No space left on device(?: at character \d+)?)$/panic$1/mg;
		$text =~ s/(\(PID (\d+)\) was terminated by) signal 6/$no_space{$2} ? "$1 no space" : $&/ge;
		$log .= $text;
		my $odd = odd_lines($text);
		if ($odd ne '')
		{
			diag "seed $seed, $last:\n$odd";
			push @violations, "$last: $odd";
		}
	}
}

# ---- rounds --------------------------------------------------------------------------

my ($number, $total, $begin) = (0, 0, time);
my %total;
my $room = $most || $only ? undef : room();

# all as it was, and nobody does anything but the jobs that are left
sub lift
{
	undo_what_is_due(1);
	unlink "$small/ballast" if $small;
	unlink "$small_wal/ballast" if $small_wal;
	waitpid($_, 0) foreach splice @beside;
	wait_up();
	stop_clients();
	# what they have left prepared has locked the tables
	end_prepared() while sql('SELECT count(*) FROM pg_prepared_xacts') > 0;
	sql('DROP TRIGGER IF EXISTS looks_on ON jobqueue_job; DROP INDEX IF EXISTS chaos_index; ALTER SYSTEM RESET ALL');
	sql('ALTER TABLE effects DROP COLUMN IF EXISTS chaos; ALTER TABLE sent DROP COLUMN IF EXISTS chaos');
	sql('SELECT pg_reload_conf()');
	sql('SELECT jq_clock_set(NULL)') if $has_clock;
	# what REINDEX CONCURRENTLY left behind when it was interrupted
	my $left = sql("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid AND indexrelid::regclass::text LIKE '%ccnew%' OR indexrelid::regclass::text LIKE '%ccold%'");
	sql("DROP INDEX IF EXISTS $_") foreach split /\n/, $left;
}

sub acknowledged
{
	my @acks;
	foreach my $file (glob "$PostgreSQL::Test::Utils::log_path/053_chaos_client_storm.log")
	{
		push @acks, slurp_file($file) =~ /^\s*ACK (\d+)$/mg;
		open my $empty, '>', $file;
	}
	return unless @acks;
	none('SELECT x FROM unnest(ARRAY[' . join(',', @acks) . ']::bigint[]) x EXCEPT SELECT id FROM sent', 'what was acknowledged is there (' . @acks . ')');
}

# Of each job in the table memory knows something, if it has a lane for it.  Of
# what has been deleted it may know for a while.  Numbers of keys that have more
# jobs than memory keeps are not exact.
sub memory_knows_all
{
	return unless sql("SELECT jobqueue_quiesce('5 s')") eq 't';
	my $knows = eval { wait_for(<<'END'); 1 };
SELECT NOT bool_or(estimated) AND sum(ready + scheduled + blocked + running + held) >=
	(SELECT count(*) FROM jobqueue_job) -
	(SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM jobqueue_job WHERE key IS NOT NULL GROUP BY key HAVING count(*) > 1) k)
	FROM jobqueue_status
END
	ok($knows, 'views of memory know all jobs of the table');
	diag sql(<<'END') unless $knows;
SELECT queue, s.*, t.n FROM (SELECT queue, estimated, ready, scheduled, blocked, running, held FROM jobqueue_status) s
	FULL JOIN (SELECT queue, count(*) AS n FROM jobqueue_job GROUP BY queue) t USING (queue)
END
	sql('SELECT jobqueue_resume()');
}

sub check_schedules
{
	none("SELECT id, count(*) FROM ticks GROUP BY id HAVING count(*) > 1", 'no job of a schedule was completed twice');
	none(<<'END', 'no instant of a schedule fired twice');
SELECT schedule, run, count(DISTINCT job) FROM fired JOIN jobqueue_schedule s ON s.id = schedule
WHERE run = date_trunc('second', run) AND s.name <> 'interval' GROUP BY 1, 2 HAVING count(DISTINCT job) > 1
END
	none(<<'END', 'no job of a schedule was lost');
SELECT job FROM fired f WHERE NOT EXISTS (SELECT FROM ticks WHERE id = job)
	AND NOT EXISTS (SELECT FROM jobqueue_archive WHERE id = job)
	AND NOT EXISTS (SELECT FROM left_history WHERE id = job)
END
}

# the next round begins with empty tables
sub forget_round
{
	sql('TRUNCATE sent, posted, effects, handled, tokens, was_told, answered, left_history, fired, ticks, ran');
	sql('DELETE FROM jobqueue_archive; TRUNCATE left_history');
	forget_faults();
	$log = '';
	@logs = ($logs[-1]);
}

@logs = ([ node()->logfile, -s node()->logfile ]);

my $round = 0;

while (!$round || (time < $begin + $seconds && (!$most || $number < $most)))
{
	my $from = $number + 1;
	$round++;
	property "round $round, seed $seed" => sub {
		my $end = time + $round_seconds;

		configure_load();
		schedules();
		start_clients(@who);
		while (time < $end && (!$most || $number < $most))
		{
			my $kind;

			($number, $kind) = next_fault(@kinds);
			$last = "fault $number ($kind)";
			my $before = time;
			$faults{$kind}[1]->();
			$total{$kind} //= [ 0, 0 ];
			$total{$kind}[0]++;
			$total{$kind}[1] += time - $before;
			undo_what_is_due();
			# some come close together
			next if $number % 3;
			read_log();
			reap();
			revive_clients();
			end_prepared() if $number % 60 == 0;
			usleep(rand(40_000));
		}
		lift();
		$last = "faults $from to $number";
		none(unique_faults(), "seed $seed, $last: the locks of unique keys are those of the jobs");
		sql("SELECT jobqueue_schedule_pause(name) FROM jobqueue_schedules");
		memory_knows_all() if $ENV{JQ_SECONDS} && $round % 2 && $max_lanes > 16;
			unless (eval { settle(); 1 })
		{
			my $error = $@;

			# to be looked at
			sleep 1 while $ENV{JQ_STAY} && -e $ENV{JQ_STAY};
			die $error;
		}
		read_log();
		check($log);
		acknowledged();
		check_schedules();
		is(join("\n", splice @violations), '', "seed $seed, $last: nothing odd in the log");
		sql("SELECT jobqueue_stop_service(name) FROM jobqueue_services; SELECT jobqueue_unschedule(name) FROM jobqueue_schedules");
		wait_drained();
		forget_round();
		diag sprintf '%d faults in %.0f s', $number, time - $begin if $ENV{JQ_SECONDS};
	};
	last if !Test::More->builder->is_passing;
}

property 'whatever happened, there is room for as much as before' => sub {
	is(room(), $room, 'claims, waits');
} if defined $room && Test::More->builder->is_passing;

diag sprintf 'seed %d: %d faults of %d kinds in %d rounds, %.0f s, %.0f a minute', $seed, $number, scalar keys %total, $round, time - $begin, $number * 60 / (time - $begin);
note sprintf '%-25s %5d, %.3f s each', $_, $total{$_}[0], $total{$_}[1] / $total{$_}[0] foreach sort keys %total;
node()->stop('immediate');
done_testing();
