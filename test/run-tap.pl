#!/usr/bin/perl
#
# run-tap.pl RESULT JOBS LIB FILE ...: runs TAP files, several at a time, and
# writes "passed failed name name ..." to RESULT: counts of test points, names
# of the files with a failure. A file that ends badly without a failed point
# (died, timed out, no plan) counts as one failure.

use strict;
use warnings;
use File::Basename;
use TAP::Harness;

my ($result, $jobs, $lib, @files) = @ARGV;
my $timeout = $ENV{TAP_TIMEOUT} || 600;

my $harness = TAP::Harness->new(
	{
		jobs     => $jobs,
		failures => 1,
		timer    => 1,
		errors   => 1,
		exec     => [
			'timeout', '--foreground', '-k', '10', $timeout, $^X, "-I$lib",
			'-Itest/t'
		],
	});
my $all = $harness->runtests(@files);

my ($passed, $failed, @names) = (0, 0);
foreach my $file (@files)
{
	my ($parser) = $all->parsers($file);
	my $bad = $parser->failed;

	$passed += $parser->passed;
	$bad ||= 1 if $parser->has_problems;
	next unless $bad;
	$failed += $bad;
	push @names, basename($file, '.pl');
	show_failures($names[-1]);
}

# Once more, and short: what has failed, from the log of the test. What it said
# at once lies far above.
sub show_failures
{
	my ($name) = @_;
	my $left = 0;

	open my $log, '<', "$ENV{TESTLOGDIR}/regress_log_$name" or return;
	print "\n$name:\n";
	while (my $line = <$log>)
	{
		$left = 12 if $line =~ /not ok \d/;
		print $line if $left-- > 0;
	}
	close $log;
}

open my $out, '>', $result or die "$result: $!";
print $out join(' ', $passed, $failed, @names), "\n";
close $out or die "$result: $!";
