-- Mails, sent by programs outside the server; follows mail.sql.  See "Recipes" in
-- README.md.

-- Instead of send_mails: hands out each mail once. It gets no second job while the
-- first one waits, is being sent, or will be tried again.
CREATE FUNCTION hand_out_mails() RETURNS bigint LANGUAGE sql AS $$
    SELECT count(jobqueue_enqueue(NULL, jsonb_build_object('mail', id), queue => 'outbox',
                                  key => 'mail:' || id, unique_key => 'mail:' || id))
    FROM (SELECT id FROM mail WHERE sent_at IS NULL ORDER BY id LIMIT 1000) m
$$;

INSERT INTO mail (recipient, body) VALUES ('edsger@example.org', 'Hello Edsger');
SELECT hand_out_mails() AS first, hand_out_mails() AS again;
