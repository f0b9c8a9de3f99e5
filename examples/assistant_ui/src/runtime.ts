/**
 * A runtime of assistant-ui over a channel: messages, branches, tools, approvals and the verbs.
 *
 * assistant-ui changes this interface often; the example pins the release that it was written for.
 */
import { type AppendMessage, ExportedMessageRepository, type ThreadMessage, type ThreadMessageLike, useExternalStoreRuntime } from "@assistant-ui/react"
import type { Command, Message, Part } from "tenuto"
import { useChannel, useSnapshot } from "tenuto/react"
import { useMemo } from "react"

type Content = Exclude<ThreadMessageLike["content"], string>[number]

export function useTenutoRuntime(name: string) {
  const channel = useChannel(name)
  const { all, messages, commands, streaming } = useSnapshot(name)

  const messageRepository = useMemo(() => {
    const approvals = commands.filter((command) => command.name === "approve")
    const known = new Set(all.map(({ id }) => id))
    const parentOf = ({ parent }: Message) => (parent && known.has(parent) ? parent : null)
    const items = all.map((message) => ({ message: convert(message, approvals), parentId: parentOf(message) }))
    return ExportedMessageRepository.fromBranchableArray(items, { headId: messages.at(-1)?.id ?? null })
  }, [all, messages, commands])

  return useExternalStoreRuntime<ThreadMessage>({
    messageRepository,
    isRunning: streaming.length > 0,
    // A branch was chosen: the path that ends with its last message.
    setMessages: (path) => void (path.length && channel.select(path.at(-1)!.id)),
    onNew: async (message) => void (await channel.send(textOf(message))),
    onEdit: async (message) => void (message.sourceId && (await channel.edit(message.sourceId, textOf(message)))),
    onReload: async (parentId) => void (await channel.regenerate(parentId ?? undefined)),
    onCancel: async () => void (await channel.cancel()),
    onRespondToToolApproval: async ({ approvalId, approved }) => void (await channel.reply(approvalId, { ok: approved })),
  })
}

function convert(message: Message, approvals: readonly Command[]): ThreadMessageLike {
  const { id, role, parts, created_at, text } = message
  const createdAt = new Date(created_at)
  if (role === "user" || role === "system") return { id, role, createdAt, content: text }
  return { id, role: "assistant", createdAt, content: parts.flatMap((part) => contentOf(part, approvals)), status: statusOf(message) }
}

function contentOf(part: Part, approvals: readonly Command[]): Content[] {
  const { type, text = "" } = part
  if (type === "text" || type === "reasoning") return [{ type, text }]
  if (type === "data") return [{ type: "data", name: String(part["name"]), data: part["data"] }]
  if (type !== "tool") return []
  const call = String(part["call"])
  const approval = approvals.find(({ data }) => (data as { call?: string } | undefined)?.call === call)
  return [{
    type: "tool-call",
    toolCallId: call,
    toolName: String(part["name"]),
    argsText: String(part.input ?? ""),
    result: part["output"],
    isError: part["state"] === "failed",
    ...(approval && { approval: { id: approval.id } }),
  }]
}

function statusOf({ status, reason = "" }: Message): NonNullable<ThreadMessageLike["status"]> {
  if (status === "streaming") return { type: "running" }
  if (status === "complete") return { type: "complete", reason: "stop" }
  if (status === "cancelled") return { type: "incomplete", reason: "cancelled" }
  return { type: "incomplete", reason: "error", error: reason || status }
}

function textOf({ content }: AppendMessage) {
  return content.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("")
}
