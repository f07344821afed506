# The consumers of test/examples, as a user would copy them: what they work off is
# done exactly once, whatever becomes of them.

use strict;
use warnings;
use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use POSIX ();
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('consumers');
my $examples = abs_path("$FindBin::RealBin/../examples");

# what their jobs do: leave a trace; wait at a gate, or fail, the first time
sql(<<'END');
CREATE TABLE delivered (job bigint, attempt int, args jsonb);
CREATE FUNCTION deliver(job bigint, attempt int, args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO delivered VALUES (job, attempt, args);
	IF attempt = 1 AND args ? 'gate' THEN
		PERFORM pg_advisory_xact_lock_shared((args->>'gate')::bigint);
	END IF;
	IF attempt = 1 AND args ? 'fail' THEN
		RAISE EXCEPTION 'no such address: %', args->>'fail';
	END IF;
	RETURN '{"sent": true}';
END $$;
SELECT jobqueue_configure(queue, backoff => 'constant', backoff_base => '1 ms')
FROM unnest('{work,kill,stop}'::text[]) queue;
END

# name => how it is run, and what shows that it can be
my $python = $ENV{JQ_PYTHON} || (-x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3');
my $nodejs = $ENV{JQ_NODE} || 'node';
my %consumers = (
	python => {
		run => [ $python, "$examples/consumer.py" ],
		needs => [ $python, '-c', 'import psycopg' ],
		missing => "psycopg 3 of $python (Debian: python3-psycopg)",
	},
	node => {
		run => [ $nodejs, "$examples/consumer.js" ],
		needs => [ $nodejs, '-e', q{require('pg')} ],
		missing => "Node.js with the package pg (npm install pg, and its directory in NODE_PATH)",
	},
	bash => {
		run => [ 'bash', "$examples/consumer.sh" ],
		needs => [ 'bash', '-c', 'psql --version' ],
		missing => 'bash and psql',
		leased => 1,
	});

my @running;

# start NAME, QUEUE [, LEASE]: in a process group of its own
sub start
{
	my ($name, @args) = @_;
	my $c = $consumers{$name};
	my $log = $node->basedir . "/$name.log";
	local %ENV = $node->_get_env(PGAPPNAME => "consumer $name",
		PGDATABASE => 'postgres', PGUSER => superuser(), WAIT => '500 ms');

	# bash has leases in any case: short ones, as somebody waits for their end
	@args = ($args[0], '3 s') if $c->{leased} && @args == 1;
	my $pid = fork();
	die "fork: $!\n" unless defined $pid;
	if ($pid == 0)
	{
		setpgrp(0, 0);
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', $log;
		open STDERR, '>>', $log;
		{ exec @{ $c->{run} }, @args };
		POSIX::_exit(127);
	}
	push @running, $pid;
	return $pid;
}

# its exit status
sub stop
{
	my ($pid) = @_;
	kill('TERM', $pid);
	return ended($pid);
}

sub ended
{
	my ($pid) = @_;
	waitpid($pid, 0);
	@running = grep { $_ != $pid } @running;
	return $?;
}

# with whatever it has started
sub kill_all
{
	my ($pid) = @_;
	kill('KILL', -$pid);
	ended($pid);
}

END
{
	my $status = $?;
	kill_all($_) foreach @running;
	$? = $status;
}

sub put
{
	my ($queue, $args, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, '$args', queue => '$queue'$list)");
}

sub done_exactly_once
{
	my ($n) = @_;
	wait_drained();
	is(sql('SELECT count(*) || \' \' || count(DISTINCT job) FROM delivered'), "$n $n", 'each job was done, and none twice');
	sql('TRUNCATE delivered');
}

# its claims, by queue: a pid, or a lease
sub wait_claims
{
	my ($queue, $n) = @_;
	wait_for("SELECT count(*) = $n FROM jobqueue_running WHERE queue = '$queue'");
}

# a program that is not there is an exception
sub can_run
{
	my (@command) = @_;
	return eval { IPC::Run::run(\@command, '<', \undef, '>', \my $out, '2>', \my $err) };
}

foreach my $name (sort keys %consumers)
{
	my $c = $consumers{$name};
	if (!can_run(@{ $c->{needs} }))
	{
	  SKIP:
		{
			skip "$name: there is no $c->{missing}", 1;
		}
		next;
	}

	foreach my $lease ($c->{leased} ? ('30 s') : (undef, '30 s'))
	{
		my @lease = defined $lease ? $lease : ();
		my $mode = defined $lease ? 'leases' : 'its session';

		property "$name, by $mode: three of them do each job exactly once" => sub {
			my $n = $c->{leased} ? 20 : 200;
			my @pids = map { start($name, 'work', @lease) } 1 .. 3;
			sql("SELECT count(jobqueue_enqueue(NULL, jsonb_build_object('n', i), queue => 'work', key => CASE WHEN i % 4 = 0 THEN 'k' END)) FROM generate_series(1, $n) i");
			my $id = put('work', '{"fail": "nobody@example.org"}', keep => '1 h');
			done_exactly_once($n + 1);
			is(sql("SELECT state || ': ' || (errors->0->>'error') FROM jobqueue_jobs WHERE id = $id") =~ /^completed: .*no such address: nobody\@example.org/s, 1, 'an exception is the error of a failed attempt');
			kill('TERM', @pids);
			is(ended($_), 0, 'SIGTERM ends it') foreach @pids;
			sql('DELETE FROM jobqueue_archive');
		};

		property "$name, by $mode: SIGTERM finishes what is being done, and gives back the rest" => sub {
			my $gate = close_gate(1);
			my $batch = $c->{leased} ? 1 : 3;
			my $first = put('stop', '{"gate": 1}');
			put('stop', '{}') foreach 2 .. $batch;
			my $pid = start($name, 'stop', @lease);
			wait_at_gate();
			wait_claims('stop', $batch);
			kill('TERM', $pid);
			open_gate($gate);
			is(ended($pid), 0, 'it has ended');
			is(sql('SELECT string_agg(job::text, \' \') FROM delivered'), $first, 'the one is done');
			wait_claims('stop', 0);
			is(sql('SELECT count(*) || \' \' || coalesce(max(attempt), 0) FROM jobqueue_job'), ($batch - 1) . ' 0', 'the others are there, and nothing was charged');
			is(sql('SELECT count(*) FROM jobqueue_lease'), '0', 'no lease is left');
			$pid = start($name, 'stop', @lease);
			done_exactly_once($batch);
			is(stop($pid), 0, 'SIGTERM while it waits');
		};

		property "$name, by $mode: it reconnects" => sub {
			my $n = 10;
			# by its session alone are jobs back at once
			my $pid = start($name, 'work', defined $lease ? '3 s' : ());
			my $gate = close_gate(1);
			my $id = put('work', '{"gate": 1}');
			wait_at_gate();
			sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'consumer $name'");
			open_gate($gate);
			put('work', '{}') foreach 1 .. $n;
			done_exactly_once($n + 1);
			$gate->quit;
			my $offset = -s $node->logfile;
			$node->restart;
			put('work', '{}') foreach 1 .. $n;
			done_exactly_once($n);
			is(stop($pid), 0, 'SIGTERM ends it');
		};
	}

	# by the session's end, or that of its lease
	property "$name: kill -9 gives its job and its key to the next one" => sub {
		my $gate = close_gate(1);
		my $victim = start($name, 'kill');
		my $id = put('kill', '{"gate": 1}', key => 'k');
		wait_at_gate();
		my $other = put('kill', '{}', key => 'k');
		my $next = start($name, 'kill');
		wait_for("SELECT state = 'blocked' FROM jobqueue_jobs WHERE id = $other");
		kill_all($victim);
		wait_drained();
		is(sql("SELECT string_agg(job || ':' || attempt, ' ' ORDER BY job) FROM delivered"), "$id:2 $other:1", 'both are done, the first again');
		is(sql('SELECT count(*) FROM jobqueue_keys'), '0', 'the key is free');
		open_gate($gate);
		sql('TRUNCATE delivered');
		is(stop($next), 0, 'SIGTERM ends it');
	};

	property "$name: a lease is extended as long as the work takes" => sub {
		my $gate = close_gate(1);
		my $pid = start($name, 'work', '6 s');
		my $id = put('work', '{"gate": 1}', key => 'long');
		wait_at_gate();
		my $until = sql("SELECT leased_until FROM jobqueue_running WHERE id = $id");
		wait_for("SELECT leased_until > '$until'::timestamptz + '2 s' FROM jobqueue_running WHERE id = $id");
		open_gate($gate);
		wait_drained();
		is(sql('SELECT string_agg(job || \':\' || attempt, \' \') FROM delivered'), "$id:1", 'done at the first attempt');
		sql('TRUNCATE delivered');
		is(stop($pid), 0, 'SIGTERM ends it');
	};
}

property 'completing the former and fetching the next can be one transaction' => sub {
	my ($first, $second, $same) = map { put('chain', '{}', key => $_) } qw(a b a);
	my $s = session();
	my $fetch = "SELECT coalesce(string_agg(id || ' ' || token, ' '), '') FROM jobqueue_fetch('chain', lease => '1 h')";
	my ($id, $token) = split / /, $s->query_safe($fetch);
	is($id, $first, 'fetched');
	$s->query_safe("BEGIN; SELECT jobqueue_complete($id, token => '$token')");
	my ($next) = split / /, $s->query_safe($fetch);
	is($next, $second, 'the next one, of another key');
	is($s->query_safe($fetch), '', 'one of the same key is not there yet');
	$s->query_safe('ROLLBACK');
	is(sql("SELECT string_agg(id::text, ' ') FROM jobqueue_running"), $first, 'after a rollback the former is still ours, the next not');
	$s->query_safe("BEGIN; SELECT jobqueue_complete($id, token => '$token')");
	($next, $token) = split / /, $s->query_safe($fetch);
	$s->query_safe('COMMIT');
	is(sql("SELECT string_agg(id::text, ' ') FROM jobqueue_running"), $second, 'after the commit the next is ours');
	($id) = split / /, $s->query_safe($fetch);
	is($id, $same, 'and the key is free');
	sql("SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease");
	$s->quit;
	sql('TRUNCATE delivered');
};

# whoever is gone gets none
property 'a consumer killed while it waits is not given a job' => sub {
	my $out = '';
	my $s = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-c', "SELECT id FROM jobqueue_fetch('dead', wait => '1 min')" ], '<', \undef, '>', \$out);
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND query LIKE '%dead%' AND backend_type = 'client backend' AND pid <> pg_backend_pid()");
	my $pid = sql("SELECT pid FROM pg_stat_activity WHERE query LIKE '%dead%' AND pid <> pg_backend_pid()");
	$s->kill_kill(grace => 0);
	wait_gone($pid);
	my $id = put('dead', '{}');
	is(sql(q{SELECT id || ' ' || attempt FROM jobqueue_fetch('dead')}), "$id 1", 'the next one has it, at its first attempt');
	sql("SELECT jobqueue_cancel($id)");
};

done_testing();
