/**
 * Approvals: what an agent asks people, as a card with two buttons, until somebody has answered, in whichever window.
 *
 * A card is made once and stays the same element, so that the keyboard's place in it is not lost.
 * @module
 */

import { questionOf } from "./words.js"

/** @typedef {import("../view.js").Command} Command */

export class Approvals {
  /** @type {Map<string, HTMLElement>} by the command's id */
  #cards = new Map()

  /** @param {HTMLElement} place @param {(command: Command, ok: boolean) => Promise<unknown>} onAnswer */
  constructor(place, onAnswer) {
    this.place = place
    this.onAnswer = onAnswer
  }

  /** @param {readonly Command[]} commands those that are pending */
  show(commands) {
    const asked = commands.filter(({ name }) => name === "approve")
    const ids = new Set(asked.map(({ id }) => id))
    for (const [id, card] of this.#cards) {
      if (ids.has(id)) continue
      card.remove()
      this.#cards.delete(id)
    }
    for (const command of asked) if (!this.#cards.has(command.id)) this.#open(command)
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
        await this.onAnswer(command, button === yes)
        for (const one of buttons) one.disabled = false // it stands here still: then it was not answered
      })
    }
    card.append(words, ...buttons)
    this.#cards.set(command.id, card)
    this.place.append(card)
  }
}
