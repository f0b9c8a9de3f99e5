import { useChat } from "@ai-sdk/react"
import * as ai from "ai"
let last
const named = { prepareReconnectToStreamRequest: ({ id }) => ({ api: `/api/chat/${id}/stream?last=${last}` }) }
const transport = new ai.DefaultChatTransport({ api: "/api/chat", ...(IS_STRICT ? named : {}) })
const rules = [ai.lastAssistantMessageIsCompleteWithToolCalls, ai.lastAssistantMessageIsCompleteWithApprovalResponses]
export function Chat({ id, initial }) {
  last = initial.at(-1)?.id
  const chat = useChat({
    id, transport, messages: initial, resume: true,
    sendAutomaticallyWhen: (options) => rules.some((rule) => rule?.(options)),
    onToolCall: ({ toolCall: { toolName, toolCallId } }) => {
      const output = { tool: toolName, toolCallId, output: "Ulm" }
      if (toolName === "place") void (chat.addToolOutput ?? chat.addToolResult)(output)
    },
  })
  const parts = chat.messages.flatMap(({ parts }) => parts)
  const asked = parts.find(({ state }) => state === "approval-requested")?.approval
  const first = chat.messages[0]
  return (
    <main>
      {chat.messages.map(({ id, parts }) => <p key={id}>{parts.map(({ text }) => text ?? "").join("")}</p>)}
      <output>{chat.status}</output>
      <i>{parts.filter(({ toolCallId }) => toolCallId).map(({ state }) => state).join(" ")}</i>
      <button onClick={() => chat.sendMessage({ text: "hi" })}>Send</button>
      <button onClick={() => chat.regenerate()}>Again</button>
      <button onClick={() => chat.sendMessage({ text: "ho", messageId: first.id })}>Edit</button>
      {asked && <button onClick={() => chat.addToolApprovalResponse({ id: asked.id, approved: true })}>Yes</button>}
    </main>
  )
}
