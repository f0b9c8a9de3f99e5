/**
 * Scrolling: the view follows new text while the reader is at the end, and begins with the question that was sent last.
 * Elsewhere the visible text keeps its place while older messages are added above it, and a button leads to the end.
 * @module
 */
import { button, element, setText, svg } from "./elements.js"

const NEAR_END = 40 // pixels from the end that count as the end
const NEAR_SCREENS = 2 // distance from the start, in heights of the view, at which older messages are built
const GAP = 28 // pixels below the last message
const DOWN = "M12 5v14M6 13l6 6 6-6"

export class Scroller {
  isFollowing = true // the reader is at the end
  unread = 0 // messages of others that are new or have changed since the person last saw them
  /** Id of the question that was sent last in this page, which is kept at the top of the view. @type {string | null} */
  pinned = null
  #lastTop = 0
  #lastHeight = 0
  seen // the newest version that the person has seen
  #spacer = element("div", { class: "spacer" })

  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    const { list, nodes, words } = panel
    this.panel = panel
    this.seen = panel.host.kept.seen ?? 0
    this.jump = button(words.jump, "jump", () => this.toEnd(null))
    this.jump.prepend(svg(DOWN))
    this.log = element("div", { part: "log", role: "log", "aria-label": words.messages, "aria-live": "off", tabindex: "0" }, nodes.empty, nodes.older, list.node, list.approvals.node, this.#spacer)
    this.log.addEventListener("scroll", () => this.scrolled(), { passive: true })
    this.log.addEventListener("click", ({ target }) => {
      if (!(/** @type {Element} */ (target).closest("summary"))) return
      this.isFollowing = false // a part that the reader opens or closes stays where it is
      requestAnimationFrame(() => {
        this.keep() // below a question at the top it may have room
        this.isFollowing = this.#left < NEAR_END
        this.drawJump()
      })
    })
    // The soft keyboard, a rotated phone and a longer draft change the height without a scroll event, and so does a
    // message when the browser lays it out for the first time.
    const observer = new ResizeObserver(() => { // it ends with its nodes
      this.keep()
      void panel.loadOlder() // a higher view may have room
    })
    observer.observe(this.log)
    observer.observe(list.node)
  }

  scrolled() {
    this.notice()
    this.drawJump()
    if (this.panel.list.isPaused && !this.isFar) this.panel.schedule()
    void this.panel.loadOlder()
  }

  /** True: the reader is far from both ends, so that no message is built above the view. */
  get isFar() {
    const { scrollTop, clientHeight } = this.log
    return !this.isFollowing && scrollTop > NEAR_SCREENS * clientHeight
  }

  /** Pixels between the view and the end. */
  get #left() {
    const { scrollTop, scrollHeight, clientHeight } = this.log
    return scrollHeight - clientHeight - scrollTop
  }

  /**
   * Note whether the reader is at the end, before new text is drawn. Only the reader's own scrolling counts: new text
   * increases the distance from the end, and while messages get their first layout, the browser itself scrolls up.
   */
  notice() {
    const { scrollTop, scrollHeight } = this.log
    const left = this.#left
    if (scrollTop < this.#lastTop - 1 && left > 1 && scrollHeight === this.#lastHeight) this.isFollowing = false
    else if (scrollTop > this.#lastTop + 1 && left < NEAR_END) this.isFollowing = true
    this.#lastTop = scrollTop
    this.#lastHeight = scrollHeight
  }

  /** The element was moved within the page, where it begins at the start: show again what the reader saw. */
  moved() {
    this.log.scrollTop = this.#lastTop
    this.keep()
  }

  /** Keep the end in view while the reader is there, and the question that was sent last at the top. */
  keep() {
    const { log, panel: { list } } = this
    const question = this.pinned ? list.views.get(this.pinned)?.node : undefined
    const below = question ? list.node.offsetHeight - question.offsetTop : Infinity
    this.#spacer.style.height = `${Math.max(0, log.clientHeight - below - GAP)}px`
    this.#lastHeight = log.scrollHeight
    if (this.isFollowing) log.scrollTop = this.#lastHeight
    this.#lastTop = log.scrollTop
  }

  /** Let the reader be at the end. @param {string | null} [pinned] the question that was sent */
  toEnd(pinned = this.pinned) {
    this.pinned = pinned
    this.isFollowing = true
    this.keep()
    this.drawJump()
  }

  /** Draw the button that leads to the end, and the badge. Messages that the person sees at the end count as read. */
  drawJump() {
    const { isFollowing, jump } = this
    const { host, words, me, channel } = this.panel
    const { messages } = channel.getSnapshot()
    if (host.isOpen && isFollowing && !document.hidden) this.seen = messages.reduce((most, { version }) => Math.max(most, version), 0)
    const unread = (this.unread = messages.filter(({ version, author }) => version > this.seen && author !== me).length)
    const label = unread ? `${words.jump} (${unread})` : words.jump
    jump.hidden = isFollowing
    setText(/** @type {Node} */ (jump.lastChild), label)
    const badge = /** @type {HTMLElement | null} */ (this.panel.node.parentNode?.querySelector(".badge"))
    if (!badge) return
    badge.hidden = host.isOpen || unread === 0
    setText(badge, String(unread))
    badge.parentElement?.setAttribute("aria-label", badge.hidden ? words.open : `${words.open}: ${unread}`)
  }

  /**
   * Return a function to call with the nodes that were added above `node`: it scrolls the view as far as they have
   * moved `node`. It lays them out at once, also outside the view, so that their heights are known and the view does
   * not move later.
   *
   * @param {Element} node
   */
  hold(node) {
    const { log } = this
    const top = node.getBoundingClientRect().top
    return (/** @type {HTMLElement[]} */ added) => {
      for (const { style } of added) style.contentVisibility = "visible"
      log.scrollTop += node.getBoundingClientRect().top - top
      this.#lastTop = log.scrollTop
      this.#lastHeight = log.scrollHeight
      requestAnimationFrame(() => added.forEach(({ style }) => (style.contentVisibility = "")))
    }
  }
}
