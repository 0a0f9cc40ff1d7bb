// The key of an LLM server and who may be asked, as user settings: a workflow may come from anyone, must never hold a key,
// and must not send a prompt where its user does not want it.

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
    {
      id: "RealignDiff.LLM.AllowedHosts",
      category: ["RealignDiff", "LLM", "AllowedHosts"],
      name: "Allowed hosts",
      tooltip:
        "Servers of other machines that the LLM node may ask, separated by commas, e.g. https://api.openai.com. They get the " +
        "prompt and the tags of the image. This machine's servers and the host of the API key need not be listed.",
      type: "text",
      defaultValue: "",
      attrs: { placeholder: "https://api.openai.com", spellcheck: false },
    },
  ],
})
