/** One message of the chat element, with its parts, its state and its buttons. @module */
import { button, element, setText, SPARK, svg } from "./chat_nodes.js"
import { GrowingMarkdown } from "./markdown.js"

/** @typedef {import("./snapshot.js").Message} Message */
/** @typedef {import("./view.js").Part} Part */
/** @typedef {import("./view.js").Command} Command */
/** @typedef {import("./view.js").Replied} Replied */
/** @typedef {{ node: HTMLElement, update: (part: Part, isOver: boolean) => void }} PartView */

export class MessageView {
  /** @param {import("./chat_panel.js").Panel} panel @param {Message} message */
  constructor(panel, message) {
    const { words } = panel
    this.panel = panel
    /** @type {Message | null} */
    this.message = null
    /** @type {{ type: string, view: PartView }[]} */
    this.parts = []
    /** @type {Map<string, HTMLElement>} */
    this.cards = new Map()
    const isUser = message.role === "user"
    this.author = element("span", { class: "author", part: "author", dir: "auto" })
    this.state = element("span", { class: "state" })
    this.body = element("div", { class: "body", part: "bubble" })
    this.approvals = element("div", { class: "approvals" })
    this.error = element("p", { class: "mistake", hidden: true })
    this.actions = element("div", { class: "actions", part: "actions" })
    this.node = element(
      "article", { class: `message ${isUser ? "user" : "assistant"}`, part: `message message-${isUser ? "user" : "assistant"}` },
      element("header", {}, ...(isUser ? [] : [element("span", { class: "mark" }, svg(SPARK))]), this.author, this.state), this.body, this.approvals, this.error, this.actions,
    )
    this.node.dataset.messageId = message.id
    this.buttons = {
      copy: button(words.copy, "action", () => this.copy()),
      regenerate: button(words.regenerate, "action", () => this.run(() => panel.channel.regenerate(this.id))),
      retry: button(words.retry, "action", () => this.run(() => panel.channel.retry(this.id))),
      discard: button(words.discard, "action", () => this.run(() => panel.channel.discard(this.id))),
      edit: button(words.edit, "action", () => this.edit()),
      previous: button(words.previous, "branch", () => this.turn(-1), "‹"),
      place: element("span", { class: "place" }),
      following: button(words.following, "branch", () => this.turn(1), "›"),
    }
    this.actions.append(...Object.values(this.buttons))
  }

  get id() {
    return this.message?.id ?? ""
  }

  /** @param {Message} message @param {readonly Command[]} commands @param {readonly Replied[]} replied */
  update(message, commands, replied) {
    this.drawApprovals(commands, replied)
    if (message === this.message) return
    const wasStreaming = this.message?.status === "streaming"
    this.message = message
    const isOver = message.status !== "streaming"
    const me = this.panel.channel.getSnapshot().you?.id
    const isMine = message.role === "user" && (!message.author || message.author === me || message.author === "anonymous")
    setText(this.author, isMine ? "" : message.author ?? this.panel.words.assistant)
    this.drawState(message)
    this.drawParts(message, isOver)
    this.drawActions(message, isOver)
    if (wasStreaming && isOver) {
      const count = (message.text.match(/\S+/g) ?? []).length
      this.panel.speak(`${this.panel.words.complete}, ${count}: ${message.text.slice(0, 500)}`)
      this.panel.tell("answer", { message })
    }
  }

  /** @param {Message} message */
  drawState({ status, reason, text, local, role }) {
    const { words } = this.panel
    const names = { cancelled: words.stopped, interrupted: words.interrupted, failed: words.failed }
    let state = names[/** @type {keyof typeof names} */ (status)] ?? ""
    if (status === "streaming") state = text ? words.answering : words.thinking
    if (local) state = local.state === "sending" ? words.sending : words.refused
    setText(this.state, role === "user" && status === "complete" && !local ? "" : state)
    this.node.dataset.status = local ? local.state : status
    setText(this.error, local?.error?.detail ?? (status === "failed" && reason ? reason : ""))
    this.error.hidden = !this.error.textContent
  }

  /** @param {Message} message @param {boolean} isOver */
  drawParts({ parts }, isOver) {
    for (const [index, part] of parts.entries()) {
      const known = this.parts[index]
      if (known?.type !== part.type) {
        const view = this.partView(part)
        known?.view.node.remove()
        this.body.insertBefore(view.node, this.body.children[index] ?? null)
        this.parts[index] = { type: part.type, view }
      }
      this.parts[index].view.update(part, isOver)
    }
    for (const { view } of this.parts.splice(parts.length)) view.node.remove()
  }

  /** @param {Part} part @returns {PartView} */
  partView(part) {
    const { host, words } = this.panel
    const own = host.renderPart?.(part, /** @type {Message} */ (this.message))
    if (own) return ownPart(own, (now) => host.renderPart?.(now, /** @type {Message} */ (this.message)) ?? null)
    if (part.type === "text") return textPart(this.panel)
    if (part.type === "reasoning") return foldedPart("reasoning", () => words.reasoning, ({ text }) => text ?? "")
    if (part.type === "tool") {
      return foldedPart("tool", (now) => `${now.name}${now.output === undefined ? ` · ${words.running}` : ""}`, toolWords)
    }
    if (part.type === "source") return sourcePart()
    return foldedPart("data", (now) => String(now.name ?? now.type), (now) => JSON.stringify(now.data ?? now, null, 2))
  }

  /** @param {Message} message @param {boolean} isOver */
  drawActions(message, isOver) {
    const { buttons } = this
    const isUser = message.role === "user"
    const can = this.panel.channel.getSnapshot().you?.can ?? []
    const mayWrite = can.includes("publish") && !this.panel.host.hasAttribute("readonly")
    const refused = message.local?.state === "refused"
    buttons.copy.hidden = !isOver || !message.text
    buttons.regenerate.hidden = isUser || !isOver || !mayWrite
    buttons.edit.hidden = !isUser || Boolean(message.local) || !mayWrite || message.author !== this.panel.channel.getSnapshot().you?.id
    buttons.retry.hidden = buttons.discard.hidden = !refused
    const versions = this.panel.channel.branches(message.id)
    const hasVersions = versions.length > 1
    buttons.previous.hidden = buttons.following.hidden = buttons.place.hidden = !hasVersions
    if (hasVersions) setText(buttons.place, `${versions.findIndex(({ id }) => id === message.id) + 1}/${versions.length}`)
  }

  /** @param {readonly Command[]} commands @param {readonly Replied[]} replied */
  drawApprovals(commands, replied) {
    const { words } = this.panel
    for (const command of commands) {
      if (command.name !== "approve" || this.cards.has(command.id)) continue
      const data = /** @type {Record<string, unknown>} */ (typeof command.data === "object" && command.data ? command.data : {})
      const title = String(data.question ?? data.title ?? (data.name || data.tool ? `${data.name ?? data.tool}` : words.approve))
      const args = data.arguments ?? data.input ?? data.args
      const card = element("div", { class: "approval", part: "approval", role: "group", "aria-label": title }, element("p", { class: "ask" }, title))
      if (args !== undefined) card.append(element("code", {}, typeof args === "string" ? args : JSON.stringify(args)))
      const yes = button(words.allow, "primary", () => reply(true))
      const no = button(words.deny, "secondary", () => reply(false))
      const reply = (/** @type {boolean} */ ok) => {
        yes.disabled = no.disabled = true
        this.run(() => this.panel.channel.reply(command.id, { ok })).then((isDone) => {
          if (!isDone) yes.disabled = no.disabled = false
        })
      }
      card.append(element("div", { class: "row" }, yes, no))
      this.cards.set(command.id, card)
      this.approvals.append(card)
      this.panel.tell("ask", { command })
    }
    for (const [id, card] of this.cards) {
      if (commands.some((one) => one.id === id) || card.dataset.over) continue
      const reply = replied.find((one) => one.id === id)?.reply
      card.dataset.over = "yes"
      const mine = this.panel.channel.getSnapshot().you?.id
      card.querySelector(".row")?.replaceWith(
        element("p", { class: "state" }, reply?.from && reply.from !== mine ? `${words.answeredBy} ${reply.from}` : reply ? (reply.ok ? words.allow : words.deny) : ""),
      )
    }
  }

  /** @param {() => unknown} request */
  async run(request) {
    try {
      await request()
      return true
    } catch (error) {
      this.panel.failed(error)
      setText(this.error, error instanceof Error ? error.message : String(error))
      this.error.hidden = false
      return false
    }
  }

  async copy() {
    await this.run(() => navigator.clipboard.writeText(this.message?.text ?? ""))
    setText(this.buttons.copy, this.panel.words.copied)
    setTimeout(() => setText(this.buttons.copy, this.panel.words.copy), 1_500)
  }

  /** @param {number} step */
  turn(step) {
    const versions = this.panel.channel.branches(this.id)
    const next = versions[versions.findIndex(({ id }) => id === this.id) + step]
    if (next) this.panel.channel.select(next.id)
  }

  /** Replace the question by a field with its text until the person saves or cancels the edit. */
  edit() {
    const { words, channel } = this.panel
    const input = element("textarea", { class: "editor", rows: "3" })
    input.value = this.message?.text ?? ""
    const end = () => {
      form.remove()
      this.body.hidden = false
    }
    const save = () => {
      const text = input.value.trim()
      end()
      if (text && text !== this.message?.text) void this.run(() => channel.edit(this.id, text))
    }
    const form = element("div", { class: "editing" }, input, element("div", { class: "row" }, button(words.save, "primary", save), button(words.cancel, "secondary", end)))
    this.body.hidden = true
    this.body.after(form)
    input.focus()
  }
}

/** @param {import("./chat_panel.js").Panel} panel @returns {PartView} */
function textPart(panel) {
  const { host, words } = panel
  const node = element("div", { class: "markdown", part: "markdown" })
  const images = host.getAttribute("images") === "same-origin" ? /** @type {const} */ ("same-origin") : undefined
  const markdown = new GrowingMarkdown(node, { copyLabel: words.copy, images, renderMath: host.renderMath })
  node.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target.closest("button.copy, a") : null
    if (target instanceof HTMLAnchorElement) {
      if (!panel.tell("link", { href: target.href })) event.preventDefault()
    } else if (target) {
      void navigator.clipboard.writeText(target.closest(".code")?.querySelector("code")?.textContent ?? "").catch(() => {})
    }
  })
  return { node, update: ({ text }, isOver) => markdown.update(text ?? "", isOver) }
}

/** @param {string} name @param {(part: Part) => string} title @param {(part: Part) => string} words @returns {PartView} */
function foldedPart(name, title, words) {
  const [summary, text] = [element("summary", {}), element("pre", {})]
  const node = element("details", { class: name, part: name }, summary, text)
  return {
    node,
    update: (part) => {
      setText(summary, title(part))
      setText(text, words(part))
    },
  }
}

/** @param {Part} part */
function toolWords({ input, output }) {
  const shown = output === undefined ? "" : `\n\n${typeof output === "string" ? output : JSON.stringify(output, null, 2)}`
  return `${typeof input === "string" ? input : JSON.stringify(input)}${shown}`
}

/** @returns {PartView} */
function sourcePart() {
  const node = element("a", { class: "source", part: "source", target: "_blank", rel: "noopener noreferrer nofollow" })
  return {
    node,
    update: (part) => {
      setText(node, String(part.title ?? part.name ?? part.url ?? "source"))
      const url = typeof part.url === "string" && /^https?:\/\//i.test(part.url) ? part.url : null
      if (url) node.href = url
    },
  }
}

/** @param {Node} first @param {(part: Part) => Node | null} draw @returns {PartView} */
function ownPart(first, draw) {
  const node = element("div", { class: "own" }, first)
  let isFirst = true
  return {
    node,
    update: (part) => {
      if (!isFirst) node.replaceChildren(draw(part) ?? "")
      isFirst = false
    },
  }
}
