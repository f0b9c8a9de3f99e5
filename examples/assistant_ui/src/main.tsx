import { AssistantRuntimeProvider } from "@assistant-ui/react"
import { connect } from "tenuto"
import { TenutoProvider } from "tenuto/react"
import { StrictMode } from "react"
import { createRoot } from "react-dom/client"
import { useTenutoRuntime } from "./runtime"
import "./style.css"
import { Thread } from "./thread"

const SERVER: string = import.meta.env["VITE_SERVER"] ?? "http://localhost:8000"

// The server is `examples/react/server.py`.
async function token() {
  const response = await fetch(`${SERVER}/token?name=ann`, { method: "POST" })
  if (!response.ok) throw new Error(response.statusText) // the client tries again
  return response.text()
}

const client = connect({ url: `${SERVER}/tenuto`, token })

function App() {
  return (
    <AssistantRuntimeProvider runtime={useTenutoRuntime("chat:2")}>
      <Thread />
    </AssistantRuntimeProvider>
  )
}

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <TenutoProvider client={client}>
      <App />
    </TenutoProvider>
  </StrictMode>,
)
