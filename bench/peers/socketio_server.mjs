// A Socket.IO server as its documentation sets it up, with connection state recovery, and producers in its process.
//
// `bench.peers.socketio` runs it with the folder whose node_modules contains socket.io. It reads requests from standard
// input, one JSON object per line, writes one reply per line, and ends when its input ends.
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const require = createRequire(`${process.argv[2]}/`)
const { Server } = require('socket.io')
const version = require('socket.io/package.json').version

const http = createServer()
const io = new Server(http, {
  transports: ['websocket'],
  serveClient: false,
  connectionStateRecovery: { maxDisconnectionDuration: 120_000, skipMiddlewares: true }
})
io.on('connection', socket => {
  if (!socket.recovered) socket.join(socket.handshake.auth.channel)
})

// A token is the time in microseconds (CLOCK_MONOTONIC) modulo 36^5 in base 36, as in bench/tokens.py.
const CYCLE_US = 36n ** 5n
const token = () => ((process.hrtime.bigint() / 1000n) % CYCLE_US).toString(36).padStart(5, '0')

const summary = text => ({ id: 'm', length: text.length, sha256: createHash('sha256').update(text).digest('hex') })
const reply = fields => process.stdout.write(JSON.stringify(fields) + '\n')
const now = () => Number(process.hrtime.bigint()) / 1e9

/** Send each token at its time, late or not, spread over the channels like all producers of the benchmarks. */
function produce({ channels, count, tokens_per_s: rate, returns_texts: returnsTexts = false }) {
  const sent = channels.map(() => [])
  const lags = []
  const total = count * channels.length
  const period = 1 / rate / channels.length
  const started = now()
  let due = 0
  return new Promise(resolve => {
    const step = () => {
      const at = now() - started
      while (due < total && due * period <= at) {
        const n = due % channels.length
        const text = token()
        sent[n].push(text)
        lags.push(at - due * period)
        io.to(channels[n]).emit('t', text)
        due += 1
      }
      if (due < total) return void setTimeout(step, Math.max(0, (started + due * period - now()) * 1000))
      lags.sort((a, b) => a - b)
      const messages = Object.fromEntries(channels.map((channel, n) => [channel, summary(sent[n].join(''))]))
      const texts = returnsTexts ? Object.fromEntries(channels.map((channel, n) => [channel, sent[n].join('')])) : {}
      const share = part => lags[Math.floor(lags.length * part)] * 1000
      resolve({ messages, texts, lag_ms: [share(0.5), share(0.99), lags.at(-1) * 1000], seconds: now() - started })
    }
    step()
  })
}

const requests = { produce }

http.listen(0, '127.0.0.1', 4096, () => reply({ port: http.address().port, version, node: process.version }))
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...fields } = JSON.parse(line)
  try {
    reply(await requests[name](fields))
  } catch (error) {
    reply({ error: String(error) })
  }
}
process.exit(0)
