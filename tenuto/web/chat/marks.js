/**
 * Marks: lines in an answer, such as "You reloaded here", each before the first block that begins at or after its
 * place.
 *
 * The marks are those of the app, or else the element's own: it notes how long each running answer was when the
 * connection or the page ended, and counts what came back. They belong to one attempt at the answer.
 * @module
 */
import { element } from "./elements.js"
import { keep, recall } from "./storage.js"
import { countPoints, dropPoints } from "../client/text.js"

/** @typedef {{ message: string, at: number, text: string, place?: number, attempts?: number }} Mark `at` counts code points of the message's `text`, `place` the same in units of JavaScript, once known; `attempts` is the number of the attempts before that text; `text` may have `**bold**` words */

const MAX_MARKS = 50
const RENEWAL_MS = 2_000 // an identity that is renewed in this time has interrupted nothing that a person sees

export class Marks {
  /** @type {Mark[]} */
  #own = []
  /** The length of each running answer when the connection or the page ended, and the number of attempts before it. @type {[string, number, number][] | null} */
  #stood = null
  #isLive = false
  #wasLive = false // True: this page has been connected before
  #quietUntil = 0 // before this time a connection that comes back leaves no mark
  /** @type {readonly Mark[]} */
  #shown = []

  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel
    ;({ stood: this.#stood = null, own: this.#own = [] } = recall(panel, "marks") ?? {})
    keep(panel, "marks", null) // a page that ends without `save` leaves no old marks
    this.changed()
    this.choose()
  }

  /** Return the marks of a message, in order, without those of text that another attempt replaced. @param {import("../client/snapshot.js").Message} message */
  of({ id, attempts: { length } }) {
    return this.#shown.filter(({ message, attempts = length }) => message === id && attempts === length)
  }

  /** Choose the marks to show: those of the app, or else the element's own. */
  choose() {
    const { marks } = this.panel.host
    const usable = marks?.filter((one) => one && Number.isFinite(one.at) && typeof one.text === "string")
    this.#shown = (usable ?? this.#own).map((one) => ({ ...one })).sort((a, b) => a.at - b.at)
  }

  /** Note a change of the channel, which may be that of its connection. Return whether the marks have changed. */
  changed() {
    const { channel, client } = this.panel
    const isLive = channel.state === "live"
    if (isLive === this.#isLive) return false
    const { messages } = channel.getSnapshot()
    if (!isLive) {
      this.#stood = lengthsOf(messages)
      this.#quietUntil = client.token.isExpired ? client.now() + RENEWAL_MS : 0
    }
    this.#isLive = isLive
    if (!isLive) return false
    if (client.now() < this.#quietUntil) this.#stood = null
    for (const [id, at, attempts] of this.#stood ?? []) this.#return(messages.find((one) => one.id === id), at, attempts)
    this.#stood = null
    this.#wasLive = true
    return true
  }

  /** Add a mark to an answer that had `at` characters when the connection or the page ended. @param {import("../client/snapshot.js").Message | undefined} message @param {number} at @param {number} attempts */
  #return(message, at, attempts) {
    if (!message) return
    const { words } = this.panel
    const length = countPoints(message.text)
    const count = this.#wasLive ? length - at : length // a new page had nothing
    if (length < at) return
    const start = this.#wasLive ? words.reconnected : words.welcomeBack
    const text = count ? `${start}. **${count.toLocaleString()} ${words.charactersBack}** ${words.cameBack}.` : `${start}, ${words.nothingMissed}.`
    this.#own = [...this.#own.filter((one) => one.message !== message.id || (this.#wasLive && one.at !== at)), { message: message.id, at, text, attempts }].slice(-MAX_MARKS)
  }

  /** Save the lengths and marks for the next page of this tab. */
  save() {
    keep(this.panel, "marks", { stood: this.#stood ?? lengthsOf(this.panel.channel.getSnapshot().messages), own: this.#own })
  }
}

/** @param {readonly import("../client/snapshot.js").Message[]} messages @returns {[string, number, number][]} */
function lengthsOf(messages) {
  return messages.flatMap(({ id, status, text, attempts }) => (status === "streaming" && text ? [[id, countPoints(text), attempts.length]] : []))
}

/** Return the place of a mark in `text`, in units of JavaScript, or Infinity while the text does not reach it. @param {Mark} mark @param {string} text */
export function placeOf(mark, text) {
  if (mark.place !== undefined) return mark.place
  return countPoints(text) < mark.at ? Infinity : (mark.place = text.length - dropPoints(text, mark.at).length)
}

/** Return the line of a mark. @param {Mark} mark */
export function markNode({ text }) {
  const words = text.split("**")
  const line = element("span", { dir: "auto" }, ...words.map((one, n) => (n % 2 ? element("strong", {}, one) : one)))
  return element("div", { class: "hairline", part: "mark", role: "separator", "aria-label": words.join("") }, line)
}
