/** The JavaScript and TypeScript of the pages parses, and uses what the browser client and the server have.
 * `tests/browser` and `tests/interop` run the blocks of whole pages.
 */

import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { test } from "node:test"
import { fileURLToPath } from "node:url"

import { transformSync } from "esbuild"

const ROOT = fileURLToPath(new URL("../../", import.meta.url))
const BLOCK = /^```(jsx?|tsx?|html|vue|svelte)\n(.*?)^```$/gms
const SCRIPT = /<script[^>]*>\n(.*?)<\/script>/gs
const SKILL = "tenuto/.agents/skills/tenuto/references"

/** @param {string} folder */
const pages = (folder) => readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".md")).map((name) => join(folder, name))

/** The blocks of all pages. @type {{ page: string, loader: string, source: string }[]} */
const blocks = ["README.md", ...pages("docs"), ...pages(SKILL)].flatMap((page) =>
  [...readFileSync(join(ROOT, page), "utf8").matchAll(BLOCK)].flatMap(([, loader, source]) => {
    if (/^[jt]s/.test(loader)) return [{ page, loader, source: /^\w+: /.test(source) ? `f({ ${source} })` : source }] // or one option of a call
    return [...source.matchAll(SCRIPT)].map(([, script]) => ({ page, loader: "js", source: script }))
  }),
)

test("each block of a page parses", () => {
  for (const { page, loader, source } of blocks) {
    assert.doesNotThrow(() => transformSync(source, { loader: /** @type {"js"} */ (loader), logLevel: "silent" }), `${page}:\n${source}`)
  }
  assert.ok(blocks.length > 25)
})

test("each path of the server in a page is in the protocol", () => {
  const protocol = readFileSync(join(ROOT, "docs/protocol.md"), "utf8")
  const paths = blocks.flatMap(({ page, source }) => [...source.matchAll(/\/tenuto(\/v1\/\w+)/g)].map(([, path]) => ({ page, path })))
  for (const { page, path } of paths) assert.match(protocol, new RegExp(`${path}\\b`), page)
  assert.ok(paths.length > 4)
})

test("each page uses the browser client by its types", () => {
  mkdirSync(join(ROOT, "build"), { recursive: true })
  const folder = mkdtempSync(join(ROOT, "build/typed-"))
  try {
    blocks.forEach(({ loader, source }, number) => {
      const typed = source.replaceAll("/tenuto/web/client.js", "tenuto").replace(/^(.*\/\/ does not compile)$/gm, "// @ts-expect-error\n$1")
      writeFileSync(join(folder, `block${number}.${loader.endsWith("x") ? "tsx" : "ts"}`), `${typed}\nexport {}\n`)
    })
    writeFileSync(join(folder, "known.ts"), KNOWN)
    const paths = { tenuto: ["../../tenuto/web/client.js"], "tenuto/*": ["../../tenuto/web/*.js"] }
    const compilerOptions = { strict: false, noUnusedLocals: false, noUnusedParameters: false, jsx: "preserve", paths }
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({ extends: "../../tsconfig.json", compilerOptions, include: ["*", "../../tenuto/web/*.d.ts"] }),
    )
    assert.deepEqual(problems(folder), [])
  } finally {
    rmSync(folder, { recursive: true })
  }
})

// what a page names before a block that is a part of a program
const KNOWN = `import { type Client, connect as connectTo } from "tenuto"
declare global {
  const connect: typeof connectTo, client: Client, channel: ReturnType<Client["channel"]>
  const chat: HTMLElementTagNameMap["tenuto-chat"]
}`
// names of other packages, of functions of the reader, and of elements by their ids; fields of a form
const FOREIGN = /error TS(2304|2307|2552|18004|2339: .* on type '(HTML|EventTarget))/

/** Return what the type checker has against the programs in `folder`. @param {string} folder */
function problems(folder) {
  let said = ""
  try {
    execFileSync(join(ROOT, "node_modules/.bin/tsc"), ["-p", folder], { encoding: "utf8", timeout: 120_000 })
  } catch (error) {
    said = String(/** @type {{ stdout: string }} */ (error).stdout)
  }
  assert.match(said, FOREIGN) // it has read the blocks
  return said.split("\n").filter((line) => line.startsWith("build/typed-") && !FOREIGN.test(line))
}
