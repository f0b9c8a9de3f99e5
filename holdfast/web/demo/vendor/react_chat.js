// @ts-nocheck: made by scripts/vendor_web from ../react_chat.jsx
import { jsx, jsxs } from "react/jsx-runtime";
import { connect } from "holdfast";
import { HoldfastProvider, useChannel, useMessages } from "holdfast/react";
const client = connect({ url: "/holdfast" });
function Chat() {
  const channel = useChannel("demo:one-tag");
  const ask = (event) => {
    event.preventDefault();
    channel.send(event.target.text.value);
    event.target.reset();
  };
  return /* @__PURE__ */ jsxs("form", { onSubmit: ask, children: [
    useMessages("demo:one-tag").map(({ id, text }) => /* @__PURE__ */ jsx("p", { children: text }, id)),
    /* @__PURE__ */ jsx("input", { name: "text", required: true })
  ] });
}
export default () => /* @__PURE__ */ jsx(HoldfastProvider, { client, children: /* @__PURE__ */ jsx(Chat, {}) });
