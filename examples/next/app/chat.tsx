"use client"

import { connect } from "tenuto"
import type { FormEvent } from "react"
import { TenutoProvider, useChannel, useMessages, useStatus } from "tenuto/react"

const SERVER = process.env["NEXT_PUBLIC_SERVER"] ?? "http://localhost:8000"

async function token() {
  const response = await fetch(`${SERVER}/token?name=ann`, { method: "POST" })
  if (!response.ok) throw new Error(response.statusText) // the client tries again
  return response.text()
}

const client = connect({ url: `${SERVER}/tenuto`, token })

function Messages() {
  const channel = useChannel("chat:1")
  const { state, error } = useStatus()

  function ask(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    channel.send(String(new FormData(event.currentTarget).get("text")))
    event.currentTarget.reset() // a second click of a double click finds an empty input
  }

  return (
    <form onSubmit={ask}>
      {useMessages("chat:1").map(({ id, text }) => <p key={id}>{text}</p>)}
      <input name="text" aria-label="Message" required /> <button>Send</button>
      <p role="status">{error?.message ?? state}</p>
    </form>
  )
}

export default function Chat() {
  return <TenutoProvider client={client}><Messages /></TenutoProvider>
}
