/** A network that a test controls: sockets, streams and fetches that wait for the test. */
import { mock } from "node:test"

import { connect } from "../../holdfast/web/client.js"

class FakeSocket {
  static all = []
  sent = []
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
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) })
  }

  events(channel, cursor, ...events) {
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

/** An EventSource by the standard: `lastEventId` stays until another arrives, and a closed one dispatches no event. */
class FakeSource {
  static all = []
  listeners = new Map()
  readyState = 0
  lastEventId = ""

  constructor(url) {
    this.url = new URL(url)
    FakeSource.all.push(this)
  }

  addEventListener(type, listener) {
    this.listeners.set(type, listener)
  }

  close() {
    this.readyState = 2
  }

  open() {
    this.readyState = 1
    this.onopen?.({})
  }

  receive(event, id) {
    if (this.readyState === 2) return
    if (id !== undefined) this.lastEventId = id
    this.listeners.get(event.type)?.({ data: JSON.stringify(event), lastEventId: this.lastEventId })
  }

  drop() {
    if (this.readyState === 2) return
    this.readyState = 0
    this.onerror?.({})
  }
}

/** A fetch whose calls wait in `calls` for `answer` or `fail`. */
export class FakeFetch {
  calls = []

  fetch = (url, { method, body, signal, headers }) =>
    new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason))
      const { pathname, searchParams } = new URL(url)
      const call = { method, path: pathname, query: Object.fromEntries(searchParams), headers, resolve, reject }
      this.calls.push({ ...call, body: body && JSON.parse(body) })
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
}

/** Run all tasks that are ready. */
export async function settled() {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve))
}

/** Return a client on fakes. Only `pass` moves the time. `t`: the test's context. */
export function world(t, options = {}) {
  FakeSocket.all = []
  FakeSource.all = []
  mock.timers.reset()
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 })
  const page = new EventTarget()
  globalThis.addEventListener = page.addEventListener.bind(page)
  const http = new FakeFetch()
  const client = connect({
    url: "http://server.test/base/",
    fetch: http.fetch,
    WebSocket: FakeSocket,
    EventSource: FakeSource,
    random: () => 0.5,
    ...options,
  })
  t.after(() => {
    client.close()
    delete globalThis.addEventListener
    mock.timers.reset()
  })
  return {
    client,
    http,
    page,
    pass: (ms) => mock.timers.tick(ms),
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

export const texts = (channel) => channel.getSnapshot().messages.map(({ parts }) => parts[0].text)
