import { connect } from "tenuto"
const client = connect({ url: process.argv[2], client: "ann" })
const channel = client.channel("chat:1")
const shown = () => channel.getSnapshot().messages
const answered = new Promise((resolve) => channel.subscribe(() => shown()[1]?.status === "complete" && resolve()))
await channel.send("Hello")
await answered
console.log(shown().map(({ author, text }) => `${author}: ${text}`).join(", "))
client.close()
