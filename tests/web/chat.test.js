/** `docs/widget.md` names the attributes, properties, events and variables of the chat element, and no others. */
import assert from "node:assert/strict"
import { readFileSync, readdirSync } from "node:fs"
import { test } from "node:test"

import { TenutoChat } from "../../tenuto/web/element.js"

const folder = new URL("../../tenuto/web/", import.meta.url)
const page = readFileSync(new URL("../../docs/widget.md", import.meta.url), "utf8")
const code = readdirSync(folder, { encoding: "utf8", recursive: true }).filter((name) => /^(chat\/.*|element)\.js$/.test(name)).map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n")

/** Return the names in the first column of the table under `heading`. @param {string} heading */
function rows(heading) {
  const section = page.split(`\n## ${heading}\n`)[1].split("\n## ")[0]
  return [...section.matchAll(/^\| (`[^|]*`) \|/gm)].flatMap(([, cell]) => [...cell.matchAll(/`([\w-]+)`/g)].map(([, name]) => name))
}
const found = (/** @type {RegExp} */ pattern) => [...new Set([...code.matchAll(pattern)].map(([, name]) => name))].sort()

test("the page has each attribute", () => assert.deepEqual(rows("Attributes").sort(), [...TenutoChat.observedAttributes].sort()))

test("the page has each property", () => {
  const accessors = Object.entries(Object.getOwnPropertyDescriptors(TenutoChat.prototype)).filter(([, { set }]) => set)
  const own = [...Object.keys(new TenutoChat()), ...accessors.map(([name]) => name)]
  assert.deepEqual(rows("Properties").sort(), own.sort())
})

test("the page has each event", () => {
  const sent = [...found(/emit\("(\w+)"/g), ...found(/emit\(\S+ \? "(\w+)"/g), ...found(/emit\(\S+ \? "\w+" : "(\w+)"/g)]
  assert.deepEqual(rows("Events").sort(), sent.map((name) => `tenuto-${name}`).sort())
})

test("the page has each of the twelve variables, and each slot", () => {
  const variables = [...page.matchAll(/`--(tenuto-[\w-]+)`/g)].map(([, name]) => name)
  assert.deepEqual(variables.sort(), found(/var\(--(tenuto-[\w-]+)/g))
  assert.equal(variables.length, 12)
  const slots = page.match(/Slots: ([^.]*)\./)?.[1].match(/[\w-]+/g)
  assert.deepEqual(slots?.sort(), found(/element\("slot", \{ name: "([\w-]+)"/g))
})
