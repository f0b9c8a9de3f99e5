/**
 * The last views of one identity in IndexedDB, so that a reload begins with them and fetches only the difference.
 *
 * A record is a dump of the view, with its cursor. All records of the identity are read at the start, so that a channel
 * has its view in the same task in which it is opened. Where the browser keeps nothing, the cache works from memory.
 * @module
 */

import { dump } from "./dump.js"
import { View } from "../view.js"

/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/** @typedef {{ identity: string, channel: string, at: number, bytes: number, data: Uint8Array }} Stored */

const VERSION = 1 // version of the IndexedDB database
const MAX_CHANNELS = 50 // limit of channels, over all identities of one hub
const MAX_BYTES = 5 * 1_048_576
const WRITE_MS = 1_000 // delay of a write after the first change
const OPEN_MS = 1_000 // longest time that a page waits for its storage

export class Cache {
  /** @type {Map<string, Uint8Array>} channel → its dump as JSON, the latest one last */
  #views = new Map()
  /** @type {Set<Channel>} */
  #changed = new Set()
  /** @type {IDBDatabase | null} null: the cache works from memory */
  #database = null
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer
  #hasWarned = false

  /** @param {import("../client.js").Client} client @param {string} identity */
  constructor(client, identity) {
    this.client = client
    this.identity = identity
    const write = (/** @type {any} */ { persisted }) => this.write(persisted)
    addEventListener("pagehide", write, { signal: client.closing })
    client.closing.addEventListener("abort", write)
  }

  /** Read the views of the identity. It always resolves. */
  async open() {
    const late = new Promise((_, reject) => setTimeout(reject, OPEN_MS, "no response in time"))
    const read = async () => {
      const opening = indexedDB.open(`tenuto:${this.client.base}`, VERSION)
      opening.onupgradeneeded = () =>
        opening.result.createObjectStore("views", { keyPath: ["identity", "channel"] }).createIndex("use", ["at", "bytes"])
      const database = await result(opening)
      database.onversionchange = () => this.#fail() // another page, with a newer client, needs the database
      // for example because there is no room
      database.onabort = ({ target }) => this.#fail(/** @type {IDBTransaction} */ (target).error)
      this.#database = database
      /** @type {Stored[]} */
      const stored = await result(this.#store().getAll(this.#all))
      for (const { channel, data } of stored) this.#views.set(channel, data)
    }
    await Promise.race([read(), late]).catch((error) => this.#fail(error))
  }

  /** Show the last view of a channel, unless it has a newer one. @param {Channel} channel */
  paint(channel) {
    const data = this.#views.get(channel.name)
    if (!data || channel.view.starts) return
    const view = new View()
    try {
      view.apply(JSON.parse(new TextDecoder().decode(data)))
      if (!view.cursor) throw "no cursor"
    } catch (error) {
      this.#forget(channel.name)
      return this.#warn(`the view of channel ${channel.name} is damaged: ${error}`)
    }
    channel.show(view, true)
    const stop = channel.subscribe(() => {
      if (!channel.view.isFromCache) stop()
      if (channel.error?.code !== "forbidden") return
      stop()
      this.#forget(channel.name) // the right to read the channel was withdrawn
      channel.show()
    })
  }

  /** Write the view soon. @param {Channel} channel */
  changed(channel) {
    this.#changed.add(channel)
    this.#timer ??= setTimeout(() => this.write(), WRITE_MS)
  }

  /** Write the views that have changed, as far as they are complete now. @param {boolean} [isAway] True: the page may enter the back/forward cache */
  write(isAway) {
    clearTimeout(this.#timer)
    this.#timer = undefined
    /** @type {Stored[]} */
    const stored = []
    for (const channel of this.#changed) {
      const batch = dump(channel.view)
      if (!batch) continue
      this.#changed.delete(channel)
      delete batch.events[0].presence // the present members come with the first batch
      const data = new TextEncoder().encode(JSON.stringify(batch))
      this.#views.delete(channel.name)
      this.#views.set(channel.name, data)
      stored.push({ identity: this.identity, channel: channel.name, at: Date.now(), bytes: data.length, data })
    }
    const fits = bounds()
    for (const [name, { length }] of [...this.#views].reverse()) if (!fits(length)) this.#views.delete(name)
    if (stored.length) void this.#attempt(() => this.#put(stored, isAway))
  }

  /** Delete all views of the identity, and write none any more. */
  async clear() {
    this.changed = this.write = () => {}
    clearTimeout(this.#timer)
    this.#views.clear()
    await this.#attempt(() => result(this.#store("readwrite").delete(this.#all)))
    this.#fail()
  }

  get #all() {
    // in the order of IndexedDB keys, an array is above all strings
    return IDBKeyRange.bound([this.identity], [this.identity, []])
  }

  /** @param {IDBTransactionMode} [mode] */
  #store(mode) {
    return /** @type {IDBDatabase} */ (this.#database).transaction("views", mode).objectStore("views")
  }

  /** Put the records in a transaction of its own, which a page that ends can still complete; then delete the oldest. @param {Stored[]} stored @param {boolean} [isAway] */
  async #put(stored, isAway) {
    const store = this.#store("readwrite")
    const puts = stored.map((one) => result(store.put(one)))
    store.transaction.commit()
    await Promise.all(puts)
    // If another page waits for an open transaction of a page in the back/forward cache, the browser drops that page.
    if (isAway || !this.#database) return
    const all = this.#store("readwrite")
    const fits = bounds()
    const keys = all.index("use").openKeyCursor(null, "prev")
    keys.onsuccess = () => {
      const at = keys.result
      if (!at) return
      if (!fits(/** @type {number[]} */ (at.key)[1])) all.delete(at.primaryKey)
      at.continue()
    }
  }

  /** @param {string} channel */
  #forget(channel) {
    this.#views.delete(channel)
    void this.#attempt(() => result(this.#store("readwrite").delete([this.identity, channel])))
  }

  /** @param {() => Promise<unknown>} change */
  async #attempt(change) {
    try {
      if (this.#database) await change()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** Work from memory. @param {unknown} [error] */
  #fail(error) {
    this.#database?.close()
    this.#database = null
    if (error) this.#warn(error)
  }

  /** @param {unknown} why */
  #warn(why) {
    if (!this.#hasWarned) console.warn(`tenuto: views are not cached: ${why}`)
    this.#hasWarned = true
  }
}

/** Return a function that returns whether a record still fits into the limits, after all earlier ones that fit. */
function bounds() {
  let channels = 0
  let bytes = 0
  return (/** @type {number} */ size) => {
    if (channels === MAX_CHANNELS || bytes + size > MAX_BYTES) return false
    channels++
    bytes += size
    return true
  }
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}
