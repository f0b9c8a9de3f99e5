/**
 * Messages as a page renders them: `parts` and `meta` are always set, and `text` is all the text of the text parts.
 * `attempts` are the parts of type `attempt`, which count no longer: what failed attempts at the answer wrote.
 * @module
 */

/** @typedef {import("../view.js").Message<any, any>} Stored */
/**
 * @typedef {{ readonly state: "sending" | "refused", readonly error?: import("./outbox.js").Refusal, readonly retryAt?: number }} Local
 *   `retryAt`: milliseconds since 1970 before which the server accepts no question of this person
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("../view.js").Message<Meta, Data> & { readonly parts: readonly import("../view.js").Part<Data>[],
 *   readonly meta: Readonly<Partial<Meta>>, readonly text: string,
 *   readonly attempts: readonly Attempt<Data>[], readonly local?: Local }} Message
 *   `local` is set while the server has not stored the message
 */

/**
 * @template [Data=unknown]
 * @typedef {import("../view.js").Part<Data> & { readonly parts: readonly import("../view.js").Part<Data>[], readonly characters: number }} Attempt
 *   `parts` is empty if the attempt was too old to be kept
 */

/** @type {WeakMap<object, Message<any, any>>} so that an unchanged message keeps its identity */
const shown = new WeakMap()

/** @param {Stored} stored @returns {Message<any, any>} */
export function shownMessage(stored) {
  return keep(stored, ({ parts = [], meta = {} }) => ({ ...stored, parts, meta, ...readingOf(parts) }))
}

/** @param {import("./outbox.js").Entry} entry @returns {Message<any, any>} */
export function unsentMessage(entry) {
  if (entry.stored) return shownMessage(entry.stored)
  return keep(entry, ({ id, by, at, draft, error, retryAt }) => {
    const { text, parts = [{ type: "text", text }], meta = {}, ...rest } = draft
    return {
      ...rest, id, parts, meta, role: "user", author: by, status: "complete", ...readingOf(parts), created: Infinity,
      version: 0, created_at: at, updated_at: at, local: { state: error ? "refused" : "sending", ...(error && { error }), ...(retryAt && { retryAt }) },
    }
  })
}

/** @template {object} T @param {T} key @param {(key: T) => Message<any, any>} make */
function keep(key, make) {
  let message = shown.get(key)
  if (!message) shown.set(key, (message = make(key)))
  return message
}

/** @param {readonly import("../view.js").Part[]} parts */
function readingOf(parts) {
  let text = "" // engines join lazily, so this copies no text
  for (const part of parts) if (part.type === "text") text += part.text ?? ""
  return { text, attempts: /** @type {Attempt<any>[]} */ (parts.filter(({ type }) => type === "attempt")) }
}
