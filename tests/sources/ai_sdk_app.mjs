// An app's chat routes as the AI SDK makes them: `GET /<case>` streams the text of that case's model.
//
// Layer: tests. The package is the real one; the models are its own simulated ones, with given texts. The app listens
// on a free port of loopback, prints it, and ends with its standard input.

import { createServer } from 'node:http'
import { createUIMessageStream, jsonSchema, pipeUIMessageStreamToResponse, streamText, tool, toUIMessageStream } from 'ai'
import { MockLanguageModelV4 } from 'ai/test'

const USAGE = {
  inputTokens: { total: 11, noCache: 8, cacheRead: 3, cacheWrite: 2 },
  outputTokens: { total: 7, text: 5, reasoning: 2 },
}
const finish = (unified = 'stop') => ({ type: 'finish', finishReason: { unified, raw: unified }, usage: USAGE })
const said = (id, ...deltas) => [
  { type: 'text-start', id },
  ...deltas.map(delta => ({ type: 'text-delta', id, delta })),
  { type: 'text-end', id },
]
const thought = (id, ...deltas) => [
  { type: 'reasoning-start', id },
  ...deltas.map(delta => ({ type: 'reasoning-delta', id, delta })),
  { type: 'reasoning-end', id },
]
const called = (toolCallId, toolName, ...deltas) => [
  { type: 'tool-input-start', id: toolCallId, toolName },
  ...deltas.map(delta => ({ type: 'tool-input-delta', id: toolCallId, delta })),
  { type: 'tool-input-end', id: toolCallId },
  { type: 'tool-call', toolCallId, toolName, input: deltas.join('') },
]

/** A model whose n-th step sends the items of `steps[n]`; a function among them is called, and may wait. */
function model(...steps) {
  return new MockLanguageModelV4({
    modelId: 'mock-1',
    doStream: async () => {
      const left = [{ type: 'stream-start', warnings: [] }, ...steps.shift()]
      return {
        stream: new ReadableStream({
          async pull(controller) {
            const next = left.shift()
            if (next === undefined) controller.close()
            else if (typeof next === 'function') await next(controller)
            else controller.enqueue(next)
          },
        }),
      }
    },
  })
}

const inputSchema = jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] })
const weather = tool({ inputSchema, execute: async ({ city }) => ({ city, rain: true }) })

/** Each gives a stream of chunks, as a route would. */
const CASES = {
  // Two steps, each with a text of the same id, as several providers have it.
  answer: () =>
    ui({
      model: model(
        [...thought('0', 'Let me ', 'think.'), ...said('0', 'Looking. '), ...called('c1', 'weather', '{"ci', 'ty": "Oslo"}'), finish('tool-calls')],
        [
          { type: 'source', sourceType: 'url', id: 's1', url: 'https://example.org/', title: 'Oslo' },
          { type: 'source', sourceType: 'document', id: 's2', mediaType: 'text/plain', title: 'Notes', filename: 'n.txt' },
          ...said('0', 'It rains 🌧', ' in Oslo.'),
          { type: 'file', mediaType: 'image/png', data: { type: 'data', data: 'AAAA' } },
          finish(),
        ],
      ),
      tools: { weather },
      stopWhen: ({ steps }) => steps.length === 2,
    }),
  // Calls that go wrong, one whose result comes in pieces, one that people refuse, and one without a result.
  tools: () =>
    ui({
      model: model([
        ...called('c1', 'broken', '{"city": "Oslo"}'),
        ...called('c2', 'weather', '{"city": 5}'),
        ...called('c3', 'slow', '{"city": "Rome"}'),
        ...called('c4', 'asks', '{"city": "Bonn"}'),
        ...called('c5', 'browser', '{"city": "Bern"}'),
        finish('tool-calls'),
      ]),
      tools: {
        weather: tool({ ...weather, inputSchema: strict }),
        broken: tool({ inputSchema, execute: async () => { throw new Error('no such city') } }),
        slow: tool({ inputSchema, async *execute() { yield 'so far'; yield 'all of it' } }),
        asks: tool({ inputSchema, needsApproval: true, execute: async () => 'never' }),
        browser: tool({ inputSchema }),
      },
    }),
  // A call that has not said all of its output, and one that people have refused.
  preliminary: () =>
    chunks(
      { type: 'start' },
      { type: 'tool-input-available', toolCallId: 'c1', toolName: 'slow', input: {} },
      { type: 'tool-output-available', toolCallId: 'c1', output: 'so far', preliminary: true },
      { type: 'tool-input-available', toolCallId: 'c2', toolName: 'rm', input: {} },
      { type: 'tool-approval-request', approvalId: 'a1', toolCallId: 'c2' },
      { type: 'tool-output-denied', toolCallId: 'c2' },
      { type: 'custom', kind: 'mock.thing' },
      { type: 'finish' },
    ),
  // Chunks that an app writes beside its model's stream.
  data: () =>
    createUIMessageStream({
      execute: ({ writer }) => {
        writer.write({ type: 'data-progress', id: 'p', data: { done: 1 } })
        writer.write({ type: 'data-toast', data: 'hi', transient: true })
        writer.merge(ui({ model: model([...said('0', 'Done.'), finish('length')]) }))
        writer.write({ type: 'data-progress', id: 'p', data: { done: 2 } })
      },
    }),
  // A step that begins again: the text of its first try is withdrawn.
  reset: () =>
    chunks(
      { type: 'start' },
      { type: 'start-step' },
      ...text('0', 'Kept. '),
      { type: 'finish-step' },
      { type: 'start-step' },
      ...text('0', 'Dropped.'),
      { type: 'tool-input-start', toolCallId: 'c1', toolName: 'weather' },
      { type: 'reset-step' },
      { type: 'start-step' },
      ...text('0', 'Again.'),
      { type: 'finish', finishReason: 'stop' },
    ),
  error: () => ui({ model: model([...said('0', 'Half.'), { type: 'error', error: new Error('key sk-123') }, finish('error')]) }),
  // An app that writes no finish; the package ends the response properly.
  unfinished: () => chunks({ type: 'start' }, ...text('0', 'Half.')),
  // A model whose stream ends without its last part.
  quiet: () => ui({ model: model(said('0', 'Half.')) }),
  abort: () => {
    const stop = new AbortController()
    const soon = () => new Promise(() => setTimeout(() => stop.abort('enough'), 50))
    return ui({ model: model([...said('0', 'Half.'), soon]), abortSignal: stop.signal })
  },
  // The connection breaks in the middle of the stream.
  cut: response => ui({ model: model([...said('0', 'Half.'), () => new Promise(() => setTimeout(() => response.destroy(), 50))]) }),
  // A model that sends no more text until its reader has disconnected.
  hold: response =>
    ui({ model: model([...said('0', 'Half.'), () => new Promise(() => response.on('close', () => console.log('left')))]) }),
}

const strict = jsonSchema({}, { validate: () => ({ success: false, error: new Error('a city is text') }) })

const text = (id, delta) => [{ type: 'text-start', id }, { type: 'text-delta', id, delta }, { type: 'text-end', id }]

function chunks(...all) {
  return createUIMessageStream({ execute: ({ writer }) => all.forEach(chunk => writer.write(chunk)) })
}

function ui(options) {
  const { stream } = streamText({ prompt: 'Weather?', onError: () => {}, ...options })
  const messageMetadata = ({ part }) =>
    part.type === 'start' ? { model: 'mock-1' } : part.type === 'finish' ? { usage: part.totalUsage } : undefined
  return toUIMessageStream({ stream, tools: options.tools, sendSources: true, messageMetadata })
}

const server = createServer((request, response) => {
  pipeUIMessageStreamToResponse({ response, stream: CASES[request.url.slice(1)](response) })
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => process.exit())
