/** The input field of the chat: text over the full width, buttons below it. A draft survives a reload. @module */
import { button, element, svg } from "./chat_nodes.js"

const MAX_LINES = 8
const SEND = "M12 19V5M6 11l6-6 6 6"

export class Composer {
  /** @param {import("./chat_panel.js").Panel} panel */
  constructor(panel) {
    const { words, host } = panel
    this.panel = panel
    this.isSteering = false
    this.key = `holdfast-draft ${host.url} ${host.getAttribute("channel")}`
    this.input = element("textarea", { part: "input", rows: "1", "aria-label": words.placeholder })
    this.next = button(words.next, "choice", () => this.choose(false))
    this.steer = button(words.steer, "choice", () => this.choose(true))
    this.choices = element("div", { class: "choices", role: "group", hidden: true }, this.next, this.steer)
    this.stop = button(words.stop, "stop", () => panel.stop(), element("span", { class: "square" }))
    this.send = button(words.send, "send", () => this.submit(), svg(SEND))
    const row = element("div", { class: "row" }, element("slot", { name: "composer-start" }), this.choices, element("span", { class: "fill" }), this.stop, this.send)
    this.node = element("div", { class: "composer", part: "composer" }, this.input, row)
    this.note = element("p", { class: "note", hidden: true }, words.readonly)
    this.input.value = this.draft
    this.input.addEventListener("input", () => this.changed())
    this.input.addEventListener("keydown", (event) => this.pressed(event))
    this.choose(false)
  }

  get draft() {
    try {
      return sessionStorage.getItem(this.key) ?? ""
    } catch {
      return ""
    }
  }

  set draft(text) {
    try {
      if (text) sessionStorage.setItem(this.key, text)
      else sessionStorage.removeItem(this.key)
    } catch { /* without storage the draft ends with the page */ }
  }

  /** @param {import("./channel.js").Snapshot} snapshot */
  update({ streaming, you, error }) {
    const { panel } = this
    const isRunning = streaming.length > 0
    const isReadonly = panel.host.hasAttribute("readonly") || Boolean(error) || (you !== null && !you.can.includes("publish"))
    this.node.hidden = isReadonly
    this.note.hidden = !isReadonly || Boolean(error)
    this.stop.hidden = this.choices.hidden = !isRunning
    if (!isRunning && this.isSteering) this.choose(false)
    const placeholder = isRunning ? panel.words.placeholderRunning : panel.host.getAttribute("placeholder") ?? panel.words.placeholder
    if (this.input.placeholder !== placeholder) this.input.placeholder = placeholder
    this.fit()
  }

  /** @param {boolean} isSteering */
  choose(isSteering) {
    this.isSteering = isSteering
    this.next.setAttribute("aria-pressed", String(!isSteering))
    this.steer.setAttribute("aria-pressed", String(isSteering))
  }

  changed() {
    this.draft = this.input.value
    this.panel.channel.typing(this.input.value !== "")
    this.fit()
  }

  /** Grow with the text, up to eight lines. */
  fit() {
    const { input } = this
    this.send.disabled = !input.value.trim()
    const lines = Math.min(MAX_LINES, input.value.split("\n").length)
    if (input.rows !== lines) input.rows = lines
    if (input.scrollHeight > input.clientHeight && input.rows < MAX_LINES) {
      const line = input.clientHeight / input.rows
      input.rows = Math.min(MAX_LINES, Math.ceil(input.scrollHeight / line))
    }
  }

  /** @param {KeyboardEvent} event */
  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
    event.preventDefault()
    this.submit()
  }

  submit() {
    const text = this.input.value.trim()
    if (!text) return
    this.input.value = ""
    this.changed()
    void this.panel.send(text, this.isSteering)
    this.input.focus()
  }
}
