import { connect } from "../client.js"

const channel = connect({ url: "/tenuto" }).channel("demo:one-tag")
const [form] = document.forms
const list = document.createElement("div")
form.before(list)

channel.subscribe(() => {
  list.innerText = channel.getSnapshot().messages.map(({ author, text }) => `${author}: ${text}`).join("\n\n")
})
form.onsubmit = (event) => {
  event.preventDefault()
  channel.send(form.text.value)
  form.reset()
}
