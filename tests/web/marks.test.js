/** The element's own marks: what they count, and which of them still belong to the text in view. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { Marks } from "../../tenuto/web/chat/marks.js"
import { STRINGS } from "../../tenuto/web/chat/strings.js"

Object.assign(globalThis, { addEventListener() {} })

/** Return the marks of a channel with one running answer, and a function that changes its text, its attempts and the connection. */
function marked() {
  const answer = (/** @type {string} */ text, /** @type {number} */ attempts) => /** @type {any} */ ({ id: "a", status: "streaming", text, attempts: Array(attempts).fill({}) })
  let now = answer("", 0)
  const channel = { name: "chat:1", state: "live", getSnapshot: () => ({ messages: [now] }) }
  const marks = new Marks(/** @type {any} */ ({ host: {}, words: STRINGS, channel, client: {}, closing: new AbortController() }))
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
