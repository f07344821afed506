# Jobs, sessions that lock their keys, those who wait for jobs, consumers and
# services, all at once, under random faults.  At the end of each round the
# limits are lifted, what is left drains, and a checker compares what happened
# with what was promised.  What clients do, and the checker: TogetherLoad.pm.
#
# JQ_SEED repeats the choices (not the timing); JQ_ROUNDS, JQ_SECONDS make it
# longer.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);
use Together;
use TogetherLoad;

# make test makes the same choices each time, a long run others
my $seed = $ENV{JQ_SEED} || ($ENV{JQ_SECONDS} ? int(time * 1000) % 1_000_000 : 2);
my $rounds = $ENV{JQ_ROUNDS} || 2;
my $seconds = $ENV{JQ_SECONDS} || 7;
my $faults = $ENV{JQ_FAULTS} // 1;

seed_is($seed);

# small ones, so that much is left in the table; and some take different ways
my $max_ready = (150, 320, 200)[ $seed % 3 ];

new_node('all_together', conf => load_settings() . "jobqueue.max_ready_jobs = $max_ready\n");
make_load();
clients_are(sub { return $_[0] eq 'control' ? control() : statement($_[0]); });

# ---- faults ------------------------------------------------------------------

my $crashes = 0;

sub fault
{
	my (undef, $fault) = next_fault(
		('terminate worker') x 6,
		('cancel worker') x 6,
		('terminate client') x 4,
		('cancel client') x 5,
		('drop client') x 4,
		('freeze worker') x 2,
		('freeze client') x 2,
		'freeze scheduler',
		('terminate scheduler') x 3,
		'terminate launcher',
		'kill worker',
		'kill client',
		'kill scheduler',
		'immediate',
		'fast');

	return if $fault =~ /^kill|immediate|fast/ && $crashes-- <= 0;
	process_fault($fault);
}

my $room = room();

foreach my $round (1 .. $rounds)
{
	property "round $round, seed $seed" => sub {
		my $end = time + $seconds;

		configure_load();
		forget_faults();
		$crashes = 1 + $seconds / 7;
		my $log_from = -s node()->logfile;
		start_clients(qw(r1 r1 r2 super consumer consumer consumer control));
		while (time < $end)
		{
			usleep(50_000 + rand(250_000));
			fault() if $faults;
			revive_clients();
			end_prepared() if chance(0.3);
		}
		stop_clients();
		note done_faults();
		settle();
		check(slurp_file(node()->logfile, $log_from));
	};
}

property 'whatever happened, there is room for as much as before' => sub {
	sql('SELECT jobqueue_stop_service(name) FROM jobqueue_services');
	wait_drained();
	is(sql('SELECT (SELECT count(*) FROM jobqueue_services) + (SELECT count(*) FROM jobqueue_service) + (SELECT count(*) FROM jobqueue_service_current)'), '0', 'no service is left');
	is(room(), $room, 'claims, waits');
};

done_testing();
