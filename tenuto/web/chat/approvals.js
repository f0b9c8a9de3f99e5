/**
 * Approvals: the questions of agents, each as a card with two buttons until a person replies in any window.
 *
 * The server sends only commands that wait for a reply, so the tab keeps those that have one: their cards survive a reload.
 * @module
 */
import { button, element } from "./elements.js"
import { keep } from "./storage.js"

/** @typedef {import("../view.js").Command} Command */

const MAX_KEPT = 20

export class Approvals {
  /** @type {Map<string, HTMLElement>} by the id of the command */
  #cards = new Map()
  /** @type {readonly Command[]} */
  #shown = []

  /** @param {import("./panel.js").Panel} panel @param {string} [target] the message under which they stand */
  constructor(panel, target) {
    this.panel = panel
    this.node = element("div", { class: "approvals" })
    for (const [command, end] of target ? panel.list.kept : []) if (command.target === target) this.#open(command, end)
  }

  /** @param {readonly Command[]} commands those that wait for a reply */
  update(commands) {
    const before = this.#shown
    if (commands === before) return
    this.#shown = commands
    for (const command of commands) if (command.name === "approve" && !this.#cards.has(command.id)) this.#open(command)
    for (const command of before) if (!commands.some(({ id }) => id === command.id)) this.#close(command)
  }

  /** @param {Command} command @param {string} [end] the words of a card that is over */
  #open(command, end) {
    const { panel } = this
    const { words } = panel
    const { data } = command
    const fields = /** @type {Record<string, unknown>} */ (typeof data === "object" && data ? data : { question: data })
    const tool = fields.tool ?? fields.name
    const asked = fields.question ?? fields.title ?? tool
    const input = fields.arguments ?? fields.input ?? fields.args ?? (asked === undefined && data ? data : undefined) // shown as it is
    const title = String(asked ?? words.approve)
    const args = input === undefined ? "" : typeof input === "string" ? input : JSON.stringify(input)
    const code = tool === undefined ? args : `${tool}(${args})`
    const error = element("p", { class: "mistake", part: "error", hidden: true })
    const yes = button(words.allow, "primary", () => reply(true))
    const no = button(words.deny, "secondary", () => reply(false))
    const reply = async (/** @type {boolean} */ ok) => {
      yes.disabled = no.disabled = true
      await panel.run(() => panel.channel.reply(command.id, { ok }), error, "already_answered")
      yes.disabled = no.disabled = false
    }
    const card = element("div", { part: "approval", role: "group", "aria-label": title },
      element("p", { part: "ask", dir: "auto" }, title), ...(code ? [element("code", {}, code)] : []), error, element("div", { class: "row" }, yes, no))
    this.#cards.set(command.id, card)
    this.node.append(card)
    if (end) return over(card, end)
    panel.voice.speak(title)
    panel.emit("ask", { command })
  }

  /** @param {Command} command that does not wait any more, or stands elsewhere now */
  #close(command) {
    const { panel } = this
    const { words, list } = panel
    const card = this.#cards.get(command.id)
    if (!card) return
    if (list.commands.includes(command)) {
      this.#cards.delete(command.id)
      return card.remove()
    }
    const reply = list.replies.get(command)
    const code = /** @type {{ code?: unknown } | undefined} */ (reply?.error)?.code
    let end = reply ? (reply.ok ? words.allowed : words.denied) : words.answered
    if (code === "expired") end = words.expired
    else if (code === "withdrawn") end = words.withdrawn
    else if (reply?.from && reply.from !== panel.me) end = `${words.answeredBy} ${panel.names.of(reply.from)}: ${end}`
    list.kept = [...list.kept, /** @type {[Command, string]} */ ([command, end])].slice(-MAX_KEPT)
    keep(panel, "approvals", list.kept)
    over(card, end)
  }
}

/** @param {HTMLElement} card @param {string} end */
function over(card, end) {
  card.querySelector(".row")?.replaceWith(element("p", { part: "state", dir: "auto" }, end))
  card.querySelector(".mistake")?.remove()
}
