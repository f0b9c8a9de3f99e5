/**
 * Words: the demo's texts for numbers and events. Pure; wording may change freely.
 * @module
 */

/** @typedef {import("../view.js").Command} Command */

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

/** @param {readonly string[]} names @returns {string} "Ada", "Ada and Bo", "Ada, Bo and Cy" */
export function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`
}

/** @param {readonly string[]} names @returns {string} a sentence about the typing people; empty for none */
export function typingOf(names) {
  if (names.length === 0) return ""
  return names.length > 3 ? "several people are typing…" : `${listed(names)} ${names.length === 1 ? "is" : "are"} typing…`
}

/**
 * Return a sentence about the first batch; empty for an empty conversation.
 * @param {{ events: number, points: number }} catchUp events about messages, and code points of text
 * @param {object} view
 * @param {boolean} view.isReload whether the page was loaded; otherwise it reconnected
 * @param {number} view.runningPoints length of the answer that is streaming, 0 when none is
 */
export function caughtUp({ events, points }, { isReload, runningPoints }) {
  if (events === 0) return isReload ? "" : "back: no event was missed"
  // A new start brings every message whole, so the running answer was one event.
  if (isReload && runningPoints > 0) return `caught up: ${counted(runningPoints, "character")} in one event`
  return `caught up: ${counted(points, "character")} in ${events === 1 ? "one event" : `${grouped(events)} events`}`
}

/** Return the name of a member, or else its id. @param {{ id: string, data?: Record<string, unknown> }} member */
export function nameOf({ id, data }) {
  return text(data?.name) || id.replace(/^@/, "")
}

/** Return the activity of an agent, in its own words. @param {Record<string, unknown>} data of the member */
export function workOf({ state, tool }) {
  if (state === "waiting") return "waiting for approval"
  if (state === "using a tool") return text(tool) ? `using a tool: ${text(tool)}` : "using a tool"
  return text(state) + (state === "thinking" || state === "answering" ? "…" : "")
}

/** Return the question of an agent. @param {Command} command */
export function questionOf({ data, from }) {
  const question = text(/** @type {{ question?: unknown } | null} */ (data)?.question)
  return question || `${from ?? "An agent"} asks for your approval.`
}

/** Return a sentence about a pending command, for all viewers. @param {Command} command @param {(id: string) => string} naming */
export function pendingOf(command, naming) {
  const { name, from, data } = command
  const who = from ? naming(from) : "a person"
  if (name === "approve") return `${who} asks: ${questionOf(command)}`
  if (name === "cancel") return `${who} stops the answer…`
  if (name !== "steer") return ""
  return `${who} steers: ${text(/** @type {{ text?: unknown } | null} */ (data)?.text)}`
}

/**
 * Return a sentence about the reply to a command; empty for a reply without news.
 * @param {Command} command @param {{ ok: boolean, data?: any, error?: any, from?: string }} reply
 * @param {(id: string) => string} naming
 */
export function outcomeOf({ name }, { ok, data, error, from }, naming) {
  const who = text(data?.name) || (from ? naming(from) : "")
  if (name === "approve" && !error) return `${who || "a person"} said ${ok ? "yes" : "no"}`
  if (name === "approve") return error.code === "withdrawn" ? "" : "no reply came in time"
  if (name === "steer") return ok ? `${who || "the agent"} takes that up` : "no agent took that up"
  return ""
}

/** Return a sentence about a break, after which another writer continued. @param {{ by?: unknown, successor?: unknown }} one */
export function breakOf({ by, successor }) {
  if (!by || by === successor) return "interrupted here and continued after a restart"
  return `interrupted here: ${text(by)} crashed. ${text(successor)} continues`
}

/** @type {Record<string, string>} */
const STATES = {
  sending: "sending…",
  streaming: "answering…",
  complete: "",
  cancelled: "stopped",
  interrupted: "interrupted: its writer is gone",
  failed: "failed",
}

/** Return the text beside the author's name. @param {string} status @param {unknown} [reason] @returns {string} */
export function stateOf(status, reason) {
  const state = STATES[status] ?? status
  return status === "failed" && text(reason) ? `${state}: ${text(reason)}` : state
}

/** Return `value` if it is text: data of other people may have any type. @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value : ""
}
