/**
 * The state that the pages of one identity share: cached views, one connection, and which messages were discarded.
 *
 * Loaded only if an identity is known. The app or its token names it; the server confirms or corrects it in `you`.
 * @module
 */

import { Cache } from "./cache.js"
import { Tabs } from "./tabs.js"

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/** @typedef {import("./connection.js").Transport} Transport */

/** Find the identity, show the cached views, and connect. @param {Client} client @param {Transport} socket the transport whose frames tabs exchange */
export async function share(client, socket) {
  const token = client.options.identity === undefined ? await Promise.resolve(client.token.get()).catch((error) => void client.explain(error)) : undefined
  const identity = client.options.identity ?? subjectOf(token)
  if (identity !== undefined) {
    client.sharing = new Sharing(client, identity, socket)
    await client.sharing.start()
  } else client.use()
}

/** Return the `sub` of a JSON Web Token; undefined for another token. @param {string | undefined} token @returns {string | undefined} */
export function subjectOf(token) {
  try {
    const claims = (token ?? "").split(".")[1].replace(/-/g, "+").replace(/_/g, "/")
    const bytes = Uint8Array.from(atob(claims), (unit) => unit.charCodeAt(0))
    const { sub } = JSON.parse(new TextDecoder().decode(bytes))
    return typeof sub === "string" ? sub : undefined
  } catch {
    return undefined
  }
}

export class Sharing {
  /** @type {Cache | undefined} */
  #cache
  /** @type {Tabs | undefined} */
  #tabs

  /** @param {Client} client @param {string} identity @param {Transport} socket */
  constructor(client, identity, socket) {
    this.client = client
    this.identity = identity
    if (client.options.cache !== false) this.#cache = new Cache(client, identity)
    if (client.options.tabs !== false) this.#tabs = new Tabs(client, identity, socket)
    const { outbox, closing: signal } = client
    addEventListener("storage", ({ key, newValue }) => {
      if (newValue !== "" || !key?.startsWith(outbox.prefix)) return
      outbox.drop(key.slice(outbox.prefix.length))
      for (const channel of client.channels.values()) channel.notify()
    }, { signal })
  }

  /** Tell the other tabs that an unsent message was discarded: they hold it too, and the leader may be sending it. @param {string} id */
  discarded(id) {
    const key = this.client.outbox.prefix + id
    try {
      localStorage.setItem(key, "") // an event in each other tab
      localStorage.removeItem(key)
    } catch {} // the storage is denied or full
  }

  async start() {
    await this.#cache?.open()
    for (const channel of this.client.channels.values()) this.opened(channel)
    if (this.#tabs) this.#tabs.start()
    else this.client.use()
  }

  /** @param {Channel} channel */
  opened(channel) {
    this.#cache?.paint(channel)
  }

  /** A channel has applied a frame. @param {Channel} channel @param {import("./view.js").Batch} batch */
  received(channel, batch) {
    const leader = this.#tabs?.leader
    if (!this.#tabs?.role || leader) this.#cache?.changed(channel) // of several tabs only the leader writes the views
    leader?.received(channel, batch)
  }

  /** The server has confirmed the client's id. @param {string | undefined} id */
  identified(id) {
    const { client, identity } = this
    if (id === identity) return
    console.warn(`holdfast: the server knows this page as ${id}, not as ${identity}: the views of ${identity} are deleted`)
    void this.#cache?.clear()
    client.sharing = undefined
    for (const channel of client.channels.values()) channel.show()
    if (this.#tabs) this.#tabs.alone()
    else client.use()
  }

  /** Delete the data that the browser keeps under the identity. */
  async signOut() {
    try {
      this.#tabs?.signOut()
    } catch {} // without channels each tab is alone
    await this.#cache?.clear()
  }
}
