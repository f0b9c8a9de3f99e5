/** The vendored libraries are the bytes that `scripts/vendor_web` wrote; the script's long test rebuilds them. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import { test } from "node:test"

const SHA256 = {
  "vendor/markdown.js": "89b911b0f5d02bc7fcb72c6946f1abac1379acf414e91dbe69b1868895d5d762",
  "vendor/highlight.js": "863731bfd4392a1b15576d6d3794f5f6e7814443506d4428b73690dd4f56a851",
}

for (const [file, expected] of Object.entries(SHA256)) {
  test(`${file} has the content that its script wrote, and names its origin`, () => {
    const module = readFileSync(new URL(`../../tenuto/web/${file}`, import.meta.url), "utf8")
    assert.equal(createHash("sha256").update(module).digest("hex"), expected)
    assert.match(module, /^\/\*! (markdown-it|@speed-highlight\/core) [\d.]+, (MIT|CC0-1\.0) \*\/\n\/\/ sha512-\S+; made by scripts\/vendor_web;/)
    assert.doesNotMatch(module, /\beval\(|new Function|innerHTML|document\.write/)
  })
}
