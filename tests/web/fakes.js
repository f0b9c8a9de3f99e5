/** A network that a test controls: sockets, streams and fetches that wait for the test. */
import { mock } from "node:test"

import { connect } from "../../tenuto/web/client.js"
import { loadFallback } from "../../tenuto/web/client/connection.js"

// Load the fallback transports, as any page does whose first connection is open: then their choice takes no time.
await loadFallback()

class FakeSocket {
  static all = []
  sent = []
  replied = new Set() // refs of the client's frames that have a response
  isClosed = false

  constructor(url, protocol) {
    Object.assign(this, { url, protocol })
    FakeSocket.all.push(this)
  }

  send(text) {
    if (!this.isOpen || this.isClosed) throw new Error("sent on a socket that is not open")
    this.sent.push(JSON.parse(text))
  }

  close() {
    this.isClosed = true
  }

  // The actions of the server and the network.

  open() {
    this.isOpen = true
    this.onopen?.({})
  }

  receive(frame) {
    this.replied.add(frame.ref)
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) })
  }

  /** Send a batch of a channel, after the responses to its attaches. */
  events(channel, cursor, ...events) {
    for (const frame of this.sent) {
      if (frame.type === "attach" && frame.channel === channel && !this.replied.has(frame.ref)) this.receive({ type: "ok", ref: frame.ref })
    }
    this.receive({ type: "events", channel, ...(cursor && { cursor }), events })
  }

  drop(code = 1006) {
    this.isClosed = true
    this.onclose?.({ code, reason: "" })
  }

  /** Return the sent requests of one type, without their refs. */
  sentOf(type) {
    return this.sent.filter((frame) => frame.type === type).map(({ ref: _, type: __, ...rest }) => rest)
  }

  ok(type, answer = {}) {
    const { ref } = this.sent.findLast((frame) => frame.type === type)
    this.receive({ type: "ok", ref, ...answer })
  }

  refuse(type, code, details = {}) {
    const { ref } = this.sent.findLast((frame) => frame.type === type)
    this.receive({ type: "error", ref, code, ...details })
  }
}

/** A stream of events as `fetch` gives it. Await each action: the client reads the stream in tasks of its own. */
class FakeSource {
  static all = []
  isClosed = false
  isOpen = false

  constructor(url, { signal, headers }, resolve, reject) {
    Object.assign(this, { url: new URL(url), headers, resolve, reject })
    signal.addEventListener("abort", () => {
      this.isClosed = true
      reject(signal.reason)
      if (this.isOpen) this.controller.error(signal.reason)
    })
    FakeSource.all.push(this)
  }

  async open() {
    this.isOpen = true
    const body = new ReadableStream({ start: (controller) => void (this.controller = controller) })
    this.resolve(new Response(body, { status: 200 }))
    await settled()
  }

  async refuse(status, problem) {
    this.resolve(new Response(problem && JSON.stringify(problem), { status }))
    await settled()
  }

  async write(text) {
    if (this.isClosed) return
    this.controller.enqueue(new TextEncoder().encode(text))
    await settled()
  }

  receive({ type, ...event }, id) {
    return this.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...event })}\n${id === undefined ? "" : `id: ${id}\n`}\n`)
  }

  async bye(code) {
    await this.write(`event: bye\ndata: ${JSON.stringify(code)}\n\n`)
  }

  async drop() {
    if (this.isClosed) return
    if (this.isOpen) this.controller.error(new TypeError("network error"))
    else this.reject(new TypeError("network error"))
    await settled()
  }

  async end() {
    this.controller.close()
    await settled()
  }
}

/** A fetch whose calls wait in `calls` for `answer` or `fail`. Streams are in `w.sources`, polls in `polls`, probes in `probes`. */
export class FakeFetch {
  calls = []
  polls = []
  probes = []

  fetch = (url, { method, body, signal, headers, mode }) =>
    new Promise((resolve, reject) => {
      const { pathname, searchParams } = new URL(url)
      if (pathname.endsWith("/events")) return void new FakeSource(url, { signal, headers }, resolve, reject)
      signal.addEventListener("abort", () => reject(signal.reason))
      const call = { method, path: pathname, query: Object.fromEntries(searchParams), headers, mode, resolve, reject }
      const list = pathname.endsWith("/poll") ? this.polls : pathname.endsWith("/v1") ? this.probes : this.calls
      list.push({ ...call, body: body && JSON.parse(body) })
    })

  /** Return the requests as method, path and body. */
  get requests() {
    return this.calls.map(({ method, path, body }) => [method, path, body])
  }

  async answer(status, body) {
    this.calls.at(-1).resolve(new Response(body && JSON.stringify(body), { status }))
    await settled()
  }

  async fail() {
    this.calls.at(-1).reject(new TypeError("network error"))
    await settled()
  }

  async poll(body, status = 200) {
    this.polls.at(-1).resolve(new Response(JSON.stringify(body), { status }))
    await settled()
  }

  /** Respond to the newest probe: with a status and a body, or, without a status, as a network error. */
  async probed(status, body) {
    if (status === undefined) this.probes.at(-1).reject(new TypeError("Failed to fetch"))
    else this.probes.at(-1).resolve(new Response(JSON.stringify(body), { status }))
    await settled()
  }
}

/** Run all tasks that are ready. */
export async function settled() {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve))
}

/** @type {import("../../tenuto/web/client.js").Client | undefined} of the latest world */
let current

/** Let `page` be the page of the code that runs from now on; without one there is none. @param {EventTarget} [page] */
export function usePage(page) {
  globalThis.addEventListener = page?.addEventListener.bind(page)
  globalThis.dispatchEvent = page?.dispatchEvent.bind(page)
}

/** Return a client on fakes. Only `pass` moves the time. `t`: the test's context. */
export function world(t, options = {}) {
  FakeSocket.all = []
  FakeSource.all = []
  current?.close() // before the reset: to clear a timer of before would damage the queue of the mocked timers
  mock.timers.reset()
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 })
  const page = new EventTarget()
  usePage(page)
  const http = new FakeFetch()
  const client = connect({
    url: "http://server.test/base/",
    fetch: http.fetch,
    WebSocket: FakeSocket,
    now: () => Date.now(),
    random: () => 0.5,
    ...options,
  })
  current = client
  t.after(() => {
    client.close()
    usePage()
  })
  return {
    client,
    http,
    page,
    pass: (ms) => mock.timers.tick(ms),
    /** Let `ms` pass, and open the socket that the client has begun since. */
    openAfter(ms) {
      this.pass(ms)
      this.socket.open()
    },
    sockets: FakeSocket.all,
    sources: FakeSource.all,
    get socket() {
      return FakeSocket.all.at(-1)
    },
    get source() {
      return FakeSource.all.at(-1)
    },
  }
}

// Events -------------------------------------------------------------------------------------------------------------

export const attached = (serial, fields = {}) => ({
  type: "channel.attached", channel: "c", epoch: "e", serial, resumed: false, more: false, before: 1, ...fields,
})
export const message = (id, created, text, fields = {}) => ({
  id, role: "assistant", status: "streaming", parts: [{ type: "text", text }], created, version: created,
  created_at: 1, updated_at: 1, ...fields,
})
export const update = (value) => ({ type: "message.update", serial: value.version, message: value })
export const append = (serial, id, at, text, part = 0) => ({ type: "message.append", serial, id, part, at, text })

/** Open the newest socket and bring channel `name` to serial 1 with one streaming message `m` with the text "a". */
export function goLive({ socket }, name = "c") {
  socket.open()
  socket.events(name, "e:1", attached(1), update(message("m", 1, "a")))
}

/** Return a world and its channel "c", which waits for a connection. */
export function channelOf(t, options) {
  const w = world(t, options)
  return { w, channel: w.client.channel("c") }
}

/** Return a world and its channel "c" after `goLive`. */
export function liveChannel(t, options) {
  const found = channelOf(t, options)
  goLive(found.w)
  return found
}

/** Return a world and its channel "c" after the same events as in `goLive`, over SSE. */
export async function streamedChannel(t) {
  const found = channelOf(t, { transport: "sse" })
  await found.w.source.open()
  await found.w.source.receive(attached(1))
  await found.w.source.receive(update(message("m", 1, "a")), "e:1")
  return found
}

export const texts = (channel) => channel.getSnapshot().messages.map(({ parts }) => parts[0].text)
