# What memory knows of a job twice over.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use Test::More;

new_node('twins');
sql(<<'END');
-- waits until the gate is open, and fails when it is run for the first time
CREATE FUNCTION fail_once(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared((args->>'gate')::bigint);
	IF (jobqueue_current()).attempt = 1 THEN
		RAISE EXCEPTION 'failed on purpose';
	END IF;
	INSERT INTO ran (what) VALUES (args->>'what');
END $$;
SELECT jobqueue_configure('twins', backoff => 'constant', backoff_base => '1 second');
END

# A refill brings a row that it saw before the job failed: an entry that knows
# nothing of the run_at.  It is still in the lane when the job is due.  When it
# is forgotten then, it is the due scan that has to look for the row again.
paused_property 'a job that is due is found, though an older entry of it was in memory' => sub {
	my $gate = close_gate(1);
	my $id = enqueue('fail_once', gate => 1, what => 'due', queue => 'twins', key => 'twins');
	my $other;

	wait_at_gate(1);
	$other = enqueue('note', what => 'other', queue => 'twins', key => 'twins', priority => 10);
	# written by hand: the lane has to be read anew
	arm('refill-after-snapshot');
	sql("UPDATE jobqueue_job SET priority = 10 WHERE id = $other");
	caught('refill-after-snapshot');
	sql(q{SELECT jobqueue_pause('twins')});
	open_gate($gate);
	wait_for("SELECT run_at IS NOT NULL FROM jobqueue_job WHERE id = $id");
	arm('due-after-look');
	release('refill-after-snapshot');
	caught('due-after-look');
	release('due-after-look');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type LIKE 'jobqueue scheduler%' AND state = 'idle'});
	# once more by hand: what the lane has is forgotten
	sql("UPDATE jobqueue_job SET priority = 10 WHERE id = $other");
	sql(q{SELECT jobqueue_resume('twins')});
	wait_for("SELECT count(*) = 0 FROM jobqueue_job WHERE queue = 'twins'");
	is(join(' ', sort split(/ /, ran())), 'due other', 'both have run');
	forget();
};

done_testing();
