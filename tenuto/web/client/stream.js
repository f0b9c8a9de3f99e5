/**
 * The SSE transport: one stream for each channel, read with `fetch`, which sends a token and sees the status
 * (`docs/protocol.md`, 5). EventSource does neither, and gives up for ever after some failures.
 * @module
 */

import { refusal } from "./errors.js"
import { refused, request } from "./http.js"

/** @typedef {{ type: string, data: string, id: string | undefined }} StreamEvent */

const PING_S = 4
// time for the first bytes after the headers; if they take longer, a proxy buffers the stream
const FIRST_BYTES_MS = 5_000

/** @param {import("./connection.js").Connection} connection @param {string | undefined} token @param {AbortController} stop */
export function dial(connection, token, stop) {
  const { client } = connection
  const channel = /** @type {import("./channel.js").Channel<any, any>} */ (connection.channel)
  const { limit, cursor } = channel
  channel.attaching()

  /** @param {StreamEvent} event */
  const receive = ({ type, data, id }) => {
    if (stop.signal.aborted) return // an event before this one has ended the connection
    if (type === "bye") {
      if (data !== '"unauthenticated"' || !client.tokenRefused(token, true)) connection.fail()
    } else if (type !== "ping") {
      connection.receive(data, (event) => {
        if (type === "you") channel.attached(event)
        else channel.receive({ cursor: id, events: [event] }, data, connection)
      })
    }
  }

  const read = async () => {
    const query = { history: limit, since: cursor, ping_s: PING_S }
    const response = await request(client, "GET", channel.name, "events", { query, token, signal: stop.signal })
    if (stop.signal.aborted) return
    if (!response.body) throw refusal("not_tenuto", `${client.base} sent status ${response.status} without a stream: correct its address`)
    const buffered = setTimeout(() => {
      connection.isBuffered = true
      connection.fail()
    }, FIRST_BYTES_MS)
    stop.signal.addEventListener("abort", () => clearTimeout(buffered))
    connection.opened()
    const parse = eventParser(receive)
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return connection.fail()
      clearTimeout(buffered)
      connection.received() // a long event comes in pieces, and a slow network takes minutes for it
      parse(value)
    }
  }

  read().catch((error) => {
    if (!stop.signal.aborted) refused(connection, error, token)
    else if (error.name !== "AbortError") (globalThis.reportError ?? console.error)(error) // report an unreadable event
  })
}

/**
 * Return a function that takes pieces of an event stream and calls `receive` for each event. An event holds its own `id`
 * only: the protocol sends one where a batch ends.
 * @param {(event: StreamEvent) => void} receive
 */
export function eventParser(receive) {
  let rest = ""
  let type = ""
  /** @type {string[]} */
  let data = []
  /** @type {string | undefined} */
  let id
  return (/** @type {string} */ piece) => {
    const lines = piece.split("\n")
    lines[0] = rest + lines[0]
    rest = /** @type {string} */ (lines.pop())
    for (const raw of lines) {
      const line = raw.replace(/\r$/, "")
      if (!line) {
        if (data.length) receive({ type, data: data.join("\n"), id })
        type = ""
        data = []
        id = undefined
        continue
      }
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? []
      if (name === "event") type = value
      else if (name === "data") data.push(value)
      else if (name === "id") id = value
    }
  }
}
