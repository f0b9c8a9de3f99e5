/**
 * The errors of this client, and helpers for its callbacks.
 * @module
 */

/** A refusal by the server or by this client. `code` is stable; `problem` is the whole error object that the server sent; without one it has the `detail` alone. */
export class TenutoError extends Error {
  /** @internal @param {string} code @param {Record<string, any>} [problem] */
  constructor(code, problem = {}) {
    super(problem.detail ?? code)
    this.code = code
    this.problem = problem
  }
}

/** @internal Return an error with `detail`, unless `problem` has its own. @param {string} code @param {string} detail @param {object} [problem] */
export const refusal = (code, detail, problem) => new TenutoError(code, { detail, ...problem })

// Temporary codes: attach again later. Any other code closes the channel.
const TEMPORARY = ["busy", "draining", "internal", "store_unavailable", "too_many"]

/** @internal Return whether a later attempt may succeed. @param {{ code: string }} error */
export const isTemporary = (error) => TEMPORARY.includes(error.code)

/** An object whose watchers are called after every change. */
export class Observable {
  /** @type {Set<() => void>} */
  #watchers = new Set()

  /** Call `watcher` after every change. @param {() => void} watcher @returns {() => void} unsubscribes it */
  subscribe = (watcher) => {
    this.#watchers.add(watcher)
    return () => void this.#watchers.delete(watcher)
  }

  /** @internal */
  notify() {
    callAll(this.#watchers)
  }
}

/** @internal Call each callback; an exception of one does not stop the next ones. @param {Set<(value: any) => void>} callbacks @param {unknown} [value] */
export function callAll(callbacks, value) {
  for (const callback of [...callbacks]) {
    try {
      callback(value)
    } catch (error) {
      ;(globalThis.reportError ?? console.error)(error)
    }
  }
}
