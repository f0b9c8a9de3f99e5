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

// Sizes of text are in em of the host, whose size is that which the person chose in the browser.
const DARK = `--bg:var(--tenuto-bg,#14191a);--surface:var(--tenuto-surface,#1d2425);--text:var(--tenuto-text,#e8eceb);--muted:var(--tenuto-muted,#a3b0ad);--border:var(--tenuto-border,#39454a);--danger:#ff8a80;--accent:var(--tenuto-accent,#4cc2a5);--on-accent:var(--tenuto-on-accent,#04110d);--code:#0c1211;--warm:#2c2618;--warm-line:#6f5d2c;color-scheme:dark;`

export const LAUNCHER_STYLE = `
:host{--accent:var(--tenuto-accent,#0e6b58);--on-accent:var(--tenuto-on-accent,#fff);--bg:var(--tenuto-bg,#fafaf8);--surface:var(--tenuto-surface,#fff);--text:var(--tenuto-text,#1b2322);--muted:var(--tenuto-muted,#5d6866);--border:var(--tenuto-border,#dcdfdb);--danger:#a8261d;display:block;color:var(--text);font:medium/1.5 var(--tenuto-font,system-ui,sans-serif);color-scheme:light;
}
:host(:not([launcher])){height:var(--tenuto-height,min(640px,100vh));min-width:0}
:host([launcher]){position:fixed;z-index:2147483000;bottom:20px;inset-inline-end:20px;width:auto!important;height:auto!important;min-width:0!important;min-height:0!important;max-height:none!important}
:host([theme="dark"]){${DARK}}
@media (prefers-color-scheme:dark){:host(:not([theme="light"])){${DARK}}}
:host([hidden]),[hidden]{display:none!important}
*,::before,::after{box-sizing:border-box}
button,textarea{font:inherit;color:inherit}
button,summary{cursor:pointer}
svg{width:1.25em;height:1.25em;fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.launcher{position:relative;display:grid;place-items:center;width:56px;height:56px;margin-inline-start:auto;font-size:20px;border:1px solid transparent;border-radius:50%;background:var(--accent);color:var(--on-accent);box-shadow:0 6px 20px #0004}
@media print{.launcher{display:none}}
.launcher svg,.avatar svg{fill:currentColor;stroke:none}
.badge{position:absolute;top:-4px;right:-4px;padding:0 7px;border-radius:20px;background:#a8261d;color:#fff;font-size:.8125em}
.mistake{margin:8px 0;padding:10px 14px;border:1px solid var(--danger);border-radius:10px;color:var(--danger);background:var(--surface);overflow-wrap:anywhere}
:host([launcher]) .mistake{max-width:min(340px,100vw - 40px)}`

// Transparent borders are visible where the system forces its own colours.
export const PANEL_STYLE = `
:host{--radius:var(--tenuto-radius,16px);--tint:color-mix(in srgb,var(--accent) 13%,var(--surface));--code:#14191a;--warm:#fdf7ea;--warm-line:#dcc07c}
.panel{position:relative;container-type:inline-size;display:flex;flex-direction:column;width:100%;max-width:var(--tenuto-width,none);height:100%;min-height:300px;contain-intrinsic-width:300px;margin:0 auto;background:var(--bg);text-align:start;text-transform:none;letter-spacing:0;white-space:normal}
.panel.floating{position:absolute;min-height:0;bottom:72px;inset-inline-end:0;width:min(var(--tenuto-width,400px),calc(100vw - 24px));height:min(var(--tenuto-height,620px),calc(100vh - 110px));border:1px solid var(--border);border-radius:var(--radius);overflow:auto;box-shadow:0 6px 20px #0004}
.panel>header{display:flex;align-items:center;gap:10px;padding:12px 16px;border-bottom:1px solid var(--border);background:var(--surface)}
.names{flex:1;min-width:0;overflow-wrap:anywhere}
h2{margin:0;font-size:1em;line-height:1.3}
.people,.status,.note,.place,.older,.source,.host,.choice,.action,.branch{margin:0;color:var(--muted);font-size:.8125em}
.avatar{flex:none;display:grid;place-items:center;width:2em;height:2em;border-radius:8px;font-size:.8125em;background:var(--accent);color:var(--on-accent)}
.close,.new-chat,.chats{display:grid;place-items:center;border:0;background:none;padding:6px;border-radius:8px;color:var(--muted)}
.panel:not(.floating) .close{display:none}
.chats{position:relative}
.chats:focus-within{outline:2px solid var(--accent)}
.chats select{position:absolute;inset:0;width:100%;opacity:0;cursor:pointer;font:inherit;color:var(--text);background:var(--surface)}
.log{flex:1;min-height:0;overflow-y:auto;padding:24px 16px 12px;overscroll-behavior:contain}
.log:focus-visible{outline-offset:-2px}
.messages{display:grid;grid-template-columns:minmax(0,1fr);gap:4px;position:relative;width:100%;max-width:740px;margin:0 auto}
.empty{display:grid;place-items:center;height:100%;overflow:auto;color:var(--muted)}
.message{content-visibility:auto;contain-intrinsic-height:auto 200px;overflow-clip-margin:10px;min-width:0;overflow-wrap:anywhere}
.message>header{display:flex;flex-wrap:wrap;align-items:center;gap:2px 8px;margin-bottom:6px}
.author{font-weight:600;font-size:.9375em}
.state{margin:0;color:var(--muted);font-size:.875em}
.user header:has(.author:empty):has(.state:empty){display:none}
[data-status="streaming"]>header .state{color:var(--accent)}
:is([data-status="failed"],[data-status="refused"])>header .state{color:var(--danger)}
.user{justify-self:end;max-width:min(88%,620px)}
.user>header{justify-content:flex-end;margin-bottom:2px}
.user .body{width:fit-content;max-width:100%;margin-inline-start:auto;padding:9px 16px;border-radius:calc(var(--radius) + 2px);background:var(--tint)}
.user[data-status="sending"] .body{opacity:.75}
.user .markdown{white-space:pre-wrap}
.approvals{max-width:740px;margin:0 auto}
.mute .approval .row{display:none}
.approval{margin-top:12px;padding:14px 16px;border:1px solid var(--warm-line);border-radius:calc(var(--radius) - 2px);background:var(--warm)}
.approval .ask{margin:0 0 4px;font-weight:600}
.row{margin-top:10px;display:flex;flex-wrap:wrap;align-items:center;gap:8px}
.primary,.secondary,.action,.branch,.jump{border:1px solid var(--border);border-radius:10px;background:var(--surface)}
.primary,.secondary{padding:6px 14px}
.primary{border-color:var(--accent);background:var(--accent);color:var(--on-accent);font-weight:600}
.actions{display:flex;flex-wrap:wrap;align-items:center;gap:2px;min-height:24px;margin-top:2px;opacity:0}
.assistant .actions{margin-inline-start:-6px}
.user .actions{justify-content:flex-end}
:is(.message:hover,.message:focus-within,.message:last-child,[data-status="refused"])>.actions,.actions:has(.place:not([hidden])){opacity:1}
.action,.branch{padding:1px 8px;border-color:transparent;background:none}
.jump{position:relative;z-index:1;flex:none;align-self:center;display:flex;align-items:center;gap:6px;height:2.6em;margin:-3.2em 0 .6em;padding:0 14px;border-radius:20px;box-shadow:0 2px 12px #0002;max-width:96%;line-height:1.2}
.older{margin-top:-22px;height:22px;text-align:center}
.panel>:is(.status,.note){width:calc(100% - 32px);max-width:740px;margin:0 auto;padding:4px 6px;overflow-wrap:anywhere}
.panel>.mistake{margin-bottom:14px;padding:10px 14px;color:var(--danger)}
.panel>.note{padding-bottom:16px;text-align:center}
.spoken{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);margin:0}
.composer{flex:none;width:calc(100% - 32px);max-width:740px;margin:4px auto 16px;padding:12px 14px 10px;border:1px solid var(--border);border-radius:calc(var(--radius) + 4px);background:var(--surface);box-shadow:0 2px 12px #0002}
.composer:focus-within{border-color:var(--accent)}
.composer:has(textarea:focus-visible){outline:1px solid var(--accent)}
textarea{width:100%;resize:none}
.composer textarea{padding:2px;border:0;outline:0;background:none}
textarea::placeholder{color:var(--muted);opacity:1}
.editing{display:grid;width:620px;max-width:100%}
.editor{padding:10px;border:1px solid var(--border);border-radius:12px;background:var(--surface)}
.editor:focus-visible{outline-offset:-1px}
.fill{flex:1}
.choices{display:flex;border:1px solid var(--border);border-radius:20px}
.choice{padding:4px 12px;border:0;border-radius:20px;background:none}
.choice[aria-pressed="true"]{background:var(--tint);color:var(--accent);font-weight:600}
.send,.stop{flex:none;display:grid;place-items:center;width:2.375em;height:2.375em;padding:0;border:1px solid var(--accent);border-radius:50%;background:var(--accent);color:var(--on-accent)}
button:disabled{opacity:.4}.stop{border-color:var(--border);background:var(--surface)}
.square{border:.4em solid var(--danger);border-radius:3px}
details{margin:8px 0;color:var(--muted);font-size:.875em}
summary{width:fit-content}
details pre{margin:6px 0;padding:4px 12px;border-inline-start:2px solid var(--border);white-space:pre-wrap;font:inherit}
.source{display:inline-block;margin:8px 8px 0 0;padding:3px 10px;border:1px solid var(--border);border-radius:9px;background:var(--surface);text-decoration:none}
.far :is(.chunk,.group,.lines)~*{display:none}
:is(.chunk,.group,.lines){contain-intrinsic-height:auto 2000px}
:is(.chunk,.group):has(+[class]),.lines{content-visibility:auto}
.markdown :where(p,ul,ol,table,blockquote,.code,div.math,h3,h4,h5,h6){margin:0 0 .75em;padding:0}
:is(.markdown,.group:last-child)>:last-child>:last-child{margin-bottom:0}
.markdown :is(h3,h4,h5,h6){margin-top:1.1em;font-size:1em;line-height:1.35}
.markdown h3{font-size:1.2em}
:is(.markdown,.group:first-child)>:first-child>:first-child{margin-top:0}
li{margin-inline-start:1.6em}
.markdown li>:is(ul,ol){margin:0}
li:has(>input){list-style:none}
input{margin:0;margin-inline-end:.4em}
hr{border:0;border-top:1px solid var(--border)}
a{color:var(--accent)}
.markdown blockquote{padding-inline-start:14px;border-inline-start:3px solid var(--border);color:var(--muted)}
blockquote:has(:first-child:dir(rtl)),li:has(>p:first-child:dir(rtl)),table:has(th:first-child:dir(rtl)){direction:rtl}
table{display:block;direction:ltr;overflow-x:auto;border-collapse:collapse;font-size:.9375em}
th,td{padding:5px 18px 5px 0;border-bottom:1px solid var(--border);text-align:start;vertical-align:top;overflow-wrap:normal}
td>code{white-space:nowrap}
.code,code{direction:ltr;unicode-bidi:isolate}
code{font:.875em/1.5 var(--tenuto-mono,ui-monospace,monospace)}
.markdown :not(pre)>code,.approval code{padding:1px 5px;border-radius:5px;background:color-mix(in srgb,var(--muted) 16%,transparent)}
.code{border-radius:12px;overflow-x:auto;background:var(--code);color:#e8eceb}
.t-cmnt{color:#a3b0ad}.t-kwd,.t-func{color:#7edcc4}.t-str{color:#a8d99a}
div.math{overflow-x:auto;text-align:center}
.hairline{display:flex;align-items:center;gap:12px;margin:1em 0;color:var(--accent);font-size:.8125em;text-align:center}
.hairline::before,.hairline::after{content:"";flex:1;min-width:12px;border-top:1px solid;opacity:.4}
.hairline span::before{content:"↻ "}
.code-head{position:sticky;left:0;display:flex;justify-content:space-between;align-items:center;gap:8px;min-height:34px;padding:2px 14px;border-bottom:1px solid #fff2;color:#a3b0ad;font-size:.8125em}
.copy{border:0;margin-inline-end:-6px;padding:2px 6px;border-radius:6px;background:none}
.code :focus-visible{outline-color:#7edcc4;outline-offset:-2px}
pre{margin:0}
.code code,.lines,textarea{display:block}
.markdown p:empty{display:none}
.code :is(pre,.lines){width:max-content}
.code pre{padding:12px 14px}
[data-status="streaming"] .markdown>:last-child>:is(p,h3,h4,h5,h6):nth-last-child(1 of :not(.hairline))::after{content:"";display:inline-block;height:1.1em;margin-inline-start:3px;border:.25em solid var(--accent);border-radius:2px;vertical-align:-.2em}
@container (max-width:27em){.choices{flex:1 0 100%;flex-wrap:wrap}.choice{flex:auto}}
@media (pointer:coarse){:is(button,.source,summary,.chats){min-width:44px;min-height:44px}.source,summary{align-content:center}.choices{border-radius:23px}.actions{opacity:1}.jump{margin-top:calc(-44px - .6em)}
}
.user .body,.code,.avatar,.badge{border:1px solid transparent}
@media (max-width:420px){.panel.floating{position:fixed;inset:0;width:100vw;height:100dvh;max-width:none;border:0;border-radius:0}}`
