#!/usr/bin/python3
"""consumer.py QUEUE [LEASE]: works off the jobs of a jobqueue queue.

Needs psycopg 3 (Debian: python3-psycopg). The connection is what libpq's
environment says (PGHOST, PGUSER, PGDATABASE, ...).

Without LEASE the jobs are this session's: they are with the next consumer as
soon as this program, its machine's network or the server is gone. With LEASE
(an interval, '30 s') they are the token's: they survive a lost connection and
work through a pooler in transaction mode; the program extends the lease while
it works, and the next consumer has the jobs when nobody does so any more.

Copy it, and replace work().
"""

import os
import signal
import sys
import threading
import time

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

BATCH = 10  # jobs taken at once
WAIT = os.environ.get("WAIT", "30 s")  # how long one call waits for a job


def work(conn, job):
    """Does the job, inside the transaction that completes it.

    What is returned is the job's result. An exception rolls back what was
    done and makes the attempt a failed one.
    """
    return conn.execute(
        "SELECT deliver(%(id)s, %(attempt)s, %(args)s)",
        {**job, "args": Jsonb(job["args"])},
    ).fetchone()["deliver"]


class Consumer:
    def __init__(self, queue, lease=None):
        self.queue = queue
        self.lease = lease
        self.conn = None
        self.fetching = False
        self.stopping = threading.Event()
        self.held = {}  # id -> token

    def run(self):
        """Until SIGTERM or SIGINT, over lost connections."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        if self.lease:
            threading.Thread(target=self.extend, daemon=True).start()
        while not self.stopping.is_set():
            try:
                with connect() as self.conn:
                    if not self.lease:
                        # if this program is gone, the server ends even a
                        # running statement within a second
                        self.conn.execute("SET client_connection_check_interval = '1 s'")
                    while not self.stopping.is_set():
                        self.batch()
            except psycopg.OperationalError as e:
                # What was fetched without a lease is the next consumer's now;
                # what has a lease comes back when that is over.
                self.held.clear()
                log(f"connection lost: {e}")
                self.stopping.wait(1)

    def stop(self, *_):
        self.stopping.set()
        if self.fetching:
            self.conn.cancel()

    def batch(self):
        jobs = self.fetch()
        self.held = {job["id"]: job["token"] for job in jobs}
        for job in jobs:
            if self.stopping.is_set():
                self.call("jobqueue_release(%s, token => %s)", job["id"], job["token"])
            else:
                self.attempt(job)
            del self.held[job["id"]]

    def fetch(self):
        # the procedure holds no snapshot while it waits
        self.fetching = True
        try:
            return self.conn.execute(
                "CALL jobqueue_fetch_wait(%s, %s, %s, %s)",
                (self.queue, BATCH, WAIT, self.lease),
            ).fetchone()["jobs"]
        except psycopg.errors.QueryCanceled:
            return []
        except psycopg.errors.ObjectNotInPrerequisiteState as e:
            log(e)  # the queue is paused
            self.stopping.wait(1)
            return []
        finally:
            self.fetching = False

    def attempt(self, job):
        try:
            # the effects and the end of the job commit together
            with self.conn.transaction():
                result = work(self.conn, job)
                self.call(
                    "jobqueue_complete(%s, %s, %s)",
                    job["id"],
                    Jsonb(result),
                    job["token"],
                )
        except Exception as e:
            if self.conn.closed:
                raise
            log(f"job {job['id']}, attempt {job['attempt']}: {e}")
            self.fail(job, e)

    def fail(self, job, error):
        try:
            self.call(
                "jobqueue_fail(%s, %s, token => %s)",
                job["id"],
                f"{type(error).__name__}: {error}",
                job["token"],
            )
        except psycopg.errors.Error as e:
            # the job is not ours any more: it was cancelled, or its lease ended
            if self.conn.closed:
                raise
            log(e)

    def call(self, function, *args):
        self.conn.execute("SELECT " + function, args)

    def extend(self):
        """The heartbeat: a thread with a connection of its own."""
        while True:
            try:
                with connect() as conn:
                    every = conn.execute(
                        "SELECT extract(epoch FROM %s::interval)::float8 / 3 AS s",
                        (self.lease,),
                    ).fetchone()["s"]
                    while True:
                        time.sleep(every)
                        for id, token in list(self.held.items()):
                            self.extend_one(conn, id, token)
            except psycopg.OperationalError as e:
                log(f"connection of the heartbeat lost: {e}")
                time.sleep(1)

    def extend_one(self, conn, id, token):
        try:
            conn.execute("SELECT jobqueue_extend(%s, %s, %s)", (id, self.lease, token))
        except psycopg.errors.Error as e:
            # It is being completed just now; or it is lost: complete will say so.
            if conn.closed:
                raise
            log(e)


def connect():
    """Commits each statement by itself; poolers bear no prepared statements."""
    return psycopg.connect(autocommit=True, prepare_threshold=None, row_factory=dict_row)


def log(what):
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    Consumer(*sys.argv[1:]).run()
