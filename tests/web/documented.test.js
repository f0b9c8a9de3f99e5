/** Each block of JavaScript and TypeScript in the pages parses; `tests/browser` and `tests/interop` run those of whole pages. */

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { transformSync } from "esbuild"

const DOCS = new URL("../../docs/", import.meta.url)
const BLOCK = /^```(jsx?|tsx?)\n(.*?)^```$/gms

test("each block of a page parses", () => {
  const counts = readdirSync(DOCS).filter((name) => name.endsWith(".md")).map((name) => {
    const found = [...readFileSync(new URL(name, DOCS), "utf8").matchAll(BLOCK)]
    for (const [, loader, source] of found) {
      const isOption = /^\w+: /.test(source) // one option of a call
      const program = isOption ? `f({ ${source} })` : source
      assert.doesNotThrow(() => transformSync(program, { loader: /** @type {"js"} */ (loader), logLevel: "silent" }), `${name}:\n${source}`)
    }
    return found.length
  })
  assert.ok(counts.reduce((sum, count) => sum + count) > 15)
})
