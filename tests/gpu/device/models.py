"""The two networks, and what goes into them."""
from __future__ import annotations

from typing import Any

SHAPE = (3, 224, 224)


def load_lite0() -> Any:
    "EfficientNet-Lite0 with its ImageNet weights: 0.8 GFLOP an image"
    from zztoolkit.samples import efficientnet_lite0
    return efficientnet_lite0()


def load_resnet50() -> Any:
    "ResNet-50 with weights of chance: 8 GFLOP an image"
    import torch, torchvision
    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None).eval()


NETWORKS = {"lite0": load_lite0, "resnet50": load_resnet50}


def example_inputs(network: str, n: int) -> Any:
    "Rows for a network: photographs through the chain for Lite0, noise for weights of chance"
    import torch
    if network != "lite0": return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))
    from common import small_jpegs
    from zztoolkit.benchmarks.demo import handler_module
    chain = handler_module("imagenet_classifier").chain
    return torch.from_numpy(chain.batch(small_jpegs(n)).items)
