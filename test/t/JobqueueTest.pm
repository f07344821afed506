# JobqueueTest: what the TAP files share.
#
# A file makes one server with new_node(); the functions here talk to that one
# unless told otherwise. Each property is a subtest that survives an exception,
# so that one failure does not hide the others.
#
# Nothing here or in the files sleeps to synchronise: jobs stop at gates
# (advisory locks) or at pause points of a test build, and everything else is
# polled for.

package JobqueueTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

our @EXPORT = qw(
  new_node node superuser property paused_property
  sql sql_as sql_error set_conf wait_for wait_drained wait_state wait_quiet
  memory_empties enqueue ran forget session send_sql close_gate open_gate
  wait_at_gate arm caught release start_pgbench crash_offset no_standby
  wait_crash_restart kill_hard wait_gone
);

our $node;
our $superuser;
our $has_pause;
our $tidy_db = 'postgres';    # where tidy_up() looks
my @armed;
my @sessions;

# The functions that most files' jobs use, in schema public of each database.
my $common_sql = <<'END';
CREATE TABLE ran (
	n bigint GENERATED ALWAYS AS IDENTITY,
	what text,
	job bigint DEFAULT (jobqueue_current()).id,
	attempt int DEFAULT (jobqueue_current()).attempt,
	role name DEFAULT current_user,
	pid int DEFAULT pg_backend_pid(),
	at timestamptz DEFAULT clock_timestamp());
GRANT SELECT, INSERT ON ran TO PUBLIC;

-- leaves a trace
CREATE FUNCTION note(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO ran (what) VALUES (args->>'what') $$;

-- waits until the gate is open, then leaves a trace
CREATE FUNCTION gate(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared((args->>'gate')::bigint);
	INSERT INTO ran (what) VALUES (coalesce(args->>'what', 'gate'));
END $$;

CREATE FUNCTION fail(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ran (what) VALUES (args->>'what');
	RAISE EXCEPTION 'failed on purpose';
END $$;

CREATE FUNCTION hang() RETURNS void LANGUAGE sql AS
	$$ SELECT pg_sleep(3600) $$;
END

# new_node(name, conf => '...', extension => 1, streaming => 0, initdb => [ options ]):
# an initialised and started server with the extension in database postgres.
sub new_node
{
	my ($name, %opt) = @_;

	$node = PostgreSQL::Test::Cluster->new($name);
	$node->init(
		allows_streaming => $opt{streaming} ? 1 : 0,
		($opt{initdb} ? (extra => $opt{initdb}) : ()));
	$node->append_conf('postgresql.conf', <<END);
shared_preload_libraries = 'jobqueue'
max_worker_processes = 16
max_prepared_transactions = 10
jobqueue.max_workers = 8
restart_after_crash = on
lc_messages = 'C'
END
	$node->append_conf('postgresql.conf', $opt{conf}) if $opt{conf};
	$node->start;
	$superuser = $node->safe_psql('postgres', 'SELECT current_user');
	add_database('postgres') if $opt{extension} // 1;
	if ($ENV{JQ_DISCARD_CACHES})
	{
		$node->safe_psql('postgres', 'ALTER SYSTEM SET debug_discard_caches = 1');
		$node->reload;
	}
	return $node;
}

# for test/coverage.sh: what is told to quit at once does not write its counters
END
{
	local $?;
	eval { $node->stop('fast') } if $ENV{JQ_STOP_NORMALLY} && $node;
}

sub node { return $node; }
sub superuser { return $superuser; }

# the extension (of a version) and the common functions in another database
sub add_database
{
	my ($db, $version) = @_;
	my $of = $version ? " VERSION '$version'" : '';
	my $pause = <<'END';
CREATE FUNCTION jq_pause_arm(text) RETURNS void
	AS '$libdir/jobqueue', 'jq_pause_arm' LANGUAGE C STRICT;
CREATE FUNCTION jq_pause_caught(text) RETURNS int
	AS '$libdir/jobqueue', 'jq_pause_caught' LANGUAGE C STRICT;
CREATE FUNCTION jq_pause_release(text) RETURNS bool
	AS '$libdir/jobqueue', 'jq_pause_release' LANGUAGE C STRICT;
END

	# it would take minutes
	my $keep = $ENV{JQ_DISCARD_CACHES} ? 'SET debug_discard_caches = 0;' : '';
	$node->safe_psql($db, "$keep CREATE EXTENSION jobqueue$of");
	$node->safe_psql($db, $common_sql);
	$has_pause = $node->psql($db, $pause) == 0;
}

# property NAME, CODE: a subtest; an exception is a failure of it.
sub property
{
	my ($name, $code) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;

	subtest $name => sub {
		my $ok = eval { $code->(); 1 };
		my $error = $@;

		fail("exception: $error") unless $ok;
		tidy_up(!$ok || !Test::More->builder->is_passing);
		note sprintf('%s: %.1f s', $name, time - $begin);
	};
}

# the same, for what needs pause points
sub paused_property
{
	my ($name, $code) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return property($name, $code) if $has_pause;
  SKIP:
	{
		skip "$name: no pause points in this build", 1;
	}
}

# Let go what a property has left; after a failure also what is in the way of
# the next one, but for sessions that say that they are for the whole file.
sub tidy_up
{
	my ($failed) = @_;

	foreach my $point (splice @armed)
	{
		$node->psql('postgres', "SELECT jq_pause_release('$point')");
	}
	diag_state() if $failed;
	$node->psql('postgres', <<'END') if $failed;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
	AND application_name <> 'whole file'
END
	foreach my $s (splice @sessions)
	{
		eval { $s->quit; };
	}
	return unless $failed;
	# what they hold nobody else would get
	my (undef, $gids) = $node->psql($tidy_db,
		'SELECT gid FROM pg_prepared_xacts WHERE database = current_database()');
	foreach my $gid (split /\n/, $gids // '')
	{
		$node->psql($tidy_db, "ROLLBACK PREPARED \$gid\$$gid\$gid\$");
	}
	foreach my $query (
		'SELECT jobqueue_resume()',
		'SELECT jobqueue_cancel(id) FROM jobqueue_job',
		'DELETE FROM jobqueue_job', 'DELETE FROM jobqueue_archive',
		'TRUNCATE ran')
	{
		$node->psql($tidy_db, $query);
	}
	eval { wait_for('SELECT count(*) = 0 FROM jobqueue_running', 't', $tidy_db); };
}

# what one wants to see of a failure
sub diag_state
{
	my $out;

	foreach my $query (
		'SELECT id, queue, owner, state, command, key, run_at, attempt, pid, errors FROM jobqueue_jobs ORDER BY id DESC LIMIT 10',
		'SELECT queue, ready, scheduled, blocked, running, held, spilled FROM jobqueue_status',
		'SELECT * FROM jobqueue_workers',
		'SELECT id, outcome, attempt, pid, error FROM jobqueue_recent ORDER BY ended_at DESC LIMIT 10',
		"SELECT pid, backend_type, state, wait_event, left(query, 60) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'"
	  )
	{
		$node->psql(
			$tidy_db, $query,
			stdout => \$out,
			on_error_die => 0,
			timeout => 10);
		diag "$query:\n$out\n" if defined $out && $out ne '';
	}
}

# ---- queries ---------------------------------------------------------------

# sql QUERY [, db => , role => ]: its output; an error is an exception
sub sql
{
	my ($query, %opt) = @_;
	my @params = $opt{role} ? (extra_params => [ '-U', $opt{role} ]) : ();

	return $node->safe_psql($opt{db} // 'postgres', $query, @params);
}

sub sql_as
{
	my ($role, $query, %opt) = @_;
	return sql($query, %opt, role => $role);
}

# the error message of a query, '' if there was none
sub sql_error
{
	my ($query, %opt) = @_;
	my ($out, $err);
	my @params = $opt{role} ? (extra_params => [ '-U', $opt{role} ]) : ();

	my $rc = $node->psql(
		$opt{db} // 'postgres', $query,
		stdout => \$out,
		stderr => \$err,
		@params);
	return $rc == 0 ? '' : $err;
}

# set_conf NAME => VALUE, ...: change settings and wait until they hold
sub set_conf
{
	my %conf = @_;

	foreach my $name (sort keys %conf)
	{
		sql(defined $conf{$name}
			? "ALTER SYSTEM SET $name = '$conf{$name}'"
			: "ALTER SYSTEM RESET $name");
	}
	my $before = -s $node->logfile;
	sql('SELECT pg_reload_conf()');
	$node->wait_for_log(qr/received SIGHUP/, $before);
}

# from now on who asks for it waits for a standby that never comes
sub no_standby
{
	set_conf(synchronous_standby_names => 'nobody', synchronous_commit => 'local');
	# the checkpointer tells the sessions, after a while
	my $s = session();
	my $pid = $s->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	my $waits = "FROM pg_stat_activity WHERE pid = $pid AND wait_event = 'SyncRep'";
	do
	{
		send_sql($s, q{SELECT pg_logical_emit_message(true, 'a', 'write')});
		wait_for("SELECT state = 'idle' OR wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid");
	} until (sql("SELECT count(*) $waits") == 1);
	sql("SELECT pg_terminate_backend($pid)");
	wait_gone($pid);
}

# wait_for QUERY [, expected [, db]]: poll until it yields 't' or that
sub wait_for
{
	my ($query, $expected, $db) = @_;

	$node->poll_query_until($db // 'postgres', $query, $expected // 't')
	  or die "waited in vain for: $query\n";
}

# no row left, nobody runs
sub wait_drained
{
	my (%opt) = @_;

	wait_for(
		'SELECT (SELECT count(*) FROM jobqueue_job) = 0 '
		  . 'AND (SELECT count(*) FROM jobqueue_running) = 0',
		't', $opt{db});
}

# wait_state JOB, STATE: as the view shows it; completed jobs without keep are
# in the ring of recent ones only
sub wait_state
{
	my ($job, $state, %opt) = @_;

	wait_for(
		$state eq 'completed'
		? "SELECT count(*) > 0 FROM jobqueue_recent WHERE id = $job AND outcome = 'completed'"
		: "SELECT state FROM jobqueue_jobs WHERE id = $job",
		$state eq 'completed' ? 't' : $state, $opt{db});
}

# Memory knows of no job any more.  It may for a moment after the last row is
# gone: what came twice is dropped by the worker that takes it.
sub memory_empties
{
	my ($what, %opt) = @_;

	wait_for(
		'SELECT coalesce(sum(ready + blocked + running + spilled), 0) = 0 FROM jobqueue_status',
		't', $opt{db});
	pass($what);
}

# Whatever could run before this call has run: a job of the same lane that
# comes last has run, and nothing else does.
sub wait_quiet
{
	my (%opt) = @_;
	my $sentinel = enqueue("note", %opt, what => 'sentinel', priority => 30000);

	wait_for("SELECT count(*) = 1 FROM ran WHERE job = $sentinel",
		't', $opt{db});
	# and its worker has let go of it
	wait_for("SELECT count(*) = 0 FROM jobqueue_running WHERE id = $sentinel",
		't', $opt{db});
	sql("DELETE FROM ran WHERE job = $sentinel", db => $opt{db});
}

# ---- jobs ------------------------------------------------------------------

# enqueue COMMAND, what => , args => (jsonb text), role => , db => , and the
# arguments of jobqueue_enqueue as SQL literals without quotes; returns the id
sub enqueue
{
	my ($command, %opt) = @_;
	my $role = delete $opt{role};
	my $db = delete $opt{db};
	my $what = delete $opt{what};
	my $gate = delete $opt{gate};

	$opt{args} //= sprintf '{%s}',
	  join(', ',
		(defined $what ? qq("what": "$what") : ()),
		(defined $gate ? qq("gate": $gate) : ()))
	  if defined $what || defined $gate;
	my $list = join '', map { my $v = $opt{$_}; $v =~ s/'/''/g; ", $_ => '$v'" }
	  sort keys %opt;
	return sql("SELECT jobqueue_enqueue(\$cmd\$$command\$cmd\$$list)",
		role => $role, db => $db);
}

# what has left a trace, in order, one space between
sub ran
{
	my (%opt) = @_;
	return sql("SELECT coalesce(string_agg(what, ' ' ORDER BY n), '') FROM ran",
		%opt);
}

sub forget
{
	sql('TRUNCATE ran', @_);
}

# ---- sessions and gates ----------------------------------------------------

# a session that goes on: ->query($sql), ->quit
sub session
{
	my (%opt) = @_;
	my $s = $node->background_psql(
		$opt{db} // 'postgres',
		on_error_stop => 0,
		($opt{role} ? (extra_params => [ '-U', $opt{role} ]) : ()));

	$s->set_query_timer_restart;
	push @sessions, $s;
	return $s;
}

# send a query and do not wait for its end; what comes back is seen by the
# session's next query
sub send_sql
{
	my ($s, $query) = @_;
	$s->query_until(qr/sent/, "\\echo sent\n$query;\n");
}

# gates are advisory locks; a job that calls gate() waits while one is closed
sub close_gate
{
	my ($number, %opt) = @_;
	my $s = session(%opt);

	$s->query_safe("SELECT pg_advisory_lock($number)");
	return $s;
}

sub open_gate
{
	my ($s) = @_;
	$s->query_safe('SELECT pg_advisory_unlock_all()');
}

# until so many jobs wait at a gate
sub wait_at_gate
{
	my ($count, %opt) = @_;
	wait_for(
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
		$count // 1, $opt{db});
}

# ---- pause points ----------------------------------------------------------

sub arm
{
	my ($point) = @_;
	push @armed, $point;
	sql("SELECT jq_pause_arm('$point')");
}

# wait until a process has stopped there; its pid
sub caught
{
	my ($point) = @_;
	wait_for("SELECT jq_pause_caught('$point') IS NOT NULL");
	return sql("SELECT jq_pause_caught('$point')");
}

sub release
{
	my ($point) = @_;
	@armed = grep { $_ ne $point } @armed;
	sql("SELECT jq_pause_release('$point')");
}

# ---- load and crashes ------------------------------------------------------

my $script_count = 0;

# start_pgbench SCRIPT, clients => , transactions => , role => : an IPC::Run
# harness; ->finish waits for its end, ->{out} is what it said
sub start_pgbench
{
	my ($script, %opt) = @_;
	my $file = sprintf '%s/pgbench_%d.sql', $node->basedir, ++$script_count;
	my $out = '';

	append_to_file($file, $script);
	local %ENV = $node->_get_env(PGAPPNAME => 'pgbench');
	my $h = IPC::Run::start(
		[
			$node->installed_command('pgbench'), '-n',
			'-c', $opt{clients} // 4,
			'-j', $opt{threads} // 1,
			'-t', $opt{transactions} // 1000,
			'-f', $file,
			($opt{role} ? ('-U', $opt{role}) : ()),
			@{ $opt{options} // [] },
			$opt{db} // 'postgres'
		],
		'<', \undef, '>', \$out, '2>&1');
	$h->{out} = \$out;
	return $h;
}

# crash_offset, then what crashes the server, then wait_crash_restart(offset)
sub crash_offset
{
	return -s $node->logfile;
}

# kill -9 of a process that is there
sub kill_hard
{
	my ($pid) = @_;

	die "no process to kill\n" unless $pid =~ /^\d+$/;
	kill('KILL', $pid) or die "process $pid has gone by itself\n";
}

# until a server process has ended
sub wait_gone
{
	my ($pid) = @_;
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
}

sub wait_crash_restart
{
	my ($offset) = @_;
	$node->wait_for_log(qr/database system is ready to accept connections/,
		$offset);
}

1;
