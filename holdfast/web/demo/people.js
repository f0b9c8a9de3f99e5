/**
 * People: the present people and agents, their activity, and the people who are typing.
 *
 * Members control their own data, so it enters the page as text and is trusted no further. Scripts and tests may rely
 * on `data-member-id`, `data-kind` and `data-state` of the list's items.
 * @module
 */

import { nameOf, workOf } from "./words.js"

/** @typedef {import("../view.js").Member} Member */

const TYPING_MS = 4_000 // shown for this time after the last signal
export const TYPING_AGAIN_MS = 2_000

/** The list of members, kept equal to a view. */
export class People {
  /** @type {Map<string, { element: HTMLElement, name: HTMLElement, work: HTMLElement }>} */
  #rows = new Map()
  /** @type {Map<string, string> | null} people by id with their names, as last shown; null before that */
  #known = null
  /** @type {readonly Member[] | null} */
  #shown = null

  /**
   * @param {HTMLElement} list
   * @param {string} myId
   * @param {(sentence: string) => void} onChange gets a sentence when a person enters or leaves
   */
  constructor(list, myId, onChange) {
    this.list = list
    this.myId = myId
    this.onChange = onChange
  }

  /** @param {readonly Member[]} members */
  show(members) {
    if (members === this.#shown) return
    this.#shown = members
    const ids = new Set(members.map(({ id }) => id))
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue
      row.element.remove()
      this.#rows.delete(id)
    }
    sorted(members, this.myId).forEach((member, index) => this.#showOne(member, index))
    this.#announce(members)
  }

  /** @param {Member} member @param {number} index */
  #showOne(member, index) {
    const { id, kind, data = {}, connections } = member
    const row = this.#rows.get(id) ?? this.#open(id, kind)
    const windows = kind === "user" && connections > 1 ? `in ${connections} windows` : ""
    const work = kind === "agent" ? workOf(data) : windows
    setText(row.name, id === this.myId ? `${nameOf(member)} (you)` : nameOf(member))
    setText(row.work, work)
    row.element.dataset.state = String(kind === "agent" ? (data.state ?? "") : "here")
    const there = this.list.children[index] ?? null
    if (there !== row.element) this.list.insertBefore(row.element, there)
  }

  /** @param {string} id @param {string} kind */
  #open(id, kind) {
    const [element, name, work] = ["li", "span", "span"].map((tag) => document.createElement(tag))
    element.className = "member"
    element.dataset.memberId = id
    element.dataset.kind = kind
    name.className = "name"
    work.className = "work"
    element.append(name, work)
    const row = { element, name, work }
    this.#rows.set(id, row)
    return row
  }

  /** @param {readonly Member[]} members */
  #announce(members) {
    const others = members.filter(({ id, kind }) => kind === "user" && id !== this.myId)
    const now = new Map(others.map((member) => [member.id, nameOf(member)]))
    const before = this.#known ?? now
    this.#known = now
    for (const [id, name] of now) if (!before.has(id)) this.onChange(`${name} is here`)
    for (const [id, name] of before) if (!now.has(id)) this.onChange(`${name} has left`)
  }
}

/** The people who are typing, by their signals, each for a limited time. */
export class Typing {
  /** @type {Map<string, { name: string, timer: ReturnType<typeof setTimeout> }>} */
  #signals = new Map()

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange
  }

  get names() {
    return [...this.#signals.values()].map(({ name }) => name)
  }

  /** @param {string} id @param {string} name */
  add(id, name) {
    clearTimeout(this.#signals.get(id)?.timer)
    this.#signals.set(id, { name, timer: setTimeout(() => this.end(id), TYPING_MS) })
    this.onChange()
  }

  /** Remove a person who stopped typing or whose text arrived. @param {string} id */
  end(id) {
    clearTimeout(this.#signals.get(id)?.timer)
    if (this.#signals.delete(id)) this.onChange()
  }
}

/** Sort members: this person first, then the agents, whose activity changes, then the others in order of arrival. @param {readonly Member[]} members @param {string} myId */
function sorted(members, myId) {
  const rank = (/** @type {Member} */ { id, kind }) => (id === myId ? 0 : kind === "agent" ? 1 : 2)
  return [...members].sort((a, b) => rank(a) - rank(b))
}

/** @param {HTMLElement} element @param {string} text */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}
