/** Help for screen readers and keyboards: few announcements, and a focus that stays inside the chat. @module */
import { element } from "./elements.js"

const SPOKEN_MS = 2_000 // least time between two announcements

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
    queueMicrotask(() => { // later, because a node that is being removed is laid out until the task ends
      if (held === target && !isLost()) held = null // the person has moved the focus
    })
  })
  return () => {
    if (isLost() && root.getClientRects().length) fallback().focus({ preventScroll: true })
  }
}
