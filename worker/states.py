"""From a job's state to plain arrays, and back into the types that the job gave.

Averaging needs numbers in arrays; job code has whatever its framework has. So every leaf that offers numbers (numpy
arrays, torch tensors, anything with ``__array__``, Python floats and ints) becomes an array, and what comes back is put
into the same types again. torch is never imported here: a job that has none must not pay for it, and a job that has
tensors has imported it already.
"""

import sys
from typing import Any

import numpy as np


def to_arrays(tree: Any) -> Any:
    """The same tree with arrays in place of everything that has numbers. They may be the job's own memory."""
    if isinstance(tree, dict):
        return {str(key): to_arrays(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(to_arrays(value) for value in tree)
    if isinstance(tree, list):
        return [to_arrays(value) for value in tree]
    if tree is None or isinstance(tree, (str, bool)):
        return tree
    if isinstance(tree, (int, float)):
        return np.asarray(tree)
    return _array_of(tree)


def for_keeping(tree: Any) -> Any:
    """Arrays for everything that has an array, while plain numbers stay what they are."""
    if isinstance(tree, dict):
        return {str(key): for_keeping(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        kept = [for_keeping(value) for value in tree]
        return kept if isinstance(tree, list) else tuple(kept)
    if tree is None or isinstance(tree, (str, bool, int, float)):
        return tree
    return to_arrays(tree)


def to_work_on(tree: Any) -> Any:
    """The same tree with arrays of its own, which may be changed: what was decoded are views of bytes."""
    if isinstance(tree, dict):
        return {key: to_work_on(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        values = [to_work_on(value) for value in tree]
        return values if isinstance(tree, list) else tuple(values)
    return tree.copy() if isinstance(tree, np.ndarray) else tree


def back_into(template: Any, tree: Any) -> Any:
    """``tree``, which `to_arrays` could have made of ``template``, in the types of ``template``."""
    if isinstance(template, dict):
        return {key: back_into(value, tree[str(key)]) for key, value in template.items()}
    if isinstance(template, tuple):
        values = [back_into(one, other) for one, other in zip(template, tree, strict=True)]
        return type(template)(*values) if hasattr(template, "_fields") else tuple(values)
    if isinstance(template, list):
        return [back_into(one, other) for one, other in zip(template, tree, strict=True)]
    if template is None or isinstance(template, (str, bool)):
        return template
    if isinstance(template, (int, float)):
        return type(template)(tree)
    if _is_torch(template):
        torch = sys.modules["torch"]
        return torch.from_numpy(np.array(tree)).to(dtype=template.dtype, device=template.device)
    return np.array(tree)


def _is_torch(leaf: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)


def _array_of(leaf: Any) -> Any:
    if _is_torch(leaf):
        leaf = leaf.detach()
        if str(leaf.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds every bfloat16 exactly
            leaf = leaf.float()
        return np.asarray(leaf.cpu().numpy())
    if hasattr(leaf, "detach"):
        return np.asarray(leaf.detach().cpu().numpy())
    array = np.asarray(leaf)
    if array.dtype.kind not in "bfiu":
        raise TypeError(f"a state may hold arrays and numbers; {type(leaf).__name__} is neither")
    return array
