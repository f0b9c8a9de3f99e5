/**
 * Pages with the npm package `ai`: node ai_sdk_page.mjs MODULE. Each line of the input is a call, each line of the output
 * its result: {status, isOver, error, messages, calls}. One process serves many tests, one after the other.
 */
import { createInterface } from "node:readline"

const [, , module] = process.argv
let url, left // the address of the pages, and what ends their requests
const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls: hasOutputs, lastAssistantMessageIsCompleteWithApprovalResponses: hasApprovals } =
  await import(module)

class State {
  status = "ready"
  error = undefined
  messages = []
  pushMessage = (message) => (this.messages = [...this.messages, structuredClone(message)])
  popMessage = () => (this.messages = this.messages.slice(0, -1))
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, structuredClone(message)))
  snapshot = (value) => structuredClone(value)
}

class Chat extends AbstractChat {
  calls = [] // the tools that the page was asked to run
  requests = 0
  isOver = true // no request is under way
  follow = (request) => void (this.isOver = false, request.finally(() => (this.isOver = true)))
  constructor({ id, tool, sendsOn, prepare, onError }) {
    const signal = left.signal
    const transport = new DefaultChatTransport({
      api: url,
      fetch: (to, options) => {
        this.requests += 1
        return fetch(to, { ...options, signal: AbortSignal.any([signal, options?.signal].filter(Boolean)) })
      },
      ...(process.env.TENUTO_AI_STRICT && {
        prepareReconnectToStreamRequest: () => ({ api: `${url}/${id}/stream?last=${this.messages.at(-1)?.id}` }),
      }),
      ...(prepare && { prepareSendMessagesRequest: (0, eval)(prepare) }),
    })
    super({
      id,
      transport,
      state: new State(),
      generateId: (() => {
        let last = 0
        return () => `${id}-${process.pid}-${pages.size}-${(last += 1)}`
      })(),
      onToolCall: ({ toolCall }) => {
        this.calls.push(toolCall.toolCallId)
        const result = { tool, toolCallId: toolCall.toolCallId, output: { here: true } }
        if (toolCall.toolName === tool) void (this.addToolOutput?.(result) ?? this.addToolResult(result))
      },
      ...(onError && { onError: (0, eval)(`(resumeStream) => ${onError}`)(() => this.resumeStream()) }),
      ...(sendsOn && { sendAutomaticallyWhen: (one) => hasOutputs(one) || (hasApprovals?.(one) ?? false) }),
    })
  }
}

const pages = new Map()
const text = (message) => message.parts.map((part) => (part.type === "text" ? part.text : "")).join("")
const until = async (isTrue) => {
  for (let left = 4000; !isTrue(); left -= 1) {
    if (!left) throw new Error(`not within 20 s: ${isTrue}`)
    await new Promise((done) => setTimeout(done, 5))
  }
}

async function loaded(id) {
  for (;;) {
    try {
      return await (await fetch(`${url}/${encodeURIComponent(id)}/messages`)).json()
    } catch {} // the connection was cut
  }
}

const actions = {
  begin(_, options) {
    left?.abort()
    left = new AbortController()
    url = options.url
    pages.clear()
  },
  async open(page, { id, load, resume, ...options }) {
    const chat = new Chat({ id, ...options })
    pages.set(page, chat)
    if (load) chat.messages = await loaded(id)
    if (resume) await actions.resume(page)
  },
  async resume(page) {
    const chat = pages.get(page)
    chat.follow((chat.resumed = chat.resumeStream()))
    await until(() => chat.requests)
  },
  resumed: async (page) => void (await pages.get(page).resumed),
  send: (page, { options, ...message }) => pages.get(page).follow(pages.get(page).sendMessage(message, options)),
  again: (page, { index }) => void pages.get(page).sendMessage(pages.get(page).messages[index]),
  regenerate: (page, options) => void pages.get(page).regenerate(options),
  leave: (page) => void pages.get(page).stop(),
  stop: async (page) => (await fetch(`${url}/${encodeURIComponent(pages.get(page).id)}/stop`, { method: "POST" })).status,
  approve: (page, answer) => pages.get(page).addToolApprovalResponse(answer),
  output: (page, result) => {
    const chat = pages.get(page)
    void (chat.addToolOutput?.(result) ?? chat.addToolResult(result))
  },
  forge: (page, { id }) => (pages.get(page).messages.at(-1).parts.find((part) => part.approval).approval.id = id),
  shows: (page, { wanted }) => until(() => pages.get(page).isOver || JSON.stringify(pages.get(page).messages).includes(wanted)),
  saw: (page, { wanted }) => until(() => pages.get(page).messages.map(text).join("\n").includes(wanted)),
  asks: (page, { requests }) => until(() => pages.get(page).requests === requests),
  is: (page, { status }) => until(() => pages.get(page).status === status),
  settled: (page) => until(() => ["ready", "error"].includes(pages.get(page).status)),
  state: () => {},
}

for await (const line of createInterface({ input: process.stdin })) {
  const { page, action, ...options } = JSON.parse(line)
  const result = await actions[action](page, options)
  const { status, isOver, error, messages, calls, requests } = pages.get(page) ?? {}
  console.log(JSON.stringify({ result, status, isOver, error: error?.message, messages, calls, requests }))
}
process.exit(0)
