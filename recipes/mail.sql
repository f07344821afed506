-- Mails, every 15 seconds, from several application servers.  See "Recipes" in
-- README.md.  To be run in an empty database with the extension.

CREATE TABLE mail (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recipient text NOT NULL, body text NOT NULL, sent_at timestamptz);
CREATE INDEX ON mail (id) WHERE sent_at IS NULL;

-- Stands for the outside. The id goes along, so that a mail that comes twice is
-- known to be the same.
CREATE FUNCTION smtp_send(m mail) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'Message-ID: <%@example.org>, To: %', m.id, m.recipient;
END
$$;

-- A run. What it sends and what it marks is one transaction; it is limited since
-- a crash has all of it sent again.
CREATE FUNCTION send_mails() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    m mail;
    n int := 0;
BEGIN
    FOR m IN SELECT * FROM mail WHERE sent_at IS NULL ORDER BY id LIMIT 100 LOOP
        PERFORM smtp_send(m);
        UPDATE mail SET sent_at = clock_timestamp() WHERE id = m.id;
        n := n + 1;
        PERFORM jobqueue_progress(n / 100.0, 'mail ' || m.id);
    END LOOP;
    RETURN n;
END
$$;

-- Each server calls this every 15 seconds. Null: a run waits or is under way. A run
-- that fails is not tried again, since the next tick comes soon.
CREATE FUNCTION mail_tick() RETURNS bigint LANGUAGE sql AS $$
    SELECT jobqueue_enqueue('send_mails', queue => 'mail', key => 'mailer',
                            unique_key => 'mailer', max_attempts => 1)
$$;

INSERT INTO mail (recipient, body)
VALUES ('ada@example.org', 'Hello Ada'), ('grace@example.org', 'Hello Grace');
BEGIN;
SELECT mail_tick() AS run, mail_tick() AS no_other;
COMMIT;
SELECT state, result AS mails FROM jobqueue_wait(1);
SELECT id, recipient, sent_at IS NOT NULL AS sent FROM mail ORDER BY id;
