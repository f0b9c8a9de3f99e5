/** Sentences for people about errors. What only a developer can mend is in the console. @module */

/** @typedef {import("./strings.js").Strings} Strings */

/** The words for each code of a failed request. @type {Map<string, keyof Strings>} */
const REQUESTS = new Map(Object.entries({
  forbidden: "notAllowed", forbidden_status: "notAllowed", not_writer: "notAllowed", unauthenticated: "signedOut",
  too_large: "tooLong", too_many: "busy", busy: "busy", internal: "busy", store_unavailable: "busy", store_full: "busy", draining: "busy", unreachable: "busy",
  deleted: "gone", not_found: "gone",
  already_answered: "tooLate", finished: "tooLate", streaming: "tooLate", version_conflict: "tooLate",
  closed: "closed", author_mismatch: "unclaimed",
}))
/** The words for each code of a connection or a channel. With any other code only the page's owner can help. @type {Map<string, keyof Strings>} */
const CONNECTIONS = new Map(Object.entries({
  forbidden: "noAccess", unauthenticated: "signedOut", closed: "closed",
  too_many: "busy", busy: "busy",
  unreachable: "unreachable", internal: "unreachable", store_unavailable: "unreachable", draining: "unreachable", token_unavailable: "unreachable",
}))

/** Return a sentence about a failed request of the person. @param {Strings} words @param {string | undefined} code */
export const requestWords = (words, code = "") => words[REQUESTS.get(code) ?? "notDone"]

/** Return a sentence that says why the chat is not connected. @param {Strings} words @param {string} code */
export const connectionWords = (words, code) => words[CONNECTIONS.get(code) ?? "broken"]

/** Return a sentence about an error that kept the chat from opening, whether another attempt may succeed, and after how many seconds at the earliest. @param {unknown} error @param {Strings} words */
export function explain(error, words) {
  const { code } = /** @type {{ code?: unknown }} */ (error)
  if (typeof code !== "string") return { isTemporary: true, words: words.unreachable, wait_s: 0 } // the network is away, or a module was not loaded
  const name = CONNECTIONS.get(code) ?? ""
  return { isTemporary: name === "unreachable" || name === "busy", words: connectionWords(words, code), wait_s: waitOf(error) }
}

/** Return in how many seconds the person may ask again after an error; 0 if that is not limited. @param {unknown} error */
export function waitOf(error) {
  const { code, problem } = /** @type {{ code?: string, problem?: Record<string, unknown> }} */ (error)
  return code === "too_many" && typeof problem?.retry_after_s === "number" ? problem.retry_after_s : 0
}

/** Return the words for a time, such as "40 seconds". @param {number} time_s @param {string} lang */
export function timeWords(time_s, lang) {
  const [count, unit] = time_s < 100 ? [time_s, "second"] : time_s < 6_000 ? [time_s / 60, "minute"] : [time_s / 3_600, "hour"]
  return new Intl.NumberFormat(/^de\b/i.test(lang) ? lang : "en", { style: "unit", unit, unitDisplay: "long" }).format(Math.ceil(count))
}
