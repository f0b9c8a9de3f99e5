/** Approvals: the questions of agents, each as a card with two buttons until a person replies in any window. @module */
import { button, element, setText } from "./chat_nodes.js"

/** @typedef {import("./view.js").Command} Command */

export class Approvals {
  /** @type {Map<string, HTMLElement>} by the id of the command */
  #cards = new Map()
  /** @type {readonly Command[]} */
  #shown = []

  /** @param {import("./chat_panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel
    this.node = element("div", { class: "approvals" })
  }

  /** @param {readonly Command[]} commands those that wait for a reply */
  update(commands) {
    const mayReply = this.panel.may("command")
    this.node.classList.toggle("mute", !mayReply)
    if (commands === this.#shown) return
    this.#shown = commands
    for (const command of commands) if (command.name === "approve" && !this.#cards.has(command.id)) this.#open(command)
    for (const [id, card] of this.#cards) if (!card.dataset.over && !commands.some((one) => one.id === id)) this.#close(id, card)
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
    this.#cards.set(command.id, card)
    this.node.append(card)
    panel.voice.speak(title)
    panel.tell("ask", { command })
  }

  /** @param {string} id @param {HTMLElement} card */
  #close(id, card) {
    const { panel } = this
    const { words } = panel
    const reply = panel.replies.get(id)
    const code = /** @type {{ code?: unknown } | undefined} */ (reply?.error)?.code
    let end = reply ? (reply.ok ? words.allowed : words.denied) : words.answered
    if (code === "expired") end = words.expired
    else if (code === "withdrawn") end = words.withdrawn
    else if (reply?.from && reply.from !== panel.me) end = `${words.answeredBy} ${panel.names.of(reply.from)}: ${end}`
    card.dataset.over = "yes"
    const row = card.querySelector(".row")
    row?.replaceWith(element("p", { class: "state", dir: "auto" }, end))
    setText(/** @type {Element} */ (card.querySelector(".mistake")), "")
  }
}
