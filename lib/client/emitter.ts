/** Typed events over an EventTarget: a listener that throws is as loud as anywhere else, and keeps nobody from what they do. */
export type Emit<Events extends object> = <Name extends keyof Events & string>(name: Name, detail: Events[Name]) => void

export function createEmitter<Events extends object> () {
  const target = new EventTarget()
  const emit: Emit<Events> = (name, detail) => { target.dispatchEvent(new CustomEvent(name, { detail })) }
  /** @returns what takes the listener off again */
  const on = <Name extends keyof Events & string>(name: Name, listener: (event: Events[Name]) => void): () => void => {
    const heard = (event: Event): void => { listener((event as CustomEvent<Events[Name]>).detail) }
    target.addEventListener(name, heard)
    return () => { target.removeEventListener(name, heard) }
  }
  return [on, emit] as const
}
