/** The view and the surrogate joiner against the vectors that Python runs too (`tests/vectors/README.md`). */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { describe, test } from "node:test"

import { dump } from "../../tenuto/web/client/dump.js"
import { countPoints, dropPoints, SurrogateJoiner } from "../../tenuto/web/client/text.js"
import { View } from "../../tenuto/web/view.js"

const read = (name) => JSON.parse(readFileSync(new URL(`../vectors/${name}.json`, import.meta.url), "utf8"))

/** A view, with the past events that the vectors check. */
class Run {
  view = new View()
  gap = false
  ask_again = undefined
  passed = []

  take({ batch, page, cut }) {
    if (batch) {
      const { isGap, passed } = this.view.apply(batch)
      this.gap ||= isGap
      this.passed.push(...passed)
    } else if (page) this.ask_again = !this.view.merge(page)
    else if (cut) this.view.disconnect()
    else assert.fail("unknown step")
  }

  /** Return every value that a vector can expect, in the form of the vectors. */
  state() {
    const { messages, more, commands, presence } = this.view.getSnapshot()
    const { cursor, before } = this.view
    const { gap, ask_again, passed } = this
    return { messages, cursor, gap, before, more, ask_again, commands, ...presence, passed }
  }

  check(expected, where) {
    const state = this.state()
    for (const [field, value] of Object.entries(expected)) {
      assert.ok(field in state, `unknown expectation ${field}`)
      assert.deepEqual(state[field], value, `${field} ${where}`)
    }
  }
}

for (const file of ["view", "commands", "presence"]) {
  describe(file, () => {
    for (const { name, steps, expect } of read(file)) {
      test(name, () => {
        const run = new Run()
        steps.forEach((step, index) => {
          run.take(step)
          if (step.expect) run.check(step.expect, `after step ${index + 1}`)
        })
        run.check(expect, "at the end")
      })
    }
  })
}

test("a view that takes the dump of another shows the same, and continues from the same cursor", () => {
  let dumps = 0
  for (const { name, steps } of ["view", "commands", "presence"].flatMap(read)) {
    const run = new Run()
    steps.forEach((step, index) => {
      run.take(step)
      const batch = dump(run.view)
      if (!batch) return
      const copy = new View()
      assert.equal(copy.apply(JSON.parse(JSON.stringify(batch))).isGap, false)
      const { messages, replied: _, ...rest } = run.view.getSnapshot() // a dump has the pending commands only
      const { messages: copied, replied: __, ...others } = JSON.parse(JSON.stringify(copy.getSnapshot()))
      // Messages that ended above the oldest page are outside of a new start.
      const inside = messages.filter(({ created, status }) => created >= run.view.before || status === "streaming")
      assert.deepEqual([copied, others, copy.cursor, copy.before], [inside, rest, run.view.cursor, run.view.before], `${name}, step ${index + 1}`)
      dumps++
    })
  }
  assert.ok(dumps > 50, `${dumps} dumps`)
})

test("inside a batch there is no dump", () => {
  const view = emptyView()
  assert.ok(dump(view))
  view.apply({ events: [{ type: "message.append", serial: 2, id: "m", part: 0, at: 0, text: "a" }] })
  assert.equal(dump(view), null)
  view.apply({ cursor: "e:2", events: [] })
  assert.ok(dump(view))
})

const MESSAGE = { id: "m", role: "assistant", status: "streaming", created: 1, version: 1, created_at: 1, updated_at: 1 }
const ATTACHED = { type: "channel.attached", channel: "c", epoch: "e", serial: 1, resumed: false, more: false, before: 1 }

/** A view of one message with an empty text part. */
function emptyView() {
  const view = new View()
  const message = { ...MESSAGE, parts: [{ type: "text", text: "" }] }
  view.apply({ cursor: "e:1", events: [ATTACHED, { type: "message.update", serial: 1, message }] })
  return view
}

describe("text", () => {
  for (const { name, text, code_points, utf8_bytes, pieces } of read("text")) {
    test(name, () => {
      assert.equal(pieces.map((piece) => piece.text).join(""), text)
      assert.equal(countPoints(text), code_points)
      assert.equal(new TextEncoder().encode(text).length, utf8_bytes)
      assert.equal(JSON.parse(JSON.stringify(text)), text)
      for (const { at } of pieces) assert.equal(dropPoints(text, at), [...text].slice(at).join(""))

      const [view, overlapped] = [emptyView(), emptyView()]
      const points = [...text]
      pieces.forEach((piece, index) => {
        const append = { type: "message.append", serial: index + 2, id: "m", part: 0 }
        const end = piece.at + countPoints(piece.text)
        const from = Math.max(0, piece.at - 2)
        assert.ok(!view.apply({ events: [{ ...append, ...piece }] }).isGap)
        const event = { ...append, at: from, text: points.slice(from, end).join("") }
        assert.ok(!overlapped.apply({ events: [event] }).isGap)
      })
      assert.equal(view.getSnapshot().messages[0].parts[0].text, text)
      assert.equal(overlapped.getSnapshot().messages[0].parts[0].text, text)

      const joiner = new SurrogateJoiner(0)
      const units = Array.from({ length: text.length }, (_, index) => joiner.write(text[index]).text)
      assert.equal(units.join("") + joiner.end().text, text)
    })
  }
})

describe("surrogates", () => {
  for (const { name, at, pieces, sends, end } of read("surrogates")) {
    test(name, () => {
      const joiner = new SurrogateJoiner(at)
      const orNull = (piece) => (piece.text ? piece : null)
      assert.deepEqual(pieces.map((piece) => orNull(joiner.write(piece))), sends)
      assert.deepEqual(orNull(joiner.end()), end)
    })
  }
})
