/** What counts as one address: an IPv4 address, or the /64 that an IPv6 subscriber is given (RFC 6177 §2). */
import { isIPv4, isIPv6 } from 'node:net'

const GROUPS = 8
const PREFIX_GROUPS = 4

/** null: there is no address to count by, and no bucket to share with others that have none. */
export function addressKey (ip: string | undefined): string | null {
  if (ip === undefined) return null
  const [address = ''] = ip.split('%', 1)
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1] ?? address
  if (isIPv4(mapped)) return mapped
  if (!isIPv6(address)) return null
  const [head = '', tail] = address.toLowerCase().split('::', 2)
  const before = groupsOf(head)
  const after = groupsOf(tail ?? '')
  const zeros = Array.from({ length: Math.max(0, GROUPS - before.length - after.length) }, () => '0')
  return [...before, ...zeros, ...after].slice(0, PREFIX_GROUPS).join(':') + '::/64'
}

/** A dotted quad at the end stands for two groups, which are never among the first four of anything but a mapped address. */
function groupsOf (part: string): string[] {
  return part === '' ? [] : part.split(':').flatMap(group => group.includes('.') ? ['0', '0'] : [group.replace(/^0+(?=.)/, '')])
}
