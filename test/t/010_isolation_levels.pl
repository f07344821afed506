# Jobs of roles and databases with settings of their own.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('levels');
sql(<<'END');
CREATE ROLE rr LOGIN;
CREATE ROLE sr LOGIN;
CREATE ROLE ro LOGIN;
CREATE ROLE srd LOGIN;
ALTER ROLE rr SET default_transaction_isolation = 'repeatable read';
ALTER ROLE sr SET default_transaction_isolation = 'serializable';
ALTER ROLE ro SET default_transaction_read_only = on;
ALTER ROLE srd SET default_transaction_isolation = 'serializable';
ALTER ROLE srd SET default_transaction_deferrable = on;
SELECT jobqueue_grant(r, 'use') FROM (VALUES ('rr'::regrole), ('sr'), ('ro'), ('srd')) v (r);
CREATE FUNCTION levels() RETURNS text LANGUAGE sql AS
	$$ SELECT current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only')
		|| ' ' || current_setting('transaction_deferrable') $$;
CREATE TABLE counters (key text, n int);
INSERT INTO counters VALUES ('a', 0), ('b', 0);
GRANT ALL ON counters TO PUBLIC;
CREATE FUNCTION count_up(args jsonb) RETURNS void LANGUAGE sql AS
	$$ UPDATE counters SET n = n + 1 WHERE key = args->>'k' $$;
END

my $rw = 'SET default_transaction_read_only = off; SET default_transaction_deferrable = off; ';

sub enqueue_by
{
	my ($role, $list) = @_;
	return sql_as($role, "$rw SELECT jobqueue_enqueue($list)");
}

my %expected = (
	rr => 'repeatable read off off',
	sr => 'serializable off off',
	ro => 'read committed on off',
	srd => 'serializable off on');

foreach my $role (sort keys %expected)
{
	property "$expected{$role}: honoured" => sub {
		my $id = enqueue_by($role, q{'levels', keep => '1 hour'});
		wait_state($id, 'completed');
		wait_drained();
		is(sql("SELECT result #>> '{}' FROM jobqueue_history WHERE id = $id"),
			$expected{$role}, 'the level of the job');
	};

	property "$expected{$role}: bookkeeping is unharmed" => sub {
		my $dead = enqueue_by($role, q{'SELECT 1 / 0', max_attempts => 2, key => 'k'});
		my $ended = enqueue_by($role, q{'SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)', max_attempts => 1});
		my $hung = enqueue_by($role, q{'hang', timeout => '100 ms', max_attempts => 1});
		my $later = enqueue_by($role, q{'levels', run_at => clock_timestamp() + interval '0.2 s', keep => '1 hour'});
		my $out = enqueue_by($role, q{'VACUUM counters', max_attempts => 1});
		my $cancel = enqueue_by($role, q{'hang'});
		wait_state($cancel, 'running');
		is(sql("SELECT jobqueue_cancel($cancel)"), 't', 'cancel');
		wait_state($dead, 'dead');
		wait_state($ended, 'dead');
		wait_state($hung, 'dead');
		wait_state($cancel, 'cancelled');
		wait_drained();
		is(sql("SELECT state FROM jobqueue_history WHERE id = $later"), 'completed', 'a delayed one');
		is(sql("SELECT attempt FROM jobqueue_history WHERE id = $dead"), 2, 'tried twice');
		is(sql("SELECT jobqueue_retry($dead)"), 't', 'retry');
		wait_state($dead, 'dead');
		wait_drained();
	};
}

property 'a read-only role cannot write in its jobs' => sub {
	my $id = enqueue_by('ro', q{'count_up', '{"k": "a"}', max_attempts => 1});
	wait_state($id, 'dead');
	like(sql("SELECT errors FROM jobqueue_history WHERE id = $id"), qr/read-only/, 'refused');
	is(sql(q{SELECT n FROM counters WHERE key = 'a'}), 0, 'nothing written');
};

foreach my $role ('rr', 'sr')
{
	property "$expected{$role}: jobs of one key lose no update and fail not once" => sub {
		sql('UPDATE counters SET n = 0');
		sql_as($role, q{SELECT count(jobqueue_enqueue('count_up', '{"k": "a"}', key => 'a', max_attempts => 1)) FROM generate_series(1, 500)});
		wait_drained();
		is(sql(q{SELECT n FROM counters WHERE key = 'a'}), 500, 'all counted');
	};

	property "$expected{$role}: conflicts are rerun" => sub {
		sql('UPDATE counters SET n = 0');
		sql_as($role, q{SELECT count(jobqueue_enqueue('count_up', '{"k": "b"}')) FROM generate_series(1, 300)});
		wait_drained();
		is(sql(q{SELECT n FROM counters WHERE key = 'b'}), 300, 'all counted');
		is(sql(q{SELECT count(*) FROM jobqueue_history WHERE command LIKE 'count_up%' AND state = 'dead' AND owner::text <> 'ro'}),
			0, 'none given up');
	};
}

property 'synchronous_commit of a role is honoured' => sub {
	foreach my $value ('on', 'local', 'off')
	{
		sql("CREATE ROLE sc_$value LOGIN; ALTER ROLE sc_$value SET synchronous_commit = '$value'");
		sql("SELECT jobqueue_grant('sc_$value', 'use')");
		my $id = enqueue(q{SELECT current_setting('synchronous_commit')}, role => "sc_$value", keep => '1 hour');
		wait_drained();
		is(sql("SELECT result #>> '{}' FROM jobqueue_history WHERE id = $id"), $value, $value);
	}
};

property 'synchronous_commit of a database is honoured' => sub {
	sql('CREATE ROLE sc_db LOGIN');
	sql("SELECT jobqueue_grant('sc_db', 'use')");
	sql('ALTER DATABASE postgres SET synchronous_commit = local');
	my $id = enqueue(q{SELECT current_setting('synchronous_commit')}, role => 'sc_db', keep => '1 hour');
	wait_drained();
	is(sql("SELECT result #>> '{}' FROM jobqueue_history WHERE id = $id"), 'local', 'local');
	sql('ALTER DATABASE postgres RESET synchronous_commit');
};

property 'a job that is durable is flushed' => sub {
	my $id = enqueue('note', what => 'x', role => 'sc_on');
	wait_state($id, 'completed');
	is(sql("SELECT lsn <= pg_current_wal_flush_lsn() FROM jobqueue_recent WHERE id = $id"), 't', 'flushed');
};

property 'statement_timeout, lock_timeout and idle timeouts of a role do not end the worker' => sub {
	sql(<<'END');
CREATE ROLE hasty LOGIN;
ALTER ROLE hasty SET idle_session_timeout = '100ms';
ALTER ROLE hasty SET idle_in_transaction_session_timeout = '100ms';
ALTER ROLE hasty SET lock_timeout = '100ms';
SELECT jobqueue_grant('hasty', 'use');
END
	enqueue('note', what => 'a', role => 'hasty');
	wait_drained();
	my $pid = sql("SELECT pid FROM ran WHERE what = 'a'");
	# else another one might be started
	my $idle = "SELECT count(*) = 1 FROM jobqueue_workers WHERE pid = $pid AND state = 'idle'";
	wait_for($idle);
	enqueue('SELECT pg_sleep(0.3)', role => 'hasty');
	wait_drained();
	wait_for($idle);
	enqueue('note', what => 'b', role => 'hasty');
	wait_drained();
	is(sql("SELECT pid FROM ran WHERE what = 'b'"), $pid, 'the same worker');
	is(sql("SELECT attempt FROM ran WHERE what = 'b'"), 1, 'at once');
};

SKIP: {
skip 'no transaction_timeout before PostgreSQL 17', 2
  unless sql(q{SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'});

property 'transaction_timeout of a role ends its job, which is charged for it' => sub {
	sql(<<'END');
CREATE ROLE hurried LOGIN;
ALTER ROLE hurried SET transaction_timeout = '100ms';
SELECT jobqueue_grant('hurried', 'use');
END
	my $id = enqueue('SELECT pg_sleep(3600)', role => 'hurried', max_attempts => 1);
	wait_state($id, 'dead');
	is(sql("SELECT attempt FROM jobqueue_history WHERE id = $id"), 1, 'charged');
	enqueue('note', what => 'after', role => 'hurried');
	wait_drained();
	is(sql("SELECT count(*) FROM ran WHERE what = 'after'"), 1, 'others run');
};

paused_property 'transaction_timeout does not end the scheduler' => sub {
	local $ENV{PGOPTIONS} = '-c transaction_timeout=0';    # the test's own
	set_conf(transaction_timeout => '100ms');
	arm('due-after-look');
	sql(q{SELECT jobqueue_enqueue('note', '{"what": "due"}', run_at => clock_timestamp() + interval '0.3 s')});
	my $pid = caught('due-after-look');
	wait_for("SELECT clock_timestamp() - xact_start > '200ms' FROM pg_stat_activity WHERE pid = $pid");
	release('due-after-look');
	wait_drained();
	is(sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler' AND datname = current_database()"),
		$pid, 'the same scheduler');
	set_conf(transaction_timeout => undef);
};
}

done_testing();
