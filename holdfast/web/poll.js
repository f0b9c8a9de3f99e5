/**
 * The long-poll transport, for networks that hold streams back (`docs/protocol.md`, 6).
 * @module
 */

import { OPEN_MS } from "./connection.js"

/** @typedef {import("./connection.js").Connection} Connection */
/** @typedef {import("./connection.js").Transport} Transport */

const WAIT_S = 25

/** @type {Transport} */
export const POLL = {
  name: "poll",
  silence_ms: WAIT_S * 1000 + OPEN_MS,
  dial,
}

/** @param {Connection} connection @param {string | undefined} token */
function dial(connection, token) {
  const { client } = connection
  const channel = /** @type {import("./channel.js").Channel} */ (connection.channel)
  const stop = new AbortController()
  channel.attaching()

  const read = async () => {
    const path = `/v1/channels/${encodeURIComponent(channel.name)}/poll`
    for (let wait_s = 0; ; wait_s = WAIT_S) {
      const query = { since: channel.cursor, history: channel.limit, wait_s }
      const response = await client.http("GET", path, { query, token, signal: stop.signal })
      if (!response.ok) throw await client.problemOf(response)
      const text = await response.text()
      if (stop.signal.aborted) return
      client.token.accepted()
      if (!connection.isOpen) connection.opened()
      connection.receive(text, ({ you, ...batch }) => {
        if (you) channel.attached(you)
        channel.receive(batch, text, connection)
      })
      if (stop.signal.aborted) return // a gap, or a watcher that closed the channel
    }
  }

  read().catch((error) => stop.signal.aborted || client.refusedStream(connection, error, token))
  return () => stop.abort()
}
