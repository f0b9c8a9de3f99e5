/** The client over a network that the test controls. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"

import { connect } from "../../tenuto/web/client.js"
import { tryWebSocket } from "../../tenuto/web/client/fallback.js"
import {
  append, attached, channelOf, goLive, liveChannel, message, settled, streamedChannel, texts, update, world,
} from "./fakes.js"

const refusal = (code) => (error) => error.name === "Error" && error.code === code

test("a relative url outside of a page is refused with the remedy", () => {
  const expected = 'connect({ url }) needs a url, absolute outside of a page: /tenuto'
  assert.throws(() => connect({ url: "/tenuto" }), { code: "invalid_request", message: expected })
})

test("connect names wrong options and the remedy, also in a page", (t) => {
  globalThis.location = { href: "http://page.test/app/" }
  t.after(() => delete globalThis.location)
  for (const [options, named] of [
    [undefined, "undefined"], [null, "undefined"], ["/tenuto", "/tenuto"], [5, "5"], [{}, "undefined"], [{ token: "secret" }, "undefined"],
    [{ url: null }, "null"], [{ url: 5 }, "5"], [{ url: ["/tenuto"] }, "/tenuto"], [{ url: {} }, "[object Object]"], [{ url: "http://" }, "http://"],
  ]) {
    const message = `connect({ url }) needs a url, absolute outside of a page: ${named}`
    assert.throws(() => connect(options), { code: "invalid_request", message })
  }
  for (const url of ["../tenuto/", new URL("http://page.test/tenuto")]) {
    const client = connect({ url, WebSocket: class { close() {} } })
    assert.equal(client.base, "http://page.test/tenuto")
    client.close()
  }
})

describe("a channel over WebSocket", () => {
  test("is attached, shown and live when its first batch is complete", (t) => {
    const w = world(t)
    const channel = w.client.channel("c", { history: 20 })
    assert.equal(w.socket.url, "ws://server.test/base/v1/ws?sdk=js")
    assert.equal(w.socket.protocol, "tenuto.v1")
    assert.equal(w.client.state, "connecting")
    w.socket.open()
    assert.equal(w.client.state, "live")
    assert.equal(channel.state, "connecting")
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", history: 20 }])
    w.socket.events("c", null, attached(1))
    assert.equal(channel.state, "connecting")
    w.socket.events("c", "e:1", update(message("m", 1, "a")))
    assert.equal(channel.state, "live")
    assert.deepEqual(texts(channel), ["a"])
    assert.equal(channel.cursor, "e:1")
  })

  test("shares one socket with the others and detaches when it is closed", (t) => {
    const w = world(t)
    const one = w.client.channel("one")
    assert.equal(w.client.channel("one"), one)
    goLive(w, "one")
    const two = w.client.channel("two")
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "one" }, { channel: "two" }])
    w.socket.events("two", "e:1", attached(1), update(message("m", 1, "two")))
    w.socket.events("one", "e:2", append(2, "m", 1, "b"))
    assert.deepEqual([texts(one), texts(two)], [["ab"], ["two"]])
    one.close()
    assert.equal(one.state, "closed")
    assert.deepEqual(w.socket.sentOf("detach"), [{ channel: "one" }])
    w.socket.events("one", "e:3", append(3, "m", 2, "c"))
    assert.deepEqual(texts(one), ["ab"])
    assert.equal(w.sockets.length, 1)
    assert.notEqual(w.client.channel("one"), one)
  })

  test("is not closed by the refusal of an attach that another one superseded", (t) => {
    const w = world(t)
    w.socket.open()
    w.client.channel("c").close()
    const again = w.client.channel("c")
    const [superseded, newest] = w.socket.sent.filter(({ type }) => type === "attach")
    w.socket.receive({ type: "error", ref: superseded.ref, code: "forbidden", status: 403 })
    w.socket.receive({ type: "ok", ref: newest.ref, you: { id: "ann", can: ["subscribe"] } })
    w.socket.events("c", "e:1", attached(1), update(message("m", 1, "a")))
    assert.deepEqual([again.state, again.you?.id, texts(again)], ["live", "ann", ["a"]])
    assert.equal(w.socket.isClosed, false)
  })

  test("that the server detaches is closed with its reason, and the others go on", (t) => {
    const w = world(t)
    const [one, two] = [w.client.channel("one"), w.client.channel("two")]
    w.socket.open()
    for (const { ref, channel } of w.socket.sent.filter(({ type }) => type === "attach")) {
      w.socket.receive({ type: "ok", ref })
      w.socket.events(channel, "e:1", attached(1), update(message("m", 1, "a")))
    }
    w.socket.receive({ type: "error", ref: null, channel: "one", code: "store_unusable", status: 500 })
    w.socket.events("two", "e:2", append(2, "m", 1, "b"))
    assert.deepEqual([one.state, one.error?.code, two.state, texts(two)], ["closed", "store_unusable", "live", ["ab"]])
    assert.deepEqual([w.sockets.length, w.socket.isClosed], [1, false])
  })

  test("ignores batches before the response to its newest attach", (t) => {
    const w = world(t)
    w.socket.open()
    w.client.channel("c").close()
    const again = w.client.channel("c")
    const [superseded, newest] = w.socket.sent.filter(({ type }) => type === "attach")
    const batch = (serial, text) => ({
      type: "events", channel: "c", cursor: `e:${serial}`, events: [attached(serial), update(message("m", serial, text))],
    })
    w.socket.receive({ type: "ok", ref: superseded.ref })
    w.socket.receive(batch(1, "abc"))
    assert.deepEqual([again.state, texts(again)], ["connecting", []])
    w.socket.receive({ type: "ok", ref: newest.ref })
    w.socket.receive(batch(2, "abcdef"))
    assert.deepEqual([again.state, texts(again), w.socket.isClosed], ["live", ["abcdef"], false])
  })

  test("ignores frames of a closed socket after it is opened again", (t) => {
    const { w } = liveChannel(t)
    w.client.channel("c").close()
    const again = w.client.channel("c")
    assert.deepEqual(w.socket.sentOf("attach").at(-1), { channel: "c" })
    w.socket.events("c", "e:2", append(2, "m", 1, "b"))
    assert.equal(again.state, "connecting")
    assert.equal(again.cursor, null)
    w.socket.events("c", "e:2", attached(2), update(message("m", 1, "ab", { version: 2 })))
    assert.equal(again.state, "live")
    assert.deepEqual(texts(again), ["ab"])
  })

  test("resumes from the cursor of its last complete batch", (t) => {
    const { w, channel } = liveChannel(t)
    w.socket.events("c", null, append(2, "m", 1, "b"))
    w.socket.drop()
    assert.equal(channel.state, "reconnecting")
    assert.equal(w.client.state, "reconnecting")
    assert.deepEqual(texts(channel), ["ab"])
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:1" }])
    w.socket.events("c", "e:3", attached(3, { resumed: true }), append(3, "m", 1, "bc"))
    assert.deepEqual(texts(channel), ["abc"])
    assert.equal(channel.state, "live")
    assert.equal(channel.stats.reconnects, 1)
    assert.equal(channel.stats.gaps, 0)
  })

  test("drops a new start that broke off before its end", (t) => {
    const { w, channel } = liveChannel(t)
    w.socket.events("c", null, attached(9, { epoch: "f" }), update(message("x", 9, "new")))
    w.socket.drop()
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:1" }])
    w.socket.events("c", "e:2", attached(2, { resumed: true }), append(2, "m", 1, "b"))
    assert.deepEqual(texts(channel), ["ab"])
  })

  test("attaches anew after a gap, later each time, and counts it", (t) => {
    const { w, channel } = liveChannel(t)
    w.socket.events("c", "e:5", append(5, "m", 4, "X"))
    assert.equal(channel.stats.gaps, 1)
    assert.equal(channel.cursor, null)
    assert.equal(channel.state, "reconnecting")
    assert.deepEqual(texts(channel), ["a"])
    w.pass(249)
    assert.equal(w.sockets.length, 1)
    w.openAfter(1)
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c" }])
    w.socket.events("c", "e:5", attached(5), update(message("m", 1, "abcdX", { version: 5 })))
    assert.deepEqual(texts(channel), ["abcdX"])
    w.socket.events("c", "e:9", append(9, "m", 9, "Y"))
    assert.equal(channel.stats.gaps, 2)
    w.pass(499)
    assert.equal(w.sockets.length, 2)
    w.pass(1)
    assert.equal(w.sockets.length, 3)
  })

  test("is closed with the error of a permanent refusal, once in the console; the other channels continue", (t) => {
    const { mock } = t.mock.method(console, "warn", () => {})
    const w = world(t)
    const other = w.client.channel("other")
    goLive(w, "other")
    for (const name of ["secret", "secret", "hidden"]) {
      const channel = w.client.channel(name)
      w.socket.refuse("attach", "forbidden", { detail: `no ${name}` })
      assert.equal(channel.state, "closed")
      assert.equal(channel.error.code, "forbidden")
      assert.equal(channel.getSnapshot().error, channel.error)
    }
    assert.deepEqual(mock.calls.map(({ arguments: [text] }) => text), ["tenuto: forbidden: no secret", "tenuto: forbidden: no hidden"])
    assert.equal(other.state, "live")
    assert.equal(w.client.state, "live")
  })

  test("attaches again after a temporary refusal", (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    w.socket.refuse("attach", "busy")
    assert.equal(channel.state, "connecting")
    w.pass(250)
    goLive(w)
    assert.equal(channel.state, "live")
  })
})

describe("a connection", () => {
  test("reconnects with full jitter under a doubling ceiling", (t) => {
    const draws = [0.999, 0, 0.5, 0.999, 0.999, 0.999, 0.999, 0.999]
    const waits = [499.5, 0, 1000, 3996, 7992, 14985, 14985, 14985]
    const { w } = channelOf(t, { transport: "websocket", random: () => draws.shift() ?? 0 })
    for (const [failures, wait] of waits.entries()) {
      w.socket.drop()
      if (wait > 1) w.pass(Math.floor(wait) - 1)
      assert.equal(w.sockets.length, failures + (wait > 1 ? 1 : 1), `not before ${wait}`)
      w.pass(2)
      assert.equal(w.sockets.length, failures + 2, `after ${wait}`)
    }
  })

  test("resets its back-off only after it was stable", (t) => {
    const { w } = liveChannel(t)
    w.socket.drop()
    w.openAfter(250)
    w.pass(4_000)
    w.socket.drop() // the second failure: up to 1 s
    w.pass(499)
    assert.equal(w.sockets.length, 2)
    w.openAfter(1)
    w.pass(5_001)
    w.socket.drop() // a first failure again
    w.pass(250)
    assert.equal(w.sockets.length, 4)
  })

  test("that is silent for 14 s is given up", (t) => {
    const { w, channel } = liveChannel(t)
    w.pass(10_000)
    w.socket.receive({ type: "ping", n: 7 })
    assert.deepEqual(w.socket.sent.at(-1), { type: "pong", n: 7 })
    w.pass(13_999)
    assert.equal(channel.state, "live")
    w.pass(1)
    assert.equal(channel.state, "reconnecting")
    assert.ok(w.socket.isClosed)
    w.socket.drop() // the late end of the old socket has no effect
    w.openAfter(250)
    w.sockets[0].drop()
    assert.equal(w.client.state, "live")
    assert.equal(w.sockets.length, 2)
  })

  test("that does not open within 10 s is given up", (t) => {
    const { w } = channelOf(t, { transport: "websocket" })
    w.pass(9_999)
    assert.ok(!w.socket.isClosed)
    w.pass(1)
    assert.ok(w.socket.isClosed)
    w.pass(250)
    assert.equal(w.sockets.length, 2)
  })

  test("waits for the delay of bye and its own back-off", (t) => {
    const { w } = liveChannel(t)
    w.socket.receive({ type: "bye", reason: "draining", retry_ms: 2_000 })
    assert.ok(!w.socket.isClosed)
    w.socket.drop(1012)
    w.pass(2_249)
    assert.equal(w.sockets.length, 1)
    w.pass(1)
    assert.equal(w.sockets.length, 2)
  })

  for (const [code, since] of [[1001, "e:1"], [1012, "e:1"], [4001, "e:1"], [4100, undefined], [4199, undefined]]) {
    test(`comes back after close code ${code} ${since ? "with its cursor" : "as a new start"}`, (t) => {
      const { w, channel } = liveChannel(t)
      w.socket.drop(code)
      assert.deepEqual(texts(channel), ["a"])
      w.openAfter(250)
      assert.deepEqual(w.socket.sentOf("attach"), [since ? { channel: "c", since } : { channel: "c" }])
    })
  }

  test("stops after close code 4300 with the reason of the server", async (t) => {
    const { w, channel } = liveChannel(t)
    const request = channel.delete("m")
    w.socket.receive({ type: "bye", reason: "forbidden" })
    w.socket.drop(4300)
    await assert.rejects(request, refusal("forbidden"))
    assert.equal(w.client.state, "closed")
    assert.equal(channel.state, "closed")
    assert.equal(channel.error.code, "forbidden")
    w.pass(60_000)
    assert.equal(w.sockets.length, 1)
    assert.throws(() => w.client.channel("d"), refusal("closed"))
  })

  test("that receives an unreadable frame is opened again, since the frame is lost", (t) => {
    const { w, channel } = liveChannel(t)
    assert.throws(() => w.socket.receive("{not json"), SyntaxError)
    assert.equal(channel.state, "reconnecting")
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:1" }])
  })

  test("ignores unknown frames and channels", (t) => {
    const { w, channel } = liveChannel(t)
    w.socket.receive({ type: "sunshine", channel: "c" })
    w.socket.events("d", "e:1", attached(1))
    w.socket.receive({ type: "ok", ref: 4711 })
    w.socket.receive({ type: "error", code: "invalid_request" })
    assert.equal(channel.state, "live")
  })

  for (const type of ["online", "visibilitychange", "pageshow"]) {
    test(`tries at once on ${type}`, (t) => {
      const { w } = liveChannel(t)
      w.socket.drop()
      w.page.dispatchEvent(new Event(type))
      assert.equal(w.sockets.length, 2)
      w.pass(60_000 - 1)
      w.socket.drop()
    })
  }

  test("is replaced on waking if it was silent, and kept otherwise", (t) => {
    const { w } = liveChannel(t)
    w.pass(7_000)
    w.page.dispatchEvent(new Event("pageshow"))
    assert.equal(w.sockets.length, 1)
    w.pass(1)
    w.page.dispatchEvent(new Event("pageshow"))
    assert.equal(w.sockets.length, 2)
  })

  test("is replaced on waking also if the date was set back while it was silent", (t) => {
    let now_ms = 0
    const { w } = liveChannel(t, { now: () => now_ms })
    now_ms += 7_001
    w.page.dispatchEvent(new Event("pageshow"))
    assert.equal(w.sockets.length, 2)
  })

  test("is replaced at once when the browser goes offline: the page does not look online until the watchdog notices", (t) => {
    const { w, channel } = liveChannel(t)
    w.page.dispatchEvent(new Event("offline"))
    assert.equal(channel.state, "reconnecting")
    assert.equal(w.sockets.length, 2)
    w.socket.open() // the server is on this machine
    w.socket.events("c", "e:1", attached(1, { resumed: true }))
    assert.equal(channel.state, "live")
  })

  test("is not opened twice by waking while it opens", (t) => {
    const { w } = liveChannel(t)
    w.socket.drop()
    w.pass(250)
    w.page.dispatchEvent(new Event("online"))
    assert.equal(w.sockets.length, 2)
  })

  test("is kept when the page hides", (t) => {
    const w = world(t)
    globalThis.document = { hidden: true }
    t.after(() => delete globalThis.document)
    w.client.channel("c")
    goLive(w)
    w.socket.drop()
    w.page.dispatchEvent(new Event("visibilitychange"))
    assert.equal(w.sockets.length, 1)
  })

  test("ends with the client: no socket, no timer and no listener remains", async (t) => {
    const { w, channel } = liveChannel(t)
    const request = channel.update("m", { text: "b" })
    w.socket.drop()
    w.client.close()
    const closed = { code: "closed", message: "the client of http://server.test/base is closed: call connect() again" }
    await assert.rejects(request, closed)
    w.pass(60_000)
    w.page.dispatchEvent(new Event("online"))
    assert.equal(w.sockets.length, 1)
    assert.equal(channel.state, "closed")
    await assert.rejects(channel.create({ text: "x" }), closed)
    assert.throws(() => w.client.channel("d"), closed)
  })

  test("ends by an AbortSignal, also one that was aborted before", (t) => {
    const stop = new AbortController()
    const { w } = liveChannel(t, { signal: stop.signal })
    stop.abort()
    assert.equal(w.client.state, "closed")
    assert.ok(w.socket.isClosed)
    const late = world(t, { signal: stop.signal })
    assert.equal(late.client.state, "closed")
    assert.equal(late.sockets.length, 0)
  })
})

describe("the fallback to SSE", () => {
  test("takes over at once where a WebSocket cannot be opened", async (t) => {
    const w = world(t, { client: "ann+1" })
    const channel = w.client.channel("chat:1+2", { history: 5 })
    w.socket.drop()
    const { pathname, searchParams } = w.source.url
    assert.equal(pathname, "/base/v1/channels/chat%3A1%2B2/events")
    assert.deepEqual(Object.fromEntries(searchParams), { sdk: "js", client: "ann+1", history: "5", ping_s: "4" })
    await w.source.open()
    assert.equal(w.client.state, "live")
    await w.source.receive(attached(2))
    await w.source.receive(update(message("m", 1, "a")))
    assert.equal(channel.state, "connecting")
    await w.source.receive(update(message("n", 2, "b")), "e:2")
    assert.equal(channel.state, "live")
    assert.deepEqual(texts(channel), ["a", "b"])
    assert.equal(channel.cursor, "e:2")
  })

  test("shows the events of an unfinished batch, but keeps the cursor", async (t) => {
    const { w, channel } = await streamedChannel(t)
    await w.source.receive(append(2, "m", 1, "b"))
    w.pass(20)
    assert.deepEqual(texts(channel), ["ab"])
    assert.equal(channel.cursor, "e:1")
    await w.source.receive(append(3, "m", 2, "c"), "e:3")
    assert.equal(channel.cursor, "e:3")
    assert.equal(channel.stats.batches, 2)
  })

  test("reconnects by the client's own back-off, from the cursor", async (t) => {
    const { w, channel } = await streamedChannel(t)
    const [first] = w.sources
    await w.source.drop()
    assert.equal(first.isClosed, true)
    assert.equal(channel.state, "reconnecting")
    w.pass(250)
    assert.equal(w.sources.length, 2)
    assert.equal(w.source.url.searchParams.get("since"), "e:1")
    await w.source.open()
    await w.source.receive(attached(1, { resumed: true }), "e:1")
    assert.equal(channel.state, "live")
    assert.equal(channel.stats.reconnects, 1)
    assert.equal(w.sockets.length, 0)
  })

  test("is given up after 10 s without an event, a ping or a comment", async (t) => {
    const { w } = channelOf(t, { transport: "sse" })
    await w.source.open()
    await w.source.receive(attached(1), "e:1")
    w.pass(9_000)
    await w.source.receive({ type: "ping" })
    w.pass(9_000)
    await w.source.write(": heartbeat\n\n")
    w.pass(9_999)
    assert.equal(w.source.isClosed, false)
    w.pass(1)
    assert.equal(w.source.isClosed, true)
    w.pass(500)
    assert.equal(w.sources.length, 2)
  })

  test("reconnects after bye, though its stream ended in order", async (t) => {
    const { w } = channelOf(t, { transport: "sse" })
    await w.source.open()
    await w.source.bye("draining")
    assert.equal(w.source.isClosed, true)
    w.pass(250)
    assert.equal(w.sources.length, 2)
  })

  test("attaches anew after a gap", async (t) => {
    const { w, channel } = await streamedChannel(t)
    await w.source.receive(append(9, "m", 5, "X"), "e:9")
    assert.equal(channel.stats.gaps, 1)
    w.pass(250)
    assert.equal(w.source.url.searchParams.get("since"), null)
  })

  test("has one stream for each channel, closed with it", (t) => {
    const w = world(t, { transport: "sse" })
    const one = w.client.channel("one")
    w.client.channel("two")
    assert.deepEqual(w.sources.map(({ url }) => url.pathname.split("/")[4]), ["one", "two"])
    one.close()
    assert.deepEqual(w.sources.map(({ isClosed }) => isClosed), [true, false])
    w.pass(60_000)
    assert.ok(w.sources.slice(2).every(({ url }) => url.pathname.includes("two")))
  })

  test("is tried in turn while neither opens", async (t) => {
    const { w } = channelOf(t)
    w.socket.drop()
    await w.source.drop()
    assert.deepEqual([w.sockets.length, w.sources.length], [1, 1])
    w.pass(250)
    assert.deepEqual([w.sockets.length, w.sources.length], [2, 1])
    w.socket.drop()
    assert.deepEqual([w.sockets.length, w.sources.length], [2, 2])
    await w.source.drop() // the second failure of both: up to 1 s
    w.pass(499)
    assert.equal(w.sockets.length, 2)
    w.pass(1)
    assert.equal(w.sockets.length, 3)
  })

  test("is not tried before there is a channel", (t) => {
    const w = world(t)
    w.socket.drop()
    w.pass(250)
    assert.equal(w.sockets.length, 2)
    const channel = w.client.channel("c")
    goLive(w)
    assert.equal(channel.state, "live")
  })

  test("is kept if no WebSocket ever worked", async (t) => {
    const { w } = channelOf(t)
    w.socket.drop()
    await w.source.open()
    await w.source.drop()
    w.pass(250)
    assert.deepEqual([w.sockets.length, w.sources.length], [1, 2])
  })

  test("waits for three failures if a WebSocket worked before, and yields to it later", async (t) => {
    const { w } = liveChannel(t)
    w.socket.drop()
    for (const wait of [250, 500, 1_000]) {
      assert.equal(w.sources.length, 0)
      w.pass(wait)
      w.socket.drop()
    }
    assert.equal(w.sources.length, 1)
    assert.equal(w.source.url.searchParams.get("since"), "e:1")
    await w.source.open()
    await w.source.drop()
    const before = w.sockets.length
    w.pass(15_000)
    assert.equal(w.sockets.length, before + 1)
    assert.equal(w.sources.length, 1)
  })

  test("is left for a WebSocket that opens, whose time limit has no effect any more", (t) => {
    const w = world(t, { transport: "sse" })
    const seen = []
    tryWebSocket(w.client, (isOpen) => seen.push(isOpen))
    w.socket.open()
    w.socket.close = () => seen.push("closed again") // by the timer, which would keep a program of Node.js alive
    w.pass(10_000)
    assert.deepEqual(seen, [true])
    tryWebSocket(w.client, (isOpen) => seen.push(isOpen))
    w.socket.close = () => w.socket.drop()
    w.pass(10_000)
    assert.deepEqual(seen, [true, false])
  })

  test("is used in a browser without WebSocket, and never with transport websocket", async (t) => {
    const { w } = channelOf(t, { WebSocket: class { constructor() { throw new Error("SecurityError") } } })
    w.pass(250)
    assert.equal(w.sources.length, 1)
    const strict = world(t, { transport: "websocket" })
    strict.client.channel("c")
    strict.socket.drop()
    strict.pass(15_000)
    assert.equal(strict.sources.length, 0)
  })
})

describe("requests over WebSocket", () => {
  test("are sent in the order of the calls and matched by ref", async (t) => {
    const { w, channel } = liveChannel(t)
    const first = channel.create({ id: "u1", text: "hi" })
    const second = channel.delete("m")
    await settled()
    assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "u1", text: "hi" }])
    assert.deepEqual(w.socket.sentOf("delete"), [{ channel: "c", id: "m" }])
    w.socket.ok("delete")
    w.socket.ok("create", { serial: 2, generation: 1 })
    assert.deepEqual(await first, { serial: 2, generation: 1 })
    assert.deepEqual(await second, {})
  })

  test("carry ids, so that sending them again is safe", async (t) => {
    const { w, channel } = liveChannel(t)
    const requests = [channel.create({ text: "hi" }), channel.append("m", "b", 1), channel.update("u", { text: "x" }), channel.finish("m")]
    await settled()
    const asked = w.socket.sent.slice(1)
    assert.deepEqual(asked.map(({ type }) => type), ["create", "append", "update", "finish"])
    assert.equal(new Set([asked[0].id, asked[2].request, asked[3].request]).size, 3)
    assert.match(asked[0].id, /^[\w.-]{6,64}$/)
    assert.equal(asked[1].at, 1)
    assert.match(asked[2].request, /^[\w.-]{6,64}$/)
    assert.match(asked[3].request, /^[\w.-]{6,64}$/)
    w.socket.drop()
    w.openAfter(250)
    assert.deepEqual(w.socket.sent.slice(1), asked)
    for (const type of ["create", "append", "update", "finish"]) w.socket.ok(type, { serial: 9 })
    assert.equal((await Promise.all(requests)).length, 4)
    w.socket.drop()
    w.openAfter(500)
    assert.equal(w.socket.sent.length, 1)
  })

  test("without a connection wait for one", async (t) => {
    const { w, channel } = channelOf(t)
    const request = channel.create({ id: "u1", text: "hi" })
    await settled()
    w.socket.open()
    assert.deepEqual(w.socket.sent.map(({ type }) => type), ["attach", "create"])
    w.socket.ok("create", { serial: 1 })
    assert.deepEqual(await request, { serial: 1 })
  })

  test("are refused with a code and its numbers", async (t) => {
    const { w, channel } = liveChannel(t)
    const request = channel.append("m", "x", 7)
    await settled()
    w.socket.refuse("append", "gap", { detail: "part 0 has 1", length: 1 })
    await assert.rejects(request, (error) => error.code === "gap" && error.problem.length === 1 && error.message === "part 0 has 1")
  })

  test("to a draining server are sent again to its successor", async (t) => {
    const { w, channel } = liveChannel(t)
    const request = channel.create({ id: "u1", text: "hi" })
    await settled()
    w.socket.refuse("create", "draining")
    w.socket.drop(1012)
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "u1", text: "hi" }])
    w.socket.ok("create", { serial: 2 })
    assert.deepEqual(await request, { serial: 2 })
  })

  test("without a response are sent again as they were, though the app has changed its objects since", async (t) => {
    const { w, channel } = liveChannel(t)
    const meta = { n: 1 }
    for (; meta.n < 3; meta.n++) channel.create({ id: `u${meta.n}`, meta }).catch(() => {})
    await settled()
    w.socket.drop()
    w.openAfter(250)
    const sent = w.socket.sentOf("create")
    assert.deepEqual(sent, [{ channel: "c", id: "u1", meta: { n: 1 } }, { channel: "c", id: "u2", meta: { n: 2 } }])
  })

  test("are bounded in number", async (t) => {
    const { w, channel } = channelOf(t)
    const requests = Array.from({ length: 500 }, (_, index) => channel.delete(`m${index}`))
    const crowded = { code: "too_many", message: /^500 requests with \d+ characters wait: await some$/ }
    await assert.rejects(channel.delete("m500"), crowded)
    await assert.rejects(channel.create({ text: "x" }), crowded)
    goLive(w)
    w.socket.ok("delete")
    await requests.at(-1)
    const next = channel.delete("m501")
    await settled()
    w.socket.ok("delete")
    await next
    requests.forEach((request) => request.catch(() => {}))
  })

  test("are bounded in size, and a refused append does not move the offset", async (t) => {
    const { w, channel } = liveChannel(t)
    const big = channel.append("m", "x".repeat(1_000_001), 1)
    await assert.rejects(channel.append("m", "y"), refusal("too_many"))
    await settled()
    w.socket.ok("append", { length: 1_000_002 })
    await big
    channel.append("m", "y").catch(() => {})
    await settled()
    assert.deepEqual(w.socket.sentOf("append").at(-1), { channel: "c", id: "m", at: 1_000_002, text: "y" })
  })
})

describe("a producer", () => {
  const sent = (w) => w.socket.sent.slice(1).map(({ type, id, at, text, part }) => ({ type, id, at, text, part }))

  test("continues after its last piece and never sends half a character", async (t) => {
    const { w, channel } = liveChannel(t)
    const quiet = (request) => request.catch(() => {})
    quiet(channel.create({ id: "r", status: "streaming", text: "a\ud83d" }))
    quiet(channel.append("r", "\ude00b"))
    assert.deepEqual(await channel.append("r", "\ud83d"), { length: 3 })
    quiet(channel.append("r", "\ude00", 3))
    quiet(channel.append("r", "c\ud83d"))
    quiet(channel.finish("r"))
    await settled()
    assert.deepEqual(sent(w), [
      { type: "create", id: "r", at: undefined, text: "a", part: undefined },
      { type: "append", id: "r", at: 1, text: "\u{1f600}b", part: undefined },
      { type: "append", id: "r", at: 3, text: "\u{1f600}", part: undefined },
      { type: "append", id: "r", at: 4, text: "c", part: undefined },
      { type: "append", id: "r", at: 5, text: "\ufffd", part: undefined },
      { type: "finish", id: "r", at: undefined, text: undefined, part: undefined },
    ])
  })

  test("may count the held half of a pair, or not", async (t) => {
    for (const at of [1, 2]) {
      const { w, channel } = liveChannel(t)
      channel.append("r", "a\ud83d", 0).catch(() => {})
      channel.append("r", "\ude00", at).catch(() => {})
      channel.append("r", "\ud83d", 2).catch(() => {})
      channel.append("r", "z", 7).catch(() => {}) // another offset: the held half is dropped
      await settled()
      assert.deepEqual(sent(w).map(({ at, text }) => [at, text]), [[0, "a"], [1, "\u{1f600}"], [7, "z"]])
    }
  })

  test("drops its offset when the message is finished", async (t) => {
    const { w, channel } = liveChannel(t)
    channel.append("m", "b", 1).catch(() => {})
    channel.finish("m").catch(() => {})
    await assert.rejects(channel.append("m", "c"), refusal("invalid_request"))
  })

  test("writes the parts of a message in parallel", async (t) => {
    const { w, channel } = liveChannel(t)
    const quiet = (request) => request.catch(() => {})
    quiet(channel.append("m", "p\ud83d", 5, 0))
    quiet(channel.append("m", "q\ud83d", 0, 1))
    quiet(channel.append("m", "\ude00", undefined, 0))
    quiet(channel.finish("m"))
    await settled()
    assert.deepEqual(sent(w), [
      { type: "append", id: "m", at: 5, text: "p", part: 0 },
      { type: "append", id: "m", at: 0, text: "q", part: 1 },
      { type: "append", id: "m", at: 6, text: "\u{1f600}", part: 0 },
      { type: "append", id: "m", at: 1, text: "\ufffd", part: 1 },
      { type: "finish", id: "m", at: undefined, text: undefined, part: undefined },
    ])
  })

  test("continues at the given offset after a refusal", async (t) => {
    const { w, channel } = liveChannel(t)
    const first = channel.append("m", "xyz", 9)
    await settled()
    w.socket.refuse("append", "gap", { length: 1 })
    const { problem } = await first.catch((error) => error)
    channel.append("m", "abc", problem.length).catch(() => {})
    await settled()
    assert.deepEqual(sent(w).at(-1), { type: "append", id: "m", at: 1, text: "abc", part: undefined })
  })

  test("must give at for the first piece of a part", async (t) => {
    const { w, channel } = liveChannel(t)
    const message = "the first append to message m needs at, the length of the part in code points"
    for (const _ of "12") await assert.rejects(channel.append("m", "x"), { code: "invalid_request", message })
    assert.deepEqual(sent(w), [])
  })

  test("replaces lone halves in a complete message", async (t) => {
    const w = world(t)
    goLive(w)
    w.client.channel("c").create({ id: "u", text: "a\ud83d" }).catch(() => {})
    w.client.channel("c").create({ id: "v", text: "\ud83d" }).catch(() => {})
    await settled()
    assert.deepEqual(w.socket.sentOf("create").map(({ text }) => text), ["a\ufffd", "\ufffd"])
  })
})

describe("requests with SSE", () => {
  test("go over HTTP, one after another", async (t) => {
    const w = world(t, { transport: "sse" })
    const channel = w.client.channel("chat:1")
    const requests = [
      channel.create({ id: "u/1", text: "hi" }),
      channel.append("u/1", "b", 2, 0),
      channel.update("m", { text: "x", request: "r1" }),
      channel.finish("m", "cancelled", { request: "r2" }),
      channel.delete("m"),
    ]
    await settled()
    assert.equal(w.http.calls.length, 1)
    assert.equal(w.http.calls[0].headers["Content-Type"], "application/json")
    for (let index = 0; index < 4; index++) await w.http.answer(200, { serial: index })
    await w.http.answer(204)
    const base = "/base/v1/channels/chat%3A1/messages"
    assert.deepEqual(w.http.requests, [
      ["POST", base, { id: "u/1", text: "hi" }],
      ["POST", `${base}/u%2F1/append`, { part: 0, at: 2, text: "b" }],
      ["PATCH", `${base}/m`, { text: "x", request: "r1" }],
      ["POST", `${base}/m/finish`, { status: "cancelled", request: "r2" }],
      ["DELETE", `${base}/m`, undefined],
    ])
    assert.deepEqual(await Promise.all(requests), [{ serial: 0 }, { serial: 1 }, { serial: 2 }, { serial: 3 }, {}])
  })

  test("are sent again unchanged when the network or the server was down", async (t) => {
    const w = world(t, { transport: "sse" })
    const meta = {}
    const request = w.client.channel("c").create({ text: "hi", meta })
    await settled()
    meta.is = "changed"
    for (const answer of [[], [502], [503, { code: "draining" }]]) {
      await (answer.length ? w.http.answer(...answer) : w.http.fail())
      w.pass(5_000)
      await settled()
    }
    await w.http.answer(201, { serial: 1 })
    assert.deepEqual(await request, { serial: 1 })
    assert.equal(w.http.calls.length, 4)
    for (const call of w.http.calls) assert.deepEqual(call.body, w.http.calls[0].body)
  })

  test("have 10 s, and longer for a long text or a page of messages on a slow network", async (t) => {
    const limits_ms = t.mock.method(AbortSignal, "timeout", () => new AbortController().signal)
    const w = world(t, { transport: "sse" })
    const channel = w.client.channel("c")
    await w.source.open()
    await w.source.receive(attached(20, { before: 10, more: true }), "e:20")
    for (const request of [() => channel.delete("m"), () => channel.create({ text: "x".repeat(900_000) }), () => channel.history()]) {
      request().catch(() => {})
      await settled()
      await w.http.answer(200, { messages: [], more: false })
    }
    const [short_ms, long_ms, page_ms] = limits_ms.mock.calls.map(({ arguments: [limit_ms] }) => limit_ms)
    assert.deepEqual([short_ms, page_ms], [10_000, 80_000])
    assert.ok(long_ms >= 310_000 && long_ms < 311_000, `${long_ms}`) // 2.7 MB, if each unit has 3 bytes
  })

  test("do not wait for a page of older messages, which is requested once meanwhile", async (t) => {
    const w = world(t, { transport: "sse" })
    const channel = w.client.channel("c")
    await w.source.open()
    await w.source.receive(attached(20, { before: 10, more: true }), "e:20")
    const page = channel.history()
    await settled()
    for (const id of ["a", "b"]) {
      const request = channel.delete(id)
      await settled()
      await w.http.answer(200, { serial: 1 })
      await request
    }
    assert.deepEqual(w.http.calls.map(({ method, path }) => [method, path.split("/").at(-1)]), [["GET", "messages"], ["DELETE", "a"], ["DELETE", "b"]])
    w.http.calls[0].resolve(new Response(JSON.stringify({ messages: [], more: false })))
    assert.equal(await page, false)
  })

  test("are sent again as soon as the stream is back", async (t) => {
    const w = world(t, { transport: "sse" })
    w.client.channel("c").delete("m").catch(() => {})
    await settled()
    await w.http.fail()
    assert.equal(w.http.calls.length, 1)
    await w.source.open()
    await settled()
    assert.equal(w.http.calls.length, 2)
  })

  test("are refused with a code; the next request continues", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    const first = channel.append("m", "x", 9)
    const second = channel.delete("m")
    await settled()
    w.http.answer(409, { code: "gap", detail: "part 0 has 1", length: 1 })
    await assert.rejects(first, (error) => error.code === "gap" && error.problem.length === 1)
    await settled()
    await w.http.answer(204)
    assert.deepEqual(await second, {})
  })

  test("end with the client", async (t) => {
    const w = world(t, { transport: "sse" })
    const request = w.client.channel("c").delete("m")
    await settled()
    w.client.close()
    await assert.rejects(request, refusal("closed"))
    w.pass(60_000)
    await settled()
    assert.equal(w.http.calls.length, 1)
  })

  test("go over the socket when it opens again", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.drop()
    const request = channel.create({ id: "u1", text: "hi" })
    await settled()
    assert.equal(w.http.calls.length, 1)
    await w.http.fail()
    await w.source.drop()
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "u1", text: "hi" }])
    w.socket.ok("create", { serial: 1 })
    assert.deepEqual(await request, { serial: 1 })
  })
})

describe("people", () => {
  const member = (id, data, connections = 1) => ({ id, kind: "user", ...(data && { data }), connections })
  const enter = (id) => ({ type: "presence.enter", member: member(id) })

  /** Let so many times ten seconds pass. */
  function passTens(w, tens) {
    for (; tens > 0; tens--) {
      w.pass(10_000)
      w.socket.receive({ type: "ping" }) // else the socket is given up
    }
  }

  /** Return a world whose channel has entered over HTTP. */
  async function entered(t, options, name = "c", data = undefined) {
    const w = world(t, { transport: "sse", ...options })
    const channel = w.client.channel(name)
    await w.source.open()
    const entering = channel.enter(data)
    await settled()
    await w.http.answer(204)
    await entering
    return { w, channel }
  }

  test("are shown at once, and leave the cursor where it is", (t) => {
    const { w, channel } = liveChannel(t)
    let calls = 0
    channel.subscribe(() => calls++)
    w.socket.events("c", null, enter("ann"), { type: "presence.update", member: member("ann", { name: "Ann" }, 2) })
    w.pass(20)
    assert.equal(calls, 1)
    assert.deepEqual(channel.getSnapshot().presence, { members: [member("ann", { name: "Ann" }, 2)], count: 1 })
    w.socket.events("c", null, { type: "presence.leave", id: "ann" })
    assert.deepEqual(channel.getSnapshot().presence.count, 1) // shown soon, like every unfinished batch
    w.pass(20)
    assert.deepEqual(channel.getSnapshot().presence, { members: [], count: 0 })
    assert.equal(channel.cursor, "e:1")
    assert.equal(channel.stats.batches, 1)
    assert.equal(channel.state, "live")
  })

  test("enter, change and leave", async (t) => {
    const { w, channel } = liveChannel(t)
    const entered = channel.enter({ name: "Ann" })
    w.socket.ok("presence")
    await entered
    const changed = channel.enter({ name: "Bob" })
    const left = channel.leave()
    assert.deepEqual(w.socket.sentOf("presence"), [
      { channel: "c", data: { name: "Ann" } },
      { channel: "c", data: { name: "Bob" } },
      { channel: "c", leave: true },
    ])
    w.socket.refuse("presence", "forbidden")
    await assert.rejects(left, refusal("forbidden"))
    changed.catch(() => {})
  })

  test("enter again on every new connection, after the requests without a response", async (t) => {
    const { w, channel } = liveChannel(t)
    const entered = channel.enter({ name: "Ann" })
    w.socket.ok("presence")
    await entered
    await settled()
    w.socket.drop()
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("presence"), [{ channel: "c", data: { name: "Ann" } }])
    w.socket.drop() // the connection breaks before the response
    w.openAfter(500)
    assert.deepEqual(w.socket.sentOf("presence"), [{ channel: "c", data: { name: "Ann" } }])
    w.socket.ok("presence")
    await settled()
    w.pass(60_000)
    assert.equal(w.socket.sentOf("presence").length, 1) // a socket needs no renewal
  })

  test("enter again some time after a refusal, until they leave", async (t) => {
    const { w, channel } = liveChannel(t)
    const entered = channel.enter({ name: "Ann" })
    w.socket.refuse("presence", "too_many")
    await assert.rejects(entered, refusal("too_many"))
    passTens(w, 3)
    assert.deepEqual(w.socket.sentOf("presence"), [
      { channel: "c", data: { name: "Ann" } },
      { channel: "c", data: { name: "Ann" } },
    ])
    w.socket.ok("presence")
    await settled()
    passTens(w, 6)
    assert.equal(w.socket.sentOf("presence").length, 2)
    const left = channel.leave()
    w.socket.refuse("presence", "too_many")
    await assert.rejects(left, refusal("too_many"))
    passTens(w, 6)
    assert.equal(w.socket.sentOf("presence").length, 3)
  })

  test("a refusal that stays is not tried again before the next connection", async (t) => {
    const { w, channel } = liveChannel(t)
    const entered = channel.enter({ name: "Ann" })
    w.socket.refuse("presence", "forbidden")
    await assert.rejects(entered, refusal("forbidden"))
    passTens(w, 6)
    assert.equal(w.socket.sentOf("presence").length, 1)
    w.socket.drop()
    w.openAfter(250)
    assert.equal(w.socket.sentOf("presence").length, 1)
  })

  test("with SSE renew their lease although the server has refused one renewal", async (t) => {
    const { w } = await entered(t)
    for (const status of [503, 204, 204]) {
      w.pass(29_000)
      await w.source.receive({ type: "ping" })
      w.pass(1_000)
      await settled()
      if (status === 204) await w.http.answer(204)
      else await w.http.answer(503, { code: "busy" })
    }
    assert.equal(w.http.calls.length, 4)
  })

  test("do not enter again once they have left or closed the channel", async (t) => {
    const w = world(t)
    const [one, two] = ["one", "two"].map((name) => w.client.channel(name))
    w.socket.open()
    for (const channel of [one, two]) {
      const entered = channel.enter()
      w.socket.ok("presence")
      await entered
    }
    const left = one.leave()
    w.socket.ok("presence")
    await left
    two.close()
    assert.deepEqual(w.socket.sentOf("presence").slice(2), [{ channel: "one", leave: true }, { channel: "two", leave: true }])
    w.socket.ok("presence")
    w.socket.drop()
    w.openAfter(250)
    assert.deepEqual(w.socket.sentOf("presence"), [])
  })

  test("with SSE hold a lease, renewed at a third, until they leave", async (t) => {
    const { w, channel } = await entered(t, { client: "ann~1" }, "chat:1", { name: "Ann" })
    const path = "/base/v1/channels/chat%3A1/presence/ann~1"
    const put = ["PUT", path, { data: { name: "Ann" }, lease_s: 90 }]
    assert.deepEqual(w.http.requests, [put])
    w.pass(29_000)
    await w.source.receive({ type: "ping" }) // else the stream is given up, and the client would enter again too
    assert.equal(w.http.calls.length, 1)
    w.pass(1_000)
    await settled()
    await w.http.answer(204)
    assert.deepEqual(w.http.requests, [put, put])
    const left = channel.leave()
    await settled()
    await w.http.answer(204)
    await left
    assert.deepEqual(w.http.requests.at(-1), ["DELETE", path, undefined])
    assert.deepEqual(w.http.calls.at(-1).query, { sdk: "js", client: "ann~1" })
    w.pass(20_000)
    await w.source.receive({ type: "ping" })
    w.pass(20_000)
    assert.equal(w.http.calls.length, 3)
  })

  test("with SSE enter again with a new stream, since the server may be another", async (t) => {
    const { w } = await entered(t)
    await w.source.drop()
    w.pass(250)
    await w.source.open()
    await settled()
    assert.deepEqual(w.http.requests.at(-1), ["PUT", "/base/v1/channels/c/presence/anonymous", { lease_s: 90 }])
    assert.equal(w.http.calls.length, 2)
  })

  test("with SSE are shown, and signals too, between two events of a batch", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    const received = []
    channel.listen((event) => received.push(event.name ?? event.type))
    await w.source.open()
    await w.source.receive(attached(1), "e:1")
    await w.source.receive(enter("ann"))
    await w.source.receive({ type: "signal", name: "typing", from: "ann" })
    await w.source.receive({ type: "presence.sync", members: [member("bob"), member("cyd")], count: 7 })
    await w.source.receive({ type: "presence.update", member: member("bob", { name: "Bob" }) })
    await w.source.receive({ type: "presence.leave", id: "cyd" })
    w.pass(20)
    assert.deepEqual(channel.getSnapshot().presence, { members: [member("bob", { name: "Bob" })], count: 6 })
    assert.deepEqual(received, ["typing"])
    assert.equal(channel.cursor, "e:1")
    assert.equal(channel.stats.batches, 1)
  })
})

describe("commands and signals", () => {
  test("go over the socket, with ids that make repeats safe", async (t) => {
    const { w, channel } = liveChannel(t)
    const asked = [channel.command("cancel", { target: "m" }), channel.reply("c9", { ok: false, data: { by: "Ann" } }), channel.reply("c8")]
    channel.signal("typing", { on: true })
    const [cancel] = w.socket.sentOf("command")
    const [no, yes] = w.socket.sentOf("reply")
    assert.match(cancel.id, /^[\w.-]{6,64}$/)
    assert.match(no.request, /^[\w.-]{6,64}$/)
    assert.deepEqual(cancel, { channel: "c", id: cancel.id, name: "cancel", target: "m" })
    assert.deepEqual(no, { channel: "c", request: no.request, ok: false, data: { by: "Ann" }, id: "c9" })
    assert.deepEqual(yes, { channel: "c", request: yes.request, ok: true, id: "c8" })
    assert.deepEqual(w.socket.sentOf("signal"), [{ channel: "c", name: "typing", data: { on: true } }])
    w.socket.ok("command", { command: { id: cancel.id }, serial: 4 })
    assert.deepEqual(await asked[0], { command: { id: cancel.id }, serial: 4 })
    w.socket.refuse("reply", "already_answered")
    await assert.rejects(asked[2], refusal("already_answered"))
    asked[1].catch(() => {})
  })

  test("a command waits for a connection, a signal is lost without one", async (t) => {
    const { w, channel } = channelOf(t)
    channel.signal("typing")
    const asked = channel.command("steer", { id: "k", target: "m", data: { text: "shorter" } })
    w.socket.open()
    assert.deepEqual(w.socket.sentOf("command"), [{ channel: "c", id: "k", target: "m", data: { text: "shorter" }, name: "steer" }])
    assert.deepEqual(w.socket.sentOf("signal"), [])
    w.socket.ok("command", { serial: 1 })
    await asked
  })

  test("go over HTTP with SSE; a failed signal is not sent again", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    const sent = channel.command("cancel", { id: "k", target: "m" })
    await settled()
    await w.http.answer(201, { serial: 1 })
    await sent
    const replied = channel.reply("k/1", { ok: true })
    await settled()
    const { request } = w.http.calls.at(-1).body
    await w.http.answer(200, { serial: 2 })
    await replied
    channel.signal("typing", 1)
    await settled()
    await w.http.fail()
    channel.signal("typing", 2)
    await settled()
    w.http.calls.at(-1).resolve(new Response(null, { status: 202 }))
    w.pass(60_000)
    await settled()
    assert.deepEqual(w.http.requests, [
      ["POST", "/base/v1/channels/c/commands", { id: "k", target: "m", name: "cancel" }],
      ["POST", "/base/v1/channels/c/commands/k%2F1/reply", { request, ok: true }],
      ["POST", "/base/v1/channels/c/signals", { name: "typing", data: 1 }],
      ["POST", "/base/v1/channels/c/signals", { name: "typing", data: 2 }],
    ])
  })
})

describe("requests between two transports", () => {
  test("behind a running request go over the socket alone", async (t) => {
    const { w, channel } = channelOf(t)
    w.socket.drop()
    const requests = [channel.create({ id: "u1", text: "hi" }), channel.create({ id: "u2", text: "ho" })]
    await settled()
    await w.source.drop()
    w.openAfter(250)
    await w.http.answer(201, { serial: 1 })
    assert.equal(w.http.calls.length, 1)
    assert.deepEqual(w.socket.sentOf("create").map(({ id }) => id), ["u1", "u2"])
    w.socket.ok("create", { serial: 2 })
    assert.deepEqual(await Promise.all(requests), [{ serial: 1 }, { serial: 2 }])
  })
})

describe("history", () => {
  const old = (id, created) => message(id, created, id, { status: "complete" })
  const shown = (channel) => channel.getSnapshot().messages.map(({ id }) => id)

  /** A live channel with older messages from before 10. */
  function withOlder(t, options) {
    const { w, channel } = channelOf(t, options)
    w.socket.open()
    w.socket.events("c", "e:20", attached(20, { before: 10, more: true }), update(old("m10", 10)))
    return { w, channel }
  }

  test("pages back from before, one page at a time", async (t) => {
    const { w, channel } = withOlder(t)
    const first = channel.history({ limit: 2 })
    assert.equal(channel.history({ limit: 2 }), first)
    w.socket.ok("history", { messages: [old("m9", 9), old("m8", 8)], more: true, cursor: "e:20" })
    assert.equal(await first, true)
    assert.deepEqual(shown(channel), ["m8", "m9", "m10"])
    const second = channel.history()
    w.socket.ok("history", { messages: [old("m1", 1)], more: false, cursor: "e:20" })
    assert.equal(await second, false)
    assert.equal(channel.getSnapshot().more, false)
    assert.equal(await channel.history(), false)
    assert.deepEqual(w.socket.sentOf("history"), [{ channel: "c", before: 10, limit: 2 }, { channel: "c", before: 8 }])
    assert.equal(channel.cursor, "e:20")
  })

  test("requests a page again that is older than an event received meanwhile", async (t) => {
    const { w, channel } = withOlder(t)
    const request = channel.history()
    w.socket.events("c", "e:21", append(21, "m9", 2, "!"))
    w.socket.ok("history", { messages: [old("m9", 9), old("m8", 8)], more: false, cursor: "e:20" })
    await settled()
    assert.deepEqual(shown(channel), ["m8", "m10"])
    assert.deepEqual(w.socket.sentOf("history"), [{ channel: "c", before: 10 }, { channel: "c", before: 10 }])
    const newer = message("m9", 9, "m9!", { version: 21 })
    w.socket.ok("history", { messages: [newer, old("m8", 8)], more: false, cursor: "e:21" })
    assert.equal(await request, false)
    assert.deepEqual(shown(channel), ["m8", "m9", "m10"])
  })

  test("gives up on a page that stays old", async (t) => {
    const { w, channel } = withOlder(t)
    w.socket.events("c", "e:21", append(21, "m9", 2, "!"))
    const message = "channel c changed during 3 requests for a page: call history() again"
    const rejected = assert.rejects(channel.history(), { code: "stale", message })
    for (let tries = 0; tries < 3; tries++) {
      w.socket.ok("history", { messages: [old("m9", 9)], more: false, cursor: "e:20" })
      await settled()
    }
    await rejected
    assert.equal(w.socket.sentOf("history").length, 3)
  })

  test("does not merge a page of an earlier start into a new start", async (t) => {
    const { w, channel } = withOlder(t)
    const request = channel.history()
    w.socket.events("c", "f:5", attached(5, { epoch: "f", before: 3, more: true }), update(old("n3", 3)))
    w.socket.ok("history", { messages: [old("m9", 9)], more: false, cursor: "e:20" })
    await settled()
    assert.deepEqual(shown(channel), ["n3"])
    w.socket.ok("history", { messages: [old("n2", 2)], more: false, cursor: "f:5" })
    assert.equal(await request, false)
    assert.deepEqual(shown(channel), ["n2", "n3"])
    assert.equal(w.socket.sentOf("history").at(-1).before, 3)
  })

  test("is requested by GET with SSE", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    await w.source.open()
    await w.source.receive(attached(20, { before: 10, more: true }), "e:20")
    const request = channel.history({ limit: 3 })
    await settled()
    assert.equal(w.http.calls[0].method, "GET")
    assert.equal(w.http.calls[0].path, "/base/v1/channels/c/messages")
    assert.deepEqual(w.http.calls[0].query, { sdk: "js", before: "10", limit: "3" })
    await w.http.answer(200, { messages: [old("m9", 9)], more: false, cursor: "e:20" })
    assert.equal(await request, false)
    assert.deepEqual(shown(channel), ["m9"])
  })
})

describe("an observer", () => {
  test("is notified once for each batch, and soon for an unfinished one", (t) => {
    const { w, channel } = liveChannel(t)
    let calls = 0
    const end = channel.subscribe(() => calls++)
    w.socket.events("c", "e:3", append(2, "m", 1, "b"), append(3, "m", 2, "c"))
    assert.equal(calls, 1)
    w.socket.events("c", null, append(4, "m", 3, "d"))
    w.socket.events("c", null, append(5, "m", 4, "e"))
    assert.equal(calls, 1)
    w.pass(20)
    assert.equal(calls, 2)
    assert.deepEqual(texts(channel), ["abcde"])
    w.socket.events("c", null, append(6, "m", 5, "f"))
    w.socket.events("c", "e:7", append(7, "m", 6, "g"))
    w.pass(1_000)
    assert.equal(calls, 3)
    end()
    w.socket.events("c", "e:8", append(8, "m", 7, "h"))
    assert.equal(calls, 3)
  })

  test("gets new objects for changed values only", (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    w.socket.events("c", "e:2", attached(2), update(message("m", 1, "a")), update(message("n", 2, "x")))
    const before = channel.getSnapshot()
    assert.equal(channel.getSnapshot(), before)
    w.socket.events("c", "e:3", append(3, "n", 1, "y"))
    const after = channel.getSnapshot()
    assert.notEqual(after, before)
    assert.equal(after.messages[0], before.messages[0])
    assert.notEqual(after.messages[1], before.messages[1])
    assert.equal(after.presence, before.presence)
    assert.deepEqual(before.messages[1].parts, [{ type: "text", text: "x" }])
    assert.deepEqual(after.messages[1].parts, [{ type: "text", text: "xy" }])
  })

  test("sees the connection's state in the snapshot", (t) => {
    const { w, channel } = channelOf(t)
    const states = [channel.getSnapshot().state]
    channel.subscribe(() => states.push(channel.getSnapshot().state))
    goLive(w)
    w.socket.drop()
    w.client.close()
    assert.deepEqual(states, ["connecting", "live", "reconnecting", "closed"])
  })

  test("of the client is notified of its connection", (t) => {
    const { w } = channelOf(t)
    const states = []
    w.client.subscribe(() => states.push(w.client.state))
    w.socket.open()
    w.socket.drop()
    w.client.close()
    assert.deepEqual(states, ["live", "reconnecting", "closed"])
  })

  test("that throws does not stop the notification of others", (t) => {
    const { w, channel } = liveChannel(t)
    const thrown = []
    globalThis.reportError = (error) => thrown.push(error.message)
    t.after(() => delete globalThis.reportError)
    let calls = 0
    const end = channel.subscribe(() => {
      throw new Error("a bug of the page")
    })
    channel.subscribe(() => calls++)
    w.socket.events("c", "e:2", append(2, "m", 1, "b"))
    end()
    assert.equal(calls, 1)
    assert.deepEqual(thrown, ["a bug of the page"])
    assert.equal(channel.state, "live")
  })

  test("may close the channel during its notification", (t) => {
    const { w, channel } = liveChannel(t)
    channel.subscribe(() => channel.state === "live" && channel.close())
    w.socket.events("c", "e:2", append(2, "m", 1, "b"))
    assert.equal(channel.state, "closed")
  })

  test("receives signals and replies", (t) => {
    const { w, channel } = liveChannel(t)
    const received = []
    const end = channel.listen((event) => received.push(event))
    const signal = { type: "signal", name: "typing", from: "ann" }
    const reply = { type: "command.reply", serial: 2, id: "c1", ok: true }
    w.socket.events("c", null, signal)
    w.socket.events("c", "e:2", reply)
    w.socket.events("c", "e:2", reply)
    end()
    w.socket.events("c", null, signal)
    assert.deepEqual(received, [signal, reply])
  })
})

describe("statistics", () => {
  test("count events, batches and characters", (t) => {
    const { w, channel } = channelOf(t)
    w.socket.open()
    const first = { type: "events", channel: "c", cursor: "e:2", events: [attached(2), update(message("m", 1, "añ漢😀")), update(message("n", 2, "xy"))] }
    const second = { type: "events", channel: "c", cursor: "e:3", events: [append(3, "m", 4, "…")] }
    w.socket.ok("attach")
    w.socket.receive(first)
    assert.deepEqual(channel.stats.catchUp, { events: 2, points: 6, ms: 0 })
    w.socket.receive(second)
    assert.deepEqual(channel.stats.catchUp, { events: 2, points: 6, ms: 0 })
    const characters = JSON.stringify(first).length + JSON.stringify(second).length
    const { events, batches, reconnects, gaps } = channel.stats
    assert.deepEqual({ events, batches, reconnects, gaps }, { events: 4, batches: 2, reconnects: 0, gaps: 0 })
    assert.equal(channel.stats.characters, characters)
  })

  test("report the size and the time of a resume over all its frames", (t) => {
    const { w, channel } = liveChannel(t)
    w.socket.drop()
    w.openAfter(250)
    w.pass(30)
    w.socket.events("c", null, attached(9, { resumed: true }), append(8, "m", 1, "b".repeat(400)))
    w.pass(20)
    w.socket.events("c", "e:9", append(9, "m", 401, "😀".repeat(12)))
    assert.deepEqual(channel.getSnapshot().lastCatchUp, { events: 2, points: 412, ms: 50 })
  })
})

describe("the message of an error", () => {
  const first = async (promise) => (await promise.then(() => assert.fail("was accepted"), (error) => error)).message

  test("of a connection that the server closes for good names the address and the code", async (t) => {
    const { w, channel } = channelOf(t)
    const request = channel.delete("m")
    w.socket.open()
    w.socket.drop(4300)
    assert.equal(await first(request), "http://server.test/base closed the socket with code 4300: send less, or update this client")
  })

  test("of a response without a code names the request, the status and the address", async (t) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    const found = first(channel.delete("m"))
    await settled()
    await w.http.answer(404)
    assert.equal(await found, "http://server.test/base sent status 404 without a code: correct its address")
  })
})
