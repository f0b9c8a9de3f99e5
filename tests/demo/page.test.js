/**
 * The parts of the demo page that need no page: who one is, questions on their way, and what is said of what happened.
 */

import assert from "node:assert/strict"
import { test } from "node:test"

import { Asking } from "../../holdfast/web/demo/asking.js"
import { idOf, rename, whoAmI } from "../../holdfast/web/demo/me.js"
import { Typing } from "../../holdfast/web/demo/people.js"
import { breakOf, caughtUp, counted, nameOf, outcomeOf, pendingOf, questionOf, sized, stateOf, typingOf, workOf } from "../../holdfast/web/demo/words.js"

/** A storage that outlives its page. */
class Shelf {
  #kept = new Map()
  getItem = (key) => this.#kept.get(key) ?? null
  setItem = (key, value) => void this.#kept.set(key, value)
}

const full = { getItem: () => null, setItem: () => { throw new Error("QuotaExceededError") } }

// Questions on their way ----------------------------------------------------------------------------------------------

/** An asking, what it told and what it sent. A question that is sent waits in `sent` to be settled. */
function asking(storage = new Shelf()) {
  const told = { sent: [], waiting: [], refused: [] }
  told.asking = new Asking({
    channel: "demo:test",
    storage,
    send: (question) => new Promise((resolve, reject) => told.sent.push({ ...question, resolve, reject })),
    onChange: (questions) => told.waiting.push(questions.map(({ text }) => text)),
    onRefused: (question, why) => told.refused.push([question.text, why]),
  })
  return told
}

const settled = () => new Promise((resolve) => setImmediate(resolve))

test("a question is on its way until it is stored", async () => {
  const told = asking()
  told.asking.ask("a")
  assert.deepEqual(told.waiting, [["a"]])
  told.sent[0].resolve()
  await settled()
  assert.deepEqual(told.waiting, [["a"], []])
  assert.match(told.sent[0].id, /^[\w-]{36}$/)
})

test("a refusal ends it, and says why", async () => {
  const told = asking()
  told.asking.ask("a")
  told.sent[0].reject(new Error("because"))
  await settled()
  assert.deepEqual(told.waiting, [["a"], []])
  assert.deepEqual(told.refused, [["a", "because"]])
})

test("questions are stored in the order they were asked", async () => {
  const told = asking()
  for (const text of ["a", "b", "c"]) told.asking.ask(text)
  assert.deepEqual(told.sent.map(({ text }) => text), ["a"])
  for (const index of [0, 1, 2]) {
    told.sent[index].resolve()
    await settled()
  }
  assert.deepEqual(told.sent.map(({ text }) => text), ["a", "b", "c"])
})

test("a page that was reloaded goes on asking, with the same id", async () => {
  const shelf = new Shelf()
  const before = asking(shelf)
  before.asking.ask("a")
  const after = asking(shelf)
  assert.deepEqual(after.asking.waiting.map(({ text }) => text), ["a"])
  after.asking.start()
  assert.equal(after.sent[0].id, before.sent[0].id)
  after.sent[0].resolve()
  await settled()
  assert.deepEqual(asking(shelf).asking.waiting, [])
})

test("what is no list of questions in the storage is none, and a full storage forbids no question", async () => {
  for (const kept of ["", "{", "{}", "null", "[1, null, {}]"]) {
    const shelf = new Shelf()
    shelf.setItem("holdfast-demo.asking.demo:test", kept)
    assert.deepEqual(asking(shelf).asking.waiting, [])
  }
  const told = asking(full)
  told.asking.ask("a")
  assert.equal(told.sent.length, 1)
})

// Who one is ----------------------------------------------------------------------------------------------------------

test("a window keeps its person, drawn or asked for", () => {
  const shelf = new Shelf()
  const drawn = whoAmI(null, shelf, () => 0.5)
  assert.deepEqual(drawn, { id: "@otter-55", name: "Otter 55", came: "Otter 55" })
  assert.deepEqual(whoAmI(null, shelf, () => 0), drawn)
  const ada = whoAmI("Ada", shelf)
  assert.deepEqual(ada, { id: "@ada", name: "Ada", came: "Ada" })
  assert.deepEqual(whoAmI(null, shelf), ada)
})

test("a new name leaves the id, also through a reload of the same address", () => {
  const shelf = new Shelf()
  const renamed = rename(whoAmI("Ada", shelf), "  Countess\nof   Lovelace ", shelf)
  assert.deepEqual(renamed, { id: "@ada", name: "Countess of Lovelace", came: "Ada" })
  assert.deepEqual(whoAmI("Ada", shelf), renamed)
  assert.equal(rename(renamed, " \t", shelf).name, "Ada")
  assert.equal(whoAmI("Bob", shelf).id, "@bob")
})

test("ids are ids whatever the name is, and different names have different ones", () => {
  const names = ["Ada", "ada b", "付着器", "🧜🏽‍♀️", "a/b", "__proto__", "é", "x".repeat(500), "=", "-"]
  const ids = names.map(idOf)
  for (const id of ids) assert.match(id, /^@[a-z0-9=-]{1,60}$/)
  assert.equal(new Set(ids).size, names.length)
})

test("what is kept and is nobody is nobody, and a full storage keeps nobody", () => {
  for (const kept of ["", "{", "null", "[]", '{"id": 1}', '{"id": "x", "name": "", "came": "x"}']) {
    const shelf = new Shelf()
    shelf.setItem("holdfast-demo.me", kept)
    assert.equal(whoAmI(null, shelf, () => 0).name, "Crab 10")
  }
  assert.equal(whoAmI("Ada", full).id, "@ada")
})

test("who types is believed for four seconds, or until they say otherwise", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] })
  let changes = 0
  const typing = new Typing(() => changes++)
  typing.hear("@ada", "Ada")
  typing.hear("@bob", "Bob")
  t.mock.timers.tick(3_000)
  typing.hear("@ada", "Ada")
  t.mock.timers.tick(1_000)
  assert.deepEqual(typing.names, ["Ada"])
  typing.end("@ada")
  typing.end("@ada")
  assert.deepEqual(typing.names, [])
  assert.equal(changes, 5)
})

// Words ---------------------------------------------------------------------------------------------------------------

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

test("who types is told by name, up to three", () => {
  const sentences = [[], ["Ada"], ["Ada", "Bo"], ["Ada", "Bo", "Cy"], ["Ada", "Bo", "Cy", "Di"]].map(typingOf)
  assert.deepEqual(sentences, ["", "Ada is typing…", "Ada and Bo are typing…", "Ada, Bo and Cy are typing…", "several people are typing…"])
})

test("what agents do is told in their own words", () => {
  const states = [{ state: "listening" }, { state: "answering" }, { state: "waiting" }, { state: "using a tool", tool: "search" }, {}, { state: 5 }]
  assert.deepEqual(states.map(workOf), ["listening", "answering…", "waiting for approval", "using a tool: search", "", ""])
})

test("commands and their ends are told to everybody, with names", () => {
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
  assert.equal(outcomeOf(approve, { ok: false, error: { code: "expired" } }, naming), "nobody answered in time")
  assert.equal(outcomeOf(approve, { ok: false, error: { code: "withdrawn" }, from: "guide" }, naming), "")
  assert.equal(outcomeOf(command("steer"), { ok: true, from: "guide" }, naming), "guide takes that up")
  assert.equal(outcomeOf(command("cancel"), { ok: true, from: "guide" }, naming), "")
})

test("others' data may be anything", () => {
  assert.equal(nameOf({ id: "@ada", data: { name: 5 } }), "ada")
  assert.equal(nameOf({ id: "@ada", data: { name: "<b>" } }), "<b>")
  assert.equal(breakOf({ by: {}, successor: null }), "interrupted here:  crashed.  goes on")
  assert.equal(stateOf("failed", { code: 1 }), "failed")
})

test("a break tells who crashed and who goes on, or of a restart", () => {
  assert.equal(breakOf({ by: "diver", successor: "guide" }), "interrupted here: diver crashed. guide goes on")
  assert.equal(breakOf({ by: "guide", successor: "guide" }), "interrupted here, and gone on with after a restart")
  assert.equal(stateOf("failed", "AuthenticationError"), "failed: AuthenticationError")
})
