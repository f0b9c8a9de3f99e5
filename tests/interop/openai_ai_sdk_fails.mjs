// The AI SDK's provider of OpenAI (Responses) reads a response that fails, as a whole and as a stream.
const [entry, baseURL] = process.argv.slice(2)
const { createOpenAI } = await import(entry)
const { generateText, streamText } = await import(entry.replace("@ai-sdk/openai", "ai"))
const asked = { model: createOpenAI({ apiKey: "key", baseURL })("bot"), prompt: "you", maxRetries: 0 }
const whole = await generateText(asked).catch((error) => error)
const errors = []
const stream = streamText({ ...asked, onError: ({ error }) => errors.push(error) })
let text = ""
for await (const part of stream.fullStream) if (part.type === "text-delta") text += part.text
const { name, message, responseBody } = whole
console.log(JSON.stringify({ name, message, error: responseBody.error, text, errors }))
