/** Messages that are sent once, whatever happens to the page between the click and the server's response. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"

import { connect } from "../../tenuto/web/client.js"
import { Sharing } from "../../tenuto/web/client/sharing.js"
import { WEBSOCKET } from "../../tenuto/web/client/websocket.js"
import { attached, channelOf, message, settled, texts, update, usePage, world } from "./fakes.js"

/** A browser's storage; `limit` characters fit. */
class FakeStorage {
  constructor(limit = Infinity) {
    Object.defineProperty(this, "limit", { value: limit })
  }

  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null
  }

  setItem(key, value) {
    if (value.length > this.limit) throw new DOMException("full", "QuotaExceededError")
    this[key] = value
  }

  removeItem(key) {
    delete this[key]
  }
}

/** Let `sessionStorage` and `localStorage` be those of a browser until the test ends. */
function withStorage(t, storage = new FakeStorage()) {
  globalThis.sessionStorage = storage
  globalThis.localStorage = new FakeStorage()
  t.after(() => {
    delete globalThis.sessionStorage
    delete globalThis.localStorage
  })
  return storage
}

const you = (id) => ({ you: { id, can: ["publish"] } })
const shown = (channel) => channel.getSnapshot().messages.map(({ id, text, local }) => [id, text, local?.state])

/** Return a client whose channel is live, and belongs to `id`. */
function live(t, id = "ann", options = {}) {
  const { w, channel } = channelOf(t, options)
  w.socket.open()
  w.socket.ok("attach", you(id))
  w.socket.events("c", "e:1", attached(1))
  return { w, channel }
}

/** As `live`, with a message `q` that is sent. */
async function sending(t) {
  const { w, channel } = live(t)
  const sent = channel.send({ id: "q", text: "hi" })
  sent.catch(() => {})
  await settled()
  return { w, channel, sent }
}

/** As `live`, for a page that shares with others of its identity. */
function sharing(t) {
  const { w, channel } = live(t, "ann", { identity: "ann", cache: false, tabs: false })
  w.client.sharing = new Sharing(w.client, "ann", WEBSOCKET) // as `share` does for a page that knows its identity
  return { w, channel }
}

/** Run `action` with a client in another tab of the identity, and then close that tab. */
async function inAnotherTab(w, action) {
  usePage(new EventTarget())
  const client = connect({ ...w.client.options, WebSocket: class { close() {} } })
  client.sharing = new Sharing(client, "ann", WEBSOCKET)
  await action(client)
  client.close()
  usePage(w.page)
}

const unsent = (w) => Object.keys(globalThis.localStorage).filter((key) => key.startsWith(w.client.outbox.prefix))

describe("a sent message", () => {
  test("is in the snapshot at once, and once when it is stored", async (t) => {
    const { w, channel } = live(t)
    const sent = channel.send({ id: "q", text: "hi" })
    assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
    await settled()
    assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "q", role: "user", if_author: "ann", text: "hi" }])
    const stored = message("q", 2, "hi", { role: "user", author: "ann", status: "complete" })
    w.socket.ok("create", { message: stored })
    assert.equal((await sent).text, "hi")
    assert.deepEqual(shown(channel), [["q", "hi", undefined]]) // although the event of the message has not arrived yet
    w.socket.events("c", "e:2", { ...update(stored), type: "message.create" })
    assert.deepEqual(shown(channel), [["q", "hi", undefined]])
    assert.equal(w.client.outbox.entries.size, 0)
  })

  test("keeps its place behind an earlier one", async (t) => {
    const { w, channel } = live(t)
    channel.send({ id: "one", text: "1" }).catch(() => {})
    channel.send({ id: "two", text: "2" }).catch(() => {})
    await settled()
    assert.deepEqual(w.socket.sentOf("create").map(({ id }) => id), ["one"])
    w.socket.ok("create", { message: message("one", 2, "1") })
    await settled()
    assert.deepEqual(w.socket.sentOf("create").map(({ id }) => id), ["one", "two"])
  })

  test("is sent again after a temporary refusal", async (t) => {
    const { w, channel } = await sending(t)
    w.socket.refuse("create", "busy")
    await settled()
    assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
    w.pass(2_500)
    await settled()
    assert.equal(w.socket.sentOf("create").length, 2)
  })

  test("beyond a limit names the time at once, and is sent when it has come", async (t) => {
    const { w, channel } = await sending(t)
    w.socket.refuse("create", "too_many", { retry_after_s: 6 })
    await settled()
    const retryAt = Date.now() + 6_000
    assert.deepEqual(channel.getSnapshot().messages[0].local, { state: "sending", retryAt })
    w.pass(5_999)
    await settled()
    assert.equal(w.socket.sentOf("create").length, 1)
    w.pass(1)
    await settled()
    assert.equal(w.socket.sentOf("create").length, 2)
  })

  for (const [what, code, retry_after_s] of [
    ["that is refused", "forbidden"],
    ["beyond a limit of hours", "too_many", 61],
  ]) {
    test(`${what} stays with its error, and the time if there is one, until it is retried`, async (t) => {
      const { w, channel, sent } = await sending(t)
      w.socket.refuse("create", code, { detail: "no", retry_after_s })
      await assert.rejects(sent, { code })
      const [{ local }] = channel.getSnapshot().messages
      const retryAt = retry_after_s && { retryAt: Date.now() + retry_after_s * 1_000 }
      assert.deepEqual(local, { state: "refused", error: { code, detail: "no" }, ...retryAt })
      const again = channel.retry("q")
      assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
      await settled()
      assert.equal(w.socket.sentOf("create").length, 2)
      w.socket.ok("create", { message: message("q", 2, "hi") })
      await again
      assert.deepEqual(shown(channel), [["q", "hi", undefined]])
    })
  }

  test("that is refused can be discarded", async (t) => {
    const storage = withStorage(t)
    const { w, channel } = await sending(t)
    w.socket.refuse("create", "forbidden")
    await settled()
    channel.discard("q")
    assert.deepEqual(shown(channel), [])
    assert.deepEqual(Object.keys(storage), [])
  })

  test("that waits for a connection and is discarded is not sent", async (t) => {
    const storage = withStorage(t)
    const { w, channel } = live(t)
    w.socket.drop()
    const sent = ["p", "q"].map((id) => channel.send({ id, text: id }))
    await settled()
    channel.discard("p")
    await assert.rejects(sent[0], { code: "discarded", message: "message p was discarded: send another" })
    assert.deepEqual(shown(channel), [["q", "q", "sending"]])
    assert.equal(Object.keys(storage).length, 1)
    w.openAfter(250)
    await settled()
    assert.deepEqual(w.socket.sentOf("create").map(({ id }) => id), ["q"])
    w.socket.ok("create", { message: message("q", 2, "q") })
    await sent[1]
  })

  for (const [type, when] of [["storage", "now"], ["pageshow", "while this page was in the back/forward cache"]]) {
    test(`that another tab discards ${when} is neither shown nor sent, nor stored again`, async (t) => {
      withStorage(t)
      const { w, channel } = sharing(t)
      w.socket.drop()
      const [discarded, kept] = ["q", "r"].map((id) => channel.send({ id, text: id }))
      await settled()
      await inAnotherTab(w, (client) => client.channel("c").discard("q"))
      assert.deepEqual(shown(channel), [["q", "q", "sending"], ["r", "r", "sending"]])
      w.page.dispatchEvent(new Event(type))
      await assert.rejects(discarded, { code: "discarded" })
      assert.deepEqual(shown(channel), [["r", "r", "sending"]])
      w.openAfter(250)
      w.socket.ok("attach", you("ann"))
      await settled()
      assert.deepEqual(w.socket.sentOf("create").map(({ id }) => id), ["r"])
      w.socket.ok("create", { message: message("r", 2, "r") })
      await kept
      assert.deepEqual(unsent(w), [])
    })
  }

  test("that the leading tab refuses because another tab has discarded it is not stored again", async (t) => {
    withStorage(t)
    const { w, channel } = sharing(t)
    const sent = channel.send({ id: "q", text: "q" })
    await settled()
    await inAnotherTab(w, (client) => client.channel("c").discard("q"))
    w.socket.refuse("create", "discarded") // the leader's response arrives before this page's event of the storage
    await assert.rejects(sent, { code: "discarded" })
    assert.deepEqual(unsent(w), [])
    w.page.dispatchEvent(new Event("storage"))
    assert.deepEqual(shown(channel), [])
  })

  test("that another tab has sent, or that is sent again under a discarded id, stays", async (t) => {
    withStorage(t)
    const { w, channel } = sharing(t)
    w.socket.drop()
    channel.send({ id: "q", text: "1" }).catch(() => {})
    await settled()
    await inAnotherTab(w, (client) => client.channel("c").discard("q"))
    w.page.dispatchEvent(new Event("storage"))
    channel.send({ id: "q", text: "2" }).catch(() => {})
    delete globalThis.localStorage[`${w.client.outbox.prefix}q`] // as the tab that has sent the message does
    for (const type of ["storage", "pageshow"]) w.page.dispatchEvent(new Event(type))
    assert.deepEqual(shown(channel), [["q", "2", "sending"]])
  })

  test("that another tab discards at this moment is not loaded", (t) => {
    const warned = t.mock.method(console, "warn", () => {})
    withStorage(t, Object.assign(new FakeStorage(), { "tenuto:http://server.test/base::q": "" }))
    assert.deepEqual(shown(world(t).client.channel("c")), [])
    assert.equal(warned.mock.callCount(), 0)
  })

  test("is one message if two calls have one id", async (t) => {
    const { w, channel } = live(t)
    channel.send({ id: "q", text: "hi" }).catch(() => {})
    const second = channel.send({ id: "q", text: "hi" })
    assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
    await settled()
    assert.equal(w.socket.sentOf("create").length, 1)
    w.socket.ok("create", { message: message("q", 2, "hi") })
    await second
    assert.deepEqual(shown(channel), [["q", "hi", undefined]])
  })

  test("is one message after a double click on retry", async (t) => {
    const { w, channel } = live(t)
    channel.send({ id: "q", text: "hi" }).catch(() => {})
    channel.retry("q").catch(() => {})
    await settled()
    assert.equal(w.socket.sentOf("create").length, 1)
  })
})

describe("the outbox", () => {
  /** Return a client after a reload at once, with a message that was sent before: the server confirms that it is now `id`'s. */
  async function reloadedAtOnce(t, id, options) {
    withStorage(t)
    const before = world(t, options)
    before.client.channel("c").send({ id: "q", text: "hi" }).catch(() => {})
    const { w, channel } = channelOf(t, options)
    assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
    w.socket.open()
    await settled()
    assert.deepEqual(w.socket.sentOf("create"), [])
    w.socket.ok("attach", you(id))
    w.socket.events("c", "e:1", attached(1))
    await settled()
    return { w, channel }
  }

  for (const [what, id, options] of [["of an identity", "ann", { identity: "ann" }], ["of a hub that knows no person", undefined, {}]]) {
    test(`${what} sends again after a reload, under the same id, when the server has confirmed who this is`, async (t) => {
      const { w } = await reloadedAtOnce(t, id, options)
      assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "q", role: "user", ...(id && { if_author: id }), text: "hi" }])
      w.socket.ok("create", { message: message("q", 2, "hi") })
      await settled()
      assert.deepEqual([...Object.keys(globalThis.sessionStorage), ...Object.keys(globalThis.localStorage)], [])
    })
  }

  for (const [what, options] of [["a tab", {}], ["an identity that the server does not confirm", { identity: "ann" }]]) {
    test(`of ${what} sends no message of a page that ended before its person was confirmed, until a person does`, async (t) => {
      const { w, channel } = await reloadedAtOnce(t, "bob", options) // a person who has signed in meanwhile, perhaps
      assert.deepEqual(w.socket.sentOf("create"), [])
      assert.equal(channel.getSnapshot().messages[0].local.error.code, "author_mismatch")
      w.socket.drop()
      w.openAfter(60_000)
      w.socket.ok("attach", you("bob"))
      await settled()
      assert.deepEqual(w.socket.sentOf("create"), [])
      channel.retry("q").catch(() => {})
      await settled()
      assert.deepEqual(w.socket.sentOf("create").map((frame) => frame.if_author), ["bob"])
      channel.discard("q")
      assert.deepEqual([...Object.keys(globalThis.sessionStorage), ...Object.keys(globalThis.localStorage)], [])
    })
  }

  test("of an identity is in view after a reload without a connection, unless it is another person's", async (t) => {
    withStorage(t)
    const { channel } = live(t, "ann", { identity: "ann" })
    channel.send({ id: "q", text: "hi" }).catch(() => {})
    for (const [identity, seen] of [["ann", [["q", "hi", "sending"]]], ["bob", []]]) assert.deepEqual(shown(channelOf(t, { identity }).channel), seen)
    const { w, channel: next } = live(t, "bob", { identity: "ann" })
    assert.deepEqual([shown(next), w.socket.sentOf("create")], [[], []])
  })

  test("drops a message that an earlier page has sent before its person was confirmed, once the view has it", async (t) => {
    withStorage(t)
    const before = channelOf(t)
    before.channel.send({ id: "q", text: "hi" }).catch(() => {})
    await settled()
    before.w.socket.open()
    assert.equal(before.w.socket.sentOf("create").length, 1) // it is stored, and the page is reloaded before the response
    const stored = update(message("q", 1, "hi", { role: "user", author: "ann", status: "complete" }))
    for (const [events, texts] of [[[stored], [["q", "hi", undefined]]], [[], []]]) {
      const { w, channel } = channelOf(t)
      w.socket.open()
      w.socket.ok("attach", you("ann"))
      w.socket.events("c", "e:1", attached(1), ...events)
      await settled()
      assert.deepEqual(shown(channel), texts)
      assert.deepEqual(Object.keys(globalThis.sessionStorage), [])
    }
  })

  const reconnected = (t, { w }) => {
    w.socket.drop()
    w.openAfter(60_000)
    return w
  }
  const reloaded = (t, { w: { client } }) => {
    const { w } = channelOf(t, { identity: client.options.identity })
    w.socket.open()
    return w
  }
  for (const later of [reconnected, reloaded]) {
    test(`sends a message of an unknown sender when the page is ${later.name} as its identity`, async (t) => {
      const w = later(t, await reloadedAtOnce(t, "bob", { identity: "ann" }))
      w.socket.ok("attach", you("ann"))
      await settled()
      assert.deepEqual(w.socket.sentOf("create").map((frame) => frame.if_author), ["ann"])
    })
  }

  test("keeps the reason why a message of an unknown sender was not sent", async (t) => {
    withStorage(t)
    await assert.rejects(world(t).client.channel("c").edit("gone", "new text"), { code: "deleted" }) // the page is reloaded at once
    const { channel } = live(t, "bob")
    assert.equal(channel.getSnapshot().messages[0].local.error.code, "deleted")
  })

  test("keeps a message of a page whose person was not confirmed through any number of reloads", async (t) => {
    await reloadedAtOnce(t, "bob", {})
    for (const id of ["bob", "ann"]) {
      const { w, channel } = live(t, id)
      await settled()
      assert.deepEqual(shown(channel), [["q", "hi", "refused"]])
      assert.deepEqual(w.socket.sentOf("create"), [])
    }
  })

  test("keeps the messages of another person to that person", async (t) => {
    const storage = withStorage(t)
    const ann = live(t, "ann")
    ann.channel.send({ id: "q", text: "secret" }).catch(() => {})
    const { w, channel } = live(t, "bob")
    await settled()
    assert.deepEqual(shown(channel), [])
    assert.deepEqual(w.socket.sentOf("create"), [])
    assert.equal(Object.keys(storage).length, 1) // Ann may return in this tab
    const again = live(t, "ann")
    await settled()
    assert.deepEqual(again.w.socket.sentOf("create").length, 1)
  })

  test("keeps a message whose sender is gone, without an error, and sends it once when the sender is back", async (t) => {
    withStorage(t)
    const { w, channel } = live(t, "ann")
    const as = async (id) => {
      w.socket.drop()
      w.pass(60_000)
      w.socket.open()
      w.socket.ok("attach", you(id))
      w.socket.events("c", "e:1", attached(1))
      await settled()
    }
    const sent = assert.rejects(channel.send({ id: "q", text: "secret", if_author: "eve" }), { code: "author_mismatch" })
    await settled()
    await as("bob")
    assert.deepEqual(w.socket.sentOf("create").map((frame) => frame.if_author), ["ann"])
    w.socket.refuse("create", "author_mismatch")
    await sent
    assert.deepEqual(shown(channel), [])
    await as("ann")
    assert.deepEqual(shown(channel), [["q", "secret", "sending"]])
    assert.deepEqual(w.socket.sentOf("create").map((frame) => frame.if_author), ["ann"])
  })

  for (const transport of ["websocket", "poll"]) {
    test(`names its sender when it is sent again, if the server has confirmed who that is since: ${transport}`, async (t) => {
      withStorage(t)
      const { w, channel } = channelOf(t, { transport })
      const of = () => transport === "poll" ? w.http.calls.map(({ body }) => body.if_author) : w.socket.sentOf("create").map((frame) => frame.if_author)
      channel.send({ id: "q", text: "secret" }).catch(() => {})
      await settled()
      if (transport === "poll") {
        await w.http.poll({ cursor: "e:1", ...you("ann"), events: [attached(1)] })
        assert.deepEqual(of(), [undefined]) // it is not known yet
        await w.http.fail()
        w.pass(10_000)
        await settled()
        assert.deepEqual(of(), [undefined, "ann"])
      } else {
        w.socket.open()
        w.socket.ok("attach", you("ann"))
        assert.deepEqual(of(), [undefined])
        w.socket.drop()
        w.openAfter(60_000)
        assert.deepEqual(of(), ["ann"])
      }
    })
  }

  test("names the sender that its page has named if the server confirms another one", async (t) => {
    withStorage(t)
    const { w, channel } = channelOf(t, { transport: "poll", client: "eve" })
    channel.send({ id: "q", text: "secret" }).catch(() => {})
    await settled()
    await w.http.poll({ cursor: "e:1", ...you("ann"), events: [attached(1)] })
    await w.http.fail()
    w.pass(10_000)
    await settled()
    assert.deepEqual(w.http.calls.map(({ body }) => body.if_author), [undefined, "eve"])
  })

  test("may be discarded if its page is still its sender's, though the requests are another's", async (t) => {
    withStorage(t)
    const { w, channel, sent } = await sending(t)
    w.socket.refuse("create", "author_mismatch")
    await assert.rejects(sent, { code: "author_mismatch" })
    assert.deepEqual(shown(channel), [["q", "hi", "refused"]])
  })

  test("of a sender who was confirmed while it was sent is not another's after a refusal", async (t) => {
    withStorage(t)
    const { w, channel } = channelOf(t)
    const sent = assert.rejects(channel.send({ id: "q", text: "secret" }), { code: "too_large" })
    await settled()
    w.socket.open()
    w.socket.ok("attach", you("ann"))
    w.socket.events("c", "e:1", attached(1))
    await settled()
    w.socket.refuse("create", "too_large")
    await sent
    assert.equal(w.client.outbox.entries.get("q")?.by, "ann")
    assert.deepEqual(shown(channel), [["q", "secret", "refused"]])
  })

  test("of an identity is shared by its tabs, and not by another identity", async (t) => {
    withStorage(t)
    const tab = world(t, { identity: "ann" })
    tab.client.channel("c").send({ id: "q", text: "hi" }).catch(() => {})
    assert.deepEqual(shown(world(t, { identity: "bob" }).client.channel("c")), [])
    assert.deepEqual(shown(world(t, { identity: "ann" }).client.channel("c")), [["q", "hi", "sending"]])
  })

  test("holds at most 200 messages or 1 MiB", async (t) => {
    const { channel } = live(t)
    await assert.rejects(channel.send("x".repeat(1_100_000)), { code: "too_large" })
    const sent = Array.from({ length: 200 }, () => channel.send("x"))
    await assert.rejects(channel.send("x"), { code: "too_many" })
    for (const one of sent) one.catch(() => {})
  })

  const denied = () => { throw new DOMException("denied", "SecurityError") }
  for (const [what, storage] of [
    ["full", { value: new FakeStorage(10) }],
    ["damaged", { value: Object.assign(new FakeStorage(), { "tenuto:http://server.test/base::q": "{" }) }],
    ["denied", { get: denied }],
  ]) {
    test(`works from memory when the storage is ${what}`, async (t) => {
      Object.defineProperty(globalThis, "sessionStorage", { configurable: true, ...storage })
      t.after(() => delete globalThis.sessionStorage)
      const { w, channel } = await sending(t)
      assert.equal(w.socket.sentOf("create").length, 1)
      assert.deepEqual(shown(channel), [["q", "hi", "sending"]])
    })
  }
})

describe("a snapshot", () => {
  test("has parts, meta and text for each message, and the same object for an unchanged one", async (t) => {
    const { w, channel } = live(t)
    const parts = [{ type: "reasoning", text: "hm" }, { type: "text", text: "a" }, { type: "data", name: "d", data: 1 }, { type: "text", text: "b" }]
    w.socket.events("c", "e:3", update({ ...message("m", 2, ""), parts }), update(message("n", 3, "", { parts: undefined })))
    const before = channel.getSnapshot()
    assert.deepEqual(before.messages.map(({ text, meta }) => [text, meta]), [["ab", {}], ["", {}]])
    assert.deepEqual(before.messages[1].parts, [])
    assert.deepEqual(before.streaming.map(({ id }) => id), ["m", "n"])
    w.socket.events("c", "e:4", update({ ...message("n", 3, "x"), version: 4 }))
    const after = channel.getSnapshot()
    assert.equal(after.messages[0], before.messages[0])
    assert.notEqual(after.messages[1], before.messages[1])
    assert.equal(after.status.state, "live")
    assert.deepEqual(texts(channel).length, 2)
  })
})

describe("the sign-out of another tab", () => {
  for (const type of ["storage", "pageshow"]) {
    test(`closes a client that is suspended or was in the back/forward cache: ${type}`, async (t) => {
      withStorage(t)
      const { w } = sharing(t)
      w.client.suspend()
      await inAnotherTab(w, (client) => client.signOut())
      await settled()
      await inAnotherTab(w, (client) => assert.equal(client.state, "connecting")) // the person signs in again
      const { localStorage } = globalThis
      const before = { ...localStorage }
      w.page.dispatchEvent(new Event(type))
      await settled()
      assert.equal(w.client.state, "closed")
      assert.deepEqual({ ...localStorage }, before) // no other tab is signed out by this one
    })
  }

  test("arrives although the storage is full", async (t) => {
    withStorage(t)
    const { w } = sharing(t)
    Object.defineProperty(globalThis, "localStorage", { configurable: true, value: full(globalThis.localStorage) })
    await inAnotherTab(w, (client) => client.signOut())
    await settled()
    w.page.dispatchEvent(new Event("storage"))
    assert.equal(w.client.state, "closed")
  })

  test("removes the unsent messages that closed tabs have left", async (t) => {
    withStorage(t)
    const { w } = sharing(t)
    await inAnotherTab(w, (client) => void client.channel("c").send({ id: "q", text: "secret" }).catch(() => {}))
    await settled()
    assert.equal(unsent(w).length, 1)
    await w.client.signOut()
    assert.deepEqual(unsent(w), [])
  })
})

/** Return a storage that takes no more characters than it has. */
function full(storage) {
  return new Proxy(storage, {
    set(target, key, value) {
      if (String(value).length > (target[key]?.length ?? 0)) throw new DOMException("full", "QuotaExceededError")
      return Reflect.set(target, key, value)
    },
  })
}
