/**
 * The token that proves the identity of this client: a string, or a callback of the app that fetches one.
 * @module
 */

import { refusal } from "./errors.js"

/** @typedef {"start" | "expired" | "refused"} Why why the app's callback is called */
/** @typedef {string | ((why: Why) => string | Promise<string>)} TokenSource */

const CALLBACK_MS = 10_000 // time limit of the app's callback, which its error names; beyond it the attempt has failed
const REFUSALS = 2 // limit of refusals in a row; a further attempt with such a token would be refused, too

/** @internal The current token. A refused or expired token is replaced before the next attempt. */
export class Token {
  /** @type {string | undefined} */
  #current
  /** @type {Why} */
  #why = "start"
  /** @type {Promise<string> | undefined} */
  #pending
  #refusals = 0
  #wasAccepted = false
  /** True: the connection has ended because the identity expired, and the next one is not open yet. */
  isExpired = false

  /** @param {TokenSource | undefined} source */
  constructor(source) {
    this.source = source
  }

  /** Return the token, undefined for a client without one, or a promise if the app's callback is called first. */
  get() {
    if (typeof this.source !== "function") return this.source
    return this.#current ?? (this.#pending ??= this.#fetch(this.source).finally(() => (this.#pending = undefined)))
  }

  /** A connection has opened with the token, or with the browser's cookies. */
  accepted() {
    this.#wasAccepted = true
    this.#refusals = 0
    this.isExpired = false
  }

  /**
   * The server does not accept `token` (any more). Return whether another attempt makes sense. Several requests may
   * have sent the same token: refusals after the first do not count, because the token is replaced already.
   * @param {string | undefined} token @param {boolean} isExpired
   */
  refused(token, isExpired) {
    this.isExpired = isExpired
    if (typeof this.source === "function" && token !== this.#current) return true
    // Without a token the browser's cookies count: those of the next attempt may prove the identity for longer.
    if (this.source === undefined) return isExpired
    if (!isExpired || !this.#wasAccepted) this.#refusals++
    this.#wasAccepted = false
    this.renew(isExpired ? "expired" : "refused")
    return this.#refusals < REFUSALS
  }

  /** Request another token at the next `get`. @param {Why} why */
  renew(why) {
    this.#current = undefined
    this.#why = why
  }

  /** @param {(why: Why) => string | Promise<string>} callback */
  async #fetch(callback) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer
    const late = new Promise((_, reject) => {
      timer = setTimeout(reject, CALLBACK_MS, "no response within 10 s")
    })
    try {
      const token = await Promise.race([callback(this.#why), late])
      if (token && typeof token === "string") return (this.#current = token)
      throw `it must return a non-empty string, got "${token && typeof token}"`
    } catch (error) {
      throw refusal("token_unavailable", `the token callback failed: ${error}`)
    } finally {
      clearTimeout(timer)
    }
  }
}
