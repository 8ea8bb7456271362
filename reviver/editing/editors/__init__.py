"""Editors: pure functions from the matrices of one round to the update of one weight, registered by name."""

from reviver.editing.editors.base import (
    DenseUpdate,
    Editor,
    FactoredUpdate,
    LayerProblem,
    Memory,
    ProtectedSpace,
    Solution,
    Update,
    setting,
)
from reviver.editing.editors.moments import SecondMoment
from reviver.editing.editors.registry import editor_names, get_editor

__all__ = [
    "DenseUpdate",
    "Editor",
    "FactoredUpdate",
    "LayerProblem",
    "Memory",
    "ProtectedSpace",
    "SecondMoment",
    "Solution",
    "Update",
    "editor_names",
    "get_editor",
    "setting",
]
