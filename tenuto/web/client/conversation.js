/**
 * The conversation: all messages of a channel, and those of the selected path.
 *
 * Each message has a `parent`, the message that it follows. Several questions with one parent are edits of one question;
 * several answers with one parent are attempts at one answer. One alternative of each group is shown, with the messages
 * that follow it: the selected one, or the one where the conversation went on last. A message whose parent is unknown
 * (deleted, or too old to be in view) is shown. Ids come from other people, so they are keys of Maps and Sets only.
 *
 * Pure: no I/O and no clock. The path is found anew only when a message is added, removed or ended.
 * @module
 */

import { shownMessage } from "./snapshot.js"

/** @typedef {import("./snapshot.js").Message<any, any>} Message */

export class Conversation {
  /** All messages in order, the unsent ones at the end. @type {readonly Message[]} */
  all = []
  /** The messages of the selected path. @type {readonly Message[]} */
  messages = []
  /** @type {readonly import("../view.js").Message[]} */
  #stored = []
  /** @type {Map<string, string>} group → id of the selected alternative */
  #selected = new Map()
  /** @type {Map<string, number[]>} group → the positions of its alternatives */
  #groups = new Map()
  /** @type {Map<unknown, number>} id → position in `all` */
  #positions = new Map()
  /** @type {Set<unknown>} ids of the messages that are not shown */
  #hidden = new Set()
  #isStale = false // True: the selection has changed since the path was computed

  /** @param {readonly import("../view.js").Message[]} stored in order @param {readonly Message[]} unsent */
  update(stored, unsent) {
    const { all } = this
    const now = [...stored.map(shownMessage), ...unsent]
    this.#stored = stored
    this.all = isSameList(now, all) ? all : now
    const isAlike = now.length === all.length && now.every(({ id, status }, n) => id === all[n].id && status === all[n].status)
    if (this.#isStale || !isAlike) this.#divide()
    this.#isStale = false
    const shown = this.#hidden.size ? this.all.filter(({ id }) => !this.#hidden.has(id)) : this.all
    if (!isSameList(shown, this.messages)) this.messages = shown
  }

  /** @param {string | null | undefined} id */
  get(id) {
    return /** @type {Message | undefined} */ (this.all[this.#positions.get(id) ?? -1])
  }

  /** Return the alternatives of a message in order, itself among them. @param {string} id @returns {readonly Message[]} */
  branches(id) {
    const message = this.get(id)
    return message ? this.#groups.get(groupOf(message))?.map((position) => this.all[position]) ?? [message] : []
  }

  /** Show a message and all messages that lead to it. @param {string} id */
  select(id) {
    this.#isStale = true
    let created = Infinity
    for (let at = this.get(id); at && at.created <= created; at = this.get(at.parent)) {
      if (this.branches(at.id).length > 1) this.#selected.set(groupOf(at), at.id)
      // ignore a parent that is newer than its message, because ids from outside may form a circle
      created = at.created - 1
    }
  }

  /** Show the newest alternative again. @param {string} role @param {string | null} [parent] of the alternatives */
  follow(role, parent) {
    this.#isStale = true
    this.#selected.delete(nameOf(role, parent))
  }

  /** The parent of the next message; undefined if it follows the newest message of all, as the server assumes. */
  get end() {
    if (!this.#hidden.has(this.#stored.at(-1)?.id)) return undefined
    const asked = this.messages.findLast(({ role }) => role === "user")?.id
    // a late answer to an earlier question is not the end
    return this.messages.findLast(({ id, reply_to }) => !reply_to || id === asked || reply_to === asked)?.id
  }

  /** The message to stop: the newest answer that is being written, or the newest question. */
  get running() {
    const { messages } = this
    return messages.findLast(({ status }) => status === "streaming") ?? messages.findLast(({ role, local }) => role === "user" && !local)
  }

  /** Find the alternatives and the path. */
  #divide() {
    const { all } = this
    this.#positions = new Map(all.map(({ id }, position) => [id, position]))
    this.#groups = new Map()
    this.#hidden = new Set()
    all.forEach((message, position) => {
      const group = groupOf(message)
      const alternatives = this.#groups.get(group) ?? []
      alternatives.push(position)
      if (group) this.#groups.set(group, alternatives)
    })
    const split = [...this.#groups].filter(([, { length }]) => length > 1)
    if (!split.length) return
    const ages = agesOf(all)
    // Messages after an interrupted answer neither select it nor are hidden with it: the next attempt takes its place.
    const age = (/** @type {Message} */ { id, status, created }) => (status === "interrupted" ? created : ages.get(id) ?? created)
    /** @type {Set<Message>} */
    const unselected = new Set()
    for (const [group, positions] of split) {
      const alternatives = positions.map((position) => all[position])
      const newest = alternatives.reduce((best, one) => (age(one) < age(best) ? best : one))
      const shown = alternatives.find(({ id }) => id === this.#selected.get(group)) ?? newest
      for (const one of alternatives) if (one !== shown) unselected.add(one)
    }
    /** @type {Set<unknown>} ids of the messages whose followers are hidden */
    const ends = new Set()
    for (const message of all) {
      const { id, parent, status } = message
      const isOff = ends.has(parent)
      const isHidden = isOff || unselected.has(message)
      if (isHidden) this.#hidden.add(id)
      if (isOff || (isHidden && status !== "interrupted")) ends.add(id)
    }
  }
}

/** @param {readonly unknown[]} one @param {readonly unknown[]} other */
function isSameList(one, other) {
  return one.length === other.length && one.every((item, index) => item === other[index])
}

/** @param {string} role @param {string | null} [parent] */
const nameOf = (role, parent) => `${role} ${parent ?? ""}`

/** Return the same text for messages that are alternatives of each other; the empty one for a message that has none. @param {Message} message */
function groupOf({ role, parent, reply_to, status, parts, local, created }) {
  // A user message with `reply_to` is a reply, not a question: a message may have many replies, all of them shown.
  // An unsent question without a parent gets one from the server, so until then it has no alternatives.
  const isQuestion = role === "user" && reply_to == null && (parent !== undefined || (created > 0 && !local))
  const isAnswer = role === "assistant" && parent != null && (status !== "failed" || parts.length)
  return isQuestion || isAnswer ? nameOf(role, parent) : ""
}

/** Return for each id the serial of the newest message that follows it, or is it. @param {readonly Message[]} messages in order */
function agesOf(messages) {
  /** @type {Map<unknown, number>} */
  const ages = new Map()
  for (const { id, parent, created } of [...messages].reverse()) {
    const age = Math.max(created, ages.get(id) ?? 0)
    ages.set(id, age)
    ages.set(parent, Math.max(age, ages.get(parent) ?? 0))
  }
  return ages
}
