// What docs/protocol.md says, in JavaScript: typed data, signatures, frames and requests. Nothing here was taken from
// the Python code; only what the page and the vectors tell is used.

import { byteStream } from '@libp2p/utils'
import { decode as unpack, encode as pack } from '@msgpack/msgpack'
import { secp256k1 } from '@noble/curves/secp256k1'
import { keccak_256 as keccak } from '@noble/hashes/sha3'

export const VERSION = 4
const utf8 = new TextEncoder()

export const hex = (bytes) => Buffer.from(bytes).toString('hex')
export const unhex = (text) => new Uint8Array(Buffer.from(text.replace(/^0x/, ''), 'hex'))
export const joined = (...parts) => new Uint8Array(Buffer.concat(parts))
const word = (number) => unhex(BigInt.asUintN(256, BigInt(number)).toString(16).padStart(64, '0'))

// Section 1: keys and signatures.

export function addressOf (publicKey) {
  return keccak(secp256k1.ProjectivePoint.fromHex(publicKey).toRawBytes(false).slice(1)).slice(-20)
}

export function peerIdBytes (secret) {
  return joined(unhex('002508021221'), secp256k1.getPublicKey(secret, true))
}

export function signDigest (digest, secret) {
  const signature = secp256k1.sign(digest, secret, { lowS: true, prehash: false })
  return joined(signature.toCompactRawBytes(), Uint8Array.of(27 + signature.recovery))
}

export function signerOf (digest, signature) {
  const parsed = secp256k1.Signature.fromCompact(signature.slice(0, 64)).addRecoveryBit(signature[64] - 27)
  if (signature.length !== 65 || parsed.hasHighS()) throw new Error('not a signature in its one form')
  return addressOf(parsed.recoverPublicKey(digest).toRawBytes(true))
}

// Section 7: typed data, from the type strings that the documentation prints.

const snake = (name) => name.replace(/[A-Z]/g, (letter) => '_' + letter.toLowerCase())

export class Type {
  constructor (text) {
    this.text = text
    this.structs = new Map()
    for (const [, name, fields] of text.matchAll(/(\w+)\(([^)]*)\)/g)) {
      this.structs.set(name, fields.split(',').map((each) => each.split(' ')))
      this.first ??= name
    }
  }

  below (name, found = new Set()) {
    for (const [type] of this.structs.get(name)) {
      const bare = type.replace('[]', '')
      if (this.structs.has(bare) && !found.has(bare)) this.below(bare, found.add(bare))
    }
    return found
  }

  said (name) {
    const one = (each) => `${each}(${this.structs.get(each).map((field) => field.join(' ')).join(',')})`
    return [name, ...[...this.below(name)].filter((each) => each !== name).sort()].map(one).join('')
  }

  word (type, value) {
    if (type.endsWith('[]')) return keccak(joined(...value.map((item) => this.word(type.slice(0, -2), item))))
    if (this.structs.has(type)) return this.structHash(value, type)
    if (type === 'string') return keccak(utf8.encode(value))
    if (type === 'bytes') return keccak(value)
    if (type === 'bool') return word(value ? 1 : 0)
    if (type === 'address' || type === 'bytes32') return joined(new Uint8Array(32 - value.length), value)
    return word(value)
  }

  structHash (value, name = this.first) {
    const words = this.structs.get(name).map(([type, field]) => this.word(type, value[wireName(value, field)]))
    return keccak(joined(keccak(utf8.encode(this.said(name))), ...words))
  }

  // A document as the vectors write it, with hex and decimal text, as it is in a frame.
  fromJson (value, type = this.first) {
    if (type.endsWith('[]')) return value.map((item) => this.fromJson(item, type.slice(0, -2)))
    if (this.structs.has(type)) {
      const types = new Map(this.structs.get(type).map(([each, field]) => [wireName(value, field), each]))
      return Object.fromEntries(Object.keys(value).map((key) => [key, this.fromJson(value[key], types.get(key))]))
    }
    if (type === 'string' || type === 'bool') return value
    return type === 'address' || type.startsWith('bytes') ? unhex(value) : BigInt(value)
  }
}

// priceE18PerDeviceMs is price_e18_per_device_ms: digits stay with the letter before them.
function wireName (value, field) {
  const name = snake(field)
  if (!(name in value)) throw new Error(`no field ${name}`)
  return name
}

export function domainSeparator (name, version, chainId, contract) {
  const type = new Type('EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)')
  const words = [['string', name], ['string', version], ['uint256', chainId], ['address', contract]]
  return keccak(joined(keccak(utf8.encode(type.text)), ...words.map(([each, value]) => type.word(each, value))))
}

const GENESIS = keccak(utf8.encode('hansa network 1'))
const LEDGER = keccak(joined(utf8.encode('hansa-ledger-v1'), GENESIS)).slice(-20)
export const DOMAIN = domainSeparator('HansaLedger', '1', 0, LEDGER)

export const digestOf = (type, document, domain = DOMAIN) =>
  keccak(joined(Uint8Array.of(0x19, 0x01), domain, type.structHash(document)))

export const signed = (type, document, secret) =>
  ({ document, signature: signDigest(digestOf(type, document), secret) })

// Section 4: frames.

function wide (value) {
  if (typeof value === 'bigint') {
    if (value < 2n ** 32n && value >= -(2n ** 31n)) return Number(value) // a larger one would go out as a float
    if (value < 2n ** 64n && value >= -(2n ** 63n)) return value
    const bits = (value < 0n ? -value : value).toString(2).length
    const size = Math.floor(bits / 8) + 1
    return unhex(BigInt.asUintN(size * 8, value).toString(16).padStart(size * 2, '0'))
  }
  if (Array.isArray(value)) return value.map(wide)
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array) return value
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, wide(item)]))
}

export const frame = (name, fields) => pack([VERSION, name, wide(fields)], { useBigInt64: true })

export function read (data, ...names) {
  const [version, name, fields] = unpack(data, { useBigInt64: true })
  if (Number(version) !== VERSION || !names.includes(name)) throw new Error(`version ${version}, ${name}`)
  return [name, fields]
}

// Section 3: requests.

class Reader {
  constructor (stream) {
    this.bytes = byteStream(stream)
  }

  async exactly (size) {
    return size === 0 ? new Uint8Array(0) : (await this.bytes.read({ bytes: size })).slice()
  }

  async length () {
    return Buffer.from(await this.exactly(4)).readUInt32BE(0)
  }
}

const u32 = (number) => unhex(number.toString(16).padStart(8, '0'))

export async function ask (node, peer, protocol, data) {
  const stream = await node.dialProtocol(peer, protocol)
  const reader = new Reader(stream)
  stream.send(joined(u32(data.length), data))
  const [status] = await reader.exactly(1)
  const body = await reader.exactly(await reader.length())
  await stream.close()
  if (status !== 0) throw new Error(`refused: ${new TextDecoder().decode(body)}`)
  return body
}

export async function serve (node, protocol, answer) {
  await node.handle(protocol, async (stream, connection) => {
    try {
      const reader = new Reader(stream)
      const data = await reader.exactly(await reader.length())
      const body = await answer(data, connection.remotePeer)
      stream.send(joined(Uint8Array.of(0), u32(body.length), body))
      await stream.close()
    } catch (fault) {
      stream.abort(fault)
    }
  })
}
