/**
 * The built package: types that a strict importer can use, and modules that a server can import. `scripts/test_package`
 * compares its bytes with those of the wheel, and `scripts/test_npm` installs it into a Vite and a Next app.
 */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, relative } from "node:path"
import { after, before, test } from "node:test"
import { fileURLToPath } from "node:url"

const ROOT = fileURLToPath(new URL("../..", import.meta.url))
const PAGE = readFileSync(join(ROOT, "docs", "browser.md"), "utf8")

/** @type {string} an app that has the package, React and its types */
let app
/** @type {string} */
let built

/** @param {string} program @param {...string} options */
function run(program, ...options) {
  const { status, stdout, stderr } = spawnSync(program, options, { cwd: app, encoding: "utf8" })
  return { status, output: stdout + stderr }
}

/** @param {string} folder */
const filesOf = (folder) => {
  const files = readdirSync(folder, { withFileTypes: true, recursive: true }).filter((one) => one.isFile())
  const names = files.map(({ parentPath, name }) => relative(folder, join(parentPath, name)))
  return Object.fromEntries(names.sort().map((name) => [name, readFileSync(join(folder, name), "utf8")]))
}

before(() => {
  app = mkdtempSync(join(tmpdir(), "tenuto-package-"))
  built = join(app, "node_modules", "tenuto")
  mkdirSync(join(app, "node_modules"))
  for (const name of ["react", "@types", "csstype"]) symlinkSync(join(ROOT, "node_modules", name), join(app, "node_modules", name))
  writeFileSync(join(app, "package.json"), '{ "type": "module" }')
  assert.deepEqual(run(join(ROOT, "scripts", "build_web"), built), { status: 0, output: "" })
})
after(() => rmSync(app, { recursive: true }))

test("a fresh clone without node_modules is told how to build", () => {
  const clone = join(app, "clone")
  mkdirSync(join(clone, "scripts"), { recursive: true })
  for (const name of ["package.json", "scripts/build_web"]) cpSync(join(ROOT, name), join(clone, name))
  assert.deepEqual(run(join(clone, "scripts", "build_web")), {
    status: 1,
    output: 'scripts/build_web needs esbuild, which is not in node_modules: run "make web", or "npm install" and then this script\n',
  })
})

test("each export has a module, its types, and a source map with the sources", () => {
  const { exports, dependencies } = JSON.parse(filesOf(built)["package.json"])
  assert.deepEqual(Object.keys(exports), [".", "./react", "./chat", "./element", "./view"])
  assert.equal(dependencies, undefined)
  for (const { types, default: module } of Object.values(exports)) {
    assert.ok(readFileSync(join(built, types), "utf8").includes("export"))
    assert.ok(readFileSync(join(built, module), "utf8").includes(`sourceMappingURL=${module.slice(2)}.map`))
  }
  const modules = Object.entries(filesOf(built)).filter(([name]) => name.endsWith(".js"))
  assert.deepEqual(modules.filter(([, code]) => /new URL\(["'`][^"'`]*["'`],\s*import\.meta\.url/.test(code)), [], "a bundler takes this for a file to copy")
  assert.ok(JSON.parse(filesOf(built)["client.js.map"]).sourcesContent.some((/** @type {string} */ one) => one.includes("export class Client")))
})

test("a strict importer gets the types of every entry and those of its own data, without internal members", () => {
  cpSync(join(ROOT, "tests", "web", "types.tsx"), join(app, "types.tsx"))
  const documented = PAGE.match(/```ts\n([^]*?)```/)?.[1].replace(/^.*does not compile$/gm, "// @ts-expect-error\n$&")
  writeFileSync(join(app, "documented.ts"), `import type { Client } from "tenuto"\ndeclare const client: Client\n${documented}`)
  const options = ["--ignoreConfig", "--strict", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022",
    "--lib", "es2022,dom,dom.iterable", "--preserveSymlinks", "--types", "", "--jsx", "react-jsx", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noUnusedLocals"]
  assert.deepEqual(run(join(ROOT, "node_modules", ".bin", "tsc"), ...options, "types.tsx", "documented.ts"), { status: 0, output: "" })
})

test("an importer without React gets the type of the tag", () => {
  const plain = join(app, "plain")
  mkdirSync(plain)
  renameSync(join(app, "node_modules", "react"), join(plain, "react"))
  renameSync(join(app, "node_modules", "@types"), join(plain, "@types"))
  writeFileSync(join(app, "plain.ts"), `import "tenuto/chat"\nexport const isOpen: boolean | undefined = document.querySelector("tenuto-chat")?.open`)
  const options = ["--ignoreConfig", "--strict", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022", "--types", ""]
  const checked = run(join(ROOT, "node_modules", ".bin", "tsc"), ...options, "plain.ts")
  for (const name of ["react", "@types"]) renameSync(join(plain, name), join(app, "node_modules", name))
  assert.deepEqual(checked, { status: 0, output: "" })
})

test("the public members of the types are documented, and the documented members are public", () => {
  for (const [module, name, heading] of [["client", "Client", "The client"], ["client/channel", "Channel", "The channel"]]) {
    const types = filesOf(built)[`${module}.d.ts`].replace(/\/\*[^]*?\*\//g, "")
    const body = types.slice(types.search(new RegExp(`class ${name}\\b`))).split("\n}")[0]
    const members = [...body.matchAll(/^ {4}(?:get )?(\w+)[(:<]/gm)].map(([, member]) => member)
    assert.ok(members.length > 5, body)
    const section = PAGE.split(`\n## ${heading}\n`)[1].split("\n## ")[0]
    for (const member of members) {
      assert.match(section, new RegExp(`\`${member}[\`(]`), `${name}.${member} must be in the section "${heading}" of docs/browser.md, or be marked @internal`)
    }
    const cells = [...section.matchAll(/^\| (`.*?`) \|/gm)].map(([, cell]) => cell).join()
    const verbs = [...cells.matchAll(/`(\w+)\([^`]*\)`/g)].map(([, verb]) => verb)
    for (const verb of verbs) assert.ok(["subscribe", ...members].includes(verb), `docs/browser.md has ${verb}(), which ${name} has not`)
  }
})

test("the pages of the package import entries only, since the other modules have no file of their own", () => {
  const folder = join(ROOT, "tenuto", "web", "demo")
  const modules = readdirSync(folder).filter((name) => name.endsWith(".js")).map((name) => readFileSync(join(folder, name), "utf8")).join("\n")
  const used = [...modules.matchAll(/(?:from |import |import\()"\.\.\/(\w+\.js)"/g)].map(([, name]) => name)
  assert.ok(used.includes("client.js"))
  assert.deepEqual(used.filter((name) => !["chat.js", "client.js", "react.js", "view.js"].includes(name)), [])
})

test("a server can import every entry: no module touches the objects of a browser", () => {
  writeFileSync(join(app, "server.js"), `
    for (const name of ["window", "customElements", "CSSStyleSheet", "document", "location", "localStorage", "sessionStorage", "indexedDB", "addEventListener"]) {
      Object.defineProperty(globalThis, name, { get: () => { throw new Error("touched " + name) } })
    }
    const modules = await Promise.all(["tenuto", "tenuto/react", "tenuto/view", "tenuto/element", "tenuto/chat"].map((name) => import(name)))
    console.log(modules.map((one) => typeof (one.connect ?? one.useChannel ?? one.View ?? one.TenutoChat)).join())
  `)
  assert.deepEqual(run(process.execPath, "server.js"), { status: 0, output: "function,function,function,function,undefined\n" })
})
