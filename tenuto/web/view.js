/**
 * The view: the state that a viewer of one channel shows, folded from batches of events.
 *
 * Pure: no I/O, no clock, no randomness. It follows the client rules of the wire (`docs/protocol.md` 3.4, rules 1 to 7, cited
 * below by number) and passes `tests/vectors/view.json`, as the Python view does. The internal representation may
 * change freely; the form of a snapshot is public. Ids come from other people, so they are keys of Maps only, and
 * objects are copied by spread, which has no setters (`__proto__`).
 * @module
 */

import { countPoints, dropPoints } from "./client/text.js"

export { countPoints }

/**
 * @template [Data=unknown] of data parts
 * @typedef {{ type: string, text?: string, joins?: readonly number[], input?: unknown, data?: Data, [field: string]: unknown }} Part
 *   `joins`: offsets in code points at which the text broke off, and was continued
 */
/**
 * @template {object} [Meta=Record<string, unknown>] a message may lack fields of it: other clients write messages too
 * @template [Data=unknown]
 * @typedef {{ readonly id: string, readonly role: string, readonly author?: string, readonly status: string,
 *   readonly reason?: string, readonly parts?: readonly Part<Data>[], readonly meta?: Readonly<Partial<Meta>>,
 *   readonly parent?: string | null, readonly reply_to?: string, readonly created: number, readonly version: number,
 *   readonly created_at: number, readonly updated_at: number }} Message
 */
/** @typedef {{ id: string, kind: string, data?: Record<string, unknown>, connections: number }} Member */
/**
 * @template [Data=unknown]
 * @typedef {{ id: string, name: string, target?: string, data?: Data, from?: string, expires_at: number }} Command
 */
/**
 * @template [Data=unknown]
 * @typedef {Command<Data> & { reply: Reply }} Replied
 */
/** @typedef {{ members: readonly Member[], count: number }} Presence a new start lists at most 100 members */
/**
 * @template [Data=unknown]
 * @typedef {{ type: "signal", name: string, data?: Data, from?: string }} Signal
 */
/**
 * @typedef {{ type: "channel.attached", channel: string, epoch: string, serial: number, resumed: boolean,
 *   more?: boolean, before?: number, presence?: Presence, commands?: Command[] }} Attached
 * @typedef {{ type: "message.append", serial: number, id: string, part: number, at: number, text: string }} Append
 * @typedef {{ type: "message.part", serial: number, id: string, index: number, updated_at: number, part: Part }} SetPart
 * @typedef {{ type: "message.finish", serial: number, id: string, status: string, reason?: string,
 *   meta?: Record<string, unknown>, updated_at: number }} Finish
 * @typedef {{ type: "command.reply", serial: number, id: string, ok: boolean, data?: unknown, error?: unknown,
 *   from?: string }} Reply
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {Attached | Append | SetPart | Finish | Signal<Data> | Reply
 *   | { type: "message.create" | "message.update", serial: number, message: Message<Meta, Data> }
 *   | { type: "message.takeover", serial: number, id: string }
 *   | { type: "message.delete", serial: number, id: string }
 *   | { type: "command", serial: number, command: Command<Data> }
 *   | { type: "presence.enter" | "presence.update", member: Member }
 *   | { type: "presence.leave", id: string }
 *   | { type: "presence.sync", members: Member[], count?: number }} WireEvent
 */
/** @typedef {{ cursor?: string | null, events: WireEvent[] }} Batch one frame; `cursor` is set only in the last frame of a batch */
/** @typedef {{ messages: Message[], more: boolean, cursor?: string }} Page */
/**
 * @template [Data=unknown]
 * @typedef {{ readonly messages: readonly Message[], readonly more: boolean, readonly presence: Presence,
 *   readonly commands: readonly Command<Data>[], readonly replied: readonly Replied<Data>[] }} Snapshot
 *   `more`: whether older messages exist; `commands`: the pending ones; `replied`: the last ones that got a reply
 */

// Serials of objects that are not in view. They matter only while a history page is on its way or a batch is repeated,
// so the oldest may be dropped; without a bound a page that is open for weeks would grow without end.
const REMEMBERED = 10_000
const REPLIED = 20 // number of commands that are shown with their reply

export class View {
  /** @type {string | null} cursor of the last complete batch (rule 5); null: the next attach is a new start */
  cursor = null
  /** The number of new starts. A page that was requested before a new start must not be merged after it. */
  starts = 0

  /** @internal Whether the latest frame of stored events ended its batch: only then the state is that of the cursor. Ephemeral events move no cursor. */
  isWhole = false
  /** @internal True: the view comes from the cache of an earlier page, and the server has not completed it yet. */
  isFromCache = false

  #fold = new Fold()
  /** @type {WireEvent[] | null} a new start that is not complete yet (protocol 3.4, rule 6) */
  #aside = null
  #isLost = true // True: events are ignored until a new start

  /**
   * Apply one frame. `isGap`: an event was lost; the view drops its cursor and ignores all events until a new start, so
   * attach anew after a back-off (rule 2). `passed`: signals and new replies, for the listeners.
   * @param {Batch} batch @returns {{ isGap: boolean, passed: (Signal | Reply)[] }}
   */
  apply({ cursor, events }) {
    /** @type {(Signal | Reply)[]} */
    const passed = []
    let isGap = false
    for (const event of events) {
      if (event.type === "channel.attached") {
        this.#aside = event.resumed ? null : [] // drop an incomplete new start
        // The cursor of an empty channel (`-:0`) resumes in any log: an incomplete batch may have shown part of another log.
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
        this.starts++
      }
    }
    this.isWhole = cursor != null || (this.isWhole && !events.some((event) => "serial" in event))
    if (this.#isLost) this.cursor = null
    else if (cursor != null) this.cursor = cursor
    return { isGap, passed }
  }

  /** The connection has ended: the server sends an incomplete batch again from the cursor. */
  disconnect() {
    this.#aside = null
  }

  /** Return whether the view has a message, or knows that it was deleted. @param {string} id */
  knows(id) {
    return this.#fold.entries.has(id) || this.#fold.deleted.has(id)
  }

  /** The `before` of the request for the next older page (rule 3). */
  get before() {
    return this.#fold.before
  }

  get more() {
    return this.#fold.more
  }

  /**
   * Merge a page that was requested with `before`. Return false if a message of the page is older than the view's
   * knowledge of it (rule 4): request the page again with the same `before`.
   * @param {Page} page
   */
  merge(page) {
    return this.#fold.merge(page)
  }

  /** Return the state to show, with the same objects for unchanged values. @returns {Snapshot} */
  getSnapshot() {
    return this.#fold.getSnapshot()
  }
}

/** The state that a new start replaces (rule 6). */
class Fold {
  before = 0
  more = false
  /** @type {Map<string, Entry>} */
  entries = new Map()
  /** @type {Map<string, number>} id → last serial of a message that is not in view */
  #unseen = new Map()
  /** @type {Map<string, number>} id → serial of its end */
  deleted = new Map()
  /** @type {Map<string, Member>} */
  #members = new Map()
  #count = 0 // number of all members, including those that are not listed
  /** @type {Map<string, Command>} */
  #pending = new Map()
  /** @type {Map<string, Command | null>} id → the command; null after its reply, so the hub's limits bound the others: they wait, or ended while the page was away */
  #commands = new Map()
  /** @type {readonly Replied[]} */
  #replied = []
  /** @type {Entry[] | null} in order; null when a message was added or removed */
  #order = null
  /** @type {{ messages?: readonly Message[], presence?: Presence, commands?: readonly Command[], all?: Snapshot }} */
  #shown = {}

  /**
   * Apply an event. Return false if an event before it was lost.
   * @param {WireEvent} event @param {(Signal | Reply)[]} passed gets the events that no snapshot keeps
   */
  take(event, passed) {
    switch (event.type) {
      case "channel.attached":
        this.#attach(event)
        break
      case "message.create":
      case "message.update":
        this.#put(event.message, event.serial)
        break
      case "message.append":
      case "message.part":
      case "message.finish":
      case "message.takeover": {
        const entry = this.entries.get(event.id)
        if (!entry) return this.#rememberSerial(event.id, event.serial)
        this.#changed("messages")
        return entry.take(event)
      }
      case "message.delete":
        this.#delete(event.id, event.serial)
        break
      case "command":
        if (!this.#commands.has(event.command.id)) this.#open(event.command) // rule 7
        break
      case "command.reply": {
        const command = this.#commands.get(event.id) // the pending ones lack it if the reply came before a resume
        if (command === null) break // rule 7
        remember(this.#commands, event.id, null)
        if (command) this.#replied = [...this.#replied, { ...command, reply: event }].slice(-REPLIED)
        this.#pending.delete(event.id)
        this.#changed("commands")
        passed.push(event)
        break
      }
      case "presence.enter":
        if (!this.#members.has(event.member.id)) this.#count++
        this.#setMember(event.member)
        break
      case "presence.update":
        this.#setMember(event.member)
        break
      case "presence.leave":
        this.#members.delete(event.id)
        this.#count = Math.max(this.#count - 1, this.#members.size)
        this.#changed("presence")
        break
      case "presence.sync":
        this.#sync(event)
        break
      case "signal":
        passed.push(event)
    }
    return true
  }

  /** @param {Attached} attached */
  #attach({ resumed, before = 0, more = false, presence = { members: [], count: 0 }, commands = [] }) {
    if (!resumed) {
      this.before = before
      this.more = more
    }
    this.#sync(presence)
    this.#pending = new Map() // commands that are not listed are over
    for (const command of commands) this.#open(command)
    this.#changed("commands")
  }

  forget() {
    for (const known of [this.entries, this.#unseen, this.deleted, this.#commands]) known.clear()
    this.#reorder()
  }

  /** @param {Message} message @param {number} serial */
  #put(message, serial) {
    const { id, created, status } = message
    const known = this.entries.get(id)
    if (known ? serial <= known.version : this.#isStale(id, serial)) return // rule 1
    if (!known && created < this.before && status !== "streaming") this.#rememberSerial(id, serial) // rule 3
    else this.#show(message, serial)
  }

  /** @param {Message} message @param {number} serial */
  #show(message, serial) {
    this.entries.set(message.id, new Entry(message, serial))
    this.#reorder()
  }

  /** @param {string} id @param {number} serial */
  #delete(id, serial) {
    if (serial <= (this.entries.get(id)?.version ?? 0)) return
    remember(this.deleted, id, serial)
    this.entries.delete(id)
    this.#reorder()
  }

  /** Rule 4: remember the serial of a message outside the view, to refuse older states of it. @param {string} id @param {number} serial */
  #rememberSerial(id, serial) {
    remember(this.#unseen, id, Math.max(serial, this.#unseen.get(id) ?? 0))
    return true
  }

  /** Return whether this is an old state of a message outside the view. @param {string} id @param {number} serial */
  #isStale(id, serial) {
    return serial < (this.#unseen.get(id) ?? 0) || serial <= (this.deleted.get(id) ?? 0)
  }

  /** @param {Page} page */
  merge({ messages, more }) {
    let isCurrent = true
    for (const message of messages) {
      const { id, version } = message
      // the view already knows a newer state than the page has
      if (this.entries.has(id) || this.deleted.has(id)) continue
      if (this.#isStale(id, version)) isCurrent = false
      else this.#show(message, version)
    }
    if (isCurrent) {
      this.before = Math.min(this.before, ...messages.map(({ created }) => created))
      this.more = more
      this.#shown.all = undefined
    }
    return isCurrent
  }

  /** @param {Command} command */
  #open(command) {
    if (this.#commands.get(command.id) === null) return // the command already has a reply
    remember(this.#commands, command.id, command)
    this.#pending.set(command.id, command)
    this.#changed("commands")
  }

  /** @param {Member} member */
  #setMember(member) {
    this.#members.set(member.id, member)
    this.#changed("presence")
  }

  /** @param {{ members: readonly Member[], count?: number }} presence */
  #sync({ members, count = members.length }) {
    this.#members = new Map(members.map((member) => [member.id, member]))
    this.#count = count
    this.#changed("presence")
  }

  /** @param {"messages" | "presence" | "commands"} field */
  #changed(field) {
    this.#shown[field] = this.#shown.all = undefined
  }

  /** A message was added or removed. */
  #reorder() {
    this.#order = null
    this.#changed("messages")
  }

  /** @returns {Snapshot} */
  getSnapshot() {
    const shown = this.#shown
    return (shown.all ??= {
      messages: (shown.messages ??= this.#getMessages()),
      more: this.more,
      presence: (shown.presence ??= { members: [...this.#members.values()], count: this.#count }),
      commands: (shown.commands ??= [...this.#pending.values()]),
      replied: this.#replied,
    })
  }

  /** An unchanged message costs one call. */
  #getMessages() {
    this.#order ??= [...this.entries.values()].sort((a, b) => a.head.created - b.head.created)
    return this.#order.map((entry) => entry.getMessage())
  }
}

/** One message in view. */
class Entry {
  #whole // serial of the last create or update; used for parts that do not exist yet (rule 1)
  /** @type {Message | null} the shown value; null when it must be rebuilt */
  #shown

  /** @param {Message} message @param {number} serial */
  constructor(message, serial) {
    this.head = message // all fields but the parts
    this.version = serial
    this.#whole = serial
    this.pieces = (message.parts ?? []).map((part) => new Piece(part, serial))
    this.#shown = message
  }

  /**
   * Apply an event. Return false if an event before it was lost.
   * @param {Append | SetPart | Finish | { type: "message.takeover", serial: number }} event
   */
  take(event) {
    const { serial, type } = event
    if (type === "message.append") {
      const piece = this.pieces[event.part]
      if (serial <= (piece?.serial ?? this.#whole)) return true // rule 1
      if (!piece?.append(event)) return false
    } else if (type === "message.part") {
      const { index, part, updated_at } = event
      if (serial <= (this.pieces[index]?.serial ?? this.#whole)) return true // rule 1
      if (index > this.pieces.length) return false // an earlier part is missing, because parts open in order
      this.pieces[index] = new Piece(part, serial)
      this.head = { ...this.head, updated_at }
    } else {
      if (serial <= this.version) return true // rule 1
      const { reason: _, meta: kept, ...rest } = this.head
      // A finish carries the whole result, so an omitted reason or meta is removed.
      const end = type === "message.finish" ? event : { status: "streaming", meta: kept, updated_at: rest.updated_at }
      const { status, reason, meta, updated_at } = /** @type {Finish} */ (end)
      this.head = { ...rest, status, updated_at, ...(reason != null && { reason }), ...(meta && { meta }) }
    }
    this.version = Math.max(this.version, serial)
    this.#shown = null
    return true
  }

  /** @returns {Message} */
  getMessage() {
    const { head, version, pieces } = this
    return (this.#shown ??= { ...head, version, ...(pieces.length && { parts: pieces.map((piece) => piece.getPart()) }) })
  }
}

/** One part of a message in view. An append counts only its own text, never the text before it. */
class Piece {
  #part
  #field
  #text
  #points

  /** @param {Part} part @param {number} serial of its last change */
  constructor(part, serial) {
    this.#part = part
    this.serial = serial
    this.#field = part.type === "tool" ? "input" : "text" // text that is appended to a tool part is its input
    const text = part[this.#field] ?? ""
    const isText = typeof text === "string" && ["text", "reasoning", "tool"].includes(part.type)
    this.#text = isText ? text : ""
    this.#points = isText ? countPoints(text) : Infinity // a part without text has no gaps
  }

  /** Apply rule 2. Return false if text before this is missing. @param {Append} event */
  append({ serial, at, text }) {
    if (at > this.#points) return false
    const known = this.#points - at // code points of the new text that the part already has
    const points = countPoints(text)
    if (points > known) {
      this.#text += dropPoints(text, known) // JavaScript engines join lazily, so this does not copy the existing text
      this.#points = at + points
    }
    this.serial = serial
    return true
  }

  /** @returns {Part} */
  getPart() {
    if (this.#points < Infinity && (this.#part[this.#field] ?? "") !== this.#text) this.#part = { ...this.#part, [this.#field]: this.#text }
    return this.#part
  }
}

/** @internal Set an entry, and drop the oldest beyond `limit`. @template T @param {Map<string, T>} map @param {string} id @param {T} value */
export function remember(map, id, value, limit = REMEMBERED) {
  map.delete(id)
  map.set(id, value)
  if (map.size > limit) map.delete(map.keys().next().value ?? "")
}
