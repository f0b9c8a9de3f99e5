/**
 * Transcript: messages as elements, kept equal to a view and touched only where it changed.
 *
 * Text enters the page as text, never as markup. What streams is added to the text node that is there, so that a
 * selection survives and a long answer costs no more than its new words. Tests and scripts may rely on
 * `data-message-id`, `data-role`, `data-status` and on `.text` holding exactly the text of a text part.
 * @module
 */

import { stateOf } from "./words.js"

/** @typedef {{ type: string, text?: string }} Part */
/**
 * @typedef {{ id: string, role: string, author?: string, status: string, parts?: readonly Part[] }} Message
 *   any message of a view, or one that is still on its way there
 */

const NEAR_PX = 48 // this close to the end counts as being there

export class Transcript {
  /** @type {Map<string, Row>} ids come from other people, so a Map */
  #rows = new Map()
  #follows = true
  #lastTop = 0

  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} list
   * @param {(follows: boolean) => void} onFollow told when the reader leaves the end or comes back to it
   */
  constructor(scroller, list, onFollow) {
    this.scroller = scroller
    this.list = list
    this.onFollow = onFollow
    scroller.addEventListener("scroll", () => this.#noticeScrolling(), { passive: true })
    // The soft keyboard, a turned phone and an opened panel change the height without any scrolling.
    new ResizeObserver(() => this.#stick()).observe(scroller)
  }

  /** @param {readonly Message[]} messages in their order */
  show(messages) {
    const ids = new Set(messages.map(({ id }) => id))
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue
      row.element.remove()
      this.#rows.delete(id)
    }
    /** @type {Element | null} */
    let place = this.list.firstElementChild
    for (const message of messages) {
      const row = this.#row(message)
      row.show(message)
      if (row.element === place) place = place.nextElementSibling
      else this.list.insertBefore(row.element, place)
    }
    this.#stick()
  }

  /** Put a line under a message. @param {string} id @param {string} text @param {boolean} isEqual */
  prove(id, text, isEqual) {
    this.#rows.get(id)?.prove(text, isEqual)
    this.#stick()
  }

  /** What is shown of a message, as it stands in the page. @param {string} id */
  textOf(id) {
    return this.#rows.get(id)?.text ?? ""
  }

  /** Go to the end and stay there. */
  follow() {
    this.#setFollows(true)
    this.#stick()
  }

  /** @param {Message} message */
  #row({ id, role }) {
    const row = this.#rows.get(id) ?? new Row(id, role)
    this.#rows.set(id, row)
    return row
  }

  #stick() {
    this.#noticeScrolling() // its event comes with the next frame, and by then we would have scrolled back
    if (this.#follows) this.scroller.scrollTop = this.scroller.scrollHeight
    this.#lastTop = this.scroller.scrollTop
  }

  #noticeScrolling() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller
    const moved = scrollTop - this.#lastTop
    const left = scrollHeight - clientHeight - scrollTop
    // Only the reader's own moves count. Being far from the end may just mean that more has come, and a place that
    // moved up to the very end was pushed there by a page that became shorter.
    if (moved < -1 && left > 1) this.#setFollows(false)
    else if (moved > 1 && left <= NEAR_PX) this.#setFollows(true)
    this.#lastTop = scrollTop
  }

  /** @param {boolean} follows */
  #setFollows(follows) {
    if (follows === this.#follows) return
    this.#follows = follows
    this.onFollow(follows)
  }
}

/** One message. */
class Row {
  /** @type {{ element: HTMLElement, node: Text }[]} one for each text part */
  #texts = []
  #status = ""
  /** @type {HTMLElement | null} */
  #proof = null

  /** @param {string} id @param {string} role */
  constructor(id, role) {
    this.element = make("article", "message")
    this.element.dataset.messageId = id
    this.element.dataset.role = role
    const head = make("header", "head")
    this.author = make("span", "author")
    this.state = make("span", "state")
    this.body = make("div", "body")
    head.append(this.author, this.state)
    this.element.append(head, this.body)
  }

  get text() {
    return this.#texts.map(({ node }) => node.data).join("")
  }

  /** @param {Message} message */
  show({ author, role, status, parts }) {
    const texts = (parts ?? []).filter(({ type }) => type === "text").map(({ text }) => text ?? "")
    texts.forEach((text, index) => this.#showText(index, text))
    for (const { element } of this.#texts.splice(texts.length)) element.remove()
    if (status === this.#status) return
    this.#status = status
    this.author.textContent = author || role
    this.state.textContent = stateOf(status)
    this.element.dataset.status = status
    this.element.ariaBusy = String(status === "streaming")
    this.element.ariaLabel = `${author || role}${stateOf(status) ? `, ${stateOf(status)}` : ""}`
  }

  /** @param {string} text @param {boolean} isEqual */
  prove(text, isEqual) {
    this.#proof ??= this.element.appendChild(make("p", "proof"))
    this.#proof.dataset.equal = String(isEqual)
    this.#proof.textContent = text
  }

  /** @param {number} index @param {string} text */
  #showText(index, text) {
    const { node } = (this.#texts[index] ??= this.#openText())
    const shown = node.data
    if (shown === text) return
    if (text.startsWith(shown)) node.appendData(text.slice(shown.length))
    else node.data = text
  }

  #openText() {
    const element = make("div", "text")
    element.dir = "auto"
    const node = document.createTextNode("")
    element.append(node)
    this.body.append(element)
    return { element, node }
  }
}

/** @param {string} tag @param {string} className */
function make(tag, className) {
  const element = document.createElement(tag)
  element.className = className
  return element
}
