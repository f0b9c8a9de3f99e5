/** Branches, the verbs of a conversation, typing and unread messages. */
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { describe, test } from "node:test"

import { Conversation } from "../../tenuto/web/client/conversation.js"
import { View } from "../../tenuto/web/view.js"
import { attached, channelOf, message, settled, update } from "./fakes.js"

/** Conversations with their newest branches, which Python reads too. */
const VECTORS = JSON.parse(readFileSync(new URL("../vectors/branches.json", import.meta.url), "utf8"))

const question = (id, created, parent, fields = {}) => message(id, created, id, { role: "user", author: "ann", status: "complete", ...(parent && { parent }), ...fields })
const answer = (id, created, parent, fields = {}) => message(id, created, id, { author: "bot", status: "complete", parent, reply_to: parent, ...fields })

/** A conversation of these messages. */
function conversation(...messages) {
  const one = new Conversation()
  one.update(messages, [])
  return Object.assign(one, { stored: messages })
}

const ids = (messages) => messages.map(({ id }) => id).join(" ")

/** Return the path after `id` was selected. */
function selected(one, id) {
  one.select(id)
  one.update(one.stored, [])
  return ids(one.messages)
}

describe("the path", () => {
  const edited = () => conversation(question("q", 1), answer("a", 2, "q"), question("p", 3, "a"), answer("b", 4, "p"), question("r", 5, "a"), answer("c", 6, "r"))

  for (const { name, messages, branch } of VECTORS) {
    test(`of the vector: ${name}`, () => {
      const one = conversation(...messages.map(({ id, parent, reply_to, parts, ...fields }, index) => {
        const more = { ...fields, ...(parts && { parts: undefined }) } // on the wire an empty list is omitted
        return reply_to ? answer(id, index + 1, reply_to, more) : question(id, index + 1, parent, more)
      }))
      assert.equal(ids(one.messages), branch)
    })
  }

  test("of a conversation without branches holds all messages", () => {
    const one = conversation(question("q", 1), question("p", 2, "q"), answer("a", 3, "q"), answer("b", 4, "p"))
    assert.equal(ids(one.messages), "q p a b")
    assert.equal(one.messages, one.all)
    assert.equal(ids(one.branches("p")), "p")
  })

  test("shows the newest edit of a question, with the messages that follow it", () => {
    const one = edited()
    assert.equal(ids(one.messages), "q a r c")
    assert.equal(ids(one.all), "q a p b r c")
    assert.equal(ids(one.branches("r")), "p r")
    assert.equal(ids(one.branches("q")), "q")
    assert.deepEqual(one.branches("unknown"), [])
  })

  test("shows a selected message, those before it and those after it", () => {
    const one = edited()
    assert.equal(selected(one, "b"), "q a p b")
    assert.equal(selected(one, "r"), "q a r c")
    assert.equal(selected(one, "unknown"), "q a r c")
  })

  test("of an edited first question begins with the edit", () => {
    const one = conversation(question("q", 1), answer("a", 2, "q"), question("r", 3))
    assert.equal(ids(one.messages), "r")
    assert.equal(selected(one, "q"), "q a")
  })

  test("shows another attempt at an answer in place of the first, without the messages after that", () => {
    const one = conversation(question("q", 1), answer("a", 2, "q"), question("p", 3, "a"), answer("b", 4, "q"))
    assert.equal(ids(one.messages), "q b")
    assert.equal(selected(one, "a"), "q a p")
  })

  test("holds replies, other roles, and messages whose parent is unknown", () => {
    const one = conversation(
      question("q", 2, "old"), question("x", 3, "q", { reply_to: "q" }), question("y", 4, "q", { reply_to: "q" }),
      message("s", 5, "s", { role: "system", parent: "q" }), message("t", 6, "t", { role: "system", parent: "q" }), question("z", 7, "deleted"),
    )
    assert.equal(ids(one.messages), "q x y s t z")
  })

  test("is found also for a circle of parents, and for ids that are names of objects", () => {
    const one = conversation(question("__proto__", 1, "constructor"), question("constructor", 2, "__proto__"), question("toString", 3, "__proto__"), answer("a", 4, "a"))
    assert.equal(selected(one, "constructor"), "__proto__ constructor a")
    assert.equal(selected(one, "toString"), "__proto__ toString a")
    assert.equal({}.status, undefined)
  })

  test("keeps its identity while no message of it changes", () => {
    const one = edited()
    const { messages } = one
    one.update(one.stored.map((stored) => (stored.id === "b" ? { ...stored, version: 9 } : stored)), [])
    assert.equal(one.messages, messages)
    assert.equal(one.all.find(({ id }) => id === "b").version, 9)
  })
})

/** Return a live channel of `ann` with these messages. */
function live(t, ...messages) {
  const { w, channel } = channelOf(t)
  w.socket.open()
  w.socket.ok("attach", { you: { id: "ann", can: ["publish"] } })
  const serial = messages.at(-1)?.created ?? 1
  w.socket.events("c", `e:${serial}`, attached(serial), ...messages.map(update))
  return { w, channel, path: () => ids(channel.getSnapshot().messages) }
}

describe("a verb", () => {
  test("edit sends another version after the same message, and shows it in place of the first", async (t) => {
    const { w, channel, path } = live(t, question("q", 1), answer("a", 2, "q"), question("p", 3, "a", { meta: { name: "Ann" } }), answer("b", 4, "p"))
    const edited = channel.edit("p", { id: "r", text: "better" })
    assert.equal(path(), "q a r")
    assert.deepEqual(channel.getSnapshot().messages[2].local, { state: "sending" })
    assert.equal(ids(channel.branches("r")), "p r")
    await settled()
    assert.deepEqual(w.socket.sentOf("create"), [{ channel: "c", id: "r", role: "user", if_author: "ann", text: "better", parent: "a", meta: { name: "Ann" } }])
    const stored = question("r", 5, "a")
    w.socket.ok("create", { message: stored })
    await edited
    w.socket.events("c", "e:5", { ...update(stored), type: "message.create" })
    assert.equal(path(), "q a r")
    channel.select("b")
    assert.equal(path(), "q a p b")
  })

  test("send in an older branch follows the newest question, not a late answer to an earlier one", async (t) => {
    const { w, channel, path } = live(t, question("q", 1), question("p", 2, "q"), answer("a", 3, "q"), question("r", 4))
    channel.select("q")
    assert.equal(path(), "q p a")
    channel.send({ id: "s", text: "s" }).catch(() => {})
    await settled()
    assert.equal(w.socket.sentOf("create")[0].parent, "p")
  })

  test("edit of the first question has no parent", async (t) => {
    const { w, channel, path } = live(t, question("q", 1), answer("a", 2, "q"))
    channel.edit("q", { id: "r", text: "r" }).catch(() => {})
    assert.equal(path(), "r")
    await settled()
    assert.equal(w.socket.sentOf("create")[0].parent, null)
  })

  test("edit of a deleted question keeps the new version as a message that is not sent", async (t) => {
    const { w, channel } = live(t, question("q", 1))
    w.socket.events("c", "e:2", { type: "message.delete", serial: 2, id: "q" })
    await assert.rejects(channel.edit("q", "my long text"), { code: "deleted" })
    const [kept] = channel.getSnapshot().messages
    assert.deepEqual([kept.text, kept.local.state, kept.local.error.code], ["my long text", "refused", "deleted"])
    await settled()
    assert.equal(w.socket.sentOf("create").length, 0)
    channel.retry(kept.id).catch(() => {})
    await settled()
    assert.deepEqual(w.socket.sentOf("create").map(({ text, parent }) => [text, parent]), [["my long text", undefined]])
  })

  test("edit refuses answers and replies", async (t) => {
    const { channel } = live(t, question("q", 1), answer("a", 2, "q"), question("x", 3, "a", { reply_to: "a" }))
    await assert.rejects(channel.edit("a", "x"), { code: "invalid_request", message: /message a is a reply: use update\(\)/ })
    await assert.rejects(channel.edit("x", "y"), { code: "invalid_request" })
  })

  test("edit of a refused message replaces it", async (t) => {
    const { w, channel, path } = live(t, question("q", 1))
    channel.send({ id: "p", text: "p" }).catch(() => {})
    await settled()
    w.socket.refuse("create", "forbidden")
    await settled()
    channel.edit("p", { id: "r", text: "r" }).catch(() => {})
    assert.equal(path(), "q r")
  })

  test("send follows the path that is shown", async (t) => {
    const { w, channel, path } = live(t, question("q", 1), answer("a", 2, "q"), question("r", 3), answer("b", 4, "r"))
    channel.send({ id: "s", text: "s" }).catch(() => {})
    await settled()
    assert.equal(w.socket.sentOf("create")[0].parent, undefined) // the server's default, which two people cannot both have
    w.socket.ok("create", { message: question("s", 5, "b") })
    await settled()
    channel.select("a")
    channel.send({ id: "t", text: "t" }).catch(() => {})
    await settled()
    assert.equal(w.socket.sentOf("create")[1].parent, "a")
    assert.equal(path(), "q a t")
  })

  test("regenerate names the question, and the newest answer is shown", async (t) => {
    const { w, channel, path } = live(t, question("q", 1), answer("a", 2, "q"), answer("b", 3, "q"), question("p", 4, "a"))
    channel.select("a")
    const done = channel.regenerate("a")
    await settled()
    const [{ id: _, ...sent }] = w.socket.sentOf("command")
    assert.deepEqual(sent, { channel: "c", name: "regenerate", target: "q" })
    w.socket.ok("command", { command: { id: "k" }, serial: 5 })
    await done
    w.socket.events("c", "e:6", { ...update(answer("d", 6, "q", { status: "streaming" })), type: "message.create" })
    assert.equal(path(), "q d")
    assert.equal(ids(channel.branches("d")), "a b d")
  })

  test("regenerate without an id is about the newest question", async (t) => {
    const { w, channel } = live(t, question("q", 1), answer("a", 2, "q"))
    channel.regenerate().catch(() => {})
    await settled()
    assert.equal(w.socket.sentOf("command")[0].target, "q")
    const empty = live(t)
    await assert.rejects(empty.channel.regenerate(), { code: "not_found" })
  })

  test("cancel stops the newest answer, or the question that waits for one, and accepts that it is over", async (t) => {
    const { w, channel } = live(t, question("q", 1), answer("a", 2, "q", { status: "streaming" }))
    const stopped = channel.cancel()
    await settled()
    assert.deepEqual(w.socket.sentOf("command").map(({ name, target }) => [name, target]), [["cancel", "a"]])
    w.socket.refuse("command", "finished")
    assert.equal(await stopped, undefined)
    w.socket.events("c", "e:3", { type: "message.finish", serial: 3, id: "a", status: "complete", updated_at: 1 })
    w.socket.events("c", "e:4", { ...update(question("p", 4, "a")), type: "message.create" })
    const refused = channel.cancel()
    await settled()
    assert.equal(w.socket.sentOf("command")[1].target, "p")
    w.socket.refuse("command", "forbidden")
    await assert.rejects(refused, { code: "forbidden" })
  })

  test("steer sends text, or data of the app", async (t) => {
    const { w, channel } = live(t, question("q", 1), answer("a", 2, "q", { status: "streaming" }))
    channel.steer("shorter").catch(() => {})
    channel.steer({ tone: 1 }, "q").catch(() => {})
    await settled()
    assert.deepEqual(w.socket.sentOf("command").map(({ target, data }) => [target, data]), [["a", { text: "shorter" }], ["q", { tone: 1 }]])
  })

  test("signOut removes this person's unsent messages, and closes the client", async (t) => {
    const { w, channel } = live(t)
    channel.send({ id: "q", text: "secret" }).catch(() => {})
    await w.client.signOut()
    assert.equal(w.client.outbox.entries.size, 0)
    assert.equal(w.client.status.state, "closed")
  })
})

describe("a snapshot", () => {
  test("shows the commands that another client has replied to", (t) => {
    const { w, channel } = live(t, question("q", 1))
    const command = { id: "__proto__", name: "approve", data: { tool: "rm" }, expires_at: 9 }
    w.socket.events("c", "e:2", { type: "command", serial: 2, command })
    w.socket.events("c", "e:3", { type: "command.reply", serial: 3, id: "__proto__", ok: true, from: "bob" })
    const { commands, replied } = channel.getSnapshot()
    assert.deepEqual(commands, [])
    assert.deepEqual(replied.map(({ id, name, reply }) => [id, name, reply.ok, reply.from]), [["__proto__", "approve", true, "bob"]])
  })

  test("shows a command whose reply came while the connection was lost", () => {
    const view = new View()
    const attached = { type: "channel.attached", channel: "c", epoch: "e", serial: 1, resumed: false, more: false, before: 1 }
    const command = { id: "k", name: "approve", data: { tool: "rm" }, expires_at: 9 }
    view.apply({ cursor: "e:1", events: [{ ...attached, commands: [command] }] })
    view.disconnect()
    view.apply({ events: [{ ...attached, serial: 2, resumed: true }] })
    assert.deepEqual([view.getSnapshot().commands, view.getSnapshot().replied], [[], []])
    const reply = { type: "command.reply", serial: 2, id: "k", ok: true, from: "bob" }
    view.apply({ cursor: "e:2", events: [reply, reply] })
    assert.deepEqual(view.getSnapshot().replied, [{ ...command, reply }])
  })

  test("keeps the messages of a channel whose right was withdrawn, and the unsent messages", async (t) => {
    const { w, channel } = live(t, question("q", 1))
    channel.send({ id: "p", text: "draft" }).catch(() => {})
    w.socket.drop(4003)
    w.openAfter(1_000)
    w.socket.refuse("attach", "forbidden", { detail: "no" })
    await settled()
    w.socket.refuse("create", "forbidden", { detail: "no" })
    await settled()
    const { state, error, messages } = channel.getSnapshot()
    assert.deepEqual([state, error.code], ["closed", "forbidden"])
    assert.deepEqual(messages.map(({ text, local }) => [text, local?.state]), [["q", undefined], ["draft", "refused"]])
  })

  test("shows who types, until they stop, send a message or say no more", (t) => {
    const { w, channel } = live(t)
    const types = (from, typing = true) => w.socket.events("c", undefined, { type: "signal", name: "typing", from, data: { typing } })
    const shown = () => channel.getSnapshot().typing.join(" ")
    types("bob")
    types("__proto__")
    types("ann") // the signals of this client itself do not count
    w.pass(20)
    assert.equal(shown(), "bob __proto__")
    types("bob", false)
    w.pass(20)
    assert.equal(shown(), "__proto__")
    types("cid")
    w.socket.events("c", "e:2", { ...update(question("q", 2, undefined, { author: "cid" })), type: "message.create" })
    assert.equal(shown(), "__proto__")
    w.pass(6_000)
    assert.equal(shown(), "")
  })

  test("typing is sent every two seconds, and ended by a sent message", async (t) => {
    const { w, channel } = live(t)
    for (const ms of [0, 500, 1_600]) {
      w.pass(ms)
      channel.typing()
    }
    channel.send("x").catch(() => {})
    channel.typing(false)
    assert.deepEqual(w.socket.sentOf("signal").map(({ data }) => data.typing), [true, true, false])
  })

  test("counts the messages of others that arrived while the page was hidden", (t) => {
    const { w, channel } = live(t, question("q", 1))
    globalThis.document = { hidden: true }
    t.after(() => delete globalThis.document)
    w.page.dispatchEvent(new Event("visibilitychange"))
    w.socket.events("c", "e:3", { ...update(question("p", 2, "q")), type: "message.create" }, { ...update(answer("a", 3, "p")), type: "message.create" })
    assert.equal(channel.getSnapshot().unread, 1) // the other one is Ann's own, from another device
    globalThis.document.hidden = false
    w.page.dispatchEvent(new Event("visibilitychange"))
    assert.equal(channel.getSnapshot().unread, 0)
  })
})
