// OpenAI's client for Node.js: makes a response, and retrieves its events after each number.
const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

const whole = await client.responses.create({ model: "bot", input: "you" })
const streams = []
let last = 0
for (let after = -1; after < last; after++) {
  const events = []
  const resume = after < 0 ? {} : { starting_after: after }
  for await (const event of await client.responses.retrieve(whole.id, { stream: true, ...resume })) events.push(event)
  last = Math.max(last, events.at(-1)?.sequence_number ?? 0)
  streams.push(events)
}
const messages = [{ role: "user", content: "you" }]
const chat = await client.chat.completions.create({ model: "bot", messages, stream: true })
let text = ""
for await (const chunk of chat) text += chunk.choices[0].delta.content ?? ""
const missing = await client.responses.retrieve("resp_x").catch((error) => error.status)
console.log(JSON.stringify({ whole: whole.output_text, streams, chat: text, missing }))
