/**
 * Approvals: the questions of agents, each as a card with two buttons until a person replies in any window.
 *
 * The server sends only commands that wait for a reply, so the tab keeps those that have one: their cards survive a reload.
 * @module
 */
import { button, element, setText } from "./chat_nodes.js"

/** @typedef {import("./view.js").Command} Command */

const MAX_KEPT = 20

export class Approvals {
  /** @type {Map<string, { card: HTMLElement, command: Command, isOver?: boolean }>} by the id of the command */
  #cards = new Map()
  /** @type {readonly Command[]} */
  #shown = []

  /** @param {import("./chat_panel.js").Panel} panel @param {string} [target] the message under which they stand */
  constructor(panel, target) {
    this.panel = panel
    this.node = element("div", { class: "approvals" })
    for (const [command, end] of target ? panel.list.kept : []) if (command.target === target) this.#end(this.#open(command), end)
  }

  /** @param {readonly Command[]} commands those that wait for a reply */
  update(commands) {
    const mayReply = this.panel.may("command")
    this.node.classList.toggle("mute", !mayReply)
    if (commands === this.#shown) return
    this.#shown = commands
    for (const command of commands) {
      if (command.name !== "approve" || this.#cards.has(command.id)) continue
      this.panel.voice.speak(/** @type {string} */ (this.#open(command).card.ariaLabel))
      this.panel.tell("ask", { command })
    }
    for (const [id, known] of this.#cards) if (!known.isOver && !commands.some((one) => one.id === id)) this.#close(known)
  }

  /** @param {Command} command */
  #open(command) {
    const { panel } = this
    const { words } = panel
    const { data } = command
    const fields = /** @type {Record<string, unknown>} */ (typeof data === "object" && data ? data : { question: data })
    const tool = fields.tool ?? fields.name
    const input = fields.arguments ?? fields.input ?? fields.args
    const title = String(fields.question ?? fields.title ?? tool ?? words.approve)
    const args = input === undefined ? "" : typeof input === "string" ? input : JSON.stringify(input)
    const code = tool === undefined ? args : `${tool}(${args})`
    const error = element("p", { class: "mistake", hidden: true })
    const yes = button(words.allow, "primary", () => reply(true))
    const no = button(words.deny, "secondary", () => reply(false))
    const reply = async (/** @type {boolean} */ ok) => {
      yes.disabled = no.disabled = true
      await panel.run(() => panel.channel.reply(command.id, { ok }), error, "already_answered")
      yes.disabled = no.disabled = false
    }
    const card = element("div", { class: "approval", part: "approval", role: "group", "aria-label": title },
      element("p", { class: "ask", dir: "auto" }, title), ...(code ? [element("code", {}, code)] : []), error, element("div", { class: "row" }, yes, no))
    this.node.append(card)
    const known = { card, command }
    this.#cards.set(command.id, known)
    return known
  }

  /** @param {{ card: HTMLElement, command: Command, isOver?: boolean }} known */
  #close(known) {
    const { panel } = this
    const { words } = panel
    const reply = panel.replies.get(known.command.id)
    const code = /** @type {{ code?: unknown } | undefined} */ (reply?.error)?.code
    let end = reply ? (reply.ok ? words.allowed : words.denied) : words.answered
    if (code === "expired") end = words.expired
    else if (code === "withdrawn") end = words.withdrawn
    else if (reply?.from && reply.from !== panel.me) end = `${words.answeredBy} ${panel.names.of(reply.from)}: ${end}`
    panel.list.kept = [...panel.list.kept, /** @type {[Command, string]} */ ([known.command, end])].slice(-MAX_KEPT)
    panel.storage.keep("approvals", panel.list.kept)
    this.#end(known, end)
  }

  /** @param {{ card: HTMLElement, isOver?: boolean }} known @param {string} end */
  #end(known, end) {
    const { card } = known
    known.isOver = true
    card.querySelector(".row")?.replaceWith(element("p", { class: "state", dir: "auto" }, end))
    setText(/** @type {Element} */ (card.querySelector(".mistake")), "")
  }
}
