"""The pack's ComfyUI nodes. Only ComfyUI imports this package: see `comfy_entrypoint` in the root.

Each module here defines nodes and ends with the list NODES of them. A node turns its inputs into a call of the other
packages. What is slow to import is imported when a node runs, so that the pack loads at once and without optional
libraries.
"""

from importlib import import_module
from pkgutil import iter_modules

from comfy_api.latest import ComfyExtension, io

from .host import model_folders, prompt_users
from .host.printable_errors import escape_unprintable_output, with_printable_errors


def find_nodes() -> list[type[io.ComfyNode]]:
    """The nodes of all modules in this folder."""
    modules = [module.name for module in iter_modules(__path__) if not module.ispkg]
    return [node for name in modules for node in import_module(f".{name}", __name__).NODES]


escape_unprintable_output()
model_folders.register()
prompt_users.register()
NODES = [with_printable_errors(node) for node in find_nodes()]


class RealignExtension(ComfyExtension):
    """The pack's nodes, for ComfyUI's V3 loader."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
