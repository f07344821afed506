# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of run and lib.sh

# service  10,000 services: their start, their size, messages to one of them and
#          to all of them, calls

most_runs[service]=3
services=10000
messages=10000
[ "$short" = no ] || services=200 messages=400

# service_messages NAME SERVICE: send, then drain
service_messages()
{
	quiesce
	sql -c 'VACUUM jobqueue_job, jobqueue_service_current' -c 'CHECKPOINT'
	record "send, $1" "$(calc "1e6 * $messages / $(timed bench \
		"SELECT count(jobqueue_send($2, '{}'))
		FROM generate_series(1, $messages) i")")" /s
	record "messages, $1" "$(rate "$messages" "$(drain "$messages")")" /s
}

section_service()
{
	local latency

	sql <<-'END'
		CREATE FUNCTION tally(state jsonb, message jsonb) RETURNS jsonb
			LANGUAGE plpgsql AS 'BEGIN RETURN to_jsonb(state::int + 1); END';
		CREATE FUNCTION answer(state jsonb, message jsonb) RETURNS jsonb
			LANGUAGE plpgsql AS
			$$ BEGIN RETURN jsonb_build_object('state', state, 'reply', message); END $$;
	END
	warm_up
	quiesce
	record "start of services" "$(calc "1e6 * $services / $(timed bench \
		"SELECT count(jobqueue_start_service('s' || i, 'tally', '0'))
		FROM generate_series(1, $services) i")")" /s
	record "init of services" "$(rate "$services" "$(drain "$services")")" /s
	record "disk of a service" "$(sql -c \
		"SELECT (pg_total_relation_size('jobqueue_service')
			+ pg_total_relation_size('jobqueue_service_current')) / $services")" bytes
	[ "$(sql -c 'SELECT count(*) FROM jobqueue_keys')" = 0 ] ||
		die "service: idle services are in memory"
	quiesce
	enqueue_jobs bench echo "$messages" ", key => 'k'"
	record "jobs of one key" "$(rate "$messages" "$(drain "$messages")")" /s
	service_messages "one service" "'s1'"
	service_messages "all services" "'s' || 1 + i % $services"
	[ "$(sql -c "SELECT sum(state::int) FROM jobqueue_services")" = \
		$((services + 2 * messages)) ] || die "service: not every message counts"
	sql -U bench -c "SELECT jobqueue_start_service('a' || i, 'answer', '{}')
		FROM generate_series(1, 8) i" >/dev/null
	empty
	record "calls, 1 client" "$(pgbench_tps bench 1 "$one_seconds" \
		"CALL jobqueue_call('a1', '{}', NULL, '1 minute');")" /s
	record "calls, 8 clients" "$(pgbench_tps bench 8 "$one_seconds" \
		"CALL jobqueue_call('a' || :client_id + 1, '{}', NULL, '1 minute');")" /s
	latency=$(pgbench_latency bench "$one_seconds" \
		"CALL jobqueue_call('a1', '{}', NULL, '1 minute');")
	record "call, p50" "${latency% *}" ms
	record "call, p99" "${latency#* }" ms
	record "INSERT, p50" "$(pgbench_latency bench "$one_seconds" \
		"INSERT INTO plain (payload) VALUES ('{}');" | cut -d' ' -f1)" ms
}

rows_service()
{
	row "start of services"
	row "init of services"
	row "disk of a service"
	row "send, one service"
	row "send, all services"
	row "messages, one service" "jobs of one key"
	row "messages, all services" "messages, one service"
	row "calls, 1 client"
	row "calls, 8 clients"
	row "call, p50" "INSERT, p50"
	row "call, p99" "INSERT, p50"
}

notes_service()
{
	cat <<-END
		- service: $services services, $messages messages in one statement; the handler, in
		  PL/pgSQL, counts them in its state. A call flushes twice: what is sent, and
		  what its handler has done; an INSERT flushes once.
	END
}
