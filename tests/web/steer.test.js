/** What the chat element does with a steer that was not read in time. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { Composer } from "../../tenuto/web/chat/composer.js"

const STEER = { id: "s", name: "steer", target: "a", data: { text: "Shorter" }, expires_at: 1 }
const EXPIRED = { code: "expired" }
const ANSWER = { id: "a", reply_to: "q" }
const WORKING = { kind: "agent", data: { state: "thinking", message: "q" } }

/** Let the composer of a chat get the reply `error` to a steer. Return the commands that it sends, its status line and its text. @param {{ target?: string, streaming?: object[], members?: object[], error?: object, refusal?: object }} chat */
async function replied({ target = "a", streaming = [ANSWER], members = [], error = EXPIRED, refusal }) {
  /** @type {unknown[]} */
  const sent = []
  const command = async (/** @type {unknown[]} */ ...request) => {
    sent.push(request)
    if (refusal) throw refusal
  }
  const channel = { getSnapshot: () => ({ streaming, presence: { members } }), command }
  const panel = { channel, line: { trouble: "" }, words: { notSteered: "Too late" }, schedule() {} }
  const composer = Object.create(Composer.prototype, { panel: { value: panel }, input: { value: { value: "" } }, changed: { value() {} } })
  await composer.steerAgain({ ...STEER, target }, error)
  return [sent, panel.line.trouble, composer.input.value]
}

const again = (/** @type {string} */ target) => [["steer", { id: "s+", target, data: STEER.data }]]

for (const [what, chat] of /** @type {const} */ ([
  ["its answer is written", {}],
  ["the answer to its question is written", { target: "q" }],
  ["an agent works on its question", { target: "q", streaming: [], members: [{ kind: "user" }, WORKING] }],
])) {
  test(`a steer whose time has ended while ${what} is sent again, under the id that all tabs send`, async () => {
    assert.deepEqual(await replied(chat), [again(chat.target ?? "a"), "", ""])
  })
}

for (const [what, chat] of /** @type {const} */ ([
  ["whose turn is over", { streaming: [], members: [{ kind: "agent" }] }],
  ["whose turn is over while the next one runs", { streaming: [{ id: "b", reply_to: "r" }], members: [{ kind: "agent", data: { message: "r" } }] }],
  ["that its agent refuses", { error: { code: "no" } }],
])) {
  test(`a steer ${what} is too late, and its text is in the field again`, async () => {
    assert.deepEqual(await replied(chat), [[], "Too late", "Shorter"])
  })
}

test("a steer that cannot be sent again is too late", async () => {
  assert.deepEqual(await replied({ refusal: { code: "too_many" } }), [again("a"), "Too late", "Shorter"])
})
