/** Names of people: presence before `meta.author_name`, in one short line, and never the name of another person. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { Names } from "../../tenuto/web/chat/people.js"

/** Return what the names look like, by id. @param {Record<string, unknown>} present @param {[string, unknown][]} written names in messages */
function shown(present, written, names = new Names()) {
  const members = Object.entries(present).map(([id, name]) => ({ id, kind: "user", connections: 1, data: { name } }))
  const all = written.map(([author, author_name]) => ({ author, meta: { author_name } }))
  names.update(/** @type {any} */ ({ presence: { members, count: members.length }, all }))
  return Object.fromEntries([...Object.keys(present), ...written.map(([id]) => id)].map((id) => [id, names.of(id)]))
}

test("a name in a message names a person who has left, and presence comes first", () => {
  assert.deepEqual(shown({}, [["u1", "Ada"], ["u2", undefined]]), { u1: "Ada", u2: "u2" })
  assert.deepEqual(shown({}, [["u1", "Ada"], ["u1", "Ada L."], ["u1", undefined]]), { u1: "Ada L." })
  assert.deepEqual(shown({ u1: "Ada" }, [["u1", "Eve"]]), { u1: "Ada" })
  const names = new Names()
  shown({ u1: "Ada" }, [], names)
  assert.deepEqual(shown({}, [["u1", "Eve"]], names), { u1: "Ada" })
})

test("a name that looks like the name or the id of another person is followed by the id", () => {
  assert.deepEqual(shown({ u1: "Ada" }, [["u2", "Ada"]]), { u1: "Ada (u1)", u2: "Ada (u2)" })
  assert.deepEqual(shown({}, [["Ada", "Guide"], ["u2", "ＡＤＡ"]]), { Ada: "Guide", u2: "ADA (u2)" })
  for (const alike of ["ada", "A\u200dda ", "Ad\u3164a", "\u202eAda\u202c", "Ada\u0007"]) {
    assert.match(shown({ ada: undefined }, [["u2", alike]]).u2, / \(u2\)$/, JSON.stringify(alike))
  }
  assert.equal(shown({ u1: "Ada" }, [["u2", "Ada (u1)"]]).u2, "Ada u1")
})

test("a name is one short line without marks that turn text around; any other value is none", () => {
  const of = (/** @type {unknown} */ name) => shown({}, [["u1", name]]).u1
  assert.equal(of("A\u202ed\na\u2066\u2028"), "A d a")
  assert.equal(of("عالی\u200cجناب"), "عالی\u200cجناب")
  assert.equal(of("🌊".repeat(1_000)), "🌊".repeat(64))
  for (const none of ["", " \n", "\u200b\u2060", "(\u200b)", "\u034f()", "\u2800", "\u0301", 7, null, { toString: () => "Ada" }, ["Ada"]]) assert.equal(of(none), "u1")
})

test("only a changed name counts as a change, since each draws all messages again", () => {
  const names = new Names()
  const snapshot = (/** @type {string} */ state, /** @type {object[]} */ ...all) =>
    /** @type {any} */ ({ presence: { members: [{ id: "u1", data: { name: "Ada", state } }], count: 1 }, all })
  assert.equal(names.update(snapshot("listening")), true)
  assert.equal(names.update(snapshot("thinking")), false)
  assert.equal(names.update(snapshot("thinking", { author: "u2", meta: {} })), false)
  assert.equal(names.update(snapshot("thinking", { author: "u2", meta: { author_name: "Bea" } }, {})), true)
})
