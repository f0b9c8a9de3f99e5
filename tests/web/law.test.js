/**
 * Law 5: every viewer that follows the client rules ends with the server's state, even if frames are lost, delayed,
 * repeated or joined, and at every moment shows a prefix of each part.
 *
 * The server here is a small model: the messages of a log, and the events that a cursor has missed, joined by the rules
 * of `docs/protocol.md` 3.3 or entry by entry. A failure prints its seed; `SEED=n` runs that one alone.
 */
import assert from "node:assert/strict"
import { test } from "node:test"

import { View } from "../../tenuto/web/view.js"
import { randomOf } from "./random.js"

const SEEDS = process.env.SEED ? [Number(process.env.SEED)] : Array.from({ length: 200 }, (_, seed) => seed)
const STEPS = 250
const PIECES = ["a", "bc", " ", "😀", "👍🏽", "e\u0301", "漢字", "\r\n", "👨‍👩‍👧", "x".repeat(30)]

const length = (text) => [...text].length
const from = (text, point) => [...text].slice(point).join("")

/** One channel of the server. Keeps every entry as an event, and the present state of every message. */
class Server {
  epoch = 1
  everWas = new Map() // "id part" → every text that the part had at some time, the newest last between replacements

  constructor(random) {
    this.random = random
    this.begin()
  }

  begin() {
    this.serial = 0
    this.entries = []
    this.messages = new Map()
  }

  get cursor() {
    return `${this.epoch}:${this.serial}`
  }

  /** Perform a random action. */
  act() {
    const { random } = this
    if (random.chance(0.004)) {
      this.epoch++
      return this.begin()
    }
    const present = [...this.messages.values()].filter(({ deleted }) => !deleted)
    const streaming = present.filter(({ status }) => status === "streaming")
    const ended = present.filter(({ status }) => status !== "streaming")
    if (streaming.length && random.chance(0.7)) this.write(random.of(streaming))
    else if (streaming.length && random.chance(0.25)) this.finish(random.of(streaming))
    else if (ended.length && random.chance(0.15)) this.takeover(random.of(ended))
    else if (present.length && random.chance(0.15)) this.update(random.of(present))
    else if (present.length && random.chance(0.1)) this.delete(random.of(present))
    else this.create()
  }

  create() {
    const serial = this.next()
    const parts = Array.from({ length: this.random.upTo(3) }, () => this.newPart(serial, "s"))
    const id = this.random.chance(0.05) ? `__proto__${serial}` : `m${serial}`
    const status = this.random.chance(0.6) ? "streaming" : "complete"
    const message = { id, created: serial, version: serial, status, parts, edited: 0, ends: [], at: serial, meta: null }
    this.messages.set(id, message)
    this.note(message)
    this.log({ type: "message.create", serial, message: this.render(message) })
  }

  write(message) {
    const serial = this.next(message)
    const index = this.random.upTo(message.parts.length + 1)
    const part = message.parts[index]
    if (!part || this.random.chance(0.1)) {
      const opened = this.newPart(serial, this.random.chance(0.5) ? "" : "p")
      if (part) Object.assign(opened, { opened: part.opened, opening: part.opening })
      message.parts[index] = opened
      message.at = serial
      this.note(message)
      return this.log(this.partEvent(message, index, serial, opened.value))
    }
    const text = this.random.of(PIECES)
    const at = length(part.text)
    part.text += text
    part.marks.push({ serial, length: at + length(text) })
    this.note(message)
    this.log({ type: "message.append", serial, id: message.id, part: index, at, text })
  }

  finish(message) {
    const serial = this.next(message)
    const status = this.random.of(["complete", "failed", "interrupted", "cancelled"])
    const reason = this.random.chance(0.3) ? "why" : null
    Object.assign(message, { status, reason, at: serial, meta: this.random.chance(0.5) ? { n: serial } : null })
    message.finished = serial
    message.ends.push(serial)
    this.log(this.finishEvent(message))
  }

  takeover(message) {
    const serial = this.next(message)
    Object.assign(message, { status: "streaming", reason: null, takenOver: serial })
    message.ends.push(serial)
    this.log({ type: "message.takeover", serial, id: message.id })
  }

  update(message) {
    const serial = this.next(message)
    Object.assign(message, { edited: serial, at: serial, meta: { n: serial } })
    if (this.random.chance(0.5)) message.parts = [this.newPart(serial, "edited"), this.newPart(serial, "")]
    this.note(message)
    this.log({ type: "message.update", serial, message: this.render(message) })
  }

  delete(message) {
    const serial = this.next(message)
    message.deleted = true
    this.log({ type: "message.delete", serial, id: message.id })
  }

  next(message) {
    this.serial++
    if (message) message.version = this.serial
    return this.serial
  }

  log(event) {
    this.entries.push(structuredClone(event))
  }

  newPart(serial, text) {
    const value = { type: this.random.of(["text", "reasoning"]), text }
    return { value, text, opened: serial, opening: value, changed: serial, marks: [{ serial, length: length(text) }] }
  }

  note({ id, parts }) {
    parts.forEach(({ text }, index) => {
      const key = `${id} ${index}`
      const lives = this.everWas.get(key) ?? []
      if (lives.length && text.startsWith(lives.at(-1))) lives.pop()
      this.everWas.set(key, [...lives, text])
    })
  }

  wasEver(id, index, text) {
    return (this.everWas.get(`${id} ${index}`) ?? []).some((past) => past.startsWith(text))
  }

  render({ id, status, reason, meta, parts, created, version, at }) {
    return {
      id, role: "assistant", status, ...(reason && { reason }), ...(meta && { meta }),
      ...(parts.length && { parts: parts.map(({ value, text }) => ({ ...value, text })) }),
      created, version, created_at: created, updated_at: at,
    }
  }

  finishEvent({ id, status, reason, meta, at, finished }) {
    return { type: "message.finish", serial: finished, id, status, ...(reason && { reason }), ...(meta && { meta }), updated_at: at }
  }

  partEvent({ id }, index, serial, value) {
    return { type: "message.part", serial, id, index, updated_at: serial, part: { ...value } }
  }

  attached(resumed, more) {
    const { epoch, serial } = this
    return { type: "channel.attached", channel: "c", epoch: String(epoch), serial, resumed, ...more }
  }

  /** Return the first batch of a viewer that attaches with `cursor`. */
  attach(cursor) {
    const [epoch, since] = (cursor ?? "0:0").split(":").map(Number)
    if (epoch === this.epoch && this.random.chance(0.9)) return [this.attached(true), ...this.catchUp(since)]
    const present = [...this.messages.values()].filter(({ deleted }) => !deleted).sort((a, b) => b.created - a.created)
    const page = present.slice(0, this.random.upTo(6))
    const shown = present.filter((message) => page.includes(message) || message.status === "streaming")
    const before = page.at(-1)?.created ?? this.serial + 1
    const updates = shown.map((message) => ({ type: "message.update", serial: message.version, message: this.render(message) }))
    return [this.attached(false, { before, more: page.length < present.length }), ...updates.sort(bySerial)]
  }

  /** Return all events after `since`: joined, or entry by entry. */
  catchUp(since) {
    const events = this.random.chance(0.3) ? this.entries.slice(since) : this.joined(since)
    return structuredClone(events)
  }

  joined(since) {
    const changed = [...this.messages.values()].filter(({ version }) => version > since)
    return changed.flatMap((message) => this.joinedOf(message, since)).sort(bySerial)
  }

  joinedOf(message, since) {
    const { id, created, version, deleted, edited, finished = 0, takenOver = 0 } = message
    // Also if it was created since: the viewer may have seen that before a disconnect, or on a page of history.
    if (deleted) return [{ type: "message.delete", serial: version, id }]
    if (created > since) return [{ type: "message.create", serial: version, message: this.render(message) }]
    if (edited > since) return [{ type: "message.update", serial: version, message: this.render(message) }]
    const events = message.parts.flatMap((part, index) => this.partsAndAppends(message, part, index, since))
    if (finished > since && takenOver > finished) {
      // A takeover has undone its end: the model keeps only the last end, so the message is sent whole.
      return [{ type: "message.update", serial: version, message: this.render(message) }]
    }
    if (takenOver > since) events.push({ type: "message.takeover", serial: takenOver, id })
    if (finished > since) events.push(this.finishEvent(message))
    return events
  }

  partsAndAppends(message, part, index, since) {
    const events = []
    if (part.opened > since && part.changed > part.opened) {
      events.push(this.partEvent(message, index, part.opened, part.opening))
    }
    if (part.changed > since) events.push(this.partEvent(message, index, part.changed, part.value))
    // Sometimes from an earlier mark: viewers drop the overlap.
    const mark = this.random.chance(0.3) ? this.random.upTo(since + 1) : since
    let at = lengthAt(part, Math.max(part.changed, mark))
    let sent = Math.max(since, part.changed)
    for (const until of [...message.ends.map((end) => end - 1), Infinity]) {
      const marks = part.marks.filter(({ serial }) => serial > sent && serial <= until)
      if (!marks.length) continue
      const { serial, length: end } = marks.at(-1)
      events.push({ type: "message.append", serial, id: message.id, part: index, at, text: [...part.text].slice(at, end).join("") })
      at = end
      sent = serial
    }
    return events
  }

  page(before, limit) {
    const older = [...this.messages.values()].filter(({ deleted, created }) => !deleted && created < before)
    older.sort((a, b) => b.created - a.created)
    const messages = older.slice(0, limit).map((message) => structuredClone(this.render(message)))
    return { messages, more: older.length > limit, cursor: this.cursor }
  }
}

const bySerial = (a, b) => a.serial - b.serial
const lengthAt = ({ marks }, serial) => marks.findLast((mark) => mark.serial <= serial)?.length ?? 0

/** A viewer on a bad network. */
class Viewer {
  view = new View()
  frames = [] // frames that are on their way
  taken = null // the cursor up to which the server has sent
  pages = []

  constructor(server, random) {
    this.server = server
    this.random = random
    this.attach()
  }

  attach() {
    this.frames = []
    this.view.disconnect()
    this.send(this.server.attach(this.view.cursor))
  }

  /** The server sends the missed events now. */
  take() {
    const [epoch, since] = this.taken.split(":").map(Number)
    if (epoch !== this.server.epoch) this.send(this.server.attach(null))
    else if (since < this.server.serial) this.send(this.server.catchUp(since))
  }

  send(events) {
    this.taken = this.server.cursor
    while (events.length > 1 && this.random.chance(0.4)) this.frames.push({ events: events.splice(0, 1 + this.random.upTo(events.length - 1)) })
    this.frames.push({ cursor: this.taken, events })
  }

  receive() {
    const frame = this.frames.shift()
    if (!frame) return
    const repeats = this.random.chance(0.05) && frame.events[0]?.type !== "channel.attached" ? 2 : 1
    for (let time = 0; time < repeats; time++) assert.equal(this.view.apply(frame).isGap, false, "a gap")
  }

  askPage() {
    const { starts, more, before } = this.view
    if (more) this.pages.push({ starts, before, page: this.server.page(before, 1 + this.random.upTo(4)) })
  }

  receivePage() {
    const request = this.pages.shift()
    if (request?.starts === this.view.starts && request.before === this.view.before) this.view.merge(request.page)
  }

  act() {
    const { random } = this
    if (random.chance(0.06)) this.attach()
    else if (random.chance(0.1)) this.askPage()
    else if (random.chance(0.1)) this.receivePage()
    else if (random.chance(0.4)) this.take()
    else this.receive()
    this.checkPrefixes()
  }

  checkPrefixes() {
    for (const { id, parts } of this.view.getSnapshot().messages) {
      parts?.forEach(({ text }, index) => assert.ok(this.server.wasEver(id, index, text), `${id} part ${index}: ${text}`))
    }
  }

  /** Deliver every frame and merge every page. */
  settle() {
    this.take()
    while (this.frames.length) this.receive()
    for (let pages = 0; this.view.more; pages++) {
      assert.ok(pages < 10_000)
      this.view.merge(this.server.page(this.view.before, 5))
    }
  }
}

test("law 5: every view is a prefix of the truth and ends equal to it", () => {
  let shown = 0
  for (const seed of SEEDS) {
    try {
      const random = randomOf(seed)
      const server = new Server(random)
      const viewers = Array.from({ length: 3 }, () => new Viewer(server, random))
      for (let step = 0; step < STEPS; step++) {
        if (random.chance(0.5)) server.act()
        random.of(viewers).act()
      }
      const truth = server.page(Infinity, Infinity).messages.reverse()
      for (const viewer of viewers) {
        viewer.settle()
        assert.deepEqual(viewer.view.getSnapshot().messages, truth)
        assert.equal(viewer.view.cursor, server.cursor)
        shown += truth.length
      }
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`
      throw error
    }
  }
  assert.ok(shown > SEEDS.length) // the views have shown messages
})
