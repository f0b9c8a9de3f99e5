/** The input field of the chat: text over the full width, buttons below it. A draft survives a reload. @module */
import { button, element, svg } from "./elements.js"
import { keep, recall } from "./storage.js"

const MAX_LINES = 8
const SEND = "M12 19V5M6 11l6-6 6 6"

export class Composer {
  /** @type {string[]} */
  #sent = [] // all texts that this page has sent

  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    const { words } = panel
    this.panel = panel
    this.isSteering = false
    this.isRunning = false // True: an agent works on an answer, so a question waits for its turn
    this.input = element("textarea", { part: "input", rows: "1", "aria-label": words.placeholder, dir: "auto" })
    this.next = button(words.next, "choice", () => this.choose(false))
    this.steer = button(words.steer, "choice", () => this.choose(true))
    this.choices = element("div", { part: "choices", role: "group", "aria-label": words.send }, this.next, this.steer)
    this.stop = button(words.stop, "stop", () => panel.stop(), element("span", { class: "square" }))
    this.send = button(words.send, "send", () => this.submit(), svg(SEND))
    const row = element("div", { class: "row" }, element("slot", { name: "composer-start" }), this.choices, element("span", { class: "fill" }), this.stop, this.send)
    this.node = element("div", { part: "composer" }, this.input, row)
    this.note = element("p", { part: "note" }, words.readonly)
    /** @type {string | undefined} the person whose draft the field holds; undefined until the server has confirmed who it is */
    this.owner = "" // until the first drawing
    this.input.addEventListener("input", () => this.changed())
    onSend(this.input, () => this.submit())
    this.choose(false)
  }

  /** @param {import("../client/channel.js").Snapshot} snapshot @param {boolean} isRunning */
  update({ you, error }, isRunning) {
    const { panel, input, node } = this
    const { host, me } = panel
    if (me !== this.owner) {
      const { by = me, text = "" } = recall(panel, "draft") ?? {}
      this.owner = me
      this.height = 0 // fit the field to the text
      if (by === me) keep(panel, "draft", { by, text: (input.value ||= text) })
      else input.value = ""
    }
    const isShut = Boolean(error) || (you !== null && !you.can.includes("publish")) // True: read-only, but a draft stays so that the person can copy it
    const wasHidden = node.hidden
    node.hidden = host.readonly || (isShut && !input.value)
    this.note.hidden = Boolean(error) || !(isShut || node.hidden)
    input.readOnly = isShut
    this.isRunning = isRunning
    this.stop.hidden = this.choices.hidden = !isRunning || !panel.may("command")
    this.choose(this.isSteering && !this.choices.hidden)
    if (wasHidden !== node.hidden || !this.height) this.fit()
    this.#drawSend()
  }

  /** Allow to send a text, unless the hub has named a time before which it accepts no question. */
  #drawSend() {
    this.send.disabled = this.input.readOnly || !this.input.value.trim() || this.panel.line.until > Date.now()
  }

  /** Choose what a text does, which the empty field says. @param {boolean} isSteering */
  choose(isSteering) {
    const { host, words } = this.panel
    this.isSteering = isSteering
    this.next.setAttribute("aria-pressed", `${!isSteering}`)
    this.steer.setAttribute("aria-pressed", `${isSteering}`)
    const running = isSteering ? words.placeholderSteering : words.placeholderRunning
    const placeholder = this.isRunning ? running : host.getAttribute("placeholder") ?? words.placeholder
    if (this.input.placeholder === placeholder) return
    this.input.placeholder = placeholder
    this.fit()
  }

  changed() {
    const { input, panel } = this
    keep(panel, "draft", { by: this.owner, text: input.value })
    if (panel.may("presence")) panel.channel.typing(!!input.value)
    this.#drawSend()
    this.fit()
  }

  /** Set the height of the field to that of its text, or of its placeholder, up to eight lines. */
  fit() {
    const { input, panel } = this
    input.rows = 1
    this.height = parseFloat(getComputedStyle(input).lineHeight)
    input.rows = Math.min(MAX_LINES, Math.floor(input.scrollHeight / this.height) || 1)
    panel.scroller.keep()
  }

  submit() {
    const { input, panel } = this
    const text = input.value.trim()
    this.#drawSend()
    if (this.send.disabled) return
    const sent = panel.send(text, this.isSteering)
    if (!sent) return // the app has prevented the sending; the text stays in the field
    this.#sent.push(text)
    input.value = ""
    this.changed()
    input.focus()
    void sent.then((isKept) => isKept || this.restore(text))
  }

  /** Put a text back into the field, because it could not be sent and no message shows it; also before another one, in the page that has sent it. @param {string} text */
  restore(text) {
    if (this.input.value && !this.#sent.includes(text)) return
    this.input.value = `${text}\n${this.input.value}`.trim()
    this.changed()
  }
}

/** Call `send` at each Enter without Shift, unless it ends the composition of an input method. @param {HTMLElement} input @param {() => void} send */
export function onSend(input, send) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
    event.preventDefault()
    send()
  })
}
