"""A reproduction on two ranks: one set of files, and the same results on both."""

import json

from oekd_fast.config.recipes import recipe_config
from oekd_fast.reproduce import reproduce

from ..support.small_runs import QUIET

RECIPE = "evidence/digits/resnet20"


def reproduce_on_rank(world, config):
    return reproduce(RECIPE, config, 2, console=QUIET)


def time_on_rank(world, config):
    return reproduce(RECIPE, config, 1, timing=True, console=QUIET)


def test_ranks_reproduce_a_recipe_together(ranks, tmp_path):
    config = recipe_config(
        RECIPE,
        epochs=1,
        train_images=64,
        batch_size=16,
        threads=1,
        num_students=2,
        output_dir=tmp_path / "digits",
        progress=False,
        latency="off",
    )
    first, second = ranks.run(2, reproduce_on_rank, config)
    assert first == second
    written = json.loads((config.output_dir / "results.json").read_text())
    assert written == first
    assert {path.name for path in config.output_dir.glob("seed-*")} == {"seed-0", "seed-1"}
    # Finished seeds are not trained again.
    assert ranks.run(2, reproduce_on_rank, config) == [first, second]
    outcomes = ranks.outcomes(2, time_on_rank, config)
    assert outcomes[0].message == "timing: expected a single process, got 2"
    assert outcomes[1].kind == "OtherRankError"
