// Two components: the hub refuses the channel of the second one.
import { connect } from "tenuto"
import { TenutoProvider, useSnapshot } from "tenuto/react"
const client = window.client = connect({ url: "/tenuto" })
function State({ of, id }) {
  const { status, messages } = useSnapshot(of)
  return <p id={id}>{[status.state, status.error?.code, ...messages.map(({ text }) => text)].filter(Boolean).join(" ")}</p>
}
export default function Page() {
  return <TenutoProvider client={client}><State of="chat:1" id="first" /><State of="chat:refused" id="refused" /></TenutoProvider>
}
