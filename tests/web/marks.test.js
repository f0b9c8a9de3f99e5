/** The element's own marks: what they count, and which of them still belong to the text in view. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { Marks } from "../../tenuto/web/chat/marks.js"
import { STRINGS } from "../../tenuto/web/chat/strings.js"
import { View } from "../../tenuto/web/view.js"
import { append, attached, channelOf, goLive, message, settled, update } from "./fakes.js"

/** Return the marks of a channel with one running answer, and a function that changes its text, its attempts and the connection. */
function marked() {
  const answer = (/** @type {string} */ text, /** @type {number} */ attempts) => /** @type {any} */ ({ id: "a", status: "streaming", text, attempts: Array(attempts).fill({}) })
  let now = answer("", 0)
  const channel = { name: "chat:1", state: "live", getSnapshot: () => ({ messages: [now] }) }
  const marks = new Marks(/** @type {any} */ ({ host: {}, words: STRINGS, channel, client: { now: () => 0, token: {} }, closing: new AbortController() }))
  return (/** @type {string} */ text, attempts = 0, state = "live") => {
    now = answer(text, attempts)
    channel.state = state
    if (marks.changed()) marks.choose()
    return marks.of(now).map(({ at, text }) => `${at}: ${text}`)
  }
}

test("a mark counts the characters that a connection brought back", () => {
  const show = marked()
  show("Four", 0, "reconnecting")
  assert.deepEqual(show("Four, ten!"), ["4: Reconnected. **6 characters** came back."])
})

test("a mark of text that another attempt replaced is gone", () => {
  const show = marked()
  show("First", 0, "reconnecting")
  assert.deepEqual(show("First"), ["5: Reconnected, nothing was missed."])
  assert.deepEqual(show("Second, which is longer", 1), [])
})

test("text that another attempt replaced while the connection was lost gets no mark", () => {
  const show = marked()
  show("First", 0, "reconnecting")
  assert.deepEqual(show("Second, which is longer", 1), [])
})

/** Return a client with an answer whose text is "a", and a function that returns the words of its marks. */
function marksOf(t, options) {
  const { w, channel } = channelOf(t, options)
  const marks = new Marks(/** @type {any} */ ({ host: {}, words: STRINGS, channel, client: w.client, closing: new AbortController() }))
  channel.subscribe(() => marks.changed() && marks.choose())
  return { w, channel, words: () => marks.of(channel.getSnapshot().messages[0]).map(({ text }) => text) }
}

const RECONNECTED = ["Reconnected. **1 characters** came back."]

/** End the connection with `code`, and connect again `pause_ms` later, with one more character. */
function reconnect(w, code, pause_ms) {
  w.socket.drop(code)
  w.pass(pause_ms)
  w.socket.open()
  w.socket.events("c", "e:2", attached(2, { resumed: true }), append(2, "m", 1, "b"))
}

test("an identity that is renewed leaves no mark, over a WebSocket", (t) => {
  const { w, words } = marksOf(t, {})
  goLive(w)
  reconnect(w, 4200, 250)
  assert.deepEqual(words(), [])
  w.socket.drop()
  w.openAfter(1_000)
  w.socket.events("c", "e:2", attached(2, { resumed: true }))
  assert.deepEqual(words(), ["Reconnected, nothing was missed."]) // a connection that was lost leaves one
})

test("an identity whose renewal takes a visible time leaves a mark", (t) => {
  const { w, words } = marksOf(t, {})
  goLive(w)
  reconnect(w, 4200, 2_000)
  assert.deepEqual(words(), RECONNECTED)
})

test("an identity that is renewed leaves no mark, over SSE and long poll", async (t) => {
  const stream = marksOf(t, { transport: "sse" })
  const { source } = stream.w
  await source.open()
  await source.receive(attached(1))
  await source.receive(update(message("m", 1, "a")), "e:1")
  await source.bye("unauthenticated")
  stream.w.pass(250)
  await settled()
  await stream.w.source.open()
  await stream.w.source.receive(append(2, "m", 1, "b"), "e:2")
  assert.equal(stream.w.sources.length, 2)
  assert.deepEqual(stream.words(), [])
  const poll = marksOf(t, { transport: "poll" })
  await poll.w.http.poll({ cursor: "e:1", events: [attached(1), update(message("m", 1, "a"))] })
  await poll.w.http.poll({ code: "unauthenticated" }, 401)
  poll.w.pass(250)
  await settled()
  await poll.w.http.poll({ cursor: "e:2", events: [append(2, "m", 1, "b")] })
  assert.deepEqual(poll.words(), [])
})

test("an answer through which the page is reloaded again and again has one mark, at the last place", (t) => {
  const kept = new Map()
  globalThis.sessionStorage = /** @type {any} */ ({ getItem: (/** @type {string} */ key) => kept.get(key), setItem: (/** @type {string} */ key, /** @type {string} */ value) => kept.set(key, value) })
  t.after(() => Reflect.deleteProperty(globalThis, "sessionStorage"))
  const client = { now: () => 0, token: {}, outbox: { prefix: "" }, closing: new AbortController().signal }
  let shown = /** @type {unknown[]} */ ([])
  for (const text of ["a", "ab", "abc", "abcd"]) {
    const answer = /** @type {any} */ ({ id: "a", status: "streaming", text, attempts: [] })
    const channel = { name: "chat:1", state: "connecting", getSnapshot: () => ({ messages: [answer] }) }
    const marks = new Marks(/** @type {any} */ ({ host: {}, words: STRINGS, channel, client, closing: new AbortController() }))
    channel.state = "live"
    if (marks.changed()) marks.choose()
    shown = marks.of(answer).map(({ at, text }) => [at, text])
    marks.save() // as the panel does when its page ends
  }
  assert.deepEqual(shown, [[3, "Welcome back. **4 characters** came back."]])
})

test("a new tab that begins with the view of the cache has no mark, because the person has not left", (t) => {
  const { w, channel, words } = marksOf(t, {})
  const view = new View()
  view.apply({ cursor: "e:1", events: [attached(1), update(message("m", 1, "a"))] })
  channel.show(view, true)
  w.socket.open()
  w.socket.events("c", "e:2", attached(2, { resumed: true }), append(2, "m", 1, "b"))
  assert.equal(channel.getSnapshot().messages[0].text, "ab")
  assert.deepEqual(words(), [])
})
