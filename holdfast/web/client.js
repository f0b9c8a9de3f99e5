/**
 * The client: connections that reconnect, and requests that survive a reconnect.
 *
 * Only this module does I/O; `view` folds the events that arrive. Public are the results of `connect` and `channel`:
 * on a client `state`, `subscribe`, `channel`, `newId`, `close`; on a channel `getSnapshot`, `subscribe`, `listen`,
 * `state`, `error`, `stats`, `cursor`, `close`, `signal` and the requests. The other members serve the classes of this
 * file and may change.
 * @module
 */

import { countPoints, SurrogateJoiner } from "./text.js"
import { EVENT_TYPES, remember, View } from "./view.js"

/** @typedef {import("./view.js").Batch} Batch */
/** @typedef {import("./view.js").WireEvent} WireEvent */
/** @typedef {import("./view.js").Snapshot} ViewSnapshot */
/** @typedef {"connecting" | "live" | "reconnecting" | "closed"} State */
/** @typedef {ViewSnapshot & { readonly state: State, readonly error: HoldfastError | null }} Snapshot */
/**
 * @typedef {object} Options
 * @property {string} url where the server is mounted; may be relative to the page
 * @property {"auto" | "websocket" | "sse"} [transport] `auto`: WebSocket, with SSE as its fallback
 * @property {string} [client] the client id, for servers without a verifier; `enter` over SSE needs it
 * @property {AbortSignal} [signal] closes the client
 * @property {typeof globalThis.fetch} [fetch]
 * @property {typeof globalThis.WebSocket} [WebSocket]
 * @property {typeof globalThis.EventSource} [EventSource]
 * @property {() => number} [now] milliseconds
 * @property {() => number} [random] from 0 up to 1
 */
/**
 * @typedef {object} Stats the input of one channel
 * @property {number} events
 * @property {number} batches complete ones
 * @property {number} bytes of the frames (WebSocket) or event objects (SSE), in UTF-8
 * @property {number} reconnects how often it became live again
 * @property {number} gaps how often text was lost; each is a bug
 * @property {{ events: number, points: number }} catchUp the latest first batch: events about messages, and code
 *   points of text
 */
/** @typedef {Record<string, unknown> & { id?: string }} Fields */
/** @typedef {{ frame: Fields & { type: string, ref: number, channel: string, leave?: boolean }, text: string,
 *   resolve: (response: any) => void, reject: (error: HoldfastError) => void }} Unanswered */

// Full jitter: each delay is random between 0 and a ceiling that doubles, so that a thousand viewers of a restarted
// server spread out. The base keeps them all within its 5 s budget; the cap is the longest acceptable wait on a page.
const BACKOFF_BASE_MS = 500
const BACKOFF_CAP_MS = 15_000
const STABLE_MS = 5_000 // a connection that breaks sooner is one more failure
const OPEN_MS = 10_000 // some proxies never respond to an upgrade; the same bound holds for an HTTP response
const SOCKET_SILENCE_MS = 14_000 // the server pings every 5 s
const STREAM_PING_S = 10 // EventSource hides heartbeat comments, so the client requests events
const STREAM_SILENCE_MS = 25_000
const SOCKET_TRIES = 3 // if a WebSocket worked before, the server is more likely down than the network blocked
const NOTIFY_MS = 20 // delay before an unfinished batch is shown, so that many small frames cost one rendering
const UNANSWERED = 500 // the server stops reading at 1,000 or 4 MiB
const UNANSWERED_UNITS = 1_000_000 // of UTF-16, at most 3 bytes each; one request may go beyond it
const JOINERS = 1_000 // parts that one page writes at once
const PAGE_TRIES = 3
// The presence lease over SSE. Browsers run the timers of a hidden page once a minute, and its member must not flicker.
const LEASE_S = 90
const WAKING = ["online", "visibilitychange", "pageshow"]
// Requests over HTTP; a colon stands for the id. Any other request is a POST to a message under the name of its type.
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
// Temporary codes: attach again later. Any other code closes the channel.
const TEMPORARY = ["busy", "draining", "internal", "store_unavailable", "too_many"]

const utf8 = new TextEncoder()

/** A refusal by the server or by this client. `code` is stable; `problem` is the server's whole problem. */
export class HoldfastError extends Error {
  /** @param {string} code @param {Record<string, any>} [problem] */
  constructor(code, problem = {}) {
    super(problem.detail ?? code)
    this.code = code
    this.problem = problem
  }
}

/** Return an error with `detail`, unless `problem` has its own. @param {string} code @param {string} detail @param {object} [problem] */
const refusal = (code, detail, problem) => new HoldfastError(code, { detail, ...problem })

/** @param {Options} options */
export function connect(options) {
  return new Client(options)
}

class Observable {
  /** @type {Set<() => void>} */
  #watchers = new Set()

  /** Call `watcher` after every change. @param {() => void} watcher @returns {() => void} unsubscribes it */
  subscribe = (watcher) => {
    this.#watchers.add(watcher)
    return () => void this.#watchers.delete(watcher)
  }

  notify() {
    callAll(this.#watchers, undefined)
  }
}

/** A connection that is opened again after each failure, until it is stopped. */
class Connection {
  isOpen = false
  attempt = 0
  /** @type {((text: string) => void) | undefined} */
  send
  /** @type {((channel: Channel) => void) | undefined} */
  attach
  #openedAt = 0
  #receivedAt = 0
  #release = () => {}
  /** @type {(() => void) | undefined} the call at the end of the back-off */
  #retry
  /** @type {ReturnType<typeof setTimeout> | undefined} of the back-off or the watchdog */
  #timer

  /**
   * @param {Client} client @param {Channel | null} channel null: all channels
   * @param {(connection: Connection) => () => void} dial starts to open it, and returns a function that releases it
   * @param {number} silence_ms the longest silence of a live connection
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
    this.#retry = undefined
    this.received()
    try {
      this.#release = this.dial(this)
    } catch {
      return this.fail() // this page may not open it, or the browser lacks it
    }
    this.#watch()
  }

  opened() {
    this.isOpen = true
    this.#openedAt = this.#receivedAt = this.client.now()
    this.client.opened(this)
  }

  received() {
    this.#receivedAt = this.client.now()
  }

  /** @param {string} data @param {(frame: any, text: string) => void} receive */
  receive(data, receive) {
    this.received()
    try {
      receive(JSON.parse(data), data)
    } catch (error) {
      this.fail() // the frame is lost, so the server has to send it again
      throw error
    }
  }

  /** @param {number} [least_ms] the shortest delay before the reconnect */
  fail(least_ms = 0) {
    const { client, isOpen } = this
    if (isOpen && client.now() - this.#openedAt > STABLE_MS) this.attempt = 0
    this.stop()
    this.#retry = client.retryOf(this, isOpen)
    if (this.#retry) {
      const ceiling_ms = Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.attempt++)
      this.#timer = setTimeout(this.#retry, least_ms + client.random() * ceiling_ms)
    }
    client.notify()
  }

  /** The page or the network is back: reconnect now, and replace a connection that was silent meanwhile. */
  wake() {
    if (this.isOpen && this.client.now() - this.#receivedAt > this.silence_ms / 2) this.fail()
    if (!this.#retry) return
    clearTimeout(this.#timer)
    this.#retry()
  }

  stop() {
    this.isOpen = false
    this.#retry = this.send = this.attach = undefined
    clearTimeout(this.#timer)
    this.#release()
    for (const channel of this.channels) channel.disconnected()
  }

  #watch() {
    const left_ms = this.#receivedAt + (this.isOpen ? this.silence_ms : OPEN_MS) - this.client.now()
    if (left_ms > 0) this.#timer = setTimeout(() => this.#watch(), left_ms)
    else this.fail()
  }
}

/** A WebSocket, for all channels. @param {Connection} connection */
function dialSocket(connection) {
  const { client } = connection
  const socket = new client.WebSocket(client.address("/v1/ws").replace(/^http/, "ws"), "holdfast.v1")
  /** @type {Map<unknown, Channel>} by the `ref` of the request that attaches it */
  const attaching = new Map()
  /** @type {any} */
  let bye = {}

  /** @param {any} frame @param {string} text */
  const receive = (frame, text) => {
    const { type, ref, ...rest } = frame
    if (type === "events") client.channels.get(rest.channel)?.receive(rest, text, connection)
    else if (type === "ping") connection.send?.(JSON.stringify({ type: "pong", n: rest.n }))
    else if (type === "bye") bye = rest // the code of the following close decides whether to reconnect
    else if (type === "ok") client.settle(ref, rest)
    else if (type === "error") {
      const error = new HoldfastError(rest.code, rest)
      attaching.get(ref)?.refused(error, connection)
      client.settle(ref, error)
    }
  }

  socket.onopen = () => {
    connection.send = (text) => socket.send(text)
    connection.attach = (channel) => {
      const ref = client.nextRef()
      attaching.set(ref, channel)
      channel.attaching()
      const { name, limit, cursor } = channel
      socket.send(JSON.stringify({ type: "attach", ref, channel: name, history: limit, since: cursor ?? undefined }))
    }
    for (const channel of connection.channels) connection.attach(channel)
    for (const { text } of client.unanswered.values()) socket.send(text)
    connection.opened()
  }
  socket.onmessage = ({ data }) => connection.receive(data, receive)
  socket.onclose = ({ code }) => {
    if (code >= 4300) {
      return client.close(refusal(bye.reason ?? "refused", `${client.base} closed the WebSocket for good with code ${code}`, bye))
    }
    if (code >= 4100 && code < 4200) for (const { view } of connection.channels) view.cursor = null
    connection.fail(bye.retry_ms)
  }
  return () => {
    socket.onopen = socket.onmessage = socket.onclose = null
    socket.close()
  }
}

/** An EventSource, for one channel. This client reconnects it: its own back-off has no jitter and may give up for ever. */
function dialStream(/** @type {Connection} */ connection) {
  const { client } = connection
  const channel = /** @type {Channel} */ (connection.channel)
  const { limit, cursor } = channel
  const query = { history: limit, since: cursor, ping_s: STREAM_PING_S }
  const source = new client.EventSource(client.address(`/v1/channels/${encodeURIComponent(channel.name)}/events`, query))
  const fail = () => connection.fail()
  let last = ""
  channel.attaching()
  source.onopen = () => connection.opened()
  source.onerror = fail
  source.addEventListener("bye", fail)
  source.addEventListener("ping", () => connection.received())
  for (const type of EVENT_TYPES) {
    source.addEventListener(type, ({ data, lastEventId }) => {
      // An event without an id repeats the previous one: only a new id marks the end of a batch.
      const cursor = lastEventId === last ? undefined : lastEventId
      last = lastEventId
      connection.receive(data, (event) => channel.receive({ cursor, events: [event] }, data, connection))
    })
  }
  return () => source.close()
}

class Client extends Observable {
  /** @type {Map<string, Channel>} */
  channels = new Map()
  /** @type {Map<unknown, Unanswered>} in the order of the calls, which is the order of sending */
  unanswered = new Map()
  /** @type {Connection[]} */
  #connections = []
  isSse = false
  #socketWorked = false
  #streamWorked = false
  #units = 0
  #refs = 0
  #isSending = false
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

  /** @returns {State} the state of the connection; a channel has its own */
  get state() {
    if (this.#closed.signal.aborted) return "closed"
    if (this.#connections.length && this.#connections.every(({ isOpen }) => isOpen)) return "live"
    return this.#socketWorked || this.#streamWorked ? "reconnecting" : "connecting"
  }

  /**
   * Watch a channel; each call returns the same object until it is closed.
   * @param {string} name @param {{ history?: number }} [options] the number of messages of a new start
   */
  channel(name, { history } = {}) {
    if (this.state === "closed") throw this.#isOver()
    let channel = this.channels.get(name)
    if (!channel) {
      channel = new Channel(this, name, history)
      this.channels.set(name, channel)
      if (this.isSse) this.#stream(channel).start()
      else this.#connections[0]?.attach?.(channel)
    }
    return channel
  }

  /** Return a new id for a message that is not stored yet. */
  newId() {
    return [this.now(), this.nextRef(), this.random()].map((part) => part.toString(36).slice(-12)).join("-")
  }

  /** Close all connections; pending requests fail. @param {HoldfastError} [error] the reason */
  close(error) {
    this.#closed.abort()
    for (const channel of this.channels.values()) channel.end(error)
    for (const connection of this.#connections) connection.stop()
    for (const ref of this.unanswered.keys()) this.settle(ref, error ?? this.#isOver())
    this.channels.clear()
    this.#connections = []
    this.notify()
  }

  // The members below are internal to this file.

  /** Throw if the client accepts no request now. */
  check() {
    if (this.state === "closed") throw this.#isOver()
    const { size } = this.unanswered
    if (size >= UNANSWERED || this.#units >= UNANSWERED_UNITS) {
      throw refusal("too_many", `${size} requests with ${this.#units} characters wait for a response: await some of them first`)
    }
  }

  #isOver() {
    return refusal("closed", `the client of ${this.base} is closed: call connect() again`)
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
      this.#connections[0]?.send?.(text)
      void this.#sendAll()
    })
  }

  /** Send a request once; without a connection it is lost. @param {string} type @param {string} channel @param {Fields} fields */
  sendOnce(type, channel, fields) {
    const frame = { ...fields, type, ref: this.nextRef(), channel }
    if (this.isSse) this.#sendOne(frame).catch(() => {})
    else this.#connections[0]?.send?.(JSON.stringify(frame))
  }

  /** @param {unknown} ref @param {unknown} response */
  settle(ref, response) {
    const request = this.unanswered.get(ref)
    const error = response instanceof HoldfastError ? response : null
    if (!request || error?.code === "draining") return // not carried out: the next server gets it again
    this.unanswered.delete(ref)
    this.#units -= request.text.length
    if (error) request.reject(error)
    else request.resolve(response)
  }

  /** @param {Connection} connection */
  opened(connection) {
    if (connection.channel) this.#streamWorked = true
    else this.#socketWorked = true
    for (const channel of connection.channels) channel.renewPresence()
    void this.#sendAll()
    this.notify()
  }

  /** Return the call at the end of the back-off; undefined if another transport took over. @param {Connection} connection @param {boolean} wasOpen */
  retryOf(connection, wasOpen) {
    const isFree = (this.options.transport ?? "auto") === "auto"
    if (connection.channel) {
      if (isFree && (this.#socketWorked || !this.#streamWorked)) return () => this.#use(false, connection.attempt)
    } else if (isFree && !wasOpen && this.channels.size && (!this.#socketWorked || connection.attempt >= SOCKET_TRIES)) {
      return void this.#use(true, connection.attempt)
    }
    return () => connection.start()
  }

  /** @param {Channel} channel */
  leave(channel) {
    this.channels.delete(channel.name)
    this.#connections[0]?.send?.(JSON.stringify({ type: "detach", ref: this.nextRef(), channel: channel.name }))
    for (const connection of this.#connections) if (connection.channel === channel) connection.stop()
    this.#connections = this.#connections.filter((connection) => connection.channel !== channel)
  }

  /** @param {boolean} isSse @param {number} attempt the number of failed attempts */
  #use(isSse, attempt) {
    for (const connection of this.#connections) connection.stop()
    this.isSse = isSse
    this.#connections = []
    if (isSse) for (const channel of this.channels.values()) this.#stream(channel)
    else this.#connections.push(new Connection(this, null, dialSocket, SOCKET_SILENCE_MS))
    for (const connection of this.#connections) {
      connection.attempt = attempt
      connection.start()
    }
  }

  /** @param {Channel} channel */
  #stream(channel) {
    const connection = new Connection(this, channel, dialStream, STREAM_SILENCE_MS)
    this.#connections.push(connection)
    return connection
  }

  #wake = () => {
    if (!globalThis.document?.hidden) for (const connection of this.#connections) connection.wake()
  }

  /** With SSE, requests go over HTTP, one after another, since appends depend on each other. */
  async #sendAll() {
    if (this.#isSending) return
    this.#isSending = true
    for (const [ref, { frame }] of this.unanswered) {
      if (!this.isSse) break
      await this.#sendOne(frame).then(
        (response) => this.settle(ref, response),
        (error) => error instanceof HoldfastError && this.settle(ref, error),
      )
      // The server or the network is down: send it again after a while at the latest.
      if (this.unanswered.has(ref)) {
        setTimeout(() => this.#sendAll(), this.random() * OPEN_MS)
        break
      }
    }
    this.#isSending = false
  }

  /** @param {Unanswered["frame"]} frame */
  async #sendOne({ type, channel, ref: _, leave, ...fields }) {
    const [verb, pattern] = (ROUTES.get(type) ?? `POST messages/:/${type}`).split(" ")
    const method = leave ? "DELETE" : verb
    if (type === "presence") Object.assign(fields, { id: this.options.client ?? "anonymous", lease_s: LEASE_S })
    const path = pattern.replace(":", () => encodeURIComponent(fields.id ?? ""))
    if (path !== pattern) delete fields.id
    const query = method === "GET" ? fields : {}
    const response = await this.fetch(this.address(`/v1/channels/${encodeURIComponent(channel)}/${path}`, query), {
      method,
      signal: AbortSignal.any([this.#closed.signal, AbortSignal.timeout(OPEN_MS)]),
      ...(method[0] === "P" && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) }),
    })
    if (response.ok) return response.status > 201 ? {} : response.json()
    const problem = await response.json().catch(() => ({}))
    // A response without a code comes from a proxy; from 500 on it means that the server is down.
    if (problem.code || response.status < 500) {
      const detail = `${method} ${response.url || path} got status ${response.status} without a code: is ${this.base} a Holdfast server?`
      throw refusal(problem.code ?? "internal", detail, problem)
    }
    throw new Error()
  }
}

class Channel extends Observable {
  view = new View()
  /** @type {Stats} */
  stats = { events: 0, batches: 0, bytes: 0, reconnects: 0, gaps: 0, catchUp: { events: 0, points: 0 } }
  /** @type {State} `live` when the first batch is complete */
  state = "connecting"
  /** @type {HoldfastError | null} the reason why it is closed */
  error = null
  /** @type {Stats["catchUp"] | null} */
  #arriving = null
  /** @type {Set<(event: WireEvent) => void>} */
  #listeners = new Set()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #notifyTimer
  /** @type {Promise<boolean> | null} */
  #paging = null
  /** @type {Map<string, SurrogateJoiner>} by message and part */
  #joiners = new Map()
  /** @type {{ data?: object } | null} the presence of this client */
  #presence = null
  #presenceRequests = 0 // presence requests that wait for a response
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

  /** Return the state to show: the same object until the subscribers are notified. @type {() => Snapshot} */
  getSnapshot = () => (this.#shown ??= { ...this.view.getSnapshot(), state: this.state, error: this.error })

  /** Receive the events that no snapshot keeps: signals, and replies to commands. @param {(event: WireEvent) => void} listener @returns {() => void} removes it */
  listen(listener) {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Stop watching the channel. @param {HoldfastError} [error] the reason */
  close(error) {
    if (this.#presence) this.leave().catch(() => {})
    this.client.leave(this)
    this.end(error)
  }

  /**
   * Store a message: `{role, text or parts, status, meta, parent, reply_to}`; omitted fields have the defaults of the wire.
   * @param {Fields & { text?: string, parts?: unknown[], status?: string }} fields
   * @returns {Promise<{ message: import("./view.js").Message, serial: number, generation: number, cursor: string }>}
   */
  async create({ id = this.client.newId(), text, ...fields }) {
    this.client.check()
    const joiner = new SurrogateJoiner(0)
    const isStreaming = fields.status === "streaming"
    if (text !== undefined) text = joiner.write(text).text + (isStreaming ? "" : joiner.end().text)
    if (isStreaming && !fields.parts) this.#keep(`${id} `, joiner)
    return this.#request("create", { ...fields, id, text })
  }

  /**
   * Add text to a streaming message. `at` is the length of the part in code points. Without it the text follows the
   * previous piece, as long as no piece was refused.
   * @param {string} id @param {string} text @param {number} [at] @param {number} [part] by default the last text part
   * @param {{ generation?: number }} [writer] required if the message was taken over
   * @returns {Promise<{ length: number, serial?: number, part?: number }>} no serial: the text waits for its other half
   */
  async append(id, text, at, part, writer) {
    this.client.check()
    const key = `${id} ${part ?? ""}`
    const joiner = this.#joiners.get(key) ?? this.#keep(key, new SurrogateJoiner(at ?? NaN))
    if (at !== undefined) joiner.seek(at)
    const piece = joiner.write(text)
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
    for (const [key, joiner] of this.#joiners) {
      const [message, part] = key.split(" ")
      if (message !== id) continue
      this.#joiners.delete(key)
      const end = { id, part: part ? Number(part) : undefined, generation: fields.generation, ...joiner.end() }
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
   * Send a command (`cancel`, `steer`, or a name of the app) to the clients that can carry it out. All viewers see it and its reply.
   * @param {string} name @param {{ target?: string, data?: unknown, expires_s?: number, id?: string }} [fields]
   * @returns {Promise<{ command: import("./view.js").Command, serial: number }>}
   */
  command(name, fields) {
    return this.#request("command", { id: this.client.newId(), ...fields, name })
  }

  /** Reply to a command; the first reply counts. @param {string} id @param {{ ok?: boolean, data?: unknown, error?: unknown }} [fields] */
  reply(id, fields) {
    return this.#request("reply", { request: this.client.newId(), ok: true, ...fields, id })
  }

  /** Become present, with a little data, until `leave`, also after each reconnect. A further call replaces the data. @param {object} [data] */
  enter(data) {
    this.#presence = { data }
    return this.#sendPresence()
  }

  leave() {
    this.#presence = null
    return this.#sendPresence()
  }

  /** Send a signal to the clients that are connected now. Never stored, and lost without a connection. @param {string} name @param {unknown} [data] */
  signal(name, data) {
    this.client.sendOnce("signal", this.name, { name, data })
  }

  /** Add the next older page to the view. @param {{ limit?: number }} [options] @returns {Promise<boolean>} whether older messages remain */
  history({ limit } = {}) {
    return (this.#paging ??= this.#page(limit).finally(() => (this.#paging = null)))
  }

  // The members below are internal to this file.

  attaching() {
    this.#arriving = { events: 0, points: 0 }
  }

  /** The connection has ended; its incomplete batch is void. */
  disconnected() {
    this.view.disconnect()
    if (this.state === "live") this.#become("reconnecting")
  }

  /** @param {HoldfastError} error @param {Connection} connection */
  refused(error, connection) {
    if (TEMPORARY.includes(error.code)) connection.fail()
    else this.close(error)
  }

  /** Presence ends with its connection or its lease: send it again, unless a request is pending. */
  renewPresence() {
    if (this.#presence && !this.#presenceRequests) this.#sendPresence().catch(() => {})
  }

  /** @param {Batch} batch @param {string} text its frame @param {Connection} connection */
  receive({ cursor, events }, text, connection) {
    const { stats } = this
    stats.bytes += utf8.encode(text).length
    stats.events += events.length
    for (const event of events) if (this.#arriving) countIn(this.#arriving, event)
    const { isGap, passed } = this.view.apply({ cursor, events })
    if (isGap) {
      stats.gaps++
      connection.fail() // the whole connection: a gap is always a bug, and the other channels resume at little cost
    } else if (cursor && cursor === this.cursor) {
      stats.batches++
      this.#goLive()
    } else this.#notifyTimer ??= setTimeout(() => this.notify(), NOTIFY_MS)
    for (const event of passed) callAll(this.#listeners, event)
  }

  /** @param {HoldfastError} [error] */
  end(error) {
    clearTimeout(this.#renewal)
    this.error = error ?? null
    this.#become("closed")
  }

  notify() {
    clearTimeout(this.#notifyTimer)
    this.#notifyTimer = this.#shown = undefined
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

  async #sendPresence() {
    clearTimeout(this.#renewal)
    this.#presenceRequests++
    await this.#request("presence", this.#presence ?? { leave: true }).finally(() => this.#presenceRequests--)
    clearTimeout(this.#renewal)
    if (this.client.isSse && this.state !== "closed") this.#renewal = setTimeout(() => this.renewPresence(), LEASE_S * 333)
  }

  /** @param {number} [limit] */
  async #page(limit) {
    const { view } = this
    for (let tries = 0; view.more; tries++) {
      const { starts, before } = view
      if (tries === PAGE_TRIES) {
        throw refusal("stale", `channel ${this.name} changed during ${tries} requests for its page before ${before}: call history() again`)
      }
      const page = await this.#request("history", { before, limit })
      const isMerged = starts === view.starts && view.merge(page) // else the page belongs to a replaced view
      this.notify()
      if (isMerged) break
    }
    return view.more
  }

  /** @param {string} key @param {SurrogateJoiner} joiner */
  #keep(key, joiner) {
    if (isNaN(joiner.at)) {
      throw refusal("invalid_request", `the first append to message ${key.split(" ")[0]} needs at, the length of the part in code points, got undefined`)
    }
    remember(this.#joiners, key, joiner, JOINERS)
    return joiner
  }
}

/** @param {Stats["catchUp"]} sum @param {any} event */
function countIn(sum, { type, text = "", message }) {
  if (!type.startsWith("message.")) return
  sum.events++
  sum.points += countPoints(text)
  for (const part of message?.parts ?? []) sum.points += countPoints(part.text ?? "")
}

/** Call each callback; an exception of one does not stop the others. @template T @param {Set<(value: T) => void>} callbacks @param {T} value */
function callAll(callbacks, value) {
  for (const callback of [...callbacks]) {
    try {
      callback(value)
    } catch (error) {
      ;(globalThis.reportError ?? console.error)(error)
    }
  }
}
