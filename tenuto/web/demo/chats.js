/** The chats of this browser, each with its first question and its state. @module */
import { at, fill, keep, make, recall } from "./dom.js"

/** Note what a chat shows, once it has a question. @param {Pick<Storage, "getItem" | "setItem">} storage @param {string} channel @param {import("../client.js").Snapshot} snapshot @param {readonly string[]} others names */
export function noteChat(storage, channel, snapshot, others) {
  const all = recall(storage, "chats", /** @type {{ channel: string, title: string, state: string, newest_ms: number }[]} */ ([])) // includes the chats of other windows
  const known = all.find((one) => one.channel === channel)
  const title = known?.title ?? snapshot.messages.find(({ role }) => role === "user")?.text.slice(0, 80)
  const [state, newest_ms] = [stateOf(snapshot, others), snapshot.all.at(-1)?.created_at ?? known?.newest_ms ?? 0]
  if (!title || snapshot.state !== "live" || (known?.state === state && known.newest_ms === newest_ms)) return all
  const next = [...all.filter((one) => one !== known), { channel, title, state, newest_ms }].sort((one, other) => other.newest_ms - one.newest_ms).slice(0, 30)
  keep(storage, "chats", next)
  return next
}

/** Show the chats whose newest message is of today, and the earlier ones. @param {ReturnType<typeof noteChat>} chats @param {string} current @param {(channel: string) => void} open */
export function drawChats(chats, current, open) {
  const held = /** @type {HTMLButtonElement | null} */ (document.activeElement)?.name ?? "" // drawing the list again removes the focused button
  const item = (/** @type {typeof chats[0]} */ { channel, title, state }) => make("button", { name: channel, ariaCurrent: channel === current ? "page" : null, onclick: () => open(channel) }, make("b", { dir: "auto" }, title), make("span", {}, state))
  for (const isToday of [true, false]) {
    const some = chats.filter(({ newest_ms }) => (new Date(newest_ms).toDateString() === new Date().toDateString()) === isToday)
    fill(at(isToday ? "chat-list" : "earlier-list"), JSON.stringify([some, current]), () => some.map((one) => make("li", {}, item(one))))
  }
  if (held) document.getElementsByName(held)[0]?.focus({ preventScroll: true })
}

/** @param {Pick<import("../client.js").Snapshot, "messages" | "streaming" | "replied" | "you" | "more">} snapshot @param {readonly string[]} others */
export function stateOf({ messages, streaming, replied, you, more }, others) {
  const last = messages.at(-1)
  const here = others.length ? `${others.slice(0, 2).join(" and ")} ${others.length > 1 ? "are" : "is"} here` : ""
  if (streaming.length) return `answering${here && ` · ${here}`}`
  if (last?.status !== "cancelled") return here || `${messages.length}${more ? "+" : ""} message${messages.length === 1 ? "" : "s"}`
  const by = replied.find(({ name, target }) => name === "cancel" && (target === last.id || target === last.reply_to))?.from
  return by && by === you?.id ? "stopped by you" : "stopped"
}
