/** Words about the connection, people and agents: the line below the title, and the one status line. @module */

import { connectionWords, timeWords } from "./error_words.js"

/** @typedef {import("../client/channel.js").Snapshot} Snapshot */
/** @typedef {import("./panel.js").Panel} Panel */

const NAMES = 3 // limit of names that are shown
const OWN_WORDS = ["listening", "answering", "waiting"] // states of agents: the message of such an agent shows them

/**
 * The names of people and agents. Presence has them; for a person who has left, the newest message may have one, in
 * `meta.author_name`. People choose their names, so a name that is also the name or the id of another one is followed
 * by the id in brackets, which no name has.
 */
export class Names {
  /** @type {Map<string, string>} the names that presence had, also of those who have left */
  #present = new Map()
  /** @type {Map<string, string>} */
  #shown = new Map()
  /** @type {Snapshot["presence"] | undefined} */
  #presence
  #count = 0 // of messages

  /** Return whether a name has changed. @param {Snapshot} snapshot */
  update({ presence, all }) {
    if (presence === this.#presence && all.length === this.#count) return false
    this.#presence = presence
    this.#count = all.length
    /** @type {Map<string, string>} */
    const names = new Map()
    const put = (/** @type {string} */ id, /** @type {unknown} */ name) => names.set(id, nameOf(name) || (names.get(id) ?? id))
    for (const { author, meta } of all) if (author) put(author, meta.author_name)
    for (const { id, data } of presence.members) this.#present.set(id, nameOf(data?.name) || (this.#present.get(id) ?? ""))
    this.#present.forEach((name, id) => put(id, name))
    /** @type {Map<string, string>} the only id that a name stands for; "" if there are several */
    const owners = new Map()
    names.forEach((name, id) => [name, id].map(plain).forEach((one) => owners.set(one, (owners.get(one) ?? id) === id ? id : "")))
    let isChanged = false
    names.forEach((name, id) => {
      const now = name === id || owners.get(plain(name)) === id ? name : `${name} (${id})`
      isChanged ||= now !== this.of(id)
      this.#shown.set(id, now)
    })
    return isChanged
  }

  /** Return the name of a client. @param {string} id */
  of(id) {
    return this.#shown.get(id) ?? id
  }
}

/** Return a name that a person chose, as one short line whose direction is that of its letters; "" if it shows none. @param {unknown} name */
const nameOf = (name) => {
  const line = typeof name === "string" ? name.normalize("NFKC").replace(/[\s\p{Cc}\p{Bidi_C}()]+/gu, " ").trim().match(/^.{0,64}/u)?.[0] ?? "" : ""
  return /[\p{L}\p{N}\p{Extended_Pictographic}]/u.test(plain(line)) ? line : ""
}

/** Return the same text for names that look the same. @param {string} name */
const plain = (name) => name.normalize("NFKC").replace(/[\p{C}\p{DI}\s]/gu, "").toLowerCase()

/** Return the words that name the present people and agents. @param {Panel} panel @param {Snapshot} snapshot */
export function peopleWords({ words, me, names: known }, { presence: { members, count }, state }) {
  const others = members.filter(({ id, kind }) => kind === "user" && id !== me)
  const more = others.length + count - members.length - NAMES
  const names = others.slice(0, NAMES).map(({ id }) => known.of(id)).join(", ")
  return [state === "live" && words.online, names && `${names}${more > 0 ? ` +${more}` : ""} ${words.here}`].filter(Boolean).join(" · ")
}

/** Return the words of the status line, which name the most important state. @param {Panel} panel @param {Snapshot} snapshot @param {boolean} isRunning True: an answer can be steered */
export function statusWords({ words, me, names, client, host, line: { unheard, trouble, isSlow, until } }, { status, isFromCache, typing, presence, streaming, commands }, isRunning) {
  if (status.state === "closed") return connectionWords(words, status.error?.code ?? "closed")
  if (status.state !== "live") {
    if (!navigator.onLine || client.state === "suspended") return words.offline
    if (status.error) return connectionWords(words, status.error.code)
    if (isFromCache) return words.fromCache
    if (!isSlow) return ""
    return status.state === "connecting" ? words.connecting : words.reconnecting
  }
  const left_s = Math.ceil((until - Date.now()) / 1_000)
  if (left_s > 0) return words.askAgain.replace("{time}", timeWords(left_s, host.lang))
  if (trouble) return trouble
  const agents = presence.members.filter(({ kind }) => kind === "agent")
  if (unheard && !agents.length && !streaming.length) return words.nobody
  if (isRunning && commands.some(({ name, from }) => name === "steer" && from === me)) return words.steering
  for (const { id, data } of agents) {
    const state = data?.state
    if (state === "thinking" && !streaming.length) return `${names.of(id)} ${words.isThinking}`
    if (typeof state === "string" && state !== "thinking" && !OWN_WORDS.includes(state)) return `${names.of(id)}: ${state}…`
  }
  const others = typing.filter((one) => one !== me).slice(0, 2)
  return others.length ? `${others.map((one) => names.of(one)).join(", ")} ${others.length > 1 ? words.areTyping : words.typing}` : ""
}
