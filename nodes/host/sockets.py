"""The types of the sockets that connect the pack's nodes."""

from comfy_api.latest import io

Blip2 = io.Custom("REALIGN_BLIP2")
"""`ManagedModel[Blip2Models]`: a captioner and, if loaded, the text encoder of the caption reward."""
Tagger = io.Custom("REALIGN_TAGGER")
"""`ManagedModel[perception.tagger.Tagger]`."""
GroundedSam = io.Custom("REALIGN_GROUNDED_SAM")
"""`ManagedModel[perception.grounded_sam.GroundedSam]`."""
Llm = io.Custom("REALIGN_LLM")
"""A `language.model.LanguageModel` with the attribute `offline`, the offline scorer for what it leaves out."""
Reward = io.Custom("REALIGN_REWARD")
"""`ManagedModel[rewards.reward.Reward]`."""
Tags = io.Custom("REALIGN_TAGS")
"""For each image of a batch a list of `perception.tagger.Tag`."""
Regions = io.Custom("REALIGN_REGIONS")
"""A tuple of `core.regions.RegionSet`: one per image of a batch, or one for all."""
BoundingBox = io.Custom("BOUNDING_BOX")
"""ComfyUI's own: `{x, y, width, height}` in pixels; one, a list, or a list for each image."""
