/**
 * What the pages of one identity share: the cache of views.
 *
 * Loaded only where an identity is known. The app vouches for it; the server's `you` decides.
 * @module
 */

import { Cache } from "./cache.js"

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./channel.js").Channel} Channel */

/** Find the identity, show the cached views, and connect. @param {Client} client */
export async function share(client) {
  const token = client.options.identity === undefined ? await Promise.resolve(client.token.get()).catch(() => undefined) : undefined
  const identity = client.options.identity ?? subjectOf(token)
  if (identity !== undefined) {
    client.sharing = new Sharing(client, identity)
    await client.sharing.start()
  }
  client.use()
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

  /** @param {Client} client @param {string} identity */
  constructor(client, identity) {
    this.client = client
    this.identity = identity
    if (client.options.cache !== false) this.#cache = new Cache(client, identity)
  }

  async start() {
    await this.#cache?.open()
    for (const channel of this.client.channels.values()) this.opened(channel)
  }

  /** @param {Channel} channel */
  opened(channel) {
    this.#cache?.paint(channel)
  }

  /** A channel has applied a frame. @param {Channel} channel @param {import("./view.js").Batch} _batch */
  received(channel, _batch) {
    this.#cache?.changed(channel)
  }

  /** The server has said who this client is. @param {string | undefined} id */
  identified(id) {
    const { client, identity } = this
    if (id === identity) return
    console.warn(`holdfast: the server knows this page as ${id}, not as ${identity}: the views of ${identity} are deleted`)
    void this.signOut()
    client.sharing = undefined
    for (const channel of client.channels.values()) channel.show()
    client.use()
  }

  /** Delete what the browser keeps under the identity. */
  async signOut() {
    await this.#cache?.clear()
  }
}
