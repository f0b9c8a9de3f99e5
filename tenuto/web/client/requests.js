/**
 * The requests of all channels that wait for a response.
 *
 * A request is sent again on each new connection until it has a response. Requests carry ids, so a repeat is safe.
 * @module
 */

import { withFallback } from "./connection.js"
import { TenutoError, refusal } from "./errors.js"

/** @typedef {Record<string, unknown> & { id?: string }} Fields */
/** @typedef {Fields & { type: string, ref: number, channel: string, leave?: boolean }} Frame */
/** @typedef {{ frame: Frame, units: number, resolve: (response: any) => void, reject: (error: TenutoError) => void }} Pending */

const MAX_PENDING = 500 // limit of requests without a response; the server stops reading at 1,000 or 4 MiB
const MAX_UNITS = 1_000_000 // limit of their size in UTF-16 units of at most 3 bytes; one request may exceed it

/** @internal */
export class Requests {
  /** @type {Map<unknown, Pending>} in the order of the calls, which is the order of sending */
  pending = new Map()
  #units = 0
  #refs = 0
  /** @internal The queues that are being sent over HTTP: true is that of pages of older messages. */
  sending = new Set()

  /** @param {import("../client.js").Client} client */
  constructor(client) {
    this.client = client
  }

  /** Throw if the client accepts no request now. */
  check() {
    if (this.pending.size >= MAX_PENDING || this.#units >= MAX_UNITS) {
      throw refusal("too_many", `${this.pending.size} requests with ${this.#units} characters wait: await some`)
    }
  }

  nextRef() {
    return ++this.#refs
  }

  /** @param {Frame} frame @returns {Promise<any>} */
  add(frame) {
    return new Promise((resolve, reject) => {
      const text = JSON.stringify(frame)
      this.#units += text.length
      // a copy, because the app may change its objects before the request is sent again
      this.pending.set(frame.ref, { frame: JSON.parse(text), units: text.length, resolve, reject })
      this.client.send(text)
      this.sendAll()
    })
  }

  /** @param {unknown} ref @param {unknown} response */
  settle(ref, response) {
    const request = this.pending.get(ref)
    const error = response instanceof TenutoError && response
    // a draining server has not carried it out, so the next one gets it again
    if (!request || (error && error.code === "draining")) return
    this.pending.delete(ref)
    this.#units -= request.units
    if (error) request.reject(error)
    else request.resolve(response)
  }

  /** Send all requests over HTTP, if there is no socket. */
  sendAll() {
    if (this.client.isHttp) withFallback((fallback) => fallback.sendAll(this))
  }
}
