/** Listeners by event. One that throws does not keep the others, or the client, from what they do. */
export class Emitter<Events extends Record<string, unknown>> {
  readonly #listeners = new Map<keyof Events, Set<(event: never) => void>>()

  /** @returns what takes the listener off again */
  on<Name extends keyof Events> (name: Name, listener: (event: Events[Name]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set()
    this.#listeners.set(name, listeners.add(listener))
    return () => { listeners.delete(listener) }
  }

  emit<Name extends keyof Events> (name: Name, event: Events[Name]): void {
    for (const listener of [...this.#listeners.get(name) ?? []]) {
      try {
        (listener as (event: Events[Name]) => void)(event)
      } catch (error) {
        // As loud as it would be anywhere else.
        setTimeout(() => { throw error })
      }
    }
  }
}
