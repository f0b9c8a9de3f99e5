// Two components of their own: one counts how often it renders. StrictMode mounts each component twice.
import { StrictMode, createElement } from "react"
import { createRoot } from "react-dom/client"
import Page from "./page.jsx"
createRoot(document.getElementById("root")).render(createElement(StrictMode, null, createElement(Page)))
