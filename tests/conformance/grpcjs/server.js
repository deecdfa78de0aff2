// Serves conformance tests by @grpc/grpc-js, as a process; the commands are those of serviceradar_poller.testing.conformance.
'use strict'

const crypto = require('node:crypto')
const fs = require('node:fs')
const path = require('node:path')
const readline = require('node:readline')
const grpc = require('@grpc/grpc-js')

const pki = process.argv[2]
const pem = (name) => fs.readFileSync(path.join(pki, `${name}.pem`))

// What the servers saw.
const seen = { active: 0, peak: 0, order: [], headers: {} }
const noted = new Map()
const changed = []

function event(name, tag) {
  const key = `${name} ${tag}`
  if (!noted.has(key)) {
    const entry = {}
    entry.happened = new Promise((resolve) => { entry.note = resolve })
    noted.set(key, entry)
  }
  return noted.get(key)
}

function began(tag) {
  seen.order.push(tag)
  seen.active += 1
  seen.peak = Math.max(seen.peak, seen.active)
  for (const look of changed.splice(0)) look()
}

async function busy(count) {
  while (seen.active < count) await new Promise((resolve) => { changed.push(resolve) })
}

const pause = ({ gate, delay_s: delay }) => gate === undefined
  ? new Promise((resolve) => { setTimeout(resolve, delay * 1000) })
  : event('go', gate).happened

const within = (promise) => Promise.race([
  promise,
  new Promise((_, reject) => { setTimeout(() => reject(new Error('it never happened')), 45_000).unref() }),
])

const json = (value) => Buffer.from(JSON.stringify(value))

function trailers() {
  const metadata = new grpc.Metadata()
  metadata.set('x-text', 'text of a trailer')
  metadata.set('x-raw-bin', Buffer.from(Array.from({ length: 256 }, (_, index) => index)))
  return metadata
}

// The same as conformance.piece().
const counted = Buffer.alloc(2 * 1024 * 1024)
for (let at = 0; at < counted.length; at += 4) counted.writeUInt32BE(at / 4, at)
function piece(index, size) {
  const message = Buffer.alloc(size)
  message.writeBigUInt64BE(BigInt(index))
  counted.copy(message, 8, index % 97)
  return message
}

async function sendPieces(call, { count, size = 8 }) {
  for (let index = 0; index < count && !call.cancelled; index++) {
    if (!call.write(piece(index, size))) {
      await new Promise((resolve) => {
        call.once('drain', resolve)
        call.once('cancelled', resolve)
      })
    }
  }
}

const handlers = {
  Unary(call, answer) { answer(null, call.request) },

  Slow(call, answer) {
    const wanted = JSON.parse(call.request)
    began(wanted.tag)
    pause(wanted).then(() => {
      seen.active -= 1
      answer(null, call.request)
    })
  },

  async Held(call) {
    const wanted = JSON.parse(call.request)
    began(wanted.tag)
    call.write(call.request)
    await pause(wanted)
    seen.active -= 1
    call.write(call.request)
    call.end()
  },

  Inspect(call, answer) {
    const metadata = {}
    for (const [name, value] of Object.entries(call.metadata.getMap())) {
      metadata[name] = Buffer.isBuffer(value) ? [...value] : value
    }
    const deadline = call.getDeadline()
    const left = deadline === Infinity ? null : (new Date(deadline).getTime() - Date.now()) / 1000
    answer(null, json({ metadata, left_s: left, headers: seen.headers }))
  },

  Hang(call) {
    const tag = call.request.toString()
    call.on('cancelled', () => event('ended', tag).note())
    event('started', tag).note()
  },

  HangDown(call) {
    const tag = call.request.toString()
    call.on('cancelled', () => event('ended', tag).note())
    call.write(call.request)
    event('started', tag).note()
  },

  HangUp(call) {
    call.once('data', (message) => {
      call.pause()
      const tag = message.toString()
      call.on('cancelled', () => event('ended', tag).note())
      event('started', tag).note()
    })
  },

  async Stream(call) {
    await sendPieces(call, JSON.parse(call.request))
    call.end()
  },

  async Broken(call) {
    const wanted = JSON.parse(call.request)
    await sendPieces(call, wanted)
    call.emit('error', { code: wanted.code, details: wanted.text, metadata: trailers() })
  },

  Collect(call, answer) {
    let [count, bytes] = [0, 0]
    const hash = crypto.createHash('sha256')
    call.on('data', (message) => {
      count += 1
      bytes += message.length
      hash.update(message)
    })
    call.on('end', () => answer(null, json({ count, bytes, sha256: hash.digest('hex') })))
  },

  Early(call, answer) {
    call.once('data', () => answer({ code: grpc.status.RESOURCE_EXHAUSTED, details: 'enough' }))
  },
}

const same = (message) => message
const service = {}
for (const name of Object.keys(handlers)) {
  service[name] = {
    path: `/conformance.Echo/${name}`,
    requestStream: ['Collect', 'Early', 'HangUp'].includes(name),
    responseStream: ['Stream', 'Broken', 'Held', 'HangDown'].includes(name),
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  }
}

const servers = new Map()

// What grpc-js has no option for is told to the HTTP/2 servers of node that it serves with, before a connection is made.
function adjust(server, wanted) {
  const settings = {}
  if ('window_bytes' in wanted) settings.initialWindowSize = wanted.window_bytes
  if ('frame_bytes_max' in wanted) settings.maxFrameSize = wanted.frame_bytes_max
  if ('table_bytes' in wanted) settings.headerTableSize = wanted.table_bytes
  for (const http2Server of server.http2Servers.keys()) {
    http2Server.updateSettings(settings)
    http2Server.prependListener('stream', (_, headers) => { seen.headers = { ...headers } })
  }
}

async function obey(command) {
  switch (command.do) {
    case 'start': {
      const options = { 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 }
      const wanted = command.options
      if (wanted.streams_max) options['grpc.max_concurrent_streams'] = wanted.streams_max
      if (wanted.age_s) options['grpc.max_connection_age_ms'] = wanted.age_s * 1000
      const server = new grpc.Server(options)
      server.addService(service, handlers)
      const credentials = command.tls
        ? grpc.ServerCredentials.createSsl(
          pem('root'), [{ private_key: pem('agent-key'), cert_chain: pem('agent') }], true)
        : grpc.ServerCredentials.createInsecure()
      const port = await new Promise((resolve, reject) => {
        server.bindAsync(`127.0.0.1:${command.port}`, credentials, (error, bound) => {
          if (error) reject(error)
          else resolve(bound)
        })
      })
      adjust(server, wanted)
      servers.set(port, server)
      return { port }
    }
    case 'stop': {
      const server = servers.get(command.port)
      servers.delete(command.port)
      if (command.gracefully) server.tryShutdown(() => {})
      else server.forceShutdown()
      return {}
    }
    case 'goaway':
      for (const session of servers.get(command.port).sessions.keys()) session.goaway(0, command.last)
      return {}
    case 'note':
      event(command.event, command.tag).note()
      return {}
    case 'wait':
      await within(event(command.event, command.tag).happened)
      return {}
    case 'busy':
      await within(busy(command.count))
      return {}
    case 'stats': {
      const answer = { peak: seen.peak, order: seen.order }
      seen.peak = seen.active
      seen.order = []
      return answer
    }
    default:
      throw new Error(`unknown: ${command.do}`)
  }
}

const lines = readline.createInterface({ input: process.stdin })
lines.on('line', (line) => {
  obey(JSON.parse(line)).then(
    (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`),
    (error) => process.stdout.write(`${JSON.stringify({ error: String(error) })}\n`),
  )
})
lines.on('close', () => process.exit(0))
