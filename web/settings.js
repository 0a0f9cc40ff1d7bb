// The API key and the allowed hosts are user settings: a workflow may come from anyone, so it must not hold a key, nor decide
// where prompts are sent.

import { app } from "../../scripts/app.js"

app.registerExtension({
  name: "RealignDiff.Settings",
  settings: [
    {
      id: "RealignDiff.LLM.Host",
      category: ["RealignDiff", "LLM", "Host"],
      name: "Host of the API key",
      tooltip:
        "The only host that gets the key, e.g. api.openai.com, with its port and http:// if the address has them. " +
        "Without http:// the key is sent over https only, except to this machine and private addresses.",
      type: "text",
      defaultValue: "",
      attrs: { placeholder: "api.openai.com", spellcheck: false },
    },
    {
      id: "RealignDiff.LLM.ApiKey",
      category: ["RealignDiff", "LLM", "ApiKey"],
      name: "API key",
      tooltip:
        "For the LLM node with an OpenAI-compatible server. Stored as plain text in ComfyUI's user settings, and " +
        "sent to the host above only. You can use REALIGN_LLM_API_KEY in ComfyUI's environment instead.",
      type: "text",
      defaultValue: "",
      attrs: { type: "password", autocomplete: "off", spellcheck: false },
    },
    {
      id: "RealignDiff.LLM.AllowedHosts",
      category: ["RealignDiff", "LLM", "AllowedHosts"],
      name: "Allowed hosts",
      tooltip:
        "Servers on other machines that the LLM node may use, separated by commas, e.g. https://api.openai.com. They " +
        "get the prompt and the tags of the image. This machine and the host of the API key are always allowed.",
      type: "text",
      defaultValue: "",
      attrs: { placeholder: "https://api.openai.com", spellcheck: false },
    },
  ],
})
