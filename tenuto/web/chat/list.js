/**
 * The messages of the chat element, in order: each has a view, which is drawn again only if its message has changed.
 * @module
 */
import { Approvals } from "./approvals.js"
import { MessageView } from "./message.js"
import { element } from "./elements.js"
import { recall } from "./storage.js"

/** @typedef {import("../client/channel.js").Snapshot} Snapshot */
/** @typedef {import("../client/snapshot.js").Message} Message */
/** @typedef {import("../view.js").Command} Command */

/** @type {readonly Command[]} */
const NONE = []

export class MessageList {
  node = element("div", { class: "messages" })
  /** @type {Map<string, MessageView>} */
  views = new Map()
  round = 0 // rises when the state, names and buttons of all messages must be drawn again, in slices
  isBehind = false // True: a message is not drawn yet, or not completely
  hasDrawn = false // True: this frame has drawn a message; each frame draws at least one, however slow the machine is
  isPaused = false // True: older messages are not built before the reader scrolls near them
  /** The commands that wait for a reply. @type {readonly Command[]} */
  commands = NONE
  /** @type {WeakMap<Command, import("../view.js").Reply>} of the drawn commands */
  replies = new WeakMap()
  #newest = Infinity // the serial of the newest message that was drawn
  #rights = ""
  #deadline = 0
  /** @type {Map<string, readonly Command[]>} by the id of the message under which they stand; "" for none in view */
  #asks = new Map()

  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel
    /** The approvals of this tab that are over, each with the words of its card. @type {[Command, string][]} */
    this.kept = recall(panel, "approvals") ?? []
    this.approvals = new Approvals(panel) // questions of agents that belong to no message in view
  }

  /** True: the time limit of this drawing has passed, so the rest waits for the next frame. */
  get isLate() {
    return this.hasDrawn && performance.now() > this.#deadline
  }

  /** Draw the messages, the newest first, until the time for this frame is used up. @param {Snapshot} snapshot @param {number} most_ms */
  draw({ messages, all, streaming, commands, you, error, state }, most_ms) {
    this.#deadline = performance.now() + most_ms
    if (commands !== this.commands) this.#sort(commands)
    const rights = [you?.id, you?.can, this.panel.host.readonly, all.length, streaming.length, error?.code].join()
    if (rights !== this.#rights) this.round++
    this.#rights = rights
    this.panel.scroller.log.classList.toggle("mute", !this.panel.may("command")) // hides the buttons of approvals
    this.approvals.update(this.#asks.get("") ?? NONE)
    const kept = this.#dropOthers(messages, all)
    const isWaiting = (/** @type {Message} */ { id, role, created, local }) =>
      role === "user" && !local && created > (streaming[0]?.created ?? Infinity) && !all.some((one) => one.role !== "user" && (one.reply_to ?? one.parent) === id)
    /** @type {Element | null} */
    let next = null
    /** @type {((added: HTMLElement[]) => void) | undefined} */
    let release
    /** @type {HTMLElement[]} */
    const added = []
    this.isBehind = this.isPaused = this.hasDrawn = false
    const isFar = this.panel.scroller.isFar
    for (let n = messages.length - 1; n >= 0; n--) {
      const message = messages[n]
      let view = this.views.get(message.id)
      if (!view && next && (isFar || this.isLate)) {
        this.isPaused = isFar
        this.isBehind ||= !isFar
        continue
      }
      const isNew = !view
      view ??= new MessageView(this.panel, message)
      this.views.set(message.id, view)
      let after = view.node.nextElementSibling
      while (after && kept.has(after)) after = after.nextElementSibling
      if (isNew || after !== next) {
        if (isNew && next && next === this.node.firstElementChild && !this.panel.scroller.isFollowing) {
          release ??= this.panel.scroller.hold(next)
          added.push(view.node)
        }
        this.node.insertBefore(view.node, next)
      }
      next = view.node
      view.update(message, this.#asks.get(message.id) ?? NONE, isWaiting(message))
      this.isBehind ||= view.isBehind
      if (isNew && message.role !== "user" && message.status !== "streaming" && message.created > this.#newest) view.ended()
    }
    release?.(added)
    if (state === "live") this.#newest = messages.findLast(({ local }) => !local)?.created ?? 0
  }

  /** Remove the messages that are not shown any more, but keep a message that the person edits. Return the kept nodes. @param {Snapshot["messages"]} messages @param {Snapshot["all"]} all */
  #dropOthers(messages, all) {
    /** @type {Set<Element>} */
    const kept = new Set()
    const ids = new Set(messages.map(({ id }) => id))
    for (const [id, view] of this.views) {
      if (ids.has(id)) continue
      if (view.form) {
        kept.add(view.node)
        if (!all.some((one) => one.id === id)) view.fail(this.panel.words.deleted)
      } else {
        view.node.remove()
        this.views.delete(id)
      }
    }
    return kept
  }

  /** Find the commands of each message. @param {readonly Command[]} commands */
  #sort(commands) {
    this.commands = commands
    this.#asks = new Map()
    for (const command of commands) {
      const target = command.target && this.panel.channel.branches(command.target).length ? command.target : ""
      this.#asks.set(target, [...(this.#asks.get(target) ?? NONE), command])
    }
  }
}
