/**
 * Words: how the demo says numbers and what happened. Pure; wording may change freely.
 * @module
 */

const numbers = new Intl.NumberFormat("en")

/** @param {number} count @param {string} one @param {string} [many] @returns {string} "1 event", "2,060 events" */
export function counted(count, one, many = `${one}s`) {
  return `${numbers.format(count)} ${count === 1 ? one : many}`
}

/** @param {number} count @returns {string} "2,060" */
export function grouped(count) {
  return numbers.format(count)
}

/** @param {number} bytes @returns {string} "812 B", "21.4 KB", "3.1 MB" */
export function sized(bytes) {
  if (bytes < 1_000) return `${bytes} B`
  const [unit, divisor] = bytes < 999_950 ? ["KB", 1e3] : ["MB", 1e6]
  return `${(bytes / divisor).toFixed(1)} ${unit}`
}

/**
 * What the first batch brought, told as a sentence; empty when there is nothing to tell.
 * @param {{ events: number, points: number }} catchUp events about messages, and code points of text
 * @param {object} view
 * @param {boolean} view.isReload did this page begin with it; otherwise it came back from a lost connection
 * @param {number} view.runningPoints length of the answer that is streaming, 0 when none is
 */
export function caughtUp({ events, points }, { isReload, runningPoints }) {
  if (events === 0) return isReload ? "" : "back: nothing was missed"
  // A new start brings every message whole, so the running answer was one event, whatever came beside it.
  if (isReload && runningPoints > 0) return `caught up: ${counted(runningPoints, "character")} in one event`
  return `caught up: ${counted(points, "character")} in ${events === 1 ? "one event" : `${grouped(events)} events`}`
}

/** @type {Record<string, string>} */
const STATES = {
  sending: "sending…",
  streaming: "answering…",
  complete: "",
  cancelled: "stopped",
  interrupted: "interrupted: whoever wrote this is gone",
  failed: "failed",
}

/** @param {string} status @returns {string} what stands beside the author's name */
export function stateOf(status) {
  return STATES[status] ?? status
}
