/** Prints one table of what connections cost once they are open: all of it, or the parts that are named. */
import { printParts } from '../table.js'
import { measureMemory } from './memory.js'
import { measureMessages } from './message.js'
import { measureStorms } from './storm.js'

await printParts({ message: measureMessages, memory: measureMemory, storm: measureStorms }, process.argv.slice(2))
