// OpenAI's client for Node.js: each line of the input is a call of `responses`, each line of the output an event of a
// call, or its value and error.
import { createInterface } from "node:readline"

const [entry, baseURL] = process.argv.slice(2)
const { default: OpenAI } = await import(entry)
const client = new OpenAI({ apiKey: "key", baseURL, maxRetries: 0 })

async function run({ name, call, args }) {
  const write = (line) => console.log(JSON.stringify({ name, ...line }))
  try {
    const value = await client.responses[call](...args)
    if (!(Symbol.asyncIterator in value)) return write({ value, error: null })
    for await (const event of value) write({ event })
    write({ error: null })
  } catch ({ message, code = null, status = null }) {
    write({ error: { message, code, status } })
  }
}

for await (const line of createInterface({ input: process.stdin })) void run(JSON.parse(line))
process.exit(0)
