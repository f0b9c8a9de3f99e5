/**
 * The view: what a viewer of one channel shows, folded from batches of events.
 *
 * Pure: no I/O, no clock, no randomness. It follows the client rules of the wire (`docs/protocol.md` 3.4, rules 1 to 7, cited
 * below by number) and passes `tests/vectors/view.json`, as the Python view does. How things are kept inside may
 * change freely; the form of a snapshot is public. Ids come from other people, so they are keys of Maps only, and
 * objects are copied by spread, which has no setters (`__proto__`).
 * @module
 */

import { countPoints, dropPoints } from "./text.js"

/** @typedef {{ type: string, text?: string, input?: unknown, [field: string]: unknown }} Part */
/**
 * @typedef {{ readonly id: string, readonly role: string, readonly author?: string, readonly status: string,
 *   readonly reason?: string, readonly parts?: readonly Part[], readonly meta?: Readonly<Record<string, unknown>>,
 *   readonly parent?: string, readonly reply_to?: string, readonly created: number, readonly version: number,
 *   readonly created_at: number, readonly updated_at: number }} Message
 */
/** @typedef {{ id: string, kind: string, data?: Record<string, unknown>, connections: number }} Member */
/** @typedef {{ id: string, name: string, target?: string, data?: unknown, from?: string, expires_at: number }} Command */
/** @typedef {{ members: readonly Member[], count: number }} Presence at most 100 members are told by name at the start */
/**
 * @typedef {{ type: "channel.attached", channel: string, epoch: string, serial: number, resumed: boolean,
 *   more?: boolean, before?: number, presence?: Presence, commands?: Command[] }} Attached
 * @typedef {{ type: "message.append", serial: number, id: string, part: number, at: number, text: string }} Append
 * @typedef {{ type: "message.part", serial: number, id: string, index: number, updated_at: number, part: Part }} SetPart
 * @typedef {{ type: "message.finish", serial: number, id: string, status: string, reason?: string,
 *   meta?: Record<string, unknown>, updated_at: number }} Finish
 * @typedef {{ type: "signal", name: string, data?: unknown, from?: string }} Signal
 * @typedef {{ type: "command.reply", serial: number, id: string, ok: boolean, data?: unknown, error?: unknown,
 *   from?: string }} Reply
 * @typedef {Attached | Append | SetPart | Finish | Signal | Reply
 *   | { type: "message.create" | "message.update", serial: number, message: Message }
 *   | { type: "message.takeover", serial: number, id: string }
 *   | { type: "message.delete", serial: number, id: string }
 *   | { type: "command", serial: number, command: Command }
 *   | { type: "presence.enter" | "presence.update", member: Member }
 *   | { type: "presence.leave", id: string }
 *   | { type: "presence.sync", members: Member[], count?: number }} WireEvent
 */
/** @typedef {{ cursor?: string | null, events: WireEvent[] }} Batch one frame; without a cursor, not the last of its batch */
/** @typedef {{ messages: Message[], more: boolean, cursor?: string }} Page */
/**
 * @typedef {{ readonly messages: readonly Message[], readonly more: boolean, readonly presence: Presence,
 *   readonly commands: readonly Command[] }} Snapshot
 *   `more`: are there older messages; `commands`: those that are pending
 */

/** The events this view knows; others are ignored (rule 7). */
export const EVENT_TYPES = [
  "channel.attached",
  ...["create", "update", "append", "part", "finish", "takeover", "delete"].map((name) => `message.${name}`),
  "command",
  "command.reply",
  ...["enter", "update", "leave", "sync"].map((name) => `presence.${name}`),
  "signal",
]

// What is remembered of things that are not shown. It only matters while a history page is on its way or a batch
// comes twice, so the oldest may go; without a bound a page open for weeks would only ever grow.
const REMEMBERED = 10_000
const NOBODY = { members: [], count: 0 }

export class View {
  /** @type {string | null} of the last complete batch (rule 5); null asks for a new start */
  cursor = null
  /** How many times the view began anew; what was asked in one life must not be merged in the next. */
  life = 0

  #fold = new Fold()
  /** @type {WireEvent[] | null} a new start that is not complete yet (rule 6) */
  #aside = null
  #isLost = true // nothing is believed before the first new start

  /**
   * Apply one frame. `isGap`: something was lost, the cursor is forgotten, and all is ignored until a new start: attach
   * anew, after a back-off (rule 2). `passed`: signals, and replies not known before, for whoever listens.
   * @param {Batch} batch @returns {{ isGap: boolean, passed: (Signal | Reply)[] }}
   */
  apply({ cursor, events }) {
    /** @type {(Signal | Reply)[]} */
    const passed = []
    let isGap = false
    for (const event of events) {
      if (event.type === "channel.attached") {
        this.#aside = event.resumed ? null : [] // a new start that was not complete is over
        // The cursor of an empty channel (`-:0`) resumes in any log: what a cut batch had shown may be of another.
        if (event.resumed && this.cursor?.[0] === "-") this.#fold.forget()
      }
      if (this.#aside) this.#aside.push(event)
      else if (!this.#isLost) this.#isLost = isGap = !this.#fold.take(event, passed)
    }
    if (cursor != null && this.#aside) {
      const fold = new Fold()
      isGap = !this.#aside.every((event) => fold.take(event, passed))
      this.#isLost = isGap
      this.#aside = null
      if (!isGap) {
        this.#fold = fold
        this.life++
      }
    }
    if (this.#isLost) this.cursor = null
    else if (cursor != null) this.cursor = cursor
    return { isGap, passed }
  }

  /** The connection is gone: what it had not completed will come again from the cursor. */
  cut() {
    this.#aside = null
  }

  /** Where the next older page is to be asked from (rule 3). */
  get before() {
    return this.#fold.before
  }

  get more() {
    return this.#fold.more
  }

  /**
   * Take in a page asked from `before`. False: it is older than what the view knows of one of its messages, which is
   * not believed (rule 4), and has to be asked again from the same place.
   * @param {Page} page
   */
  merge(page) {
    return this.#fold.merge(page)
  }

  /** What to show now; the same objects for what did not change. @returns {Snapshot} */
  getSnapshot() {
    return this.#fold.getSnapshot()
  }
}

/** Everything that a new start replaces (rule 6). */
class Fold {
  before = 0
  more = false
  /** @type {Map<string, Entry>} */
  entries = new Map()
  /** @type {Map<string, number>} id → last serial heard of a message that is not in view */
  heard = new Map()
  /** @type {Map<string, number>} id → serial of its end */
  deleted = new Map()
  /** @type {Map<string, Member>} */
  members = new Map()
  count = 0 // of all members, also those not known by name
  /** @type {Map<string, Command>} */
  pending = new Map()
  /** @type {Map<string, boolean>} id → is it answered */
  commands = new Map()
  /** @type {{ messages?: readonly Message[], presence?: Presence, commands?: readonly Command[], all?: Snapshot }} */
  shown = {}

  /**
   * False: something was lost before this event.
   * @param {WireEvent} event @param {(Signal | Reply)[]} passed gets what is not kept
   */
  take(event, passed) {
    switch (event.type) {
      case "channel.attached":
        this.attach(event)
        break
      case "message.create":
      case "message.update":
        this.put(event.message, event.serial)
        break
      case "message.append":
      case "message.part":
      case "message.finish":
      case "message.takeover":
        this.changed("messages")
        return this.entries.get(event.id)?.take(event) ?? this.hear(event.id, event.serial)
      case "message.delete":
        this.delete(event.id, event.serial)
        break
      case "command":
        if (!this.commands.has(event.command.id)) this.open(event.command) // rule 7
        break
      case "command.reply":
        if (this.commands.get(event.id)) break // rule 7
        remember(this.commands, event.id, true)
        this.pending.delete(event.id)
        this.changed("commands")
        passed.push(event)
        break
      case "presence.enter":
        if (!this.members.has(event.member.id)) this.count++
        this.setMember(event.member)
        break
      case "presence.update":
        this.setMember(event.member)
        break
      case "presence.leave":
        this.members.delete(event.id)
        this.count = Math.max(this.count - 1, this.members.size)
        this.changed("presence")
        break
      case "presence.sync":
        this.sync(event)
        break
      case "signal":
        passed.push(event)
    }
    return true
  }

  /** @param {Attached} attached */
  attach({ resumed, before = 0, more = false, presence = NOBODY, commands = [] }) {
    if (!resumed) {
      this.before = before
      this.more = more
    }
    this.sync(presence)
    this.pending = new Map() // those that are not listed are over
    for (const command of commands) this.open(command)
    this.changed("commands")
  }

  forget() {
    for (const known of [this.entries, this.heard, this.deleted, this.commands]) known.clear()
    this.changed("messages")
  }

  /** @param {Message} message @param {number} serial */
  put(message, serial) {
    const { id, created, status } = message
    const known = this.entries.get(id)
    if (known ? serial <= known.version : this.isStale(id, serial)) return // rule 1
    if (!known && created < this.before && status !== "streaming") this.hear(id, serial) // rule 3
    else this.show(message, serial)
  }

  /** @param {Message} message @param {number} serial */
  show(message, serial) {
    this.entries.set(message.id, new Entry(message, serial))
    this.changed("messages")
  }

  /** @param {string} id @param {number} serial */
  delete(id, serial) {
    if (serial <= (this.entries.get(id)?.version ?? 0)) return
    remember(this.deleted, id, serial)
    this.entries.delete(id)
    this.changed("messages")
  }

  /** Rule 4: not shown, but no older state of it is to be believed later. @param {string} id @param {number} serial */
  hear(id, serial) {
    remember(this.heard, id, Math.max(serial, this.heard.get(id) ?? 0))
    return true
  }

  /** Is this an old state of a message that is not in view? @param {string} id @param {number} serial */
  isStale(id, serial) {
    return serial < (this.heard.get(id) ?? 0) || serial <= (this.deleted.get(id) ?? 0)
  }

  /** @param {Page} page */
  merge({ messages, more }) {
    let isBelieved = true
    for (const message of messages) {
      const { id, version } = message
      if (this.entries.has(id) || this.deleted.has(id)) continue // the feed knows better
      if (this.isStale(id, version)) isBelieved = false
      else this.show(message, version)
    }
    if (isBelieved) {
      this.before = Math.min(this.before, ...messages.map(({ created }) => created))
      this.more = more
      this.shown.all = undefined
    }
    return isBelieved
  }

  /** @param {Command} command */
  open(command) {
    if (this.commands.get(command.id)) return // it is answered
    remember(this.commands, command.id, false)
    this.pending.set(command.id, command)
    this.changed("commands")
  }

  /** @param {Member} member */
  setMember(member) {
    this.members.set(member.id, member)
    this.changed("presence")
  }

  /** @param {{ members: readonly Member[], count?: number }} presence */
  sync({ members, count = members.length }) {
    this.members = new Map(members.map((member) => [member.id, member]))
    this.count = count
    this.changed("presence")
  }

  /** @param {"messages" | "presence" | "commands"} what */
  changed(what) {
    this.shown[what] = this.shown.all = undefined
  }

  /** @returns {Snapshot} */
  getSnapshot() {
    const { shown, more, count } = this
    return (shown.all ??= {
      messages: (shown.messages ??= this.getMessages()),
      more,
      presence: (shown.presence ??= { members: [...this.members.values()], count }),
      commands: (shown.commands ??= [...this.pending.values()]),
    })
  }

  getMessages() {
    const messages = [...this.entries.values()].map((entry) => entry.getMessage())
    return messages.sort((a, b) => a.created - b.created)
  }
}

/** One message in view. */
class Entry {
  /** @param {Message} message @param {number} serial */
  constructor(message, serial) {
    this.head = message // what is not a part is kept here
    this.version = serial
    this.whole = serial // of the last create or update: the serial of parts that are not there (rule 1)
    this.pieces = (message.parts ?? []).map((part) => new Piece(part, serial))
    /** @type {Message | null} as shown; null when it has to be made anew */
    this.shown = message
  }

  /**
   * False: something was lost before this event.
   * @param {Append | SetPart | Finish | { type: "message.takeover", serial: number }} event
   */
  take(event) {
    const { serial, type } = event
    if (type === "message.append" || type === "message.part") {
      const index = type === "message.part" ? event.index : event.part
      if (serial <= (this.pieces[index]?.serial ?? this.whole)) return true // rule 1
      if (!(type === "message.part" ? this.setPart(event) : this.pieces[index]?.append(event))) return false
    } else {
      if (serial <= this.version) return true // rule 1
      const { reason, meta, ...rest } = this.head
      // The event carries the whole result, so a reason or meta left out is none.
      if (type === "message.takeover") this.head = { ...rest, status: "streaming", ...(meta && { meta }) }
      else this.head = { ...rest, ...ending(event) }
    }
    this.version = Math.max(this.version, serial)
    this.shown = null
    return true
  }

  /** @param {SetPart} event */
  setPart({ serial, index, part, updated_at }) {
    if (index > this.pieces.length) return false // parts open in order: the ones before it are missing
    this.pieces[index] = new Piece(part, serial)
    this.head = { ...this.head, updated_at }
    return true
  }

  /** @returns {Message} */
  getMessage() {
    const { head, version, pieces } = this
    return (this.shown ??= { ...head, version, ...(pieces.length && { parts: pieces.map((piece) => piece.getPart()) }) })
  }
}

/** One part of a message in view. Appended text is only counted, never the text before it. */
class Piece {
  /** @param {Part} part @param {number} serial of its last change */
  constructor(part, serial) {
    this.part = part
    this.serial = serial
    this.field = part.type === "tool" ? "input" : "text" // appends to a tool part are its input
    const text = part[this.field] ?? ""
    const isText = typeof text === "string" && ["text", "reasoning", "tool"].includes(part.type)
    this.text = isText ? text : ""
    this.points = isText ? countPoints(text) : Infinity // nothing is ever missing in what is no text
  }

  /** Rule 2. False: text before this is missing. @param {Append} event */
  append({ serial, at, text }) {
    if (at > this.points) return false
    const known = this.points - at // so many code points of the text that comes are there already
    const points = countPoints(text)
    if (points > known) {
      this.text += known ? dropPoints(text, known) : text // engines join lazily: this does not copy what stands
      this.points = at + points
    }
    this.serial = serial
    return true
  }

  /** @returns {Part} */
  getPart() {
    if (this.points < Infinity && (this.part[this.field] ?? "") !== this.text) this.part = { ...this.part, [this.field]: this.text }
    return this.part
  }
}

/** @param {Finish} event */
function ending({ status, reason, meta, updated_at }) {
  return { status, updated_at, ...(reason != null && { reason }), ...(meta && { meta }) }
}

/** Set it, and let the oldest go where there are too many. @template T @param {Map<string, T>} map @param {string} id @param {T} value */
export function remember(map, id, value, limit = REMEMBERED) {
  map.delete(id)
  map.set(id, value)
  if (map.size > limit) map.delete(map.keys().next().value ?? "")
}
