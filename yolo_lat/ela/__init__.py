"""Exact linear attention: kernels with finite feature maps, attention in O(L), and a state that adds up.

Needs torch alone and nothing else of this package. Triton, which torch brings along on Linux, makes it faster on CUDA.
"""

from yolo_lat.ela.attention import ELAState, ela_state, exact_linear_attention
from yolo_lat.ela.causal import causal_attention, ela_step_
from yolo_lat.ela.check import KernelReport, check_kernel
from yolo_lat.ela.fused import FormChoice, choose_form, ela_form
from yolo_lat.ela.kernels import (
    KERNELS,
    DiffSquaredDistance,
    HadamardExp,
    Kernel,
    LogKernel,
    ModulatedDot,
    SumSquaredDistance,
    get_kernel,
    register_kernel,
)
from yolo_lat.ela.lobe import MemoryLobe, future_leak
from yolo_lat.ela.moe import LabelMoE, MoEOutput, Routing, routing_table

__all__ = [
    "KERNELS",
    "DiffSquaredDistance",
    "ELAState",
    "FormChoice",
    "HadamardExp",
    "Kernel",
    "KernelReport",
    "LabelMoE",
    "LogKernel",
    "MemoryLobe",
    "MoEOutput",
    "ModulatedDot",
    "Routing",
    "SumSquaredDistance",
    "causal_attention",
    "check_kernel",
    "choose_form",
    "ela_form",
    "ela_state",
    "ela_step_",
    "exact_linear_attention",
    "future_leak",
    "get_kernel",
    "register_kernel",
    "routing_table",
]
