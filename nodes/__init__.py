"""The ComfyUI face of the pack. Imported by the host only: see `comfy_entrypoint` in the root.

Nodes are thin: each turns its inputs into a call of the packages beside this one. Whatever is slow to import is
imported when a node runs, so that the pack loads at once, and also where a library is missing.
"""

from comfy_api.latest import ComfyExtension, io

from .attention_maps import AttentionMaps
from .caption import Caption, CaptionReward
from .demo_models import LoadDemoModels
from .host import model_folders, users
from .host.faults import print_whatever_comes, printable_faults
from .likelihoods import Likelihoods
from .llm import LoadLlm
from .loaders import LoadBlip2, LoadGroundedSam, LoadRam
from .masks import GroundedSamMasks
from .ranking import RankImages
from .realign import ApplyRegions, RealignKSampler, RealignModel
from .regions import EditRegions, PreviewRegions, RegionFromMask
from .rewards import LoadReward, SamReward
from .tags import RamTags

NODES: list[type[io.ComfyNode]] = [
    RealignKSampler,
    RealignModel,
    ApplyRegions,
    RegionFromMask,
    EditRegions,
    PreviewRegions,
    AttentionMaps,
    Caption,
    CaptionReward,
    RankImages,
    RamTags,
    Likelihoods,
    GroundedSamMasks,
    LoadBlip2,
    LoadRam,
    LoadGroundedSam,
    LoadReward,
    SamReward,
    LoadLlm,
    LoadDemoModels,
]
for node in NODES:
    printable_faults(node)
print_whatever_comes()
model_folders.register()
users.register()


class RealignExtension(ComfyExtension):
    """The pack's nodes, for ComfyUI's V3 loader."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
