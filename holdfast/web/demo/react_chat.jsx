import { connect } from "holdfast"
import { useMessages } from "holdfast/react"
const channel = connect({ url: "/holdfast" }).channel("demo:one-tag")

export default () => (
  <form onSubmit={(event) => (event.preventDefault(), channel.send(event.target.text.value), event.target.reset())}>
    {useMessages(channel).map(({ id, text }) => <p key={id}>{text}</p>)}
    <input name="text" required />
  </form>
)
