/**
 * The messages that a person has sent and the server has not stored yet.
 *
 * Each is in the browser's storage before `send` returns, so that a reload sends it again, under the same id. A refused
 * message stays, with its error, until the app retries or discards it. With an `identity` the storage is shared by all
 * tabs (`localStorage`), else it is the tab's own (`sessionStorage`). An entry belongs to the client id that the server
 * confirms to its page: the messages of another person are neither shown nor sent. If that page ended before, a person
 * decides. A message that one tab discards is removed from all tabs.
 * @module
 */

import { isTemporary, refusal } from "./errors.js"
import { shownMessage } from "./snapshot.js"

/** @typedef {import("../view.js").Message} Message */
/** @typedef {import("./snapshot.js").Message<any, any>} ShownMessage */
/** @typedef {import("./errors.js").TenutoError} TenutoError */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {{ text?: string, parts?: readonly import("../view.js").Part<Data>[], meta?: Readonly<Partial<Meta>>,
 *   parent?: string | null, reply_to?: string }} Draft
 */
/** @typedef {{ code: string, detail: string }} Refusal */
/**
 * @typedef {object} Entry
 * @property {string} id of the message
 * @property {string} channel
 * @property {string} [by] the client id of its sender; undefined until the server confirms it, empty if the page ended before
 * @property {number} at milliseconds since 1970
 * @property {Draft} draft
 * @property {Refusal | false} [error]
 * @property {number} [retryAt] milliseconds since 1970 before which the server accepts no question of this person
 * @property {Message} [stored] the server's response, until the view has the message too
 */

const MAX_MESSAGES = 200
const MAX_UNITS = 1_000_000 // limit of all unsent messages together, in UTF-16 units
const AGAIN_MS = 5_000 // longest wait before the next attempt after a temporary refusal without a time
const MAX_WAIT_MS = 60_000 // limit of a wait that the server names: after a longer one, the person decides
/** @type {Refusal} */
const UNKNOWN = { code: "author_mismatch", detail: "its sender is not known: call retry() or discard()" }

/** @internal */
export class Outbox {
  /** @type {Map<string, Entry>} in the order of sending */
  entries = new Map()
  /** @type {Set<{ channel: Channel, id: string, result: Promise<ShownMessage> }>} the messages that are being sent, in order */
  #deliveries = new Set()
  /** @type {Storage | undefined} */
  #storage

  /** @param {import("../client.js").Client} client @param {string} [identity] */
  constructor(client, identity) {
    this.client = client
    this.prefix = `tenuto:${client.base}:${identity ?? ""}:`
    try {
      this.#storage = identity === undefined ? globalThis.sessionStorage : globalThis.localStorage
      this.#load()
    } catch (error) {
      this.#storage = failed(error) // storage is denied, so the outbox works from memory
    }
  }

  /** Return the entries of a channel that this client may show and send. @param {string} channel @returns {Entry[]} */
  of(channel) {
    const { id = this.client.options.identity } = this.client // until it is confirmed, as for the cached view
    return [...this.entries.values()].filter((entry) => entry.channel === channel && (entry.by || id) === id)
  }

  /** Add a message before it is sent. Throws `too_many`, or `too_large` if none waits. @param {string} channel @param {string} id @param {Draft} draft @param {Refusal} [error] the reason, if it must not be sent yet */
  add(channel, id, draft, error) {
    const entries = [...this.entries.values()]
    // keeps the order after a reload, even if the clock was set back
    const at = Math.max(Date.now(), 1 + (entries.at(-1)?.at ?? 0))
    const entry = { id, channel, by: this.client.id, at, draft, error }
    if (entries.length >= MAX_MESSAGES || JSON.stringify([...entries, entry]).length > MAX_UNITS) {
      throw refusal(entries.length ? "too_many" : "too_large", "too many messages or characters wait: send less")
    }
    this.#put(entry)
  }

  /** Send a message after the earlier ones of its channel, so that they keep their order. @param {Channel} channel @param {string} id @returns {Promise<ShownMessage>} */
  deliver(channel, id) {
    const others = [...this.#deliveries].filter((one) => one.channel === channel)
    const running = others.find((one) => one.id === id)
    if (running) return running.result // an earlier call is already sending this message
    const result = Promise.resolve(others.at(-1)?.result.catch(() => {}))
      .then(() => this.#send(channel, id))
      .then(shownMessage)
      .finally(() => {
        this.#deliveries.delete(delivery)
        channel.notify()
      })
    const delivery = { id, channel, result }
    this.#deliveries.add(delivery)
    return result
  }

  /** Send a message until the server stores or refuses it. @param {Channel} channel @param {string} id @returns {Promise<Message>} */
  async #send(channel, id) {
    for (;;) {
      const entry = this.entries.get(id)
      if (!entry) throw discarded(id)
      try {
        const { message } = await channel.create({ ...entry.draft, id, role: "user", if_author: this.client.confirmedId && entry.by })
        this.#storage?.removeItem(this.prefix + id)
        this.entries.set(id, { ...entry, stored: message })
        return message
      } catch (error) {
        const { code, message, problem } = /** @type {TenutoError} */ (error)
        const known = this.entries.get(id) // its sender may be known since
        // closed, or another tab has removed the entry from the storage, or it waits until its sender signs in
        if (!known || code === "closed" || code === "discarded" || (code === "author_mismatch" && known.by !== this.client.id)) throw error
        const wait_ms = problem.retry_after_s * 1_000 // NaN without a time
        const isOver = !isTemporary(/** @type {TenutoError} */ (error)) || wait_ms > MAX_WAIT_MS
        this.#put({ ...known, retryAt: Date.now() + wait_ms, error: isOver && { code, detail: message } })
        if (isOver) throw error
        channel.notify()
        await new Promise((resolve) => setTimeout(resolve, wait_ms || this.client.random() * AGAIN_MS))
      }
    }
  }

  /** Forget the error of a refused message, which is from now on a message of this page. @param {string} id */
  clear(id) {
    const entry = this.entries.get(id)
    if (entry) this.#put({ ...entry, by: entry.by || this.client.id, error: undefined })
  }

  /** Remove a message that is not stored yet, from all tabs. @param {string} id */
  remove(id) {
    this.drop(id)
    this.client.sharing?.discarded(id)
  }

  /** Remove the messages of this person, and the items of the chat element in this tab, because the person signs out. */
  forget() {
    const { id, options } = this.client
    this.#load() // load the messages that closed tabs have left in the storage
    for (const entry of this.entries.values()) if (options.identity !== undefined || (entry.by || id) === id) this.remove(entry.id)
    try {
      for (const key of Object.keys(sessionStorage)) if (key.startsWith("chat-" + this.prefix)) sessionStorage.removeItem(key)
    } catch {} // the browser has no such storage, or denies it
  }

  /**
   * Make this client the owner of the entries without one, because the server has confirmed its id. What an earlier page
   * has left without an owner may be another person's, unless the storage is that of this identity: a person decides.
   */
  claim() {
    const { id, options } = this.client
    for (const entry of this.entries.values()) {
      for (const { frame } of this.#creates(entry.id)) frame.if_author = entry.by || id
      if (entry.by || entry.stored) continue
      if (entry.by === undefined || options.identity === id) this.#put({ ...entry, by: id, error: entry.error !== UNKNOWN && entry.error })
      else this.entries.set(entry.id, { ...entry, error: entry.error || UNKNOWN }) // not stored: the next page may know its sender
    }
  }

  /** Remove a message from this tab, and do not send a request that waits. @param {string} id */
  drop(id) {
    this.entries.delete(id)
    this.#storage?.removeItem(this.prefix + id)
    for (const { frame } of this.#creates(id)) this.client.requests.settle(frame.ref, discarded(id))
  }

  /** Return the waiting requests that create a message. @param {string} id */
  #creates(id) {
    return [...this.client.requests.pending.values()].filter(({ frame }) => frame.id === id && frame.type === "create")
  }

  /** @param {Entry} entry */
  #put(entry) {
    this.entries.set(entry.id, entry)
    try {
      this.#storage?.setItem(this.prefix + entry.id, JSON.stringify(entry))
    } catch (error) {
      this.#storage = failed(error) // storage is full, so the outbox works from memory
    }
  }

  #load() {
    const found = []
    for (const key of Object.keys(this.#storage ?? {})) {
      const text = key.startsWith(this.prefix) && this.#storage?.getItem(key)
      if (!text) continue // empty: another tab removes it now
      try {
        const entry = JSON.parse(text)
        if (this.prefix + entry.id !== key || !(entry.at > 0 && Object.keys(entry.draft)[0])) throw key
        entry.by ??= ""
        found.push(entry)
      } catch (error) {
        this.#storage?.removeItem(key)
        failed(error)
      }
    }
    for (const entry of found.sort((a, b) => a.at - b.at)) this.entries.set(entry.id, entry)
  }
}

/** @param {string} id */
const discarded = (id) => refusal("discarded", `message ${id} was discarded: send another`)

/** @param {unknown} why */
const failed = (why) => void console.warn("tenuto: unsent messages are not kept:", why)
