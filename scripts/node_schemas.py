"""The nodes' schemas, read without ComfyUI: stand-ins take the place of its modules while the nodes are imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
PACK = "realigndiff_without_comfyui"
"""The pack is imported a second time under this name, so that the nodes that a running ComfyUI has imported stay."""
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "aiohttp"}


class _Socket:
    """A socket type, such as io.Image; it records what its inputs and outputs are declared with."""

    def __init__(self, type: str) -> None:
        self.type = type

    def Input(self, id: str, types: Any = None, *, optional: bool = False, **options: Any) -> SimpleNamespace:
        type_ = ",".join(kind.type for kind in types) if types else self.type
        if "force_input" in options:
            options["forceInput"] = options.pop("force_input")
        return SimpleNamespace(id=id, type=type_, kind="optional" if optional else "required", options=options)

    def Output(self, *, display_name: str, tooltip: str | None = None, is_output_list: bool = False) -> SimpleNamespace:
        return SimpleNamespace(type=self.type, name=display_name, tooltip=tooltip, is_list=is_output_list)


class _Io:
    """`comfy_api.latest.io`."""

    ComfyNode, Schema, NodeOutput, Custom = object, SimpleNamespace, SimpleNamespace, _Socket

    def __getattr__(self, name: str) -> _Socket:
        return _Socket(name.upper())


class _Module(ModuleType):
    """A module of ComfyUI in which everything exists and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HOST else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "comfy_api.latest":
            vars(module).update(io=_Io(), ComfyExtension=object)


@contextmanager
def nodes_without_comfyui() -> Iterator[ModuleType]:
    """The package `nodes`, importable for as long as the context lasts."""
    replaced = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in HOST}
    sys.meta_path.insert(0, finder := _StandIns())
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None  # a file's spec
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    try:
        yield importlib.import_module(f"{PACK}.nodes")
    finally:
        sys.meta_path.remove(finder)
        for name in list(sys.modules):
            if name.partition(".")[0] in (*HOST, PACK):
                del sys.modules[name]
        sys.modules.update(replaced)


def object_info() -> dict[str, dict[str, Any]]:
    """The nodes in the form of ComfyUI's `/object_info`, sorted by id; lists of files and of samplers are empty."""
    with nodes_without_comfyui() as nodes:
        schemas = [node.define_schema() for node in nodes.NODES]
    return {schema.node_id: _info(schema) for schema in sorted(schemas, key=lambda schema: schema.node_id)}


def _info(schema: SimpleNamespace) -> dict[str, Any]:
    inputs = {kind: {} for kind in ("required", "optional")}
    for one in schema.inputs:
        inputs[one.kind][one.id] = [one.type, one.options]
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "description": schema.description,
        "input": inputs,
        "input_order": {kind: list(group) for kind, group in inputs.items()},
        "output": [one.type for one in schema.outputs],
        "output_name": [one.name for one in schema.outputs],
        "output_is_list": [one.is_list for one in schema.outputs],
        "output_tooltips": [one.tooltip for one in schema.outputs],
    }
