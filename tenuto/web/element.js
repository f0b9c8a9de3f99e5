/**
 * `TenutoChat`: the chat element, without a definition of its tag.
 *
 * While it is closed it is only a button. Its panel, the client and the Markdown are loaded when it opens.
 * @module
 */
import { element, SPARK, svg } from "./chat/elements.js"
import { STRINGS, stringsOf } from "./chat/strings.js"
import { LAUNCHER_STYLE, sheetOf } from "./chat/style.js"

/** @typedef {import("./chat/marks.js").Mark} Mark */
/**
 * The attributes, each of which is also a property of the same name.
 * @typedef {object} Attributes
 * @property {string} url where the hub is mounted; "" is the hub that serves the module
 * @property {string} channel the conversation; without it, the newest one of the visitor
 * @property {string} token
 * @property {string} identity
 * @property {string} heading
 * @property {string} placeholder
 * @property {string} theme `auto`, `light` or `dark`
 * @property {string} images `same-origin`, or ""
 * @property {boolean} launcher
 * @property {boolean} open
 * @property {boolean} readonly
 */

const THEMES = ["auto", "light", "dark"]
const TEXTS = ["url", "channel", "token", "identity", "heading", "placeholder", "theme", "images"]
const FLAGS = ["launcher", "open", "readonly"]
const NEW_CLIENT = ["url", "channel", "token", "identity", "lang"]
const SHOWN_UNITS = 100 // limit of a wrong value in the console
const AGAIN_MS = 1_000 // the first pause before the panel, or the visitor's chats, are loaded again; each pause is random and the next may be twice as long
const AGAIN_CAP_MS = 15_000

/** On a server, where `HTMLElement` is missing, the import defines a class without instances. @type {typeof HTMLElement} */
const Native = globalThis.HTMLElement ?? class {}
class Reflecting extends Native {}
for (const name of TEXTS) reflect(name, (it) => it.getAttribute(name) ?? "", (it, value) => (value == null ? it.removeAttribute(name) : it.setAttribute(name, String(value))))
// React passes the empty value of `<tenuto-chat launcher="">` on.
for (const name of FLAGS) reflect(name, (it) => it.hasAttribute(name), (it, value) => it.toggleAttribute(name, value === "" || Boolean(value)))

/** @param {string} name @param {(it: HTMLElement) => unknown} read @param {(it: HTMLElement, value: unknown) => unknown} write */
function reflect(name, read, write) {
  Object.defineProperty(Reflecting.prototype, name, {
    configurable: true,
    enumerable: true,
    get() {
      return read(this)
    },
    set(value) {
      write(this, value)
    },
  })
}

const Base = /** @type {{ new (): HTMLElement & Attributes, prototype: HTMLElement & Attributes }} */ (/** @type {unknown} */ (Reflecting))

export class TenutoChat extends Base {
  static observedAttributes = [...TEXTS, ...FLAGS, "lang"]

  /** A client of the app, instead of one for `url` and `token`. @type {import("./client.js").Client | null} */
  client = early(this, "client")
  /** Returns a token, as the option `token` of `connect`. @type {import("./client/token.js").TokenSource | null} */
  tokenProvider = early(this, "tokenProvider")
  /** Words of the app, instead of those of `chat/strings.js`. @type {Partial<import("./chat/strings.js").Strings>} */
  strings = early(this, "strings") ?? {}
  /** Draws a part of a message, or returns null for the usual form. @type {((part: object, message: object) => Node | null) | null} */
  renderPart = early(this, "renderPart")
  /** Draws a formula, or returns null for its source. @type {((tex: string, isBlock: boolean) => Node | null) | null} */
  renderMath = early(this, "renderMath")

  /** @type {import("./chat/panel.js").Panel | null} */
  #panel = null
  /** The client of this element; null with a client of the app. @type {import("./client.js").Client | null} */
  #own = null
  #life = 0 // rises when the panel is closed, so that what is being loaded for it is not used
  #isLoading = false
  #tries = 0
  #hasRecalled = false
  #hasRevisited = false
  /** @type {HTMLElement | null} */
  #sentence = null
  #strings = STRINGS
  /** @type {ShadowRoot | null} */
  #root = null
  /** @type {Mark[] | null} */
  #marks = null

  constructor() {
    super()
    // What an app has set before the tag was defined hides the accessors.
    for (const name of [...TEXTS, ...FLAGS, "marks"]) {
      const known = Object.getOwnPropertyDescriptor(this, name)
      if (!known) continue
      delete (/** @type {any} */ (this)[name])
      Object.assign(this, { [name]: known.value })
    }
  }

  /** The marks of the app in the answers; null for the element's own. @type {Mark[] | null} */
  get marks() {
    return this.#marks
  }

  set marks(marks) {
    this.#marks = Array.isArray(marks) ? marks : null
    this.#panel?.remark()
  }

  connectedCallback() {
    if (!this.#root) {
      this.#root = this.attachShadow({ mode: "open" })
      this.#root.adoptedStyleSheets = [sheetOf(LAUNCHER_STYLE)]
    }
    queueMicrotask(() => this.#draw()) // later, so that the app can first set the properties
  }

  disconnectedCallback() {
    queueMicrotask(() => {
      if (this.isConnected) return this.#panel?.scroller.moved() // it was only moved within the page
      this.#close()
      this.#root?.replaceChildren()
    })
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected || !this.#root) return
    if (NEW_CLIENT.includes(name)) this.#close()
    if (name === "open" && this.#hasRecalled) this.keep({ open: now !== null })
    queueMicrotask(() => this.#draw())
  }

  /** Close the panel, and the client of this element. */
  #close() {
    this.#life++
    this.#panel?.close()
    this.#own?.close()
    this.#panel = this.#own = null
    this.#tries = 0
  }

  /** Return the words of the element, with the app's own in place of the defaults. @returns {import("./chat/strings.js").Strings} */
  get words() {
    return { ...this.#strings, ...this.strings }
  }

  get isOpen() {
    return !this.launcher || this.open
  }

  show() {
    this.open = true
  }

  hide() {
    this.open = false
  }

  /** @internal What the tab keeps about this chat through a reload: whether it is open, which of the visitor's chats it shows, and the newest change that the person has seen, while an answer is due or was not seen. @returns {{ open?: boolean, chat?: string, seen?: number }} */
  get kept() {
    try {
      return JSON.parse(sessionStorage[this.#key]) ?? {}
    } catch {
      return {} // nothing was kept, or the storage is denied
    }
  }

  /** @internal @param {{ open?: boolean, chat?: string, seen?: number }} values */
  keep(values) {
    try {
      sessionStorage[this.#key] = JSON.stringify({ ...this.kept, ...values })
    } catch {} // the storage is denied or full
  }

  get #key() {
    return `tenuto-chat ${this.#address} ${this.channel}`
  }

  async #draw() {
    const { lang } = this
    const strings = await stringsOf(lang)
    const root = this.#root
    if (!root || !this.isConnected || lang !== this.lang) return
    this.#strings = strings
    const mistake = this.#mistake()
    if (mistake) {
      console.error(`<tenuto-chat> ${mistake}`)
      this.#close()
      root.replaceChildren()
      this.#sentence = null
      return this.#explain(this.words.broken)
    }
    if (this.launcher && !this.#hasRecalled) {
      this.#hasRecalled = true
      this.open = this.kept.open ?? this.open
    }
    this.#drawLauncher(root)
    if (!this.isOpen) this.#explain("")
    // A closed chat is loaded only to count the answers that this person does not know yet.
    if (this.isOpen || this.kept.seen !== undefined) void this.#open(root)
    this.#panel?.update()
  }

  /** Return what is wrong in the attributes, for the developer, or nothing. */
  #mistake() {
    const { theme, images } = this
    const wrong = (/** @type {string} */ value) => `got "${value.slice(0, SHOWN_UNITS)}"`
    const channel = this.getAttribute("channel") ?? "absent"
    if (!/^(?!\.\.?$)[\w.:~@=+-]{1,200}$/.test(channel)) return `channel must be a name such as chat:1, ${wrong(channel)}`
    if (!THEMES.includes(theme || "auto")) return `theme must be ${THEMES.join(", ")}, ${wrong(theme)}`
    if (!["", "same-origin"].includes(images)) return `images must be same-origin or absent, ${wrong(images)}`
    try {
      if (/^https?:/.test(this.#address)) return ""
    } catch {} // no URL
    return `url must be an address of http or https, ${wrong(this.url)}`
  }

  /** The URL of the hub: the attribute `url`, or the hub that serves this module. */
  get #address() {
    return new URL(this.url || "..", this.url ? document.baseURI : import.meta.url).href.replace(/\/+$/, "")
  }

  /** Show a sentence for people in place of the chat, or remove it. @param {string} words */
  #explain(words) {
    if (this.#sentence?.textContent === words) return
    this.#sentence?.remove()
    this.#sentence = words ? element("p", { class: "mistake", part: "error", role: "alert" }, words) : null
    if (this.#sentence) this.#root?.prepend(this.#sentence)
  }

  /** @internal Show another of the visitor's chats. @param {string} name */
  choose(name) {
    const before = this.#panel
    if (!before || !this.#root) return
    this.keep({ seen: undefined })
    before.close()
    this.#panel = before.another(this.#root, name)
  }

  /** @internal Load the visitor's chats again, once, because the hub does not know this browser under its id any more. */
  revisit() {
    if (this.#hasRevisited) return
    this.#hasRevisited = true
    this.#close()
    void this.#draw()
  }

  /** @param {ShadowRoot} root */
  #drawLauncher(root) {
    let button = root.querySelector(".launcher")
    if (!this.launcher) return button?.remove()
    if (!button) {
      const badge = element("span", { part: "badge", hidden: true })
      button = element("button", { part: "launcher", type: "button" }, element("slot", { name: "launcher" }, svg(SPARK)), badge)
      button.addEventListener("click", () => (this.isOpen ? this.hide() : this.show()))
      root.append(button)
    }
    button.setAttribute("aria-expanded", `${this.isOpen}`)
    button.setAttribute("aria-label", this.words.open)
  }

  /** @param {ShadowRoot} root */
  async #open(root) {
    if (this.#panel || this.#isLoading) return
    this.#isLoading = true
    const life = this.#life
    try {
      const { client, tokenProvider, token, identity } = this
      const address = this.#address
      const source = tokenProvider ?? (token || undefined)
      const [{ Panel }, { connect }] = await Promise.all([
        import("./chat/panel.js"),
        /** @type {{ connect?: typeof import("./client.js").connect }} */ (client ? {} : import("./client.js")),
      ])
      // before the client connects: its first request would get an id of its own
      const visit = this.hasAttribute("channel") ? null : await import("./chat/visitor.js").then(({ visitOf }) => visitOf(client, address, source))
      if (!this.isConnected || life !== this.#life) return
      const name = visit ? visit.first(this.kept.chat) : this.channel
      if (connect) this.#own = connect({ url: address, token: source ?? visit?.token, identity: identity || visit?.id })
      this.#tries = 0
      this.#explain("")
      this.#panel = new Panel(this, root, /** @type {import("./client.js").Client} */ (client ?? this.#own), name, visit)
      this.#panel.update()
    } catch (error) {
      if (life !== this.#life) return
      const unexplained = { isTemporary: true, words: this.words.unreachable, wait_s: 0 }
      const { isTemporary, words, wait_s } = await import("./chat/error_words.js").then(({ explain }) => explain(error, this.words), () => unexplained)
      if (!isTemporary || !this.#tries) console.error("<tenuto-chat> could not be loaded:", error)
      if (this.isOpen) this.#explain(words)
      const most_ms = Math.min(AGAIN_CAP_MS, AGAIN_MS * 2 ** this.#tries++)
      if (isTemporary) setTimeout(() => this.#draw(), wait_s * 1_000 + AGAIN_MS / 2 + Math.random() * most_ms)
    } finally {
      this.#isLoading = false
      if (life !== this.#life) void this.#draw()
    }
  }
}

/** Return what an app has set before the tag was defined. @param {any} element @param {string} name */
function early(element, name) {
  return element[name] ?? null
}
