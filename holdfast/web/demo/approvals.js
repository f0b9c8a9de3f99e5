/**
 * Approvals: the questions of agents, each as a card with two buttons until a person replies in any window.
 *
 * A card is created once and stays the same element, so that it keeps the keyboard focus.
 * @module
 */

import { questionOf } from "./words.js"

/** @typedef {import("../view.js").Command} Command */

export class Approvals {
  /** @type {Map<string, HTMLElement>} by the command's id */
  #cards = new Map()

  /** @param {HTMLElement} parent @param {(command: Command, ok: boolean) => Promise<unknown>} onReply */
  constructor(parent, onReply) {
    this.parent = parent
    this.onReply = onReply
  }

  /** @param {readonly Command[]} commands the pending ones */
  show(commands) {
    const approvals = commands.filter(({ name }) => name === "approve")
    const ids = new Set(approvals.map(({ id }) => id))
    for (const [id, card] of this.#cards) {
      if (ids.has(id)) continue
      card.remove()
      this.#cards.delete(id)
    }
    for (const command of approvals) if (!this.#cards.has(command.id)) this.#open(command)
  }

  /** @param {Command} command */
  #open(command) {
    const [card, words, yes, no] = ["div", "p", "button", "button"].map((tag) => document.createElement(tag))
    const buttons = /** @type {HTMLButtonElement[]} */ ([yes, no])
    card.className = "approval"
    card.dataset.commandId = command.id
    card.role = "group"
    words.textContent = questionOf(command)
    card.ariaLabel = questionOf(command)
    yes.textContent = "Yes"
    no.textContent = "No"
    for (const button of buttons) {
      button.type = "button"
      button.className = "button"
      button.addEventListener("click", async () => {
        for (const one of buttons) one.disabled = true
        await this.onReply(command, button === yes)
        for (const one of buttons) one.disabled = false // if the card is still here, the reply failed
      })
    }
    card.append(words, ...buttons)
    this.#cards.set(command.id, card)
    this.parent.append(card)
  }
}
