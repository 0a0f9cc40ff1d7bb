// A server of another machine is asked only after its user has allowed it: see nodes/host/consent.py. What stopped for want of
// that says so here, and is queued again once it is allowed.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const EVENT = "realigndiff.consent"
const SECONDS_TO_END = 5
const open = new Set() // hosts that are being asked about: a batch of prompts stops once for each

const question = (host) =>
  `This workflow asks a language model on ${host}. It would get the prompt and the tags of the image. Allow it?`

/** Whether the user allows it; frontends without dialogs of their own have the browser's. */
async function allows(host) {
  const dialog = app.extensionManager?.dialog
  if (!dialog?.confirm) return window.confirm(question(host))
  return (await dialog.confirm({ title: "RealignDiff", message: question(host) })) === true
}

async function allow(host, id) {
  const settings = app.extensionManager?.setting
  const listed = settings ? settings.get(id) : app.ui.settings.getSettingValue(id, "")
  const value = [listed, host].filter(Boolean).join(", ")
  await (settings ? settings.set(id, value) : app.ui.settings.setSettingValueAsync(id, value))
}

/** Resolves when the prompt has ended, so that ComfyUI's own message lies below the question. */
const ended = () =>
  new Promise((resolve) => {
    api.addEventListener("execution_error", () => setTimeout(resolve, 300), { once: true })
    setTimeout(resolve, SECONDS_TO_END * 1000)
  })

async function ask({ host, setting }) {
  if (open.has(host)) return
  open.add(host)
  try {
    await ended()
    if (!(await allows(host))) return
    await allow(host, setting)
    await app.queuePrompt(0, 1)
  } finally {
    open.delete(host)
  }
}

app.registerExtension({
  name: "RealignDiff.Consent",
  setup() {
    api.addEventListener(EVENT, (event) => ask(event.detail))
  },
})
