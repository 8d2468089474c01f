/** Listeners by event. One that throws does not keep the others, or the client, from what they do. */
export function createEmitter<Events extends object> () {
  const listeners = new Map<keyof Events, Set<(event: never) => void>>()
  return {
    /** @returns what takes the listener off again */
    on: <Name extends keyof Events>(name: Name, listener: (event: Events[Name]) => void): () => void => {
      const those = listeners.get(name) ?? new Set()
      listeners.set(name, those.add(listener))
      return () => { those.delete(listener) }
    },
    emit: <Name extends keyof Events>(name: Name, event: Events[Name]): void => {
      for (const listener of [...listeners.get(name) ?? []]) {
        try {
          (listener as (event: Events[Name]) => void)(event)
        } catch (error) {
          // As loud as it would be anywhere else.
          setTimeout(() => { throw error })
        }
      }
    }
  }
}

export type Emit<Events extends object> = <Name extends keyof Events>(name: Name, event: Events[Name]) => void
