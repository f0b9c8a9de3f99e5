/**
 * Journal: the events of this window, one line each. It survives reloads, since it records them.
 * @module
 */

/** @typedef {{ at: string, text: string }} Line */

const KEY = "holdfast-demo.journal"
const LINES = 30

export class Journal {
  /** @type {Line[]} the newest first */
  #lines

  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} status a polite live region: screen readers announce its changes
   * @param {Pick<Storage, "getItem" | "setItem">} storage
   */
  constructor(list, status, storage) {
    this.list = list
    this.status = status
    this.storage = storage
    this.#lines = readLines(storage.getItem(KEY))
    this.list.append(...this.#lines.map(asItem))
  }

  /** Announce a line and add it to the journal. @param {string} text */
  record(text) {
    const line = { at: new Date().toLocaleTimeString([], { hour12: false }), text }
    this.announce(text)
    this.#lines = [line, ...this.#lines].slice(0, LINES)
    this.list.prepend(asItem(line))
    while (this.list.childElementCount > LINES) this.list.lastElementChild?.remove()
    try {
      this.storage.setItem(KEY, JSON.stringify(this.#lines))
    } catch {
      // Storage is full or forbidden: the journal then begins with this page.
    }
  }

  /** Announce a line without recording it. @param {string} text */
  announce(text) {
    this.status.textContent = text
  }
}

/** @param {Line} line */
function asItem({ at, text }) {
  const item = document.createElement("li")
  const time = document.createElement("time")
  const words = document.createElement("span")
  time.textContent = at
  words.textContent = text
  item.append(time, words)
  return item
}

/** @param {string | null} stored @returns {Line[]} */
function readLines(stored) {
  try {
    const found = JSON.parse(stored ?? "[]")
    return Array.isArray(found) ? found.filter((one) => typeof one?.at === "string" && typeof one?.text === "string") : []
  } catch {
    return []
  }
}
