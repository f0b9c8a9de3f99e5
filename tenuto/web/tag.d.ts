/**
 * The tag `<tenuto-chat>` for TypeScript: in the DOM's types, and in the JSX of React 19.
 *
 * The types of the entries `chat` and `element` refer to this file, so importing one of them is enough.
 */
import type { Attributes, TenutoChat } from "./element.js"

type Settable = "client" | "tokenProvider" | "strings" | "renderPart" | "renderMath" | "marks"
type Flags = "launcher" | "open" | "readonly"

/** The details of the element's events. */
export interface TenutoChatEvents {
  "tenuto-send": { parts: object[]; isSteering: boolean }
  "tenuto-answer": { message: import("./client/snapshot.js").Message }
  "tenuto-ask": { command: import("./view.js").Command }
  "tenuto-status": { status: import("./client.js").Status }
  "tenuto-open": object
  "tenuto-close": object
  "tenuto-link": { href: string }
  "tenuto-error": { error: unknown }
}

/** What a page may set on the tag: attributes, properties, and in JSX its events as `ontenuto-answer` and so on. */
export type TenutoChatProps = { [Name in Exclude<keyof Attributes, Flags>]?: string | undefined } & {
  [Name in Flags]?: boolean | "" | undefined
} & { [Name in Settable]?: TenutoChat[Name] | undefined } & {
  [Name in keyof TenutoChatEvents as `on${Name}`]?: ((event: CustomEvent<TenutoChatEvents[Name]>) => void) | undefined
}

declare global {
  interface HTMLElementTagNameMap {
    "tenuto-chat": TenutoChat
  }
}

// Where React is not installed, there is no such module, and nothing to add to.
// @ts-ignore
declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      // @ts-ignore
      "tenuto-chat": TenutoChatProps & Omit<DetailedHTMLProps<HTMLAttributes<TenutoChat>, TenutoChat>, keyof TenutoChatProps>
    }
  }
}
