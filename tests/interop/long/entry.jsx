import { createRoot } from "react-dom/client"
import { Chat } from "./Chat.jsx"
const id = new URLSearchParams(location.search).get("chat") ?? "1"
const initial = await (await fetch(`/api/chat/${id}/messages`)).json()
createRoot(document.getElementById("root")).render(<Chat id={id} initial={initial} />)
