# What processes know of the catalogs, and that it may be stale at any moment.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;

new_node('caches');

property 'the planner does not take a table for empty that was vacuumed just now' => sub {
	my $rows = "SELECT rows > 100 FROM planned('SELECT * FROM jobqueue_job')";
	sql(q{CREATE FUNCTION planned(query text, OUT rows float8) LANGUAGE plpgsql AS $$
		DECLARE plan json;
		BEGIN
			EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan;
			rows := plan->0->'Plan'->>'Plan Rows';
		END $$});
	sql(q{SELECT count(jobqueue_enqueue('note', run_at => 'tomorrow')) FROM generate_series(1, 1000)});
	my $s = session();
	$s->query_safe("SELECT jobqueue_cancel(0)"); # knows the tables from here on
	is($s->query_safe($rows), 't', 'before');
	sql('DELETE FROM jobqueue_job');
	sql('VACUUM jobqueue_job');
	is($s->query_safe($rows), 't', 'after');
	sql('DROP FUNCTION planned');
};

# What is known of the catalogs is thrown away at each look. What waits for it
# to hold, or begins again when it does not, never ends then.
property 'jobs are enqueued and run though all caches are always stale' => sub {
	return plan skip_all => 'no build with assertions'
	  unless sql("SELECT max_val::int > 0 FROM pg_settings WHERE name = 'debug_discard_caches'") eq 't';
	my $result = sql(q{SET debug_discard_caches = 1;
		SELECT jobqueue_enqueue('note', '{"what": "a"}') > 0});
	is($result, 't', 'enqueue');
	wait_drained();
	set_conf(debug_discard_caches => 1);
	sql(q{SET debug_discard_caches = 0;
		SELECT jobqueue_enqueue('note', '{"what": "b"}') > 0});
	wait_for('SELECT count(*) = 2 FROM ran');
	set_conf(debug_discard_caches => undef);
	is(ran(), 'a b', 'they have run');
	forget();
};

property 'the server has not crashed in all this' => sub {
	unlike(slurp_file(node()->logfile), qr/TRAP:|PANIC|terminated by signal|reference leak/, 'log');
};

done_testing();
