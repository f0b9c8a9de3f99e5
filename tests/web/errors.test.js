/**
 * The messages of the client's own errors: each is a sentence that shows a value and names a remedy, by the rule of
 * `tests/test_errors.py`. The values in a raised message are the business of the tests of its module.
 */
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { describe, test } from "node:test"

import { settled, world } from "./fakes.js"

const FOLDER = new URL("../../tenuto/web/", import.meta.url)
const NO_SUBJECT = /^(?:an?|it|they|no|not|invalid|cannot|could|must|may|use|call|give|pass|set|send|expected|failed|missing|nobody|nothing|whoever|whatever)\b/i
const FINITE_VERB = /\b(?:is|are|was|were|has|must|needs|shows|changed|closed|sent|speaks|responds|does|refuses|blocks|failed|wait)\b/
// The cause behind the colon comes from the app's own callback, and the client tries again.
const WITHOUT_REMEDY = ["the token callback failed: X"]

/** Return the template or string that begins at `start`, with X for each inserted value. @param {string} code @param {number} start */
function textAt(code, start) {
  const quote = code[start]
  let text = ""
  for (let at = start + 1; code[at] !== quote; at++) {
    if (quote === "`" && code.startsWith("${", at)) {
      for (let depth = 0; ; at++) {
        if (code[at] === "{") depth++
        else if (code[at] === "}" && --depth === 0) break
      }
      text += "X"
    } else if (code[at] === "\\") text += code[++at]
    else text += code[at]
  }
  return text
}

/** Return why `text` breaks the rule, or null. @param {string} text */
function problemWith(text) {
  const [clause] = text.split(/: |; /)
  if (NO_SUBJECT.test(text)) return "it begins with no subject"
  if (!FINITE_VERB.test(clause)) return "no finite verb follows the subject"
  if (!text.includes("X") && !text.includes("<TenutoProvider")) return "it shows no value"
  if (!/: |; /.test(text) && !text.includes(" needs ")) return "it names no remedy"
  return text.endsWith("?") ? "it ends with a question" : null
}

const MESSAGES = readdirSync(FOLDER).filter((name) => name.endsWith(".js")).flatMap((name) => {
  const code = readFileSync(new URL(name, FOLDER), "utf8")
  return [...code.matchAll(/(?:refusal\([^`]*?, |new (?:Type)?Error\()(?=[`"])/g)].map((found) => ({
    name, text: textAt(code, found.index + found[0].length),
  }))
})

describe("a message of the client", () => {
  test("is found for each error that the client makes", () => {
    const made = readdirSync(FOLDER).filter((name) => name.endsWith(".js")).reduce((count, name) => {
      const code = readFileSync(new URL(name, FOLDER), "utf8").replace(/^\s*(?:\/\/|\/?\*).*$|^export const refusal.*$/gm, "")
      return count + (code.match(/\brefusal\(|\bnew (?:Type)?Error\(/g)?.length ?? 0)
    }, 0)
    assert.equal(MESSAGES.length, made)
    assert.ok(made > 20)
  })

  for (const { name, text } of MESSAGES.filter((one) => !WITHOUT_REMEDY.includes(one.text))) {
    test(`is a sentence with a value and a remedy: ${name}: ${text}`, () => assert.equal(problemWith(text), null))
  }

  test("breaks the rule without a subject, a verb, a value or a remedy", () => {
    for (const text of ["X closed the socket with code X", "the socket is closed: open it", "no server at X: start it", "X timeout: wait", "X is closed: why?"]) {
      assert.notEqual(problemWith(text), null, text)
    }
  })
})

test("a code of the server without words names the address, the status and a remedy", async (t) => {
  t.mock.method(console, "warn", () => {})
  const w = world(t, { transport: "websocket" })
  w.client.channel("c")
  w.socket.drop()
  await import("../../tenuto/web/probe.js") // the client loads this module in the same way
  await settled()
  await w.http.probed(503, { code: "busy" })
  assert.equal(w.client.status.error.message, "http://server.test/base/v1 sent status 503: read its log")
})
