// A node with text among its results (captions, scores, a table of regions) shows it in a read-only text field.

import { app } from "../../scripts/app.js"

const FIELD = "told" // kept, as other extensions may look for it
const MIN_HEIGHT = 48
const MAX_HEIGHT = 112
const LINE_HEIGHT = 16

// These have the field from the start, so they do not grow on their first run; other nodes get it with their first text.
const TEXT_NODES = new Set([
  "RealignCaption",
  "RealignCaptionReward",
  "RealignRankImages",
  "RealignRamTags",
  "RealignLikelihoods",
  "RealignGroundedSamMasks",
  "RealignPreviewRegions",
])
// These leave the remaining space to their picture.
const PICTURE_NODES = new Set(["RealignGroundedSamMasks", "RealignPreviewRegions"])
// The text of these has columns.
const TABLE_NODES = new Set(["RealignRankImages"])

const isOurs = (node) => Boolean(node?.comfyClass?.startsWith("Realign"))

/** The node's text field, made on the first call. */
function textField(node) {
  const existing = node.widgets?.find((widget) => widget.name === FIELD)
  if (existing) return existing

  const { widget } = app.widgets.STRING(node, FIELD, ["STRING", { multiline: true, default: "" }], app)
  widget.label = "shows"
  widget.serialize = false // not in the saved workflow
  widget.options.serialize = false // not in the prompt
  widget.options.read_only = true
  widget.options.getMinHeight = () => heightFor(widget.value)
  if (PICTURE_NODES.has(node.comfyClass)) widget.options.getMaxHeight = () => MAX_HEIGHT
  const element = widget.inputEl ?? widget.element
  if (element) {
    element.readOnly = true
    element.placeholder = "Run to see"
    if (TABLE_NODES.has(node.comfyClass)) Object.assign(element.style, { whiteSpace: "pre", fontFamily: "monospace" })
  }
  return widget
}

function heightFor(text) {
  const lines = String(text ?? "").split("\n").length
  return Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, (lines + 1) * LINE_HEIGHT))
}

/** Show the text of an execution; the node grows if it must, and never shrinks. */
function show(node, output) {
  if (!isOurs(node) || output?.text == null) return
  const text = [output.text].flat().join("\n")
  if (!text && !node.widgets?.some((widget) => widget.name === FIELD)) return // no text, and no field to clear
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
    if (!TEXT_NODES.has(node.comfyClass)) return
    textField(node)
    node.setSize(node.computeSize())
  },

  // Results that are shown again without a run, e.g. after another workflow's tab was open.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) show(app.graph.getNodeById(id), output)
  },
})
