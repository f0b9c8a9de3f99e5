/**
 * The gallery: the states of the chat element with fixed data, without a server.
 *
 * `gallery.html` shows all of them, `gallery.html?state=NAME&theme=dark` one in one theme. Serve the folder by any file
 * server. The client is the real one, on a socket that plays the server's frames, so its snapshots have their real form.
 * @module
 */
import "../chat.js"
import { element } from "../chat/elements.js"
import { sheetOf } from "../chat/style.js"
import { connect } from "../client.js"
import { STATES } from "./gallery_states.js"
import { View } from "../view.js"

/** @typedef {import("../view.js").WireEvent} WireEvent */
/** @typedef {import("../view.js").Message} Message */
/** @typedef {import("./gallery_states.js").State} State */
/** @typedef {import("../element.js").TenutoChat} TenutoChat */

const CAN = ["subscribe", "history", "publish", "append", "command", "presence"]
const CURSOR = "gallery:1"
const PING_MS = 5_000
const STYLE = `
body { margin: 0; background: #fff; color: #1b2322; font: 16px/1.5 system-ui, sans-serif; }
body.dark { background: #0d1112; color: #e8eceb; }
main > h1 { margin: 24px; }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 32px 24px; padding: 0 24px 48px; }
figure { min-width: 0; margin: 0; }
figcaption { margin-bottom: 8px; }
figcaption a { color: inherit; }
.place { position: relative; contain: layout; height: 640px; border: 1px solid #8884; overflow: hidden; }
.alone .place { height: 100vh; border: 0; }
.place > tenuto-chat:not([launcher]) { height: 100%; --tenuto-width: none; }
.all tenuto-chat { --tenuto-height: 520px; --tenuto-width: 360px; }
.narrow { width: 320px; }
.large { font-size: 200%; }`

/** The server's end of a connection: it sends the frames of a state. */
class Socket {
  /** @type {((event: object) => void) | null} */
  onopen = null
  /** @type {((event: { data: string }) => void) | null} */
  onmessage = null
  /** @type {((event: object) => void) | null} */
  onerror = null
  /** @type {((event: { code: number }) => void) | null} */
  onclose = null

  /** @param {Scene} scene */
  constructor(scene) {
    this.scene = scene
    queueMicrotask(() => void scene.opened(this))
  }

  /** @param {string} text */
  send(text) {
    const frame = JSON.parse(text)
    queueMicrotask(() => this.scene.received(this, frame))
  }

  close() {}

  /** @param {object} frame of the server */
  receive(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) })
  }
}

/** One state on the page: the element, its client, and the simulated server. */
export class Scene {
  /** @type {Socket | null} the one that is open */
  socket = null
  isLost = false // the server is gone
  isRefusing = false // the server refuses messages

  /** @param {string} name @param {State} state */
  constructor(name, state) {
    const scene = this
    this.state = state
    this.server = state.server ?? "live"
    this.name = `chat:${name}`
    this.client = connect({
      url: `/${name}`, // unsent messages belong to one state
      transport: "websocket",
      client: "Ada",
      WebSocket: /** @type {any} */ (class extends Socket {
        constructor() {
          super(scene)
        }
      }),
      fetch: (url) => this.#respond(String(url)),
    })
    this.channel = this.client.channel(this.name)
    if (state.isCached) {
      const view = new View()
      view.apply({ cursor: CURSOR, events: this.start })
      this.channel.show(view, true)
    }
    this.chat = /** @type {TenutoChat} */ (document.createElement("tenuto-chat"))
    const named = state.chats ? {} : { channel: this.name }
    for (const [key, value] of Object.entries({ ...named, heading: "Ask the docs", theme: theme ?? "light", ...state.attributes })) {
      this.chat.setAttribute(key, value)
    }
    this.chat.client = this.client
    this.chat.marks = state.marks ?? []
  }

  /** The first batch. @returns {WireEvent[]} */
  get start() {
    const { attached, messages = [] } = this.state
    return [
      { type: "channel.attached", channel: this.name, epoch: "gallery", serial: 1, resumed: false, ...attached },
      ...messages.map((message) => ({ type: /** @type {const} */ ("message.create"), serial: message.version, message })),
    ]
  }

  /** The client has sent a request. Another program responds when the element has been drawn. */
  async #respond(/** @type {string} */ url) {
    if (url.endsWith("/v1/visitor")) {
      const chats = [this.name, ...(this.state.chats ?? [])].map((title, index) => ({ channel: index ? `${this.name}.${index}` : title, title: index ? title : "What is a cursor?" }))
      return Response.json({ id: "Ada", channel: this.name, chats })
    }
    await (this.server === "foreign" ? until(() => this.root.querySelector(".panel")) : new Promise(() => {}))
    return new Response("<h1>It works</h1>")
  }

  /** The client has opened a socket. @param {Socket} socket */
  async opened(socket) {
    if (this.server === "silent" || this.isLost) return
    if (this.server === "foreign") return socket.onerror?.({})
    if (this.server === "unauthenticated") await until(() => this.root.querySelector(".panel")) // a closed client has no channels
    this.socket = socket
    socket.onopen?.({})
    if (this.server === "unauthenticated") socket.onclose?.({ code: 4201 })
    setInterval(() => socket.receive({ type: "ping", n: 1 }), PING_MS)
  }

  /** The client has sent a frame. Requests without a response here wait for ever. @param {Socket} socket @param {any} frame */
  received(socket, { type, ref }) {
    if (type === "create" && this.state.wait_s) {
      socket.receive({ type: "error", ref, code: "too_many", detail: "10 of 10 questions", retry_after_s: this.state.wait_s })
    } else if (type === "create" && this.isRefusing) {
      socket.receive({ type: "error", ref, code: "too_large", detail: "the message has 9,437,184 bytes, at most 8,388,608 are accepted" })
    }
    if (type !== "attach") return
    if (this.server === "forbidden") {
      return socket.receive({ type: "error", ref, code: "forbidden", detail: `'Ada' needs the capability 'subscribe' on channel '${this.name}'` })
    }
    socket.receive({ type: "ok", ref, you: { id: "Ada", can: this.state.can ?? CAN } })
    socket.receive({ type: "events", channel: this.name, cursor: CURSOR, events: this.start })
    if (this.state.events) this.emit(...this.state.events)
    if (this.server !== "lost") return
    this.isLost = true
    socket.onclose?.({ code: 1006 })
  }

  /** Let the server send events. @param {...WireEvent} events */
  emit(...events) {
    this.socket?.receive({ type: "events", channel: this.name, cursor: CURSOR, events })
  }

  /** Let the server send events when the element has drawn a node. @param {string} selector @param {...WireEvent} events */
  async later(selector, ...events) {
    await until(() => this.root.querySelector(selector))
    this.emit(...events)
  }

  /** Resolve when the element shows the state. */
  async shown() {
    const { act, shows } = this.state
    const end = this.server === "lost" ? "reconnecting" : "live"
    if (act) {
      await until(() => this.channel.state === end && this.root.querySelector(this.state.messages ? ".message" : "textarea"))
      await act(this)
    }
    // Far from the view messages have text, but no layout.
    const texts = () => [...this.root.querySelectorAll(".message, .panel, .launcher, .mistake")]
    await until(() => texts().some((node) => node instanceof HTMLElement && (node.innerText.includes(shows) || (node.matches(".message") && node.textContent?.includes(shows)))))
  }

  // -- actions of the person

  get root() {
    return this.chat.shadowRoot ?? new DocumentFragment()
  }

  get log() {
    return /** @type {HTMLElement} */ (this.root.querySelector(".log"))
  }

  /** Click a button when the element shows it. @param {string} label */
  async click(label) {
    const found = () => [...this.root.querySelectorAll("button")].find((node) => node.getClientRects().length && (node.textContent === label || node.ariaLabel === label))
    await until(found)
    found()?.click()
  }

  /** @param {string} text */
  type(text) {
    const input = /** @type {HTMLTextAreaElement} */ (this.root.querySelector(".composer textarea"))
    input.value = text
    input.dispatchEvent(new Event("input"))
  }

  /** Type a text and send it. @param {string} text */
  async ask(text) {
    this.type(text)
    await this.click("Send")
  }

  /** @param {...string} texts */
  send(...texts) {
    for (const [index, text] of texts.entries()) this.channel.send({ id: `unsent-${index}`, text }).catch(() => {})
  }

  /** Send a message that the server refuses. @param {string} text */
  refuse(text) {
    this.isRefusing = true
    this.send(text)
  }

  /** Show another branch. @param {string} id */
  select(id) {
    this.channel.select(id)
  }

  /** Scroll to the start when all messages are drawn, as often as their first layout moves the view away from it. */
  async scrollUp() {
    const { length } = this.channel.getSnapshot().messages
    await until(() => this.root.querySelectorAll(".message").length === length)
    await until(() => !this.root.querySelector(".older[hidden]") || void (this.log.scrollTop = 0))
  }

  /** Open all folded parts. */
  unfold() {
    for (const node of this.root.querySelectorAll("details")) node.open = true
  }

  hide() {
    this.chat.hide()
  }

  // -- actions of others

  /** @param {...Message} messages */
  create(...messages) {
    this.emit(...messages.map((message) => ({ type: /** @type {const} */ ("message.create"), serial: message.version, message })))
  }

  /** A message is deleted. @param {string} id */
  remove(id) {
    this.emit({ type: "message.delete", serial: 1_000, id })
  }
}

/** Resolve in the frame in which `isTrue` returns a value that is true. @param {() => unknown} isTrue */
async function until(isTrue) {
  do await new Promise(requestAnimationFrame)
  while (!isTrue())
}

/** @param {string} name @param {State} state @param {boolean} isAlone */
function show(name, state, isAlone) {
  if (state.isOffline && isAlone) Object.defineProperty(navigator, "onLine", { value: false }) // this changes the whole page
  const scene = new Scene(name, state)
  const place = element("div", { class: "place" }, scene.chat)
  const link = element("a", { href: `?state=${name}` }, state.title)
  const figure = element("figure", {}, ...(isAlone ? [] : [element("figcaption", {}, link)]), place)
  return { figure, scene }
}

const query = new URLSearchParams(location.search)
const theme = query.get("theme")
const chosen = query.get("state")
const one = chosen === null ? undefined : STATES.get(chosen)
const shown = one ? [show(chosen ?? "", one, true)] : [...STATES].map(([name, state]) => show(name, state, false))
const list = element("div", { class: one ? "alone" : "all" }, ...shown.map(({ figure }) => figure))
document.adoptedStyleSheets = [sheetOf(STYLE)]
document.body.classList.toggle("dark", theme === "dark" || one?.attributes?.theme === "dark")
document.body.append(element("main", {}, ...(one ? [] : [element("h1", {}, "The states of <tenuto-chat>")]), list))
await Promise.all(shown.map(async ({ scene, figure }) => {
  await scene.shown()
  figure.dataset.ready = "yes"
}))
document.body.dataset.ready = "yes" // tests wait for this
