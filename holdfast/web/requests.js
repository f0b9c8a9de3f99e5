/**
 * The requests of all channels that wait for a response, and their way over HTTP.
 *
 * A request is sent again on each new connection until it has a response. Requests carry ids, so a repeat is safe.
 * @module
 */

import { loadFallback, OPEN_MS } from "./connection.js"
import { HoldfastError, refusal } from "./errors.js"

/** @typedef {Record<string, unknown> & { id?: string }} Fields */
/** @typedef {Fields & { type: string, ref: number, channel: string, leave?: boolean }} Frame */
/** @typedef {{ frame: Frame, text: string, resolve: (response: any) => void, reject: (error: HoldfastError) => void }} Pending */

const MAX_PENDING = 500 // the server stops reading at 1,000 or 4 MiB
const MAX_UNITS = 1_000_000 // of UTF-16, at most 3 bytes each; one request may go beyond it

/** @internal */
export class Requests {
  /** @type {Map<unknown, Pending>} in the order of the calls, which is the order of sending */
  pending = new Map()
  #units = 0
  #isSending = false

  /** @param {import("./client.js").Client} client */
  constructor(client) {
    this.client = client
  }

  /** Throw if the client accepts no request now. */
  check() {
    const { size } = this.pending
    if (size >= MAX_PENDING || this.#units >= MAX_UNITS) {
      throw refusal("too_many", `${size} requests with ${this.#units} characters wait for a response: await some of them first`)
    }
  }

  /** @param {Frame} frame @returns {Promise<any>} */
  add(frame) {
    return new Promise((resolve, reject) => {
      const text = JSON.stringify(frame)
      this.#units += text.length
      this.pending.set(frame.ref, { frame, text, resolve, reject })
      this.client.send(text)
      void this.sendAll()
    })
  }

  /** @param {unknown} ref @param {unknown} response */
  settle(ref, response) {
    const request = this.pending.get(ref)
    const error = response instanceof HoldfastError ? response : null
    if (!request || error?.code === "draining") return // not carried out: the next server gets it again
    this.pending.delete(ref)
    this.#units -= request.text.length
    if (error) request.reject(error)
    else request.resolve(response)
  }

  /** Without a socket, send all requests over HTTP, one after another, since appends depend on each other. */
  async sendAll() {
    if (this.#isSending) return
    this.#isSending = true
    for (const [ref, { frame }] of this.pending) {
      if (!this.client.isHttp || this.client.state === "suspended") break
      await this.sendOne(frame).then(
        (response) => this.settle(ref, response),
        (error) => error instanceof HoldfastError && this.settle(ref, error),
      )
      // The server or the network is down: send it again after a while at the latest.
      if (this.pending.has(ref)) {
        setTimeout(() => this.sendAll(), this.client.random() * OPEN_MS)
        break
      }
    }
    this.#isSending = false
  }

  /** Send a request over HTTP. @param {Frame} frame @returns {Promise<any>} */
  async sendOne(frame) {
    return (await loadFallback()).sendOne(this.client, frame)
  }
}
