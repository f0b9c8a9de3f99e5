/** The vendored libraries are the bytes that `scripts/vendor_web` wrote; the script's long test rebuilds them. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import { test } from "node:test"

const SHA256 = {
  "markdown.js": "f65d3f1f8d4e0f12c5384fbca672f6614645202f449ca70a88f608584c00b404",
  "highlight.js": "c9f2cfab435d533aad5d34e128968d1baafdbe2ee0a08dd69a0f1f7d61952149",
}

for (const [file, expected] of Object.entries(SHA256)) {
  test(`${file} has the content that its script wrote, and names its origin`, () => {
    const module = readFileSync(new URL(`../../holdfast/web/vendor/${file}`, import.meta.url), "utf8")
    assert.equal(createHash("sha256").update(module).digest("hex"), expected)
    assert.match(module, /^\/\*! (markdown-it|@speed-highlight\/core) [\d.]+, (MIT|CC0-1\.0); sha512-\S+; made by scripts\/vendor_web;/)
    assert.doesNotMatch(module, /\beval\(|new Function|innerHTML|document\.write/)
  })
}
