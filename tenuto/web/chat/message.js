/** One message of the chat element, with its parts, its state and its buttons. @module */
import { Approvals } from "./approvals.js"
import { onSend } from "./composer.js"
import { requestWords } from "./error_words.js"
import { button, copyText, element, setText, SPARK, svg } from "./elements.js"
import { partView } from "./parts.js"

/** @typedef {import("../client/snapshot.js").Message} Message */
/** @typedef {import("../view.js").Part} Part */
/** @typedef {import("../view.js").Command} Command */

const MAX_SPOKEN = 500 // limit of characters of an answer that a screen reader announces

export class MessageView {
  /** True: the message is not drawn yet, or not completely. */
  isBehind = true
  /** The field of a question that is being edited. @type {HTMLElement | null} */
  form = null
  /** @type {{ type: string, view: import("./parts.js").PartView, part?: Part, isOver?: boolean, isBehind?: boolean }[]} */
  #parts = []
  /** @type {unknown} of a failed message; in the console once, and in view if it is a sentence rather than a code */
  #reason
  #round = -1 // that of the list when the message was drawn

  /** @param {import("./panel.js").Panel} panel @param {Message} message */
  constructor(panel, message) {
    const { words } = panel
    const kind = message.role === "user" ? "user" : "assistant"
    this.panel = panel
    this.message = message
    this.marks = panel.marks.of(message)
    this.approvals = new Approvals(panel, message.id)
    this.author = element("span", { part: "author", dir: "auto" })
    this.state = element("span", { part: "state", dir: "auto" })
    this.body = element("div", { class: "body", part: "bubble" })
    this.error = element("p", { class: "mistake", part: "error", dir: "auto" })
    this.actions = element("div", { part: "actions" })
    this.node = element(
      "article", { class: `message ${kind}`, part: `message message-${kind}` },
      element("header", {}, ...(kind === "user" ? [] : [element("span", { part: "avatar" }, svg(SPARK))]), this.author, this.state), this.body, this.approvals.node, this.error, this.actions,
    )
    this.node.dataset.messageId = message.id
    const act = (/** @type {(id: string) => unknown} */ request) => () => panel.run(() => request(this.message.id), this.error)
    this.buttons = {
      copy: button(words.copy, "action", act(/** @returns {unknown} */ () => copyText(this.buttons.copy, this.message.text, words))),
      regenerate: button(words.regenerate, "action", act((id) => panel.channel.regenerate(id))),
      retry: button(words.retry, "action", act((id) => panel.channel.retry(id))),
      discard: button(words.discard, "action", act((id) => panel.channel.discard(id))),
      edit: button(words.edit, "action", () => this.edit()),
      previous: button(words.previous, "branch", () => this.turn(-1), "‹"),
      place: element("span", { part: "place" }),
      following: button(words.following, "branch", () => this.turn(1), "›"),
    }
    this.actions.append(...Object.values(this.buttons))
  }

  /** @param {Message} message @param {readonly Command[]} commands that wait for a reply @param {boolean} isWaiting for its turn */
  update(message, commands, isWaiting) {
    const { panel } = this
    const { list } = panel
    this.approvals.update(commands)
    if (message === this.message && !this.isBehind) {
      if (this.#round === list.round) return
      if (list.isLate) return void (list.isBehind = true)
    }
    this.#round = list.round
    list.hasDrawn = true
    const wasStreaming = this.message.status === "streaming"
    this.message = message
    const isOver = message.status !== "streaming"
    const isMine = message.role === "user" && (!message.author || message.author === panel.me || message.author === "anonymous")
    const author = isMine ? panel.words.you : message.author ? panel.names.of(message.author) : panel.words.assistant
    this.node.setAttribute("aria-label", author)
    setText(this.author, isMine ? "" : author)
    this.author.title = message.author ?? ""
    this.#drawState(message, isWaiting)
    this.#drawParts(message, isOver)
    this.#drawActions(message, isOver)
    if (wasStreaming && isOver) this.ended()
  }

  /** Announce that the answer has ended, because this page showed it while it streamed. */
  ended() {
    const { panel, message } = this
    const words = message.text.slice(0, MAX_SPOKEN) || this.error.textContent
    panel.voice.speak([this.state.textContent || panel.words.complete, words].filter(Boolean).join(": "))
    panel.emit("answer", { message })
  }

  /** Draw the marks again, because they have changed. */
  remark() {
    const before = this.marks
    const now = (this.marks = this.panel.marks.of(this.message))
    const longer = now.length > before.length ? now : before
    const n = longer.findIndex((_, n) => now[n]?.at !== before[n]?.at || now[n]?.text !== before[n]?.text)
    // `at` counts code points. Counted in UTF-16 units, this place is at or before the mark, which is early enough.
    if (n >= 0) for (const { view } of this.#parts) view.remark?.(Math.min(now[n]?.at ?? Infinity, before[n]?.at ?? Infinity))
  }

  /** @param {Message} message @param {boolean} isWaiting */
  #drawState({ id, status, reason, text, local, role }, isWaiting) {
    const { words } = this.panel
    const names = { cancelled: words.stopped, interrupted: words.interrupted, failed: words.failed, streaming: text ? words.answering : words.thinking }
    let state = names[/** @type {keyof typeof names} */ (status)] ?? ""
    if (local) state = local.state === "refused" ? words.refused : local.retryAt ? words.waiting : words.sending
    else if (role === "user") state = isWaiting ? words.waiting : ""
    setText(this.state, state)
    this.node.dataset.status = local?.state ?? status
    this.fail(local?.error && !local.retryAt ? requestWords(words, local.error.code) : status === "failed" ? words.notFinished + (reason?.includes(" ") ? ` ${reason}` : "") : "")
    if (status === "failed" && reason && reason !== this.#reason) console.warn(`<tenuto-chat> message ${id} failed: ${reason}`)
    this.#reason = reason
  }

  /** Show why a request failed, or hide it. @param {string} words */
  fail(words) {
    setText(this.error, words)
    this.error.hidden = !words
  }

  /** @param {Message} message @param {boolean} isOver */
  #drawParts(message, isOver) {
    let start = 0
    let hasDrawn = false
    this.isBehind = false
    for (const [index, part] of message.parts.entries()) {
      const at = start
      if (part.type === "text") start += part.text?.length ?? 0
      let known = this.#parts[index]
      if (this.isBehind || (!known && hasDrawn && this.panel.list.isLate)) {
        this.isBehind = true
        break
      }
      if (known && known.part === part && known.isOver === isOver && !known.isBehind) continue
      const own = known?.part === part && known.type !== "own" ? null : this.#ownNode(part, message)
      const type = own ? "own" : part.type
      if (known?.type !== type) {
        const view = own ? { node: element("div", { class: "own" }), update() {} } : partView(this, type)
        if (known) known.view.node.replaceWith(view.node)
        else this.body.append(view.node)
        known = this.#parts[index] = { type, view }
      }
      if (own) known.view.node.replaceChildren(own)
      hasDrawn = true
      known.isBehind = Boolean(known.view.update(part, isOver, at))
      this.isBehind ||= known.isBehind
      known.part = part
      known.isOver = isOver
    }
    for (const { view } of this.#parts.splice(message.parts.length)) view.node.remove()
  }

  /** Return the app's node for a part, or null for the usual form. @param {Part} part @param {Message} message */
  #ownNode(part, message) {
    try {
      return this.panel.host.renderPart?.(part, message) ?? null
    } catch (error) {
      console.error(`<tenuto-chat> renderPart failed for a part of type ${part.type} in message ${message.id}: ${error}`)
      return null
    }
  }

  /** @param {Message} message @param {boolean} isOver */
  #drawActions({ id, role, status, text, local, author }, isOver) {
    const { buttons, panel } = this
    const isUser = role === "user"
    buttons.copy.hidden = !isOver || !text
    buttons.regenerate.hidden = isUser || !isOver || !panel.may("command")
    setText(buttons.regenerate, status === "failed" || status === "interrupted" ? panel.words.retry : panel.words.regenerate)
    buttons.edit.hidden = !isUser || Boolean(local) || !panel.may("publish") || author !== panel.me
    buttons.retry.hidden = local?.state !== "refused"
    buttons.discard.hidden = buttons.retry.hidden && !local?.retryAt
    const versions = panel.channel.branches(id)
    buttons.previous.hidden = buttons.following.hidden = buttons.place.hidden = versions.length < 2
    setText(buttons.place, `${versions.findIndex((one) => one.id === id) + 1}/${versions.length}`)
  }

  /** @param {number} step */
  turn(step) {
    const { channel } = this.panel
    const versions = channel.branches(this.message.id)
    const next = versions[versions.findIndex(({ id }) => id === this.message.id) + step]
    if (next) channel.select(next.id)
  }

  /** Replace the question by a field with its text, until it is saved or given up. */
  edit() {
    if (this.form) return
    const { panel, message } = this
    const { words, channel } = panel
    const input = element("textarea", { part: "editor", rows: "3", dir: "auto", "aria-label": words.edit })
    input.value = message.text
    const end = () => {
      this.form?.remove()
      this.form = null
      this.body.hidden = false
      this.buttons.edit.focus()
      panel.schedule() // draw the messages, because the question may have been deleted meanwhile
    }
    const save = () => {
      const text = input.value.trim()
      end()
      if (text && text !== message.text) {
        void panel.run(async () => {
          await channel.edit(message.id, text)
          channel.cancel(message.id).catch(() => {}) // else the new version waits for the answer that it hides
        }, this.error)
      }
    }
    this.form = element("div", { class: "editing" }, input, element("div", { class: "row" }, button(words.save, "primary", save), button(words.cancel, "secondary", end)))
    onSend(input, save)
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return
      event.preventDefault() // otherwise Escape would also close a dialog around the chat, and stop the answer
      event.stopPropagation()
      end()
    })
    this.body.hidden = true
    this.body.after(this.form)
    input.focus()
  }
}
