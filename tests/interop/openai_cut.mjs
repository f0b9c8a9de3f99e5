// OpenAI's client for Node.js: leaves streams while their answer is written, writes a line, and reads the rest of each.
const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

async function read(stream, isEnough = () => false) {
  const events = []
  for await (const event of stream) {
    events.push(event)
    if (isEnough(event, events.length)) break // the client closes the connection
  }
  return events
}

const isText = (event) => event.type === "response.output_text.delta"
const first = await read(await client.responses.create({ model: "bot", input: "you", stream: true }), isText)
const id = first[0].response.id
const cuts = [first]
for (let count = 1; count < first.length; count++) {
  const stream = await client.responses.retrieve(id, { stream: true })
  cuts.push(await read(stream, (_, length) => length === count))
}
const rests = []
for (const events of cuts) {
  const after = { stream: true, starting_after: events.at(-1).sequence_number }
  rests.push(read(await client.responses.retrieve(id, after)))
}
const messages = [{ role: "user", content: "you" }]
const hasContent = (chunk) => chunk.choices[0].delta.content
const chunks = await read(await client.chat.completions.create({ model: "bot", messages, stream: true }), hasContent)
const chat = read(await client.responses.retrieve(chunks[0].id, { stream: true }))
console.log("cut")
const whole = await Promise.all(rests)
const textOf = ({ output }) => output.flatMap((item) => (item.type === "message" ? item.content : [])).map(({ text }) => text).join("")
const content = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("")
console.log(JSON.stringify({ cuts, rests: whole, content, texts: [whole[0], await chat].map((events) => textOf(events.at(-1).response)) }))
