/* Browsers refuse workers to pages that are opened as files. The search of the site then runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.title = "search"
      this.ready = new Promise((resolve) => {
        const place = () => {
          document.body.append(frame)
          const inner = frame.contentWindow
          inner.postMessage = (data) =>
            this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }))
          inner.importScripts = () => Promise.resolve()
          const script = inner.document.createElement("script")
          script.src = new URL(address, location.href)
          script.onload = () => resolve(inner)
          inner.document.body.append(script)
        }
        document.body ? place() : addEventListener("DOMContentLoaded", place)
      })
    }

    postMessage(data) {
      this.ready.then((inner) =>
        inner.dispatchEvent(new inner.MessageEvent("message", { data: structuredClone(data) }))
      )
    }

    set onmessage(listener) {
      this.addEventListener("message", listener)
    }

    terminate() {}
  }
}
