/**
 * The client: it chooses the transport, proves its identity, and reports errors.
 *
 * Members that are marked `@internal` serve the modules of this folder and may change; the package's types omit them.
 * @module
 */

import { Channel } from "./client/channel.js"
import { Connection, POLL, STREAM, withFallback } from "./client/connection.js"
import { TenutoError, isTemporary, Observable, refusal } from "./client/errors.js"
import { Outbox } from "./client/outbox.js"
import { Requests } from "./client/requests.js"
import { Token } from "./client/token.js"
import { WEBSOCKET } from "./client/websocket.js"

/** @typedef {"websocket" | "sse" | "poll"} TransportName */
/** @typedef {import("./client/requests.js").Fields} Fields */
/** @typedef {import("./view.js").Member} Member */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./client/channel.js").Snapshot<Meta, Data>} Snapshot
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./client/snapshot.js").Message<Meta, Data>} Message
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./view.js").WireEvent<Meta, Data>} WireEvent
 */
/**
 * @template [Data=unknown]
 * @typedef {import("./view.js").Part<Data>} Part
 */
/**
 * @template [Data=unknown]
 * @typedef {import("./view.js").Command<Data>} Command
 */
/** @typedef {"connecting" | "live" | "reconnecting" | "suspended" | "closed"} State */
/**
 * @typedef {object} Status
 * @property {State} state
 * @property {TenutoError | null} error why it is not live, if the client knows
 * @property {TransportName | "tab"} transport the one that is in use or tried; `tab`: the connection is another tab's
 * @property {number | null} retryAt when the next attempt begins, in milliseconds since 1970
 */
/**
 * @typedef {object} Options
 * @property {string} url where the server is mounted; may be relative to the page
 * @property {import("./client/token.js").TokenSource} [token] a bearer token, or a callback that returns one; `why` is `start`,
 *   `expired` or `refused`
 * @property {string} [identity] the client id of the page's user on the server, by default the `sub` of the token. Unsent
 *   messages survive the tab, and a reload begins with the last view
 * @property {boolean} [cache] `false`: keep no views in the browser
 * @property {boolean} [tabs] `false`: do not share the connection of another tab
 * @property {"auto" | TransportName} [transport] `auto`: WebSocket, then SSE, then long poll
 * @property {string} [client] the client id, for servers without a verifier; `enter` over HTTP needs it
 * @property {AbortSignal} [signal] closes the client
 * @property {typeof globalThis.fetch} [fetch]
 * @property {typeof globalThis.WebSocket} [WebSocket]
 * @property {() => number} [now] milliseconds of a monotonic clock
 * @property {() => number} [random] from 0 up to 1
 */

export { Channel } from "./client/channel.js"
export { TenutoError }

/** @type {{ [name: string]: import("./client/connection.js").Transport }} */
const CHOSEN = { sse: STREAM, poll: POLL }
// failed attempts before another transport: after a working WebSocket, the server is more likely down than the network
// blocked
const SOCKET_TRIES = 3
const UPGRADE_MS = 300_000 // time between two attempts to use a better transport
const SLOW_MS = 1_500 // an attempt that takes longer is diagnosed before it fails
const WAKING = ["online", "offline", "visibilitychange", "pageshow", "resume"]

/** Return a client of the hub at `url`. It connects at once, and again after each loss. @param {Options} options */
export function connect(options) {
  return new Client(options)
}

export class Client extends Observable {
  /** @internal @type {Map<string, Channel<any, any>>} */
  channels = new Map()
  /** @internal */
  requests = new Requests(this)
  /** @internal @type {import("./client/sharing.js").Sharing | undefined} cache and connection that the pages of one identity share */
  sharing
  /** @type {TenutoError | null} */
  #error = null
  /** @type {Connection[]} */
  #connections = []
  #transport = WEBSOCKET
  /** @type {Set<import("./client/connection.js").Transport>} transports that have worked */
  #worked = new Set()
  /** @type {Status | undefined} */
  #shown
  #isSuspended = false
  #isProbing = false
  #warned = new Set()
  #closed = new AbortController()
  /** @internal Aborts when the client is closed. */
  closing = this.#closed.signal
  /** @type {Promise<unknown> | undefined} the import that sets `sharing`; undefined on a page without an identity or a token */
  #starts
  /** @type {ReturnType<typeof setTimeout> | undefined} timer of the climb, or of the probe */
  #later
  /** @internal @type {string | undefined} the client id that the server has confirmed */
  confirmedId

  /** @internal @param {Options} options */
  constructor(options) {
    super()
    /** @internal */ this.options = options
    /** @internal */ this.base = baseOf(options)
    /** @internal */ this.token = new Token(options.token)
    /** @internal */ this.outbox = new Outbox(this, options.identity)
    /** @internal */ this.now = options.now ?? (() => performance.now())
    const signal = this.closing
    for (const type of WAKING) globalThis.addEventListener?.(type, (event) => this.#wake(event), { signal })
    /** @type {any} the types of TypeScript lack `connection` */
    const navigator = globalThis.navigator
    navigator?.connection?.addEventListener?.("change", () => this.#networkChanged(), { signal })
    options.signal?.addEventListener("abort", () => this.close(), { signal })
    if (options.signal?.aborted) this.close()
    else if (!globalThis.document || (options.identity ?? options.token) === undefined) this.use()
    else this.#starts = import("./client/sharing.js").then(({ share }) => share(this, WEBSOCKET)).catch(() => this.use())
  }

  /** @returns {State} the state of the connection; a channel has its own */
  get state() {
    if (this.closing.aborted) return "closed"
    if (this.#isSuspended) return "suspended"
    if (this.#connections.length && this.#connections.every(({ isOpen }) => isOpen)) return "live"
    return this.#worked.size ? "reconnecting" : "connecting"
  }

  /** The state, and why it is not live: the same object while no field has changed. @returns {Status} */
  get status() {
    const retries = this.#connections.flatMap(({ retryAt }) => retryAt ?? [])
    const retryAt = retries.length ? Math.min(...retries) : null
    /** @type {Status} */
    const now = { state: this.state, error: this.#error, transport: this.#transport.name, retryAt }
    for (const name of /** @type {(keyof Status)[]} */ (Object.keys(now))) if (now[name] !== this.#shown?.[name]) this.#shown = now
    return /** @type {Status} */ (this.#shown)
  }

  /**
   * Watch a channel; each call returns the same object until it is closed.
   * @template {object} [Meta=Record<string, unknown>] of messages
   * @template [Data=unknown] of data parts, commands and signals
   * @param {string} name @param {{ history?: number }} [options] the number of messages of a new start
   * @returns {import("./client/channel.js").Channel<Meta, Data>}
   */
  channel(name, options) {
    const channel = this.follow(name, options)
    channel.isOwn = true
    return channel
  }

  /** @internal Watch a channel, perhaps for another tab. @param {string} name @param {{ history?: number }} [options] */
  follow(name, { history } = {}) {
    this.#checkOpen()
    let channel = this.channels.get(name)
    if (!channel) {
      channel = /** @type {Channel<any, any>} */ (new Channel(this, name, history))
      this.channels.set(name, channel)
      this.sharing?.opened(channel)
      if (!this.isHttp) this.#connections[0]?.attach?.(channel)
      else if (!this.#isSuspended) this.#connect(channel).start()
    }
    return channel
  }

  /** Return a new id for a message that is not stored yet. */
  newId() {
    return [Date.now(), this.requests.nextRef(), this.random()].map((part) => part.toString(36).slice(-12)).join("-")
  }

  /** Disconnect until `resume`. Views and pending requests stay. */
  suspend() {
    if (this.state === "closed") return
    this.#isSuspended = true
    this.#stopAll()
    this.notify()
  }

  /** Connect again after `suspend`. */
  resume() {
    if (!this.#isSuspended) return
    this.#isSuspended = false
    this.use(this.#transport)
    this.notify()
  }

  /** Close all connections; pending requests fail. @param {TenutoError | null} [error] the reason */
  close(error = null) {
    if (this.state === "closed") return
    this.#closed.abort()
    this.#error = error
    if (error) this.warn(error)
    for (const channel of this.channels.values()) channel.end(error)
    this.#stopAll()
    for (const ref of this.requests.pending.keys()) this.requests.settle(ref, error ?? this.#isOver())
    this.channels.clear()
    this.notify()
  }

  /** End the session of this person: close the client, and remove the data of this person from the browser. */
  async signOut() {
    this.close()
    this.outbox.forget()
    await this.#starts
    await this.sharing?.signOut()
  }

  /** @internal True: each channel has its own connection, and requests go over HTTP. */
  get isHttp() {
    return this.#transport.isHttp
  }

  /** The client id: that of the server, or the app's option. */
  get id() {
    return this.confirmedId ?? this.options.client
  }

  /** @internal Throw if the client accepts no request now. */
  check() {
    this.#checkOpen()
    this.requests.check()
  }

  /** @internal @type {typeof globalThis.fetch} */
  fetch(...request) {
    return (this.options.fetch ?? fetch)(...request)
  }

  /** @internal Return a number from 0 up to 1. */
  random() {
    return (this.options.random ?? Math.random)()
  }

  /** @internal Send a frame over the socket if it is open. @param {string} text */
  send(text) {
    this.#connections[0]?.send?.(text)
  }

  /** @internal @param {any} [Socket] used instead of a WebSocket @returns {WebSocket} */
  openSocket(Socket = this.options.WebSocket ?? WebSocket) {
    const { client } = this.options
    const query = client == null ? "" : `&client=${encodeURIComponent(client)}`
    return new Socket(`${this.base}/v1/ws?sdk=js${query}`.replace(/^http/, "ws"), "tenuto.v1")
  }

  /** @internal Add a request of a channel. @param {string} type @param {string} channel @param {Fields} fields @returns {Promise<any>} */
  async request(type, channel, fields) {
    this.check()
    return this.requests.add({ ...fields, type, ref: this.requests.nextRef(), channel })
  }

  /** @internal Send a request once; without a connection it is lost. @param {string} type @param {string} channel @param {Fields} [fields] */
  sendOnce(type, channel, fields) {
    const frame = { ...fields, type, ref: this.requests.nextRef(), channel }
    if (this.isHttp) withFallback((fallback) => fallback.sendOne(this, frame))
    else this.send(JSON.stringify(frame))
  }

  /** @internal A connection has opened. @param {Connection} connection */
  opened(connection) {
    this.#worked.add(connection.transport)
    this.#error = null
    for (const channel of connection.channels) channel.presence.renew()
    this.requests.sendAll()
    this.notify()
    // Load it now, while the server can be reached: another network may block WebSockets, and a later release may not
    // have this file.
    withFallback(() => {})
  }

  /** @internal The server has confirmed the id of this client. @param {string | undefined} id */
  identified(id) {
    this.confirmedId = id
    this.sharing?.identified(id)
    this.outbox.claim()
  }

  /** @internal The server does not accept `token`. Return whether this closed the client. @param {string | undefined} token @param {boolean} isExpired */
  tokenRefused(token, isExpired) {
    if (this.token.refused(token, isExpired)) return false
    const known = this.confirmedId === undefined ? "sign in, or pass `token` to connect()" : "sign in again"
    const remedy = this.token.source === undefined ? known : "check the `token` of connect()"
    this.close(refusal("unauthenticated", `${this.base} does not accept this client: ${remedy}`))
    return true
  }

  /**
   * Return the call at the end of the back-off; undefined if another transport took over.
   * @param {Connection} connection @param {unknown} error
   * @internal
   */
  retryOf(connection, error) {
    const isExplained = error instanceof TenutoError && !isTemporary(error)
    if (isExplained) this.explain(error)
    else if (!connection.isReached) void this.#probe()
    const { transport } = connection
    const retry = () => connection.start()
    if (!this.#isFree || !this.channels.size || transport.Socket) return retry
    if (transport === WEBSOCKET) {
      const isBlocked = !isExplained && !connection.isReached && (!this.#worked.has(WEBSOCKET) || connection.attempt >= SOCKET_TRIES)
      return isBlocked ? void this.use(STREAM, connection.attempt) : retry
    }
    if (connection.isBuffered && transport === STREAM) return void this.use(POLL)
    // A transport that worked is tried again, unless a better one worked before; else all are tried in turn.
    const isBest = this.#worked.has(transport) && !this.#worked.has(WEBSOCKET)
    return isBest ? retry : () => this.use(WEBSOCKET, connection.attempt)
  }

  /** @internal @param {Channel<any, any>} channel */
  leave(channel) {
    this.channels.delete(channel.name)
    if (!this.isHttp) this.sendOnce("detach", channel.name)
    this.#connections = this.#connections.filter((connection) => connection.channel !== channel || void connection.stop())
  }

  /** @internal Connect. @param {import("./client/connection.js").Transport} [transport] @param {number} [attempt] the number of failed attempts */
  use(transport = CHOSEN[/** @type {string} */ (this.options.transport)] ?? WEBSOCKET, attempt = 0) {
    if (this.#isSuspended || this.state === "closed") return
    this.#stopAll()
    this.#transport = transport
    if (this.isHttp) for (const channel of this.channels.values()) this.#connect(channel)
    else this.#connect(null)
    for (const connection of this.#connections) {
      connection.attempt = attempt
      connection.start()
    }
    this.#later = this.isHttp && this.#isFree ? setInterval(() => this.#climb(), UPGRADE_MS) : setTimeout(() => this.#probe(), SLOW_MS)
  }

  #stopAll() {
    clearTimeout(this.#later)
    for (const connection of this.#connections) connection.stop()
    this.#connections = []
  }

  /** Use a better transport if it works now. The present one stays in use until a WebSocket has opened, or until it has loaded what it loads. */
  #climb() {
    if (this.#connections.some(({ isOpen, isLoading }) => isOpen && isLoading)) return
    const before = this.#transport
    const next = (/** @type {boolean} */ isOpen) => this.#transport === before && (isOpen || before === POLL) && this.use(isOpen ? WEBSOCKET : STREAM)
    withFallback((fallback) => fallback.tryWebSocket(this, next))
  }

  /** True: the client may choose the transport. */
  get #isFree() {
    return (this.options.transport ?? "auto") === "auto"
  }

  /** Try the best transport again, because another network may allow it. */
  #networkChanged() {
    if (this.isHttp && this.#isFree) this.use(WEBSOCKET)
    else for (const connection of this.#connections) connection.wake()
  }

  /** Add a connection. @param {Channel<any, any> | null} channel null: all channels */
  #connect(channel) {
    const connection = new Connection(this, channel, this.#transport)
    this.#connections.push(connection)
    return connection
  }

  /** @param {Event} event */
  #wake({ type }) {
    const isHidden = globalThis.document?.hidden
    if (type === "visibilitychange") for (const channel of this.channels.values()) channel.turned(isHidden)
    if (isHidden && type !== "offline") return
    if (type === "online" && this.#worked.size) this.#networkChanged()
    else for (const connection of this.#connections) connection.wake(type === "offline")
  }

  /** Find out once why no connection has opened yet. Later ask only for a WebSocket without another transport, whose refusal no page sees. */
  async #probe() {
    if (this.#isProbing || this.state === "live" || (this.#worked.size && this.options.transport !== "websocket")) return
    this.#isProbing = true
    // Loaded on demand, because few pages ever need it. If loading fails, the next failure tries again.
    await import("./client/probe.js").then(({ probe }) => probe(this)).catch(() => {})
    this.#isProbing = false
  }

  /** @internal Say why the client is not live. @param {TenutoError} error */
  explain(error) {
    if (this.state === "closed") return
    this.#error = error
    this.warn(error)
    for (const channel of this.channels.values()) channel.notify() // their snapshots have the status, too
    this.notify()
  }

  /** @internal Write an error to the console, once for each code, or for another key. @param {TenutoError} error @param {string} [key] */
  warn({ code, message }, key = code) {
    if (!this.#warned.has(key)) console.warn(`tenuto: ${code}: ${message}`)
    this.#warned.add(key).add(message)
  }

  #checkOpen() {
    if (this.state === "closed") throw this.#isOver()
  }

  #isOver() {
    return refusal("closed", `the client of ${this.base} is closed: call connect() again`)
  }
}

/** Return the address of the hub. @param {any} options of a program that no compiler may have checked */
function baseOf(options) {
  const url = options?.url
  try {
    if (typeof (url.href ?? url) === "string") return new URL(url, globalThis.location?.href).href.replace(/\/+$/, "")
  } catch {} // no url, or an invalid one
  throw refusal("invalid_request", `connect({ url }) needs a url, absolute outside of a page: ${typeof options === "object" ? url : options}`)
}
