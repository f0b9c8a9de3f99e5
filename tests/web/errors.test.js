/** The message of an error whose code the client does not know. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { channelOf, settled } from "./fakes.js"

test("a code of the server without words names the address, the status and a remedy", async (t) => {
  t.mock.method(console, "warn", () => {})
  const { w } = channelOf(t, { transport: "websocket" })
  w.socket.drop()
  await import("../../tenuto/web/client/probe.js") // the client loads this module in the same way
  await settled()
  await w.http.probed(503, { code: "busy" })
  assert.equal(w.client.status.error.message, "http://server.test/base/v1 sent status 503: read its log")
})
