/**
 * What a strict importer of the npm package compiles, and what it must not: `@ts-expect-error` marks each wrong line.
 *
 * `package.test.js` checks it against the built types, and `scripts/test_npm` builds it inside a Vite app.
 */
import { connect, TenutoError, type Channel, type Client, type Command, type Message, type Part, type Snapshot, type Status, type WireEvent } from "tenuto"
import { useChannel, useMessage, useMessages, useSnapshot, useStatus } from "tenuto/react"
import { TenutoChat } from "tenuto/element"
import { View } from "tenuto/view"
import "tenuto/chat"

interface Meta { model: string; tokens: number }
type Data = { percent: number } | { tool: string }

export function withoutTypesOfTheApp(client: Client) {
  const channel: Channel = client.channel("chat:1", { history: 20 })
  const snapshot: Snapshot = channel.getSnapshot()
  const first: Message | undefined = snapshot.messages[0]
  const model: unknown = first?.meta["model"]
  const data: unknown = first?.parts[0]?.["data"]
  const status: Status = client.status
  const sent: Promise<Message> = channel.send({ text: "Hello", meta: { any: ["value"] }, parts: [{ type: "data", name: "x", data: 1 }] })
  channel.signal("cursor", { x: 1 })
  void channel.command("approve", { data: 5 })
  void channel.create({ role: "system", text: "x", meta: { a: 1 } })
  return [model, data, status.error?.code, sent, first?.text.length, channel.branches("a")]
}

export function withTypesOfTheApp(client: Client) {
  const channel = client.channel<Meta, Data>("chat:1")
  const { messages, all, streaming, commands, replied } = channel.getSnapshot()
  const model: string | undefined = messages[0]?.meta.model
  const tokens: (number | undefined)[] = [...all, ...streaming, ...channel.branches("a")].map(({ meta }) => meta.tokens)
  const parts: Part<Data>[] = messages.flatMap((message) => message.parts)
  const percents = parts.map(({ data }) => (data && "percent" in data ? data.percent : 0) satisfies number)
  const asked: (Data | undefined)[] = [...commands, ...replied].map(({ data }) => data)
  channel.listen((event: WireEvent<Meta, Data>) => event.type === "signal" && event.data)
  channel.listen((event) => {
    if (event.type === "signal" && event.data && "tool" in event.data) event.data.tool.trim()
  })
  const sent: Promise<Message<Meta, Data>> = channel.send({ text: "Hello", meta: { model: "m" }, parts: [{ type: "data", data: { percent: 1 } }] })
  void channel.edit("id", { id: "next", text: "Again", meta: { tokens: 1 } })
  channel.signal("progress", { percent: 2 })
  const command: Promise<{ command: Command<Data>; serial: number }> = channel.command("approve", { data: { tool: "rm" } })
  void channel.steer("shorter")
  const plain: Channel = channel // code that knows no types of the app takes it

  // @ts-expect-error of another type
  const wrong: number | undefined = messages[0]?.meta.model
  // @ts-expect-error may be missing: other clients write messages too
  messages[0]?.meta.model.length
  // @ts-expect-error unknown
  messages[0]?.meta.mood
  // @ts-expect-error of another type
  void channel.send({ text: "Hello", meta: { model: 1 } })
  // @ts-expect-error of another type
  void channel.send({ parts: [{ type: "data", data: { percent: "half" } }] })
  // @ts-expect-error of another type
  channel.signal("progress", { percent: "half" })
  // @ts-expect-error of another type
  void channel.command("approve", { data: 5 })
  // @ts-expect-error of another app
  const other: Channel<{ model: number }> = channel
  return [model, tokens, percents, asked, sent, command, plain, wrong, other]
}

export function Typed({ name, id }: { name: string; id: string }) {
  const channel: Channel<Meta, Data> = useChannel<Meta, Data>(name)
  const models = useMessages<Meta>(name).map(({ meta }) => meta.model satisfies string | undefined)
  const { streaming } = useSnapshot<Meta, Data>(name, { history: 20 })
  useMessages(channel).map(({ meta }) => meta.model satisfies string | undefined)
  // @ts-expect-error of another type
  useMessage(channel, id)?.meta.model satisfies number | undefined
  const data: Data | undefined = useMessage<Meta, Data>(name, id)?.parts[0]?.data
  const untyped: unknown = useMessage(name, id)?.meta["model"]
  // @ts-expect-error of another type
  const wrong: number | undefined = useMessage<Meta>(name, id)?.meta.model
  // @ts-expect-error unknown
  useMessages<Meta>(name).map(({ meta }) => meta.mood)
  return <p onClick={() => void channel.retry(id)}>{JSON.stringify([models, streaming, data, untyped, wrong, useStatus().state])}</p>
}

export function Widget() {
  const chat = document.createElement("tenuto-chat")
  chat.launcher = true
  chat.channel = "chat:1"
  const words: string = chat.heading
  // @ts-expect-error of another type
  chat.open = "yes"
  return (
    <>
      <tenuto-chat url="/tenuto" launcher heading={words} ref={(node) => node?.show()} className="wide" ontenuto-answer={({ detail }) => detail.message.text.trim()} />
      <tenuto-chat channel="chat:1" open={false} tokenProvider={async () => "token"} renderPart={() => null}><p slot="empty">Hello</p></tenuto-chat>
      {/* @ts-expect-error unknown */}
      <tenuto-chat chanel="chat:1" />
      {/* @ts-expect-error of another type */}
      <tenuto-chat readonly="no" />
    </>
  )
}

export function options() {
  const client: Client = connect({ url: "/tenuto", token: async (why) => (why === "start" ? "a" : "b") })
  const channel = client.channel("chat:1")
  const chat: TenutoChat = new TenutoChat()
  chat.tokenProvider = async () => "token"
  // @ts-expect-error
  connect({ url: 1 })
  // @ts-expect-error
  client.outbox
  // @ts-expect-error
  client.options
  // @ts-expect-error
  channel.view
  // @ts-expect-error
  channel.presence
  return [new View().getSnapshot(), TenutoError]
}
