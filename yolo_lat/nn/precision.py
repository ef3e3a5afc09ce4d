"""What may not be rounded to half precision though autocast says so: boxes, and losses of them.

bfloat16 has eight significant bits, so that coordinates beyond 512 px would lie on multiples of 4 px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_HALF = {torch.float16, torch.bfloat16}


def widened(predictions: Any) -> Any:
    """Return a head's predictions with float32 in place of half precision.

    Args:
        predictions: tensors in dictionaries, lists and tuples. Of feature maps, `feats`, a loss takes the shapes alone,
            so that only these come back, holding nothing.
    """
    if isinstance(predictions, Tensor):
        return predictions.float() if predictions.dtype in _HALF else predictions
    if isinstance(predictions, dict):
        return {key: _shapes(value) if key == "feats" else widened(value) for key, value in predictions.items()}
    if isinstance(predictions, list | tuple):
        return type(predictions)(widened(value) for value in predictions)
    return predictions


def _shapes(maps: Any) -> list[Tensor]:
    return [m.new_empty((), dtype=torch.float32).expand(m.shape) if m.dtype in _HALF else m for m in maps]
