/**
 * The chats of a visitor: the hub gives each browser an id, and a chat element without `channel` shows the chats of that id.
 *
 * A page of the hub's own origin proves the id by a cookie that no script can read. Another page, and one in a frame of
 * another site, gets a token instead, which stays in `localStorage`. The module imports none of the client, which the
 * package keeps in one file.
 * @module
 */

/** @typedef {{ channel: string, title: string }} Chat */
/** @typedef {{ base: string, token: { get(): string | undefined | Promise<string> }, fetch: typeof globalThis.fetch }} Hub */

const REQUEST_MS = 10_000
const ID_LETTERS = 12 // of a new chat's name, of 36 letters and digits
const REMEDY = "use Hub(authenticate=visitors()) or the attribute channel"

/** @param {string} code @param {string} detail */
const refusal = (code, detail) => Object.assign(Error(detail), { code })

export class Visit {
  /** @param {Hub} hub @param {{ id: string, channel: string | null, chats?: readonly Chat[], token?: string }} body of the hub's response */
  constructor(hub, { id, channel, chats = [], token }) {
    this.hub = hub
    this.id = id
    this.channel = channel
    /** The newest first. @type {readonly Chat[]} */
    this.chats = chats
    this.token = token
  }

  /** Return the chat to show first: the one that the tab showed before, or the newest. @param {string | undefined} kept */
  first(kept) {
    const { channel, chats } = this
    const isOwn = kept && (chats.some((one) => one.channel === kept) || (channel && kept.startsWith(`${channel}.`)))
    const name = isOwn ? kept : chats[0]?.channel ?? channel
    if (!name) throw refusal("no_visitors", `${this.hub.base} has no chats of ${this.id}: ${REMEDY}`)
    return name
  }

  /** Return the name of a new chat; null if the hub names no channel of this person. */
  next() {
    const letters = Array.from(crypto.getRandomValues(new Uint8Array(ID_LETTERS)), (byte) => (byte % 36).toString(36))
    return this.channel && `${this.channel}.${letters.join("")}`
  }

  /** Read the chats again. Without a response the known ones stay. */
  async refresh() {
    const now = await visit(this.hub).catch(() => this)
    if (now.id === this.id) this.chats = now.chats
  }
}

/** Return the chats of this browser, by a client of the app or for a hub at `base`. @param {import("../client.js").Client | null} client @param {string} base @param {import("../client/token.js").TokenSource | undefined} source */
export function visitOf(client, base, source) {
  const token = client?.token ?? { get: () => (typeof source === "function" ? source("start") : source) }
  return visit({ base: client?.base ?? base, token, fetch: (...request) => (client ?? globalThis).fetch(...request) })
}

/** Return the chats of this browser; while the hub is away, those of its last response. One tab at a time asks, so that the tabs of a new browser get one id. @param {Hub} hub @returns {Promise<Visit>} */
async function visit(hub) {
  // Without cookies the hub would not know the page again a moment later, so it gives a new visitor a token. A page of
  // another origin always gets one, whether it keeps cookies or not: the key of that token must not depend on them.
  const query = new URL(hub.base).origin !== location.origin || tried(keepsCookies) ? "" : "?token"
  const key = `tenuto-visitor ${hub.base}${query}` // a page that keeps cookies uses no token of a frame
  /** @type {Promise<Visit> | undefined} */
  let asked
  const ask = () => (asked ??= request(hub, key, query))
  await navigator.locks?.request(key, ask).catch(() => {}) // refused where the storage is denied; `asked` has any other error
  return ask().catch((error) => {
    const last = tried(() => new Visit(hub, { token: localStorage[key], ...JSON.parse(localStorage[key + " last"]) }))
    if (last && (error.code ?? "unreachable") === "unreachable") return last
    throw error
  })
}

/** @param {Hub} hub @param {string} key of the token in the browser's storage @param {string} query @returns {Promise<Visit>} */
async function request(hub, key, query) {
  const own = await hub.token.get()
  const token = own ?? tried(() => localStorage[key])
  /** @type {Response} */
  let response
  try {
    response = await hub.fetch(`${hub.base}/v1/visitor${query}`, {
      method: "POST",
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      signal: AbortSignal.timeout(REQUEST_MS),
    })
  } catch (error) {
    throw (await import("../client/probe.js").then(({ diagnose }) => diagnose(hub))) ?? error
  }
  const body = await response.json().catch(() => ({}))
  if (response.ok && typeof body.id === "string") {
    // A visitor's response alone stays: the next person of this browser may be another.
    tried(() => (localStorage[key + " last"] = /^v\w{25}$/.test(body.id) ? JSON.stringify(body) : ""))
    if (body.token && !own) tried(() => (localStorage[key] = body.token)) // if the storage is full, it lasts as long as the page
    return new Visit(hub, { token, ...body })
  }
  if (response.status === 401 && !own && token) {
    delete localStorage[key] // of another hub at this address, or with an older key
    return request(hub, key, query)
  }
  if (response.status === 404 && body.code) throw refusal("no_visitors", `${hub.base} has no visitors: ${REMEDY}`)
  if (body.code) throw Object.assign(Error(body.detail), { code: String(body.code), problem: body })
  const isDown = response.status >= 500 && response.status !== 501 // 501: a server of files has no POST
  if (isDown) throw Error(`${hub.base} sent status ${response.status}: read its log`)
  throw refusal("not_tenuto", `${hub.base} sent status ${response.status}, but not as a Tenuto server: correct its address`)
}

/** Return the result of `read`: undefined if the browser denies its storage, or cookies. @template T @param {() => T} read */
function tried(read) {
  try {
    return read()
  } catch {
    return undefined
  }
}

/** Return whether the browser keeps a cookie like that of the hub. In a frame of a page of another site it does not. */
function keepsCookies() {
  document.cookie = "tenuto-visitor=;samesite=lax;max-age=9" // of some seconds, and `Lax` as the hub's
  return document.cookie.includes("tenuto-visitor")
}
