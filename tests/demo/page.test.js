/**
 * The modules of the demo's pages that need no page: lost text, marks, Markdown of the plain pane, and names.
 */

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { freeName, idOf, whoAmI } from "../../tenuto/web/demo/people.js"
import { crashesOf, lostOf, marksOf } from "../../tenuto/web/demo/trials.js"

const FOLDER = new URL("../../tenuto/web/demo/", import.meta.url)

/** A storage that survives its page. */
class MemoryStorage {
  #kept = new Map()
  getItem = (key) => this.#kept.get(key) ?? null
  setItem = (key, value) => void this.#kept.set(key, value)
}

test("lost are the characters that the text after a trial lacks", () => {
  const cases = [["", "", 0], ["abc", "abc", 0], ["abc", "abcd", 0], ["abc", "ab", 1], ["abc", "abXd", 1], ["abc", "", 3], ["a🧜b", "a", 2], ["abc", "xabc", 3]]
  for (const [before, after, lost] of cases) assert.equal(lostOf(before, after), lost, `${before} → ${after}`)
})

test("crashes have offsets in the text, and a meta of another form has none", () => {
  const continued = [{ at: 2, by: "guide~1", successor: "guide~2" }]
  assert.deepEqual(crashesOf({ meta: { continued } }), continued)
  for (const continued of [undefined, null, 5, "x", {}, [null], [{ at: "1" }]]) assert.deepEqual(crashesOf({ meta: { continued } }), [])
})

test("marks are those of this window and those of crashes", () => {
  const meta = { continued: [{ at: 4, by: "guide~1", successor: "guide~2" }, { at: 5, by: "guide~2", successor: "guide~2" }] }
  const own = [{ message: "m", at: 3, text: "You reloaded here." }, { message: "gone", at: 1, text: "Old" }]
  assert.deepEqual(marksOf([{ id: "m", text: "abcdefgh", meta }, { id: "n", text: "", meta: {} }], own), [
    { message: "m", at: 3, text: "You reloaded here." },
    { message: "m", at: 4, text: "guide~1 crashed here. **guide~2** went on." },
    { message: "m", at: 5, text: "guide~2 crashed here. **Its next process** went on." },
  ])
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

test("the pages have at most 37 kB of JavaScript", () => {
  const files = readdirSync(FOLDER).filter((name) => name.endsWith(".js"))
  const bytes = files.reduce((sum, name) => sum + readFileSync(new URL(name, FOLDER)).length, 0)
  assert.ok(bytes <= 37_000, `${bytes} bytes`)
})
