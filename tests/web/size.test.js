/**
 * The core client's size, watched. The aim is 6 kB without comments, gzipped, and it is NOT met yet: this holds what
 * is there, so that it can only shrink. Lower the limit with every byte won; do not raise it without a decision.
 * (7,600 before presence, commands and signals could be sent, which took 380.)
 */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { gzipSync } from "node:zlib"

const AIM_BYTES = 6_000
const LIMIT_BYTES = 7_985
const FILES = ["text.js", "view.js", "client.js"]

/** Good enough for our own files: no string in them holds a comment's beginning. */
function withoutComments(source) {
  return source
    .replace(/\/\*\*[^]*?\*\//g, "")
    .replace(/(^|\s)\/\/ .*$/gm, "")
    .replace(/^\s*\n/gm, "")
}

test("the core client without comments, gzipped, does not grow (8 kB; the aim of 6 kB is not met)", (t) => {
  const sources = FILES.map((file) => readFileSync(new URL(`../../holdfast/web/${file}`, import.meta.url), "utf8"))
  const bytes = gzipSync(withoutComments(sources.join("\n")), { level: 9 }).length
  t.diagnostic(`${bytes} bytes, ${bytes - AIM_BYTES} above the aim`)
  assert.ok(bytes <= LIMIT_BYTES, `${bytes} bytes`)
})
