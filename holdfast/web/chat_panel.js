/**
 * The open chat element: header, messages, one status line, composer.
 *
 * It draws at most once a frame, and four times a second while the page is hidden.
 * @module
 */
import { Composer } from "./chat_composer.js"
import { MessageView } from "./chat_message.js"
import { button, element, setText, svg } from "./chat_nodes.js"
import { PANEL_STYLE, sheetOf } from "./chat_style.js"

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./snapshot.js").Message} Message */

const HIDDEN_MS = 250
const NEAR_END = 40 // distance from the end, in pixels, that still counts as the end
const NEAR_START = 200 // distance from the start, in pixels, at which older messages are loaded
const SPOKEN_MS = 2_000 // least time between two announcements to a screen reader
const SLOW_MS = 1_000 // time to connect after which the status line mentions it
const CLOSE = "M6 6l12 12M18 6L6 18"
const DOWN = "M12 5v14M6 13l6 6 6-6"

export class Panel {
  /** @param {import("./element.js").HoldfastChat} host @param {ShadowRoot} root @param {Client} client @param {boolean} ownsClient */
  constructor(host, root, client, ownsClient) {
    this.host = host
    this.root = root
    this.client = client
    this.ownsClient = ownsClient
    this.words = host.words
    this.channel = client.channel(host.getAttribute("channel") ?? "")
    this.isBusy = false // True while a request for older messages runs
    this.isFollowing = true // True while the reader is at the end
    this.isDrawing = false
    /** The question that was sent last in this page stands at the top. @type {string | null} */
    this.pinned = null
    /** @type {Map<string, MessageView>} */
    this.views = new Map()
    root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheetOf(PANEL_STYLE)]
    const { words } = this
    this.title = element("h2", { part: "title" })
    this.people = element("p", { class: "people" })
    this.messages = element("div", { class: "messages" })
    this.spacer = element("div", { class: "spacer" })
    this.empty = element("div", { class: "empty" }, element("slot", { name: "empty" }, words.empty))
    this.log = element("div", { class: "log", part: "log", role: "log", "aria-live": "off", tabindex: "0" }, this.empty, this.messages, this.spacer)
    this.jump = button(words.jump, "jump", () => this.toEnd(), svg(DOWN), words.jump)
    this.status = element("p", { class: "status", part: "status" })
    this.spoken = element("p", { class: "spoken", role: "status" })
    this.composer = new Composer(this)
    this.node = this.panel()
    this.node.hidden = true // hidden until the first `update`
    this.startedMs = performance.now()
    this.spokenMs = -SPOKEN_MS
    this.speaking = 0
    this.shownState = ""
    this.unsubscribe = this.channel.subscribe(() => this.schedule())
    this.slow = setTimeout(() => this.schedule(), SLOW_MS)
    this.root.append(this.node)
    this.draw()
  }

  panel() {
    const { host, words } = this
    const close = button(words.close, "close", () => host.hide(), svg(CLOSE))
    const names = element("div", { class: "names" }, this.title, this.people)
    const header = element("header", { part: "header" }, element("slot", { name: "header" }), names, close)
    const footer = element("slot", { name: "footer" })
    const node = element("section", { class: "panel", part: "panel" }, header, this.log, this.jump, this.status, this.composer.node, this.composer.note, footer, this.spoken)
    this.log.addEventListener("scroll", () => this.scrolled(), { passive: true })
    node.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) this.escape()
    })
    return node
  }

  /** Draw the panel according to the attributes of the element. */
  update() {
    const { host, node } = this
    const wasOpen = !node.hidden
    node.hidden = !host.isOpen
    node.classList.toggle("floating", host.isFloating)
    if (host.isFloating) {
      node.setAttribute("role", "dialog")
      node.setAttribute("aria-label", host.getAttribute("heading") ?? this.words.heading)
    }
    setText(this.title, host.getAttribute("heading") ?? this.words.heading)
    if (host.isFloating && wasOpen !== host.isOpen) {
      if (host.isOpen) this.composer.input.focus()
      else /** @type {HTMLElement | null} */ (this.root.querySelector(".launcher"))?.focus()
      this.tell(host.isOpen ? "open" : "close", {})
    }
    this.schedule()
  }

  close() {
    clearTimeout(this.slow)
    this.unsubscribe()
    this.channel.close()
    if (this.ownsClient) this.client.close()
    this.node.remove()
  }

  schedule() {
    if (this.isDrawing) return
    this.isDrawing = true
    const draw = () => {
      this.isDrawing = false
      this.draw()
    }
    if (document.hidden) setTimeout(draw, HIDDEN_MS)
    else requestAnimationFrame(draw)
  }

  draw() {
    const snapshot = this.channel.getSnapshot()
    this.drawMessages(snapshot)
    const { presence, typing, you } = snapshot
    const others = presence.members.filter(({ id, kind }) => kind === "user" && id !== you?.id).map(({ id }) => id)
    setText(this.people, others.length ? `${others.slice(0, 3).join(", ")}${others.length > 3 ? ` +${others.length - 3}` : ""} ${this.words.here}` : "")
    setText(this.status, this.statusWords(snapshot, typing))
    this.status.hidden = !this.status.textContent
    this.empty.hidden = snapshot.messages.length > 0
    this.composer.update(snapshot)
    this.drawBadge(snapshot.unread)
    this.keepPlace()
    if (snapshot.status.state !== this.shownState) {
      this.shownState = snapshot.status.state
      this.tell("status", { status: snapshot.status })
    }
  }

  /** @param {import("./channel.js").Snapshot} snapshot */
  drawMessages({ messages, commands, replied }) {
    /** @type {Set<string>} */
    const ids = new Set()
    let place = /** @type {Element | null} */ (this.messages.firstElementChild)
    for (const message of messages) {
      ids.add(message.id)
      let view = this.views.get(message.id)
      if (!view) {
        view = new MessageView(this, message)
        this.views.set(message.id, view)
      }
      if (view.node === place) place = place.nextElementSibling
      else this.messages.insertBefore(view.node, place)
      view.update(message, commands.filter((one) => one.target === message.id), replied.filter((one) => one.target === message.id))
    }
    for (const [id, view] of this.views) {
      if (ids.has(id)) continue
      view.node.remove()
      this.views.delete(id)
    }
  }

  /** @param {import("./channel.js").Snapshot} snapshot @param {readonly string[]} typing */
  statusWords({ status, isFromCache, you, error }, typing) {
    const { words } = this
    if (error) return error.message
    if (status.state === "closed") return status.error?.message ?? words.closed
    if (status.state !== "live") {
      if (!navigator.onLine) return words.offline
      if (status.error) return status.error.message
      if (isFromCache) return words.fromCache
      if (performance.now() - this.startedMs < SLOW_MS) return ""
      return status.state === "connecting" ? words.connecting : words.reconnecting
    }
    const others = typing.filter((one) => one !== you?.id)
    return others.length ? `${others.slice(0, 2).join(", ")} ${words.typing}` : ""
  }

  /** Dispatch an event to the app. Return whether the app has not prevented the default action. @param {string} name @param {object} detail */
  tell(name, detail) {
    return this.host.dispatchEvent(new CustomEvent(`holdfast-${name}`, { bubbles: true, composed: true, cancelable: true, detail }))
  }

  /** Announce `text` to a screen reader, at most every two seconds. @param {string} text */
  speak(text) {
    const wait_ms = Math.max(0, this.spokenMs + SPOKEN_MS - performance.now())
    clearTimeout(this.speaking)
    this.speaking = window.setTimeout(() => {
      this.spokenMs = performance.now()
      setText(this.spoken, text)
    }, wait_ms)
  }

  /** @param {number} unread */
  drawBadge(unread) {
    const badge = /** @type {HTMLElement | null} */ (this.root.querySelector(".badge"))
    if (!badge) return
    badge.hidden = this.host.isOpen || unread === 0
    setText(badge, String(unread))
  }

  // -- scrolling

  scrolled() {
    const { log } = this
    this.isFollowing = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END
    this.jump.hidden = this.isFollowing
    if (log.scrollTop < NEAR_START) void this.loadOlder()
  }

  async loadOlder() {
    const { hasOlder, messages } = this.channel.getSnapshot()
    if (this.isBusy || !hasOlder || messages.length === 0) return
    this.isBusy = true
    const fromEnd = this.log.scrollHeight - this.log.scrollTop
    try {
      await this.channel.loadOlder()
      this.draw()
      this.log.scrollTop = this.log.scrollHeight - fromEnd // the visible messages stay where they are
    } catch { /* the status line says why the connection is lost */ } finally {
      this.isBusy = false
    }
  }

  toEnd() {
    this.pinned = null
    this.isFollowing = true
    this.keepPlace()
  }

  /** Keep the end in view while the reader is there, and the question that was sent last at the top. */
  keepPlace() {
    const { log, spacer } = this
    const question = this.pinned ? this.views.get(this.pinned)?.node : undefined
    if (question) {
      const below = this.messages.offsetTop + this.messages.offsetHeight - question.offsetTop
      spacer.style.height = `${Math.max(0, log.clientHeight - below - 28)}px`
    } else spacer.style.height = "0"
    if (this.isFollowing) log.scrollTop = log.scrollHeight
    this.jump.hidden = this.isFollowing
  }

  // -- actions of the person

  /** @param {string} text @param {boolean} isSteering */
  async send(text, isSteering) {
    const parts = [{ type: "text", text }]
    const detail = { parts, isSteering }
    if (!this.tell("send", detail)) return
    try {
      if (isSteering) await this.channel.steer(text)
      else {
        const id = this.client.newId()
        const stored = this.channel.send({ id, parts: detail.parts })
        this.pinned = id
        this.isFollowing = true
        this.draw()
        await stored
      }
    } catch (error) {
      this.failed(error)
    }
  }

  stop() {
    this.channel.cancel().catch((/** @type {unknown} */ error) => this.failed(error))
  }

  escape() {
    if (this.channel.getSnapshot().streaming.length) this.stop()
    else if (this.host.isFloating) this.host.hide()
  }

  /** @param {unknown} error */
  failed(error) {
    const words = error instanceof Error ? error.message : String(error)
    this.speak(words)
    this.tell("error", { error })
  }
}
