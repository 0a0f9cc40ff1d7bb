// A language model server on another machine is used only with the user's consent: see nodes/host/consent.py. When a prompt
// stops without it, the user is asked here, and the prompt is queued again after a yes.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const EVENT = "realigndiff.consent"
const SECONDS_TO_END = 5
const open = new Set() // hosts with an open question: each prompt of a batch sends the event

const question = (host) =>
  `This workflow asks a language model on ${host}. It would get the prompt and the tags of the image. Allow it?`

/** Whether the user allows the host; frontends without dialogs use the browser's. */
async function allows(host) {
  const dialog = app.extensionManager?.dialog
  if (!dialog?.confirm) return window.confirm(question(host))
  return (await dialog.confirm({ title: "RealignDiff", message: question(host) })) === true
}

async function allow(host, id) {
  const settings = app.extensionManager?.setting
  const hosts = settings ? settings.get(id) : app.ui.settings.getSettingValue(id, "")
  const value = [hosts, host].filter(Boolean).join(", ")
  await (settings ? settings.set(id, value) : app.ui.settings.setSettingValueAsync(id, value))
}

/** Resolves when the prompt has ended, so that the question is on top of ComfyUI's error message. */
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
