import { connect } from "tenuto"
import { TenutoProvider } from "tenuto/react"
import { StrictMode } from "react"
import { createRoot } from "react-dom/client"
import { Chat } from "./chat"
import "./style.css"

const SERVER: string = import.meta.env["VITE_SERVER"] ?? "http://localhost:8000"
const name = new URLSearchParams(location.search).get("me") ?? "ann"

// The client calls this at the start, before the token expires, and when the hub refuses it.
async function token() {
  const response = await fetch(`${SERVER}/token?name=${encodeURIComponent(name)}`, { method: "POST" })
  if (!response.ok) throw new Error(response.statusText) // the client tries again
  return response.text()
}

const client = connect({ url: `${SERVER}/tenuto`, token, identity: name })

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <TenutoProvider client={client}>
      <Chat channel="chat:1" />
    </TenutoProvider>
  </StrictMode>,
)
