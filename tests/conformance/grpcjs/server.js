// Serves conformance tests by @grpc/grpc-js, as a process; the commands are those of serviceradar_poller.testing.conformance.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const readline = require('node:readline')
const zlib = require('node:zlib')
const grpc = require('@grpc/grpc-js')

const pki = process.argv[2]
const pem = (name) => fs.readFileSync(path.join(pki, `${name}.pem`))

// What the servers saw.
const seen = { active: 0, peak: 0, order: [] }
const noted = new Map()

function event(name, tag) {
  const key = `${name} ${tag}`
  if (!noted.has(key)) {
    const entry = {}
    entry.happened = new Promise((resolve) => { entry.note = resolve })
    noted.set(key, entry)
  }
  return noted.get(key)
}

const json = (value) => Buffer.from(JSON.stringify(value))

function trailers() {
  const metadata = new grpc.Metadata()
  metadata.set('x-text', 'text of a trailer')
  metadata.set('x-raw-bin', Buffer.from(Array.from({ length: 256 }, (_, index) => index)))
  return metadata
}

async function sendPieces(call, { count, size = 8 }) {
  for (let index = 0; index < count && !call.cancelled; index++) {
    const message = Buffer.alloc(size, 'x')
    message.writeBigUInt64BE(BigInt(index))
    if (!call.write(message)) {
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
    const { tag, delay_s: delay } = JSON.parse(call.request)
    seen.order.push(tag)
    seen.active += 1
    seen.peak = Math.max(seen.peak, seen.active)
    setTimeout(() => {
      seen.active -= 1
      answer(null, call.request)
    }, delay * 1000)
  },

  Inspect(call, answer) {
    const metadata = {}
    for (const [name, value] of Object.entries(call.metadata.getMap())) {
      metadata[name] = Buffer.isBuffer(value) ? [...value] : value
    }
    const deadline = call.getDeadline()
    const left = deadline === Infinity ? null : (new Date(deadline).getTime() - Date.now()) / 1000
    answer(null, json({ metadata, left_s: left }))
  },

  Hang(call) {
    const tag = call.request.toString()
    call.on('cancelled', () => event('ended', tag).note())
    event('started', tag).note()
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
    let [count, bytes, crc] = [0, 0, 0]
    call.on('data', (message) => {
      count += 1
      bytes += message.length
      crc = crc32(message, crc)
    })
    call.on('end', () => answer(null, json({ count, bytes, crc })))
  },

  Early(call, answer) {
    call.once('data', () => answer({ code: grpc.status.RESOURCE_EXHAUSTED, details: 'enough' }))
  },
}

// Node has zlib.crc32 from version 22.2 on.
const table = Int32Array.from({ length: 256 }, (_, index) => {
  for (let bit = 0; bit < 8; bit++) index = index & 1 ? (index >>> 1) ^ 0xedb88320 : index >>> 1
  return index
})
const crc32 = zlib.crc32 ?? ((data, crc) => {
  crc = ~crc
  for (let at = 0; at < data.length; at++) crc = table[(crc ^ data[at]) & 0xff] ^ (crc >>> 8)
  return ~crc >>> 0
})

const same = (message) => message
const service = {}
for (const name of Object.keys(handlers)) {
  service[name] = {
    path: `/conformance.Echo/${name}`,
    requestStream: name === 'Collect' || name === 'Early',
    responseStream: name === 'Stream' || name === 'Broken',
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  }
}

const servers = new Map()

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
      servers.set(port, server)
      return { port }
    }
    case 'stop':
      servers.get(command.port).forceShutdown()
      servers.delete(command.port)
      return {}
    case 'wait':
      await Promise.race([
        event(command.event, command.tag).happened,
        new Promise((_, reject) => { setTimeout(() => reject(new Error('it never happened')), 10_000).unref() }),
      ])
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
