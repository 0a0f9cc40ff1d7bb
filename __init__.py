"""RealignDiff for ComfyUI: text-to-image models that draw what the prompt says.

Importing this package imports neither torch nor ComfyUI: the host calls `comfy_entrypoint` when it wants the nodes.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI (V3 schema) once; returns the extension that lists the pack's nodes."""
    from .nodes import RealignExtension

    return RealignExtension()
