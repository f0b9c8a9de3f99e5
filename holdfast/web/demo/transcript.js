/**
 * Transcript: messages as elements, kept equal to a view and touched only where it changed.
 *
 * Text enters the page as text, never as markup. Streamed text is added to the existing text node, so that a selection
 * survives and a long answer costs no more than its new words. Tests and scripts may rely on `data-message-id`,
 * `data-role`, `data-status`, and on `.text`, which holds exactly the text of a text part.
 * @module
 */

import { breakOf, stateOf } from "./words.js"

/** @typedef {{ type: string, text?: string, name?: unknown, [field: string]: unknown }} Part */
/**
 * @typedef {{ id: string, role: string, author?: string, status: string, reason?: string, parts?: readonly Part[],
 *   meta?: Readonly<Record<string, unknown>> }} Message a message of a view, or a question that is not stored yet
 */
/** @typedef {{ at: number, by?: unknown, successor?: unknown }} Break the offset at which one writer ended and another continued */

const NEAR_PX = 48 // this close to the end counts as the end

export class Transcript {
  /** @type {Map<string, Row>} ids come from other people, so a Map */
  #rows = new Map()
  #follows = true
  #lastTop = 0

  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} list
   * @param {(message: Message) => { name: string, isMine: boolean }} byWhom
   * @param {(follows: boolean) => void} onFollow called when the reader leaves the end or returns to it
   */
  constructor(scroller, list, byWhom, onFollow) {
    this.scroller = scroller
    this.list = list
    this.byWhom = byWhom
    this.onFollow = onFollow
    scroller.addEventListener("scroll", () => this.#noticeScrolling(), { passive: true })
    // The soft keyboard, a rotated phone and an opened panel change the height without a scroll event.
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
    let next = this.list.firstElementChild
    for (const message of messages) {
      const row = this.#row(message)
      row.show(message, this.byWhom(message))
      if (row.element === next) next = next.nextElementSibling
      else this.list.insertBefore(row.element, next)
    }
    this.#stick()
  }

  /** Put a line under a message. @param {string} id @param {string} text @param {boolean} isEqual */
  prove(id, text, isEqual) {
    this.#rows.get(id)?.prove(text, isEqual)
    this.#stick()
  }

  /** Return the text of a message as the page shows it. @param {string} id */
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
    this.#noticeScrolling() // its event comes with the next frame, after this method would have scrolled back
    if (this.#follows) this.scroller.scrollTop = this.scroller.scrollHeight
    this.#lastTop = this.scroller.scrollTop
  }

  #noticeScrolling() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller
    const moved = scrollTop - this.#lastTop
    const left = scrollHeight - clientHeight - scrollTop
    // Only the reader's own moves count. New text alone can increase the distance from the end, and a position that
    // moved up to the very end was moved by a page that became shorter.
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
  /** @type {Block[]} one for each part */
  #blocks = []
  #head = ""
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

  /** The text in the page itself, not the text that this class last set. */
  get text() {
    return this.#blocks.map(({ kind, element }) => (kind === "text" ? element.textContent : "")).join("")
  }

  /** @param {Message} message @param {{ name: string, isMine: boolean }} by */
  show({ status, reason, parts = [], meta }, { name, isMine }) {
    const breaks = breaksIn(meta)
    parts.forEach((part, index) => this.#showPart(index, part, breaks))
    for (const { element } of this.#blocks.splice(parts.length)) element.remove()
    const state = stateOf(status, reason)
    const head = [status, name, state, isMine].join("\n")
    if (head === this.#head) return
    this.#head = head
    this.author.textContent = name
    this.state.textContent = state
    this.element.dataset.status = status
    this.element.dataset.mine = String(isMine)
    this.element.ariaBusy = String(status === "streaming")
    this.element.ariaLabel = name + (state ? `, ${state}` : "")
  }

  /** @param {string} text @param {boolean} isEqual */
  prove(text, isEqual) {
    this.#proof ??= this.element.appendChild(make("p", "proof"))
    this.#proof.dataset.equal = String(isEqual)
    this.#proof.textContent = text
  }

  /** @param {number} index @param {Part} part @param {readonly Break[]} breaks */
  #showPart(index, part, breaks) {
    let block = this.#blocks[index]
    if (block?.kind !== part.type) {
      const opened = new Block(part.type)
      if (block) block.element.replaceWith(opened.element)
      else this.body.append(opened.element)
      block = this.#blocks[index] = opened
    }
    if (part.type === "text") block.show(part.text ?? "", breaks)
    else if (part.type === "reasoning") block.show(part.text ?? "", [])
    else if (part.type === "tool") block.show(`${part.name ?? "a tool"} ${part.state ?? ""}`, [])
  }
}

/** One part of a message: a text that grows at its end. */
class Block {
  shown = ""
  #breaks = "[]"

  /** @param {string} kind */
  constructor(kind) {
    this.kind = kind
    const isThought = kind === "reasoning"
    this.element = make(isThought ? "details" : "div", ["text", "reasoning", "tool"].includes(kind) ? kind : "other")
    this.holder = this.element
    if (isThought) {
      const summary = make("summary", "")
      summary.textContent = "Thoughts"
      this.holder = make("div", "thought")
      this.element.append(summary, this.holder)
    }
    this.holder.dir = "auto"
    this.tail = this.holder.appendChild(document.createTextNode(""))
  }

  /** @param {string} text @param {readonly Break[]} breaks */
  show(text, breaks) {
    const key = JSON.stringify(breaks)
    if (text === this.shown && key === this.#breaks) return
    if (key === this.#breaks && text.startsWith(this.shown)) this.tail.appendData(text.slice(this.shown.length))
    else this.#build(text, breaks)
    this.shown = text
    this.#breaks = key
  }

  /** @param {string} text @param {readonly Break[]} breaks */
  #build(text, breaks) {
    const points = [...text]
    const pieces = []
    let from = 0
    for (const one of breaks) {
      pieces.push(points.slice(from, one.at).join(""), mark(breakOf(one)))
      from = one.at
    }
    this.tail = document.createTextNode(points.slice(from).join(""))
    this.holder.replaceChildren(...pieces, this.tail)
  }
}

/** Return a line across the text. It contains no text itself, so that `.text` stays exact. @param {string} words */
function mark(words) {
  const line = make("span", "break")
  line.role = "note"
  line.ariaLabel = words
  line.dataset.words = words
  return line
}

/** @param {Message["meta"]} meta from any client, so of any form @returns {readonly Break[]} */
function breaksIn(meta) {
  const breaks = meta?.continued
  return Array.isArray(breaks) ? breaks.filter((one) => Number.isInteger(one?.at)).sort((a, b) => a.at - b.at) : []
}

/** @param {string} tag @param {string} className */
function make(tag, className) {
  const element = document.createElement(tag)
  element.className = className
  return element
}
