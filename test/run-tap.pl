#!/usr/bin/perl
#
# run-tap.pl RESULT JOBS LIB FILE ...: runs TAP files, several at a time, and
# writes "passed failed name name ..." to RESULT: counts of test points, names
# of the files with a failure. A file that ends badly without a failed point
# (died, timed out, no plan) counts as one failure. Then, for a reader, what has
# failed first in each of these files: what they said at once lies far above.

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

my ($passed, $failed, $said, @names) = (0, 0, '');
foreach my $file (@files)
{
	my ($parser) = $all->parsers($file);
	my $bad = $parser->failed;

	$passed += $parser->passed;
	$bad ||= 1 if $parser->has_problems;
	next unless $bad;
	$failed += $bad;
	push @names, basename($file, '.pl');
	$said .= "\n$names[-1]:\n" . first_failures($names[-1]);
}

sub first_failures
{
	my ($name) = @_;
	my ($left, $most, $text) = (0, 40, '');

	open my $log, '<', "$ENV{TESTLOGDIR}/regress_log_$name" or return '';
	while (my $line = <$log>)
	{
		$left = 12 if $line =~ /not ok \d/;
		$text .= substr($line, 0, 500) =~ s/\n?$/\n/r if $left-- > 0;
		last if $left >= 0 && --$most == 0;
	}
	close $log;
	return $text;
}

open my $out, '>', $result or die "$result: $!";
print $out join(' ', $passed, $failed, @names), "\n$said";
close $out or die "$result: $!";
