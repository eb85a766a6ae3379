"""Options of the objectives: combinations that raise, and default weights on the command line."""

import pytest

from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options
from oekd_fast.config.train_config import TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "oked"}, "objective: did you mean oekd or kd\\? expected one of oekd, kd, .* got 'oked'"),
        ({"objective": "kd"},
         "teacher: expected a saved student, a .pt2 file or module:function with objective='kd', got None"),
        ({"teacher": "x"},
         "teacher: expected none but with objective kd, fitnets, fsp, meal or lit, got x with 'oekd'"),
        ({"objective": "one", "num_students": 1}, "num_students: expected at least 2 with objective='one', got 1"),
        ({"objective": "dml", "num_students": 1}, "num_students: expected at least 2 with objective='dml', got 1"),
        ({"objective": "fitnets", "num_students": 1},
         "num_students: expected at least 2 with objective='fitnets' and no teacher, got 1"),
        ({"objective": "fsp", "num_students": 1},
         "num_students: expected at least 2 with objective='fsp' and no teacher, got 1"),
        ({"objective": "meal", "num_students": 1},
         "num_students: expected at least 2 with objective='meal' and no teacher, got 1"),
        ({"objective": "meal", "detach_ensemble": False}, "detach_ensemble: expected True with objective='meal'"),
        ({"objective": "meal", "teacher": "x", "kd_strengths": (1.0,) * 5},
         "kd_strengths: expected none but with learn_from, with objective dml or codistillation, or with meal or lit "),
        ({"critic_weight": 0.1}, "critic_weight: expected 0 but with objective='meal', got 0.1"),
        ({"objective": "meal", "feature_weight": 0.0},
         "feature_weight: expected a number > 0 with critic_weight=0.05, got 0"),
        ({"objective": "dml", "detach_ensemble": False}, "detach_ensemble: expected True with objective='dml'"),
        ({"learn_from": "wider", "detach_ensemble": False}, "detach_ensemble: expected True with learn_from='wider'"),
        ({"learn_from": "wider", "objective": "dml"}, "learn_from: expected 'objective' with objective='dml'"),
        ({"divergence": "js", "divergence_beta": 2.0},
         "divergence_beta: expected a number in \\(0, 1\\) with divergence='js', got 2"),
        ({"divergence": "decoupled", "mixup": 0.2}, "mixup: expected none with divergence='decoupled', whose"),
        ({"learn_from": "narrower"}, "learn_from: expected one of objective, others, neighbours, wider, "),
        ({"learn_from": "equal_or_wider"}, "learn_from_average: expected True with learn_from='equal_or_wider'"),
        ({"learn_from": "all"}, "learn_from_average: expected True with learn_from='all', since a student learns"),
        ({"learn_from": "others", "num_students": 1}, "num_students: expected at least 2 with learn_from='others'"),
        ({"learn_from": "wider", "learn_from_average": True}, "ema_decay: expected a number with learn_from_average"),
        ({"learn_from_average": True, "ema_decay": 0.9}, "learn_from_average: expected none but with learn_from"),
        ({"kd_strengths": (1.0, 0.0, 1.0, 1.0, 1.0)}, "kd_strengths: expected none but with learn_from"),
        ({"objective": "dml", "kd_strengths": (1.0, 0.5)}, "kd_strengths: expected 5 numbers, one a student, got 2"),
        ({"objective": "dml", "kd_strengths": (0.0,) * 5}, "kd_strengths: expected finite numbers >= 0, one a student"),
        ({"objective": "codistillation", "codistillation_delay": 2, "learn_from_average": True, "ema_decay": 0.9},
         "codistillation_delay: expected 0 with learn_from_average, got 2"),
        ({"codistillation_delay": 2}, "codistillation_delay: expected 0 but with objective='codistillation', got 2"),
        ({"schedule": "cyclic"}, "schedule: expected cyclic with objective='snapshot' alone, got it with 'oekd'"),
        ({"objective": "snapshot"}, "snapshots: expected schedule='cyclic' .* got schedule='multistep'"),
        ({"objective": "snapshot", "schedule": "cyclic", "epochs": 4}, "'cyclic', 5 snapshots in 4 epochs"),
        ({"objective": "born_again", "pretrain_epochs": 1}, "pretrain_epochs: expected none with objective"),
        ({"generations": 0}, "generations: expected an integer >= 1, got 0"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: expected an integer >= 0, got -1"),
        ({"ramp_epochs": -1.0}, "ramp_epochs: expected a finite number >= 0, got -1.0"),
        ({"temperature_start": 0.0}, "temperature_start: expected a finite number > 0, got 0.0"),
    ],
)  # fmt: skip
def test_options_that_contradict_the_objective_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--objective", "one"], (3.0, 1.0, 1.0)),
        (["--objective", "dml", "--kd-weight", "0.5"], (1.0, 1.0, 0.5)),
        (["--objective", "kd", "--teacher", "x/student_1"], (4.0, 0.1, 0.9)),
        (["--recipe", "paper/cifar100/resnet32", "--objective", "one"], (3.0, 1.0, 1.0)),
        (["--recipe", "published/cifar10/resnet20"], (3.0, 0.4, 0.4)),
    ],
)
def test_the_command_line_uses_the_weights_of_the_objective(arguments, expected):
    weights = parse_recipe_options(RecipeOptions, "test", arguments).config.loss_weights
    assert (weights.temperature, weights.ce_weight, weights.kd_weight) == expected
