/** Prints one table of what many clients do at once, and what an idle one costs: all of it, or the parts that are named. */
import { printParts } from '../table.js'
import { measureCrowds } from './crowds.js'
import { measureIdle } from './idle.js'

await printParts({ crowds: measureCrowds, idle: measureIdle }, process.argv.slice(2))
