"use client"
/**
 * React hooks over the client. Each renders a component only when its own value has changed.
 *
 * A channel is followed while a mounted component uses it, and one second longer: StrictMode mounts twice, and a page
 * that changes between two chats would otherwise connect anew each time. A channel that the hub has refused, or whose
 * client is closed, stays closed until no component uses it: its snapshot says why. On a server the hooks return an empty view.
 * Each hook takes the name of a channel, or a channel that the app has opened; the app closes that channel itself, and the
 * component needs no provider.
 * @module
 */

import { createContext, createElement, useContext, useEffect, useSyncExternalStore } from "react"

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./client.js").Status} Status */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./client/channel.js").Channel<Meta, Data>} Channel
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./client/channel.js").Snapshot<Meta, Data>} Snapshot
 */
/**
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @typedef {import("./client/snapshot.js").Message<Meta, Data>} Message
 */

const CLOSE_MS = 1_000
const Context = createContext(/** @type {Client | null} */ (null))
/** @type {readonly Message<any, any>[]} */
const NO_MESSAGES = []
/** @type {Snapshot<any, any>} */
const EMPTY = {
  messages: NO_MESSAGES, all: NO_MESSAGES, streaming: NO_MESSAGES, hasOlder: false, more: false,
  presence: { members: [], count: 0 }, commands: [], replied: [], typing: [], unread: 0, isFromCache: false, you: null, state: "connecting", error: null, lastCatchUp: null,
  status: { state: "connecting", error: null, transport: "websocket", retryAt: null },
}

/** @type {WeakMap<Client, Map<string, ReturnType<typeof useOf>>>} by the name of the channel */
const uses = new WeakMap()

/** Give all hooks below it a client. @param {{ client: Client, children?: import("react").ReactNode }} props */
export function TenutoProvider({ client, children }) {
  return createElement(Context.Provider, { value: client }, children)
}

/** Return the client of the provider. */
export function useClient() {
  return provided(useContext(Context))
}

/** @param {Client | null} client */
function provided(client) {
  if (!client) throw new Error("this component needs a <TenutoProvider client={connect({ url })}> above it")
  return client
}

/**
 * Return a channel, for its verbs, and follow it while the component is mounted.
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @param {string | Channel<Meta, Data>} name of the channel, or the channel @param {{ history?: number }} [options] @returns {Channel<Meta, Data>}
 */
export function useChannel(name, options) {
  const client = useContext(Context)
  const use = typeof name === "string" ? useOf(provided(client), name, options) : null
  /** @type {Channel<Meta, Data>} */
  const channel = use?.channel ?? /** @type {Channel<Meta, Data>} */ (name)
  if (!channel) throw new Error(`a hook needs a channel, or the name of one, got ${name}`)
  // Render again when the channel closes, or has closed while the effects of the component were unmounted (`Activity`).
  useSyncExternalStore(channel.subscribe, () => channel.state === "closed", () => false)
  useEffect(() => {
    if (!use) return
    use.count++
    clearTimeout(use.timer)
    return () => {
      use.count--
      closeLater(use)
    }
  }, [use])
  return channel
}

/**
 * Return the snapshot of a channel.
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @param {string | Channel<Meta, Data>} name of the channel, or the channel @param {{ history?: number }} [options] @returns {Snapshot<Meta, Data>}
 */
export function useSnapshot(name, options) {
  /** @type {Channel<Meta, Data>} */
  const channel = useChannel(name, options)
  return useSyncExternalStore(channel.subscribe, channel.getSnapshot, () => EMPTY)
}

/**
 * Return the messages of a channel; renders only when one of them has changed.
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @param {string | Channel<Meta, Data>} name of the channel, or the channel @param {{ history?: number }} [options] @returns {readonly Message<Meta, Data>[]}
 */
export function useMessages(name, options) {
  /** @type {Channel<Meta, Data>} */
  const channel = useChannel(name, options)
  return useSyncExternalStore(channel.subscribe, () => channel.getSnapshot().messages, () => NO_MESSAGES)
}

/**
 * Return one message; renders only when this message has changed.
 * @template {object} [Meta=Record<string, unknown>]
 * @template [Data=unknown]
 * @param {string | Channel<Meta, Data>} name of the channel, or the channel @param {string} id @returns {Message<Meta, Data> | undefined}
 */
export function useMessage(name, id) {
  /** @type {Channel<Meta, Data>} */
  const channel = useChannel(name)
  const find = () => channel.getSnapshot().messages.find((message) => message.id === id)
  return useSyncExternalStore(channel.subscribe, find, () => undefined)
}

/** Return the status of the client. @returns {Status} */
export function useStatus() {
  const client = useClient()
  return useSyncExternalStore(client.subscribe, () => client.status, () => EMPTY.status)
}

/**
 * @param {Client} client @param {string} name @param {{ history?: number }} [options]
 * @returns {{ channel: Channel<any, any>, count: number, timer?: ReturnType<typeof setTimeout> }} `count` is the number of mounted components that use the channel
 */
function useOf(client, name, options) {
  const known = uses.get(client) ?? new Map()
  uses.set(client, known)
  /** @type {ReturnType<typeof useOf> | undefined} */
  let use = known.get(name)
  const isOver = client.state === "closed" || (use?.channel.error && !client.channels.has(name))
  if (use && isOver) return use
  const channel = client.channel(name, options)
  if (use?.channel !== channel) {
    known.set(name, (use = { channel, count: 0 }))
    // close it again unless the component is mounted later: React may drop a rendered component
    closeLater(use)
  }
  return use
}

/** @param {ReturnType<typeof useOf>} use */
function closeLater(use) {
  const { channel } = use
  clearTimeout(use.timer)
  use.timer = setTimeout(() => {
    if (use.count) return
    const known = uses.get(channel.client)
    if (known?.get(channel.name) === use) known.delete(channel.name)
    if (channel.state !== "closed") channel.close()
  }, CLOSE_MS)
}
