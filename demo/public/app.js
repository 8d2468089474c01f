/** The page: each part of it sees to itself. Here is what is asked over HTTP, and how it begins. */
import { headers, readSession } from './credentials.js'
import './live.js'
import './feed.js'
import './roles.js'
import { at, bringIntoView, log, write } from './show.js'

for (const path of ['/me', '/admin']) {
  at(`get${path.replace('/', '-')}`).addEventListener('click', async () => {
    write('out', `GET ${path}`)
    try {
      const answer = await fetch(path, { headers: headers() })
      write(answer.ok ? 'in' : 'end', `${answer.status} ${await answer.text()}`)
    } catch {
      write('end', 'The server does not answer')
    }
    bringIntoView(log)
  })
}

await readSession()
