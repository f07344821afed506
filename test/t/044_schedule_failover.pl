# Schedules over a failover: each instant fires once, on the server that is
# primary then.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', streaming => 1, conf => <<'END');
timezone = 'UTC'
wal_log_hints = on
wal_keep_size = 128MB
END
my $standby;
my $clock_sql = <<'END';
CREATE FUNCTION jq_clock_set(timestamptz) RETURNS void
	AS '$libdir/jobqueue', 'jq_clock_set' LANGUAGE C;
CREATE FUNCTION instant(args jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO ran (what) VALUES ((args->>'what') || ' ' ||
		to_char(current_setting('jobqueue.scheduled_for')::timestamptz, 'DD HH24:MI')) $$;
END

if (node()->psql('postgres', $clock_sql) != 0)
{
	plan skip_all => 'the clock cannot be set in this build';
}

sub clock
{
	my ($time, $node) = @_;
	($node // node())->safe_psql('postgres', "SELECT jq_clock_set('$time')");
}

sub schedule
{
	my ($name, $cron, %opt) = @_;
	my $list = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;

	sql(qq{SELECT jobqueue_schedule('$name', '$cron', 'instant', '{"what": "$name"}'$list)});
}

sub wait_next
{
	my ($name, $time) = @_;
	wait_for("SELECT next_run = '$time' FROM jobqueue_schedules WHERE name = '$name'");
}

# what has run, in order of name and instant
sub instants
{
	return sql(q{SELECT string_agg(what, ', ' ORDER BY what) FROM ran});
}

# a worker's commits may be visible before they are written
sub wait_for_standby
{
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
}

$primary->backup('base');
$standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

property schedules_do_not_fire_on_a_standby => sub {
	clock('2031-01-01 00:00:30+00');
	schedule('minute', '* * * * *');
	schedule('all', '*/2 * * * *', catch_up => 'all');
	schedule('none', '*/2 * * * *', catch_up => 'none');
	schedule('paused', '* * * * *');
	sql(q{SELECT jobqueue_schedule_pause('paused')});
	clock('2031-01-01 00:01:00+00');
	wait_next('minute', '2031-01-01 00:02+00');
	wait_drained();
	wait_for_standby();
	# there it is later already, and nothing happens
	clock('2031-01-01 00:03:00+00', $standby);
	is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'}), 0, 'no process of ours');
	is($standby->safe_psql('postgres', q{SELECT string_agg(name || ' ' || runs, ', ' ORDER BY name) FROM jobqueue_schedules}),
		'all 0, minute 1, none 0, paused 0', 'the view can be read');
	foreach my $call (q{jobqueue_schedule('x', '@daily', 'note')}, q{jobqueue_unschedule('minute')}, q{jobqueue_schedule_run('minute')},
		q{jobqueue_schedule_pause('minute')}, q{jobqueue_schedule_resume('paused')})
	{
		my ($rc, $out, $err) = $standby->psql('postgres', "SELECT $call");
		like($err, qr/^psql:<stdin>:1: ERROR:  cannot execute \S+\(\) (in a read-only transaction|during recovery)/, $call);
	}
	is($standby->safe_psql('postgres', q{SELECT jobqueue_cron_next('@daily', '2031-01-01')}), '2031-01-02 00:00:00+00', 'cron_next tells');
};

property after_a_promotion_each_instant_fires_once => sub {
	# one has fired, its job waits; one is due and cannot fire here any more
	sql('SELECT jobqueue_quiesce()');
	clock('2031-01-01 00:02:00+00');
	wait_next('minute', '2031-01-01 00:03+00');
	wait_next($_, '2031-01-01 00:04+00') foreach qw(all none);
	wait_for_standby();
	is(instants(), 'minute 01 00:01', 'so far');
	$primary->stop('immediate');
	# the clock of the new primary is behind, then ahead
	clock('2031-01-01 00:01:20+00', $standby);
	$standby->promote;
	$JobqueueTest::node = $standby;
	wait_drained();
	is(instants(), 'all 01 00:02, minute 01 00:01, minute 01 00:02, none 01 00:02', 'what had fired runs, once');
	clock('2031-01-01 00:09:30+00');
	wait_next($_, '2031-01-01 00:10+00') foreach qw(minute all none);
	wait_drained();
	is(instants(), 'all 01 00:02, all 01 00:04, all 01 00:06, all 01 00:08, minute 01 00:01, minute 01 00:02, minute 01 00:09, '
		  . 'none 01 00:02', 'what was missed meanwhile, as catch_up says');
	is(sql(q{SELECT count(*) FROM (SELECT FROM ran GROUP BY what HAVING count(*) > 1) x}), 0, 'none twice');
	clock('2031-01-01 00:10:00+00');
	wait_next('minute', '2031-01-01 00:11+00');
	wait_next($_, '2031-01-01 00:12+00') foreach qw(all none);
	wait_drained();
	is(sql(q{SELECT count(*) FROM ran WHERE what LIKE '% 00:10'}), 3, 'it goes on');
	is(sql(q{SELECT paused, runs FROM jobqueue_schedules WHERE name = 'paused'}), 't|0', 'paused is paused');
};

property the_old_primary_rejoined_by_pg_rewind_is_quiet => sub {
	my $dir = $primary->data_dir;
	my $before = instants();

	# it was stopped at once: what it would say now
	$standby->safe_psql('postgres', 'CHECKPOINT');
	command_ok([ 'pg_rewind', '--target-pgdata', $dir, '--source-server', $standby->connstr('postgres') . ' dbname=postgres', '--no-sync' ],
		'pg_rewind');
	# the settings of the new primary came along
	$primary->append_conf('postgresql.conf', 'port = ' . $primary->port);
	$primary->enable_streaming($standby);
	$primary->set_standby_mode();
	$primary->start;
	$standby->wait_for_catchup($primary, 'replay', $standby->lsn('insert'));
	is($primary->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'jobqueue%'}), 0, 'no process of ours');
	is($primary->safe_psql('postgres', q{SELECT sum(runs) FROM jobqueue_schedules}), sql(q{SELECT sum(runs) FROM jobqueue_schedules}), 'the same rows');
	is(instants(), $before, 'nothing has run there');
	$primary->stop;
};

done_testing();
