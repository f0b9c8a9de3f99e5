/** The requests by which a page becomes a visitor of a hub. `tests/browser/test_visitors.py` has the whole in a browser. */
import assert from "node:assert/strict"
import { beforeEach, test } from "node:test"

import { visitOf } from "../../tenuto/web/chat/visitor.js"

const HUB = "https://hub.example/tenuto"
const requests = []
globalThis.navigator ??= {} // of Node.js 20
let refusals = 0 // of the next requests

/** Ask from a page, whose browser keeps cookies or not. @param {string} origin of the page @param {boolean} keeps @param {any} [token] of the app */
async function visit(origin, keeps, token) {
  requests.length = 0
  globalThis.location = { origin }
  globalThis.document = { set cookie(_) {}, get cookie() { return keeps ? "tenuto-visitor=" : "" } }
  const fetch = async (url, { headers }) => {
    requests.push([url.slice(HUB.length), headers.Authorization])
    return refusals-- > 0 ? Response.json({ code: "unauthenticated", detail: "no" }, { status: 401 }) : Response.json({ id: "v1", channel: "chat:v1", token: "new" })
  }
  return visitOf({ base: HUB, token: { get: () => token }, fetch }, "", undefined)
}

beforeEach(() => {
  Object.defineProperty(globalThis, "localStorage", { value: {}, configurable: true }) // Node.js 25 has one
  refusals = 0
})

test("a page of another origin uses one token, whether it keeps cookies or not", async () => {
  assert.equal((await visit("https://blog.example", true)).token, "new")
  await visit("https://blog.example", false)
  assert.deepEqual(requests, [["/v1/visitor", "Bearer new"]])
})

test("a page of the hub's own origin that keeps cookies uses no token of a frame", async () => {
  await visit("https://hub.example", false)
  assert.deepEqual(requests, [["/v1/visitor?token", undefined]])
  await visit("https://hub.example", true)
  assert.deepEqual(requests, [["/v1/visitor", undefined]])
})

test("a refused token of the storage is removed, and the page becomes another visitor", async () => {
  await visit("https://blog.example", true)
  refusals = 1
  await visit("https://blog.example", true)
  assert.deepEqual(requests, [["/v1/visitor", "Bearer new"], ["/v1/visitor", undefined]])
})

test("a refusal is no reason to ask again if the page has sent no token, or that of the app", async () => {
  for (const token of [undefined, null, "", "own"]) {
    refusals = 9
    await assert.rejects(visit("https://hub.example", true, token), { code: "unauthenticated" })
    assert.equal(requests.length, 1)
  }
})

test("a server that knows no visitors is named, also one of files without POST, and only a broken one is asked again", async () => {
  const sent = (/** @type {number} */ status) => visitOf({ base: HUB, token: { get: () => undefined }, fetch: async () => new Response("no", { status }) }, "", undefined)
  for (const status of [404, 405, 501]) await assert.rejects(sent(status), { code: "not_tenuto", message: new RegExp(`sent status ${status}`) })
  for (const status of [500, 502, 503]) await assert.rejects(sent(status), { name: "Error", message: `${HUB} sent status ${status}: read its log` })
})

test("while the hub is away a page has the chats of its visitor, but none of a person", async () => {
  globalThis.location = { origin: "https://blog.example" }
  const away = () => Promise.reject(new TypeError("away"))
  const ask = (/** @type {() => Promise<Response>} */ fetch) => visitOf({ base: HUB, token: { get: () => undefined }, fetch }, "", undefined)
  const sends = (/** @type {unknown} */ body, status = 200) => () => Promise.resolve(Response.json(body, { status }))
  await assert.rejects(ask(away), { code: "unreachable" })
  const id = `v${"1".repeat(25)}`
  const chats = [{ channel: `chat:${id}.b`, title: "Why?" }, { channel: `chat:${id}`, title: "How?" }]
  await ask(sends({ id, channel: `chat:${id}`, chats, token: "proof" }))
  for (const fetch of [away, () => Promise.resolve(new Response("", { status: 502 }))]) {
    const visit = await ask(fetch)
    assert.deepEqual([visit.id, visit.token, visit.chats, visit.first(undefined)], [id, "proof", chats, `chat:${id}.b`])
  }
  await assert.rejects(ask(sends({ code: "no_visitors", detail: "no" }, 404)), { code: "no_visitors" }) // no hub of this page any more
  await ask(sends({ id: "ada", channel: "chat:ada" }))
  await assert.rejects(ask(away), { code: "unreachable" })
})
