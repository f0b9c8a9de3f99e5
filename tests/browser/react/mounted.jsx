// One component names its channel, the other gets the app's own. `show` mounts and unmounts both.
import { useState } from "react"
import { connect } from "tenuto"
import { TenutoProvider, useMessages } from "tenuto/react"
const client = window.client = connect({ url: "/tenuto" })
const own = client.channel("chat:own")
const Texts = ({ of, id }) => <p id={id}>{useMessages(of).map(({ text }) => text).join()}</p>
const Both = () => <TenutoProvider client={client}><Texts of="chat:named" id="named" /></TenutoProvider>
export default function Page() {
  const [isShown, show] = useState(true)
  window.show = show
  return isShown && <><Both /><Texts of={own} id="own" /></>
}
