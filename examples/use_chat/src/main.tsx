import type { UIMessage } from "ai"
import { createRoot } from "react-dom/client"
import { Chat } from "./chat"
import "./style.css"

const id = new URLSearchParams(location.search).get("chat") ?? "1"
const response = await fetch(`/api/chat/${encodeURIComponent(id)}/messages`)
const initial: UIMessage[] = await response.json()

createRoot(document.getElementById("root")!).render(<Chat id={id} initial={initial} />)
