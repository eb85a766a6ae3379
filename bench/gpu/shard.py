"""A pytest plugin that keeps one shard of the collected tests.

`-p bench.gpu.shard` with GPU_SHARD=2/8 in the environment keeps the tests 2, 10, 18, ...
"""

import os


def part(items: list, shard: str) -> tuple[list, list]:
    """Return the items of shard "i/n", with i from 0, and the other items.

    Neighbours, which use similar kernels, come into different shards, so that no shard compiles most of the kernels.
    """
    index, number = map(int, shard.split("/"))
    return items[index::number], [item for i, item in enumerate(items) if i % number != index]


def pytest_collection_modifyitems(config, items):
    items[:], others = part(items, os.environ["GPU_SHARD"])
    config.hook.pytest_deselected(items=others)
