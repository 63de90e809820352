"""The device that these tests want, and why they are skipped where there is none."""

from __future__ import annotations

import os
import warnings

import pytest

DEVICE = "cuda:0"
REASON = "needs a CUDA device"


def has_device():
    """Whether there is a device; asked of NVML, so that the answer makes no context in this process."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    torch = pytest.importorskip("torch", reason=REASON)
    with warnings.catch_warnings(action="ignore"):  # of a library that finds no driver
        return torch.cuda.is_available()


needs_device = pytest.mark.skipif(not has_device(), reason=REASON)
