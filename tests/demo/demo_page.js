// Functions that tests of the demo run in its page.

// The newest question and its shown answer as the chat element has them: their text as stored, not as drawn.
const answerOf = () => {
  const chat = document.querySelector("tenuto-chat")
  const messages = chat?.client?.channel(chat.getAttribute("channel")).getSnapshot().messages ?? []
  const question = messages.findLast(({ role }) => role === "user")
  const answer = messages.findLast(({ role, reply_to }) => role === "assistant" && reply_to === question?.id)
  return { question, answer: answer && { id: answer.id, text: answer.text, status: answer.status } }
}
