#!/usr/bin/perl
#
# model.pl [--work NS] [--handoff NS] [--lanes N] [--wake NS] [--only KIND] FILE
#
# How many no-op jobs a second more cores would run, computed from the figures
# of one machine. FILE is what test/bench/structures has written (or any file
# with the same lines between "stations" and the end of the block):
#
#   cpu      NS               processor time of a whole job, one worker
#   handoff  NS               lock given from one core to another
#   station  NAME VISITS SERVERS HOLD_NS KIND TYPE
#
# Each core runs one worker. A job alternates between work that disturbs nobody
# (the processor time without what is below) and visits to stations, at each of
# which one worker at a time is served: a lock, or a cache line that all write
# to. SERVERS > 1: that many of a kind, of which a visit takes any. KIND is
# "measured" for jobqueue's own, "postgres" for those of the server, which are
# estimated from a profile; TYPE is "lock" where who waits sleeps, else "line".
# This is a closed queueing network; its exact
# solution is the mean value analysis of Reiser and Lavenberg: with
# N workers,
#
#   R(k) = S(k) * (1 + Q(k) with N - 1)     time at station k, waiting included
#   X    = N / (Z + sum of V(k) * R(k))     jobs in a unit of time
#   Q(k) = X * V(k) * R(k)                  workers at station k
#
# with S(k) = HOLD_NS, and for N > 1 the hand-over of the lock to it, as the
# last holder was another core.
#
#   --work NS     what a job does besides, in its own transaction; default 0
#   --handoff NS  instead of the measured one, which is that of the cores of
#                 this machine; other sockets are further away
#   --lanes N     jobs of N queues or roles, and so N lanes and heap pages
#   --wake NS     what it costs to sleep and be woken, added to each visit that
#                 finds a lock taken; default 0. With it the solution is not
#                 exact, but nearer to what a lock does that many want
#   --only KIND   without the stations of PostgreSQL: --only jobqueue

use strict;
use warnings;

my %option = (work => 0, handoff => undef, lanes => 1, wake => 0, only => '');
my $file;
while (@ARGV)
{
	my $arg = shift;
	if ($arg =~ /^--(\w+)$/ && exists $option{$1} && @ARGV)
	{
		$option{$1} = shift;
	}
	elsif ($arg !~ /^-/ && !defined $file)
	{
		$file = $arg;
	}
	else
	{
		usage();
	}
}
usage() unless defined $file;
for my $name (qw(work lanes wake))
{
	usage() unless $option{$name} =~ /^\d+$/;
}
usage() if $option{lanes} < 1;
usage() if defined $option{handoff} && $option{handoff} !~ /^\d+$/;
usage() unless $option{only} =~ /^(jobqueue)?$/;

sub usage
{
	open my $self, '<', $0 or die "$0: $!\n";
	while (<$self>)
	{
		next if $. < 3;
		last unless /^#/;
		s/^# ?//;
		print STDERR $_;
	}
	exit 2;
}

my ($cpu, $handoff, @stations);
open my $in, '<', $file or die "$file: $!\n";
while (<$in>)
{
	if (/^cpu\s+([\d.]+)/)        { $cpu = $1 }
	elsif (/^handoff\s+([\d.]+)/) { $handoff = $1 }
	elsif (/^station\s+(\S+)\s+([\d.]+)\s+(\d+)\s+([\d.]+)\s+(\w+)\s+(\w+)/)
	{
		push @stations,
			{ name => $1, visits => $2, servers => $3, hold => $4,
			kind => $5, type => $6 };
	}
}
close $in;
die "$file: no figures for the model\n"
	unless defined $cpu && defined $handoff && @stations;
$handoff = $option{handoff} if defined $option{handoff};

# what is done elsewhere at the same time: all but the stations
my $think = $cpu + $option{work};
$think -= $_->{visits} * $_->{hold} for @stations;
die "$file: the stations take longer than the job\n" if $think < 0;
if ($option{only})
{
	# what is left out is work like any other
	$think += $_->{visits} * $_->{hold}
		for grep { $_->{kind} eq 'postgres' } @stations;
	@stations = grep { $_->{kind} ne 'postgres' } @stations;
}
for my $s (@stations)
{
	$s->{servers} *= $option{lanes} if $s->{name} =~ /^(lane|heap_page)$/;
}
@stations = grep { $_->{visits} > 0 } @stations;

# jobs a nanosecond with n cores, and the use of each station
sub solve
{
	my ($n) = @_;
	my $far = $n > 1 ? $handoff : 0;
	my @q = (0) x @stations;
	my @used = (0) x @stations;
	my $x = 0;

	for my $i (1 .. $n)
	{
		my $total = $think;
		my @r;
		for my $k (0 .. $#stations)
		{
			my $s = $stations[$k];
			my $service = $s->{hold} + $far;

			# each of the servers has its share of visits and of the queue
			$r[$k] = $s->{visits} *
				($service * (1 + $q[$k] / $s->{servers})
				+ ($s->{type} eq 'lock' ? $option{wake} * $used[$k] : 0));
			$total += $r[$k];
		}
		$x = $i / $total;
		for my $k (0 .. $#stations)
		{
			my $s = $stations[$k];
			$q[$k] = $x * $r[$k];
			$used[$k] = $x * $s->{visits} * ($s->{hold} + $far) / $s->{servers};
		}
	}
	return ($x, @used);
}

sub thousands
{
	my $n = sprintf '%.0f', shift;
	1 while $n =~ s/^(\d+)(\d{3})/$1,$2/;
	return $n;
}

printf "think time %d ns, hand-over %d ns%s\n\n", $think, $handoff,
	$option{wake} ? ", sleep and wake-up $option{wake} ns" : '';
printf "%-14s %6s %7s %7s %9s  %14s %9s\n", qw(station visits servers hold kind),
	'at most jobs/s', 'at cores';
my $one = $think;
$one += $_->{visits} * ($_->{hold} + $handoff) for @stations;
for my $s (sort { $b->{visits} * ($b->{hold} + $handoff) / $b->{servers}
			<=> $a->{visits} * ($a->{hold} + $handoff) / $a->{servers} }
	@stations)
{
	my $demand = $s->{visits} * ($s->{hold} + $handoff) / $s->{servers};
	printf "%-14s %6.3f %7d %7.0f %9s  %14s %9.0f\n", $s->{name}, $s->{visits},
		$s->{servers}, $s->{hold}, $s->{kind}, thousands(1e9 / $demand),
		$one / $demand;
}

printf "\n%5s %12s %10s %8s  %s\n", 'cores', 'jobs/s', 'of linear',
	'a core', 'busiest station';
my ($base) = solve(1);
my $saturated = '';
for my $n (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
{
	my ($x, @used) = solve($n);
	my ($top) = sort { $used[$b] <=> $used[$a] } 0 .. $#used;

	printf "%5d %12s %9.0f%% %8s  %s, busy %.0f%%\n", $n, thousands($x * 1e9),
		100 * $x / ($n * $base), thousands($x * 1e9 / $n),
		$stations[$top]{name}, 100 * $used[$top];
}
for my $n (1 .. 1024)
{
	my ($x, @used) = solve($n);
	my ($top) = sort { $used[$b] <=> $used[$a] } 0 .. $#used;

	next if $used[$top] < 0.9;
	$saturated = "$stations[$top]{name} is the first to be saturated"
		. " (busy 90 %), at $n cores and " . thousands($x * 1e9) . " jobs/s";
	last;
}
print "\n", $saturated || 'nothing is saturated (busy 90 %) with 1024 cores', "\n";
