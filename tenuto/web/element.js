/**
 * `TenutoChat`: the chat element, without a definition of its tag.
 *
 * While it is closed it is only a button. Its panel, the client and the Markdown are loaded when it opens.
 * @module
 */
import { element, SPARK, svg } from "./chat_nodes.js"
import { STRINGS, stringsOf } from "./chat_strings.js"
import { LAUNCHER_STYLE, sheetOf } from "./chat_style.js"

/** @typedef {import("./chat_marks.js").Mark} Mark */

const THEMES = ["auto", "light", "dark"]
const AGAIN_MS = 2_000 // pause before the panel is loaded again

/** On a server, where `HTMLElement` is missing, the import defines a class without instances. @type {typeof HTMLElement} */
const Base = globalThis.HTMLElement ?? class {}

export class TenutoChat extends Base {
  static observedAttributes = [
    "url", "channel", "token", "identity", "heading", "placeholder", "launcher", "open", "theme", "lang", "readonly", "images",
  ]

  /** A client of the app, instead of one for `url` and `token`. @type {import("./client.js").Client | null} */
  client = early(this, "client")
  /** Returns a token, as the option `token` of `connect`. @type {import("./token.js").TokenSource | null} */
  tokenProvider = early(this, "tokenProvider")
  /** Words of the app, instead of those of `chat_strings.js`. @type {Partial<import("./chat_strings.js").Strings>} */
  strings = early(this, "strings") ?? {}
  /** Draws a part of a message, or returns null for the usual form. @type {((part: object, message: object) => Node | null) | null} */
  renderPart = early(this, "renderPart")
  /** Draws a formula, or returns null for its source. @type {((tex: string, isBlock: boolean) => Node | null) | null} */
  renderMath = early(this, "renderMath")

  /** @type {import("./chat_panel.js").Panel | null} */
  #panel = null
  #isLoading = false
  #strings = STRINGS
  /** @type {ShadowRoot | null} */
  #root = null
  /** @type {Mark[] | null} */
  #marks = null

  constructor() {
    super()
    const early = Object.getOwnPropertyDescriptor(this, "marks")?.value
    if (early === undefined) return
    delete (/** @type {{ marks?: Mark[] | null }} */ (this).marks)
    this.marks = early
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
      if (this.isConnected) return // the element was only moved within the page
      this.#closePanel()
      this.#root?.replaceChildren()
    })
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected || !this.#root) return
    if (["url", "channel", "token", "identity", "lang"].includes(name)) this.#closePanel()
    queueMicrotask(() => this.#draw())
  }

  #closePanel() {
    this.#panel?.close()
    this.#panel = null
  }

  /** Return the words of the element, with the app's own in place of the defaults. */
  get words() {
    return { ...this.#strings, ...this.strings }
  }

  get isFloating() {
    return this.hasAttribute("launcher")
  }

  get isOpen() {
    return !this.isFloating || this.hasAttribute("open")
  }

  show() {
    this.setAttribute("open", "")
  }

  hide() {
    this.removeAttribute("open")
  }

  async #draw() {
    const lang = this.getAttribute("lang")
    const strings = await stringsOf(lang)
    const root = this.#root
    if (!root || !this.isConnected || lang !== this.getAttribute("lang")) return
    this.#strings = strings
    const mistake = this.#mistake()
    if (mistake) {
      console.error(mistake)
      this.#closePanel()
      root.replaceChildren(element("p", { class: "mistake", part: "error", role: "alert" }, mistake))
      return
    }
    this.#drawLauncher(root)
    if (this.isOpen) void this.#open(root)
    this.#panel?.update()
  }

  /** Return a sentence about the first mistake in the attributes, or nothing. */
  #mistake() {
    const theme = this.getAttribute("theme") ?? "auto"
    const channel = this.getAttribute("channel") ?? ""
    if (!/^(?!\.\.?$)[\w.:~@=+-]{1,200}$/.test(channel)) return `<tenuto-chat> channel must be a name such as chat:1, got "${channel}"`
    if (!THEMES.includes(theme)) return `<tenuto-chat> theme must be ${THEMES.join(", ")}, got "${theme}"`
    const images = this.getAttribute("images") ?? "same-origin"
    if (images !== "same-origin") return `<tenuto-chat> images must be same-origin or absent, got "${images}"`
    try {
      if (/^https?:/.test(new URL(this.url, document.baseURI).href)) return ""
    } catch {} // no URL
    return `<tenuto-chat> url must be an address of http or https, got "${this.url}"`
  }

  /** Return the URL of the hub: the attribute `url`, or the hub that serves this module. */
  get url() {
    return this.getAttribute("url") ?? new URL("..", import.meta.url).href.slice(0, -1)
  }

  /** @param {ShadowRoot} root */
  #drawLauncher(root) {
    root.querySelector(".mistake")?.remove()
    let button = root.querySelector(".launcher")
    if (!this.isFloating) return button?.remove()
    if (!button) {
      const badge = element("span", { part: "badge", hidden: true })
      button = element("button", { part: "launcher", type: "button" }, element("slot", { name: "launcher" }, svg(SPARK)), badge)
      button.addEventListener("click", () => (this.isOpen ? this.hide() : this.show()))
      root.append(button)
    }
    button.setAttribute("aria-expanded", String(this.isOpen))
    button.setAttribute("aria-label", this.words.open)
  }

  /** @param {ShadowRoot} root */
  async #open(root) {
    if (this.#panel || this.#isLoading) return
    this.#isLoading = true
    try {
      const loading = Promise.all([import("./chat_panel.js"), /** @type {{ connect?: typeof import("./client.js").connect }} */ (this.client ? {} : import("./client.js"))])
      loading.catch(() => setTimeout(() => this.#draw(), AGAIN_MS)) // the network or the server may be away for a moment
      const [{ Panel }, { connect }] = await loading
      if (!this.isConnected || this.#panel) return
      const client = this.client ?? connect?.({
        url: this.url,
        token: this.tokenProvider ?? this.getAttribute("token") ?? undefined,
        identity: this.getAttribute("identity") ?? undefined,
      })
      if (client) this.#panel = new Panel(this, root, client, client !== this.client)
      this.#panel?.update()
    } catch (error) {
      const words = `<tenuto-chat> could not be loaded: ${error instanceof Error ? error.message : error}`
      console.error(words)
      root.append(element("p", { class: "mistake", part: "error", role: "alert" }, words))
    } finally {
      this.#isLoading = false
    }
  }
}

/** Return what an app has set before the tag was defined. @param {any} element @param {string} name */
function early(element, name) {
  return element[name] ?? null
}
