/** The core client stays small: a page should not notice it. */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { gzipSync } from "node:zlib"

const LIMIT_BYTES = 6_000
const FILES = ["text.js", "view.js", "client.js"]

/** Good enough for our own files: no string in them holds a comment's beginning. */
function withoutComments(source) {
  return source
    .replace(/\/\*\*[^]*?\*\//g, "")
    .replace(/(^|\s)\/\/ .*$/gm, "")
    .replace(/^\s*\n/gm, "")
}

test("the core client without comments, gzipped, is at most 6 kB", (t) => {
  const sources = FILES.map((file) => readFileSync(new URL(`../../holdfast/web/${file}`, import.meta.url), "utf8"))
  const bytes = gzipSync(withoutComments(sources.join("\n")), { level: 9 }).length
  t.diagnostic(`${bytes} bytes`)
  assert.ok(bytes <= LIMIT_BYTES, `${bytes} bytes`)
})
