/** The costs and bounds of the view; the vectors test its state. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { dump } from "../../tenuto/web/client/dump.js"
import { shownMessage } from "../../tenuto/web/client/snapshot.js"
import { View } from "../../tenuto/web/view.js"

test("an append costs its own text, not the text before it", () => {
  const view = new View()
  const head = { id: "m", role: "assistant", status: "streaming", created: 1, version: 1, created_at: 1, updated_at: 1 }
  const start = { type: "channel.attached", channel: "c", epoch: "e", serial: 1, resumed: false }
  const message = { ...head, parts: [{ type: "text", text: "x".repeat(1_000_000) }] }
  view.apply({ cursor: "e:1", events: [start, { type: "message.update", serial: 1, message }] })
  const started = process.cpuUsage()
  for (let index = 0; index < 20_000; index++) {
    const event = { type: "message.append", serial: index + 2, id: "m", part: 0, at: 1_000_000 + index, text: "y" }
    view.apply({ cursor: `e:${index + 2}`, events: [event] })
    view.getSnapshot()
  }
  // Recounting a million code points for each of them would take half a minute; this takes some 50 ms.
  assert.ok(process.cpuUsage(started).user < 3_000_000) // in µs, as other processes may hold this one up
  assert.equal(view.getSnapshot().messages[0].parts[0].text.length, 1_020_000)
})

test("an append among a thousand messages makes one new message, and sorts none", () => {
  const view = new View()
  const message = (index, status) => ({
    id: `m${index}`, role: "user", status, created: index, version: index, created_at: 1, updated_at: 1, parts: [{ type: "text", text: "" }],
  })
  const start = { type: "channel.attached", channel: "c", epoch: "e", serial: 1_000, resumed: false }
  const created = Array.from({ length: 1_000 }, (_, index) => message(index + 1, "streaming"))
  view.apply({ cursor: "e:1000", events: [start, ...created.map((one) => ({ type: "message.update", serial: one.version, message: one }))] })
  const { messages: before } = view.getSnapshot()
  view.apply({ cursor: "e:1001", events: [{ type: "message.append", serial: 1_001, id: "m7", part: 0, at: 0, text: "x" }] })
  const { messages: after } = view.getSnapshot()
  assert.equal(before[6].parts[0].text, "")
  assert.equal(after[6].parts[0].text, "x")
  assert.deepEqual(after.map((one, index) => one === before[index]).indexOf(false), 6)
  assert.deepEqual(after.filter((one, index) => one !== before[index]).length, 1)
})

test("the serials of messages outside the view are bounded: the oldest is dropped", () => {
  const view = new View()
  const start = { type: "channel.attached", channel: "c", epoch: "e", serial: 1, resumed: false, more: true, before: 9 }
  view.apply({ cursor: "e:1", events: [start] })
  for (let index = 0; index <= 10_000; index++) {
    view.apply({ events: [{ type: "message.delete", serial: index + 2, id: `m${index}` }] })
  }
  const old = (id) => ({ id, role: "user", status: "complete", created: 1, version: 1, created_at: 1, updated_at: 1 })
  view.merge({ messages: [old("m0"), old("m1")], more: true })
  assert.deepEqual(view.getSnapshot().messages.map(({ id }) => id), ["m0"])
})

test("a presence event after a whole batch leaves the view whole, so that another tab gets its dump", () => {
  const view = new View()
  view.apply({ cursor: "e:1", events: [{ type: "channel.attached", channel: "c", epoch: "e", serial: 1, resumed: false }] })
  view.apply({ cursor: null, events: [{ type: "presence.enter", member: { id: "bot", kind: "agent", connections: 1 } }] })
  assert.equal(dump(view)?.cursor, "e:1")
  const message = { id: "m", role: "user", status: "complete", created: 2, version: 2, created_at: 1, updated_at: 1, parts: [] }
  view.apply({ cursor: null, events: [{ type: "message.create", serial: 2, message }] })
  assert.equal(dump(view), null) // the batch goes on
})

test("an attempt that was superseded is in `attempts`, and in no text", () => {
  const attempt = { type: "attempt", parts: [{ type: "text", text: "Lost" }], characters: 4 }
  const stored = { id: "m", role: "assistant", status: "streaming", parts: [attempt, { type: "text", text: "Kept", joins: [2] }], created: 1, version: 3, created_at: 0, updated_at: 0 }
  const { text, attempts, parts } = shownMessage(stored)
  assert.deepEqual([text, attempts, parts.length], ["Kept", [attempt], 2])
})
