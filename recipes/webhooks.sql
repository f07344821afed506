-- A webhook queue: one sync a user at a time, no event lost.  See "Recipes" in
-- README.md.  To be run in an empty database with the extension.

CREATE TABLE customer (id int PRIMARY KEY, profile jsonb, synced_at timestamptz);

-- Stands for the outside: an HTTP call of an extension, or in PL/Python.
CREATE FUNCTION crm_profile(customer int) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('name', 'customer ' || customer)
$$;

-- A sync asks how things are, not what has changed.
CREATE FUNCTION sync_customer(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    who int := args->>'customer';
BEGIN
    INSERT INTO customer VALUES (who, crm_profile(who), clock_timestamp())
    ON CONFLICT (id) DO UPDATE
        SET profile = excluded.profile, synced_at = excluded.synced_at;
END
$$;

-- The web server calls this for an event: each one has a sync of its own.
CREATE FUNCTION on_event(who int) RETURNS bigint LANGUAGE sql AS $$
    SELECT jobqueue_enqueue('sync_customer', jsonb_build_object('customer', who),
                            queue => 'webhooks', key => 'customer:' || who)
$$;

-- Or this, which coalesces: a sync that still waits will do for the next event, too.
CREATE FUNCTION on_event_coalesced(who int) RETURNS bigint LANGUAGE sql AS $$
    SELECT jobqueue_enqueue('sync_customer', jsonb_build_object('customer', who),
                            queue => 'webhooks', key => 'customer:' || who,
                            unique_key => 'customer:' || who,
                            unique_until => 'executing', on_conflict => 'update')
$$;

-- N: at most four syncs at once
SELECT jobqueue_configure('webhooks', max_running => 4, timeout => '1 minute');
-- only to see what waits
SELECT jobqueue_pause('webhooks');

SELECT on_event(1) AS job, on_event(1) AS another;
SELECT on_event_coalesced(2) AS job;
SELECT on_event_coalesced(2) AS the_same;

SELECT jobqueue_resume('webhooks');

SELECT id, state FROM jobqueue_wait('{1,2,3}'::bigint[]);
SELECT id, profile FROM customer ORDER BY id;
