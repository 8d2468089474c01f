/** What counts as one address: an IPv4 address, or the /64 that an IPv6 subscriber is given (RFC 6177 §2). */
import { createHash } from 'node:crypto'
import { isIPv4, isIPv6 } from 'node:net'

const GROUPS = 8
/** No address is longer, with a zone and a port. */
const LONGEST = 64
const PREFIX_GROUPS = 4
/** Before an IPv4 address that is written as IPv6 (RFC 4291 §2.5.5.2), or that a translator made one of (RFC 6052 §2.1). */
const EMBEDDING = new Set(['0:0:0:0:0:ffff', '64:ff9b:0:0:0:0'])
/** Proxies write ports behind addresses: `192.0.2.1:80`, `[2001:db8::1]:80`. */
const WITH_PORT = /^(?:\[(.+)\](?::\d+)?|([\d.]+):\d+)$/

/**
 * null: there is no address to count by, and no bucket to share with others that have none. What is no address, and was
 * given as one by a proxy that is trusted, counts as it stands, or as its hash where it is long.
 */
export function addressKey (ip: string | undefined): string | null {
  if (ip === undefined || ip === '') return null
  const [, bracketed, dotted] = WITH_PORT.exec(ip) ?? []
  const [address = ''] = (bracketed ?? dotted ?? ip).split('%', 1)
  if (isIPv4(address)) return address
  if (!isIPv6(address)) return ip.length > LONGEST ? createHash('sha256').update(ip).digest('base64url') : ip
  const groups = groupsOf(address.toLowerCase())
  if (EMBEDDING.has(groups.slice(0, 6).join(':'))) return groups.slice(6).flatMap(bytesOf).join('.')
  return groups.slice(0, PREFIX_GROUPS).join(':') + '::/64'
}

/** All eight, without leading zeros. */
function groupsOf (address: string): string[] {
  const [head = '', tail = ''] = address.split('::', 2).map(part => part.replace(/[\d.]+$/, inGroups))
  const before = head === '' ? [] : head.split(':')
  const after = tail === '' ? [] : tail.split(':')
  const zeros = Array.from({ length: GROUPS - before.length - after.length }, () => '0')
  return [...before, ...zeros, ...after].map(group => group.replace(/^0+(?=.)/, ''))
}

/** A dotted quad at the end stands for two groups. */
function inGroups (end: string): string {
  if (!end.includes('.')) return end
  const [a = 0, b = 0, c = 0, d = 0] = end.split('.').map(Number)
  return `${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`
}

function bytesOf (group: string): number[] {
  const value = parseInt(group, 16)
  return [value >> 8, value & 255]
}
