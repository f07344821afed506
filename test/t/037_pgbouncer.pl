# Consumers behind a pooler, PgBouncer: leases work in transaction mode, claims of
# sessions are those of the pooler's.

use strict;
use warnings;
use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } '/usr/sbin', split /:/, $ENV{PATH};
plan skip_all => 'there is no pgbouncer (Debian: pgbouncer)' unless $pgbouncer;

my $node = new_node('pooled');
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $ini = $node->basedir . '/pgbouncer.ini';
my $user = superuser();
my $pooler;

# databases postgres, in transaction mode, and whole, in session mode
append_to_file($node->basedir . '/users.txt', qq("$user" ""\n));
append_to_file($ini, <<END);
[databases]
postgres = host=${\$node->host} port=${\$node->port} pool_mode=transaction
whole = host=${\$node->host} port=${\$node->port} dbname=postgres pool_mode=session

[pgbouncer]
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = ${\$node->basedir}/users.txt
admin_users = $user
logfile = ${\$node->basedir}/pgbouncer.log
default_pool_size = 4
END

# whatever it runs connects through the pooler
sub pooled(&)
{
	my ($code) = @_;
	local $node->{_host} = $dir;
	local $node->{_port} = $port;
	return $code->();
}

sub start_pooler
{
	$pooler = IPC::Run::start([ $pgbouncer, '-q', $ini ], '<', \undef, '>', \my $out, '2>&1');
	# by -c: psql may be gone before it has read its input
	my @probe = ('psql', '-X', '-h', $dir, '-p', $port, '-U', $user, '-c', 'SELECT true', 'postgres');
	my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;
	until (IPC::Run::run(\@probe, '<', \undef, '>', \my $answer, '2>', \my $error))
	{
		die "the pooler does not answer: $error\n" if --$tries <= 0;
		usleep(100_000);
	}
}

# what a client of a pool must not do: leave its server connection as it was
sub forget_servers
{
	pooled { sql('RECONNECT', db => 'pgbouncer') };
}

END
{
	my $status = $?;
	$pooler->kill_kill(grace => 0) if $pooler;
	$? = $status;
}

sub put
{
	my ($args, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("SELECT jobqueue_enqueue(NULL, '$args', queue => 'q'$list)");
}

# a program that is not there is an exception
sub can_run
{
	my (@command) = @_;
	return eval { IPC::Run::run(\@command, '<', \undef, '>', \my $out, '2>', \my $err) };
}

start_pooler();

property 'a lease is completed through another server connection' => sub {
	my $id = put('{}', key => 'k');
	my ($s, $other) = pooled { (session(), session()) };
	my ($got, $token, $pid) = split / /, $s->query_safe("SELECT id || ' ' || token || ' ' || pg_backend_pid() FROM jobqueue_fetch('q', lease => '1 h')");
	is($got, $id, 'fetched');
	# the pooler gives the connection used last to whoever comes first
	is($other->query_safe('BEGIN; SELECT pg_backend_pid()'), $pid, 'another client is in that session now');
	isnt($s->query_safe("SELECT pg_backend_pid() FROM jobqueue_extend($id, '2 h', '$token')"), $pid, 'extended in another one');
	isnt($s->query_safe("SELECT pg_backend_pid() FROM jobqueue_complete($id, NULL, '$token')"), $pid, 'completed in another one');
	$other->query_safe('COMMIT');
	is(sql('SELECT (SELECT count(*) FROM jobqueue_job) + (SELECT count(*) FROM jobqueue_keys)'), '0', 'gone, with its key');
};

property 'a lease outlives the pooler' => sub {
	my $id = put('{}');
	my ($got, $token) = split / /, pooled { sql("SELECT id || ' ' || token FROM jobqueue_fetch('q', lease => '1 h')") };
	$pooler->kill_kill(grace => 0);
	start_pooler();
	pooled { sql("SELECT jobqueue_complete($id, token => '$token')") };
	is(sql('SELECT count(*) FROM jobqueue_job'), '0', 'completed through the next one');
};

property 'in transaction mode a claim without a lease is that of a server connection' => sub {
	my $id = put('{}', key => 'k');
	my ($s, $other) = pooled { (session(), session()) };
	my $pid = $s->query_safe("SELECT pg_backend_pid() FROM jobqueue_fetch('q')");
	is($other->query_safe('BEGIN; SELECT pg_backend_pid()'), $pid, 'another client is in that session now');
	my $error = pooled { sql_error("SELECT jobqueue_complete($id)") };
	like($error, qr/job $id is fetched by another session/, 'whoever has fetched it cannot complete it');
	like($error, qr/HINT:.*Give a lease to jobqueue_fetch\(\)/, 'and is told to use a lease');
	$other->query_safe('ROLLBACK');
	$s->quit;
	is(sql("SELECT pid FROM jobqueue_running WHERE id = $id"), $pid, 'the client has gone, its claim has not');
	forget_servers();
	wait_for("SELECT attempt = 1 FROM jobqueue_job WHERE id = $id");
	is(sql('SELECT count(*) FROM jobqueue_keys WHERE pid IS NOT NULL'), '0', 'it ends with the server connection');
	sql("SELECT jobqueue_cancel($id); DELETE FROM jobqueue_archive");
};

property 'in session mode it ends with the client' => sub {
	my $id = put('{}', key => 'k');
	my $s = pooled { session(db => 'whole') };
	is($s->query_safe("SELECT id FROM jobqueue_fetch('q')"), $id, 'fetched');
	$s->quit;
	# by DISCARD ALL, which the pooler sends
	wait_for("SELECT attempt = 1 FROM jobqueue_job WHERE id = $id");
	is(sql('SELECT count(*) FROM jobqueue_keys WHERE pid IS NOT NULL'), '0', 'with its key');
	sql("SELECT jobqueue_cancel($id); DELETE FROM jobqueue_archive");
};

property 'a client killed while it waits behind the pooler is not given a job' => sub {
	my $h = pooled {
		IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-c', "CALL jobqueue_fetch_wait('q', lease => '1 h')" ], '<', \undef, '>', \my $out)
	};
	my $waits = "query LIKE 'CALL jobqueue_fetch_wait%' AND state = 'active'";
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND $waits");
	my $pid = sql("SELECT pid FROM pg_stat_activity WHERE $waits");
	$h->kill_kill(grace => 0);
	wait_gone($pid);
	my $id = put('{}');
	is(sql("SELECT id || ' ' || attempt FROM jobqueue_fetch('q')"), "$id 1", 'the next one has it, at its first attempt');
	sql("SELECT jobqueue_cancel($id); DELETE FROM jobqueue_archive");
};

property 'example consumers behind the pooler do each job exactly once' => sub {
	my $examples = abs_path("$FindBin::RealBin/../examples");
	my $python = $ENV{JQ_PYTHON} || '/usr/bin/python3';
	my @programs = ([ 'bash', "$examples/consumer.sh" ]);

	push @programs, [ $python, "$examples/consumer.py" ]
	  if can_run($python, '-c', 'import psycopg');
	push @programs, [ 'node', "$examples/consumer.js" ]
	  if can_run('node', '-e', q{require('pg')});
	sql(<<'END');
CREATE TABLE delivered (job bigint, attempt int);
CREATE FUNCTION deliver(job bigint, attempt int, args jsonb) RETURNS jsonb LANGUAGE sql
	BEGIN ATOMIC INSERT INTO delivered VALUES (job, attempt); SELECT '{}'::jsonb; END;
END
	my @handles = map {
		local %ENV = $node->_get_env(PGHOST => $dir, PGPORT => $port,
			PGDATABASE => 'postgres', PGUSER => $user, WAIT => '500 ms');
		IPC::Run::start([ @$_, 'q', '30 s' ], '<', \undef, '>', \my $out, '2>&1')
	} @programs;
	sql("SELECT count(jobqueue_enqueue(NULL, '{}', queue => 'q', key => 'k' || i % 7)) FROM generate_series(1, 300) i");
	wait_drained();
	is(sql("SELECT count(*) || ' ' || count(DISTINCT job) || ' ' || max(attempt) FROM delivered"), '300 300 1', 'each once, at its first attempt');
	foreach my $h (@handles)
	{
		$h->signal('TERM');
		ok($h->finish, 'SIGTERM ends it');
	}
};

done_testing();
