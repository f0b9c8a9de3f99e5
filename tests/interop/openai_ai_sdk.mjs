// The AI SDK's provider of OpenAI (Responses): two turns of `generateText`, the second with the messages of the first.
const [entry, baseURL] = process.argv.slice(2)
const { createOpenAI } = await import(entry)
const { generateText, jsonSchema, stepCountIs, tool } = await import(entry.replace("@ai-sdk/openai", "ai"))
const sent = [] // the types of the input's items in each request
const model = createOpenAI({
  apiKey: "key",
  baseURL,
  fetch: (url, options) => {
    sent.push(JSON.parse(options.body).input.map(({ type, role }) => type ?? role))
    return fetch(url, options)
  },
})("bot")
const inputSchema = jsonSchema({ type: "object", properties: { city: { type: "string" } } })
const weather = tool({ inputSchema, execute: ({ city }) => `7 degrees in ${city}` })

async function turns(options) {
  const messages = []
  const texts = []
  for (const content of ["one", "two"]) {
    messages.push({ role: "user", content })
    const { text, responseMessages } = await generateText({ model, messages, maxRetries: 0, ...options })
    messages.push(...responseMessages)
    texts.push(text)
  }
  return { texts, sent: sent.splice(0) }
}
const plain = await turns({ system: "Be kind." })
console.log(JSON.stringify({ plain, tools: await turns({ tools: { weather }, stopWhen: stepCountIs(3) }) }))
