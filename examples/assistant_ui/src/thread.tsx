import { ActionBarPrimitive, BranchPickerPrimitive, ComposerPrimitive, MessagePrimitive, ThreadPrimitive } from "@assistant-ui/react"

export function Thread() {
  return (
    <ThreadPrimitive.Root className="thread">
      <ThreadPrimitive.Viewport className="messages">
        <ThreadPrimitive.Messages components={{ UserMessage: Question, AssistantMessage: Answer, EditComposer }} />
      </ThreadPrimitive.Viewport>
      <ComposerPrimitive.Root className="composer">
        <ComposerPrimitive.Input aria-label="Message" placeholder="Message" autoFocus />
        <ThreadPrimitive.If running={false}>
          <ComposerPrimitive.Send>Send</ComposerPrimitive.Send>
        </ThreadPrimitive.If>
        <ThreadPrimitive.If running>
          <ComposerPrimitive.Cancel>Stop</ComposerPrimitive.Cancel>
        </ThreadPrimitive.If>
      </ComposerPrimitive.Root>
    </ThreadPrimitive.Root>
  )
}

function Question() {
  return (
    <MessagePrimitive.Root className="user">
      <MessagePrimitive.Parts />
      <ActionBarPrimitive.Root className="actions"><ActionBarPrimitive.Edit>Edit</ActionBarPrimitive.Edit><Branches /></ActionBarPrimitive.Root>
    </MessagePrimitive.Root>
  )
}

function Answer() {
  return (
    <MessagePrimitive.Root className="assistant">
      <MessagePrimitive.Parts />
      <ActionBarPrimitive.Root hideWhenRunning className="actions"><ActionBarPrimitive.Reload>Again</ActionBarPrimitive.Reload><Branches /></ActionBarPrimitive.Root>
    </MessagePrimitive.Root>
  )
}

function EditComposer() {
  return (
    <ComposerPrimitive.Root className="composer">
      <ComposerPrimitive.Input aria-label="Edit" autoFocus />
      <ComposerPrimitive.Send>Save</ComposerPrimitive.Send>
      <ComposerPrimitive.Cancel>Cancel</ComposerPrimitive.Cancel>
    </ComposerPrimitive.Root>
  )
}

function Branches() {
  return (
    <BranchPickerPrimitive.Root hideWhenSingleBranch className="branches">
      <BranchPickerPrimitive.Previous aria-label="Previous">‹</BranchPickerPrimitive.Previous>
      <BranchPickerPrimitive.Number />/<BranchPickerPrimitive.Count />
      <BranchPickerPrimitive.Next aria-label="Next">›</BranchPickerPrimitive.Next>
    </BranchPickerPrimitive.Root>
  )
}
