/**
 * Clients with the npm package `@ag-ui/client`: node agui_page.mjs MODULE URL. Each line of the input is a call, each
 * line of the output its result: {page, status, error, messages, customs, warnings}.
 */
import { createInterface } from "node:readline"

const [, , module, url] = process.argv
const warnings = [] // the package reports events that it does not accept
console.warn = console.error = (...words) => warnings.push(words.map(String).join(" "))
process.on("uncaughtException", (error) => warnings.push(String(error))) // the package throws one when a connection breaks
const { HttpAgent } = await import(module)

class LastMessagesAgent extends HttpAgent {
  requestInit(input) {
    const at = input.messages.findLastIndex(({ role }) => role === "user")
    return super.requestInit({ ...input, messages: input.messages.slice(at) })
  }
}

class Page {
  status = "ready"
  error = undefined
  result = undefined
  customs = []
  constructor({ thread, messages, short, ...asked }) {
    this.asked = asked // tools, context, forwardedProps
    this.agent = new (short ? LastMessagesAgent : HttpAgent)({ url, threadId: thread, initialMessages: messages ?? [] })
  }
  async run() {
    this.status = "running"
    this.error = undefined
    const subscriber = {
      onCustomEvent: ({ event }) => void this.customs.push({ name: event.name, value: event.value }),
      onRunFinishedEvent: () => void (this.status = "finished"),
      onRunErrorEvent: ({ event }) => void ([this.status, this.error] = ["error", event.code]),
    }
    try {
      this.result = (await this.agent.runAgent(this.asked, subscriber)).result
      if (this.status === "running") this.status = "open" // the stream has ended without an end of the run
    } catch (error) {
      this.status = "broken"
      this.error = String(error)
    }
  }
}

const pages = new Map()
const text = (messages) => messages.map(({ content }) => (typeof content === "string" ? content : "")).join("\n")
const until = async (isTrue) => {
  for (let left = 4000; !isTrue() && left; left -= 1) await new Promise((done) => setTimeout(done, 5))
}

const actions = {
  open: (name, options) => void pages.set(name, new Page(options)),
  async load(name, { thread }) {
    pages.set(name, new Page({ thread, messages: await (await fetch(`${url}/${thread}/messages`)).json() }))
  },
  send(name, { text, content, id }) {
    const page = pages.get(name)
    page.agent.addMessage({ id: id ?? crypto.randomUUID(), role: "user", content: content ?? text })
    void page.run()
  },
  reply(name, { call, content }) {
    const page = pages.get(name)
    page.agent.addMessage({ id: crypto.randomUUID(), role: "tool", toolCallId: call, content })
    void page.run()
  },
  run: (name) => void pages.get(name).run(),
  shows: (name, { wanted }) => until(() => pages.get(name).status !== "running" || JSON.stringify(pages.get(name).agent.messages).includes(wanted)),
  abort: async (name) => {
    pages.get(name).agent.abortRun()
    await until(() => pages.get(name).status !== "running")
  },
  saw: (name, { wanted }) => until(() => text(pages.get(name).agent.messages).includes(wanted)),
  asked: (name) => until(() => pages.get(name).customs.length),
  ended: (name) => until(() => pages.get(name).status !== "running"),
  state: () => {},
}

for await (const line of createInterface({ input: process.stdin })) {
  const { page: name, action, ...options } = JSON.parse(line)
  const result = await actions[action](name, options)
  const page = pages.get(name)
  const { status, error, customs } = page
  const state = { result: result ?? page.result, status, isOver: status !== "running", error, customs, warnings, messages: page.agent.messages }
  console.log(JSON.stringify(state))
}
process.exit(0)
