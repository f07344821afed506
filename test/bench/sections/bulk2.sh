# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# bulk2    many jobs in one statement, beside INSERT ... SELECT into a table of
#          two columns: id bigint PRIMARY KEY, args jsonb

# Every other run begins with the other side.
section_bulk2()
{
	local part

	# its first use extends the files, as the first use of the others does
	for part in enqueue plain enqueue plain; do
		case $part in
			enqueue)
				bulk_enqueue "bulk2, jobqueue_enqueue" \
					"SELECT count(jobqueue_enqueue('noop', '{\"a\": 1}'))
					FROM generate_series(1, $bulk_jobs)"
				bulk_enqueue "bulk2, jobqueue_enqueue_many" \
					"SELECT count(*)
					FROM jobqueue_enqueue_many('noop', $bulk_array)"
				;;
			plain)
				bulk_plain "two columns, INSERT ... SELECT" two_columns \
					"INSERT INTO two_columns SELECT i, '{\"a\": 1}'
					FROM generate_series(1, $bulk_jobs) i"
				bulk_plain "two columns, INSERT ... SELECT unnest" two_columns \
					"INSERT INTO two_columns SELECT i, args
					FROM unnest($bulk_array) WITH ORDINALITY AS u(args, i)"
				;;
		esac
	done
}

rows_bulk2()
{
	row "bulk2, jobqueue_enqueue" "two columns, INSERT ... SELECT" \
		'ratio>=' 0.8
	row "bulk2, jobqueue_enqueue_many" \
		"two columns, INSERT ... SELECT unnest" 'ratio>=' 0.8
}

notes_bulk2()
{
	cat <<-END
		- bulk2: $bulk_jobs rows in one statement, twice a run; the other table is
		  \`id bigint PRIMARY KEY, args jsonb\`.
	END
}
