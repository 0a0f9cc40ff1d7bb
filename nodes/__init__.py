"""The ComfyUI face of the pack. Imported by the host only: see `comfy_entrypoint` in the root."""

from comfy_api.latest import ComfyExtension, io

NODES: list[type[io.ComfyNode]] = []


class RealignExtension(ComfyExtension):
    """The pack's nodes, for ComfyUI's V3 loader."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
