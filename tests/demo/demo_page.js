// Functions that tests of the demo run in its page.

// The newest question and its shown answer as the chat element has them: their text as stored, not as drawn.
const answerOf = () => {
  const chat = document.querySelector("tenuto-chat")
  const messages = chat?.client?.channel(chat.getAttribute("channel")).getSnapshot().messages ?? []
  const question = messages.findLast(({ role }) => role === "user")
  const answer = messages.findLast(({ role, reply_to }) => role === "assistant" && reply_to === question?.id)
  return { question, answer: answer && { id: answer.id, text: answer.text, status: answer.status } }
}

// Press a button, and return the seconds until the text of a running answer moves again after its connection was lost.
const pauseOf = async (button) => {
  const length = () => answerOf().answer.text.length
  const until = async (isTrue) => { while (!isTrue()) await new Promise((done) => setTimeout(done, 5)) }
  const begun = performance.now()
  document.getElementById(button).click()
  await until(() => document.getElementById("tenuto").dataset.state !== "live")
  const stood = length()
  await until(() => length() > stood)
  return (performance.now() - begun) / 1_000
}
