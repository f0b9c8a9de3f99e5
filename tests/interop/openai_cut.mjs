// OpenAI's client for Node.js: leaves a chat completion while it is written, writes a line, and reads it on as a response.
const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

const messages = [{ role: "user", content: "you" }]
let content = ""
let id
for await (const chunk of await client.chat.completions.create({ model: "bot", messages, stream: true })) {
  content += chunk.choices[0].delta.content ?? ""
  id = chunk.id
  if (content) break // the client closes the connection
}
const stream = await client.responses.retrieve(id, { stream: true })
console.log("cut")
let text = ""
for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta
console.log(JSON.stringify({ content, text }))
