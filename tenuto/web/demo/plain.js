/** The left pane: the answer as a bare `StreamingResponse`, read by `fetch`, without a log, an id or a cursor. @module */
import { keep, recall, size } from "./dom.js"

const PLACES = 4 // of the six connections that a browser opens to one server: the pages of other tabs need the rest

/** @typedef {"idle" | "streaming" | "complete" | "broken"} State */
/** @typedef {"reload" | "left" | "server" | "agent" | "offline" | "full" | "window"} Cause why it is broken */
/** @typedef {{ channel: string, question: string, asked: string, shown: number, breaks: number, calls: number, isGone: boolean }} Kept `shown` counts the characters that the page showed */

/** @type {Kept} */
const NOTHING = { channel: "", question: "", asked: "", shown: 0, breaks: 0, calls: 0, isGone: false }

export class PlainStream {
  text = ""
  /** @type {State} */
  state = "idle"
  /** @type {Cause | undefined} */
  cause
  #reading = new AbortController()

  /** @param {Pick<Storage, "getItem" | "setItem">} storage @param {() => void} draw */
  constructor(storage, draw) {
    this.storage = storage
    this.draw = draw
    /** @type {Kept} */
    this.kept = { ...NOTHING, ...recall(storage, "plain", {}) }
  }

  /** Note how much the page shows when it ends. */
  save() {
    keep(this.storage, "plain", Object.assign(this.kept, this.kept.isGone ? {} : { shown: size(this.text) }))
  }

  /** Note that the page has begun anew: what it had streamed is gone, and no one sends it again. @param {boolean} isReload */
  return(isReload) {
    if (!this.kept.question) return
    const wasGone = this.kept.isGone
    this.kept.isGone = true // before `shown` is saved
    this.#break(isReload ? "reload" : "left", wasGone)
  }

  /** Read the answer to `question`. With `again` the model is called again, for this pane alone. @param {string} channel @param {{ id: string, text: string }} question @param {boolean} [again] */
  async start(channel, question, again = false) {
    this.#reading.abort()
    const { signal } = (this.#reading = new AbortController())
    const { breaks, calls } = again ? this.kept : NOTHING
    Object.assign(this, { text: "", state: "streaming", cause: undefined })
    this.kept = { channel, question: question.id, asked: question.text, shown: 0, breaks, calls: calls + 1, isGone: false }
    this.save()
    const query = new URLSearchParams({ channel, question: question.id, ...(again && { again: "1" }) })
    const isRead = await withPlace(signal, () => this.#read(`/demo/plain?${query}`, signal))
    if (!isRead) this.#break("full")
  }

  /** @param {string} url @param {AbortSignal} signal */
  async #read(url, signal) {
    try {
      const { ok, status, body } = await fetch(url, { signal })
      if (!ok || !body) throw new Error(`status ${status}`)
      const pieces = body.pipeThrough(new TextDecoderStream()).getReader()
      let rest = ""
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
        const events = (rest + piece.value).split("\n\n")
        rest = events.pop() ?? ""
        for (const data of events.map((event) => event.replace("data: ", ""))) {
          if (data === "[DONE]") this.state = "complete"
          else this.text += JSON.parse(data)
        }
        this.draw()
      }
      if (this.state === "streaming" && !signal.aborted) this.#break("agent") // a proper end without the last event
    } catch {
      setTimeout(() => signal.aborted || this.#break("server"), 50) // never, if the page ends: a reload has its own cause
    }
  }

  /** End the stream, as a lost network does. */
  cut() {
    if (this.state !== "streaming") return
    this.#reading.abort()
    this.#break("offline")
  }

  /** @param {Cause} cause @param {boolean} [isKnown] True: an earlier page has counted it */
  #break(cause, isKnown = false) {
    Object.assign(this, { state: "broken", cause })
    if (!isKnown) this.kept.breaks++
    this.save()
    this.draw()
  }
}

/** Run `job` in one of the places that all tabs share. Return false if there is none. @param {AbortSignal} signal @param {() => Promise<void>} job */
async function withPlace(signal, job) {
  if (!navigator.locks) return job().then(() => true) // a page without https
  for (let n = 0; n < PLACES; n++) {
    if (await navigator.locks.request(`tenuto-demo-plain-${n}`, { ifAvailable: true }, (lock) => lock && job().then(() => true))) return true
  }
  return signal.aborted
}
