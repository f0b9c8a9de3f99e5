/**
 * Arbitrary input over the wire: the view and the client neither hang nor keep a wrong state, and the correct input
 * after it is shown correctly.
 *
 * There are two kinds of input. Hostile input of the right form (ids like `__proto__`, lone surrogates, huge numbers,
 * unknown types and fields) may not make the client throw. Input of any other form may cost one frame, and the client
 * reconnects for it. The seeds are fixed, unless `SEED` names the first. A failure prints the command for its own seed.
 */
import assert from "node:assert/strict"
import { test } from "node:test"

import { countPoints, dropPoints, SurrogateJoiner } from "../../tenuto/web/client/text.js"
import { View } from "../../tenuto/web/view.js"
import { append, attached, channelOf, message, settled, streamedChannel, texts, update } from "./fakes.js"
import { anything, changed, changedText, IDS, isUnpolluted, SEED, seeds, TEXTS } from "./fuzzing.js"
import { randomOf } from "./random.js"

const MAX_MS = 2_000 // limit of CPU time for one input; normally a hundredth of it is sufficient
const PARTS = [
  { type: "text", text: "ab😀" },
  { type: "reasoning", text: "" },
  { type: "tool", call: "c", name: "f", input: "{", output: { n: 1 } },
  { type: "data", name: "d", data: null },
  { type: "song", text: "la" },
]

/** Run `job` for each seed. Report the number of seeds, or the command that repeats a failing one. */
async function each(t, count, job) {
  let tried = 0
  for (const seed of seeds(count)) {
    const begun = process.cpuUsage()
    try {
      await job(randomOf(seed), seed)
      const spent = process.cpuUsage(begun)
      assert.ok(isUnpolluted(), "the input has changed a built-in object")
      assert.ok(spent.user + spent.system < MAX_MS * 1_000, "it took too long")
    } catch (error) {
      const again = `SEED=${seed} FUZZ=0 node --test --test-name-pattern='^${t.name}$' tests/web/fuzz.test.js`
      error.message = `seed ${seed}: ${error.message}\nagain: ${again}`
      throw error
    }
    tried++
  }
  t.diagnostic(`${tried} inputs from seed ${SEED}`)
  return tried
}

/** Return an event of the right form, about any message. */
function eventOf(random) {
  const serial = random.upTo(30)
  const id = random.of(IDS)
  const parts = Array.from({ length: random.upTo(4) }, () => random.of(PARTS))
  const status = random.of(["streaming", "complete", "failed"])
  const command = { id, name: random.of(IDS), expires_at: 1, data: anything(random) }
  const member = { id, kind: "user", connections: 1 }
  const whole = { ...message(id, random.upTo(30), "x"), parts, status, version: serial, [random.of(["new", "meta"])]: {} }
  return random.of([
    attached(serial, { resumed: random.chance(0.5), before: random.upTo(9), more: random.chance(0.5), commands: [command] }),
    { type: "message.create", serial, message: whole },
    { type: "message.update", serial, message: whole },
    { ...append(serial, id, random.upTo(6), random.of(TEXTS)), part: random.upTo(4) },
    { type: "message.part", serial, id, index: random.upTo(4), updated_at: 2, part: random.of(PARTS) },
    { type: "message.finish", serial, id, status, reason: "r", meta: { k: 1 }, updated_at: 3 },
    { type: "message.takeover", serial, id },
    { type: "message.delete", serial, id },
    { type: "command", serial, command },
    { type: "command.reply", serial, id, ok: true, data: anything(random) },
    { type: random.of(["presence.enter", "presence.update"]), member },
    { type: "presence.leave", id },
    { type: "presence.sync", members: [member], count: random.upTo(3) },
    { type: "signal", name: id, data: anything(random) },
    { type: random.of(["message.new", "toString", "__proto__", ""]), serial, id, message: whole },
  ])
}

function batchOf(random) {
  const events = Array.from({ length: 1 + random.upTo(4) }, () => eventOf(random))
  return { events, ...(random.chance(0.5) && { cursor: random.of(["e:1", "-:0", "e:9", ""]) }) }
}

const pageOf = (random) => ({
  messages: Array.from({ length: random.upTo(4) }, () => message(random.of(IDS), random.upTo(9), random.of(TEXTS))),
  more: random.chance(0.5),
  cursor: "e:1",
})

const NEW_START = { cursor: "e:40", events: [attached(40, { epoch: "f" }), update(message("m", 1, "right", { version: 40 }))] }

/** Check that a view, after arbitrary events, shows exactly the messages of a new start. */
function checkHealed(view) {
  view.disconnect()
  assert.equal(view.apply(structuredClone(NEW_START)).isGap, false)
  assert.deepEqual(view.getSnapshot().messages, [NEW_START.events[1].message])
  assert.equal(view.cursor, "e:40")
  assert.equal(view.apply({ cursor: "e:41", events: [append(41, "m", 5, " on")] }).isGap, false)
  assert.equal(view.getSnapshot().messages[0].parts[0].text, "right on")
}

test("a view accepts all events of the right form, and every new start repairs it", async (t) => {
  let shown = 0
  const tried = await each(t, 1_500, (random) => {
    const view = new View()
    view.apply({ cursor: "e:1", events: [attached(1)] })
    for (let step = 0; step < 12; step++) {
      const choice = random.upTo(10)
      if (choice === 0) view.disconnect()
      else if (choice === 1) view.merge(pageOf(random))
      else view.apply(batchOf(random))
      const { messages, presence, commands } = view.getSnapshot()
      assert.equal(new Set(messages.map(({ id }) => id)).size, messages.length)
      assert.ok(presence.count >= 0 && Array.isArray(commands))
      for (const { parts = [] } of messages) for (const { text = "" } of parts) assert.equal(typeof text, "string")
      shown += messages.length
    }
    checkHealed(view)
  })
  assert.ok(shown > 1_000 || tried === 1) // the events were about real messages
})

test("a new start repairs a view after arbitrary input", async (t) => {
  let thrown = 0
  const tried = await each(t, 2_500, (random) => {
    const view = new View()
    view.apply({ cursor: "e:1", events: [attached(1), update(message("m", 1, "a"))] })
    for (let step = 0; step < 8; step++) {
      let given = random.chance(0.8) ? batchOf(random) : pageOf(random)
      for (let times = 1 + random.upTo(3); times > 0; times--) given = changed(random, given)
      try {
        if (given?.messages) view.merge(given)
        else view.apply(given)
        view.getSnapshot()
      } catch (error) {
        assert.ok(error instanceof TypeError || error instanceof RangeError, error)
        thrown++
        break // a client does not continue with it: it reconnects
      }
    }
    checkHealed(view)
  })
  assert.ok(thrown > 100 || tried === 1)
})

test("text is split and counted in code points, however its pieces are divided", async (t) => {
  await each(t, 2_000, (random) => {
    const text = Array.from({ length: random.upTo(12) }, () => random.of(TEXTS.slice(0, 10))).join("")
    assert.equal(countPoints(text.toWellFormed()), [...text.toWellFormed()].length)
    const points = random.upTo(text.length + 3)
    assert.equal(dropPoints(text, points), [...text].slice(points).join(""))
    const joiner = new SurrogateJoiner(0)
    let written = ""
    for (let at = 0; at < text.length; ) {
      const until = at + 1 + random.upTo(4)
      const piece = joiner.write(text.slice(at, until))
      assert.equal(piece.at, [...written].length)
      written += piece.text
      assert.ok(piece.text.isWellFormed())
      at = until
    }
    assert.equal(written + joiner.end().text, text.toWellFormed())
  })
})

// The client --------------------------------------------------------------------------------------------------------

/** Return frames of a server, in any order; `ref` may belong to any request. */
function frameOf(random) {
  const ref = random.chance(0.7) ? random.upTo(6) : anything(random)
  const batch = batchOf(random)
  return random.of([
    { type: "events", channel: random.of(["c", "c", "d", "__proto__"]), ...batch },
    { type: "ok", ref },
    { type: "ok", ref, message: message("m", 1, "x"), serial: 1, messages: [], more: false },
    { type: "error", ref, code: random.of(["busy", "gap", "draining", "internal", "deleted"]), detail: "d", status: 409 },
    { type: "ping", n: anything(random) },
    { type: "bye", reason: "draining", retry_ms: random.upTo(2_000) },
    { type: random.of(["turn", "hello", "__proto__"]), x: anything(random) },
  ])
}

/** Check that the client reconnects within its longest back-off. */
function untilItTries(w, isOver) {
  for (let waited = 0; isOver(); waited++) {
    assert.ok(waited < 100, "it does not come back")
    w.pass(500)
  }
}

/** Return the newest socket, open; a new one if that is closed. */
function openSocket(w) {
  untilItTries(w, () => w.socket.isClosed)
  if (!w.socket.isOpen) w.socket.open()
  return w.socket
}

for (const isWild of [false, true]) {
  test(`a client on a socket ${isWild ? "with arbitrary input reconnects" : "accepts all frames of the right form"}`, async (t) => {
    let thrown = 0
    const tried = await each(t, isWild ? 500 : 400, async (random) => {
      const { w, channel } = channelOf(t, { transport: "websocket" })
      const errors = []
      channel.subscribe(() => void channel.getSnapshot())
      channel.listen(() => {})
      w.socket.open()
      w.socket.events("c", "e:1", attached(1), update(message("m", 1, "a")))
      const asked = [channel.create({ text: "x" }), channel.append("m", "b", 1), channel.history()]
      for (const one of asked) one.catch((error) => errors.push(error))
      for (let step = 0; step < 8 && channel.state !== "closed"; step++) {
        let given = JSON.stringify(frameOf(random))
        const isBelieved = given.startsWith('{"type":"bye"') // the server sets the time of the reconnect
        if (isWild && !isBelieved && random.chance(0.6)) given = JSON.stringify(changed(random, JSON.parse(given)))
        else if (isWild && !isBelieved) given = changedText(random, given)
        const before = openSocket(w)
        try {
          before.receive(given)
        } catch (error) {
          thrown++
          assert.ok(isWild, `${error.stack} of ${given}`)
          assert.ok(before.isClosed || w.client.state === "closed", `it goes on after ${given}`)
        }
        if (random.chance(0.1)) w.socket.drop(random.of([1000, 1006, 1009, 1011, 1012, 4000, 4100, 4200]))
      }
      if (channel.state !== "closed") {
        w.socket.drop()
        openSocket(w).ok("attach")
        openSocket(w).receive({ type: "events", channel: "c", ...structuredClone(NEW_START) })
        assert.equal(channel.state, "live")
        assert.equal(channel.cursor, "e:40")
        assert.deepEqual(texts(channel), ["right"])
      } else assert.ok(channel.error)
      assert.ok(w.sockets.length < 20, `${w.sockets.length} sockets`)
      w.client.close()
      await settled()
      for (const error of errors) assert.ok(isWild || typeof error.code === "string", error)
    })
    assert.ok(tried === 1 || isWild === thrown > 50)
  })
}

test("a client on a stream with arbitrary input ends with the true state", async (t) => {
  let unreadable = 0
  t.mock.method(console, "error", () => unreadable++)
  const tried = await each(t, 150, async (random) => {
    const { w, channel } = await streamedChannel(t)
    for (let step = 0; step < 6 && !w.source.isClosed; step++) {
      const event = random.chance(0.5) ? changed(random, eventOf(random)) : eventOf(random)
      const data = random.chance(0.3) ? changedText(random, JSON.stringify(event)) : JSON.stringify(event)
      const frame = `event: ${typeof event?.type === "string" ? event.type : "x"}\ndata: ${data}\n${random.of(["", "id: e:2\n", "id: x\n", "id\n"])}\n`
      const before = unreadable
      const source = w.source
      await source.write(random.chance(0.2) ? changedText(random, frame) : frame)
      if (unreadable > before) assert.ok(source.isClosed, `the events in ${data} are lost, and the stream continues`)
    }
    if (channel.state === "closed") return
    await w.source.drop()
    untilItTries(w, () => w.source.isClosed)
    await w.source.open()
    for (const event of NEW_START.events.slice(0, -1)) await w.source.receive(event)
    await w.source.receive(NEW_START.events.at(-1), NEW_START.cursor)
    assert.equal(channel.state, "live")
    assert.deepEqual(texts(channel), ["right"])
    w.client.close()
  })
  assert.ok(unreadable > 20 || tried === 1)
})

test("requests over HTTP resolve, reject or are repeated after arbitrary responses", async (t) => {
  await each(t, 250, async (random) => {
    const { w, channel } = channelOf(t, { transport: "sse" })
    await w.source.open()
    let outcome = null
    channel.create({ text: "x" }).then(() => (outcome = "answered"), (error) => (outcome = error.code))
    await settled()
    for (let tries = 0; tries < 6 && !outcome; tries++) {
      const body = random.of(["", "null", "{}", '{"code":"gap"}', '{"code":1}', "<html>", '"x"', "[]", JSON.stringify(anything(random))])
      const status = random.of([200, 201, 204, 400, 404, 409, 413, 429, 500, 502, 503])
      const call = w.http.calls.at(-1)
      if (random.chance(0.2)) call.reject(new TypeError("network error"))
      else call.resolve(new Response(status === 204 ? null : body, { status }))
      await settled()
      w.pass(30_000)
      await settled()
    }
    if (!outcome) {
      await w.http.answer(201, { serial: 1 })
      assert.equal(outcome, "answered")
    }
    assert.equal(w.client.requests.pending.size, 0)
    w.client.close()
  })
})
