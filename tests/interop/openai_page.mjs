/**
 * OpenAI's client for Node.js: node openai_page.mjs MODULE URL. Each line of the input is a call, each line of the output
 * its result: {status, isOver, events}. A page follows one response, as a stream or over sockets (`way`).
 */
import { createInterface } from "node:readline"

const [, , main, baseURL] = process.argv
const entry = main.replace(/index\.js$/, "index.mjs")
const { default: OpenAI } = await import(entry)
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

async function* followed({ key, way, events }) {
  const [first, last] = [events[0], events.at(-1)]
  const after = first && { starting_after: last.sequence_number }
  const question = { model: "bot", input: "you" }
  if (way === "stream") {
    const asked = { ...question, stream: true }
    if (first) return yield* await client.responses.retrieve(first.response.id, { stream: true, ...after })
    return yield* await client.responses.create(asked, { headers: { "Idempotency-Key": key } })
  }
  const { ResponsesWS } = await import(entry.replace("index.mjs", "resources/responses/ws.mjs")) // not in early releases
  const socket = new ResponsesWS(client)
  socket.on("error", () => {}) // the client tells of a cut
  socket.send(first ? { type: "response.retrieve", response_id: first.response.id, ...after } : { type: "response.create", ...question })
  for await (const { type, message } of socket.stream()) {
    if (type !== "message") continue
    yield message
    if (message.type === "response.completed") break
  }
  socket.close()
}

class Page {
  status = "ready"
  events = []
  shown = ""
  isOver = true
  constructor(options) {
    Object.assign(this, options)
  }
  async run() {
    this.isOver = false
    try {
      for await (const event of followed(this)) {
        this.events.push(event)
        this.shown += event.delta ?? event.item?.output ?? ""
      }
    } catch {} // the connection was cut
    this.status = this.events.at(-1)?.type === "response.completed" ? "ready" : "broken"
    this.isOver = true
  }
}

const pages = new Map()
const until = async (isTrue) => {
  for (let left = 4000; !isTrue() && left; left -= 1) await new Promise((done) => setTimeout(done, 5))
}
const actions = {
  open: (name, { thread, way }) => void pages.set(name, new Page({ key: thread, way })),
  send: (name) => void pages.get(name).run(),
  shows: (name, { wanted }) => until(() => pages.get(name).isOver || pages.get(name).shown.includes(wanted)),
}

for await (const line of createInterface({ input: process.stdin })) {
  const { page: name, action, ...options } = JSON.parse(line)
  await actions[action](name, options)
  const { status, isOver, events, shown } = pages.get(name)
  console.log(JSON.stringify({ status, isOver, events, shown }))
}
process.exit(0)
