/**
 * Marks: lines in an answer, such as "You reloaded here", each before the first block that begins at or after its
 * place.
 *
 * The marks are those of the app, or else the element's own: it notes how long each running answer was when the
 * connection or the page ended, and counts what came back.
 * @module
 */
import { element } from "./chat_nodes.js"
import { countPoints } from "./text.js"

/** @typedef {{ message: string, at: number, text: string }} Mark `at` counts characters of the message's `text`; `text` may have `**bold**` words */

const MAX_MARKS = 50

export class Marks {
  /** @type {Mark[]} */
  #own = []
  /** The length of each running answer when the connection or the page ended. @type {[string, number][] | null} */
  #stood = null
  #isLive = false
  #wasLive = false // True: this page has been connected before
  /** @type {readonly Mark[]} */
  #shown = []

  /** @param {import("./chat_panel.js").Panel} panel */
  constructor(panel) {
    const { host } = panel
    this.panel = panel
    this.key = `holdfast-marks ${host.url} ${panel.channel.name}`
    try {
      const { stood, own } = JSON.parse(sessionStorage.getItem(this.key) ?? "{}")
      sessionStorage.removeItem(this.key)
      this.#stood = stood ?? null
      this.#own = own ?? []
    } catch { /* without storage the marks end with the page */ }
    addEventListener("pagehide", () => this.#save(), { signal: panel.closing.signal })
    if (!this.changed()) this.choose()
  }

  /** Return the marks of a message, in order. @param {string} id */
  of(id) {
    return this.#shown.filter(({ message }) => message === id)
  }

  /** Choose the marks to show: those of the app, or else the element's own. */
  choose() {
    const { marks } = this.panel.host
    const usable = marks?.filter((one) => one && Number.isFinite(one.at) && typeof one.text === "string")
    this.#shown = [...(usable ?? this.#own)].sort((a, b) => a.at - b.at)
  }

  /** Note a change of the channel, which may be that of its connection. Return whether the marks have changed. */
  changed() {
    const { channel } = this.panel
    const isLive = channel.state === "live"
    if (isLive === this.#isLive && (isLive || this.#stood)) return false
    const { messages, isFromCache } = channel.getSnapshot()
    const hasReturned = isLive && !this.#isLive
    if (!isLive && (this.#isLive || isFromCache)) this.#stood = lengthsOf(messages)
    this.#isLive = isLive
    if (!hasReturned) return false
    for (const [id, at] of this.#stood ?? []) this.#return(messages.find((one) => one.id === id), at)
    this.#stood = null
    this.#wasLive = true
    this.choose()
    return true
  }

  /** Add a mark to an answer that had `at` characters when the connection or the page ended. @param {import("./snapshot.js").Message | undefined} message @param {number} at */
  #return(message, at) {
    if (!message || at > message.text.length) return
    const { words } = this.panel
    const count = countPoints(message.text.slice(at))
    const start = this.#wasLive ? words.reconnected : words.welcomeBack
    const text = count ? `${start}. **${count.toLocaleString()} ${words.charactersBack}** ${words.cameBack}.` : `${start}, ${words.nothingMissed}.`
    this.#own = [...this.#own.filter((one) => one.message !== message.id || one.at !== at), { message: message.id, at, text }].slice(-MAX_MARKS)
  }

  /** Save the lengths and marks for the next page of this tab. */
  #save() {
    const stood = this.#stood ?? lengthsOf(this.panel.channel.getSnapshot().messages)
    try {
      if (stood.length || this.#own.length) sessionStorage.setItem(this.key, JSON.stringify({ stood, own: this.#own }))
    } catch { /* denied, or full */ }
  }
}

/** @param {readonly import("./snapshot.js").Message[]} messages @returns {[string, number][]} */
function lengthsOf(messages) {
  return messages.flatMap(({ id, status, text }) => (status === "streaming" && text ? [[id, text.length]] : []))
}

/** Return the line of a mark. @param {Mark} mark */
export function markNode({ text }) {
  const words = text.split("**")
  const line = element("span", { dir: "auto" }, ...words.map((one, n) => (n % 2 ? element("strong", {}, one) : one)))
  return element("div", { class: "hairline", part: "mark", role: "separator", "aria-label": words.join("") }, line)
}
