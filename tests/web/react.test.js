/** The React hooks on a server, and their mistakes. `tests/browser/test_react.py` has them in a page. */
import assert from "node:assert/strict"
import { test } from "node:test"

import { createElement } from "react"
import { renderToString } from "react-dom/server"

import { connect } from "../../tenuto/web/client.js"
import * as hooks from "../../tenuto/web/react.js"

const { useMessages, useMessage, useSnapshot, useStatus, TenutoProvider } = hooks

/** Render a component that shows the result of a call. @param {() => unknown} call @param {import("../../tenuto/web/client.js").Client | null} [client] */
function rendered(call, client = null) {
  const component = createElement(() => JSON.stringify(call()) ?? "nothing")
  return renderToString(client ? createElement(TenutoProvider, { client, children: component }) : component).replaceAll("&quot;", '"')
}

test("on a server each hook returns the empty view", (t) => {
  const client = connect({ url: "http://127.0.0.1:1/tenuto" })
  t.after(() => client.close())
  const channel = client.channel("chat:1")
  assert.equal(rendered(() => useMessages(channel)), "[]")
  assert.equal(rendered(() => [useMessage("chat:1", "m"), useSnapshot("chat:1").state, useStatus().state], client), '[null,"connecting","connecting"]')
})

test("a hook names its mistake: a name without a provider, and a channel that the app does not have yet", () => {
  assert.throws(() => rendered(() => useMessages("chat:1")), { message: "this component needs a <TenutoProvider client={connect({ url })}> above it" })
  for (const none of [undefined, null]) {
    assert.throws(() => rendered(() => useMessages(/** @type {any} */ (none))), { message: `a hook needs a channel, or the name of one, got ${none}` })
  }
})
