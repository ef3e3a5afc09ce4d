from __future__ import annotations

import torch

from yolo_lat.ela.compiling import assume_constant_result


def test_the_mark_is_that_of_torch() -> None:
    def ours() -> int:
        return 1

    def of_torch() -> int:
        return 1

    assert assume_constant_result(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(of_torch)) != {}
