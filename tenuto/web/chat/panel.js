/**
 * The open chat element: header, messages, one status line, composer.
 *
 * It draws at most once a frame, and four times a second while the page is hidden. A drawing that takes longer than its
 * time goes on in the next frame: the newest messages come first.
 * @module
 */
import { focusKeeper, Voice } from "./access.js"
import { Composer } from "./composer.js"
import { MessageList } from "./list.js"
import { Marks } from "./marks.js"
import { requestWords, waitOf } from "./error_words.js"
import { button, copyText, element, setText, SPARK, svg } from "./elements.js"
import { Names, peopleWords, statusWords } from "./people.js"
import { Scroller } from "./scroll.js"
import { PANEL_STYLE, sheetOf } from "./style.js"

/** @typedef {import("../client.js").Client} Client */
/** @typedef {import("../client/channel.js").Snapshot} Snapshot */

const HIDDEN_MS = 250
const NEAR_START = 200 // pixels from the start at which older messages are loaded
const SLICE_MS = 12 // time limit of one drawing
const HELD_MS = 6 // time limit of a drawing that also lays out messages above the view
const FIRST_MS = 30 // time limit of the first drawing
const SLOW_MS = 1_000 // time without a connection after which the status line mentions it
const COUNT_MS = 1_000 // time between two drawings of the time until the next question
const MARGINS = 32 // pixels by which a page that is only a chat may be higher than its window: a browser's margins are 16
const CLOSE = "M6 6l12 12M18 6L6 18"
const NEW = "M12 5v14M5 12h14"
const EARLIER = "M12 7v5l3 2M21 12a9 9 0 1 1-18 0a9 9 0 1 1 18 0"

export class Panel {
  closing = new AbortController()
  names = new Names()
  voice = new Voice()
  /** The status line: `unheard` is true after a signal that no agent serves the channel, `trouble` is the reason of a failed request that no message or button shows, `isSlow` is true when the connection was away for some time, and before `until` (milliseconds since 1970) the hub accepts no question. */
  line = { node: element("p", { part: "status", dir: "auto" }), unheard: false, trouble: "", isSlow: false, until: 0 }
  #isDrawing = false
  #shownState = ""
  #isPresent = false
  /** @type {ReturnType<typeof setTimeout> | undefined} set while the time until the next question is shown */
  #count
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #slow

  /** @param {import("../element.js").TenutoChat} host @param {ShadowRoot} root @param {Client} client @param {string} name of the channel @param {import("./visitor.js").Visit | null} visit the chats of a visitor, for an element without `channel` */
  constructor(host, root, client, name, visit) {
    this.host = host
    this.client = client
    this.visit = visit
    if (visit) host.keep({ chat: name }) // a reload shows this chat again, also when another window has begun a newer one
    this.ownsClient = client !== host.client
    const words = (this.words = host.words)
    const ownsChannel = !client.channels.has(name) // False: the app uses the channel, too
    this.channel = client.channel(name)
    this.marks = new Marks(this)
    const sheet = sheetOf(PANEL_STYLE)
    if (!root.adoptedStyleSheets.includes(sheet)) root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet]
    this.nodes = {
      title: element("h2", { part: "title" }),
      people: element("p", { part: "people" }),
      empty: element("div", { part: "empty" }, element("slot", { name: "empty" }, words.empty)),
      fresh: button(words.newChat, "new-chat", () => host.choose(visit?.next() ?? name), svg(NEW)),
      chats: element("select", { "aria-label": words.chats }),
      older: element("p", { part: "older", hidden: true }, words.older),
    }
    this.list = new MessageList(this)
    this.scroller = new Scroller(this)
    this.composer = new Composer(this)
    this.node = this.#panel()
    // On a touch screen focus the messages, because a focused input field would open the keyboard.
    this.keepFocus = focusKeeper(this.node, () => this.#resting())
    this.node.hidden = true // hidden until the first `update`
    const { channel } = this
    const unsubscribe = channel.subscribe(() => {
      if (this.marks.changed()) this.remark()
      this.schedule()
    })
    const unlisten = channel.listen((event) => this.#receive(event))
    this.closing.signal.onabort = () => {
      unsubscribe()
      unlisten()
      if (ownsChannel) channel.close()
      this.node.remove()
    }
    addEventListener("pagehide", () => {
      this.marks.save()
      this.#keepSeen()
    }, { signal: this.closing.signal })
    this.#drawChats()
    this.#awaitConnection()
    root.append(this.node)
  }

  /** Let the status line mention the missing connection after some time: most are back before a person notices. */
  #awaitConnection() {
    this.line.isSlow = false
    clearTimeout(this.#slow)
    this.#slow = setTimeout(() => {
      this.line.isSlow = true
      this.schedule()
    }, SLOW_MS)
  }

  #panel() {
    const { host, words, nodes: { title, people, fresh, chats }, scroller: { log, jump } } = this
    const close = button(words.close, "close", () => host.hide(), svg(CLOSE))
    const names = element("div", { class: "names" }, title, people)
    const earlier = element("label", { part: "chats", title: words.chats }, svg(EARLIER), chats)
    const own = this.visit ? [earlier, fresh] : []
    fresh.title = words.newChat
    chats.addEventListener("change", () => host.choose(chats.value))
    const header = element("header", { part: "header" }, element("slot", { name: "header" }, element("span", { part: "avatar" }, svg(SPARK))), names, ...own, close)
    const footer = element("slot", { name: "footer" })
    const node = element("section", { part: "panel" }, header, log, jump, this.line.node, this.composer.node, this.composer.note, footer, this.voice.node)
    log.addEventListener("click", (event) => this.#clicked(event))
    node.addEventListener("keydown", (event) => this.#escape(event))
    return node
  }

  /** Draw the panel according to the attributes of the element. */
  update() {
    const { host, node } = this
    const heading = host.getAttribute("heading") ?? this.words.heading
    const wasOpen = !node.hidden
    node.hidden = !host.isOpen
    if (node.classList.toggle("floating", host.launcher)) {
      node.setAttribute("role", "dialog")
      node.setAttribute("aria-label", heading)
    }
    setText(this.nodes.title, heading)
    if (this.#shownState) this.schedule()
    else this.draw(FIRST_MS)
    if (wasOpen === host.isOpen) return
    if (host.launcher) {
      if (host.isOpen) this.#resting().focus()
      else /** @type {HTMLElement | null} */ (node.parentNode?.querySelector(".launcher"))?.focus()
      this.emit(host.isOpen ? "open" : "close", {})
    } else if (this.#isAlone() && this.#resting() === this.composer.input) this.composer.input.focus()
  }

  /** Return whether this chat is all that the page is for: no other node has the focus, and the keyboard has nothing else to scroll. */
  #isAlone() {
    const { activeElement, body } = document
    const { scrollHeight, clientHeight } = document.scrollingElement ?? body
    return top === self && activeElement === body && scrollHeight <= clientHeight + MARGINS
  }

  close() {
    this.closing.abort()
  }

  /** Return where the focus is when no other node has it. */
  #resting() {
    return this.composer.node.hidden || matchMedia("(pointer: coarse)").matches ? this.scroller.log : this.composer.input
  }

  /** Return a panel in place of this closed one, for another of the visitor's chats. @param {ShadowRoot} root @param {string} name */
  another(root, name) {
    const panel = new Panel(this.host, root, this.client, name, this.visit)
    panel.node.hidden = false // so that it does not count as opened
    panel.update()
    panel.#resting().focus()
    void this.visit?.refresh().then(() => panel.#drawChats()) // the chat that was left may have its title now
    return panel
  }

  /** Draw the list of the visitor's chats, the present one among them. */
  #drawChats() {
    const { visit, words, channel: { name }, nodes: { chats } } = this
    if (!visit) return
    const known = visit.chats.some(({ channel }) => channel === name) ? visit.chats : [{ channel: name, title: "" }, ...visit.chats]
    chats.replaceChildren(...known.map((one) => new Option(one.title || words.newChat, one.channel, false, one.channel === name)))
    const { parentElement } = chats
    if (parentElement) parentElement.hidden = known.length < 2
  }

  /** Keep in the tab what the person has seen, if an answer is due or was not seen: then a closed chat is loaded after a reload, for its badge. */
  #keepSeen() {
    const { host, scroller, channel } = this
    const { streaming, messages, state } = channel.getSnapshot()
    if (!host.launcher || state === "closed") return
    const isDue = scroller.unread > 0 || streaming.length > 0 || messages.at(-1)?.role === "user"
    host.keep({ seen: isDue ? scroller.seen : undefined })
  }

  /** The client id of this person; until the server confirms it, that of the cached view. */
  get me() {
    return this.client.id ?? this.client.sharing?.identity
  }

  /** Return whether this person may do something here. @param {string} capability */
  may(capability) {
    return !this.host.readonly && this.channel.getSnapshot().you?.can.includes(capability) === true
  }

  // -- drawing

  schedule() {
    if (this.#isDrawing) return
    this.#isDrawing = true
    const draw = () => {
      cancelAnimationFrame(frame)
      clearTimeout(timer)
      this.#isDrawing = false
      if (!this.closing.signal.aborted) this.draw(this.scroller.isFollowing ? SLICE_MS : HELD_MS)
    }
    const timer = setTimeout(draw, HIDDEN_MS) // a hidden page has no frames
    const frame = requestAnimationFrame(draw)
  }

  /** @param {number} most_ms */
  draw(most_ms) {
    const { line, nodes } = this
    this.scroller.notice() // now, because the event of a scroll may come after new text
    const snapshot = this.channel.getSnapshot()
    const { error, messages, presence, streaming, status, typing, you } = snapshot
    if (this.#shownState === "live" && status.state !== "live") this.#awaitConnection()
    if (this.names.update(snapshot)) this.list.round++
    this.list.draw(snapshot, most_ms)
    setText(nodes.people, peopleWords(this, snapshot))
    if (streaming.length) line.unheard = false
    for (const { local } of messages) line.until = Math.max(line.until, local?.retryAt ?? 0)
    const isWorking = presence.members.some(({ kind, data }) => kind === "agent" && data?.message && data.state !== "listening")
    const isRunning = streaming.length > 0 || isWorking
    const words = statusWords(this, snapshot, isRunning)
    const before = line.node.textContent
    const isCounting = line.until > Date.now()
    if (words && words !== before && !typing.length && !(isCounting && this.#count)) this.voice.speak(words)
    clearTimeout(this.#count)
    this.#count = isCounting ? setTimeout(() => this.schedule(), COUNT_MS) : undefined
    if (error?.code === "forbidden" && this.visit) this.host.revisit()
    nodes.fresh.hidden = !this.visit?.channel
    nodes.fresh.disabled = !messages.length
    setText(line.node, words)
    line.node.classList.toggle("mistake", Boolean(status.error))
    line.node.hidden = !words
    nodes.empty.hidden = messages.length > 0 || status.state !== "live"
    this.composer.update(snapshot, isRunning)
    this.scroller.keep()
    this.scroller.drawJump()
    this.keepFocus()
    this.#enter(you)
    if (this.list.isBehind) this.schedule()
    else void this.loadOlder()
    if (status.state !== this.#shownState) {
      if (this.#shownState === "reconnecting" && status.state === "live" && before) this.voice.speak(this.words.online)
      this.#shownState = status.state
      this.emit("status", { status })
    }
  }

  /** Draw the marks again, because they have changed. */
  remark() {
    this.marks.choose()
    for (const view of this.list.views.values()) view.remark()
  }

  /** Make the person present while the chat is open. With a client of the app, the app itself calls `enter`. @param {Snapshot["you"]} you */
  #enter(you) {
    const isHere = this.ownsClient && this.host.isOpen && Boolean(you?.can.includes("presence"))
    if (isHere === this.#isPresent) return
    this.#isPresent = isHere
    const request = isHere ? this.channel.enter() : this.channel.leave()
    request.catch(() => {}) // if it fails, other people do not see this person
  }

  // -- events of the element

  /** Dispatch an event to the app. Return whether the app has not prevented the default action. @param {string} name @param {object} detail */
  emit(name, detail) {
    return this.host.dispatchEvent(new CustomEvent(`tenuto-${name}`, { bubbles: true, composed: true, cancelable: true, detail }))
  }

  // -- what others do

  /** @param {import("../view.js").WireEvent} event */
  #receive(event) {
    if (event.type === "command.reply") {
      const command = this.list.commands.find(({ id }) => id === event.id)
      if (command) this.list.replies.set(command, event)
      if (command?.name === "steer" && command.from === this.me && !event.ok) {
        this.line.trouble = this.words.notSteered
        this.composer.restore(/** @type {{ text?: string } | undefined} */ (command.data)?.text ?? "")
      }
    } else if (event.type === "signal" && event.name === "nobody_listening") this.line.unheard = true
    this.schedule()
  }

  /** Load older messages if the reader is near the start: the log of a chat that is not shown has no height. */
  async loadOlder() {
    const { channel, list, nodes: { older }, scroller: { log } } = this // `older` is shown while the request runs
    const { hasOlder, state } = channel.getSnapshot()
    if (!older.hidden || !hasOlder || state !== "live" || list.isBehind || list.isPaused || log.scrollTop >= NEAR_START || !log.clientHeight) return
    older.hidden = false
    try {
      await channel.loadOlder()
      this.schedule()
    } catch { /* the status line says why the connection is lost */ } finally {
      older.hidden = true
    }
  }

  // -- actions of the person

  /** Send a message; null if the app prevents it. Resolve with whether the text was sent or a message shows it. @param {string} text @param {boolean} isSteering */
  send(text, isSteering) {
    const detail = { parts: [{ type: "text", text }], isSteering }
    return this.emit("send", detail) ? this.#deliver(detail) : null
  }

  /** @param {{ parts: import("../view.js").Part[], isSteering: boolean }} detail */
  async #deliver({ parts, isSteering }) {
    const id = this.client.newId()
    this.line.trouble = ""
    try {
      if (isSteering) await this.channel.steer(parts.map(({ text }) => text ?? "").join(""))
      else {
        const name = this.channel.getSnapshot().presence.members.find((one) => one.id === this.me)?.data?.name
        const stored = this.channel.send({ id, parts, ...(name ? { meta: { author_name: name } } : {}) })
        this.draw(SLICE_MS)
        this.scroller.toEnd(this.composer.isRunning ? undefined : id) // a question that waits hides no running answer
        await stored
      }
      return true
    } catch (error) {
      if (/** @type {{ code?: string }} */ (error).code === "discarded") return true
      const isShown = this.channel.getSnapshot().all.some((one) => one.id === id) // True: the message stays in view, with the reason
      this.failed(error, !isShown)
      return isShown
    }
  }

  stop() {
    this.line.trouble = ""
    this.channel.cancel().catch((/** @type {unknown} */ error) => this.failed(error, true))
  }

  /** @param {KeyboardEvent} event */
  #escape(event) {
    const isOver = this.composer.stop.hidden
    if (event.key !== "Escape" || event.isComposing || (isOver && !this.host.launcher)) return
    event.preventDefault() // otherwise it would also close a dialog around the chat
    if (isOver) this.host.hide()
    else this.stop()
  }

  /** @param {MouseEvent} event */
  #clicked(event) {
    const target = /** @type {Element} */ (event.target).closest?.("button.copy,a")
    if (target instanceof HTMLAnchorElement) {
      if (target.href && !this.emit("link", { href: target.href })) event.preventDefault()
    } else if (target instanceof HTMLElement) {
      void this.run(() => copyText(target, target.closest(".code")?.querySelector("code")?.textContent ?? "", this.words))
    }
  }

  /** Carry out a request of the person, and show in `place` why it failed. @param {() => unknown} request @param {HTMLElement} [place] @param {string} [expected] the code of an error that another event explains */
  async run(request, place, expected) {
    let words = ""
    try {
      await request()
    } catch (error) {
      if (/** @type {{ code?: string }} */ (error).code === expected) return
      words = this.failed(error, !place)
    }
    if (!place) return
    setText(place, words)
    place.hidden = !words
  }

  /** @param {unknown} error @param {boolean} isShown in the status line */
  failed(error, isShown) {
    const { code, message } = /** @type {import("../client/errors.js").TenutoError} */ (error)
    const wait_s = waitOf(error)
    if (wait_s) this.line.until = Date.now() + wait_s * 1_000
    console.warn(`<tenuto-chat> request in ${this.channel.name} failed: ${code ?? ""} ${message ?? error}`)
    const words = requestWords(this.words, code)
    if (!wait_s) {
      if (isShown) this.line.trouble = words
      this.voice.speak(words)
    }
    this.emit("error", { error })
    this.schedule()
    return words
  }
}
