/** The reference page names each option, field and error code of the client; `package.test.js` checks the verbs. */
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { settled, world } from "./fakes.js"

const read = (path) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8")
const PAGE = read("docs/browser.md")
const MODULES = ["client.js", ...readdirSync(new URL("../../tenuto/web/client", import.meta.url)).map((name) => `client/${name}`)]

/** Assert that the page has each name as code, alone or with arguments. */
function checkNamed(names, what) {
  const missing = names.filter((name) => !new RegExp(`\`${name}[\`(]`).test(PAGE))
  assert.deepEqual(missing, [], `${what} that docs/browser.md does not name`)
}

test("the page names every option", () => {
  const options = read("tenuto/web/client.js").split("@typedef {object} Options")[1].split("*/")[0]
  checkNamed([...options.matchAll(/@property \{.*\} \[?(\w+)/g)].map(([, name]) => name), "options")
})

test("the page names every field of a snapshot and of the status", async (t) => {
  const w = world(t)
  const snapshot = w.client.channel("c").getSnapshot()
  await settled()
  checkNamed(Object.keys(snapshot), "fields of a snapshot")
  for (const name of Object.keys(w.client.status)) assert.match(PAGE, new RegExp(`\\b${name}\\b`))
})

test("the page names every state, transport and reason for a token", () => {
  const types = [["client", "State"], ["client", "TransportName"], ["client/token", "Why"]].map(([module, name]) => read(`tenuto/web/${module}.js`).match(new RegExp(`@typedef \\{(.*)\\} ${name}\\b`))[1])
  checkNamed([...types.join().matchAll(/"(\w+)"/g)].map(([, value]) => value), "values")
})

test("the page names every error code of the client's own that a status can have", () => {
  const sources = MODULES.map((name) => read(`tenuto/web/${name}`)).join("\n")
  const codes = new Set([...sources.matchAll(/refusal\(\s*"(\w+)"/g)].map(([, code]) => code))
  const others = ["closed", "too_many", "stale", "invalid_request", "discarded", "deleted", "not_found"] // codes of requests, which the table of verbs or the protocol explains
  checkNamed([...codes].filter((code) => !others.includes(code)), "codes")
})
