# Processes do not grow with what they have done: a session that enqueues, and the
# scheduler (011_misc has workers).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'no /proc' unless -r '/proc/self/status';

new_node('flat', conf => "synchronous_commit = off\n");
sql(q{SELECT jobqueue_pause('stopped')});

# rss PID: its memory that is not shared, in kB
sub rss
{
	my ($pid) = @_;
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s*(\d+)/m;

	note "pid $pid: $kb kB";
	return $kb;
}

property 'memory of a session is flat over enqueues' => sub {
	my $s = session();
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	# transactions of one, of many, and many that roll back to a savepoint
	my $enqueue = sub {
		my ($n) = @_;

		$s->query_safe(<<END);
DO \$\$ BEGIN
	FOR i IN 1 .. $n LOOP
		PERFORM jobqueue_enqueue('SELECT ' || i, queue => 'stopped', key => 'k' || i, unique_key => 'u' || i, on_conflict => 'join');
		COMMIT;
	END LOOP;
END \$\$;
SELECT count(jobqueue_enqueue('note', '{"what": "x"}', queue => 'stopped')) FROM generate_series(1, $n);
DO \$\$ BEGIN
	FOR i IN 1 .. $n LOOP
		BEGIN
			PERFORM jobqueue_enqueue('note', queue => 'stopped');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
		END;
	END LOOP;
END \$\$;
END
	};

	$enqueue->(2000);
	my $before = rss($pid);
	$enqueue->(2000) foreach 1 .. 5;
	cmp_ok(rss($pid) - $before, '<', 1024, 'kB more');
	$s->quit;
	sql('DELETE FROM jobqueue_job');
};

property 'memory of the scheduler is flat over rounds' => sub {
	my $pid_of = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'jobqueue scheduler'};
	# each with jobs that are due, fail, expire, wait for others, and settings
	my $rounds = sub {
		my ($n) = @_;

		sql(<<END);
DO \$\$
DECLARE
	due bigint;
BEGIN
	FOR i IN 1 .. $n LOOP
		due := jobqueue_enqueue('note', '{"what": "x"}', run_at => clock_timestamp() + '2 ms');
		PERFORM jobqueue_enqueue('fail', queue => 'failing', max_attempts => 2);
		PERFORM jobqueue_enqueue('note', queue => 'stopped', expires_at => clock_timestamp());
		PERFORM jobqueue_enqueue('note', '{"what": "x"}', after => ARRAY[due]);
		PERFORM jobqueue_configure('q' || i % 20, max_attempts => i % 9 + 1);
		COMMIT;
		PERFORM jobqueue_wait(due);
		COMMIT;
	END LOOP;
END \$\$
END
	};

	sql(q{SELECT jobqueue_configure('failing', backoff => 'constant', backoff_base => '5 ms')});
	$rounds->(100);
	my $pid = sql($pid_of);
	my $before = rss($pid);
	$rounds->(400);
	is(sql($pid_of), $pid, 'the same scheduler');
	cmp_ok(rss($pid) - $before, '<', 1024, 'kB more');
	wait_drained();
};

done_testing();
