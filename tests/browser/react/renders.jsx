import { connect } from "tenuto"
import { TenutoProvider, useMessage, useStatus } from "tenuto/react"
const client = window.client = connect({ url: "/tenuto" })
window.renders = { first: 0, second: 0 }
function One({ id }) {
  const message = useMessage("chat:1", id)
  window.renders[id]++
  return <p id={id}>{message?.text}</p>
}
const Status = () => <p id="status">{useStatus().state}</p>
export default function Page() {
  return <TenutoProvider client={client}><One id="first" /><One id="second" /><Status /></TenutoProvider>
}
