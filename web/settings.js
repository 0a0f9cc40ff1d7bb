// The key of an LLM server, as user settings: a workflow may come from anyone and must never hold a key.

import { app } from "../../scripts/app.js"

app.registerExtension({
  name: "RealignDiff.Settings",
  settings: [
    {
      id: "RealignDiff.LLM.Host",
      category: ["RealignDiff", "LLM", "Host"],
      name: "Host of the API key",
      tooltip:
        "The only host that the key is sent to, e.g. api.openai.com, with its port and http:// where the address has them. " +
        "Without http:// a key goes over https only, except to this machine and private addresses.",
      type: "text",
      defaultValue: "",
      attrs: { placeholder: "api.openai.com", spellcheck: false },
    },
    {
      id: "RealignDiff.LLM.ApiKey",
      category: ["RealignDiff", "LLM", "ApiKey"],
      name: "API key",
      tooltip:
        "For the LLM node with an OpenAI-compatible server. Kept as plain text in ComfyUI's user settings on the server; " +
        "sent to the host above and nowhere else. REALIGN_LLM_API_KEY in the server's environment does the same.",
      type: "text",
      defaultValue: "",
      attrs: { type: "password", autocomplete: "off", spellcheck: false },
    },
  ],
})
