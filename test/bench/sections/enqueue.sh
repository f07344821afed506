# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# enqueue  one job a transaction by pgbench, beside a plain INSERT

# pgbench_one NAME CLIENTS SCRIPT
pgbench_one()
{
	sql -c CHECKPOINT
	record "$1, $(clients "$2")" \
		"$(pgbench_tps bench "$2" "$one_seconds" "$3")" /s
}

section_enqueue()
{
	local c
	local enqueue="SELECT jobqueue_enqueue('noop', '{\"a\": 1}');"
	local insert="INSERT INTO plain (payload) VALUES ('{\"a\": 1}');"

	for c in 1 8; do
		quiesce
		sql -c 'TRUNCATE plain' -c 'VACUUM jobqueue_job'
		if ((run % 2)); then
			pgbench_one enqueue "$c" "$enqueue"
			pgbench_one "plain INSERT" "$c" "$insert"
		else
			pgbench_one "plain INSERT" "$c" "$insert"
			pgbench_one enqueue "$c" "$enqueue"
		fi
		empty
	done
}

rows_enqueue()
{
	row "enqueue, 1 client" "plain INSERT, 1 client" 'ratio>=' 0.9
	row "enqueue, 8 clients" "plain INSERT, 8 clients" 'ratio>=' 0.9
}

notes_enqueue()
{
	echo "- enqueue: one job or row a transaction, durable, for $one_seconds s."
}
