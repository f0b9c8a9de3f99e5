// One component names its channel, one gets the app's own. `show` mounts and unmounts both, and hides a third, which keeps its state.
import { Activity, useState } from "react"
import { connect } from "tenuto"
import { TenutoProvider, useMessages } from "tenuto/react"
const client = window.client = connect({ url: "/tenuto" })
const own = client.channel("chat:own")
const Texts = ({ of, id }) => <p id={id}>{useMessages(of).map(({ text }) => text).join()}</p>
const kept = <Texts of="chat:kept" id="kept" />
export default function Page() {
  const [isShown, show] = useState(true)
  window.show = show
  return (
    <TenutoProvider client={client}>
      <Activity mode={isShown ? "visible" : "hidden"}>{kept}</Activity>
      {isShown && <><Texts of="chat:named" id="named" /><Texts of={own} id="own" /></>}
    </TenutoProvider>
  )
}
