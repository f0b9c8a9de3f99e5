/**
 * Typing: signals that this person types, and the people that type now.
 *
 * A signal `typing` holds `{typing: boolean}`. One that is true is valid for some seconds, so that the typing also ends
 * if a page closes suddenly.
 * @module
 */

/** @typedef {import("./channel.js").Channel<any, any>} Channel */

const AGAIN_MS = 2_000 // time between two signals while a person continues to type
const VALID_MS = 6_000

export class Typing {
  /** The ids of the clients that type; a new array after each change. @type {readonly string[]} */
  ids = []
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */
  #ends = new Map()
  #sentAt = -Infinity

  #channel

  /** @param {Channel} channel */
  constructor(channel) {
    this.#channel = channel
  }

  /** Send the other clients whether this person types. @param {boolean} typing */
  send(typing) {
    const now_ms = this.#channel.client.now()
    if (typing ? now_ms - this.#sentAt < AGAIN_MS : this.#sentAt < 0) return
    this.#sentAt = typing ? now_ms : -Infinity
    this.#channel.signal("typing", { typing })
  }

  /** @param {any} event */
  receive({ type, name, from, data, message }) {
    if (type === "message.create") this.#set(message.author)
    if (from && from !== this.#channel.client.id && type === "signal" && name === "typing") this.#set(from, data?.typing === true)
  }

  stop() {
    for (const id of this.#ends.keys()) this.#set(id)
  }

  /** @param {string} id @param {boolean} [isTyping] */
  #set(id, isTyping) {
    clearTimeout(this.#ends.get(id))
    this.#ends.delete(id)
    if (isTyping) {
      this.#ends.set(id, setTimeout(() => {
        this.#set(id)
        this.#channel.notify()
      }, VALID_MS))
    }
    this.ids = [...this.#ends.keys()]
  }
}
