// A node of another implementation. It holds the vectors against docs/protocol.md, dials a node of ours, and does what a
// provider and a buyer do there; each line of output is what came of one step.

import fs from 'node:fs'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as digests from 'multiformats/hashes/digest'
import { decode as unpack, encode as pack } from '@msgpack/msgpack'
import {
  DOMAIN, Type, addressOf, ask, digestOf, frame, hex, peerIdBytes, read, serve, signDigest, signed, signerOf, unhex
} from './hansa.mjs'

const wanted = JSON.parse(process.argv[2])
const vectors = JSON.parse(fs.readFileSync(wanted.vectors))
const types = Object.fromEntries(Object.entries(vectors.documents).map(([name, one]) => [name, new Type(one.type)]))
const secretOf = (who) => unhex(vectors.keys[who].secret)
const say = (did, more = {}) => console.log(JSON.stringify({ did, ...more }))
const BIG = { useBigInt64: true }
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const same = (got, expected, what) => {
  if (hex(got) !== expected) throw new Error(`${what}: ${hex(got)} and not ${expected}`)
}

// The vectors.

function checkVectors () {
  same(DOMAIN, vectors.domain.separator, 'the domain')
  for (const [who, key] of Object.entries(vectors.keys)) {
    same(peerIdBytes(unhex(key.secret)), key.peer_id_bytes, `the peer id of ${who}`)
    same(addressOf(unhex(key.public_key)), key.address.slice(2).toLowerCase(), `the address of ${who}`)
  }
  for (const [name, one] of Object.entries(vectors.documents)) {
    const document = types[name].fromJson(one.fields)
    const digest = digestOf(types[name], document)
    same(types[name].structHash(document), one.struct_hash, `the struct hash of ${name}`)
    same(digest, one.digest, `the digest of ${name}`)
    same(signDigest(digest, secretOf(one.signer)), one.signature, `the signature of ${name}`)
  }
  for (const [name, one] of Object.entries(vectors.frames)) {
    same(pack(unpack(unhex(one.frame), BIG), BIG), one.frame, `the frame of ${name}`)
  }
  const { fields, signature } = vectors.documents.Advert
  const advert = { document: types.Advert.fromJson(fields), signature: unhex(signature) }
  same(frame('AdvertPublished', { advert }), vectors.frames['advert by gossip'].frame, 'an advert that was made here')
}

checkVectors()
say('checked', { documents: Object.keys(types).length, frames: Object.keys(vectors.frames).length })

// The node: it only dials out.

const account = secretOf('provider')
const nodeSecret = secretOf("provider's node")
const own = vectors.keys.provider.address.slice(2).toLowerCase()
const node = await createLibp2p({
  privateKey: privateKeyFromRaw(nodeSecret),
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub(),
    dht: kadDHT({ protocol: '/hansa/kad/1.0.0', clientMode: true, peerInfoMapper: passthroughMapper })
  }
})
if (node.peerId.toString() !== vectors.keys["provider's node"].peer_id) throw new Error('another peer id')

const identified = new Promise((resolve) => {
  node.addEventListener('peer:identify', ({ detail }) => resolve(detail))
})
const connection = await node.dial(multiaddr(wanted.addr))
const peer = connection.remotePeer
const { protocols } = await identified
say('identified', { protocols, peer: peer.toString() })

// Hello, both ways.

function hello () {
  const now = BigInt(Date.now())
  const binding = {
    account: unhex(own),
    peer_id: peerIdBytes(nodeSecret),
    roles: unhex('03'.padStart(64, '0')),
    spend_limit: 0n,
    not_before: now - 60_000n,
    not_after: now + 3_600_000n,
    epoch: now
  }
  const digest = digestOf(types.NodeBinding, binding)
  const signatures = [account, nodeSecret].map((secret) => signDigest(digest, secret))
  return frame('Hello', { binding, account_signature: signatures[0], node_signature: signatures[1] })
}

function proved (data, remote) {
  const [, { binding, account_signature: mine, node_signature: theirs }] = read(data, 'Hello')
  const digest = digestOf(types.NodeBinding, binding)
  if (hex(binding.peer_id) !== hex(remote.toMultihash().bytes)) throw new Error('a hello about somebody else')
  if (hex(signerOf(digest, mine)) !== hex(binding.account)) throw new Error('not signed by the account')
  if (hex(signerOf(digest, theirs)) !== hex(addressOf(binding.peer_id.slice(6)))) throw new Error('not by the node')
  return hex(binding.account)
}

await serve(node, '/hansa/hello/1', async (data, remote) => {
  proved(data, remote)
  return hello()
})
const met = proved(await ask(node, peer, '/hansa/hello/1', hello()), peer)
say('met', { account: met })

// A provider: its advert, of this moment, goes to whoever hears of GPUs of 80 GB.

function advert (changes = {}) {
  return {
    ...types.Advert.fromJson(vectors.documents.Advert.fields),
    addresses: [],
    sequence: BigInt(Date.now()),
    expires_ms: BigInt(Date.now() + 300_000),
    ...changes
  }
}

const topic = '/hansa/adverts/1/gpu-80'
const { pubsub, dht } = node.services
pubsub.addEventListener('message', ({ detail }) => {
  const [, { advert: { document, signature } }] = read(detail.data, 'AdvertPublished')
  const signer = hex(signerOf(digestOf(types.Advert, document), signature))
  if (signer === hex(document.signer)) say('heard', { signer, topic: detail.topic })
})
pubsub.subscribe(topic)
while (pubsub.getSubscribers(topic).length === 0) await pause(100)
const publish = () => pubsub.publish(topic, frame('AdvertPublished', {
  advert: signed(types.Advert, advert(), account)
}))
await publish()
// The first may be lost while gossip's streams are still being opened: an advert is said anew, always.
const again = setInterval(() => publish().catch(() => {}), 1_500)
say('published', { account: own })

// A buyer: a tender goes there, and a bid comes back over the same connection.

const bid = new Promise((resolve) => {
  serve(node, '/hansa/market/1', async (data, remote) => {
    const [name, fields] = read(data, 'BidSent', 'DeclineSent')
    resolve({ name, fields, remote: remote.toString() })
    return new Uint8Array(0)
  })
})
const tender = {
  ...types.Tender.fromJson(vectors.documents.Tender.fields),
  signer: unhex(own),
  peer_id: node.peerId.toString(),
  bids_close_ms: BigInt(Date.now() + 60_000),
  expires_ms: BigInt(Date.now() + 120_000)
}
const taken = await ask(node, peer, '/hansa/market/2', frame('TenderSent', {
  tender: signed(types.Tender, tender, account)
}))
if (taken.length !== 0) throw new Error('an answer that is not empty')
say('tendered', { tender: hex(digestOf(types.Tender, tender)) })
const { name, fields } = await bid
const { document, signature } = fields.bid
const signer = hex(signerOf(digestOf(types.Bid, document), signature))
say('bid', { name, signer, named: hex(document.signer), tender: hex(document.tender) })

// A provider that nobody told of, in the table.

const key = CID.createV1(0x55, digests.decode(unhex(vectors.derived.kad_keys['gpu-80/*'])))
for (let found = false; !found; await pause(500)) {
  try {
    for await (const event of dht.findProviders(key, { signal: AbortSignal.timeout(10_000) })) {
      const providers = event.name === 'PROVIDER' || event.name === 'PEER_RESPONSE' ? event.providers ?? [] : []
      if (providers.length > 0) {
        say('found', { providers: providers.map((each) => each.id.toString()) })
        found = true
        break
      }
    }
  } catch (fault) {
    // The table is empty for a moment after the connection; whoever waits for us bounds how often we come back.
  }
}

// What is wrong is not taken: a forged advert, and a message that lacks a field.

clearInterval(again)
const forged = signed(types.Advert, advert({ free: 7n }), nodeSecret)
await pubsub.publish(topic, frame('AdvertPublished', { advert: forged }))
try {
  await ask(node, peer, '/hansa/market/1', frame('LeaseCancelled', { lease: new Uint8Array(32) }))
  say('wrong', { taken: true })
} catch (fault) {
  say('wrong', { taken: false })
}
await pause(1_000)
await node.stop()
say('done')
