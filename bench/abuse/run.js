/** Prints one table of what abuse costs, and what it costs to be ready for it: all of it, or the parts that are named. */
import { printParts } from '../table.js'
import { measureMemory, measureRedis } from './counting.js'
import { measureRefusing, measureTelling } from './handshakes.js'
import { measureMessages } from './message.js'

await printParts({
  counting: measureMemory, redis: measureRedis, refusing: measureRefusing, message: measureMessages, telling: measureTelling
}, process.argv.slice(2))
