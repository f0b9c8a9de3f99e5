/**
 * The presence of this client in one channel. It is present while one of its pages is, also after each reconnect.
 * @module
 */

import { isTemporary } from "./errors.js"

/** @typedef {{ data?: object }} Presence */

const RENEW_MS = 30_000 // over HTTP: a third of the lease

/** @internal */
export class OwnPresence {
  /** @type {Map<string, Presence>} by page; "" is this page. The latest one counts */
  #pages = new Map()
  #pending = 0 // requests that wait for a response
  /** @type {ReturnType<typeof setTimeout> | undefined} of the lease */
  #renewal

  #channel

  /** @param {import("./channel.js").Channel<any, any>} channel */
  constructor(channel) {
    this.#channel = channel
  }

  /** Let a page enter; without `presence` it leaves. @param {string} page @param {Presence} [presence] */
  set(page, presence) {
    this.#pages.delete(page)
    if (presence) this.#pages.set(page, presence)
    return this.#send()
  }

  /** Presence ends with its connection or its lease: send it again, unless a request is pending. */
  renew() {
    if (this.#pages.size && !this.#pending) this.#send().catch(() => {})
  }

  /** Let all pages leave. */
  leave() {
    if (!this.#pages.size) return
    this.#pages.clear()
    this.#send().catch(() => {})
  }

  #send() {
    const channel = this.#channel
    const request = channel.client.request("presence", channel.name, [...this.#pages.values()].at(-1) ?? { leave: true })
    this.#pending++
    request.then(() => channel.client.isHttp, isTemporary).then((again) => { // later the channel may have room, or the server less work
      this.stop()
      this.#pending--
      if (again && channel.state !== "closed") this.#renewal = setTimeout(() => this.renew(), RENEW_MS)
    })
    return request
  }

  /** Renew no lease any more. */
  stop() {
    clearTimeout(this.#renewal)
  }
}
