/** Help for screen readers and keyboards: one voice that speaks rarely, and a focus that is never lost. @module */
import { element } from "./chat_nodes.js"

const SPOKEN_MS = 2_000 // between two announcements

/** The only live region. Texts that come within two seconds are announced together. */
export class Voice {
  node = element("p", { class: "spoken", role: "status" })
  #spokenMs = -SPOKEN_MS
  /** @type {string[]} */
  #waiting = []

  /** @param {string} text */
  speak(text) {
    if (this.#waiting.push(text) > 1) return
    setTimeout(() => {
      this.#spokenMs = performance.now()
      this.node.replaceChildren(this.#waiting.splice(0).join(" "))
    }, Math.max(0, this.#spokenMs + SPOKEN_MS - performance.now()))
  }
}

/**
 * Return a function that focuses `fallback()` if the focused node inside `root` was hidden, disabled or removed.
 *
 * @param {HTMLElement} root @param {() => HTMLElement} fallback
 */
export function focusKeeper(root, fallback) {
  /** @type {(HTMLElement & { disabled?: boolean }) | null} */
  let held = null
  const isLost = () => held !== null && (held.disabled || held.getClientRects().length === 0)
  root.addEventListener("focusin", ({ target }) => (held = /** @type {HTMLElement} */ (target)))
  root.addEventListener("focusout", ({ target }) => {
    queueMicrotask(() => { // a node that is being removed still has its place
      if (held === target && !isLost()) held = null // the person went elsewhere
    })
  })
  return () => {
    if (isLost() && root.getClientRects().length) fallback().focus({ preventScroll: true })
  }
}
