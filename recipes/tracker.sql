-- A tracker for each transfer, which polls a slow source.  See "Recipes" in
-- README.md.  To be run in an empty database with the extension.

-- Stands for the source outside. Null: it does not know yet, or does not answer.
CREATE TABLE bank (transfer text PRIMARY KEY, status text);
CREATE FUNCTION ask_bank(transfer text) RETURNS text LANGUAGE sql AS $$
    SELECT status FROM bank WHERE bank.transfer = $1
$$;

-- what the trackers have found out
CREATE TABLE settled (transfer text, status text, polls int, notes jsonb);

-- The handler: state and message in, the new state out.
CREATE FUNCTION tracker(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    me text := coalesce(message->>'init', state->>'transfer');
    answer text;
BEGIN
    IF message ? 'look' THEN            -- of jobqueue_call: changes nothing
        RETURN jsonb_build_object('state', state, 'reply', state);
    ELSIF message ? 'note' THEN         -- something to remember
        RETURN jsonb_set(state, '{notes}', state->'notes' || (message->'note'));
    ELSIF NOT message ?| '{init,poll}' THEN     -- the last one is "down"
        RETURN state;
    END IF;

    -- ask now, and again after a while
    answer := ask_bank(me);
    state := state || jsonb_build_object('transfer', me, 'polls', (state->>'polls')::int + 1);
    IF answer IS NULL THEN
        PERFORM jobqueue_send(me, '{"poll": true}',
                              clock_timestamp() + (state->>'every')::interval);
    ELSE
        INSERT INTO settled VALUES (me, answer, (state->>'polls')::int, state->'notes');
        PERFORM jobqueue_stop_service(me);
    END IF;
    RETURN state;
END
$$;

-- Whoever hears of a transfer calls this; the first call starts its tracker.
CREATE FUNCTION track(transfer text, every interval DEFAULT '10 s') RETURNS bigint LANGUAGE sql AS $$
    SELECT jobqueue_start_service(transfer, 'tracker',
        jsonb_build_object('every', every, 'polls', 0, 'notes', jsonb_build_array()))
$$;

SELECT track('transfer 7', '5 s');
SELECT track('transfer 7', '5 s') AS the_same;
SELECT jobqueue_send('transfer 7', '{"note": "the customer has called"}') AS message;
CALL jobqueue_call('transfer 7', '{"look": true}');
SELECT name, status, waiting FROM jobqueue_services;

INSERT INTO bank VALUES ('transfer 7', 'booked');
-- the messages to a service are jobs: wait for the poll, and for the end
SELECT count(*) FROM jobqueue_wait(ARRAY(SELECT id FROM jobqueue_jobs WHERE command = 'transfer 7')) \gset
SELECT count(*) FROM jobqueue_wait(ARRAY(SELECT id FROM jobqueue_jobs WHERE command = 'transfer 7')) \gset

SELECT transfer, status, notes FROM settled;
SELECT jobqueue_send('transfer 7', '{"note": "too late"}');
