/**
 * Limits for the size of the client as a page with a bundler gets it: minified and gzipped (`docs/decisions/0046`, `0047`).
 * Do not raise a limit without a decision.
 */
import assert from "node:assert/strict"
import { test } from "node:test"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"

import { buildSync } from "esbuild"

// Modules that the core imports later do not count as core.
const LAZY = ["./fallback.js", "./probe.js", "./sharing.js"]
const CORE = ["./errors.js", "./view.js"] // every page has them
const LIMITS = [
  ["client.js", LAZY, 11_100],
  ["fallback.js", ["./errors.js"], 2_100],
  ["cache.js", CORE, 1_500],
  ["chat.js", ["./chat_panel.js", "./client.js"], 4_000], // the closed chat element
  ["chat.js", ["./vendor/highlight.js"], 50_000], // the open one, with everything that it loads …
  ["vendor/highlight.js", [], 7_000], // … but this, for the first code in a known language
  ["tabs.js", [...CORE, "./dump.js"], 2_500],
  ["react.js", ["react"], 1_000],
]

for (const [file, external, limit_bytes] of LIMITS) {
  test(`${file}, minified and gzipped, has at most ${limit_bytes} bytes`, (t) => {
    const entry = fileURLToPath(new URL(`../../holdfast/web/${file}`, import.meta.url))
    const built = buildSync({ entryPoints: [entry], bundle: true, external, format: "esm", minify: true, target: "es2022", write: false })
    const bytes = gzipSync(built.outputFiles[0].contents, { level: 9 }).length
    t.diagnostic(`${bytes} bytes`)
    assert.ok(bytes <= limit_bytes, `${bytes} bytes`)
  })
}
