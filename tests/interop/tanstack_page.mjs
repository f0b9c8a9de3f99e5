/**
 * Clients with the npm package `@tanstack/ai-client`: node tanstack_page.mjs MODULE URL. Each line of the input is a
 * call, each line of the output its result: {page, status, error, messages}.
 */
import { createInterface } from "node:readline"

const [, , module, url] = process.argv
console.warn = () => {}
const { ChatClient, fetchServerSentEvents } = await import(module)

const pages = new Map()
const until = async (isTrue) => {
  for (let left = 4000; !isTrue() && left; left -= 1) await new Promise((done) => setTimeout(done, 5))
}
const isOver = (client) => ["ready", "error"].includes(client.getStatus())
const text = (client) => client.getMessages().flatMap(({ parts }) => parts.map(({ content }) => content ?? "")).join("\n")

const actions = {
  open(name, { thread, base, ...options }) {
    const connection = fetchServerSentEvents(base ?? url, { reconnect: { delayMs: 1, maxAttempts: 20 } })
    const client = new ChatClient({ connection, threadId: thread, ...options })
    client.attach()
    pages.set(name, client)
  },
  send: (name, { text }) => void pages.get(name).sendMessage(text),
  reload: (name) => void pages.get(name).reload(),
  shows: (name, { wanted }) => until(() => isOver(pages.get(name)) || JSON.stringify(pages.get(name).getMessages()).includes(wanted)),
  older: (name) => pages.get(name).loadOlderMessages(),
  close: (name) => pages.get(name).dispose(),
  saw: (name, { wanted }) => until(() => text(pages.get(name)).includes(wanted)),
  ended: (name) => until(() => isOver(pages.get(name))),
}

for await (const line of createInterface({ input: process.stdin })) {
  const { page: name, action, ...options } = JSON.parse(line)
  await actions[action](name, options)
  const client = pages.get(name)
  const error = client.getError()
  console.log(JSON.stringify({ status: client.getStatus(), isOver: isOver(client), error: error && String(error), messages: client.getMessages() }))
}
process.exit(0)
