/**
 * A channel of the client: its view and its requests.
 * @module
 */

import { Conversation } from "./conversation.js"
import { TenutoError, callAll, Observable, refusal } from "./errors.js"
import { OwnPresence } from "./presence.js"
import { unsentMessage } from "./snapshot.js"
import { countPoints, SurrogateJoiner } from "./text.js"
import { Typing } from "./typing.js"
import { remember, View } from "../view.js"

/** @typedef {import("../view.js").Batch} Batch */
/** @typedef {import("./connection.js").Connection} Connection */
/** @typedef {import("./requests.js").Fields} Fields */
/** @typedef {import("../client.js").State} State */
/** @typedef {{ id?: string, can: readonly string[] }} You the id of this client, and its capabilities on the channel */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./snapshot.js").Message<Meta, Data>} Message
 */
/**
 * @template {object} [Meta=Record<string, unknown>] of messages
 * @template [Data=unknown] of data parts, commands and signals
 * @typedef {Omit<import("../view.js").Snapshot<Data>, "messages"> & { readonly messages: readonly Message<Meta, Data>[],
 *   readonly all: readonly Message<Meta, Data>[], readonly streaming: readonly Message<Meta, Data>[],
 *   readonly hasOlder: boolean, readonly state: State, readonly error: TenutoError | null, readonly you: You | null,
 *   readonly typing: readonly string[], readonly unread: number, readonly isFromCache: boolean,
 *   readonly status: import("../client.js").Status, readonly lastCatchUp: CatchUp | null }} Snapshot
 *   `messages` are those of the selected path, `all` those of all branches; both end with the messages that are being
 *   sent. `streaming` are those that are being written; `typing` holds the client ids of the people who type
 */
/** @typedef {{ events: number, points: number, ms: number }} CatchUp the first batch of a connection: events about messages, code points of text, and the time from the request to its end */
/**
 * @typedef {object} Stats the input of one channel
 * @property {number} events
 * @property {number} batches number of complete batches
 * @property {number} characters length of the frames (WebSocket, long poll) or event objects (SSE), in UTF-16 units: to count bytes would cost more than to parse a long frame
 * @property {number} reconnects how often it became live again
 * @property {number} gaps how often text was lost; each is a bug
 * @property {CatchUp} catchUp the latest one
 */

const NOTIFY_MS = 20 // delay before an unfinished batch is shown, so that many small frames cost one rendering
const JOINERS = 1_000 // limit of parts that one page writes at the same time
const PAGE_TRIES = 3


/**
 * The types of an app's own data are those that the app declares: neither the client nor the server checks them.
 * @template {object} [Meta=Record<string, unknown>] of messages
 * @template [Data=unknown] of data parts, commands and signals
 */
export class Channel extends Observable {
  /** @internal */
  view = new View()
  /** @type {Stats} */
  stats = { events: 0, batches: 0, characters: 0, reconnects: 0, gaps: 0, catchUp: { events: 0, points: 0, ms: 0 } }
  /** @type {State} becomes `live` when the first batch is complete */
  state = "connecting"
  /** @type {TenutoError | null} the reason why the channel is closed */
  error = null
  /** @type {You | null} this client according to the server */
  you = null
  /** @internal @type {CatchUp | null} what came since the attach, until the first batch is complete */
  arriving = null
  /** @internal True: this page has opened the channel; false: only another tab has. */
  isOwn = false
  /** @type {Set<(event: any) => void>} */
  #listeners = new Set()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #notifyTimer
  /** @type {Promise<boolean> | null} */
  #paging = null
  /** @type {Map<string, SurrogateJoiner>} by message and part */
  #joiners = new Map()
  /** @internal */
  presence = new OwnPresence(this)
  /** @type {Snapshot<Meta, Data> | undefined} */
  #shown
  #conversation = new Conversation()
  #typing = new Typing(this)
  #seen = Infinity // serial of the last message that was shown before the page was hidden

  /** @internal @param {import("../client.js").Client} client @param {string} name @param {number} [limit] */
  constructor(client, name, limit) {
    super()
    /** @internal */ this.client = client
    this.name = name
    /** @internal */ this.limit = limit
  }

  get cursor() {
    return this.view.cursor
  }

  /** Return the state to show: the same object until the subscribers are notified. @type {() => Snapshot<Meta, Data>} */
  getSnapshot = () => (this.#shown ??= this.#snapshot())

  /** Call `listener` with the events that no snapshot keeps, which are signals and replies to commands. @param {(event: import("../view.js").WireEvent<Meta, Data>) => void} listener @returns {() => void} removes it */
  listen(listener) {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Stop watching the channel. @param {TenutoError | null} [error] the reason */
  close(error) {
    if (this.isOwn && error) this.client.warn(error, error.message)
    this.presence.leave()
    this.client.leave(this)
    this.end(error)
  }

  /**
   * Send a person's message. It is in the snapshot at once, with `local.state` `sending`, and in the browser's storage, so
   * that it is sent once, also after a reload. Resolves when the server has stored it. Rejects when the server refuses
   * it: then it stays, with `local.state` `refused` and its error, until `retry` or `discard`.
   * @param {string | (import("./outbox.js").Draft<Meta, Data> & { id?: string })} message @returns {Promise<Message<Meta, Data>>}
   */
  async send(message) {
    const { id = this.client.newId(), ...draft } = fieldsOf(message)
    this.client.check()
    this.getSnapshot() // brings `end` up to date
    this.client.outbox.add(this.name, id, { ...(!draft.reply_to && { parent: this.#conversation.end }), ...draft })
    this.#typing.send(false)
    this.notify()
    return this.client.outbox.deliver(this, id)
  }

  /** Send a refused message again. @param {string} id @returns {Promise<Message<Meta, Data>>} */
  retry(id) {
    this.client.outbox.clear(id)
    this.notify()
    return this.client.outbox.deliver(this, id)
  }

  /** Remove a message that was refused, or that is not sent yet. @param {string} id */
  discard(id) {
    this.client.outbox.remove(id)
    this.notify()
  }

  /**
   * Send another version of a question, as a branch: it has the same parent, and is shown in place of the first version.
   * If that was deleted, the new version stays unsent with the error `deleted`, until `retry` or `discard`.
   * @param {string} id of the question @param {string | (import("./outbox.js").Draft<Meta, Data> & { id?: string })} message @returns {Promise<Message<Meta, Data>>}
   */
  async edit(id, message) {
    this.getSnapshot()
    const { client, name } = this
    const draft = fieldsOf(message)
    const known = this.#conversation.get(id)
    if (!known) {
      const error = refusal("deleted", `message ${id} is deleted or not in view: retry() sends the new text`)
      client.outbox.add(name, client.newId(), draft, { code: error.code, detail: error.message })
      this.notify()
      throw error
    }
    if (known.role !== "user" || known.reply_to) {
      throw refusal("invalid_request", `edit() is for questions, and message ${id} is ${known.reply_to ? "a reply" : `of role ${known.role}`}: use update()`)
    }
    if (known.local) client.outbox.remove(id)
    const parent = known.local ? known.parent : known.parent ?? null
    this.#conversation.follow("user", parent)
    return this.send({ meta: known.meta, parent, ...draft })
  }

  /** Request another answer to a question, as a branch. @param {string} [id] of the question or of its answer; by default the newest question */
  async regenerate(id) {
    const { messages } = this.getSnapshot()
    const known = id === undefined ? messages.findLast(({ role }) => role === "user") : this.#conversation.get(id)
    const target = known?.role === "user" ? known.id : known?.reply_to ?? known?.parent ?? id
    if (!target) throw refusal("not_found", `channel ${this.name} shows no question: send one`)
    const response = await this.command("regenerate", { target })
    this.#conversation.follow("assistant", target)
    this.notify()
    return response
  }

  /** Return the versions of a question, or the attempts at an answer, in order, the given one among them. @param {string} id @returns {readonly Message<Meta, Data>[]} */
  branches(id) {
    this.getSnapshot()
    return this.#conversation.branches(id)
  }

  /** Show a message, the messages that lead to it, and those that follow it. @param {string} id */
  select(id) {
    this.getSnapshot()
    this.#conversation.select(id)
    this.notify()
  }

  /** Stop an answer, also when it has not begun. Resolves also when it is over. @param {string} [target] the answer or its question; by default the newest */
  async cancel(target = this.#running()) {
    return target && this.command("cancel", { target }).catch((error) => {
      if (error.code !== "finished") throw error
    })
  }

  /** Send further input to a running answer. @param {unknown} data text, or data of the app @param {string} [target] the answer or its question; by default the newest */
  async steer(data, target = this.#running()) {
    return this.command("steer", { target, data: /** @type {any} */ (typeof data === "string" ? { text: data } : data) })
  }

  /** Signal to the other clients that this person types; call it for each key. It ends after some seconds, or with a sent message. @param {boolean} [isTyping] */
  typing(isTyping = true) {
    this.#typing.send(isTyping)
  }

  /**
   * Store a message: `{role, text or parts, status, meta, parent, reply_to}`; omitted fields have the defaults of the wire.
   * @param {Fields & { text?: string, parts?: readonly unknown[], status?: string }} fields
   * @returns {Promise<{ message: import("../view.js").Message<Meta, Data>, serial: number, generation: number, cursor: string }>}
   */
  async create({ id = this.client.newId(), text, ...fields }) {
    this.client.check()
    const joiner = new SurrogateJoiner(0)
    const isStreaming = fields.status === "streaming"
    if (text !== undefined) text = joiner.write(text).text + (isStreaming ? "" : joiner.end().text)
    if (isStreaming && !fields.parts) keep(this.#joiners, `${id} `, joiner)
    return this.#request("create", { ...fields, id, text })
  }

  /**
   * Add text to a streaming message: to part `part`, or at the end, behind a part that is no text as a new text part.
   * `at` is the length in code points of the part, without `part` of all text parts together. Without `at` the text
   * follows the previous piece, as long as no piece was refused.
   * @param {string} id @param {string} text @param {number} [at] @param {number} [part]
   * @param {{ generation?: number }} [writer] required if the message was taken over
   * @returns {Promise<{ length: number, serial?: number, part?: number }>} no serial: the text waits for its other half
   */
  async append(id, text, at, part, writer) {
    this.client.check()
    const key = `${id} ${part ?? ""}`
    const joiner = this.#joiners.get(key) ?? keep(this.#joiners, key, new SurrogateJoiner(at ?? NaN))
    if (at !== undefined) joiner.seek(at)
    const piece = joiner.write(text)
    return piece.text ? this.#request("append", { ...writer, id, part, ...piece }) : { length: piece.at }
  }

  /**
   * End a streaming message.
   * @param {string} id @param {string} [status] @param {{ reason?: string, meta?: object, generation?: number }} [fields]
   * @returns {Promise<{ serial: number }>}
   */
  async finish(id, status = "complete", fields = {}) {
    this.client.check()
    const requests = []
    for (const [key, joiner] of this.#joiners) {
      const [message, part] = key.split(" ")
      if (message !== id) continue
      this.#joiners.delete(key)
      const end = { id, part: part ? +part : undefined, generation: fields.generation, ...joiner.end() }
      if (end.text) requests.push(this.#request("append", end))
    }
    requests.push(this.#request("finish", { request: this.client.newId(), ...fields, id, status }))
    return (await Promise.all(requests)).at(-1)
  }

  /** Change a message: `{text or parts, meta, if_version, generation}`. @param {string} id @param {Fields} fields */
  update(id, fields) {
    return this.#request("update", { request: this.client.newId(), ...fields, id })
  }

  /** Delete a message. @param {string} id */
  delete(id) {
    return this.#request("delete", { id })
  }

  /**
   * Send a command (`cancel`, `steer`, or a name of the app) to the clients that can carry it out. All viewers see it and its reply.
   * @param {string} name @param {{ target?: string, data?: Data, expires_s?: number, id?: string }} [fields]
   * @returns {Promise<{ command: import("../view.js").Command<Data>, serial: number }>}
   */
  command(name, fields) {
    return this.#request("command", { id: this.client.newId(), ...fields, name })
  }

  /** Reply to a command; the first reply counts. @param {string} id @param {{ ok?: boolean, data?: unknown, error?: unknown }} [fields] */
  reply(id, fields) {
    return this.#request("reply", { request: this.client.newId(), ok: true, ...fields, id })
  }

  /** Become present, with a little data, until `leave`, also after each reconnect. A further call replaces the data. @param {object} [data] */
  enter(data) {
    return this.presence.set("", { data })
  }

  /** Be present no more. */
  leave() {
    return this.presence.set("")
  }

  /** Send a signal to the clients that are connected now. Never stored, and lost without a connection. @param {string} name @param {Data} [data] */
  signal(name, data) {
    this.client.sendOnce("signal", this.name, { name, data })
  }

  /** Add the next older page to the view. @param {{ limit?: number }} [options] @returns {Promise<boolean>} whether older messages remain */
  history({ limit } = {}) {
    return (this.#paging ??= this.#page(limit).finally(() => (this.#paging = null)))
  }

  /** Add the next older page to the view. @param {number} [limit] of messages @returns {Promise<boolean>} whether older messages remain */
  loadOlder(limit) {
    return this.history({ limit })
  }

  // The members below are internal to this file.

  /** @internal True: the connection carries the first batch, or a page of older messages, which over HTTP has its own. */
  get isLoading() {
    return this.arriving ?? (!this.client.isHttp && this.#paging)
  }

  /** @internal */
  attaching() {
    this.arriving = { events: 0, points: 0, ms: -this.client.now() }
  }

  /** @internal The server has attached this client. @param {(You & { expires_s?: number }) | undefined} you */
  attached(you) {
    if (you) {
      this.you = { id: you.id, can: you.can }
      this.client.identified(you.id)
    }
    // Send the messages that an earlier page of this person has not sent. Until now the identity was unknown.
    for (const { id, error, stored } of this.client.outbox.of(this.name)) if (!error && !stored) this.client.outbox.deliver(this, id).catch(() => {})
  }

  /** @internal Note that the connection has ended, and drop its incomplete batch. */
  disconnected() {
    this.view.disconnect()
    if (this.state === "live") this.#become("reconnecting")
  }

  /** @internal @param {Batch} batch @param {string} text its frame @param {Connection} connection */
  receive({ cursor, events }, text, connection) {
    const { stats } = this
    stats.characters += text.length
    stats.events += events.length
    for (const event of events) {
      if (this.arriving) countIn(this.arriving, event)
      this.#typing.receive(event)
    }
    const { isGap, passed } = this.view.apply({ cursor, events })
    if (cursor) this.view.isFromCache = false
    if (isGap) {
      stats.gaps++
      connection.fail() // end the whole connection: a gap is always a bug, and the other channels resume at little cost
    } else if (cursor && cursor === this.cursor) {
      stats.batches++
      this.#goLive()
    } else this.#notifyTimer ??= setTimeout(() => this.notify(), NOTIFY_MS)
    this.client.sharing?.received(this, { cursor, events })
    for (const event of passed) callAll(this.#listeners, event)
    // An earlier page may have sent what this one must not send: `error`.
    for (const { id, stored, error } of this.client.outbox.of(this.name)) if ((stored || error) && this.view.knows(id)) this.client.outbox.drop(id)
  }

  /** @internal Show `view` instead of the present one. */
  show(view = new View(), isFromCache = false) {
    this.view = view
    view.isFromCache = isFromCache
    this.notify()
  }

  /** @internal @param {TenutoError | null} [error] */
  end(error) {
    this.presence.stop()
    this.#typing.stop()
    this.error = error ?? null
    this.#become("closed")
  }

  /** @internal */
  notify() {
    clearTimeout(this.#notifyTimer)
    this.#notifyTimer = this.#shown = undefined
    super.notify()
  }

  /** @internal The page was hidden, or is shown again. @param {boolean} [isHidden] */
  turned(isHidden) {
    const { messages } = this.view.getSnapshot()
    this.#seen = isHidden ? Math.min(this.#seen, messages.at(-1)?.created ?? 0) : Infinity
    this.notify()
  }

  /** @param {State} state */
  #become(state) {
    this.state = state
    this.notify()
  }

  #goLive() {
    if (this.state === "reconnecting") this.stats.reconnects++
    if (this.arriving) {
      this.arriving.ms += this.client.now()
      this.stats.catchUp = this.arriving
      this.arriving = null
    }
    if (this.#seen === Infinity && globalThis.document?.hidden) this.turned(true)
    this.#become("live")
  }

  /** @returns {Snapshot<any, any>} */
  #snapshot() {
    const { view, client, state, error, you, stats } = this
    const known = view.getSnapshot()
    const unsent = client.outbox.of(this.name).filter(({ id }) => !view.knows(id))
    this.#conversation.update(known.messages, unsent.map(unsentMessage))
    const { all, messages } = this.#conversation
    return {
      ...known,
      messages,
      all,
      streaming: messages.filter(({ status }) => status === "streaming"),
      hasOlder: known.more,
      typing: this.#typing.ids,
      unread: known.messages.filter(({ created, author }) => created > this.#seen && author !== client.id).length,
      isFromCache: view.isFromCache,
      state,
      error,
      you,
      status: { ...client.status, state, error: error ?? client.status.error },
      lastCatchUp: stats.batches ? stats.catchUp : null,
    }
  }

  #running() {
    this.getSnapshot()
    return this.#conversation.running?.id
  }

  /** @param {string} type @param {Fields} fields @returns {Promise<any>} */
  #request(type, fields) {
    return this.client.request(type, this.name, fields)
  }

  /** @param {number} [limit] */
  async #page(limit) {
    const { view } = this
    for (let tries = 0; view.more; tries++) {
      const { starts, before } = view
      if (tries === PAGE_TRIES) {
        throw refusal("stale", `channel ${this.name} changed during ${tries} requests for a page: call history() again`)
      }
      const page = await this.#request("history", { before, limit })
      // otherwise the page was requested for a view that has been replaced
      const isMerged = starts === view.starts && view.merge(page)
      this.notify()
      if (isMerged) break
    }
    return view.more
  }
}

/** Keep the joiner of a part, unless its offset is unknown. @param {Map<string, SurrogateJoiner>} joiners @param {string} key @param {SurrogateJoiner} joiner */
function keep(joiners, key, joiner) {
  if (isNaN(joiner.at)) {
    throw refusal("invalid_request", `the first append to message ${key.split(" ")[0]} needs at, the length of the part in code points`)
  }
  remember(joiners, key, joiner, JOINERS)
  return joiner
}

/** @param {string | (import("./outbox.js").Draft<any, any> & { id?: string })} message */
const fieldsOf = (message) => (typeof message === "string" ? { text: message } : message)

/** @param {CatchUp} sum @param {any} event */
function countIn(sum, { type, text = "", message }) {
  if (!type.startsWith("message.")) return
  sum.events++
  sum.points += countPoints(text)
  for (const part of message?.parts ?? []) sum.points += countPoints(part.text ?? "")
}

