import { connect } from "holdfast"
import { HoldfastProvider, useChannel, useMessages } from "holdfast/react"

const client = connect({ url: "/holdfast" })

function Chat() {
  const channel = useChannel("demo:one-tag")
  const ask = (event) => {
    event.preventDefault()
    channel.send(event.target.text.value)
    event.target.reset()
  }
  return (
    <form onSubmit={ask}>
      {useMessages("demo:one-tag").map(({ id, text }) => <p key={id}>{text}</p>)}
      <input name="text" required />
    </form>
  )
}

export default () => <HoldfastProvider client={client}><Chat /></HoldfastProvider>
