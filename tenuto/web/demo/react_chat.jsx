import { connect } from "tenuto"
import { useMessages } from "tenuto/react"
const channel = connect({ url: "/tenuto" }).channel("demo:one-tag")

export default () => (
  <form onSubmit={(event) => (event.preventDefault(), channel.send(event.target.text.value), event.target.reset())}>
    {useMessages(channel).map(({ id, text }) => <p key={id}>{text}</p>)}
    <input name="text" required />
  </form>
)
