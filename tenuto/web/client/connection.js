/**
 * A connection that is opened again after each failure, until it is stopped: the back-off, the watchdog, and waking.
 *
 * `websocket`, `stream` and `poll` open it; the client decides about transports. The last two are in a separate module,
 * which is loaded when it is needed.
 * @module
 */

import { isTemporary, refusal } from "./errors.js"

/** @typedef {import("../client.js").Client} Client */
/** @typedef {import("./errors.js").TenutoError} TenutoError */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/**
 * @typedef {object} Transport
 * @property {import("../client.js").TransportName | "tab"} name
 * @property {any} [Socket] used instead of a WebSocket; it needs no token
 * @property {boolean} [isHttp]
 * @property {(connection: Connection, token: string | undefined) => () => void} dial starts to open a connection, and
 *   returns a function that releases it
 * @property {number} silence_ms the longest silence of a live connection
 */

// Full jitter: each delay is random between 0 and a ceiling that doubles, so that a thousand viewers of a restarted
// server spread out. The base keeps them all within its 5 s budget; the cap is the longest acceptable wait on a page.
const BACKOFF_BASE_MS = 500
const BACKOFF_CAP_MS = 15_000
const STABLE_MS = 5_000 // a connection that breaks sooner than this counts as one more failure, unless its identity has expired
export const OPEN_MS = 10_000 // time limit for opening a connection or for an HTTP response: some proxies never respond

/** @type {typeof import("./fallback.js") | undefined} */
let fallback

/** Load the module that the transports over HTTP need. */
export const loadFallback = async () => (fallback ??= await import("./fallback.js"))

/** Call `action` with the loaded module. If it cannot be loaded now, the connections try again. @param {(module: typeof import("./fallback.js")) => unknown} action */
export const withFallback = (action) => void loadFallback().then(action).catch(() => {})

/** @param {"sse" | "poll"} name @param {number} silence_ms @returns {Transport} */
const overHttp = (name, silence_ms) => ({
  name,
  silence_ms,
  isHttp: true,
  dial(connection, token) {
    const stop = new AbortController()
    const { signal } = stop
    const begin = () => signal.aborted || fallback?.[name](connection, token, stop)
    /** @param {Error} error */
    const fail = ({ message }) => signal.aborted || connection.fail(0, refusal("unreachable", `transport ${name} was not loaded: ${message}: reload the page`))
    if (fallback) begin()
    else loadFallback().then(begin, fail)
    return () => stop.abort()
  },
})
export const STREAM = overHttp("sse", 10_000)
export const POLL = overHttp("poll", 25_000 + OPEN_MS) // a poll is silent for 25 s

/** @internal */
export class Connection {
  isOpen = false
  isBuffered = false // True: a proxy holds the stream back
  isReached = false // True: the server has responded, perhaps with a refusal
  attempt = 0
  /** @type {number | null} time of the next attempt, in milliseconds since 1970 */
  retryAt = null
  /** @type {((text: string) => void) | undefined} */
  send
  /** @type {((channel: Channel) => void) | undefined} */
  attach
  #dials = 0
  #openedAt = 0
  #isSlow = false // True: a connection was silent while it loaded
  #receivedAt = 0
  #receivedDate = 0
  #release = () => {}
  /** @type {(() => void) | undefined} the call at the end of the back-off */
  #retry
  /** @type {ReturnType<typeof setTimeout> | undefined} timer of the back-off or of the watchdog */
  #timer

  /**
   * @param {Client} client @param {Channel | null} channel null: all channels
   * @param {Transport} transport
   */
  constructor(client, channel, transport) {
    this.client = client
    this.channel = channel
    this.transport = transport
  }

  get channels() {
    return this.channel ? [this.channel] : this.client.channels.values()
  }

  start() {
    this.#retry = undefined
    this.retryAt = null
    this.isReached = false
    const token = this.transport.Socket ? undefined : this.client.token.get()
    if (!(token instanceof Promise)) return this.#dial(token)
    const dial = this.#dials
    token.then(
      (value) => dial === this.#dials && this.#dial(value),
      (error) => dial === this.#dials && this.fail(0, error),
    )
  }

  opened() {
    this.isOpen = this.isReached = true
    this.#openedAt = this.client.now()
    this.received()
    this.client.token.accepted()
    this.client.opened(this)
  }

  received() {
    this.#receivedAt = this.client.now()
    this.#receivedDate = Date.now()
  }

  /** @param {string} data @param {(frame: any, text: string) => void} receive */
  receive(data, receive) {
    this.received()
    try {
      receive(JSON.parse(data), data)
    } catch (error) {
      this.fail() // the frame is unreadable, so reconnect and let the server send it again
      throw error
    }
  }

  /** @param {number} [least_ms] the shortest delay before the reconnect @param {unknown} [error] the reason, if it is known */
  fail(least_ms = 0, error) {
    const { client, isOpen } = this
    if (isOpen && (client.token.isExpired || client.now() - this.#openedAt > STABLE_MS)) this.attempt = 0
    this.stop()
    this.#retry = client.retryOf(this, error)
    if (this.#retry) {
      const delay_ms = least_ms + client.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.attempt++)
      this.retryAt = Date.now() + delay_ms
      this.#timer = setTimeout(this.#retry, delay_ms)
    }
    client.notify()
  }

  /** The server refuses a channel: attach again later, or close the channel. @param {TenutoError} error @param {Channel | null} [channel] */
  refused(error, channel) {
    if (isTemporary(error)) this.fail(0, error)
    else channel?.close(error)
  }

  /** Reconnect now, because the page or the network is back, and replace a connection that was silent meanwhile. @param {boolean} [isOffline] replace it anyway: the network is away, so the connection is dead unless the server is on this machine */
  wake(isOffline) {
    // The monotonic clock of some systems stops while they sleep. The date does not; a wrong one costs one reconnect.
    const silent_ms = Math.max(this.client.now() - this.#receivedAt, Date.now() - this.#receivedDate)
    if (this.isOpen && (isOffline || silent_ms > this.#silence_ms / 2)) this.fail()
    if (this.#retry) clearTimeout(this.#timer)
    this.#retry?.()
  }

  stop() {
    this.#dials++
    this.isOpen = false
    this.retryAt = null
    this.#retry = this.send = this.attach = undefined
    clearTimeout(this.#timer)
    this.#release()
    this.#release = () => {}
    for (const channel of this.channels) channel.disconnected()
  }

  /** @param {string | undefined} token */
  #dial(token) {
    this.received()
    this.#watch()
    try {
      this.#release = this.transport.dial(this, token)
    } catch (error) {
      this.fail(0, error) // the page may not open a connection, or the browser lacks this transport
    }
  }

  #watch() {
    // A frame is seen when it is complete, and a slow network takes a minute for that of a photo: so after a silence the
    // next connection has eight times as long for its first batch, or for a page of older messages.
    this.#isSlow &&= this.isLoading
    const left_ms = this.#receivedAt + (this.isOpen ? this.#silence_ms : OPEN_MS) - this.client.now()
    if (left_ms > 0) this.#timer = setTimeout(() => this.#watch(), Math.min(left_ms, OPEN_MS))
    else {
      this.#isSlow = this.isOpen && this.isLoading
      this.isBuffered = true // True: some proxies hold back even the headers
      this.fail()
    }
  }

  get #silence_ms() {
    return this.transport.silence_ms * (this.#isSlow ? 8 : 1)
  }

  get isLoading() {
    return [...this.channels].some((channel) => channel.isLoading)
  }
}
