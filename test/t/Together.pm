# Together: what the tests of everything at once share: choices that a seed
# decides, clients that do what a generator says, faults that befall processes.
#
# A seed repeats the choices, not the timing.  Each client and each fault has a
# sequence of its own, so that what came at another time does not change what
# comes next.

package Together;

use strict;
use warnings;

use Digest::MD5 'md5';
use Exporter 'import';
use IO::Handle;
use IPC::Open2;
use JobqueueTest;
use POSIX ':sys_wait_h';
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(
  seed_is choices pick chance some_time clients_are start_clients
  revive_clients stop_clients clients ask next_fault process_fault a_pid done_faults
  forget_faults none end_prepared bad_lines end_unique_circles unique_faults
);

our $bad_log = 'VIOLATION|TRAP:|PANIC|signal 11|signal 6|stuck spinlock|reference leak|corrupted';

# ---- choices -----------------------------------------------------------------

my $seed = 0;

sub seed_is
{
	$seed = shift;
	note "seed $seed";
	srand($seed);
}

# what is chosen from here on depends on the seed and on these words only
sub choices
{
	srand(unpack('L', md5("$seed @_")));
}

sub pick { return $_[ int rand @_ ]; }
sub chance { return rand() < $_[0]; }
sub some_time { return sprintf "'%.3f s'", rand($_[0]); }

# ---- clients -----------------------------------------------------------------

my @clients;
my $generator;
my $statements;
my $first;
my $files = 0;

# clients_are SUB [, statements => , first => {}]: what a client of that name does
# next, how often, and before all else
sub clients_are
{
	my ($sub, %opt) = @_;

	$generator = $sub;
	$statements = $opt{statements} // 1000;
	$first = $opt{first} // {};
}

sub clients { return @clients; }

sub start_client
{
	my ($c) = @_;
	my $who = $c->{who};
	my $file = sprintf '%s/stream_%d.sql', node()->basedir, ++$files;
	(my $test = $0) =~ s{.*/|\.pl$}{}g;
	my $log = "$PostgreSQL::Test::Utils::log_path/${test}_client_$who.log";

	choices('client', $c->{slot}, ++$c->{times});
	# what the server chooses for it
	my $text = 'SELECT setseed(' . rand() . ");\n" . ($first->{$who} // '');
	$text .= $generator->($who) foreach 1 .. $statements;
	append_to_file($file, $text);
	# the name is that of a sender
	local %ENV = node()->_get_env(PGAPPNAME => "client $who $files");
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', $log;
		open STDERR, '>&', \*STDOUT;
		exec(node()->installed_command('psql'), '-X', '-q', '-a', '-f', $file,
			'-U', ($who =~ /^r[12]$/ ? $who : superuser()), 'postgres')
		  or POSIX::_exit(1);
	}
	unlink $c->{file} if $c->{file};
	$c->{file} = $file;
	$c->{pid} = $pid;
}

my %slots;

sub start_clients
{
	my @who = @_;
	my $slot = 0;

	@clients = map { $slots{ $slot++ . $_ } //= { who => $_, slot => "$_ $slot", times => 0 } } @who;
	start_client($_) foreach @clients;
}

# those whose server process has gone come again
sub revive_clients
{
	foreach my $c (@clients)
	{
		next if waitpid($c->{pid}, WNOHANG) == 0;
		start_client($c);
	}
}

sub stop_clients
{
	foreach my $c (@clients)
	{
		kill('KILL', $c->{pid});
		waitpid($c->{pid}, 0);
	}
	@clients = ();
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'client %'");
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'client %'");
}

END
{
	my $status = $?;
	kill('KILL', $_->{pid}) foreach @clients;
	hang_up();
	$? = $status;
}

# ---- a session that is asked much, and comes again by itself ------------------------

my ($to, $from, $asked);

sub hang_up
{
	return unless $asked;
	kill('KILL', $asked);
	close $to;
	close $from;
	waitpid($asked, 0);
	$asked = undef;
}

sub call
{
	(my $test = $0) =~ s{.*/|\.pl$}{}g;
	local %ENV = node()->_get_env(PGAPPNAME => 'asks', PGOPTIONS => '-c lock_timeout=300 -c statement_timeout=5000 -c client_min_messages=error');

	open my $log, '>>', "$PostgreSQL::Test::Utils::log_path/${test}_asked.log" or die "log: $!";
	open my $stderr, '>&', \*STDERR or die "stderr: $!";
	open STDERR, '>&', $log;
	$asked = open2($from, $to, node()->installed_command('psql'), '-X', '-q', '-A', '-t', '-f', '-',
		'-U', superuser(), 'postgres');
	open STDERR, '>&', $stderr;
	$to->autoflush(1);
}

# undef: the session has ended, or somebody holds it up
sub answer
{
	my $out = '';
	my $end = time + 3;

	until ($out =~ s/^DONE\n\z//m)
	{
		my $ready = '';
		my $left = $end - time;

		vec($ready, fileno($from), 1) = 1;
		return undef if select($ready, undef, undef, $left > 0 ? $left : 0) <= 0;
		return undef unless sysread($from, $out, 4096, length $out);
	}
	chomp $out;
	return $out;
}

# ask SQL: what it says, without the errors; undef if there is no server.  What
# has to wait for a lock is given up soon.
sub ask
{
	my ($text) = @_;
	local $SIG{PIPE} = 'IGNORE';

	# the session may have ended since, with the server that it was of
	foreach (1 .. 2)
	{
		call() unless $asked;
		print $to "$text;\n\\echo DONE\n";
		my $out = answer();
		return $out if defined $out;
		hang_up();
	}
	return undef;
}

# ---- faults --------------------------------------------------------------------

my %done;
my $number = 0;

sub done_faults
{
	return join ', ', map { "$_ $done{$_}" } sort keys %done;
}

sub forget_faults { %done = (); }

# next_fault KINDS: the number of the next one, and its kind
sub next_fault
{
	choices('fault', ++$number);
	my $fault = pick(@_);

	return ($number, $fault);
}

# one of the processes of that kind
sub a_pid
{
	my ($whom) = @_;
	my $which = $whom eq 'client' ? "application_name LIKE 'client %'"
	  : $whom =~ /^(?:worker|scheduler|launcher)$/ ? "backend_type = 'jobqueue $whom'"
	  : "backend_type = '$whom'";
	my $n = int rand 1000;
	my $out = ask(<<END);
SELECT pid FROM pg_stat_activity WHERE $which ORDER BY pid
OFFSET $n % (SELECT greatest(count(*), 1) FROM pg_stat_activity WHERE $which) LIMIT 1
END
	return defined $out && $out =~ /^\d+$/ ? $out : undef;
}

# "terminate worker", "cancel client", "drop client", "freeze scheduler",
# "kill launcher", "immediate", "fast": the server is there afterwards.  Says
# whether there was somebody.
sub process_fault
{
	my ($fault) = @_;
	my ($how, $whom) = split / /, $fault, 2;

	$done{$fault}++;
	if ($how =~ /^(?:immediate|fast)$/)
	{
		node()->stop($how);
		node()->start;
		return 1;
	}
	return 1 unless $whom;
	if ($how eq 'drop')
	{
		# the program, not its server process
		kill('KILL', pick(@clients)->{pid});
		return 1;
	}
	my $pid = a_pid($whom);

	return 0 unless $pid;
	if ($how eq 'freeze')
	{
		# longer than some leases, and than locks are waited for
		kill('STOP', $pid);
		usleep(rand(600_000));
		kill('CONT', $pid);
	}
	elsif ($how eq 'kill')
	{
		my $offset = crash_offset();

		return 0 unless kill('KILL', $pid);
		wait_crash_restart($offset);
	}
	else
	{
		ask("SELECT pg_${how}_backend($pid)");
	}
	return 1;
}

# ---- what is looked at -----------------------------------------------------------

sub none
{
	my ($query, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql($query), '', $what);
}

# what clients that were killed have left prepared
sub end_prepared
{
	my $out = '';

	node()->psql('postgres', "SELECT gid FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - interval '0.3 s'", stdout => \$out);
	node()->psql('postgres', pick('COMMIT', 'ROLLBACK') . " PREPARED '$_'") foreach split /\n/, $out;
}

# the lines of a log that are never to be there
sub bad_lines
{
	my ($log) = @_;

	# the text of a function is none
	$log =~ s/RAISE LOG.*//g;
	return join "\n", $log =~ /^(.*(?:$bad_log).*)$/mg;
}

# Who has a unique_key and waits for a job that is put off until it has that waits
# for ever.  Such are cancelled, some at a time, as a role may not hold many; how
# many those were.
sub end_unique_circles
{
	return <<'END';
SELECT count(jobqueue_cancel(job)) FROM (SELECT DISTINCT u.job FROM jobqueue_unique u
	JOIN jobqueue_jobs holder ON holder.id = u.job
	JOIN jobqueue_job late ON (late.queue, late.unique_key) = (u.queue, u.unique_key)
	WHERE holder.state = 'blocked' AND late.on_conflict = 'R' LIMIT 20) c
END
}

# What the live rows say about the locks of unique keys, in one snapshot; a line
# for each fault.  What has expired is told by the clock, not by now(): that is
# before the snapshot, and another job may have taken an expired lock in between.
#
#	a job that holds its key to its end		has a lock, unless that has expired
#	a job that holds it until its start		may have given it free already
#	a job that asks at its start, or only
#	keeps others from executing				has none
#	a lock									is that of such a job, has expired, or
#											is one until "expired": that outlives it
sub unique_faults
{
	return <<'END';
SELECT coalesce(string_agg(fault, ', '), '') FROM (
	SELECT format('job %s (%s, %s) has no lock of %s', j.id, j.unique_until, j.on_conflict, j.unique_key) AS fault
	FROM jobqueue_job j
	WHERE unique_until IN ('e', 't') AND on_conflict <> 'R'
	AND (unique_for IS NULL OR enqueued_at + unique_for > clock_timestamp())
	AND NOT EXISTS (SELECT FROM jobqueue_unique u WHERE (u.job, u.queue, u.unique_key, u.unique_until) = (j.id, j.queue, j.unique_key, j.unique_until))
	UNION ALL
	SELECT format('lock of %s (%s) is of job %s', u.unique_key, u.unique_until, u.job)
	FROM jobqueue_unique u
	WHERE unique_until <> 't' AND (expires_at IS NULL OR expires_at > clock_timestamp())
	AND NOT EXISTS (SELECT FROM jobqueue_job j WHERE (u.job, u.queue, u.unique_key, u.unique_until) = (j.id, j.queue, j.unique_key, j.unique_until)
		AND j.on_conflict <> 'R')) f
END
}

1;
