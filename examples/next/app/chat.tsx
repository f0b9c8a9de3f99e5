"use client"

import { connect } from "holdfast"
import { HoldfastProvider, useChannel, useMessages, useStatus } from "holdfast/react"

const SERVER = process.env["NEXT_PUBLIC_SERVER"] ?? "http://localhost:8000"

async function token() {
  const response = await fetch(`${SERVER}/token?name=ann`, { method: "POST" })
  return response.text()
}

const client = connect({ url: `${SERVER}/holdfast`, token })

function Messages() {
  const channel = useChannel("chat:1")
  const { state, error } = useStatus()
  return (
    <form action={(form: FormData) => void channel.send(String(form.get("text")))}>
      {useMessages("chat:1").map(({ id, text }) => <p key={id}>{text}</p>)}
      <input name="text" aria-label="Message" required /> <button>Send</button>
      <p role="status">{error?.message ?? state}</p>
    </form>
  )
}

export default function Chat() {
  return <HoldfastProvider client={client}><Messages /></HoldfastProvider>
}
