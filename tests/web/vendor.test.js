/** The vendored libraries are the bytes that `scripts/vendor_web` wrote; the script's long test rebuilds them. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import { test } from "node:test"

const SHA256 = {
  "markdown.js": "edd59044e8e00717cadb4912097cfbb974b0ca8df399988f1b5ec0527d4dc90c",
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
