#!/usr/bin/env node
// consumer.js QUEUE [LEASE]: works off the jobs of a jobqueue queue.
//
// Needs the package pg (npm install pg). The connection is what the environment
// says (PGHOST, PGUSER, PGDATABASE, ...).
//
// Without LEASE the jobs are this session's: they are with the next consumer as
// soon as this program, its machine's network or the server is gone. With LEASE
// (an interval, '30 s') they are the token's: they survive a lost connection and
// work through a pooler in transaction mode; the program extends the lease while
// it works, and the next consumer has the jobs when nobody does so any more.
//
// Copy it, and replace work().
'use strict'

const { Client, DatabaseError } = require('pg')

const BATCH = 10 // jobs taken at once
// How long one call waits for a job. Where it is not cut short by a job, a
// shutdown takes as long.
const WAIT = process.env.WAIT || '5 s'

// Does the job, inside the transaction that completes it. What is returned is the
// job's result. An exception rolls back what was done and makes the attempt a
// failed one.
async function work (client, job) {
  const { rows } = await client.query('SELECT deliver($1, $2, $3)',
    [job.id, job.attempt, JSON.stringify(job.args)])
  return rows[0].deliver
}

const [queue, lease = null] = process.argv.slice(2)
const held = new Map() // id -> token
let stopping = false

async function run () {
  if (lease !== null) heartbeat()
  while (!stopping) {
    let client
    try {
      client = await connect()
      // if this program is gone, the server ends even a running statement within
      // a second
      if (lease === null) await client.query("SET client_connection_check_interval = '1 s'")
      while (!stopping) await batch(client)
    } catch (e) {
      if (refused(e)) throw e
      // What was fetched without a lease is the next consumer's now; what has a
      // lease comes back when that is over.
      console.error(`connection lost: ${e.message}`)
      held.clear()
      if (!stopping) await sleep(1000)
    }
    if (client) await client.end().catch(() => {})
  }
}

async function batch (client) {
  // the procedure holds no snapshot while it waits
  let jobs
  try {
    const { rows } = await client.query('CALL jobqueue_fetch_wait($1, $2, $3, $4)',
      [queue, BATCH, WAIT, lease])
    jobs = rows[0].jobs
  } catch (e) {
    if (e.code !== '55000') throw e
    console.error(e.message) // the queue is paused
    return sleep(1000)
  }
  for (const job of jobs) held.set(job.id, job.token)
  for (const job of jobs) {
    if (stopping) {
      await client.query('SELECT jobqueue_release($1, $2)', [job.id, job.token])
    } else {
      await attempt(client, job)
    }
    held.delete(job.id)
  }
}

async function attempt (client, job) {
  try {
    // the effects and the end of the job commit together
    await client.query('BEGIN')
    const result = await work(client, job)
    await client.query('SELECT jobqueue_complete($1, $2, $3)',
      [job.id, JSON.stringify(result), job.token])
    await client.query('COMMIT')
  } catch (e) {
    console.error(`job ${job.id}, attempt ${job.attempt}: ${e.message}`)
    await client.query('ROLLBACK')
    await fail(client, job, e)
  }
}

async function fail (client, job, error) {
  try {
    await client.query('SELECT jobqueue_fail($1, $2, token => $3)',
      [job.id, String(error), job.token])
  } catch (e) {
    // the job is not ours any more: it was cancelled, or its lease ended
    if (!refused(e)) throw e
    console.error(e.message)
  }
}

// extends the leases, on a connection of its own
async function heartbeat () {
  for (;;) {
    try {
      const client = await connect()
      const { rows } = await client.query(
        'SELECT extract(epoch FROM $1::interval)::float8 / 3 AS every', [lease])
      for (;;) {
        await sleep(rows[0].every * 1000)
        for (const [id, token] of [...held]) await extend(client, id, token)
      }
    } catch (e) {
      console.error(`connection of the heartbeat lost: ${e.message}`)
      await sleep(1000)
    }
  }
}

async function extend (client, id, token) {
  try {
    await client.query('SELECT jobqueue_extend($1, $2, $3)', [id, lease, token])
  } catch (e) {
    // It is being completed just now; or it is lost: complete will say so.
    if (!refused(e)) throw e
    console.error(e.message)
  }
}

async function connect () {
  const client = new Client()
  client.on('error', () => {}) // the next query says it
  await client.connect()
  return client
}

// Has the server refused a statement? Otherwise the connection is lost, or could
// not be made for now.
function refused (e) {
  return e instanceof DatabaseError && !/^(08|53|57P)/.test(e.code)
}

function sleep (ms) {
  return new Promise(resolve => setTimeout(resolve, ms))
}

function stop () {
  stopping = true
}

if (process.argv.length < 3 || process.argv.length > 4) {
  console.error('usage: consumer.js QUEUE [LEASE]')
  process.exit(1)
}
process.on('SIGTERM', stop)
process.on('SIGINT', stop)
run().then(() => process.exit(0))
