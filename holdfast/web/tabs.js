/**
 * One connection for all tabs of an identity: Web Locks choose the leader, BroadcastChannel carries the frames.
 *
 * The leader is an ordinary client that also serves the other tabs. Each follower uses `TabSocket` in place of a
 * WebSocket, and the frames are those of the WebSocket, so a follower folds its own view. It begins with a dump of the
 * leader's view, unless its cursor is the same. Where a browser refuses locks or channels, each tab connects alone.
 * @module
 */

import { dump } from "./dump.js"

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/** @typedef {{ stop(): void, hear?(isUp?: boolean): void, welcome?(message: any): void }} Role */
/**
 * @typedef {object} Guest the leader's data about a follower
 * @property {BroadcastChannel} pipe
 * @property {number | null} n number of its socket; null: closed
 * @property {Set<string>} attached channels whose frames it gets
 * @property {Map<string, { ref: unknown, since: string | undefined }>} waiting channels that are not live yet
 * @property {Set<string>} present channels in which it is present
 * @property {number} sent characters of frames, without dumps
 * @property {number} received characters of frames that the follower has confirmed
 */

const BEAT_MS = 500
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
  #isAway = false
  #isOver = false

  /** @param {Client} client @param {string} identity @param {import("./connection.js").Transport} socket the WebSocket transport */
  constructor(client, identity, socket) {
    this.client = client
    this.id = client.newId()
    this.name = `holdfast:${JSON.stringify([1, client.base, identity])}`
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
      this.#isAway = client.state !== "suspended"
      client.suspend()
    }, { signal })
    addEventListener("pageshow", () => this.#isAway && client.resume(), { signal })
  }

  /** Lead or follow, and connect. */
  async join() {
    if (this.main || this.#isAlone) return
    const { signal } = (this.#ended = new AbortController())
    try {
      this.main = new BroadcastChannel(this.name)
      this.main.onmessage = ({ data }) => this.#hear(data)
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
        return leader.reign
      })
      .catch(() => {
        // The lock was stolen, or the browser refuses locks.
        if (leader && leader === this.role) this.#become(new Follower(this))
        else if (options.ifAvailable && !signal.aborted) this.alone()
      })
  }

  /** Sign out the other tabs of the identity too. */
  signOut() {
    if (this.#isOver) return
    const main = new BroadcastChannel(this.name)
    main.postMessage({ isOver: true })
    main.close()
  }

  /** @param {Role} role */
  #become(role) {
    this.role?.stop()
    this.role = role
    this.client.use(role instanceof Follower ? this.transport : undefined)
  }

  /** @param {any} message of another tab to all */
  #hear(message) {
    if (message.isOver) {
      this.#isOver = true
      void this.client.signOut()
    } else if (message.tab) this.role?.welcome?.(message)
    else if (message.term > this.term) {
      this.term = message.term
      this.#become(new Follower(this)) // another tab is the leader now
    } else if (message.term === this.term) this.role?.hear?.(message.isUp)
  }
}

class Follower {
  #waiting = new AbortController()
  #now
  #heard_ms
  #ticked_ms
  #ticks

  /** @param {Tabs} tabs */
  constructor(tabs) {
    this.tabs = tabs
    this.#now = tabs.client.now
    this.#heard_ms = this.#ticked_ms = this.#now()
    this.#ticks = setInterval(() => this.#tick(), TICK_MS)
    tabs.campaign({ signal: this.#waiting.signal })
  }

  stop() {
    clearInterval(this.#ticks)
    this.#waiting.abort()
  }

  /** Note that the leader is alive. @param {boolean} [isUp] it is connected, so this tab does not wait for the end of its back-off */
  hear(isUp) {
    const { client, transport } = this.tabs
    this.#heard_ms = this.#now()
    if (isUp && client.status.retryAt) client.use(transport)
  }

  #tick() {
    const now_ms = this.#now()
    if (now_ms - this.#ticked_ms > LATE_MS) this.hear()
    this.#ticked_ms = now_ms
    if (now_ms - this.#heard_ms < SILENT_MS) return
    this.hear()
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
    this.pipe = new BroadcastChannel(tabs.name + tabs.id)
    this.pipe.onmessage = ({ data }) => this.#receive(data)
    tabs.main?.postMessage({ tab: tabs.id, n: this.#n })
  }

  /** @param {string} text */
  send(text) {
    this.pipe.postMessage({ term: this.#term, n: this.#n, text })
  }

  close() {
    this.pipe.close()
  }

  /** @param {{ term: number, n: number, text?: string, isForbidden?: boolean }} message */
  #receive({ term, n, text, isForbidden }) {
    const { tabs } = this
    if (n !== this.#n || term < tabs.term) return
    tabs.term = term
    tabs.role?.hear?.()
    if (isForbidden) tabs.alone() // the leader's token may have fewer rights than this tab's
    else if (text) this.onmessage?.({ data: text })
    else if (text === "") this.onclose?.({ code: 1006 })
    else {
      this.#term = term
      this.onopen?.()
    }
  }
}

class Leader {
  /** @type {Map<string, Guest>} by tab */
  #guests = new Map()
  /** @type {Map<Channel, () => void>} */
  #watched = new Map()
  /** @type {Map<Channel, number>} channels without a watcher → since when */
  #idle = new Map()
  #ended = new AbortController()
  #beats

  /** @param {Tabs} tabs */
  constructor(tabs) {
    this.tabs = tabs
    this.client = tabs.client
    this.#beats = setInterval(() => this.#beat(), BEAT_MS)
    this.term = tabs.term = Math.max(tabs.term + 1, Date.now())
    this.#beat()
    /** Resolves when this tab is no longer the leader. */
    this.reign = new Promise((resolve) => this.#ended.signal.addEventListener("abort", resolve))
  }

  stop() {
    clearInterval(this.#beats)
    this.#ended.abort()
    for (const unwatch of this.#watched.values()) unwatch()
    for (const { pipe } of this.#guests.values()) pipe.close()
    this.#guests.clear()
    for (const channel of this.client.channels.values()) if (!channel.isOwn) channel.close()
  }

  /** A follower opens a socket. @param {{ tab: string, n: number }} message */
  welcome({ tab, n }) {
    const name = this.tabs.name + tab
    const { pipe, present } = this.#guests.get(tab) ?? { pipe: new BroadcastChannel(name), present: new Set() }
    /** @type {Guest} */
    const guest = { pipe, present, n, attached: new Set(), waiting: new Map(), sent: 0, received: 0 }
    if (!this.#guests.has(tab)) {
      navigator.locks.request(name, { signal: this.#ended.signal }, () => this.#drop(tab)).catch(() => {})
    }
    this.#guests.set(tab, guest)
    pipe.onmessage = ({ data }) => this.#receive(tab, guest, data)
    if (this.#isUp) this.#post(guest)
    else this.#close(guest) // a follower cannot be live while its leader is not
  }

  get #isUp() {
    const { state, status, isHttp, channels } = this.client
    // Over HTTP each channel has a connection, and some may be opening; before the first one none may ever open.
    return state === "live" || (isHttp && (!channels.size || (state === "reconnecting" && !status.error)))
  }

  /** Pass on a frame that a channel has applied. @param {Channel} channel @param {import("./view.js").Batch} batch */
  received(channel, batch) {
    let text
    for (const guest of this.#guests.values()) {
      if (!guest.attached.has(channel.name)) continue
      text ??= JSON.stringify({ type: "events", channel: channel.name, ...batch })
      guest.sent += text.length
      if (guest.sent - guest.received > MAX_LAG) this.#close(guest)
      else this.#post(guest, text)
    }
    this.#attachWaiting(channel)
  }

  #beat() {
    const { channels, now } = this.client
    const guests = [...this.#guests.values()]
    this.tabs.main?.postMessage({ term: this.term, isUp: this.#isUp })
    for (const guest of guests) this.#send(guest, { type: "ping", n: guest.sent })
    for (const channel of channels.values()) {
      const { name, isOwn } = channel
      const since_ms = this.#idle.get(channel) ?? now()
      if (isOwn || guests.some(({ attached, waiting }) => attached.has(name) || waiting.has(name))) this.#idle.delete(channel)
      else if (now() - since_ms > IDLE_MS) channel.close()
      else this.#idle.set(channel, since_ms)
    }
  }

  /** @param {string} tab @param {Guest} guest @param {{ term: number, n: number, text: string }} message */
  #receive(tab, guest, { term, n, text }) {
    if (term !== this.term || n !== guest.n) return
    const { client } = this
    const { type, ref, channel: name, ...fields } = JSON.parse(text)
    if (type === "pong") guest.received = fields.n
    else if (type === "attach") {
      const channel = client.follow(name, { history: fields.history })
      guest.waiting.set(name, { ref, since: fields.since })
      if (!this.#watched.has(channel)) this.#watched.set(channel, channel.subscribe(() => this.#changed(channel)))
      this.#attachWaiting(channel)
    } else if (type === "detach") {
      guest.attached.delete(name)
      guest.waiting.delete(name)
    }
    else if (type === "signal") client.sendOnce(type, name, fields)
    else {
      const channel = client.channels.get(name)
      const isPresence = type === "presence" && channel
      if (isPresence) guest.present.add(name)
      const done = isPresence ? channel.presence.set(tab, fields.leave ? undefined : fields) : client.request(type, name, fields)
      // otherwise the follower sends the request to the next leader
      const isCurrent = () => n === guest.n && !this.#ended.signal.aborted
      done.then(
        (response) => isCurrent() && this.#send(guest, { ...response, type: "ok", ref }),
        (error) => isCurrent() && this.#refuse(guest, ref, error),
      )
    }
  }

  /** Attach the followers that wait for a channel: with a dump, or without one if their cursor is that of the channel. @param {Channel} channel */
  #attachWaiting(channel) {
    const { name, state, you, view } = channel
    if (state !== "live") return
    for (const guest of this.#guests.values()) {
      const { ref, since } = guest.waiting.get(name) ?? {}
      const batch = ref === undefined ? null : dump(view)
      if (!batch) continue
      if (since === batch.cursor) batch.events = [{ ...batch.events[0], resumed: true }]
      guest.waiting.delete(name)
      guest.attached.add(name)
      this.#send(guest, { type: "ok", ref, you })
      this.#send(guest, { type: "events", channel: name, ...batch })
    }
  }

  /** @param {Channel} channel that is not live any more, perhaps */
  #changed(channel) {
    const { name, state, error } = channel
    if (state === "live") return
    if (state === "closed") this.#watched.delete(channel)
    for (const guest of this.#guests.values()) {
      const waiting = guest.waiting.get(name)
      // end the follower's socket, so that its channels do not look live
      if (guest.attached.has(name)) this.#close(guest)
      else if (waiting && state === "closed") {
        guest.waiting.delete(name)
        if (error) this.#refuse(guest, waiting.ref, error)
        else this.#close(guest)
      }
    }
  }

  /** @param {Guest} guest @param {unknown} ref @param {import("./errors.js").HoldfastError} error */
  #refuse(guest, ref, { code, message, problem }) {
    const frame = { ...problem, type: "error", ref, code, detail: message }
    this.#post(guest, JSON.stringify(frame), code === "forbidden")
  }

  /** End the socket of a follower; it opens another one. @param {Guest} guest */
  #close(guest) {
    this.#post(guest, "")
    guest.n = null
    guest.attached.clear()
    guest.waiting.clear()
  }

  /** Forget a tab that has closed. @param {string} tab */
  #drop(tab) {
    const guest = /** @type {Guest} */ (this.#guests.get(tab))
    guest.n = null
    guest.pipe.close()
    this.#guests.delete(tab)
    for (const name of guest.present) this.client.channels.get(name)?.presence.set(tab).catch(() => {})
  }

  /** @param {Guest} guest @param {object} frame */
  #send(guest, frame) {
    this.#post(guest, JSON.stringify(frame))
  }

  /** Post a frame; without a text the socket opens, with an empty one it ends. @param {Guest} guest @param {string} [text] @param {boolean} [isForbidden] */
  #post({ pipe, n }, text, isForbidden) {
    if (n !== null) pipe.postMessage({ term: this.term, n, text, isForbidden })
  }
}
