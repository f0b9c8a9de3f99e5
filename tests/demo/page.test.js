/**
 * The modules of the demo page that need no page: identity, unsent questions, and texts.
 */

import assert from "node:assert/strict"
import { test } from "node:test"

import { UnsentQuestions } from "../../holdfast/web/demo/unsent.js"
import { idOf, rename, whoAmI } from "../../holdfast/web/demo/me.js"
import { Typing } from "../../holdfast/web/demo/people.js"
import { breakOf, caughtUp, counted, nameOf, outcomeOf, pendingOf, questionOf, sized, stateOf, typingOf, workOf } from "../../holdfast/web/demo/words.js"

/** A storage that survives its page. */
class MemoryStorage {
  #kept = new Map()
  getItem = (key) => this.#kept.get(key) ?? null
  setItem = (key, value) => void this.#kept.set(key, value)
}

const full = { getItem: () => null, setItem: () => { throw new Error("QuotaExceededError") } }

// Unsent questions ----------------------------------------------------------------------------------------------------

/** Return unsent questions with a record of their calls. A question waits in `sent` until the test settles it. */
function unsent(storage = new MemoryStorage()) {
  const seen = { sent: [], waiting: [], refused: [] }
  seen.questions = new UnsentQuestions({
    channel: "demo:test",
    storage,
    send: (question) => new Promise((resolve, reject) => seen.sent.push({ ...question, resolve, reject })),
    onChange: (questions) => seen.waiting.push(questions.map(({ text }) => text)),
    onRefused: (question, why) => seen.refused.push([question.text, why]),
  })
  return seen
}

const settled = () => new Promise((resolve) => setImmediate(resolve))

test("a question is unsent until it is stored", async () => {
  const seen = unsent()
  seen.questions.add("a")
  assert.deepEqual(seen.waiting, [["a"]])
  seen.sent[0].resolve()
  await settled()
  assert.deepEqual(seen.waiting, [["a"], []])
  assert.match(seen.sent[0].id, /^[\w-]{36}$/)
})

test("a refusal drops the question and reports the reason", async () => {
  const seen = unsent()
  seen.questions.add("a")
  seen.sent[0].reject(new Error("because"))
  await settled()
  assert.deepEqual(seen.waiting, [["a"], []])
  assert.deepEqual(seen.refused, [["a", "because"]])
})

test("questions are stored in their order", async () => {
  const seen = unsent()
  for (const text of ["a", "b", "c"]) seen.questions.add(text)
  assert.deepEqual(seen.sent.map(({ text }) => text), ["a"])
  for (const index of [0, 1, 2]) {
    seen.sent[index].resolve()
    await settled()
  }
  assert.deepEqual(seen.sent.map(({ text }) => text), ["a", "b", "c"])
})

test("a reloaded page sends the question again with the same id", async () => {
  const shelf = new MemoryStorage()
  const before = unsent(shelf)
  before.questions.add("a")
  const after = unsent(shelf)
  assert.deepEqual(after.questions.waiting.map(({ text }) => text), ["a"])
  after.questions.start()
  assert.equal(after.sent[0].id, before.sent[0].id)
  after.sent[0].resolve()
  await settled()
  assert.deepEqual(unsent(shelf).questions.waiting, [])
})

test("an invalid list in the storage counts as empty, and a full storage does not stop a question", async () => {
  for (const kept of ["", "{", "{}", "null", "[1, null, {}]"]) {
    const shelf = new MemoryStorage()
    shelf.setItem("holdfast-demo.unsent.demo:test", kept)
    assert.deepEqual(unsent(shelf).questions.waiting, [])
  }
  const seen = unsent(full)
  seen.questions.add("a")
  assert.equal(seen.sent.length, 1)
})

// Identity ------------------------------------------------------------------------------------------------------------

test("a window keeps its person, random or named in the address", () => {
  const shelf = new MemoryStorage()
  const drawn = whoAmI(null, shelf, () => 0.5)
  assert.deepEqual(drawn, { id: "@otter-55", name: "Otter 55", came: "Otter 55" })
  assert.deepEqual(whoAmI(null, shelf, () => 0), drawn)
  const ada = whoAmI("Ada", shelf)
  assert.deepEqual(ada, { id: "@ada", name: "Ada", came: "Ada" })
  assert.deepEqual(whoAmI(null, shelf), ada)
})

test("a new name keeps the id, also after a reload of the same address", () => {
  const shelf = new MemoryStorage()
  const renamed = rename(whoAmI("Ada", shelf), "  Countess\nof   Lovelace ", shelf)
  assert.deepEqual(renamed, { id: "@ada", name: "Countess of Lovelace", came: "Ada" })
  assert.deepEqual(whoAmI("Ada", shelf), renamed)
  assert.equal(rename(renamed, " \t", shelf).name, "Ada")
  assert.equal(whoAmI("Bob", shelf).id, "@bob")
})

test("every name has a valid id, and different names have different ids", () => {
  const names = ["Ada", "ada b", "付着器", "🧜🏽‍♀️", "a/b", "__proto__", "é", "x".repeat(500), "=", "-"]
  const ids = names.map(idOf)
  for (const id of ids) assert.match(id, /^@[a-z0-9=-]{1,60}$/)
  assert.equal(new Set(ids).size, names.length)
})

test("an invalid person in the storage is ignored, and a full storage keeps no person", () => {
  for (const kept of ["", "{", "null", "[]", '{"id": 1}', '{"id": "x", "name": "", "came": "x"}']) {
    const shelf = new MemoryStorage()
    shelf.setItem("holdfast-demo.me", kept)
    assert.equal(whoAmI(null, shelf, () => 0).name, "Crab 10")
  }
  assert.equal(whoAmI("Ada", full).id, "@ada")
})

test("a person counts as typing for four seconds after a signal, or until it ends", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] })
  let changes = 0
  const typing = new Typing(() => changes++)
  typing.add("@ada", "Ada")
  typing.add("@bob", "Bob")
  t.mock.timers.tick(3_000)
  typing.add("@ada", "Ada")
  t.mock.timers.tick(1_000)
  assert.deepEqual(typing.names, ["Ada"])
  typing.end("@ada")
  typing.end("@ada")
  assert.deepEqual(typing.names, [])
  assert.equal(changes, 5)
})

// Words ---------------------------------------------------------------------------------------------------------------

test("a catch-up is reported in characters and events", () => {
  const all = { isReload: true, runningPoints: 0 }
  assert.equal(caughtUp({ events: 1, points: 2060 }, all), "caught up: 2,060 characters in one event")
  assert.equal(caughtUp({ events: 4, points: 2060 }, all), "caught up: 2,060 characters in 4 events")
  assert.equal(
    caughtUp({ events: 2, points: 2060 }, { isReload: true, runningPoints: 2031 }),
    "caught up: 2,031 characters in one event",
  )
  assert.equal(caughtUp({ events: 1, points: 1 }, { isReload: false, runningPoints: 900 }), "caught up: 1 character in one event")
})

test("a reconnect without missed events is reported, an empty conversation is not", () => {
  assert.equal(caughtUp({ events: 0, points: 0 }, { isReload: true, runningPoints: 0 }), "")
  assert.equal(caughtUp({ events: 0, points: 0 }, { isReload: false, runningPoints: 9 }), "back: no event was missed")
})

test("counts and sizes are formatted for people", () => {
  assert.deepEqual([counted(0, "event"), counted(1, "event"), counted(1234, "event")], ["0 events", "1 event", "1,234 events"])
  assert.deepEqual([sized(999), sized(1_000), sized(21_449), sized(999_949), sized(999_950)], ["999 B", "1.0 KB", "21.4 KB", "999.9 KB", "1.0 MB"])
})

test("typing people are named, up to three", () => {
  const sentences = [[], ["Ada"], ["Ada", "Bo"], ["Ada", "Bo", "Cy"], ["Ada", "Bo", "Cy", "Di"]].map(typingOf)
  assert.deepEqual(sentences, ["", "Ada is typing…", "Ada and Bo are typing…", "Ada, Bo and Cy are typing…", "several people are typing…"])
})

test("the activity of agents is shown in their own words", () => {
  const states = [{ state: "listening" }, { state: "answering" }, { state: "waiting" }, { state: "using a tool", tool: "search" }, {}, { state: 5 }]
  assert.deepEqual(states.map(workOf), ["listening", "answering…", "waiting for approval", "using a tool: search", "", ""])
})

test("commands and their replies are reported with names", () => {
  const naming = (id) => ({ "@ada": "Ada", guide: "guide" })[id] ?? id
  const command = (name, data) => ({ id: "c", name, from: "@ada", data, expires_at: 1 })
  assert.equal(pendingOf(command("cancel"), naming), "Ada stops the answer…")
  assert.equal(pendingOf(command("steer", { text: "shorter" }), naming), "Ada steers: shorter")
  assert.equal(pendingOf(command("approve", { question: "Really?" }), naming), "Ada asks: Really?")
  assert.equal(pendingOf(command("their own"), naming), "")
  const approve = command("approve", { question: "Really?" })
  assert.equal(questionOf(approve), "Really?")
  assert.equal(questionOf(command("approve", null)), "@ada asks for your approval.")
  assert.equal(outcomeOf(approve, { ok: true, from: "@bob", data: { name: "Bob" } }, naming), "Bob said yes")
  assert.equal(outcomeOf(approve, { ok: false, from: "@ada" }, naming), "Ada said no")
  assert.equal(outcomeOf(approve, { ok: false, error: { code: "expired" } }, naming), "no reply came in time")
  assert.equal(outcomeOf(approve, { ok: false, error: { code: "withdrawn" }, from: "guide" }, naming), "")
  assert.equal(outcomeOf(command("steer"), { ok: true, from: "guide" }, naming), "guide takes that up")
  assert.equal(outcomeOf(command("cancel"), { ok: true, from: "guide" }, naming), "")
})

test("data of other people may have any type", () => {
  assert.equal(nameOf({ id: "@ada", data: { name: 5 } }), "ada")
  assert.equal(nameOf({ id: "@ada", data: { name: "<b>" } }), "<b>")
  assert.equal(breakOf({ by: {}, successor: null }), "interrupted here:  crashed.  continues")
  assert.equal(stateOf("failed", { code: 1 }), "failed")
})

test("a break names the crashed and the continuing writer, or a restart", () => {
  assert.equal(breakOf({ by: "diver", successor: "guide" }), "interrupted here: diver crashed. guide continues")
  assert.equal(breakOf({ by: "guide", successor: "guide" }), "interrupted here and continued after a restart")
  assert.equal(stateOf("failed", "AuthenticationError"), "failed: AuthenticationError")
})
