/**
 * The client: connections, their way back, and requests that survive both.
 *
 * The one module here that does I/O; what arrives is folded by `view`. Public is what `connect` and `channel` return:
 * on a client `state`, `subscribe`, `channel`, `newId`, `close`; on a channel `getSnapshot`, `subscribe`, `listen`,
 * `state`, `error`, `stats`, `cursor`, `close`, `signal` and the requests. The rest serves the classes of this file and
 * may change.
 * @module
 */

import { countPoints, Pen } from "./text.js"
import { EVENT_TYPES, remember, View } from "./view.js"

/** @typedef {import("./view.js").Batch} Batch */
/** @typedef {import("./view.js").WireEvent} WireEvent */
/** @typedef {import("./view.js").Snapshot} ViewSnapshot */
/** @typedef {"connecting" | "live" | "reconnecting" | "closed"} State */
/** @typedef {ViewSnapshot & { readonly state: State, readonly error: HoldfastError | null }} Snapshot */
/**
 * @typedef {object} Options
 * @property {string} url where the server is mounted; may be relative to the page
 * @property {"auto" | "websocket" | "sse"} [transport] `auto`: WebSocket, and SSE where that cannot be opened
 * @property {string} [client] the client id, for servers without a verifier; beside SSE whoever enters needs it
 * @property {AbortSignal} [signal] closes the client
 * @property {typeof globalThis.fetch} [fetch]
 * @property {typeof globalThis.WebSocket} [WebSocket]
 * @property {typeof globalThis.EventSource} [EventSource]
 * @property {() => number} [now] milliseconds
 * @property {() => number} [random] from 0 up to 1
 */
/**
 * @typedef {object} Stats what came in on one channel
 * @property {number} events
 * @property {number} batches complete ones
 * @property {number} bytes of the frames (WebSocket) or event objects (SSE), in UTF-8
 * @property {number} reconnects how often it became live again
 * @property {number} gaps how often something was lost; each is somebody's bug
 * @property {{ events: number, points: number }} catchUp what the latest first batch carried: events about messages, and
 *   code points of text
 */
/** @typedef {Record<string, unknown> & { id?: string }} Fields */
/** @typedef {{ frame: Fields & { type: string, ref: number, channel: string, leave?: boolean }, text: string,
 *   resolve: (answer: any) => void, reject: (error: HoldfastError) => void }} Unanswered */

// Full jitter: a delay is drawn from 0 up to a ceiling that doubles, so that a thousand viewers of a restarted server
// spread out. The base keeps them all within its 5 s budget; nobody watching a page should wait longer than the cap.
const BACKOFF_BASE_MS = 500
const BACKOFF_CAP_MS = 15_000
const STABLE_MS = 5_000 // a connection that breaks sooner is one more failure
const OPEN_MS = 10_000 // some proxies swallow an upgrade without an answer; so long may an HTTP answer take, too
const SOCKET_SILENCE_MS = 14_000 // the server pings every 5 s
const STREAM_PING_S = 10 // EventSource hides heartbeat comments, so we ask for events
const STREAM_SILENCE_MS = 25_000
const SOCKET_TRIES = 3 // where a WebSocket worked before, the server is more likely away than the way blocked
const NOTIFY_MS = 20 // an unfinished batch is shown this late, so that many small frames cost one rendering
const UNANSWERED = 500 // the server stops reading at 1,000 or 4 MiB
const UNANSWERED_UNITS = 1_000_000 // of UTF-16, at most 3 bytes each; one request may go beyond it
const PENS = 1_000 // parts written at once by one page
const PAGE_TRIES = 3
// Presence beside SSE. Browsers let the timers of a hidden page run once a minute, and its member must not flicker.
const LEASE_S = 90
const WAKING = ["online", "visibilitychange", "pageshow"]
// Requests over HTTP; a colon stands for the id. What is not listed is a POST to a message, named as the request is.
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
// Codes that may pass: attach again later. With any other the channel is closed.
const PASSING = ["busy", "draining", "internal", "store_unavailable", "too_many"]

const utf8 = new TextEncoder()

/** What the server or this client refused; `code` is stable, `problem` is all that the server said. */
export class HoldfastError extends Error {
  /** @param {string} code @param {Record<string, any>} [problem] */
  constructor(code, problem = {}) {
    super(problem.detail ?? code)
    this.code = code
    this.problem = problem
  }
}

/** @param {Options} options */
export function connect(options) {
  return new Client(options)
}

class Observable {
  /** @type {Set<() => void>} */
  #watchers = new Set()

  /** Call `watcher` after every change. @param {() => void} watcher @returns {() => void} ends that */
  subscribe = (watcher) => {
    this.#watchers.add(watcher)
    return () => void this.#watchers.delete(watcher)
  }

  notify() {
    callAll(this.#watchers, undefined)
  }
}

/** A connection and its way back. Whatever ends it, it is opened again, until it is stopped. */
class Line {
  isOpen = false
  attempt = 0
  /** @type {((text: string) => void) | undefined} */
  send
  /** @type {((channel: Channel) => void) | undefined} */
  attach
  #openedAt = 0
  #heardAt = 0
  #hangUp = () => {}
  /** @type {(() => void) | undefined} what the back-off waits for */
  #again
  /** @type {ReturnType<typeof setTimeout> | undefined} of the back-off or the watchdog */
  #timer

  /**
   * @param {Client} client @param {Channel | null} channel null: all of them
   * @param {(line: Line) => () => void} dial begins to open it, and returns what lets go of it
   * @param {number} silence_ms after which it is dead
   */
  constructor(client, channel, dial, silence_ms) {
    this.client = client
    this.channel = channel
    this.dial = dial
    this.silence_ms = silence_ms
  }

  get channels() {
    return this.channel ? [this.channel] : this.client.channels.values()
  }

  start() {
    this.#again = undefined
    this.heard()
    try {
      this.#hangUp = this.dial(this)
    } catch {
      return this.fail() // not allowed here, or not there at all
    }
    this.#watch()
  }

  opened() {
    this.isOpen = true
    this.#openedAt = this.#heardAt = this.client.now()
    this.client.opened(this)
  }

  heard() {
    this.#heardAt = this.client.now()
  }

  /** @param {string} data @param {(frame: any, text: string) => void} receive */
  receive(data, receive) {
    this.heard()
    try {
      receive(JSON.parse(data), data)
    } catch (error) {
      this.fail() // what was in it is lost, so it has to come again
      throw error
    }
  }

  /** @param {number} [least_ms] how long to stay away */
  fail(least_ms = 0) {
    const { client, isOpen } = this
    if (isOpen && client.now() - this.#openedAt > STABLE_MS) this.attempt = 0
    this.stop()
    this.#again = client.broke(this, isOpen)
    if (this.#again) {
      const ceiling_ms = Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.attempt++)
      this.#timer = setTimeout(this.#again, least_ms + client.random() * ceiling_ms)
    }
    client.notify()
  }

  /** The page or the network is back: try now, and do not trust a connection that was silent meanwhile. */
  wake() {
    if (this.isOpen && this.client.now() - this.#heardAt > this.silence_ms / 2) this.fail()
    if (!this.#again) return
    clearTimeout(this.#timer)
    this.#again()
  }

  stop() {
    this.isOpen = false
    this.#again = this.send = this.attach = undefined
    clearTimeout(this.#timer)
    this.#hangUp()
    for (const channel of this.channels) channel.left()
  }

  #watch() {
    const left_ms = this.#heardAt + (this.isOpen ? this.silence_ms : OPEN_MS) - this.client.now()
    if (left_ms > 0) this.#timer = setTimeout(() => this.#watch(), left_ms)
    else this.fail()
  }
}

/** A WebSocket, for all channels. @param {Line} line */
function dialSocket(line) {
  const { client } = line
  const socket = new client.WebSocket(client.address("/v1/ws").replace(/^http/, "ws"), "holdfast.v1")
  /** @type {Map<unknown, Channel>} by the `ref` of the request that attaches it */
  const attaching = new Map()
  /** @type {any} */
  let bye = {}

  /** @param {any} frame @param {string} text */
  const receive = (frame, text) => {
    const { type, ref, ...rest } = frame
    if (type === "events") client.channels.get(rest.channel)?.receive(rest, text, line)
    else if (type === "ping") line.send?.(JSON.stringify({ type: "pong", n: rest.n }))
    else if (type === "bye") bye = rest // the code of the close that follows says whether to come back
    else if (type === "ok") client.settle(ref, rest)
    else if (type === "error") {
      const error = new HoldfastError(rest.code, rest)
      attaching.get(ref)?.refused(error, line)
      client.settle(ref, error)
    }
  }

  socket.onopen = () => {
    line.send = (text) => socket.send(text)
    line.attach = (channel) => {
      const ref = client.nextRef()
      attaching.set(ref, channel)
      channel.attaching()
      const { name, limit, cursor } = channel
      socket.send(JSON.stringify({ type: "attach", ref, channel: name, history: limit, since: cursor ?? undefined }))
    }
    for (const channel of line.channels) line.attach(channel)
    for (const { text } of client.unanswered.values()) socket.send(text)
    line.opened()
  }
  socket.onmessage = ({ data }) => line.receive(data, receive)
  socket.onclose = ({ code }) => {
    if (code >= 4300) return client.close(new HoldfastError(bye.reason ?? "refused", bye))
    if (code >= 4100 && code < 4200) for (const { view } of line.channels) view.cursor = null
    line.fail(bye.retry_ms)
  }
  return () => {
    socket.onopen = socket.onmessage = socket.onclose = null
    socket.close()
  }
}

/** An EventSource, for one channel. It comes back by our back-off: its own has no jitter and may give up for ever. */
function dialStream(/** @type {Line} */ line) {
  const { client } = line
  const channel = /** @type {Channel} */ (line.channel)
  const { limit, cursor } = channel
  const query = { history: limit, since: cursor, ping_s: STREAM_PING_S }
  const source = new client.EventSource(client.address(`/v1/channels/${encodeURIComponent(channel.name)}/events`, query))
  const fail = () => line.fail()
  let last = ""
  channel.attaching()
  source.onopen = () => line.opened()
  source.onerror = fail
  source.addEventListener("bye", fail)
  source.addEventListener("ping", () => line.heard())
  for (const type of EVENT_TYPES) {
    source.addEventListener(type, ({ data, lastEventId }) => {
      // An event without an id reports the one before it: only a new one is the end of a batch.
      const cursor = lastEventId === last ? undefined : lastEventId
      last = lastEventId
      line.receive(data, (event) => channel.receive({ cursor, events: [event] }, data, line))
    })
  }
  return () => source.close()
}

class Client extends Observable {
  /** @type {Map<string, Channel>} */
  channels = new Map()
  /** @type {Map<unknown, Unanswered>} in the order they were asked, which is the order they are sent in */
  unanswered = new Map()
  /** @type {Line[]} */
  #lines = []
  isSse = false
  #socketWorked = false
  #streamWorked = false
  #units = 0
  #refs = 0
  #isAsking = false
  #closed = new AbortController()

  /** @param {Options} options */
  constructor(options) {
    super()
    this.options = options
    this.base = new URL(options.url, globalThis.location?.href).href.replace(/\/+$/, "")
    this.fetch = options.fetch ?? ((...request) => fetch(...request))
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket
    this.EventSource = options.EventSource ?? globalThis.EventSource
    this.now = options.now ?? Date.now
    this.random = options.random ?? Math.random
    const { signal } = this.#closed
    for (const type of WAKING) globalThis.addEventListener?.(type, this.#wake, { signal })
    options.signal?.addEventListener("abort", () => this.close(), { signal })
    if (options.signal?.aborted) this.close()
    else this.#use(options.transport === "sse", 0)
  }

  /** @returns {State} of the connection; a channel has its own */
  get state() {
    if (this.#closed.signal.aborted) return "closed"
    if (this.#lines.length && this.#lines.every(({ isOpen }) => isOpen)) return "live"
    return this.#socketWorked || this.#streamWorked ? "reconnecting" : "connecting"
  }

  /**
   * Watch a channel; the same object until it is closed.
   * @param {string} name @param {{ history?: number }} [options] how many messages a new start brings
   */
  channel(name, { history } = {}) {
    if (this.state === "closed") throw new HoldfastError("closed")
    let channel = this.channels.get(name)
    if (!channel) {
      channel = new Channel(this, name, history)
      this.channels.set(name, channel)
      if (this.isSse) this.#stream(channel).start()
      else this.#lines[0]?.attach?.(channel)
    }
    return channel
  }

  /** A new id for a message, to know it before it is stored. */
  newId() {
    return [this.now(), this.nextRef(), this.random()].map((part) => part.toString(36).slice(-12)).join("-")
  }

  /** End everything; unanswered requests fail. @param {HoldfastError} [error] why */
  close(error) {
    this.#closed.abort()
    for (const channel of this.channels.values()) channel.end(error)
    for (const line of this.#lines) line.stop()
    for (const ref of this.unanswered.keys()) this.settle(ref, error ?? new HoldfastError("closed"))
    this.channels.clear()
    this.#lines = []
    this.notify()
  }

  // From here on: for the rest of this file.

  /** Throws when no request can be taken. */
  check() {
    if (this.state === "closed") throw new HoldfastError("closed")
    if (this.unanswered.size >= UNANSWERED || this.#units >= UNANSWERED_UNITS) throw new HoldfastError("too_many")
  }

  nextRef() {
    return ++this.#refs
  }

  /** @param {string} path @param {Record<string, unknown>} [query] */
  address(path, query) {
    const url = new URL(this.base + path)
    for (const [name, value] of Object.entries({ sdk: "js", client: this.options.client, ...query })) {
      if (value != null) url.searchParams.set(name, String(value))
    }
    return url.href
  }

  /** @param {string} type @param {string} channel @param {Fields} fields @returns {Promise<any>} */
  request(type, channel, fields) {
    return new Promise((resolve, reject) => {
      this.check()
      const ref = this.nextRef()
      const frame = { ...fields, type, ref, channel }
      const text = JSON.stringify(frame)
      this.#units += text.length
      this.unanswered.set(ref, { frame, text, resolve, reject })
      this.#lines[0]?.send?.(text)
      void this.#ask()
    })
  }

  /** Ask once: what has to wait is lost. @param {string} type @param {string} channel @param {Fields} fields */
  pass(type, channel, fields) {
    const frame = { ...fields, type, ref: this.nextRef(), channel }
    if (this.isSse) this.#askOne(frame).catch(() => {})
    else this.#lines[0]?.send?.(JSON.stringify(frame))
  }

  /** @param {unknown} ref @param {unknown} answer */
  settle(ref, answer) {
    const request = this.unanswered.get(ref)
    const error = answer instanceof HoldfastError ? answer : null
    if (!request || error?.code === "draining") return // nothing was done: it is sent again to whoever comes after
    this.unanswered.delete(ref)
    this.#units -= request.text.length
    if (error) request.reject(error)
    else request.resolve(answer)
  }

  /** @param {Line} line */
  opened(line) {
    if (line.channel) this.#streamWorked = true
    else this.#socketWorked = true
    for (const channel of line.channels) channel.enterAgain()
    void this.#ask()
    this.notify()
  }

  /** What to do when the back-off is over; nothing when another transport took its place. @param {Line} line @param {boolean} wasOpen */
  broke(line, wasOpen) {
    const isFree = (this.options.transport ?? "auto") === "auto"
    if (line.channel) {
      if (isFree && (this.#socketWorked || !this.#streamWorked)) return () => this.#use(false, line.attempt)
    } else if (isFree && !wasOpen && this.channels.size && (!this.#socketWorked || line.attempt >= SOCKET_TRIES)) {
      return void this.#use(true, line.attempt)
    }
    return () => line.start()
  }

  /** @param {Channel} channel */
  leave(channel) {
    this.channels.delete(channel.name)
    this.#lines[0]?.send?.(JSON.stringify({ type: "detach", ref: this.nextRef(), channel: channel.name }))
    for (const line of this.#lines) if (line.channel === channel) line.stop()
    this.#lines = this.#lines.filter((line) => line.channel !== channel)
  }

  /** @param {boolean} isSse @param {number} attempt how many failed before */
  #use(isSse, attempt) {
    for (const line of this.#lines) line.stop()
    this.isSse = isSse
    this.#lines = []
    if (isSse) for (const channel of this.channels.values()) this.#stream(channel)
    else this.#lines.push(new Line(this, null, dialSocket, SOCKET_SILENCE_MS))
    for (const line of this.#lines) {
      line.attempt = attempt
      line.start()
    }
  }

  /** @param {Channel} channel */
  #stream(channel) {
    const line = new Line(this, channel, dialStream, STREAM_SILENCE_MS)
    this.#lines.push(line)
    return line
  }

  #wake = () => {
    if (!globalThis.document?.hidden) for (const line of this.#lines) line.wake()
  }

  /** Beside SSE requests go over HTTP, one after another, since appends build on each other. */
  async #ask() {
    if (this.#isAsking) return
    this.#isAsking = true
    for (const [ref, { frame }] of this.unanswered) {
      if (!this.isSse) break
      await this.#askOne(frame).then(
        (answer) => this.settle(ref, answer),
        (error) => error instanceof HoldfastError && this.settle(ref, error),
      )
      // The server or the network is away: again, at the latest, after a while.
      if (this.unanswered.has(ref)) {
        setTimeout(() => this.#ask(), this.random() * OPEN_MS)
        break
      }
    }
    this.#isAsking = false
  }

  /** @param {Unanswered["frame"]} frame */
  async #askOne({ type, channel, ref: _, leave, ...fields }) {
    const [verb, place] = (ROUTES.get(type) ?? `POST messages/:/${type}`).split(" ")
    const method = leave ? "DELETE" : verb
    if (type === "presence") Object.assign(fields, { id: this.options.client ?? "anonymous", lease_s: LEASE_S })
    const path = place.replace(":", () => encodeURIComponent(fields.id ?? ""))
    if (path !== place) delete fields.id
    const query = method === "GET" ? fields : {}
    const response = await this.fetch(this.address(`/v1/channels/${encodeURIComponent(channel)}/${path}`, query), {
      method,
      signal: AbortSignal.any([this.#closed.signal, AbortSignal.timeout(OPEN_MS)]),
      ...(method[0] === "P" && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) }),
    })
    if (response.ok) return response.status > 201 ? {} : response.json()
    const problem = await response.json().catch(() => ({}))
    // Without a code it is a proxy's answer, and from 500 on it means that the server is away.
    if (problem.code || response.status < 500) throw new HoldfastError(problem.code ?? "internal", problem)
    throw new Error()
  }
}

class Channel extends Observable {
  view = new View()
  /** @type {Stats} */
  stats = { events: 0, batches: 0, bytes: 0, reconnects: 0, gaps: 0, catchUp: { events: 0, points: 0 } }
  /** @type {State} `live` when the first batch is complete */
  state = "connecting"
  /** @type {HoldfastError | null} why it is closed */
  error = null
  /** @type {Stats["catchUp"] | null} */
  #arriving = null
  /** @type {Set<(event: WireEvent) => void>} */
  #listeners = new Set()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #soon
  /** @type {Promise<boolean> | null} */
  #paging = null
  /** @type {Map<string, Pen>} by message and part */
  #pens = new Map()
  /** @type {{ data?: object } | null} as what we are here */
  #here = null
  #saying = 0 // so many times it is on its way
  /** @type {ReturnType<typeof setTimeout> | undefined} of the lease */
  #renewal
  /** @type {Snapshot | undefined} */
  #shown

  /** @param {Client} client @param {string} name @param {number} [limit] */
  constructor(client, name, limit) {
    super()
    this.client = client
    this.name = name
    this.limit = limit
  }

  get cursor() {
    return this.view.cursor
  }

  /** What to show: the same object until those who subscribe are told. @type {() => Snapshot} */
  getSnapshot = () => (this.#shown ??= { ...this.view.getSnapshot(), state: this.state, error: this.error })

  /** Hear what is not kept: signals, and replies to commands. @param {(event: WireEvent) => void} listener @returns {() => void} ends that */
  listen(listener) {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Leave the channel. @param {HoldfastError} [error] why */
  close(error) {
    if (this.#here) this.leave().catch(() => {})
    this.client.leave(this)
    this.end(error)
  }

  /**
   * Store a message: `{role, text or parts, status, meta, parent, reply_to}`; what is left out is as on the wire.
   * @param {Fields & { text?: string, parts?: unknown[], status?: string }} fields
   * @returns {Promise<{ message: import("./view.js").Message, serial: number, generation: number, cursor: string }>}
   */
  async create({ id = this.client.newId(), text, ...fields }) {
    this.client.check()
    const pen = new Pen(0)
    const isStreaming = fields.status === "streaming"
    if (text !== undefined) text = pen.write(text).text + (isStreaming ? "" : pen.end().text)
    if (isStreaming && !fields.parts) this.#keep(`${id} `, pen)
    return this.#request("create", { ...fields, id, text })
  }

  /**
   * Add text to a streaming message. `at` is the length of the part in code points; without it, on from the last
   * piece, as long as none was refused.
   * @param {string} id @param {string} text @param {number} [at] @param {number} [part] by default the last text part
   * @param {{ generation?: number }} [writer] needed where the message was taken over
   * @returns {Promise<{ length: number, serial?: number, part?: number }>} no serial: nothing can be sent yet
   */
  async append(id, text, at, part, writer) {
    this.client.check()
    const key = `${id} ${part ?? ""}`
    const pen = this.#pens.get(key) ?? this.#keep(key, new Pen(at ?? NaN))
    if (at !== undefined) pen.seek(at)
    const piece = pen.write(text)
    return piece.text ? this.#request("append", { ...writer, id, part, ...piece }) : { length: piece.at }
  }

  /**
   * End a streaming message.
   * @param {string} id @param {string} [status] @param {{ reason?: string, meta?: object, generation?: number }} [fields]
   * @returns {Promise<{ serial: number }>}
   */
  async finish(id, status = "complete", fields = {}) {
    this.client.check()
    const requests = []
    for (const [key, pen] of this.#pens) {
      const [message, part] = key.split(" ")
      if (message !== id) continue
      this.#pens.delete(key)
      const end = { id, part: part ? Number(part) : undefined, generation: fields.generation, ...pen.end() }
      if (end.text) requests.push(this.#request("append", end))
    }
    requests.push(this.#request("finish", { request: this.client.newId(), ...fields, id, status }))
    return (await Promise.all(requests)).at(-1)
  }

  /** Change a message: `{text or parts, meta, if_version, generation}`. @param {string} id @param {Fields} fields */
  update(id, fields) {
    return this.#request("update", { request: this.client.newId(), ...fields, id })
  }

  /** @param {string} id */
  delete(id) {
    return this.#request("delete", { id })
  }

  /**
   * Ask whoever can act (`cancel`, `steer`, or a name of the app's); everybody sees it, and the reply when it comes.
   * @param {string} name @param {{ target?: string, data?: unknown, expires_s?: number, id?: string }} [fields]
   * @returns {Promise<{ command: import("./view.js").Command, serial: number }>}
   */
  command(name, fields) {
    return this.#request("command", { id: this.client.newId(), ...fields, name })
  }

  /** Answer a command; the first answer counts. @param {string} id @param {{ ok?: boolean, data?: unknown, error?: unknown }} [fields] */
  reply(id, fields) {
    return this.#request("reply", { request: this.client.newId(), ok: true, ...fields, id })
  }

  /** Be seen here, with a little data, until `leave`; also after every return. Again: with other data. @param {object} [data] */
  enter(data) {
    this.#here = { data }
    return this.#present()
  }

  leave() {
    this.#here = null
    return this.#present()
  }

  /** Tell those who are here now. Never stored, and lost without a connection. @param {string} name @param {unknown} [data] */
  signal(name, data) {
    this.client.pass("signal", this.name, { name, data })
  }

  /** Bring the next older page into the view. @param {{ limit?: number }} [options] @returns {Promise<boolean>} is there more */
  history({ limit } = {}) {
    return (this.#paging ??= this.#page(limit).finally(() => (this.#paging = null)))
  }

  // From here on: for the rest of this file.

  attaching() {
    this.#arriving = { events: 0, points: 0 }
  }

  /** The connection is gone, and with it what it had not completed. */
  left() {
    this.view.cut()
    if (this.state === "live") this.#become("reconnecting")
  }

  /** @param {HoldfastError} error @param {Line} line */
  refused(error, line) {
    if (PASSING.includes(error.code)) line.fail()
    else this.close(error)
  }

  /** A connection knows those alone who came with it, and a lease ends: say it again, unless that is on its way. */
  enterAgain() {
    if (this.#here && !this.#saying) this.#present().catch(() => {})
  }

  /** @param {Batch} batch @param {string} text its frame @param {Line} line */
  receive({ cursor, events }, text, line) {
    const { stats } = this
    stats.bytes += utf8.encode(text).length
    stats.events += events.length
    for (const event of events) if (this.#arriving) countIn(this.#arriving, event)
    const { isGap, passed } = this.view.apply({ cursor, events })
    if (isGap) {
      stats.gaps++
      line.fail() // all of it: a gap is always somebody's bug, and the other channels resume at little cost
    } else if (cursor && cursor === this.cursor) {
      stats.batches++
      this.#goLive()
    } else this.#soon ??= setTimeout(() => this.notify(), NOTIFY_MS)
    for (const event of passed) callAll(this.#listeners, event)
  }

  /** @param {HoldfastError} [error] */
  end(error) {
    clearTimeout(this.#renewal)
    this.error = error ?? null
    this.#become("closed")
  }

  notify() {
    clearTimeout(this.#soon)
    this.#soon = this.#shown = undefined
    super.notify()
  }

  /** @param {State} state */
  #become(state) {
    this.state = state
    this.notify()
  }

  #goLive() {
    if (this.state === "reconnecting") this.stats.reconnects++
    this.stats.catchUp = this.#arriving ?? this.stats.catchUp
    this.#arriving = null
    this.#become("live")
  }

  /** @param {string} type @param {Fields} fields @returns {Promise<any>} */
  #request(type, fields) {
    return this.client.request(type, this.name, fields)
  }

  async #present() {
    clearTimeout(this.#renewal)
    this.#saying++
    await this.#request("presence", this.#here ?? { leave: true }).finally(() => this.#saying--)
    clearTimeout(this.#renewal)
    if (this.client.isSse && this.state !== "closed") this.#renewal = setTimeout(() => this.enterAgain(), LEASE_S * 333)
  }

  /** @param {number} [limit] */
  async #page(limit) {
    const { view } = this
    for (let tries = 0; view.more; tries++) {
      if (tries === PAGE_TRIES) throw new HoldfastError("stale")
      const { life, before } = view
      const page = await this.#request("history", { before, limit })
      const isTaken = life === view.life && view.merge(page) // else it is of a view that is no more
      this.notify()
      if (isTaken) break
    }
    return view.more
  }

  /** @param {string} key @param {Pen} pen */
  #keep(key, pen) {
    if (isNaN(pen.at)) throw new HoldfastError("invalid_request", { detail: "say where the text goes: at" })
    remember(this.#pens, key, pen, PENS)
    return pen
  }
}

/** @param {Stats["catchUp"]} sum @param {any} event */
function countIn(sum, { type, text = "", message }) {
  if (!type.startsWith("message.")) return
  sum.events++
  sum.points += countPoints(text)
  for (const part of message?.parts ?? []) sum.points += countPoints(part.text ?? "")
}

/** One that throws keeps no other from being called. @template T @param {Set<(value: T) => void>} callbacks @param {T} value */
function callAll(callbacks, value) {
  for (const callback of [...callbacks]) {
    try {
      callback(value)
    } catch (error) {
      ;(globalThis.reportError ?? console.error)(error)
    }
  }
}
