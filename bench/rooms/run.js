/** Prints one table of what rooms and rules by message type cost: all of it, or the parts that are named. */
import { printParts } from '../table.js'
import { measureJoins, measureMemory } from './members.js'
import { measureMessages } from './messages.js'
import { measureNodes } from './nodes.js'
import { measurePublish } from './publish.js'

await printParts({ publish: measurePublish, joins: measureJoins, memory: measureMemory, nodes: measureNodes, messages: measureMessages }, process.argv.slice(2))
