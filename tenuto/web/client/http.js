/**
 * Requests over HTTP, and the server's refusals (`docs/protocol.md`, 4). Part of the module that `fallback` loads.
 * @module
 */

import { TenutoError, refusal } from "./errors.js"

/** @typedef {import("../client.js").Client} Client */

const RESPONSE_MS = 10_000 // time limit of a request without its body
const UNITS_PER_MS = 3 // of at most 3 bytes, on the slowest network whose uploads succeed: `fetch` does not show their progress
const PAGE_MS = 80_000 // time limit of a page of older messages
// Length of the presence lease. Browsers run the timers of a hidden page only once a minute, and its member must not
// leave meanwhile.
const LEASE_S = 90
// Method and path by request type; a colon stands for the id. All other types are POST requests to a message's path
// that ends in the type.
const ROUTES = new Map([
  ["create", "POST messages"],
  ["history", "GET messages"],
  ["update", "PATCH messages/:"],
  ["delete", "DELETE messages/:"],
  ["command", "POST commands"],
  ["reply", "POST commands/:/reply"],
  ["presence", "PUT presence/:"],
  ["signal", "POST signals"],
])

/**
 * Send one HTTP request about a channel, with the token if there is one. Throw the error of a refusal.
 * @param {Client} client @param {string} method @param {string} channel @param {string} name the end of its path
 * @param {{ query?: Record<string, unknown>, body?: string, token?: string, signal: AbortSignal }} request
 */
export async function request(client, method, channel, name, { query, body, token, signal }) {
  const { base } = client
  const url = new URL(`${base}/v1/channels/${encodeURIComponent(channel)}/${name}`)
  for (const [field, value] of Object.entries({ sdk: "js", client: client.options.client, ...query })) {
    if (value != null) url.searchParams.set(field, String(value))
  }
  const response = await client.fetch(url.href, {
    method,
    signal,
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(token !== undefined && { Authorization: `Bearer ${token}` }),
    },
    body,
  })
  if (response.ok) return response
  const problem = await response.json().catch(() => ({}))
  const { status } = response
  if (problem?.code) throw new TenutoError(String(problem.code), problem)
  // A response without a code comes from a proxy or from another server.
  if (status >= 500) throw new Error(`${base} sent status ${status}: the client retries`)
  throw refusal("not_tenuto", `${base} sent status ${status} without a code: correct its address`)
}

/** Send all requests, one after another, since appends depend on each other; but no other one waits for a page of older messages. @param {import("./requests.js").Requests} requests */
export function sendAll(requests) {
  for (const ofPages of [false, true]) void sendQueue(requests, ofPages)
}

/** @param {import("./requests.js").Requests} requests @param {boolean} ofPages */
async function sendQueue(requests, ofPages) {
  const { client, pending, sending } = requests
  if (sending.has(ofPages)) return
  sending.add(ofPages)
  for (const [ref, { frame }] of pending) {
    if (!client.isHttp || client.state === "suspended") break
    if ((frame.type === "history") !== ofPages) continue
    await sendOne(client, frame).then(
      (response) => requests.settle(ref, response),
      (error) => error instanceof TenutoError && requests.settle(ref, error),
    )
    // The server or the network is down. Send the request again after a while, or earlier on a new connection.
    if (pending.has(ref)) {
      setTimeout(() => requests.sendAll(), client.random() * RESPONSE_MS)
      break
    }
  }
  sending.delete(ofPages)
}

/** Send a request of a channel, again if its token had to be replaced. @param {Client} client @param {import("./requests.js").Frame} frame @returns {Promise<any>} */
export async function sendOne(client, frame) {
  const { type, channel, ref: _, leave, ...fields } = frame
  const [verb, pattern] = (ROUTES.get(type) ?? `POST messages/:/${type}`).split(" ")
  if (type === "presence") Object.assign(fields, { id: client.id ?? "anonymous", lease_s: LEASE_S })
  const name = pattern.replace(":", () => encodeURIComponent(fields.id ?? ""))
  if (name !== pattern) delete fields.id
  const method = leave ? "DELETE" : verb
  const body = method[0] === "P" ? JSON.stringify(fields) : undefined
  const limit_ms = method === "GET" ? PAGE_MS : RESPONSE_MS + Math.ceil((body ?? "").length / UNITS_PER_MS)
  const known = client.token.get()
  const token = known instanceof Promise ? await known : known
  try {
    const response = await request(client, method, channel, name, {
      token,
      query: method === "GET" ? fields : {},
      body,
      signal: AbortSignal.any([client.closing, AbortSignal.timeout(limit_ms)]),
    })
    return response.status > 201 ? {} : await response.json()
  } catch (error) {
    const isForToken = error instanceof TenutoError && error.code === "unauthenticated" && client.token.source !== undefined
    if (isForToken && !client.tokenRefused(token, false)) return sendOne(client, frame)
    throw error
  }
}

/**
 * Handle the failure of a stream or a poll, which the server or the network has refused.
 * @param {import("./connection.js").Connection} connection @param {any} error @param {string | undefined} token
 */
export function refused(connection, error, token) {
  const { client, channel } = connection
  if (error?.code === "unauthenticated") return void (client.tokenRefused(token, connection.isOpen) || connection.fail())
  if (error?.code === "no_verifier") client.explain(error)
  if (error?.code === "not_found") return connection.fail() // the path is unknown: a server of another protocol
  if (error instanceof TenutoError && error.code !== "not_tenuto") return connection.refused(error, channel)
  connection.fail(0, error)
}

/** Open a WebSocket for a test and close it; call `done` with whether it has opened. @param {Client} client @param {(isOpen: boolean) => void} done */
export function tryWebSocket(client, done) {
  try {
    const socket = client.openSocket()
    const timer = setTimeout(() => socket.close(), RESPONSE_MS) // some proxies never respond
    /** @param {boolean} isOpen */
    const end = (isOpen) => {
      clearTimeout(timer)
      socket.onopen = socket.onclose = null
      socket.close()
      done(isOpen)
    }
    socket.onopen = () => end(true)
    socket.onclose = () => end(false)
  } catch {
    done(false)
  }
}
