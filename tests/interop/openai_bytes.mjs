// OpenAI's client for Node.js behind a proxy that cuts its connections: each line of the input reads a response from its
// beginning, as a stream or over sockets, and goes on after the last number; each line of the output is what it has.
import { createInterface } from "node:readline"

const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const { ResponsesWS } = await import(entry.replace("index.mjs", "resources/responses/ws.mjs"))
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

async function* followed(id, after, way) {
  if (way === "stream") return yield* await client.responses.retrieve(id, { stream: true, ...after })
  const socket = new ResponsesWS(client)
  socket.on("error", () => {}) // the client tells of a cut
  socket.send({ type: "response.retrieve", response_id: id, ...after })
  for await (const { type, message } of socket.stream()) {
    if (type !== "message") continue
    yield message
    if (message.type === "response.completed") break
  }
  socket.close()
}

for await (const line of createInterface({ input: process.stdin })) {
  const [id, way] = line.split(" ")
  const events = []
  while (events.at(-1)?.type !== "response.completed") {
    const after = events.length ? { starting_after: events.at(-1).sequence_number } : {}
    try {
      for await (const event of followed(id, after, way)) events.push(event)
    } catch {
      continue // the connection was cut
    }
  }
  const text = events.map(({ type, delta }) => (type === "response.output_text.delta" ? delta : "")).join("")
  console.log(JSON.stringify({ text, numbers: events.map((event) => event.sequence_number) }))
}
process.exit(0)
