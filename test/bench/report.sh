# shellcheck shell=bash
# shellcheck disable=SC2154 # variables of run
#
# The report of the bench: as text, and as the file in results/. Sourced by run.

text_table()
{
	local row a b c d e f line
	local format='%-46s %16s  %-62s %7s %16s %s\n'

	# shellcheck disable=SC2059
	printf "$format" what measured "beside it" ratio target reached
	for row in "${rows[@]}"; do
		IFS='|' read -r a b c d e f <<<"$row"
		# shellcheck disable=SC2059
		printf "$format" "$a" "$b" "$c" "$d" "$e" "$f"
	done
	for line in "${skipped[@]}"; do
		echo "skipped: $line"
	done
}

machine()
{
	local cpu memory

	cpu=$(sed -n 's/^model name[[:space:]]*: *//p' /proc/cpuinfo 2>/dev/null |
		head -n 1)
	memory=$(awk '/^MemTotal/ { printf "%.0f GB", $2 / 1048576 }' \
		/proc/meminfo 2>/dev/null || true)
	cat <<-END
		| | |
		|---|---|
		| date | $(date +%F) |
		| processor | ${cpu:-$(uname -m)}, $(nproc) cores |
		| memory | ${memory:-unknown} |
		| system | $(uname -sr), $(stat -f -c %T "$dir" 2>/dev/null || echo unknown) |
		| PostgreSQL | $(sql -c 'SHOW server_version') |
		| jobqueue | $(sql -c "SELECT extversion FROM pg_extension WHERE extname = 'jobqueue'")$revision |
		| command | \`$command_line\`, median of $runs$(fewer_runs) |
	END
}

fewer_runs()
{
	local section

	for section in "${sections[@]}"; do
		[ "${most_runs[$section]:-$runs}" -ge "$runs" ] ||
			printf ', %s of %s' "$section" "${most_runs[$section]}"
	done
}

markdown()
{
	local row name value section line

	cat <<-END
		# How fast jobqueue is

		$(machine)

		Clients and server share the machine. Both sides of a ratio were
		measured in turn in the same run, on the same server, by prepared
		statements.

		| what | measured | beside it | ratio | target | reached |
		|---|--:|---|--:|--:|---|
	END
	for row in "${rows[@]}"; do
		echo "| ${row//|/ | } |"
	done
	echo
	for section in "${sections[@]}"; do
		"notes_$section"
	done
	for line in "${skipped[@]}"; do
		echo "- not measured: $line."
	done
	if wanted drain || wanted flush; then
		cat <<-END

			## Statements of the textbook

			\`\`\`sql
			$one_job
			$many_jobs
			\`\`\`
		END
	fi
	cat <<-END

		## Settings

		\`\`\`
		$settings
		\`\`\`

		## Every run

		| what | unit | runs |
		|---|---|---|
	END
	for name in "${names[@]}"; do
		printf '| %s | %s |' "$name" "${units[$name]}"
		for value in ${figures[$name]}; do
			printf ' %s' "$(number "$value")"
		done
		echo ' |'
	done
}
