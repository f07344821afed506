-- Sends one mail of outbox.sql, if there is one within 10 seconds.  See "Recipes"
-- in README.md.  To be run again and again, by any number of programs:
--     while psql -X -q -v ON_ERROR_STOP=1 -f consumer.sql; do :; done

SELECT max(id) AS job, max(args->>'mail') AS mail FROM jobqueue_fetch('outbox', wait => '10 s') \gset
\if :{?job}
    BEGIN;
    -- has it been sent since it was handed out?
    SELECT max(recipient) AS recipient, max(body) AS body
    FROM mail WHERE id = :mail AND sent_at IS NULL \gset
    \if :{?recipient}
        \setenv BODY :body
        \set sent `printf 'Message-ID: <%s@example.org>\nTo: %s\n\n%s\n' :'mail' :'recipient' "$BODY" | sendmail -t && echo on || echo off`
    \else
        \set sent on
    \endif
    \if :sent
        UPDATE mail SET sent_at = clock_timestamp() WHERE id = :mail AND sent_at IS NULL;
        SELECT jobqueue_complete(:job) \gset
    \else
        SELECT jobqueue_fail(:job, 'sendmail failed') AS again \gset
    \endif
    COMMIT;
\endif
