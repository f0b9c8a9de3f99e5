/**
 * The WebSocket transport: one socket for all channels and all requests (`docs/protocol.md`, 7).
 * @module
 */

import { TenutoError, refusal } from "./errors.js"

/** @typedef {import("./connection.js").Connection} Connection */
/** @typedef {import("./connection.js").Transport} Transport */
/** @typedef {import("./channel.js").Channel<any, any>} Channel */

const RENEW_MS = 30_000 // time before the identity expires at which a new token is sent, but not in the first quarter
const EXPIRED = 4200

/** @type {Transport} */
export const WEBSOCKET = {
  name: "websocket",
  silence_ms: 14_000, // longest silence of a live connection: the server pings every 5 s
  dial,
}

/** @param {Connection} connection @param {string | undefined} token */
function dial(connection, token) {
  const { client } = connection
  /** @type {WebSocket} */
  const socket = client.openSocket(connection.transport.Socket)
  /** @type {Map<unknown, Channel>} by the `ref` of the `attach`, until its response */
  const attaching = new Map()
  /** @type {unknown} the `ref` of the latest `auth` */
  let auth
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let renewal
  /** @type {any} */
  let bye = {}

  /** @param {object} frame */
  const send = (frame) => socket.send(JSON.stringify(frame))
  /** @param {string} value */
  const authenticate = (value) => {
    auth = client.requests.nextRef()
    token = value
    send({ type: "auth", ref: auth, token: value })
  }

  /** @param {number} left_ms until the identity ends, by a timer of the monotonic clock */
  const renewLater = (left_ms) => {
    clearTimeout(renewal)
    const wait_ms = Math.min(Math.max(left_ms - RENEW_MS, left_ms / 4), 1e9) // a timer takes no more than 2e9
    renewal = setTimeout(async () => {
      client.token.renew("expired")
      const value = await Promise.resolve(client.token.get()).catch(() => undefined)
      // Without a new token the server closes the socket with 4200, and the client then calls the callback again.
      if (value && connection.isOpen && renewal) authenticate(value)
    }, wait_ms)
  }

  const begin = () => {
    connection.send = (text) => socket.send(text)
    connection.attach = (channel) => {
      const ref = client.requests.nextRef()
      attaching.set(ref, channel)
      channel.attaching()
      send({ type: "attach", ref, channel: channel.name, history: channel.limit, since: channel.cursor ?? undefined })
    }
    for (const channel of connection.channels) connection.attach(channel)
    for (const { frame } of client.requests.pending.values()) send(frame)
    connection.opened()
  }

  /** @param {any} frame @param {string} text */
  const receive = (frame, text) => {
    const { type, ref, ...rest } = frame
    const channel = attaching.get(ref) ?? client.channels.get(rest.channel)
    if (type === "events") {
      // A batch before the response to the newest attach of its channel belongs to an older one.
      if (channel && ![...attaching.values()].includes(channel)) channel.receive(rest, text, connection)
    }
    else if (type === "ping") send({ type: "pong", n: rest.n })
    else if (type === "bye") bye = rest // the code of the following close decides whether to reconnect
    else if (type === "ok") {
      if (ref === auth) {
        const left_s = rest.you?.expires_s
        if (left_s > 0 && typeof client.token.source === "function") renewLater(left_s * 1000)
        if (!connection.isOpen) begin()
      }
      channel?.attached(rest.you)
      client.requests.settle(ref, rest)
    } else if (type === "error") {
      const error = new TenutoError(rest.code, rest)
      // Ignore a response for a closed channel: another channel may have been opened under its name since.
      if (channel && channel.state !== "closed") connection.refused(error, channel)
      client.requests.settle(ref, error)
    }
    attaching.delete(ref)
  }

  socket.onopen = () => {
    connection.isReached = true
    if (token === undefined) begin()
    else authenticate(token)
  }
  // If a policy of the page blocks the socket, only this event comes; after the handshake the close code has more
  // detail.
  socket.onerror = () => connection.isReached || connection.fail()
  socket.onmessage = ({ data }) => connection.receive(data, receive)
  socket.onclose = ({ code }) => {
    if (code >= 4300) {
      return client.close(refusal(bye.reason ?? "refused", `${client.base} closed the socket with code ${code}: send less, or update this client`, bye))
    }
    if (code >= 4200 && client.tokenRefused(token, code === EXPIRED)) return
    if (code >= 4100 && code < 4200) for (const { view } of connection.channels) view.cursor = null
    connection.fail(bye.retry_ms)
  }
  return () => {
    clearTimeout(renewal)
    renewal = undefined
    socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null
    socket.close()
  }
}
