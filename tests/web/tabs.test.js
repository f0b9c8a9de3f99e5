/** Tabs that share a connection, with the test's own Web Locks and BroadcastChannel, and a virtual clock. */
import assert from "node:assert/strict"
import { mock, test } from "node:test"

import { Sharing } from "../../tenuto/web/client/sharing.js"
import { Observable } from "../../tenuto/web/client/errors.js"
import { Tabs } from "../../tenuto/web/client/tabs.js"
import { View } from "../../tenuto/web/view.js"
import { WEBSOCKET } from "../../tenuto/web/client/websocket.js"
import { append, attached, message, settled, update } from "./fakes.js"

/** Web Locks: exclusive ones, with `ifAvailable`, `steal` and `signal`. */
class Locks {
  held = new Map()
  queues = new Map()

  request(name, options, callback) {
    return new Promise((resolve, reject) => {
      const waiting = { resolve, reject, callback }
      const queue = this.queues.get(name) ?? []
      this.queues.set(name, queue)
      if (options.ifAvailable && (this.held.has(name) || queue.length)) return resolve(callback(null))
      if (options.steal && this.held.has(name)) {
        this.held.get(name).reject(new DOMException("stolen", "AbortError"))
        this.held.delete(name)
        queue.unshift(waiting)
      } else queue.push(waiting)
      options.signal?.addEventListener("abort", () => {
        if (!queue.includes(waiting)) return
        queue.splice(queue.indexOf(waiting), 1)
        reject(new DOMException("aborted", "AbortError"))
      })
      this.grant(name)
    })
  }

  grant(name) {
    const queue = this.queues.get(name)
    if (this.held.has(name) || !queue.length) return
    const next = queue.shift()
    this.held.set(name, next)
    Promise.resolve(next.callback({ name })).then((value) => {
      next.resolve(value)
      if (this.held.get(name) !== next) return
      this.held.delete(name)
      this.grant(name)
    })
  }
}

/** A world of tabs: `tab()` opens one, `pass()` moves the time. A stopped tab neither sends, receives nor ticks. */
function tabsOf(t) {
  mock.timers.reset()
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 })
  const channels = new Set()
  const posted = []
  let current
  globalThis.BroadcastChannel = class {
    constructor(name) {
      Object.assign(this, { name, owner: current })
      channels.add(this)
    }
    postMessage(data) {
      if (this.owner?.isStopped) return
      posted.push({ name: this.name, data })
      for (const other of channels) {
        if (other === this || other.name !== this.name) continue
        const receive = () => as(other.owner, () => channels.has(other) && other.onmessage?.({ data: structuredClone(data) }))
        if (other.owner.isStopped) other.owner.missed.push(receive)
        else queueMicrotask(receive)
      }
    }
    close() {
      channels.delete(this)
    }
  }
  const locks = new Locks()
  Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true })
  globalThis.addEventListener = () => {}
  const as = (owner, job) => {
    const before = current
    current = owner
    try {
      return job()
    } finally {
      current = before
    }
  }
  t.after(() => {
    mock.timers.reset()
    delete globalThis.addEventListener
  })
  const all = []
  return {
    all,
    posted,
    locks,
    async tab(identity = "ada") {
      const client = new TabClient((job) => as(client, job))
      all.push(client)
      client.tabs = new Tabs(client, identity, WEBSOCKET)
      as(client, () => client.tabs.start())
      await settled()
      return client
    },
    async pass(ms) {
      for (let left = ms; left > 0; left -= 50) {
        mock.timers.tick(Math.min(50, left))
        await settled()
      }
    },
  }
}

/** The members of a client that tabs use; the times at which it led are in `led`. */
class TabClient extends Observable {
  base = "http://server.test"
  channels = new Map()
  status = { error: null, retryAt: null }
  token = { isExpired: false }
  state = "live"
  isHttp = false
  missed = []
  uses = []
  seen = [] // types of all received frames
  closing = new AbortController().signal

  constructor(as) {
    super()
    this.as = as
  }

  now = () => (this.isStopped ? this.stoppedAt : Date.now())

  use(transport) {
    this.uses.push(transport?.name ?? "own")
    this.socket?.close()
    this.socket = transport && this.as(() => new transport.Socket())
    if (!this.socket) return
    this.frames = []
    this.socket.onopen = () => (this.isOpen = true)
    this.socket.onmessage = ({ data }) => {
      this.frames.push(JSON.parse(data))
      this.seen.push(this.frames.at(-1).type)
    }
    this.socket.onclose = () => (this.isOpen = false)
  }

  newId = () => Math.random().toString(36).slice(2)

  follow(name) {
    return this.channels.get(name)
  }

  send(frame) {
    this.as(() => this.socket.send(JSON.stringify(frame)))
  }

  get leads() {
    return this.tabs.leader !== undefined
  }

  stop() {
    this.stoppedAt = Date.now()
    this.isStopped = true
  }
}

/** Give a client a live channel with one message. */
function channelOf(client) {
  const view = new View()
  view.apply({ cursor: "e:1", events: [attached(1), update(message("m", 1, "a"))] })
  const channel = Object.assign(new Observable(), { name: "c", view, state: "live", you: { id: "ada", can: [] }, isOwn: true })
  client.channels.set("c", channel)
  return channel
}

const roles = ({ all }) => all.filter(({ isStopped }) => !isStopped).map(({ leads }) => leads)

test("the first tab leads; when it leaves, another one leads", async (t) => {
  const w = tabsOf(t)
  for (let index = 0; index < 3; index++) await w.tab()
  assert.deepEqual(roles(w), [true, false, false])
  assert.deepEqual(w.all.map(({ uses }) => uses[0]), ["own", "tab", "tab"])
  w.all[0].state = "suspended"
  w.all[0].notify()
  await settled()
  assert.deepEqual(roles(w), [false, true, false])
  assert.equal(w.all[2].isOpen, true)
})

test("of followers that notice the silence at once, only one steals the lead", async (t) => {
  const w = tabsOf(t)
  for (let index = 0; index < 4; index++) await w.tab()
  w.all[0].stop()
  await w.pass(1_400)
  assert.deepEqual(roles(w), [false, false, false])
  await w.pass(400)
  assert.equal(roles(w).filter(Boolean).length, 1)
  const leader = w.all.findIndex(({ leads, isStopped }) => leads && !isStopped)
  await w.pass(10_000)
  assert.equal(w.all.findIndex(({ leads, isStopped }) => leads && !isStopped), leader)
  assert.equal(w.all.slice(1).flatMap(({ uses }) => uses).filter((name) => name === "own").length, 1)
})

test("a leader that was stopped follows when it continues, and its old frames are ignored", async (t) => {
  const w = tabsOf(t)
  const [first, second, third] = [await w.tab(), await w.tab(), await w.tab()]
  const { term } = first.tabs
  first.stop()
  await w.pass(2_000)
  first.isStopped = false
  const n = w.posted.findLast(({ data }) => data.tab === third.tabs.id).data.n
  const port = first.as(() => new BroadcastChannel(first.tabs.name + third.tabs.id))
  port.postMessage({ term, n, text: '{"type":"late"}' })
  for (const receive of first.missed) receive()
  await w.pass(1_000)
  assert.ok(third.seen.includes("ping"))
  assert.ok(!third.seen.includes("late"))
  assert.equal([first, second, third].filter(({ leads }) => leads).length, 1)
  assert.equal(first.leads, false)
  assert.equal(first.uses.at(-1), "tab")
})

test("a follower begins with a dump, or with its own view at the same cursor, and gets the frames after it", async (t) => {
  const w = tabsOf(t)
  const [leader, fresh, cached] = [await w.tab(), await w.tab(), await w.tab()]
  const channel = channelOf(leader)
  fresh.send({ type: "attach", ref: 1, channel: "c" })
  cached.send({ type: "attach", ref: 1, channel: "c", since: "e:1" })
  await settled()
  const events = { cursor: "e:2", events: [append(2, "m", 1, "b")] }
  channel.view.apply(events)
  leader.as(() => leader.tabs.leader.received(channel, events))
  await settled()
  const view = new View()
  const frames = ({ frames }) => frames.filter(({ type }) => type === "events")
  for (const { cursor, events } of frames(fresh)) view.apply({ cursor, events })
  assert.equal(view.getSnapshot().messages[0].parts[0].text, "ab")
  assert.equal(view.cursor, "e:2")
  assert.deepEqual(frames(cached).map(({ events }) => events.map(({ type }) => type)), [["channel.attached"], ["message.append"]])
  assert.deepEqual(fresh.frames[0], { type: "ok", ref: 1, you: { id: "ada", can: [] } })
})

test("a follower that confirms nothing is disconnected after 1 MiB, and others continue", async (t) => {
  const w = tabsOf(t)
  const [leader, slow, fast] = [await w.tab(), await w.tab(), await w.tab()]
  const channel = channelOf(leader)
  for (const client of [slow, fast]) client.send({ type: "attach", ref: 1, channel: "c" })
  await settled()
  const piece = "x".repeat(100_000)
  const batch = { events: [append(2, "m", 1, piece)] }
  for (let count = 0; count < 30; count++) {
    leader.as(() => leader.tabs.leader.received(channel, batch))
    await settled()
    await w.pass(500)
    const ping = fast.frames.findLast(({ type }) => type === "ping")
    fast.send({ type: "pong", n: ping.n })
    await settled()
  }
  assert.equal(fast.frames.filter(({ type }) => type === "events").length, 31)
  const received = slow.frames.filter(({ type }) => type === "events").length - 1
  assert.ok(received >= 9 && received <= 10, `${received} frames`)
  assert.equal(slow.isOpen, false)
})

test("a follower is not live while its leader is not", async (t) => {
  const w = tabsOf(t)
  const leader = await w.tab()
  leader.state = "reconnecting"
  const follower = await w.tab()
  assert.equal(follower.isOpen, false)
  follower.status.retryAt = 1
  leader.state = "live"
  await w.pass(500)
  assert.equal(follower.isOpen, true)
})

test("a follower knows whether its leader renews its identity, or has lost its connection", async (t) => {
  const w = tabsOf(t)
  const leader = await w.tab()
  leader.token.isExpired = true
  leader.state = "reconnecting"
  const follower = await w.tab()
  assert.equal(follower.token.isExpired, true)
  leader.token.isExpired = false
  follower.use(follower.tabs.transport)
  await settled()
  assert.equal(follower.token.isExpired, false)
})

test("tabs of different identities use locks and channels of different names", async (t) => {
  const w = tabsOf(t)
  await w.tab("ada")
  await w.tab("bob")
  await w.pass(1_000)
  assert.deepEqual(roles(w), [true, true])
  const names = (of) => new Set(w.posted.filter(({ data }) => data.term === of.tabs.term).map(({ name }) => name))
  assert.equal(w.all[0].tabs.name === w.all[1].tabs.name, false)
  assert.ok(names(w.all[0]).size > 0)
})

test("the server's id decides: an identity that it does not confirm shares and shows nothing", async (t) => {
  const w = tabsOf(t)
  const client = await w.tab()
  const shown = []
  client.options = { cache: false, tabs: false }
  client.sharing = new Sharing(client, "ada")
  client.channels.set("c", { show: () => shown.push("empty") })
  t.mock.method(console, "warn", () => {})
  client.sharing.identified("ada")
  assert.ok(client.sharing)
  client.sharing.identified("bob")
  assert.equal(client.sharing, undefined)
  assert.deepEqual(shown, ["empty"])
})
