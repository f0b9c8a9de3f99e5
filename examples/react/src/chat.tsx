import type { Message } from "tenuto"
import type { FormEvent } from "react"
import { useChannel, useMessage, useSnapshot, useStatus } from "tenuto/react"

export function Chat({ channel: name }: { channel: string }) {
  const channel = useChannel(name)
  const { messages, streaming, hasOlder } = useSnapshot(name)
  const answer = streaming.at(-1)

  function ask(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const text = String(new FormData(event.currentTarget).get("text")).trim()
    event.currentTarget.reset() // a second click of a double click finds an empty input
    if (text) channel.send(text).catch(() => {}) // a refused message is shown with its error
  }

  return (
    <main>
      <header>
        <h1>Tenuto in React</h1>
        <Status />
      </header>
      <section aria-label="Conversation">
        <div>
          {hasOlder && <button onClick={() => channel.history()}>Older messages</button>}
          {messages.length === 0 && <p className="empty">Ask a question, then reload this page while the answer comes.</p>}
          {messages.map(({ id }) => <Bubble key={id} channel={name} id={id} />)}
        </div>
      </section>
      <form onSubmit={ask}>
        <input name="text" aria-label="Message" placeholder="Message" autoComplete="off" autoFocus />
        {answer
          ? <button type="button" onClick={() => channel.cancel(answer.id)}>Stop</button>
          : <button>Send</button>}
      </form>
    </main>
  )
}

/** One message; React renders it only when this message changes. */
function Bubble({ channel: name, id }: { channel: string; id: string }) {
  const channel = useChannel(name)
  const message = useMessage(name, id)
  if (!message) return null
  return (
    <article className={message.role} data-status={message.status}>
      {message.text}
      {message.status === "streaming" && <i aria-label="writing" />}
      <Note message={message} />
      {message.local?.state === "refused" && <button onClick={() => channel.retry(id)}>Try again</button>}
    </article>
  )
}

function Note({ message: { local, status, reason } }: { message: Message }) {
  if (local) return <small>{local.state === "sending" ? "Sending…" : local.error?.detail}</small>
  if (status === "complete" || status === "streaming") return null
  return <small>{status}{reason && `: ${reason}`}</small>
}

function Status() {
  const { state, error } = useStatus()
  return <p role="status" data-state={state}>{error ? error.message : state}</p>
}
