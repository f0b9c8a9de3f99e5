/** Tokens: how the client proves its identity, renews it, and gives up. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"

import { attached, channelOf, message, settled, texts, update, world } from "./fakes.js"

const refusal = (code) => (error) => error.name === "Error" && error.code === code
const quiet = (t) => t.mock.method(console, "warn", () => {})

/** Return a callback that notes why it is called, and returns the next of `tokens`. */
function tokens(...list) {
  const reasons = []
  const token = (why) => {
    reasons.push(why)
    return list.shift() ?? "last"
  }
  return { token, reasons }
}

describe("a token over WebSocket", () => {
  test("is the first frame; channels and requests follow its ok", async (t) => {
    const { w } = channelOf(t, { token: "secret" })
    w.client.channel("c").delete("m").catch(() => {})
    w.socket.open()
    assert.deepEqual(w.socket.sentOf("auth"), [{ token: "secret" }])
    assert.equal(w.socket.sent.length, 1)
    assert.equal(w.client.state, "connecting")
    w.socket.ok("auth")
    assert.deepEqual(w.socket.sent.map(({ type }) => type), ["auth", "attach", "delete"])
    assert.equal(w.client.state, "live")
  })

  test("comes from the app's callback, once for several reconnects", async (t) => {
    const { token, reasons } = tokens("one", "two")
    const { w } = channelOf(t, { token: async (why) => token(why) })
    await settled()
    w.socket.open()
    w.socket.ok("auth")
    w.socket.drop()
    w.pass(250)
    await settled()
    w.socket.open()
    assert.deepEqual(w.socket.sentOf("auth"), [{ token: "one" }])
    assert.deepEqual(reasons, ["start"])
  })

  for (const [when, expires_s, wait] of [
    ["30 s before the identity ends", 40, 10_000],
    ["after a quarter of a few seconds", 8, 2_000],
  ]) {
    test(`is renewed ${when}, on the same socket`, async (t) => {
      const { token, reasons } = tokens("one", "two")
      const { w } = channelOf(t, { token })
      await settled()
      w.socket.open()
      w.socket.ok("auth", { you: { expires_s } })
      w.pass(wait - 1)
      await settled()
      assert.deepEqual(reasons, ["start"])
      w.pass(1)
      await settled()
      assert.deepEqual(reasons, ["start", "expired"])
      assert.deepEqual(w.socket.sentOf("auth"), [{ token: "one" }, { token: "two" }])
      w.socket.ok("auth", { you: { expires_s: 3_600 } })
      assert.equal(w.client.state, "live")
      assert.equal(w.sockets.length, 1)
    })
  }

  test("is replaced after close code 4200, by a callback that learns why", async (t) => {
    const { token, reasons } = tokens("one", "two")
    const { w, channel } = channelOf(t, { token })
    await settled()
    w.socket.open()
    w.socket.ok("auth")
    w.socket.events("c", "e:1", attached(1), update(message("m", 1, "a")))
    w.socket.drop(4200)
    w.pass(250)
    await settled()
    w.socket.open()
    assert.deepEqual(reasons, ["start", "expired"])
    assert.deepEqual(w.socket.sentOf("auth"), [{ token: "two" }])
    w.socket.ok("auth")
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:1" }])
    assert.deepEqual(texts(channel), ["a"])
  })

  test("that is refused twice in a row ends the client as unauthenticated", async (t) => {
    const warned = quiet(t)
    const { token, reasons } = tokens("bad", "worse")
    const { w, channel } = channelOf(t, { token })
    await settled()
    w.socket.open()
    w.socket.refuse("auth", "unauthenticated")
    w.socket.drop(4201)
    w.pass(250)
    await settled()
    w.socket.open()
    w.socket.drop(4201)
    assert.deepEqual(reasons, ["start", "refused"])
    assert.equal(w.client.state, "closed")
    assert.equal(w.client.status.error.code, "unauthenticated")
    assert.equal(channel.error.code, "unauthenticated")
    assert.equal(warned.mock.callCount(), 1)
    w.pass(60_000)
    assert.equal(w.sockets.length, 2)
  })

  test("is missing: close code 4201 ends the client at once", (t) => {
    quiet(t)
    const { w } = channelOf(t)
    w.socket.open()
    w.socket.drop(4201)
    assert.equal(w.client.status.error.code, "unauthenticated")
    assert.match(w.client.status.error.message, /pass `token` to connect\(\)/)
  })

  for (const [what, token] of [["throws", () => { throw new Error("no network") }], ["rejects", async () => { throw new Error("no network") }], ["returns no text", () => undefined], ["hangs for 10 s", () => new Promise(() => {})]]) {
    test(`from a callback that ${what} counts as a failed attempt`, async (t) => {
      quiet(t)
      let calls = 0
      const { w } = channelOf(t, { transport: "websocket", token: (why) => (++calls, token(why)) })
      await settled()
      w.pass(10_000)
      await settled()
      w.pass(250)
      await settled()
      assert.equal(w.sockets.length, 0)
      assert.equal(calls, 2)
      assert.equal(w.client.state, "connecting")
      assert.equal(w.client.status.error.code, "token_unavailable")
      assert.match(w.client.status.error.message, /^the token callback failed: (Error: no network|it must return a non-empty string, got "undefined"|no response within 10 s)$/)
    })
  }

  test("from a callback that fails once changes no transport", async (t) => {
    quiet(t)
    let calls = 0
    const { w } = channelOf(t, { token: async () => (++calls === 1 ? Promise.reject(new Error("no network")) : "one") })
    await settled()
    assert.equal(w.client.status.error.code, "token_unavailable")
    w.pass(250)
    await settled()
    w.socket.open()
    w.socket.ok("auth")
    assert.deepEqual([w.sockets.length, w.sources.length, calls], [1, 0, 2])
    assert.equal(w.client.status.error, null)
  })
})

describe("a token over HTTP", () => {
  test("is a header of streams, polls and requests, never part of a URL", async (t) => {
    const w = world(t, { transport: "sse", token: "secret" })
    w.client.channel("c").delete("m").catch(() => {})
    await settled()
    const sent = [w.source.headers, w.http.calls[0].headers]
    assert.ok(!w.source.url.href.includes("secret"))
    const poll = world(t, { transport: "poll", token: "secret" })
    poll.client.channel("c")
    for (const { Authorization } of [...sent, poll.http.polls[0].headers]) assert.equal(Authorization, "Bearer secret")
  })

  test("that a stream refuses is replaced once, then the client ends", async (t) => {
    quiet(t)
    const { token, reasons } = tokens("bad", "worse")
    const { w, channel } = channelOf(t, { transport: "sse", token })
    await settled()
    await w.source.refuse(401, { code: "unauthenticated", detail: "no" })
    w.pass(250)
    await settled()
    assert.equal(w.source.headers.Authorization, "Bearer worse")
    await w.source.refuse(401, { code: "unauthenticated", detail: "no" })
    assert.deepEqual(reasons, ["start", "refused"])
    assert.equal(channel.error.code, "unauthenticated")
  })

  test("that expires in the stream is replaced", async (t) => {
    const { token, reasons } = tokens("one", "two")
    const { w } = channelOf(t, { transport: "sse", token })
    await settled()
    await w.source.open()
    await w.source.receive(attached(1), "e:1")
    await w.source.bye("unauthenticated")
    w.pass(250)
    await settled()
    assert.deepEqual(reasons, ["start", "expired"])
    assert.equal(w.source.headers.Authorization, "Bearer two")
    assert.equal(w.source.url.searchParams.get("since"), "e:1")
  })

  test("that has expired when its stream breaks off is replaced, and no event is asked for again", async (t) => {
    const { token, reasons } = tokens("one", "two")
    const { w } = channelOf(t, { transport: "sse", token })
    await settled()
    await w.source.open()
    await w.source.receive(attached(1), "e:1")
    await w.source.drop() // the client's own streams get no "bye"
    w.pass(250)
    await settled()
    await w.source.refuse(401, { code: "unauthenticated", detail: "no" })
    w.pass(1_000)
    await settled()
    assert.deepEqual(reasons, ["start", "refused"])
    assert.equal(w.source.headers.Authorization, "Bearer two")
    assert.equal(w.source.url.searchParams.get("since"), "e:1")
  })

  test("that a request refuses is replaced, and the request is sent again", async (t) => {
    const { token } = tokens("one", "two")
    const { w, channel } = channelOf(t, { transport: "sse", token })
    await settled()
    await w.source.open()
    const deleted = channel.delete("m")
    await settled()
    await w.http.answer(401, { code: "unauthenticated" })
    assert.equal(w.http.calls.at(-1).headers.Authorization, "Bearer two")
    await w.http.answer(204)
    assert.deepEqual(await deleted, {})
  })
})

describe("a cookie", () => {
  test("that is still accepted continues the channel after close code 4200, each time at once; one that is not ends the client", (t) => {
    quiet(t)
    const { w, channel } = channelOf(t)
    for (const attempt of [1, 2, 3]) {
      w.socket.open()
      w.socket.ok("attach")
      w.socket.events("c", `e:${attempt}`, attached(attempt))
      w.socket.drop(4200)
      w.pass(250) // an identity that ends is no failed attempt, after which the delay would grow
      assert.equal(w.sockets.length, attempt + 1)
    }
    w.socket.open()
    assert.deepEqual(w.socket.sentOf("attach"), [{ channel: "c", since: "e:3" }])
    assert.equal(w.client.state, "live")
    w.socket.drop(4201)
    assert.equal(channel.error.code, "unauthenticated")
  })

  /** Return a client of a WebSocket alone whose upgrade was refused, perhaps after it was connected as ann. */
  async function refused(t, { isFirst = false, ...options } = {}) {
    quiet(t)
    const { w, channel } = channelOf(t, { transport: "websocket", ...options })
    if (!isFirst) {
      w.socket.open()
      w.socket.ok("attach", { you: { id: "ann", can: [] } })
      w.socket.events("c", "e:1", attached(1))
      w.socket.drop(4200)
      w.pass(250)
    }
    w.socket.drop()
    await import("../../tenuto/web/client/probe.js") // the client loads this module in the same way
    await settled()
    return { w, channel }
  }

  test("that has ended is named as the reason of a refused upgrade, which no page sees", async (t) => {
    const { w, channel } = await refused(t)
    assert.deepEqual(w.http.requests, [["HEAD", "/base/v1/channels/c", undefined]])
    await w.http.answer(401)
    assert.equal(channel.error.code, "unauthenticated")
    assert.equal(channel.error.message, "http://server.test/base does not accept this client: sign in again")
    w.pass(60_000)
    assert.equal(w.sockets.length, 2)
  })

  test("that has ended before the page is named, too", async (t) => {
    const { w, channel } = await refused(t, { isFirst: true })
    await w.http.probed(200, { server: "tenuto", protocol: 1 })
    await w.http.answer(401)
    assert.equal(channel.error.code, "unauthenticated")
    assert.match(channel.error.message, /: sign in, or pass `token` to connect\(\)$/)
  })

  test("that has ended is named although the first probe found no server", async (t) => {
    const { w, channel } = await refused(t, { isFirst: true })
    for (const _ of "12") await w.http.probed() // with and without CORS
    await settled()
    assert.equal(w.client.status.error.code, "unreachable")
    w.pass(15_000)
    w.socket.drop()
    await settled()
    await w.http.answer(401)
    assert.equal(channel.error.code, "unauthenticated")
  })

  test("is not the reason of a gateway's refusal, behind which the client goes on", async (t) => {
    const { w } = await refused(t, { isFirst: true, transport: "auto" })
    await w.http.probed(401, { code: "unauthenticated" })
    assert.equal(w.client.status.error.code, "unauthenticated")
    assert.equal(w.client.state, "connecting")
  })

  test("that is accepted again before the response of that request keeps the client open", async (t) => {
    const { w } = await refused(t)
    w.openAfter(500)
    await w.http.answer(401)
    assert.equal(w.client.state, "live")
  })

  test("does not matter to a client with a token, and other refusals do not end the client", async (t) => {
    const { w } = await refused(t, { isFirst: true, token: "secret" })
    await w.http.probed(200, { server: "tenuto", protocol: 1 })
    assert.deepEqual(w.http.requests, [])
    const other = await refused(t)
    await other.w.http.answer(403)
    assert.equal(other.w.client.state, "reconnecting")
    assert.equal(other.w.client.status.error, null)
  })

  test("that ended during a long poll is sent once more", async (t) => {
    quiet(t)
    const { w, channel } = channelOf(t, { transport: "poll" })
    for (const cursor of ["e:1", "e:2"]) {
      await w.http.poll({ cursor, events: [] })
      await w.http.poll({ code: "unauthenticated" }, 401)
      assert.equal(channel.error, null)
      w.pass(2_000)
      await settled()
    }
    await w.http.poll({ code: "unauthenticated" }, 401)
    assert.equal(channel.error.code, "unauthenticated")
  })

  test("that ended during the long polls of two channels is sent once more by each", async (t) => {
    quiet(t)
    const w = world(t, { transport: "poll" })
    const channels = ["a", "b"].map((name) => w.client.channel(name))
    await settled()
    for (const answer of [{ cursor: "e:1", events: [] }, { code: "unauthenticated" }]) {
      for (const poll of w.http.polls.splice(0)) poll.resolve(Response.json(answer, { status: answer.code ? 401 : 200 }))
      await settled()
    }
    assert.deepEqual(channels.map(({ error }) => error), [null, null])
  })
})

describe("the identity", () => {
  test("is in the snapshot as the server says, on each transport", async (t) => {
    const you = { id: "ann", can: ["subscribe", "publish"] }
    const socket = world(t)
    const one = socket.client.channel("c")
    assert.equal(one.getSnapshot().you, null)
    socket.socket.open()
    socket.socket.ok("attach", { you })
    socket.socket.events("c", "e:1", attached(1))
    assert.deepEqual(one.getSnapshot().you, you)
    const stream = world(t, { transport: "sse" })
    const two = stream.client.channel("c")
    await stream.source.open()
    await stream.source.receive({ type: "you", ...you, expires_s: 60 })
    await stream.source.receive(attached(1), "e:1")
    assert.deepEqual(two.getSnapshot().you, you)
    const poll = world(t, { transport: "poll" })
    const three = poll.client.channel("c")
    await poll.http.poll({ you, cursor: "e:1", events: [attached(1)] })
    assert.deepEqual(three.getSnapshot().you, you)
    three.enter().catch(() => {})
    await settled()
    assert.equal(poll.http.calls.at(-1).path, "/base/v1/channels/c/presence/ann")
  })

  test("over SSE without a token: a refused stream closes the channel with the server's error", async (t) => {
    quiet(t)
    const { w, channel } = channelOf(t, { transport: "sse" })
    const detail = "client 'ann' needs the capability 'subscribe' on channel 'c'"
    await w.source.refuse(403, { code: "forbidden", detail })
    assert.equal(channel.error.code, "forbidden")
    assert.equal(w.client.state !== "closed", true)
    const late = w.client.channel("d")
    await assert.doesNotReject(settled())
    await w.source.refuse(401, { code: "unauthenticated" })
    assert.ok(refusal("unauthenticated")(late.error))
  })
})
