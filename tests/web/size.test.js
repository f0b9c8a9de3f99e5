/**
 * Limits for the size of the client as a page with a bundler gets it: minified and gzipped (`docs/decisions/0047`).
 * Do not raise a limit without a decision. `docs/browser.md` has the limits and the sizes.
 */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"

import { buildSync } from "esbuild"

// Modules that the core imports later do not count as core.
const LAZY = ["./fallback.js", "./client/probe.js", "./client/sharing.js"]
const CORE = ["./errors.js", "../view.js"] // modules that every page loads
const GERMAN = "./strings_de.js"
const LIMITS = [
  ["client.js", LAZY, 11_200, "core"],
  ["client/fallback.js", ["./errors.js"], 2_100, "SSE, long poll and requests over HTTP"],
  ["client/cache.js", CORE, 1_500, "cache"],
  ["client/sharing.js", [...CORE, "./cache.js", "./tabs.js"], 1_000, "identity, sign-out"],
  ["chat.js", ["./chat/panel.js", "./chat/visitor.js", "./chat/error_words.js", "./client.js", GERMAN], 4_600, "chat element, closed"],
  ["chat.js", ["../vendor/highlight.js", GERMAN], 55_000, "chat element, open"], // with all modules that it loads …
  ["vendor/highlight.js", [], 7_000, "highlighting"], // … but this one …
  ["chat/strings_de.js", [], 1_500, "words in German"], // … and this one
  ["client/tabs.js", [...CORE, "./dump.js"], 2_500, "tabs"],
  ["react.js", ["react"], 1_000, "React hooks"],
]
const ROWS = readFileSync(new URL("../../docs/browser.md", import.meta.url), "utf8").split("\n## Size\n")[1].split("\n## ")[0]
const TOLERANCE = 0.02 // share of a documented size, so that the page need not change with each line of code

/** Assert that a row of the page has the limit, and nearly the size. @param {string} row @param {number} bytes @param {number} limit_bytes */
function checkDocumented(row, bytes, limit_bytes) {
  const [, size, limit] = ROWS.split("\n").find((line) => line.startsWith(`| ${row} |`))?.match(/\| ([\d,]+) \| ([\d,]+)\b/) ?? []
  const [written_bytes, written_limit_bytes] = [size, limit].map((text) => Number(text?.replace(",", "")))
  assert.equal(written_limit_bytes, limit_bytes, `docs/browser.md has the limit ${limit} for "${row}"`)
  const isNear = Math.abs(written_bytes - bytes) <= bytes * TOLERANCE
  assert.ok(isNear, `docs/browser.md has ${size} bytes for "${row}", and it has ${bytes}: write the measured size`)
}

for (const [file, external, limit_bytes, row] of LIMITS) {
  test(`${file}, minified and gzipped, has at most ${limit_bytes} bytes`, (t) => {
    const entry = fileURLToPath(new URL(`../../tenuto/web/${file}`, import.meta.url))
    const built = buildSync({ entryPoints: [entry], bundle: true, external, format: "esm", minify: true, target: "es2022", write: false })
    const bytes = gzipSync(built.outputFiles[0].contents, { level: 9 }).length
    t.diagnostic(`${bytes} bytes`)
    assert.ok(bytes <= limit_bytes, `${bytes} bytes`)
    if (row) checkDocumented(row, bytes, limit_bytes)
  })
}
