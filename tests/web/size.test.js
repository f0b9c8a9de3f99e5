/**
 * A limit for the size of the core client. The aim is 6 kB without comments, gzipped, and it is NOT met yet: the limit
 * is the present size, so that it can only shrink. Lower it with every byte saved; do not raise it without a decision.
 * (7,600 before presence, commands and signals could be sent, which took 380; error messages that name the value and the
 * remedy took 390, `docs/decisions/0025`.)
 */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { gzipSync } from "node:zlib"

const AIM_BYTES = 6_000
const LIMIT_BYTES = 8_374
const FILES = ["text.js", "view.js", "client.js"]

/** Sufficient for these files: no string in them contains the beginning of a comment. */
function withoutComments(source) {
  return source
    .replace(/\/\*\*[^]*?\*\//g, "")
    .replace(/(^|\s)\/\/ .*$/gm, "")
    .replace(/^\s*\n/gm, "")
}

test("the core client without comments, gzipped, does not grow (8.4 kB; the aim of 6 kB is not met)", (t) => {
  const sources = FILES.map((file) => readFileSync(new URL(`../../holdfast/web/${file}`, import.meta.url), "utf8"))
  const bytes = gzipSync(withoutComments(sources.join("\n")), { level: 9 }).length
  t.diagnostic(`${bytes} bytes, ${bytes - AIM_BYTES} above the aim`)
  assert.ok(bytes <= LIMIT_BYTES, `${bytes} bytes`)
})
