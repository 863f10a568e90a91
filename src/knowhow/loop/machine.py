"""Settings of the whole process that make training faster: the only place that changes any. Called by work that is about to train, never at import."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from knowhow.maths.attention import BlockAttention

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2


def keep_memory() -> bool:
    """Ask glibc to keep freed memory for the next step instead of handing it back, so that activations are not zeroed by the kernel at every step.

    The process stays as large as it was at its largest. True when the allocator took the settings; False on other systems (nothing changes there)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    try:
        set_option = libc.mallopt
    except AttributeError:
        return False
    options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(set_option(name, value) == 1 for name, value in options)


def has_bf16(device: str) -> bool:
    """Hardware bf16 products: CPUs with AVX512-BF16 or AMX, CUDA from compute capability 8."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def repeatable_device() -> str:
    """Where a base is made: the accelerator that torch finds, else the processor. On an accelerator, kernels whose sums have no fixed order
    are replaced by slower ones, so that the same run gives the same bytes (call before anything runs there)."""
    if not torch.cuda.is_available():
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads such memory
    return "cuda"


def quick_attention(device: str) -> AbstractContextManager[object]:
    """`BlockAttention` where it was measured to be quicker than torch's kernel: CPUs that multiply bf16 without matrix tiles (AVX512-BF16, no AMX)."""
    plain = device == "cpu" and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return BlockAttention() if plain else nullcontext()
