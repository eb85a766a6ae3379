"""A pytest plugin: of the tests collected, every so manieth. `-p bench.gpu.shard`, GPU_SHARD=2/8 in the environment."""

import os


def part(items: list, shard: str) -> tuple[list, list]:
    """Those to run and those not, of shard "i/n", i from 0: neighbours, which compile alike, go apart."""
    index, number = map(int, shard.split("/"))
    return items[index::number], [item for i, item in enumerate(items) if i % number != index]


def pytest_collection_modifyitems(config, items):
    items[:], others = part(items, os.environ["GPU_SHARD"])
    config.hook.pytest_deselected(items=others)
