// OpenAI's client for Node.js: follows a response over sockets, each of which it leaves after one event.
import { once } from "node:events"
const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const { ResponsesWS } = await import(entry.replace("index.mjs", "resources/responses/ws.mjs"))
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })
const events = []
do {
  const seen = events.at(-1)
  const id = events[0]?.response.id
  const socket = new ResponsesWS(client)
  const resume = { type: "response.retrieve", response_id: id, starting_after: seen?.sequence_number }
  socket.send(id ? resume : { type: "response.create", model: "bot", input: "you" })
  events.push((await once(socket, "event"))[0])
  socket.close()
} while (!["response.completed", "error"].includes(events.at(-1).type))
const text = events.map(({ type, delta }) => (type === "response.output_text.delta" ? delta : "")).join("")
console.log(JSON.stringify({ text, whole: events.at(-1).response?.output, numbers: events.map((one) => one.sequence_number) }))
process.exit(0)
