/**
 * The long-poll transport, for networks that hold streams back (`docs/protocol.md`, 6).
 * @module
 */

import { refused, request } from "./http.js"

const WAIT_S = 25 // time that a poll waits at the server; the client gives up 10 s later

/** @param {import("./connection.js").Connection} connection @param {string | undefined} token @param {AbortController} stop */
export function dial(connection, token, stop) {
  const { client } = connection
  const channel = /** @type {import("./channel.js").Channel<any, any>} */ (connection.channel)
  channel.attaching()

  const read = async () => {
    // an event may end this connection: a gap, or a watcher that closed the channel
    for (let wait_s = 0; !stop.signal.aborted; wait_s = WAIT_S) {
      const query = { since: channel.cursor, history: channel.limit, wait_s }
      const response = await request(client, "GET", channel.name, "poll", { query, token, signal: stop.signal })
      if (stop.signal.aborted) return
      if (!connection.isOpen) connection.opened()
      const text = await response.text()
      if (stop.signal.aborted) return
      connection.receive(text, ({ you, ...batch }) => {
        if (you) channel.attached(you)
        channel.receive(batch, text, connection)
      })
    }
  }

  read().catch((error) => stop.signal.aborted || refused(connection, error, token))
}
