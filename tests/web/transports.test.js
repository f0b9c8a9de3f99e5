/** The choice of a transport, long poll, and the client's error when no connection opens. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"

import { append, attached, channelOf, message, settled, texts, update, world } from "./fakes.js"

const live = { cursor: "e:1", events: [attached(1), update(message("m", 1, "a"))] }

describe("long poll", () => {
  test("asks at once, then waits for events", async (t) => {
    const w = world(t, { transport: "poll" })
    const channel = w.client.channel("c", { history: 7 })
    assert.deepEqual(w.http.polls.map(({ path, query }) => [path, query]), [
      ["/base/v1/channels/c/poll", { sdk: "js", history: "7", wait_s: "0" }],
    ])
    await w.http.poll(live)
    assert.equal(channel.state, "live")
    assert.equal(w.client.state, "live")
    assert.deepEqual(w.http.polls.at(-1).query, { sdk: "js", since: "e:1", history: "7", wait_s: "25" })
    await w.http.poll({ cursor: "e:2", events: [append(2, "m", 1, "b")] })
    assert.deepEqual(texts(channel), ["ab"])
    await w.http.poll({ cursor: "e:3", events: [] })
    assert.equal(w.http.polls.at(-1).query.since, "e:3")
  })

  test("reconnects from its cursor, and is live though no event was missed", async (t) => {
    const { w, channel } = channelOf(t, { transport: "poll" })
    await w.http.poll(live)
    w.http.polls.at(-1).reject(new TypeError("network error"))
    await settled()
    assert.equal(channel.state, "reconnecting")
    w.pass(250)
    assert.deepEqual(w.http.polls.at(-1).query, { sdk: "js", since: "e:1", wait_s: "0" })
    await w.http.poll({ cursor: "e:1", events: [] })
    assert.equal(channel.state, "live")
    assert.equal(channel.stats.reconnects, 1)
  })

  test("attaches anew after a gap", async (t) => {
    const { w } = channelOf(t, { transport: "poll" })
    await w.http.poll(live)
    await w.http.poll({ cursor: "e:9", events: [append(9, "m", 5, "X")] })
    w.pass(250)
    assert.equal(w.http.polls.at(-1).query.since, undefined)
  })

  test("is given up when no response comes within its wait and 10 s", async (t) => {
    const { w } = channelOf(t, { transport: "poll" })
    await w.http.poll(live)
    w.pass(34_999)
    assert.equal(w.http.polls.length, 2)
    w.pass(1)
    w.pass(250)
    assert.equal(w.http.polls.length, 3)
  })
})

describe("a proxy that buffers", () => {
  test("is noticed 5 s after the headers of a stream without its first batch", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.drop()
    await w.source.open()
    w.pass(4_999)
    assert.equal(w.http.polls.length, 0)
    w.pass(1)
    assert.equal(w.client.status.transport, "poll")
    await w.http.poll(live)
    assert.equal(channel.state, "live")
  })

  test("is noticed after 10 s of silence", async (t) => {
    const { w } = channelOf(t)
    w.socket.drop()
    await w.source.open()
    await w.source.receive(attached(1), "e:1")
    w.pass(9_999)
    assert.equal(w.client.status.transport, "sse")
    w.pass(1)
    assert.equal(w.client.status.transport, "poll")
    assert.equal(w.http.polls.at(-1).query.since, "e:1")
  })

  test("does not change a transport that the app has chosen", async (t) => {
    const { w } = channelOf(t, { transport: "sse" })
    await w.source.open()
    w.pass(5_000)
    w.pass(250)
    assert.equal(w.http.polls.length, 0)
    assert.equal(w.sources.length, 2)
  })
})

describe("a slow network", () => {
  const text = "long".repeat(20)

  test("gets eight times as long for the first batch of a further WebSocket, and not for later ones", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    w.socket.ok("attach")
    w.pass(14_000)
    assert.ok(w.socket.isClosed)
    w.pass(250)
    w.socket.open()
    w.socket.ok("attach")
    w.pass(60_000)
    w.socket.events("c", "e:1", attached(1), update(message("m", 1, text)))
    assert.deepEqual([w.client.status.transport, w.sockets.length, texts(channel)], ["websocket", 2, [text]])
    w.pass(14_000 + 1)
    assert.equal(channel.state, "reconnecting")
  })

  test("gets eight times as long for a page of older messages on a further WebSocket, and not afterwards", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    w.socket.events("c", "e:9", attached(9, { before: 9, more: true }))
    const page = channel.loadOlder()
    w.pass(14_000)
    assert.ok(w.socket.isClosed)
    w.openAfter(250)
    w.socket.events("c", "e:9", attached(9, { resumed: true }))
    w.pass(60_000)
    assert.ok(!w.socket.isClosed)
    w.socket.ok("history", { messages: [message("m", 1, text)], more: false })
    await page
    assert.deepEqual(texts(channel), [text])
    w.pass(14_000 + 1)
    assert.equal(channel.state, "reconnecting")
  })

  test("brings a long event of a stream in pieces, each within the longest silence", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    await w.source.open()
    await w.source.receive(attached(1))
    const event = `event: message.update\ndata: ${JSON.stringify(update(message("m", 1, text)))}\nid: e:1\n\n`
    for (let at = 0; at < event.length; at += 40) {
      w.pass(9_999)
      await w.source.write(event.slice(at, at + 40))
    }
    assert.deepEqual([w.sources.length, texts(channel)], [1, [text]])
  })

  test("brings a first poll within 35 s of its headers", async (t) => {
    const { w } = channelOf(t, { transport: "poll" })
    w.http.polls[0].resolve(new Response(new ReadableStream({ start() {} })))
    await settled()
    w.pass(34_999)
    assert.equal(w.http.polls.length, 1)
    w.pass(1)
    w.pass(250)
    assert.equal(w.http.polls.length, 2)
  })
})

describe("a better transport", () => {
  async function polling(t) {
    const { w } = channelOf(t)
    w.socket.drop()
    await w.source.open()
    w.pass(5_000)
    await w.http.poll(live)
    return w
  }

  test("is tried after 5 minutes, beside the one in use", async (t) => {
    const w = await polling(t)
    for (let minute = 0; minute < 10; minute++) {
      w.pass(30_000 - 250)
      await w.http.poll({ cursor: "e:1", events: [] })
      w.pass(250)
    }
    await settled()
    assert.equal(w.sockets.length, 2)
    assert.equal(w.client.state, "live")
    w.socket.open()
    assert.equal(w.sockets[1].isClosed, true) // the WebSocket that was opened only as a trial
    assert.equal(w.client.status.transport, "websocket")
    w.socket.open()
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:1" }])
  })

  test("is not tried while a stream loads its first batch", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.drop()
    await w.source.open()
    const event = `event: message.update\ndata: ${JSON.stringify(update(message("m", 1, "a".repeat(100))))}\nid: e:1\n\n`
    await w.source.receive(attached(1))
    for (const piece of event.match(/[^]{1,4}/g)) {
      w.pass(9_000)
      await w.source.write(piece)
    }
    assert.deepEqual([w.sockets.length, w.sources.length, channel.state], [1, 1, "live"])
    for (let passed_ms = 0; passed_ms < 300_000; passed_ms += 5_000) {
      w.pass(5_000)
      await w.source.write(": ping\n\n")
    }
    assert.equal(w.sockets.length, 2)
    w.socket.drop()
    assert.deepEqual([w.sources.length, channel.state], [1, "live"]) // the stream stays, if there is no better transport
  })

  test("is given up if it does not respond in 10 s", async (t) => {
    const w = await polling(t)
    for (let minute = 0; minute < 10; minute++) {
      w.pass(30_000)
      await w.http.poll({ cursor: "e:1", events: [] })
    }
    w.pass(9_999)
    assert.ok(!w.sockets[1].isClosed)
    w.pass(1)
    assert.ok(w.sockets[1].isClosed)
  })

  test("is SSE if a WebSocket still fails", async (t) => {
    const w = await polling(t)
    for (let minute = 0; minute < 10; minute++) {
      w.pass(30_000)
      await w.http.poll({ cursor: "e:1", events: [] })
    }
    w.socket.drop()
    assert.equal(w.client.status.transport, "sse")
    assert.equal(w.source.url.searchParams.get("since"), "e:1")
  })

  test("is tried at once on another network", async (t) => {
    const w = await polling(t)
    w.page.dispatchEvent(new Event("online"))
    assert.equal(w.client.status.transport, "websocket")
    assert.equal(w.sockets.length, 2)
  })
})

describe("suspend", () => {
  test("disconnects, keeps the view, and resumes from the cursor", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    w.socket.events("c", "e:1", ...live.events)
    w.client.suspend()
    assert.equal(w.client.status.state, "suspended")
    assert.ok(w.socket.isClosed)
    assert.deepEqual(texts(channel), ["a"])
    const deleted = channel.delete("m")
    w.page.dispatchEvent(new Event("online"))
    w.pass(60_000)
    assert.equal(w.sockets.length, 1)
    w.client.resume()
    w.socket.open()
    assert.deepEqual(w.socket.sent.map(({ type, since }) => [type, since]), [["attach", "e:1"], ["delete", undefined]])
    w.socket.ok("delete")
    await deleted
  })
})

test("a suspended client sends no request over HTTP either", async (t) => {
  const { w, channel } = channelOf(t, { transport: "sse" })
  w.client.suspend()
  channel.delete("m").catch(() => {})
  await settled()
  assert.equal(w.http.calls.length, 0)
  w.client.resume()
  await w.source.open()
  assert.equal(w.http.calls.length, 1)
})

describe("the diagnosis", () => {
  const PAGE = { protocol: "http:", origin: "http://localhost:5173", href: "http://localhost:5173/" }

  /** Return a client whose first connection has failed, and the warnings of the console. */
  async function failed(t, options = {}) {
    const warn = t.mock.method(console, "warn", () => {})
    globalThis.location = PAGE
    t.after(() => delete globalThis.location)
    const { w } = channelOf(t, { transport: "websocket", ...options })
    w.socket.drop()
    await import("../../tenuto/web/client/probe.js") // the client loads this module in the same way
    await settled()
    return { w, warnings: () => warn.mock.calls.map(({ arguments: [text] }) => text) }
  }

  test("of a wrong path is not_tenuto", async (t) => {
    const { w, warnings } = await failed(t)
    await w.http.probed(404, { detail: "Not Found" })
    assert.equal(w.client.status.error.code, "not_tenuto")
    assert.equal(w.client.status.state, "connecting")
    assert.deepEqual(warnings(), [
      "tenuto: not_tenuto: http://server.test/base sent status 404, but not as a Tenuto server: correct its address",
    ])
  })

  test("of a foreign origin names the setting and this page's origin", async (t) => {
    const { w } = await failed(t)
    await w.http.probed()
    assert.equal(w.http.probes.at(-1).mode, "no-cors")
    await w.http.probed(200, {})
    assert.equal(w.client.status.error.code, "origin_refused")
    assert.match(w.client.status.error.message, /allowed_origins=\["http:\/\/localhost:5173"\]$/)
  })

  test("of a port without a server is unreachable, and the client keeps trying", async (t) => {
    const { w } = await failed(t)
    await w.http.probed()
    await w.http.probed()
    const { error, retryAt } = w.client.status
    assert.equal(error.code, "unreachable")
    assert.equal(retryAt, 1_000_250)
    w.openAfter(250)
    assert.equal(w.client.status.error, null)
    assert.equal(w.client.status.retryAt, null)
  })

  test("of an http server on an https page is mixed_content", async (t) => {
    const { w } = await failed(t)
    w.client.close()
    globalThis.location = { ...PAGE, protocol: "https:" }
    for (const [host, isBlocked] of [["server.test", true], ["localhost.test", true], ["127.test", true], ["localhost", false], ["127.0.0.1:80", false], ["[::1]:8000", false]]) {
      const secure = world(t, { transport: "websocket", url: `http://${host}/tenuto` })
      secure.client.channel("c")
      secure.socket.drop()
      await settled()
      assert.equal(secure.client.status.error?.code, isBlocked ? "mixed_content" : undefined, host)
      assert.equal(secure.http.probes.length, isBlocked ? 0 : 1, host) // a browser trusts its own machine
    }
  })

  test("of a server of a newer protocol names both versions and the remedy", async (t) => {
    const { w } = await failed(t)
    await w.http.probed(200, { server: "tenuto", protocol: 2 })
    assert.equal(w.client.status.error.code, "unsupported_protocol")
    assert.equal(
      w.client.status.error.message,
      "http://server.test/base speaks protocol 2, this client 1: use the client of the server's release, for example http://server.test/base/web/client.js",
    )
    assert.equal(w.client.status.state, "connecting") // the server may be changed again
  })

  test("of a stream under an unknown path is left to the probe", async (t) => {
    const { w } = await failed(t, { transport: "auto" })
    await w.source.refuse(404, { code: "not_found", detail: "no such path" })
    await w.http.probed(200, { server: "tenuto", protocol: 2 })
    assert.equal(w.client.status.error.code, "unsupported_protocol")
    assert.equal(w.client.channels.size, 1)
  })

  test("finds no error if the server responds as it should, and is made once", async (t) => {
    const { w, warnings } = await failed(t)
    await w.http.probed(200, { server: "tenuto", protocol: 1 })
    assert.equal(w.client.status.error, null)
    assert.deepEqual(warnings(), [])
  })

  test("is not made after a connection has worked", async (t) => {
    const { w } = await failed(t)
    await w.http.probed(200, { server: "tenuto", protocol: 1 })
    w.openAfter(250)
    w.socket.drop()
    w.pass(60_000)
    await settled()
    assert.equal(w.http.probes.length, 1)
  })

  test("by the server's refusal of a stream has the server's code and words", async (t) => {
    const { w, warnings } = await failed(t, { transport: "auto" })
    await w.source.refuse(403, { code: "no_verifier", detail: "This hub has no verifier" })
    assert.equal(w.client.channels.size, 0)
    assert.deepEqual(warnings(), ["tenuto: no_verifier: This hub has no verifier"])
  })
})
