/** Messages for `for await`: they wait for whoever reads, until the client closes. */
import type { ClientMessage } from './types.js'

export interface MessageStream extends AsyncIterator<ClientMessage> {
  push: (message: ClientMessage) => void
  end: () => void
}

export function createStream (onReturn: (stream: MessageStream) => void): MessageStream {
  const waiting: ClientMessage[] = []
  const readers: Array<(result: IteratorResult<ClientMessage>) => void> = []
  let isOver = false
  const stream: MessageStream = {
    push (value) {
      const reader = readers.shift()
      if (reader === undefined) waiting.push(value)
      else reader({ value, done: false })
    },
    end () {
      isOver = true
      for (const reader of readers.splice(0)) reader({ value: undefined, done: true })
    },
    async next () {
      const value = waiting.shift()
      if (value !== undefined) return { value, done: false }
      return isOver ? { value, done: true } : new Promise(resolve => { readers.push(resolve) })
    },
    async return () {
      waiting.length = 0
      stream.end()
      onReturn(stream)
      return { value: undefined, done: true }
    }
  }
  return stream
}
