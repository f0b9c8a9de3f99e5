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
      const typed = source.replace(/"\.?\/tenuto\/web\/client\.js"/g, '"tenuto"').replace(/^(.*\/\/ does not compile)$/gm, "// @ts-expect-error\n$1")
      writeFileSync(join(folder, `block${number}.${loader.endsWith("x") ? "tsx" : "ts"}`), `${typed}\nexport {}\n`)
    })
    writeFileSync(join(folder, "useSnapshot.ts"), String(blocks.find(({ source }) => source.includes("export function useSnapshot"))?.source))
    writeFileSync(join(folder, "known.ts"), KNOWN)
    writeFileSync(join(folder, "packages.d.ts"), [...packages].map((name) => `declare module "${name}"\n`).join(""))
    writeFileSync(join(folder, "wrong.ts"), "noSuchFunction()\nexport {}\n") // shows that the checker has read the folder
    const paths = { tenuto: ["../../tenuto/web/client.js"], "tenuto/*": ["../../tenuto/web/*.js"] }
    const compilerOptions = { strict: false, noUnusedLocals: false, noUnusedParameters: false, jsx: "preserve", paths }
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({ extends: "../../tsconfig.json", compilerOptions, include: ["*", "../../tenuto/web/*.d.ts"] }),
    )
    assert.match(problems(folder).join("\n"), /^\S+wrong\.ts\(1,1\): error TS2304: Cannot find name 'noSuchFunction'\.$/)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

// what a page names before a block that is a part of a program, and elements by their ids
const KNOWN = `import { type Client, connect as connectTo } from "tenuto"
import type * as ai from "ai"
declare global {
  const connect: typeof connectTo, client: Client, channel: ReturnType<Client["channel"]>
  const chat: HTMLElementTagNameMap["tenuto-chat"]
  const lastAssistantMessageIsCompleteWithApprovalResponses: typeof ai.lastAssistantMessageIsCompleteWithApprovalResponses
  const lastAssistantMessageIsCompleteWithToolCalls: typeof ai.lastAssistantMessageIsCompleteWithToolCalls
  const answer: HTMLElement, messages: HTMLElement, state: HTMLElement, thinking: HTMLElement
  const form: HTMLFormElement & { text: HTMLInputElement }, question: HTMLInputElement
  const token: string, toolCallId: string, tools: any[], HttpAgent: any, agent: any
  const f: (options: object) => void, showPrevious: (message: any) => void, render: (message: any) => any
  const defineProps: (props: object) => any, $props: () => any, $state: <T>(value: T) => T
  interface HTMLElement { elements: any } // of a form that is found by its id
}`
// Packages without types here: of the blocks that import them only other names are checked, and this runs them.
const UNTYPED = {
  "docs/agui.md @ag-ui/client": "tests/interop/long/test_agui_page.py, and test_agui_client.py the class for long threads",
  "docs/agui.md @copilotkit/runtime/v2": "nothing: it needs a page of CopilotKit's",
  "docs/agui.md @tanstack/ai-client": "tests/interop/long/test_tanstack.py has the same calls",
  "docs/ai-sdk.md @ai-sdk/react": "tests/interop/long/test_react.py",
  "docs/ai-sdk.md @assistant-ui/react": "tests/interop/long/test_assistant_ui.py",
  "docs/ai-sdk.md @assistant-ui/react-ai-sdk": "tests/interop/long/test_assistant_ui.py",
  "docs/frameworks.md svelte/store": "scripts/test_npm",
  "docs/frameworks.md vue": "scripts/test_npm",
  "docs/openai.md openai": "tests/interop/long/test_openai_node.py",
}
const packages = new Set(Object.keys(UNTYPED).map((one) => one.split(" ")[1]))

test("each block with a package that is not checked is listed", () => {
  const imports = blocks.flatMap(({ page, source }) => [...source.matchAll(/ from "(.+?)"/g)].map(([, name]) => ({ page, name })))
  const found = imports.filter(({ name }) => packages.has(name)).map(({ page, name }) => `${page} ${name}`)
  assert.deepEqual([...new Set(found)].sort(), Object.keys(UNTYPED))
})

/** Return what the type checker has against the programs in `folder`. @param {string} folder */
function problems(folder) {
  let said = ""
  try {
    execFileSync(join(ROOT, "node_modules/.bin/tsc"), ["-p", folder], { encoding: "utf8", timeout: 120_000 })
  } catch (error) {
    said = String(/** @type {{ stdout: string }} */ (error).stdout)
  }
  return said.split("\n").filter((line) => line.startsWith("build/typed-"))
}
