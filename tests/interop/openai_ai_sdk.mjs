// The AI SDK's provider of OpenAI (Responses): two turns of `generateText`, the second with the messages of the first,
// and one with an approval between; or a stream that fails.
const [entry, baseURL] = process.argv.slice(2)
const { createOpenAI } = await import(entry)
const { generateText, jsonSchema, stepCountIs, streamText, tool } = await import(entry.replace("@ai-sdk/openai", "ai"))
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
    const result = await generateText({ model, messages, maxRetries: 0, ...options })
    messages.push(...(result.responseMessages ?? result.response.messages)) // as of 7, and before
    texts.push(result.text)
  }
  return { texts, sent: sent.splice(0) }
}
async function approved() {
  const messages = [{ role: "user", content: "pay" }]
  const seen = []
  for (let step = 0; step < 3; step++) {
    const { content, response, responseMessages } = await generateText({ model, messages, maxRetries: 0 })
    messages.push(...(responseMessages ?? response.messages))
    seen.push(content.map(({ type, text }) => text ?? type))
    const asked = content.find(({ type }) => type === "tool-approval-request")
    const reply = { type: "tool-approval-response", approvalId: asked?.approvalId, approved: true }
    const next = { role: "user", content: "again" }
    messages.push(asked ? { role: "tool", content: [{ ...reply, providerExecuted: true }] } : next)
  }
  return seen
}
async function failed() {
  const errors = []
  const onError = ({ error }) => errors.push(error.message ?? error.error?.message)
  for await (const _ of streamText({ model, prompt: "you", maxRetries: 0, onError }).fullStream);
  return errors
}
if (process.argv[4]) {
  console.log(JSON.stringify(await { approved, failed }[process.argv[4]]()))
  process.exit()
}
const plain = await turns({ system: "Be kind." })
console.log(JSON.stringify({ plain, tools: await turns({ tools: { weather }, stopWhen: stepCountIs(3) }) }))
