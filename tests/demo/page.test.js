/**
 * The modules of the demo's pages that need no page: lost text, marks, chats, and names.
 */

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { transformSync } from "esbuild"

import { noteChat, stateOf } from "../../tenuto/web/demo/chats.js"
import { breaksOf, lostOf, marksOf, Score } from "../../tenuto/web/demo/score.js"
import { freeName, idOf, whoAmI } from "../../tenuto/web/demo/visitor.js"

const FOLDER = new URL("../../tenuto/web/demo/", import.meta.url)

/** A storage that survives its page. */
class MemoryStorage {
  #kept = new Map()
  getItem = (key) => this.#kept.get(key) ?? null
  setItem = (key, value) => void this.#kept.set(key, value)
}

// The scoreboard ------------------------------------------------------------------------------------------------------

test("lost are the characters that the text after a trial lacks", () => {
  const cases = [["", "", 0], ["abc", "abc", 0], ["abc", "abcd", 0], ["abc", "ab", 1], ["abc", "abXd", 1], ["abc", "", 3], ["a🧜b", "a", 2], ["abc", "xabc", 3]]
  for (const [before, after, lost] of cases) assert.equal(lostOf(before, after), lost, `${before} → ${after}`)
})

test("a box is ticked only if no character is lost, and the score survives a reload", () => {
  const storage = new MemoryStorage()
  const score = new Score(storage)
  assert.equal(score.settle("reload", "abc", "abcd", "3 characters came back"), 0)
  assert.equal(score.settle("reload", "abc", "abcd", "3 characters came back"), 0)
  assert.equal(score.settle("kill", "abc", "ab", "nothing lost"), 1)
  const { boxes, lost } = new Score(storage).kept
  assert.deepEqual(boxes.reload, { count: 2, isOk: true, words: "3 characters came back" })
  assert.deepEqual(boxes.kill, { count: 1, isOk: false, words: "1 character lost" })
  assert.equal(lost, 1)
})

test("servers that died between two looks are counted, and the first look counts none", () => {
  const score = new Score(new MemoryStorage())
  const deaths = [3, 3, 4, 7, 1].map((starts) => score.seeServer({ starts, kill: "kill -9 1" }))
  assert.deepEqual(deaths, [0, 0, 1, 3, 0]) // the last count is that of another supervisor
  assert.equal(score.kept.deaths, 4)
})

test("a damaged score in the storage counts as empty", () => {
  for (const kept of ["{", "[", "null", "1"]) {
    const storage = new MemoryStorage()
    storage.setItem("tenuto-demo.score", kept)
    assert.equal(new Score(storage).kept.reloads, 0)
  }
})

test("breaks have offsets in the text, and a meta of another form has none", () => {
  assert.deepEqual(breaksOf({ meta: { continued: [{ at: 2, by: "guide", successor: "guide" }] } }), [{ at: 2, by: "guide", successor: "guide", isCrash: false }])
  for (const continued of [undefined, null, 5, "x", {}, [null], [{ at: "1" }]]) assert.deepEqual(breaksOf({ meta: { continued } }), [])
})

test("marks name crashes and restarts, with the figures of this window where it saw them", () => {
  const meta = { continued: [{ at: 2, by: "guide", successor: "guide" }, { at: 4, by: "guide~1", successor: "guide~2" }, { at: 5, by: "guide", successor: "guide" }] }
  const messages = [{ id: "m", text: "abcdefgh", meta }, { id: "n", text: "", meta: {} }]
  const own = [
    { message: "m", at: 3, text: "You reloaded here.", isKill: false },
    { message: "m", at: 4, text: "Server killed here.", isKill: true },
    { message: "gone", at: 1, text: "Old", isKill: false },
  ]
  assert.deepEqual(marksOf(messages, own), [
    { message: "m", at: 3, text: "You reloaded here.", isKill: false },
    { message: "m", at: 2, text: "Server restarted here. **Nothing was lost.**" },
    { message: "m", at: 4, text: "guide~1 crashed here. **guide~2** went on." },
    { message: "m", at: 5, text: "Server killed here." },
  ])
})

// Chats ---------------------------------------------------------------------------------------------------------------

const message = (fields) => ({ id: "q", role: "user", status: "complete", text: "Why?", ...fields })
const snapshot = ({ messages = [message()], ...fields } = {}) => ({ state: "live", messages, all: messages, streaming: [], replied: [], you: { id: "@ada" }, more: false, ...fields })

test("the state of a chat is one line", () => {
  const answer = { id: "a", role: "assistant", status: "streaming", text: "x", reply_to: "q" }
  const stopped = { messages: [message(), { ...answer, status: "cancelled" }] }
  const by = (from) => [{ name: "cancel", target: "q", from }]
  const lines = [
    [snapshot(), [], "1 message"],
    [snapshot({ messages: [message(), answer], streaming: [answer] }), [], "answering"],
    [snapshot({ messages: [message(), answer], streaming: [answer] }), ["Bea"], "answering · Bea is here"],
    [snapshot({ more: true, messages: [message(), message()] }), [], "2+ messages"],
    [snapshot(), ["Bea", "Cem", "Dina"], "Bea and Cem are here"],
    [snapshot({ ...stopped, replied: by("@ada") }), [], "stopped by you"],
    [snapshot({ ...stopped, replied: by("@bea") }), [], "stopped"],
  ]
  for (const [view, others, words] of lines) assert.equal(stateOf(view, others), words)
})

test("a chat is listed with its first question, once it is live and has one", () => {
  const storage = new MemoryStorage()
  assert.deepEqual(noteChat(storage, "demo:1", snapshot({ messages: [] }), []), [])
  assert.deepEqual(noteChat(storage, "demo:1", snapshot({ state: "connecting" }), []), [])
  noteChat(storage, "demo:1", snapshot(), [])
  noteChat(storage, "demo:2", snapshot({ messages: [message({ text: "How?" })] }), [])
  const chats = noteChat(storage, "demo:1", snapshot({ messages: [message(), message({ text: "Later" })] }), [])
  assert.deepEqual(chats.map(({ channel, title, state }) => [channel, title, state]), [["demo:2", "How?", "1 message"], ["demo:1", "Why?", "2 messages"]])
})

test("chats are listed by the time of their newest message, and another state of a chat does not move it", () => {
  const storage = new MemoryStorage()
  const at = (created_at) => ({ messages: [message({ created_at })] })
  const order = (channel, fields, others = []) => noteChat(storage, channel, snapshot(fields), others).map((one) => [one.channel, one.newest_ms])
  order("demo:1", at(1_000))
  assert.deepEqual(order("demo:2", at(2_000)), [["demo:2", 2_000], ["demo:1", 1_000]])
  assert.deepEqual(order("demo:1", at(1_000), ["Bea"]), [["demo:2", 2_000], ["demo:1", 1_000]])
  assert.deepEqual(order("demo:1", at(3_000), ["Bea"]), [["demo:1", 3_000], ["demo:2", 2_000]])
  assert.deepEqual(order("demo:1", { messages: [] }), [["demo:1", 3_000], ["demo:2", 2_000]]) // all are deleted
})

// People --------------------------------------------------------------------------------------------------------------

test("a window keeps its person, random or named in the address", () => {
  const storage = new MemoryStorage()
  const drawn = whoAmI(null, storage, () => 0.5)
  assert.equal(drawn.name, "Gus")
  assert.match(drawn.id, /^@gus-\d+$/)
  assert.deepEqual(whoAmI(null, storage, () => 0), drawn)
  assert.deepEqual(whoAmI(" Ada\n", storage), { id: "@ada", name: "Ada" })
  assert.deepEqual(whoAmI(null, storage), { id: "@ada", name: "Ada" })
})

test("every name has a valid id, and different names have different ids", () => {
  const names = ["Ada", "ada b", "付着器", "🧜🏽‍♀️", "a/b", "__proto__", "é", "x".repeat(500), "=", "-", "a~b"]
  for (const id of names.map(idOf)) assert.match(id, /^@[A-Za-z0-9_.=-]{1,50}$/)
  assert.equal(new Set(names.map(idOf)).size, names.length)
})

test("an invalid person in the storage is ignored, and a lone surrogate gives a random name", () => {
  for (const kept of ["", "{", "null", "[]", '{"id": 1}', '{"id": "", "name": "x"}']) {
    const storage = new MemoryStorage()
    storage.setItem("tenuto-demo.me", kept)
    assert.equal(whoAmI(null, storage, () => 0).name, "Ada")
  }
  assert.equal(whoAmI("\ud800", new MemoryStorage(), () => 0).name, "Ada")
})

test("a guest gets a name that no present person has", () => {
  assert.equal(freeName(["Ada", "Cem"]), "Bea")
  assert.match(freeName(["Ada", "Bea", "Cem", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kai", "Lea"]), /^Ada 12$/)
})

// The files -----------------------------------------------------------------------------------------------------------

test("the pages are below 600 lines of JavaScript and HTML", () => {
  const files = readdirSync(FOLDER).filter((name) => /\.(js|html)$/.test(name))
  const lines = files.reduce((sum, name) => sum + readFileSync(new URL(name, FOLDER), "utf8").split("\n").length - 1, 0)
  assert.ok(lines < 600, `${lines} lines`)
})

test("the React code of the page is the tested example of the documentation, and the compiled code is made of it", () => {
  const page = readFileSync(new URL("../../docs/browser.md", import.meta.url), "utf8")
  const shown = readFileSync(new URL("react_chat.jsx", FOLDER), "utf8")
  assert.ok(page.includes(`\`\`\`jsx\n${shown.replaceAll("demo:one-tag", "chat:1")}\`\`\``))
  const [header, ...lines] = readFileSync(new URL("vendor/react_chat.js", FOLDER), "utf8").split("\n")
  assert.match(header, /made by scripts\/vendor_web/)
  assert.equal(lines.join("\n"), transformSync(shown, { loader: "jsx", jsx: "automatic" }).code)
})
