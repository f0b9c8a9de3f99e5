/** Words about the connection, people and agents: the line below the title, and the one status line. @module */

/** @typedef {import("./channel.js").Snapshot} Snapshot */
/** @typedef {import("./chat_panel.js").Panel} Panel */

const NAMES = 3 // limit of names that are shown
const OWN_WORDS = ["listening", "answering", "waiting"] // states of agents that the messages show

/** The names that people and agents have given to themselves, also of those who have left. */
export class Names {
  /** @type {Map<string, string>} */
  #names = new Map()
  /** @type {Snapshot["presence"] | undefined} */
  #presence

  /** Return whether a name has changed. @param {Snapshot["presence"]} presence */
  update(presence) {
    let isChanged = false
    if (presence !== this.#presence) {
      for (const { id, data } of presence.members) {
        const name = data?.name
        if (typeof name !== "string" || !name || name === this.of(id)) continue
        this.#names.set(id, name)
        isChanged = true
      }
    }
    this.#presence = presence
    return isChanged
  }

  /** Return the name of a client. @param {string} id */
  of(id) {
    return this.#names.get(id) ?? id
  }
}

/** Return the words that name the present people and agents. @param {Panel} panel @param {Snapshot} snapshot */
export function peopleWords({ words, me, names: known }, { presence: { members, count }, state }) {
  const others = members.filter(({ id, kind }) => kind === "user" && id !== me)
  const more = others.length + count - members.length - NAMES
  const names = others.slice(0, NAMES).map(({ id }) => known.of(id)).join(", ")
  return [state === "live" && words.online, names && `${names}${more > 0 ? ` +${more}` : ""} ${words.here}`].filter(Boolean).join(" · ")
}

/** Return the words of the status line, which name the most important state. @param {Panel} panel @param {Snapshot} snapshot @param {boolean} isSlow */
export function statusWords({ words, me, names, client, line: { unheard, trouble } }, { status, isFromCache, error, typing, presence, streaming, commands }, isSlow) {
  if (status.state === "closed") return error?.message ?? status.error?.message ?? words.closed
  if (status.state !== "live") {
    if (!navigator.onLine || client.state === "suspended") return words.offline
    if (status.error) return status.error.message
    if (isFromCache) return words.fromCache
    if (!isSlow) return ""
    return status.state === "connecting" ? words.connecting : words.reconnecting
  }
  if (trouble) return trouble
  const agents = presence.members.filter(({ kind }) => kind === "agent")
  if (unheard && !agents.length && !streaming.length) return words.nobody
  if (commands.some(({ name, from }) => name === "steer" && from === me)) return words.steering
  for (const { id, data } of agents) {
    const state = data?.state
    if (state === "thinking" && !streaming.length) return `${names.of(id)} ${words.isThinking}`
    if (typeof state === "string" && state !== "thinking" && !OWN_WORDS.includes(state)) return `${names.of(id)}: ${state}…`
  }
  const others = typing.filter((one) => one !== me).slice(0, 2)
  return others.length ? `${others.map((one) => names.of(one)).join(", ")} ${others.length > 1 ? words.areTyping : words.typing}` : ""
}
