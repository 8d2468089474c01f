/** The same guard on HTTP, and a bad token on purpose: what a page is told of a refusal. */
import { send } from './access.js'
import { BEARER_PREFIX, SUBPROTOCOL } from '/lib/protocol.js'
import { at, element, time, trim } from './show.js'
import { explain } from './words.js'

const KEPT = 20
const answers = at('answers')

for (const path of ['/me', '/admin']) {
  at(`get${path.replace('/', '-')}`).addEventListener('click', async () => {
    try {
      const answer = await send(path)
      write(answer.ok ? 'good' : 'bad', `GET ${path}`, `${answer.status} ${await answer.text()}`)
    } catch {
      write('bad', `GET ${path}`, 'The server does not answer')
    }
  })
}

/** Offered beside the subprotocol, so that the server can say why. The library's client would not send it twice. */
at('bad-token').addEventListener('click', () => {
  const socket = new WebSocket(`${window.location.origin.replace('http', 'ws')}/live`, [SUBPROTOCOL, `${BEARER_PREFIX}not.a.token`])
  socket.addEventListener('message', ({ data }) => {
    const { type, auth } = JSON.parse(data)
    if (type !== 'hello') return
    write('note', 'A bad token', `Let in by the ${auth.authType} all the same: fallbackFrom ${auth.fallbackFrom}`)
    socket.close(1000)
  })
  socket.addEventListener('close', ({ code }) => { if (code !== 1000) write('bad', 'A bad token', explain(code)) })
})

function write (kind, what, text) {
  const item = element('li', [element('time', time(Date.now())), element('b', what), element('code', text)])
  item.dataset.kind = kind
  answers.prepend(item)
  trim(answers, KEPT)
}
