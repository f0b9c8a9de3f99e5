/**
 * Scrolling: the view follows new text while the reader is at the end, and begins with the question that was sent last.
 * Elsewhere the visible text keeps its place while older messages are added above it.
 * @module
 */

const NEAR_END = 40 // pixels from the end that count as the end
const NEAR_START = 200 // pixels from the start at which older messages are loaded
const NEAR_SCREENS = 2 // distance from the start, in heights of the view, at which older messages are built
const GAP = 28 // pixels below the last message

export class Scroller {
  isFollowing = true // the reader is at the end
  /** Id of the question that was sent last in this page, which is kept at the top of the view. @type {string | null} */
  pinned = null
  #lastTop = 0
  #lastHeight = 0

  /** @param {import("./chat_panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel
    panel.log.addEventListener("scroll", () => this.scrolled(), { passive: true })
    // The soft keyboard, a rotated phone and a longer draft change the height without a scroll event, and so does a
    // message when the browser lays it out for the first time.
    this.observer = new ResizeObserver(() => this.keep())
    this.observer.observe(panel.log)
    this.observer.observe(panel.list.node)
  }

  scrolled() {
    this.notice()
    this.panel.drawJump()
    if (this.panel.list.isPaused && !this.isFar) this.panel.schedule()
    if (this.panel.log.scrollTop < NEAR_START) void this.panel.loadOlder()
  }

  /** True: the reader is far from both ends, so that no message is built above the view. */
  get isFar() {
    const { scrollTop, clientHeight } = this.panel.log
    return !this.isFollowing && scrollTop > NEAR_SCREENS * clientHeight
  }

  /**
   * Note whether the reader is at the end, before new text is drawn. Only the reader's own scrolling counts: new text
   * increases the distance from the end, and while messages get their first layout, the browser itself scrolls up.
   */
  notice() {
    const { scrollTop, scrollHeight, clientHeight } = this.panel.log
    const left = scrollHeight - clientHeight - scrollTop
    if (scrollTop < this.#lastTop - 1 && left > 1 && scrollHeight === this.#lastHeight) this.isFollowing = false
    else if (scrollTop > this.#lastTop + 1 && left < NEAR_END) this.isFollowing = true
    this.#lastTop = scrollTop
    this.#lastHeight = scrollHeight
  }

  /** Keep the end in view while the reader is there, and the question that was sent last at the top. */
  keep() {
    const { log, list, spacer } = this.panel
    const question = this.pinned ? list.views.get(this.pinned)?.node : undefined
    const below = question ? list.node.offsetHeight - question.offsetTop : Infinity
    const height = `${Math.max(0, log.clientHeight - below - GAP)}px`
    if (spacer.style.height !== height) spacer.style.height = height
    this.stick()
  }

  /** Go to the end if the reader is there. */
  stick() {
    const { log } = this.panel
    this.#lastHeight = log.scrollHeight
    if (this.isFollowing) log.scrollTop = this.#lastHeight
    this.#lastTop = log.scrollTop
  }

  /** Let the reader be at the end. @param {string | null} pinned the question that was sent */
  toEnd(pinned) {
    this.pinned = pinned
    this.isFollowing = true
    this.keep()
  }

  /**
   * Return a function to call with the nodes that were added above `node`: it scrolls the view as far as they have
   * moved `node`. It lays them out at once, also outside the view, so that their heights are known and the view does
   * not move later.
   *
   * @param {Element} node
   */
  hold(node) {
    const { log } = this.panel
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
