// Nodes that tell something in words (a caption, a score, a table of regions) show it in a read-only text field.

import { app } from "../../scripts/app.js"

const FIELD = "told"
const MIN_HEIGHT = 48
const MAX_HEIGHT = 112
const LINE_HEIGHT = 16

// These have the field from the start, so that they do not grow on their first run; any other node of ours gets it then.
const TELLING = new Set([
  "RealignCaption",
  "RealignCaptionReward",
  "RealignRankImages",
  "RealignRamTags",
  "RealignLikelihoods",
  "RealignGroundedSamMasks",
  "RealignPreviewRegions",
])
// In these the room that is left is the picture's.
const PICTURING = new Set(["RealignGroundedSamMasks", "RealignPreviewRegions"])
// What these tell is in columns.
const TABULAR = new Set(["RealignRankImages"])

const isOurs = (node) => Boolean(node?.comfyClass?.startsWith("Realign"))

/** The node's text field; made on the first call, the same one ever after. */
function textField(node) {
  const present = node.widgets?.find((widget) => widget.name === FIELD)
  if (present) return present

  const { widget } = app.widgets.STRING(node, FIELD, ["STRING", { multiline: true, default: "" }], app)
  widget.label = "shows"
  widget.serialize = false // not in the saved workflow
  widget.options.serialize = false // not in the prompt
  widget.options.read_only = true
  widget.options.getMinHeight = () => heightFor(widget.value)
  if (PICTURING.has(node.comfyClass)) widget.options.getMaxHeight = () => MAX_HEIGHT
  const element = widget.inputEl ?? widget.element
  if (element) {
    element.readOnly = true
    element.placeholder = "Run to see"
    if (TABULAR.has(node.comfyClass)) Object.assign(element.style, { whiteSpace: "pre", fontFamily: "monospace" })
  }
  return widget
}

function heightFor(text) {
  const lines = String(text ?? "").split("\n").length
  return Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, (lines + 1) * LINE_HEIGHT))
}

/** Show what an execution said; the node becomes taller where it must, never smaller. */
function show(node, output) {
  if (!isOurs(node) || output?.text == null) return
  const text = [output.text].flat().join("\n")
  if (!text && !node.widgets?.some((widget) => widget.name === FIELD)) return // nothing to tell, and no field to clear
  const field = textField(node)
  field.value = text
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  node.setDirtyCanvas?.(true, true)
}

app.registerExtension({
  name: "RealignDiff.ShowText",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Realign")) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      show(this, output)
    }
  },

  nodeCreated(node) {
    if (!TELLING.has(node.comfyClass)) return
    textField(node)
    node.setSize(node.computeSize())
  },

  // Results that are shown again without a run, e.g. when another workflow's tab was open meanwhile.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) show(app.graph.getNodeById(id), output)
  },
})
