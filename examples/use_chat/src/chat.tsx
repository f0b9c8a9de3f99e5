import { useChat } from "@ai-sdk/react"
import { DefaultChatTransport, type UIMessage } from "ai"
import type { FormEvent } from "react"

const transport = new DefaultChatTransport({
  api: "/api/chat",
  /** Send what the server lacks, from the last answer on: all messages of a chat with photos exceed its limit. */
  prepareSendMessagesRequest: ({ id, messages, body, trigger, messageId }) => {
    const first = messages.slice(0, -1).findLastIndex(({ role }) => role === "assistant") + 1
    return { body: { ...body, id, trigger, messageId, messages: messages.slice(first) } }
  },
})

/** A chat whose page has `initial`, the stored messages; `resume` follows an answer that is still being written. */
export function Chat({ id, initial }: { id: string; initial: UIMessage[] }) {
  const { messages, sendMessage, status, error, resumeStream } = useChat({
    id,
    transport,
    messages: initial,
    resume: true,
    /** A new attempt of the agent supersedes the text so far: follow it. Each other error stays. */
    onError: ({ message }) => { if (message.startsWith("the answer begins anew")) void resumeStream() },
  })
  const isWriting = status === "submitted" || status === "streaming"

  function ask(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const text = String(new FormData(event.currentTarget).get("text")).trim()
    event.currentTarget.reset() // a second click of a double click finds an empty input
    if (text) void sendMessage({ text })
  }

  return (
    <main>
      <header>
        <h1>Tenuto with useChat</h1>
        <p role="status">{status}</p>
      </header>
      <section aria-label="Conversation">
        <div>
          {messages.length === 0 && <p className="empty">Ask a question, then reload this page while the answer comes.</p>}
          {messages.map((message) => <article key={message.id} className={message.role}>{textOf(message)}</article>)}
          {error && <p role="alert">The answer broke off. <button onClick={() => location.reload()}>Load it again</button></p>}
        </div>
      </section>
      <form onSubmit={ask}>
        <input name="text" aria-label="Message" placeholder="Message" autoComplete="off" autoFocus />
        {isWriting ? <button type="button" onClick={() => stop(id)}>Stop</button> : <button>Send</button>}
      </form>
    </main>
  )
}

function textOf(message: UIMessage) {
  return message.parts.map((part) => (part.type === "text" ? part.text : "")).join("")
}

/** Stop the answer for all pages. The function `stop` of `useChat` only closes the page's own connection. */
function stop(id: string) {
  return fetch(`/api/chat/${encodeURIComponent(id)}/stop`, { method: "POST" })
}
