/**
 * The state that the pages of one identity share: cached views, one connection, and which messages were discarded.
 *
 * Loaded only if an identity is known. The app or its token names it; the server confirms or corrects it in `you`.
 * @module
 */

import { Cache } from "./cache.js"
import { Tabs } from "./tabs.js"

/** @typedef {import("../client.js").Client} Client */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */
/** @typedef {import("./connection.js").Transport} Transport */

const MAX_UNITS = 4_000 // limit of the list of ended messages, in UTF-16 units; a longer list begins anew
const SIGN_OUT = "." // stands for a sign-out in that list; no message has this id

/** Find the identity, show the cached views, and connect. @param {Client} client @param {Transport} socket the transport whose frames tabs exchange */
export async function share(client, socket) {
  let { identity } = client.options
  try {
    identity ??= subjectOf(await client.token.get())
  } catch (error) {
    client.explain(/** @type {any} */ (error))
  }
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
  #isOver = false
  #key

  /** @param {Client} client @param {string} identity @param {Transport} socket */
  constructor(client, identity, socket) {
    this.client = client
    this.identity = identity
    if (client.options.cache !== false) this.#cache = new Cache(client, identity)
    if (client.options.tabs !== false) this.#tabs = new Tabs(client, identity, socket)
    this.#key = `tenuto-ended:${JSON.stringify([client.base, identity])}`
    const { closing: signal } = client
    let list = this.#list
    const check = () => {
      const known = list
      list = this.#list
      if (list !== known) this.#end(list.startsWith(known) ? list.slice(known.length) : list)
    }
    // Events of another tab, of another client in this page, and of a page that was in the back/forward cache and received none.
    for (const type of ["storage", this.#key, "pageshow"]) addEventListener(type, check, { signal })
  }

  /** The ids of the messages that pages of this identity have discarded, and their sign-outs, each before a blank. @returns {string} */
  get #list() {
    try {
      return (localStorage[this.#key] ??= "  ") // reserves room
    } catch {
      return "" // the storage is denied
    }
  }

  /** Notify the other pages that an unsent message was discarded: they hold it too, and the leader may be sending it. @param {string} id */
  discarded(id) {
    const list = this.#list
    for (const start of [list[MAX_UNITS] ? "" : list, ""]) try {
      localStorage[this.#key] = `${start}${id} `
      break
    } catch {} // the storage is denied or full
    dispatchEvent(new Event(this.#key))
  }

  /** Other pages have discarded messages, or have signed out. @param {string} ids */
  #end(ids) {
    const { client } = this
    for (const id of ids.split(" ")) {
      if (id === SIGN_OUT) {
        this.#isOver = true // notify no others: the person may have signed in again
        void client.signOut()
      } else client.outbox.drop(id)
    }
    for (const channel of client.channels.values()) channel.notify()
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

  /** A channel has applied a frame. @param {Channel} channel @param {import("../view.js").Batch} batch */
  received(channel, batch) {
    const leader = this.#tabs?.leader
    if (!this.#tabs?.role || leader) this.#cache?.changed(channel) // of several tabs only the leader writes the views
    leader?.received(channel, batch)
  }

  /** The server has confirmed the client's id. @param {string | undefined} id */
  identified(id) {
    const { client, identity } = this
    if (id === identity) return
    console.warn(`tenuto: the server knows this page as ${id}, not as ${identity}: its views are deleted`)
    void this.#cache?.clear()
    client.sharing = undefined
    for (const channel of client.channels.values()) channel.show()
    if (this.#tabs) this.#tabs.alone()
    else client.use()
  }

  /** Delete the data that the browser keeps under the identity. */
  async signOut() {
    if (!this.#isOver) this.discarded(SIGN_OUT)
    await this.#cache?.clear()
  }
}
