/**
 * The parts of the demo page that need no page: questions on their way, and what is said of what happened.
 */

import assert from "node:assert/strict"
import { test } from "node:test"

import { Asking } from "../../holdfast/web/demo/asking.js"
import { caughtUp, counted, sized } from "../../holdfast/web/demo/words.js"

/** A storage that outlives its page. */
class Shelf {
  #kept = new Map()
  getItem = (key) => this.#kept.get(key) ?? null
  setItem = (key, value) => void this.#kept.set(key, value)
}

/** A server that answers as told, one entry per request: a status, or nothing for a lost reply; then always 200. */
class Server {
  heard = []
  constructor(...answers) {
    this.answers = answers
  }
  fetch = async (path, { body }) => {
    this.heard.push({ path, ...JSON.parse(body) })
    const status = this.answers.length ? this.answers.shift() : 200
    if (status === undefined) throw new TypeError("the reply was lost")
    return Response.json({ detail: `because ${status}` }, { status })
  }
}

/** An asking that never waits long, and what it told. `isDone` resolves when nothing is on its way any more. */
function asking(server, storage = new Shelf()) {
  const told = { waiting: [], refused: [] }
  let done
  told.isDone = new Promise((resolve) => (done = resolve))
  told.asking = new Asking({
    channel: "demo:test",
    storage,
    fetch: server.fetch,
    random: () => 0,
    onChange: (questions) => {
      told.waiting.push(questions.map(({ text }) => text))
      if (questions.length === 0) queueMicrotask(() => queueMicrotask(done))
    },
    onRefused: (question, why) => told.refused.push([question.text, why]),
  })
  return told
}

test("a question is on its way until it is stored", async () => {
  const server = new Server()
  const told = asking(server)
  told.asking.ask("a")
  await told.isDone
  assert.deepEqual(told.waiting, [["a"], []])
  assert.equal(server.heard.length, 1)
  assert.deepEqual({ ...server.heard[0], id: "" }, { path: "/ask", id: "", channel: "demo:test", text: "a" })
})

test("it is asked with the same id until the server says yes", async () => {
  const server = new Server(undefined, 503, undefined, 429, 500)
  const told = asking(server)
  told.asking.ask("a")
  await told.isDone
  assert.equal(server.heard.length, 6)
  assert.equal(new Set(server.heard.map(({ id }) => id)).size, 1)
  assert.deepEqual(told.refused, [])
})

test("a refusal ends it, and says why", async () => {
  const server = new Server(413)
  const told = asking(server)
  told.asking.ask("a")
  await told.isDone
  assert.equal(server.heard.length, 1)
  assert.deepEqual(told.refused, [["a", "because 413"]])
})

test("questions are stored in the order they were asked", async () => {
  const server = new Server(undefined, undefined)
  const told = asking(server)
  told.asking.ask("a")
  told.asking.ask("b")
  told.asking.ask("c")
  await told.isDone
  assert.deepEqual(
    server.heard.map(({ text }) => text),
    ["a", "a", "a", "b", "c"],
  )
})

test("a page that was reloaded goes on asking, with the same id", async () => {
  const shelf = new Shelf()
  const away = { heard: [], fetch: (path, { body }) => (away.heard.push(JSON.parse(body)), new Promise(() => {})) }
  asking(away, shelf).asking.ask("a")
  const server = new Server()
  const told = asking(server, shelf)
  assert.deepEqual(
    told.asking.waiting.map(({ text }) => text),
    ["a"],
  )
  told.asking.start()
  await told.isDone
  assert.equal(server.heard[0].id, away.heard[0].id)
  assert.deepEqual(asking(new Server(), shelf).asking.waiting, [])
})

test("what is no list of questions in the storage is none", () => {
  for (const kept of ["", "{", "{}", "null", "[1, null, {}]"]) {
    const shelf = new Shelf()
    shelf.setItem("holdfast-demo.asking.demo:test", kept)
    assert.deepEqual(asking(new Server(), shelf).asking.waiting, [])
  }
})

test("hurrying ends the wait", async () => {
  const server = new Server(503)
  let isWaiting
  const waits = new Promise((resolve) => (isWaiting = resolve))
  let done
  const isDone = new Promise((resolve) => (done = resolve))
  const patient = new Asking({
    channel: "demo:test",
    storage: new Shelf(),
    fetch: server.fetch,
    random: () => (isWaiting(), 1e6), // of the longest wait: days
    onChange: (questions) => questions.length === 0 && done(),
    onRefused: () => assert.fail(),
  })
  patient.ask("a")
  await waits
  await null // the timer is set in the same turn
  patient.hurry()
  await isDone
  assert.equal(server.heard.length, 2)
})

test("a catch-up is told in characters and events", () => {
  const all = { isReload: true, runningPoints: 0 }
  assert.equal(caughtUp({ events: 1, points: 2060 }, all), "caught up: 2,060 characters in one event")
  assert.equal(caughtUp({ events: 4, points: 2060 }, all), "caught up: 2,060 characters in 4 events")
  assert.equal(
    caughtUp({ events: 2, points: 2060 }, { isReload: true, runningPoints: 2031 }),
    "caught up: 2,031 characters in one event",
  )
  assert.equal(caughtUp({ events: 1, points: 1 }, { isReload: false, runningPoints: 900 }), "caught up: 1 character in one event")
})

test("where nothing was missed that is said, and an empty conversation says nothing", () => {
  assert.equal(caughtUp({ events: 0, points: 0 }, { isReload: true, runningPoints: 0 }), "")
  assert.equal(caughtUp({ events: 0, points: 0 }, { isReload: false, runningPoints: 9 }), "back: nothing was missed")
})

test("counts and sizes read as people write them", () => {
  assert.deepEqual([counted(0, "event"), counted(1, "event"), counted(1234, "event")], ["0 events", "1 event", "1,234 events"])
  assert.deepEqual([sized(999), sized(1_000), sized(21_449), sized(999_949), sized(999_950)], ["999 B", "1.0 KB", "21.4 KB", "999.9 KB", "1.0 MB"])
})
