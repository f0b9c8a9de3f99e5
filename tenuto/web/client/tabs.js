/**
 * One connection for all tabs of an identity: Web Locks choose the leader, BroadcastChannel carries the frames.
 *
 * The leader is an ordinary client that also serves the other tabs. Each follower uses `TabSocket` in place of a
 * WebSocket, and the frames are those of the WebSocket, so a follower folds its own view. It begins with a dump of the
 * leader's view, unless its cursor is the same. Where a browser refuses locks or channels, each tab connects alone.
 * @module
 */

import { dump } from "./dump.js"

/** @typedef {import("../client.js").Client} Client */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/** @typedef {{ stop(): void, heartbeat?(isUp?: boolean): void, accept?(message: any): void }} Role */
/**
 * @typedef {object} FollowerState the leader's data about a follower
 * @property {BroadcastChannel} port
 * @property {number | null} n number of its socket; null: closed
 * @property {Set<string>} attached channels whose frames it gets
 * @property {Map<string, { ref: unknown, since: string | undefined }>} waiting channels that are not live yet
 * @property {Set<string>} present channels in which it is present
 * @property {number} sent characters of frames, without dumps
 * @property {number} received characters of frames that the follower has confirmed
 */

const HEARTBEAT_MS = 500
const TICK_MS = 100
const SILENT_MS = 1_500 // silence of the leader after which a follower takes the lead
const LATE_MS = 1_000 // a timer that fires this late means that this page itself was stopped
const ELECTION_MS = 1_000 // time in which the other followers receive the first message of a new leader
// time without a watcher after which the leader closes a channel that only other tabs have opened
const IDLE_MS = 10_000
// limit of characters sent to a follower that it has not confirmed; beyond it the follower connects anew, with a dump
const MAX_LAG = 1_048_576

export class Tabs {
  sockets = 0
  /** The highest term of a leader that this tab knows. An earlier leader may wake up and not know yet that it was replaced. */
  term = 0
  /** @type {BroadcastChannel | undefined} undefined: this tab connects alone */
  main
  /** @type {Role | undefined} */
  role
  #ended = new AbortController()
  #isAlone = false

  /** @param {Client} client @param {string} identity @param {import("./connection.js").Transport} socket the WebSocket transport */
  constructor(client, identity, socket) {
    this.client = client
    this.id = client.newId()
    this.name = `tenuto:${JSON.stringify([1, client.base, identity])}`
    /** @type {import("./connection.js").Transport} */
    this.transport = { ...socket, name: "tab", Socket: TabSocket.bind(null, this) }
  }

  /** Begin, and follow the state of the client. */
  start() {
    const { client } = this
    const { closing: signal } = client
    const follow = () => void (["suspended", "closed"].includes(client.state) ? this.leave() : this.join())
    client.subscribe(follow)
    follow()
    // A page that holds a lock or a connection may not enter the back/forward cache.
    addEventListener("pagehide", () => {
      if (client.state === "suspended") return
      client.suspend()
      addEventListener("pageshow", () => client.resume(), { signal, once: true })
    }, { signal })
  }

  /** Lead or follow, and connect. */
  async join() {
    if (this.main || this.#isAlone) return
    const { signal } = (this.#ended = new AbortController())
    try {
      this.main = new BroadcastChannel(this.name)
      this.main.onmessage = ({ data }) => this.#receive(data)
      // The leader waits for this lock, which it gets when this tab has closed.
      await new Promise((resolve, reject) => {
        const hold = () => new Promise((release) => {
          signal.addEventListener("abort", release)
          resolve(0)
        })
        navigator.locks.request(this.name + this.id, { signal }, hold).catch(reject)
      })
      this.campaign({ ifAvailable: true })
    } catch {
      if (!signal.aborted) this.alone()
    }
  }

  get leader() {
    return this.role instanceof Leader ? this.role : undefined
  }

  leave() {
    this.#ended.abort()
    this.role?.stop()
    this.role = undefined
    this.main?.close()
    this.main = undefined
  }

  /** Connect without the other tabs. */
  alone() {
    this.#isAlone = true
    this.leave()
    this.client.use()
  }

  /** Lead when the lock is granted. @param {LockOptions} options */
  campaign(options) {
    const { signal } = this.#ended
    /** @type {Leader | undefined} */
    let leader
    navigator.locks
      .request(this.name, options, (lock) => {
        if (signal.aborted) return
        if (!lock) return void this.#become(new Follower(this))
        leader = new Leader(this)
        this.#become(leader)
        return leader.ended
      })
      .catch(() => {
        // The lock was stolen, or the browser refuses locks.
        if (leader && leader === this.role) this.#become(new Follower(this))
        else if (options.ifAvailable && !signal.aborted) this.alone()
      })
  }

  /** @param {Role} role */
  #become(role) {
    this.role?.stop()
    this.role = role
    this.client.use(role instanceof Follower ? this.transport : undefined)
  }

  /** @param {any} message of another tab to all */
  #receive(message) {
    if (message.tab) this.role?.accept?.(message)
    else if (message.term > this.term) {
      this.term = message.term
      this.#become(new Follower(this)) // another tab is the leader now
    } else if (message.term === this.term) this.role?.heartbeat?.(message.isUp)
  }
}

class Follower {
  #waiting = new AbortController()
  #now
  #received_ms
  #ticked_ms
  #ticks

  /** @param {Tabs} tabs */
  constructor(tabs) {
    this.tabs = tabs
    this.#now = tabs.client.now
    this.#received_ms = this.#ticked_ms = this.#now()
    this.#ticks = setInterval(() => this.#tick(), TICK_MS)
    tabs.campaign({ signal: this.#waiting.signal })
  }

  stop() {
    clearInterval(this.#ticks)
    this.#waiting.abort()
  }

  /** Note that the leader is alive. @param {boolean} [isUp] it is connected, so this tab does not wait for the end of its back-off */
  heartbeat(isUp) {
    const { client, transport } = this.tabs
    this.#received_ms = this.#now()
    if (isUp && client.status.retryAt) client.use(transport)
  }

  #tick() {
    const now_ms = this.#now()
    if (now_ms - this.#ticked_ms > LATE_MS) this.heartbeat()
    this.#ticked_ms = now_ms
    if (now_ms - this.#received_ms < SILENT_MS) return
    this.heartbeat()
    const { tabs } = this
    // If two followers notice the silence at the same time, one would steal the lock from the other.
    void navigator.locks.request(`${tabs.name}:election`, { ifAvailable: true }, (lock) => {
      if (!lock || tabs.role !== this) return
      this.stop()
      tabs.campaign({ steal: true })
      return new Promise((resolve) => setTimeout(resolve, ELECTION_MS))
    })
  }
}

/** A follower's connection, with the members of a WebSocket that `websocket.js` uses. */
class TabSocket {
  /** @type {(() => void) | null} */
  onopen = null
  /** @type {((event: { data: string }) => void) | null} */
  onmessage = null
  /** @type {((event: { code: number }) => void) | null} */
  onclose = null
  #n
  #term = 0

  /** @param {Tabs} tabs */
  constructor(tabs) {
    this.tabs = tabs
    this.#n = ++tabs.sockets
    this.port = new BroadcastChannel(tabs.name + tabs.id)
    this.port.onmessage = ({ data }) => this.#receive(data)
    tabs.main?.postMessage({ tab: tabs.id, n: this.#n })
  }

  /** @param {string} text */
  send(text) {
    this.port.postMessage({ term: this.#term, n: this.#n, text })
  }

  close() {
    this.port.close()
  }

  /** @param {{ term: number, n: number, text?: string, isForbidden?: boolean, isExpired: boolean }} message */
  #receive({ term, n, text, isForbidden, isExpired }) {
    const { tabs } = this
    if (n !== this.#n || term < tabs.term) return
    tabs.term = term
    tabs.role?.heartbeat?.()
    if (isForbidden) tabs.alone() // the leader's token may have fewer rights than this tab's
    else if (text) this.onmessage?.({ data: text })
    else if (text === "") {
      tabs.client.token.isExpired = isExpired
      this.onclose?.({ code: 1006 })
    }
    else {
      this.#term = term
      this.onopen?.()
    }
  }
}

class Leader {
  /** @type {Map<string, FollowerState>} by tab */
  #followers = new Map()
  /** @type {Map<Channel, () => void>} */
  #watched = new Map()
  /** @type {Map<Channel, number>} channels without a watcher → since when */
  #idle = new Map()
  #ending = new AbortController()
  #heartbeats

  /** @param {Tabs} tabs */
  constructor(tabs) {
    this.tabs = tabs
    this.client = tabs.client
    this.#heartbeats = setInterval(() => this.#sendHeartbeat(), HEARTBEAT_MS)
    this.term = tabs.term = Math.max(tabs.term + 1, Date.now())
    this.#sendHeartbeat()
    /** Resolves when this tab is no longer the leader. */
    this.ended = new Promise((resolve) => this.#ending.signal.addEventListener("abort", resolve))
  }

  stop() {
    clearInterval(this.#heartbeats)
    this.#ending.abort()
    for (const unwatch of this.#watched.values()) unwatch()
    for (const { port } of this.#followers.values()) port.close()
    this.#followers.clear()
    for (const channel of this.client.channels.values()) if (!channel.isOwn) channel.close()
  }

  /** A follower opens a socket. @param {{ tab: string, n: number }} message */
  accept({ tab, n }) {
    const name = this.tabs.name + tab
    const { port, present } = this.#followers.get(tab) ?? { port: new BroadcastChannel(name), present: new Set() }
    /** @type {FollowerState} */
    const follower = { port, present, n, attached: new Set(), waiting: new Map(), sent: 0, received: 0 }
    if (!this.#followers.has(tab)) {
      navigator.locks.request(name, { signal: this.#ending.signal }, () => this.#drop(tab)).catch(() => {})
    }
    this.#followers.set(tab, follower)
    port.onmessage = ({ data }) => this.#receive(tab, follower, data)
    if (this.#isUp) this.#post(follower)
    else this.#close(follower) // a follower cannot be live while its leader is not
  }

  get #isUp() {
    const { state, status, isHttp, channels } = this.client
    // Over HTTP each channel has a connection, and some may be opening; before the first one none may ever open.
    return state === "live" || (isHttp && (!channels.size || (state === "reconnecting" && !status.error)))
  }

  /** Pass on a frame that a channel has applied. @param {Channel} channel @param {import("../view.js").Batch} batch */
  received(channel, batch) {
    let text
    for (const follower of this.#followers.values()) {
      if (!follower.attached.has(channel.name)) continue
      text ??= JSON.stringify({ type: "events", channel: channel.name, ...batch })
      follower.sent += text.length
      if (follower.sent - follower.received > MAX_LAG) this.#close(follower)
      else this.#post(follower, text)
    }
    this.#attachWaiting(channel)
  }

  #sendHeartbeat() {
    const { channels, now } = this.client
    const followers = [...this.#followers.values()]
    this.tabs.main?.postMessage({ term: this.term, isUp: this.#isUp })
    for (const follower of followers) this.#send(follower, { type: "ping", n: follower.sent })
    for (const channel of channels.values()) {
      const { name, isOwn } = channel
      const since_ms = this.#idle.get(channel) ?? now()
      if (isOwn || followers.some(({ attached, waiting }) => attached.has(name) || waiting.has(name))) this.#idle.delete(channel)
      else if (now() - since_ms > IDLE_MS) channel.close()
      else this.#idle.set(channel, since_ms)
    }
  }

  /** @param {string} tab @param {FollowerState} follower @param {{ term: number, n: number, text: string }} message */
  #receive(tab, follower, { term, n, text }) {
    if (term !== this.term || n !== follower.n) return
    const { client } = this
    const { type, ref, channel: name, ...fields } = JSON.parse(text)
    if (type === "pong") follower.received = fields.n
    else if (type === "attach") {
      const channel = client.follow(name, { history: fields.history })
      follower.waiting.set(name, { ref, since: fields.since })
      if (!this.#watched.has(channel)) this.#watched.set(channel, channel.subscribe(() => this.#changed(channel)))
      this.#attachWaiting(channel)
    } else if (type === "detach") {
      follower.attached.delete(name)
      follower.waiting.delete(name)
    }
    else if (type === "signal") client.sendOnce(type, name, fields)
    else {
      const channel = client.channels.get(name)
      const isPresence = type === "presence" && channel
      if (isPresence) follower.present.add(name)
      const done = isPresence ? channel.presence.set(tab, fields.leave ? undefined : fields) : client.request(type, name, fields)
      // otherwise the follower sends the request to the next leader
      const isCurrent = () => n === follower.n && !this.#ending.signal.aborted
      done.then(
        (response) => isCurrent() && this.#send(follower, { ...response, type: "ok", ref }),
        (error) => isCurrent() && this.#refuse(follower, ref, error),
      )
    }
  }

  /** Attach the followers that wait for a channel: with a dump, or without one if their cursor is that of the channel. @param {Channel} channel */
  #attachWaiting(channel) {
    const { name, state, you, view } = channel
    if (state !== "live") return
    for (const follower of this.#followers.values()) {
      const { ref, since } = follower.waiting.get(name) ?? {}
      const batch = ref === undefined ? null : dump(view)
      if (!batch) continue
      if (since === batch.cursor) batch.events = [{ ...batch.events[0], resumed: true }]
      follower.waiting.delete(name)
      follower.attached.add(name)
      this.#send(follower, { type: "ok", ref, you })
      this.#send(follower, { type: "events", channel: name, ...batch })
    }
  }

  /** @param {Channel} channel that is not live any more, perhaps */
  #changed(channel) {
    const { name, state, error } = channel
    if (state === "live") return
    if (state === "closed") this.#watched.delete(channel)
    for (const follower of this.#followers.values()) {
      const waiting = follower.waiting.get(name)
      // end the follower's socket, so that its channels do not look live
      if (follower.attached.has(name)) this.#close(follower)
      else if (waiting && state === "closed") {
        follower.waiting.delete(name)
        if (error) this.#refuse(follower, waiting.ref, error)
        else this.#close(follower)
      }
    }
  }

  /** @param {FollowerState} follower @param {unknown} ref @param {import("./errors.js").TenutoError} error */
  #refuse(follower, ref, { code, message, problem }) {
    const frame = { ...problem, type: "error", ref, code, detail: message }
    this.#post(follower, JSON.stringify(frame), code === "forbidden")
  }

  /** End the socket of a follower; it opens another one. @param {FollowerState} follower */
  #close(follower) {
    this.#post(follower, "")
    follower.n = null
    follower.attached.clear()
    follower.waiting.clear()
  }

  /** Forget a tab that has closed. @param {string} tab */
  #drop(tab) {
    const follower = /** @type {FollowerState} */ (this.#followers.get(tab))
    follower.n = null
    follower.port.close()
    this.#followers.delete(tab)
    for (const name of follower.present) this.client.channels.get(name)?.presence.set(tab).catch(() => {})
  }

  /** @param {FollowerState} follower @param {object} frame */
  #send(follower, frame) {
    this.#post(follower, JSON.stringify(frame))
  }

  /** Post a frame; without a text the socket opens, with an empty one it ends. @param {FollowerState} follower @param {string} [text] @param {boolean} [isForbidden] */
  #post({ port, n }, text, isForbidden) {
    const { isExpired } = this.client.token
    if (n !== null) port.postMessage({ term: this.term, n, text, isForbidden, isExpired })
  }
}
