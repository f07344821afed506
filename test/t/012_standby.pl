# A standby runs nothing; promoted, it goes on where the primary was.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = new_node('primary', streaming => 1);
my $standby = PostgreSQL::Test::Cluster->new('standby');

$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# a worker's commits may be visible before they are written
sub wait_for_standby
{
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
}

property 'a standby runs nothing and refuses to enqueue' => sub {
	sql(q{CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql
		AS 'SELECT to_jsonb(state::int + coalesce((message->>''add'')::int, 0))'});
	sql(q{SELECT jobqueue_start_service('adds', 'add_up', '0'), jobqueue_send('adds', '{"add": 1}')});
	enqueue('note', what => 'x') foreach (1 .. 10);
	wait_drained();
	wait_for_standby();
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM ran'), 10, 'each ran once, on the primary');
	my ($rc, $out, $err) = $standby->psql('postgres', q{SELECT jobqueue_enqueue('note')});
	like($err, qr/ERROR/, 'no enqueue');
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM jobqueue_jobs'), 0, 'views can be read');
	forget();
};

property 'promotion: what waits on the standby runs, once' => sub {
	my $leased = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'leased', key => 'l')});
	my $token = sql(q{SELECT token FROM jobqueue_fetch('leased', lease => '1 h')});
	my $over = sql(q{SELECT jobqueue_enqueue(NULL, queue => 'over')});
	sql(q{SELECT token FROM jobqueue_fetch('over', lease => '5 s')});
	sql('SELECT jobqueue_quiesce()');
	sql(q{SELECT jobqueue_send('adds', '{"add": 10}'), jobqueue_send('adds', '{"add": 100}', 'yesterday')});
	sql(q{SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', i), key => 'k' || i % 3)) FROM generate_series(1, 500) i});
	enqueue('note', what => 'due', run_at => 'yesterday');
	wait_for_standby();
	$primary->stop('immediate');
	$standby->promote;
	$JobqueueTest::node = $standby;
	wait_for("SELECT count(*) > 0 FROM jobqueue_running WHERE leased_until IS NOT NULL");
	is(sql("SELECT job FROM jobqueue_keys WHERE key = 'l'"), $leased, 'what was leased is so, with its key');
	is(sql(q{SELECT count(*) FROM jobqueue_fetch('leased')}), 0, 'nobody else gets it');
	sql("SELECT jobqueue_complete($leased, token => '$token')");
	is(sql(q{SELECT id || ' ' || attempt FROM jobqueue_fetch('over', wait => '1 min', lease => '1 h')}), "$over 2", 'a lease that is over ends there');
	sql(q{SELECT jobqueue_complete(job, token => token) FROM jobqueue_lease});
	wait_drained();
	is(sql('SELECT count(*), count(DISTINCT job), max(attempt) FROM ran'), '501|501|1', 'all, not held');
	is(sql(q{SELECT jobqueue_service_state('adds')}), '111', 'services go on with their state and messages');
	enqueue('note', what => 'new');
	wait_drained();
	is(sql('SELECT count(*) FROM ran'), 502, 'and new ones');
};

done_testing();
