"""Scale networks of timm to smaller widths and record the share of the parameters that is left.

    python -m tests.campaigns.scale_timm [--networks resnet50 densenet121 ...]

A network that cannot be scaled, whose narrower copy does not run, or whose share is not about the square of the width
ends the campaign with status 1. Results of other networks in the file of the result are kept. The suite scales those
networks of `NETWORKS` that are in `IN_THE_SUITE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oekd_fast.models import Width
from oekd_fast.models.any_network import ScalingError, scale_module

from ..support.torchvision_operators import declare_missing_operators

RESULT = Path(__file__).parent / "results" / "scale_timm.json"
SIZE = 64
# The largest difference of the share of the parameters from the square of the width.
NETWORKS = {
    "resnet18": 0.01,
    "resnet50": 0.01,
    "resnetv2_18": 0.01,
    "mobilenetv3_small_050": 0.03,
    "efficientnet_lite0": 0.03,
    "regnetx_002": 0.03,
    "regnety_002": 0.03,
    "convnext_atto": 0.02,
    "densenet121": 0.02,
    "ghostnet_050": 0.02,
    "mixer_s32_224": 0.05,
    "vit_tiny_patch16_224": 0.02,
    "deit_tiny_distilled_patch16_224": 0.02,
}
# The blocks of resnet50 and densenet121 are in small networks of the suite, and tests of students scale the vit.
IN_THE_SUITE = tuple(name for name in NETWORKS if name not in ("resnet50", "densenet121", "vit_tiny_patch16_224"))


def build(name: str) -> nn.Module:
    """Return a network of timm for ten classes and images of `SIZE` pixels; timm must be installed."""
    declare_missing_operators()
    import timm

    sized = {"img_size": SIZE} if name.startswith(("mixer", "vit", "deit")) else {}
    with warnings.catch_warnings(action="ignore"):
        return timm.create_model(name, num_classes=10, **sized)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def share(name: str, width: Width) -> float:
    """Return the share of the parameters of a network that is left at `width`, after a run of the narrower copy."""
    network, images = build(name), torch.randn(2, 3, SIZE, SIZE)
    narrow = scale_module(network, images, width)
    with torch.no_grad():
        logits = narrow.eval()(images)
    assert logits.shape == (2, 10) and logits.isfinite().all(), name
    return parameters(narrow) / parameters(network)


def scale_network(name: str) -> dict[str, Any]:
    """Return the shares of a network at the widths of five students, or the error."""
    found: dict[str, Any] = {}
    try:
        for j in range(1, 5):
            width = Width(j, 5)
            found[str(float(width.ratio))] = round(share(name, width), 4)
    except (ScalingError, AssertionError, RuntimeError) as error:
        return {**found, "error": str(error)}
    if abs(found["0.6"] - 0.36) >= NETWORKS[name]:
        found["error"] = f"expected a share of 0.36 at a width of 0.6, to within {NETWORKS[name]}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="networks (default: all)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result (default: %(default)s)")
    options = parser.parse_args()
    results = json.loads(options.output.read_text())["networks"] if options.output.exists() else {}
    for name in options.networks:
        results[name] = scale_network(name)
        print(name, json.dumps(results[name]), flush=True)
    import timm

    document = {"torch": torch.__version__, "timm": timm.__version__, "image_size": SIZE, "networks": results}
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(any("error" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
