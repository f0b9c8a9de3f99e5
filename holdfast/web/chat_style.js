/** The style sheets of the chat element, as constructed sheets, which the policy `style-src 'self'` allows. @module */

/** @type {Map<string, CSSStyleSheet>} */
const sheets = new Map()

/** Return the sheet of `text`, one for all elements of the page. @param {string} text */
export function sheetOf(text) {
  let sheet = sheets.get(text)
  if (!sheet) {
    sheet = new CSSStyleSheet()
    sheet.replaceSync(text)
    sheets.set(text, sheet)
  }
  return sheet
}

const DARK = `
  --bg: var(--hf-bg, #14191a); --surface: var(--hf-surface, #1d2425); --text: var(--hf-text, #e8eceb); --muted: var(--hf-muted, #9aa7a4);
  --border: var(--hf-border, #323c3d); --tint: #173a33; --code: #0c1211; --danger: var(--hf-danger, #ff8a80); --warm: #2c2618;
  --accent: var(--hf-accent, #2fa58a); --on-accent: var(--hf-on-accent, #04110d); color-scheme: dark;`

export const LAUNCHER_STYLE = `
:host {
  --accent: var(--hf-accent, #0e6b58); --on-accent: var(--hf-on-accent, #fff); --bg: var(--hf-bg, #fafaf8); --surface: var(--hf-surface, #fff);
  --text: var(--hf-text, #1b2322); --muted: var(--hf-muted, #5d6866); --border: var(--hf-border, #dcdfdb); --danger: var(--hf-danger, #a8261d);
  --radius: var(--hf-radius, 14px); --tint: #e3f1ed; --code: #14211f; --warm: #fdf6e7;
  display: block; color: var(--text); font: 16px/1.5 var(--hf-font, system-ui, sans-serif); color-scheme: light;
}
:host(:not([launcher])) { height: var(--hf-height, min(640px, 100vh)); }
:host([launcher]) { position: fixed; z-index: 2147483000; inset: auto 20px 20px auto; }
:host([theme="dark"]) {${DARK}}
@media (prefers-color-scheme: dark) { :host(:not([theme="light"])) {${DARK}} }
:host([hidden]), [hidden] { display: none !important; }
*, ::before, ::after { box-sizing: border-box; }
button { font: inherit; color: inherit; cursor: pointer; }
svg { width: 1.25em; height: 1.25em; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.launcher { position: relative; display: grid; place-items: center; width: 56px; height: 56px; margin-left: auto; border: 0; border-radius: 50%;
  background: var(--accent); color: var(--on-accent); box-shadow: 0 6px 20px rgb(0 0 0 / 25%); }
.launcher svg { width: 26px; height: 26px; fill: currentColor; stroke: none; }
.badge { position: absolute; inset: -4px -4px auto auto; min-width: 22px; padding: 0 6px; border-radius: 11px; background: var(--danger); color: #fff;
  font-size: 13px; line-height: 22px; }
.mistake { margin: 8px 0; padding: 10px 14px; border: 1px solid var(--danger); border-radius: 8px; color: var(--danger); background: var(--surface);
  overflow-wrap: anywhere; }`

export const PANEL_STYLE = `
.panel { position: relative; display: flex; flex-direction: column; width: 100%; max-width: var(--hf-width, none); height: 100%;
  min-height: 300px; margin: 0 auto; background: var(--bg); }
.panel.floating { position: absolute; inset: auto 0 72px auto; width: min(var(--hf-width, 400px), calc(100vw - 24px));
  height: min(var(--hf-height, 620px), calc(100vh - 110px)); border: 1px solid var(--border); border-radius: var(--radius); overflow: hidden;
  box-shadow: 0 16px 48px rgb(0 0 0 / 22%); }
.panel > header { display: flex; align-items: center; gap: 12px; padding: 12px 16px; border-bottom: 1px solid var(--border); background: var(--surface); }
.names { flex: 1; min-width: 0; }
h2 { margin: 0; font-size: 16px; line-height: 1.3; }
.people, .status, .note { margin: 0; color: var(--muted); font-size: 13px; }
.close { display: none; border: 0; background: none; padding: 6px; border-radius: 8px; color: var(--muted); }
.floating .close { display: grid; }
.log { flex: 1; min-height: 0; overflow-y: auto; overflow-anchor: auto; padding: 20px 16px 8px; overscroll-behavior: contain; }
.messages { display: grid; gap: 12px; position: relative; width: 100%; max-width: 760px; margin: 0 auto; }
.empty { display: grid; place-items: center; height: 100%; color: var(--muted); text-align: center; }
.message { content-visibility: auto; contain-intrinsic-height: auto 200px; min-width: 0; overflow-wrap: anywhere; }
.message > header { display: flex; align-items: baseline; gap: 8px; margin-bottom: 4px; font-size: 14px; }
.author { font-weight: 600; }
.mark { display: grid; place-items: center; align-self: center; width: 24px; height: 24px; border-radius: 7px; background: var(--accent); color: var(--on-accent); }
.mark svg { width: 14px; height: 14px; fill: currentColor; stroke: none; }
.user .author:empty, .user header:has(.author:empty):has(.state:empty) { display: none; }
.state { color: var(--muted); font-size: 13px; margin: 0; }
[data-status="streaming"] .state { color: var(--accent); }
[data-status="failed"] .state, [data-status="refused"] .state { color: var(--danger); }
.user { justify-self: end; max-width: min(85%, 640px); }
.user > header { justify-content: flex-end; }
.user .body { padding: 8px 14px; border-radius: var(--radius); background: var(--tint); }
.user[data-status="sending"] .body { opacity: .65; }
.approvals { display: grid; gap: 10px; }
.log > .approvals { max-width: 760px; margin: 0 auto; }
.approval { margin-top: 10px; padding: 14px 16px; border: 1px solid #cfae62; border-radius: var(--radius); background: var(--warm); }
.approval .ask { margin: 0 0 6px; font-weight: 600; }
.mute .row { display: none; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
.approval .row { margin-top: 10px; }
.primary, .secondary, .choice, .action, .branch, .copy { padding: 5px 12px; border: 1px solid var(--border); border-radius: 9px; background: var(--surface); font-size: 14px; }
.primary { border-color: var(--accent); background: var(--accent); color: var(--on-accent); }
.actions { display: flex; flex-wrap: wrap; align-items: center; gap: 2px; margin-top: 4px; opacity: 0; transition: opacity .12s; }
.user .actions { justify-content: flex-end; }
.message:hover .actions, .message:focus-within .actions, .message:last-child .actions, [data-status="refused"] .actions { opacity: 1; }
.action, .branch { padding: 2px 8px; border-color: transparent; background: none; color: var(--muted); font-size: 13px; }
.action:hover, .branch:hover { color: var(--text); background: var(--surface); }
.place { color: var(--muted); font-size: 13px; }
.jump { position: absolute; left: 50%; bottom: 130px; display: flex; align-items: center; gap: 6px; transform: translateX(-50%); padding: 6px 14px;
  border: 1px solid var(--border); border-radius: 20px; background: var(--surface); box-shadow: 0 4px 14px rgb(0 0 0 / 14%); font-size: 14px; }
.older { position: sticky; top: 0; z-index: 1; height: 0; margin: 0; text-align: center; color: var(--muted); font-size: 13px; }
.older span { padding: 4px 12px; border-radius: 12px; background: var(--surface); box-shadow: 0 1px 6px rgb(0 0 0 / 12%); }
.hairline { display: flex; align-items: center; gap: 12px; margin: 12px 0; color: var(--accent); font-size: 13px; text-align: center; }
.hairline::before, .hairline::after { content: ""; flex: 1; min-width: 12px; border-top: 1px solid color-mix(in srgb, var(--accent) 40%, transparent); }
.hairline span::before { content: "↻ "; }
.panel > .status { padding: 4px 18px; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); margin: 0; }
.composer { width: calc(100% - 32px); max-width: 760px; margin: 8px auto 16px; padding: 10px 12px; border: 1px solid var(--border); border-radius: var(--radius); background: var(--surface); }
.composer:focus-within { border-color: var(--accent); }
textarea, textarea:focus-visible { display: block; width: 100%; padding: 4px; border: 0; outline: 0; resize: none; background: none; color: inherit; font: inherit; }
.editor { padding: 10px; border: 1px solid var(--accent); border-radius: 10px; background: var(--surface); }
.editing { display: grid; gap: 8px; }
.fill { flex: 1; }
.composer .row { flex-wrap: nowrap; margin-top: 4px; }
.choices { display: flex; min-width: 0; border: 1px solid var(--border); border-radius: 10px; overflow: hidden; }
.choice { padding: 5px 9px; border: 0; border-radius: 0; font-size: 13px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.choice[aria-pressed="true"] { background: var(--tint); color: var(--accent); font-weight: 600; }
.send, .stop { flex: none; display: grid; place-items: center; width: 38px; height: 38px; padding: 0; border: 0; border-radius: 50%; background: var(--accent); color: var(--on-accent); }
.send:disabled { opacity: .4; cursor: default; }
.stop { border: 1px solid var(--border); background: var(--surface); }
.square { width: 12px; height: 12px; border-radius: 3px; background: var(--danger); }
@media (pointer: coarse) { .send, .stop, .close, .choice, .action, .branch, .primary, .secondary { min-width: 44px; min-height: 44px; } .actions { opacity: 1; } }
details { margin: 6px 0; color: var(--muted); font-size: 14px; }
details pre { margin: 6px 0; padding: 8px 12px; border-left: 2px solid var(--border); white-space: pre-wrap; font: inherit; }
.source { display: inline-block; margin: 6px 6px 0 0; padding: 3px 10px; border: 1px solid var(--border); border-radius: 8px; background: var(--surface);
  color: var(--muted); font-size: 13px; text-decoration: none; }
.chunk:has(+ .chunk) { content-visibility: auto; contain-intrinsic-height: auto 2000px; }
.markdown :is(p, ul, ol, table, blockquote, .code, h3, h4, h5, h6) { margin: 0 0 .7em; }
.markdown :is(.chunk, div):last-child > :last-child { margin-bottom: 0; }
.markdown :is(h3, h4, h5, h6) { margin-top: 1em; font-size: 1.1em; line-height: 1.3; }
.markdown .chunk:first-child > :first-child { margin-top: 0; }
.markdown :is(ul, ol) { padding-inline-start: 1.5em; }
.markdown li > :is(ul, ol, p) { margin-bottom: .2em; }
.markdown a { color: var(--accent); }
.markdown .host { color: var(--muted); font-size: .85em; }
.markdown blockquote { margin-inline: 0; padding-inline-start: 12px; border-inline-start: 3px solid var(--border); color: var(--muted); }
.markdown table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .95em; }
.markdown :is(th, td) { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--border); text-align: start; vertical-align: top; }
.markdown hr { border: 0; border-top: 1px solid var(--border); }
code { font: .88em/1.5 var(--hf-mono, ui-monospace, monospace); }
.markdown :not(pre) > code, .approval code { padding: 1px 5px; border-radius: 5px; background: color-mix(in srgb, var(--muted) 16%, transparent); }
.code { border-radius: 10px; overflow: hidden; background: var(--code); color: #e6efec; }
.t-cmnt { color: #93a8a2; } .t-kwd, .t-bool { color: #8ab8ff; } .t-str, .t-insert { color: #a8d99a; } .t-num { color: #f0b878; }
.t-func { color: #d9c2ff; } .t-class, .t-type { color: #7edcc4; } .t-oper { color: #b9c9c4; } .t-var { color: #f2d7a6; } .t-section { color: #ffd27a; font-weight: 600; } .t-deleted { color: #ff9f95; }
.markdown div.math { overflow-x: auto; margin: 0 0 .7em; text-align: center; }
.code-head { display: flex; justify-content: space-between; align-items: center; padding: 4px 14px; border-bottom: 1px solid rgb(255 255 255 / 10%); color: #9db3ad; font-size: 13px; }
.code-head .copy { border: 0; padding: 3px 6px; background: none; color: inherit; }
pre { margin: 0; }
.code code, .lines { display: block; }
.markdown p:empty { display: none; }
.code pre { padding: 12px 14px; overflow-x: auto; tab-size: 4; }
[data-status="streaming"] .markdown > :last-child > :is(p, h3, h4, h5, h6):nth-last-child(1 of :not(.hairline))::after { content: ""; display: inline-block; width: .5em; height: 1.05em;
  margin-inline-start: 2px; border-radius: 2px; background: var(--accent); vertical-align: -.15em; }
.user .markdown { white-space: pre-wrap; }
@media (forced-colors: active) { .user .body, .code, .approval, .send, .launcher { border: 1px solid; } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
@media (max-width: 480px) { .choice { padding: 5px 6px; font-size: 12px; } }
@media (max-width: 420px) { .panel.floating { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none; border-radius: 0; } }`
