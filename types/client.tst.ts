import { describe, expect, test } from 'tstyche'
import { WebSocket } from 'ws'
import { CLOSE, createAuthSocket, type AuthSocket, type AuthSocketOptions, type Attach, type CloseAction, type Fallback, type GetToken, type State } from '../lib/client/index.js'
import type { ErrorFrame } from '../lib/protocol.js'

describe('createAuthSocket', () => {
  test('needs an address; what is not named has a default', () => {
    expect(createAuthSocket).type.toBeCallableWith({ url: '/live' })
    expect(createAuthSocket).type.toBeCallableWith({ url: () => new URL('wss://a'), getToken: async () => null, WebSocket, tabs: false as const })
    expect(createAuthSocket).type.not.toBeCallableWith({})
    expect(createAuthSocket).type.not.toBeCallableWith({ url: '/live', getTokn: () => 'a' })
    expect<AuthSocketOptions['attach']>().type.toBe<Attach | undefined>()
    expect<GetToken>().type.not.toBeAssignableFrom<() => undefined>()
    expect<Fallback>().type.toBeAssignableFrom<{ poll: string }>()
    expect<Fallback>().type.not.toBeAssignableFrom<{ after: number }>()
  })

  test('what it tells can be taken apart', () => {
    const socket = createAuthSocket({ url: '/live' })
    expect(socket).type.toBe<AuthSocket>()
    expect(socket.state).type.toBe<State>()
    socket.on('message', ({ room, payload, data, id }) => {
      expect(room).type.toBe<string | null>()
      expect(payload).type.toBe<unknown>()
      expect(data).type.toBe<unknown>()
      expect(id).type.toBe<string | number | undefined>()
    })
    socket.on('error', event => {
      if (event.stage === 'refused') expect(event.error).type.toBe<ErrorFrame>()
      else expect(event.error).type.toBe<unknown>()
    })
    socket.on('close', ({ action, terminal }) => {
      expect(action).type.toBe<CloseAction>()
      expect(terminal).type.toBe<boolean>()
    })
    socket.on('logout', ({ by }) => { expect(by).type.toBe<'self' | 'tab' | 'server'>() })
    expect(socket.on).type.not.toBeCallableWith('opened', () => {})
    expect(socket.on('degraded', () => {})).type.toBe<() => void>()
    expect(CLOSE.Revoked.code).type.toBe<4006>()
  })

  test('sends text and bytes, and into rooms what JSON holds', () => {
    const socket = createAuthSocket({ url: '/live' })
    expect(socket.send).type.toBeCallableWith(new Uint8Array(1))
    expect(socket.send).type.not.toBeCallableWith({ a: 1 })
    expect(socket.publish('a', { b: 1 }, 7)).type.toBe<boolean>()
  })
})
