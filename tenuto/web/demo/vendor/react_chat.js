// @ts-nocheck: made by scripts/vendor_web from ../react_chat.jsx
import { jsx, jsxs } from "react/jsx-runtime";
import { connect } from "tenuto";
import { useMessages } from "tenuto/react";
const channel = connect({ url: "/tenuto" }).channel("demo:one-tag");
export default () => /* @__PURE__ */ jsxs("form", { onSubmit: (event) => (event.preventDefault(), channel.send(event.target.text.value), event.target.reset()), children: [
  useMessages(channel).map(({ id, text }) => /* @__PURE__ */ jsx("p", { children: text }, id)),
  /* @__PURE__ */ jsx("input", { name: "text", required: true })
] });
