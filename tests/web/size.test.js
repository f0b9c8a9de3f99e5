/**
 * A limit for the size of the core client as a page with a bundler gets it: minified and gzipped (`docs/decisions/0042`).
 * Do not raise the limit without a decision; lower it when the client is complete.
 */
import assert from "node:assert/strict"
import { test } from "node:test"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"

import { buildSync } from "esbuild"

const LIMIT_BYTES = 12_200

test("the core client, minified and gzipped, has at most 12.2 kB", (t) => {
  const entry = fileURLToPath(new URL("../../holdfast/web/client.js", import.meta.url))
  const built = buildSync({ entryPoints: [entry], bundle: true, splitting: true, outdir: "out", format: "esm", minify: true, target: "es2022", write: false })
  // Modules that are imported when they are needed, such as the diagnosis, do not count.
  const core = built.outputFiles.find(({ path }) => path.endsWith("client.js"))
  const bytes = gzipSync(core?.contents ?? "", { level: 9 }).length
  t.diagnostic(`${bytes} bytes`)
  assert.ok(bytes <= LIMIT_BYTES, `${bytes} bytes`)
})
