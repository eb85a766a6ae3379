"""Config of a run: defaults, bounds, resolved values, JSON form."""

import dataclasses
import json
from pathlib import Path

import pytest

from oekd_fast.config.data import DataConfig
from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.objectives import OBJECTIVES, LossWeights
from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.config.run import RunConfig
from oekd_fast.config.schedule import ScheduleConfig
from oekd_fast.config.train_config import TrainConfig


def test_defaults_are_those_of_the_paper():
    config = TrainConfig()
    assert config.loss_weights == LossWeights(temperature=2.0, ce_weight=0.7, kd_weight=0.15, feature_weight=0.15)
    assert config.num_students == 5
    assert config.milestones == (0.5, 0.75)
    assert config.adapter_rate == 0.5
    assert config.peak_rate == 0.1
    assert TrainConfig(optimizer="adam").peak_rate == 0.001


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_students", 0, "num_students: expected an integer >= 1 and <= 1000, got 0"),
        ("num_students", 10**9, "num_students: expected an integer >= 1 and <= 1000, got 1000000000"),
        ("temperature", 10**400, "temperature: expected a finite number > 0, got 1000"),
        ("epochs", 0, "epochs: expected an integer >= 1, got 0"),
        ("batch_size", -1, "batch_size: expected an integer >= 1, got -1"),
        ("checkpoint_every", 0, "checkpoint_every: expected an integer >= 1, got 0"),
        ("seed", -1, "seed: expected an integer >= 0, got -1"),
        ("temperature", 0.0, "temperature: expected a finite number > 0, got 0.0"),
        ("temperature", float("nan"), "temperature: expected a finite number > 0, got nan"),
        ("kd_weight", float("inf"), "kd_weight: expected a finite number, got inf"),
        ("feature_weight", -1.0, "feature_weight: expected a finite number >= 0, got -1.0"),
        ("label_smoothing", 1.5, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ("learning_rate", 0.0, "learning_rate: expected a finite number > 0, got 0.0"),
        ("milestones", (0.5, 1.0), r"milestones: expected shares of the training in \(0, 1\), got \(0.5, 1.0\)"),
        ("validation_fraction", 1.0, r"validation_fraction: expected a number in \(0, 1\), got 1.0"),
        ("train_images", 0, "train_images: expected an integer >= 1, got 0"),
        ("image_size", 0, "image_size: expected pixels >= 1 and <= 16384, got 0"),
        ("augmentation", "flip", "augmentation: expected one of auto, none, crop, resized_crop, got 'flip'"),
        ("normalisation", "none", "normalisation: expected one of computed, published, got 'none'"),
        ("pad", -1, "pad: expected pixels >= 0 and <= 16384, got -1"),
        ("mixup", 0.0, "mixup: expected a finite number > 0, got 0.0"),
        ("cutmix", float("nan"), "cutmix: expected a finite number > 0, got nan"),
        ("micro_batches", 0, "micro_batches: expected an integer >= 1, got 0"),
        ("evaluate_every", 0, "evaluate_every: expected an integer >= 1, got 0"),
        ("patience", 0, "patience: expected an integer >= 1, got 0"),
        ("precision", "fp8", "precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"),
        ("ce_schedule", "sigma", "ce_schedule: did you mean sigmoid\\? expected one of constant, .* got 'sigma'"),
        ("optimizer", "lion", "optimizer: expected one of sgd, adam, rmsprop, got 'lion'"),
        (
            "schedule",
            "step",
            "schedule: did you mean multistep\\? expected one of multistep, cosine, .*, exponential, got 'step'",
        ),
    ],
)
def test_errors_name_the_field_what_was_expected_and_the_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_replacing_the_objective_uses_its_weights(objective):
    fields = {"teacher": "students/student_1"} if OBJECTIVES[objective].teacher == "required" else {}
    fields |= {"schedule": "cyclic"} if objective == "snapshot" else {}
    changed = dataclasses.replace(TrainConfig(), objective=objective, **fields)
    assert changed.loss_weights == OBJECTIVES[objective].weights
    assert changed == TrainConfig(objective=objective, **fields)


def test_replacing_the_objective_keeps_weights_that_were_set():
    changed = dataclasses.replace(TrainConfig(temperature=3.0, ensemble_ce_weight=0.0), objective="one")
    assert changed.loss_weights == LossWeights(3.0, 1.0, 1.0, 0.0, ensemble_ce_weight=0.0)


def test_replacing_the_optimizer_uses_its_learning_rate():
    assert dataclasses.replace(TrainConfig(), optimizer="adam").peak_rate == 0.001
    assert dataclasses.replace(TrainConfig(learning_rate=0.3), optimizer="adam").peak_rate == 0.3


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (DataConfig, {"pad": -1}, "pad: expected pixels >= 0 and <= 16384, got -1"),
        (ModelConfig, {"num_students": 0}, "num_students: expected an integer >= 1 and <= 1000, got 0"),
        (DistillationConfig, {"objective": "kd"}, "teacher: expected a saved student, a .pt2 file"),
        (OptimizerConfig, {"ema_decay": 1.0}, r"ema_decay: expected a number in \[0, 1\), got 1.0"),
        (ScheduleConfig, {"decay_epochs": 0.0}, "decay_epochs: expected a finite number > 0, got 0.0"),
        (RunConfig, {"precision": "fp8"}, "precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_each_section_checks_itself(section, value, message):
    assert isinstance(TrainConfig(), section)
    assert {field.name for field in dataclasses.fields(section)} <= TrainConfig().as_dict().keys()
    with pytest.raises(ValueError, match=message):
        section(**value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 2.5, "epochs: expected an integer >= 1, got 2.5"),
        ("evaluate_every", 0.5, "evaluate_every: expected an integer >= 1, got 0.5"),
        ("temperature", "2", "temperature: expected a finite number > 0, got '2'"),
        ("momentum", None, "momentum: expected a finite number >= 0, got None"),
        ("milestones", 0.5, r"milestones: expected shares of the training in \(0, 1\), got 0.5"),
    ],
)
def test_values_of_a_wrong_type_are_named(field, value, message):
    with pytest.raises(TypeError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["output_dir", "data_dir", "initial_weights"])
def test_paths_may_be_strings(field):
    config = TrainConfig(**{field: "some/where"})
    assert getattr(config, field) == Path("some/where")
    assert config == TrainConfig(**{field: Path("some/where")})
    assert TrainConfig(objective="kd", teacher="x/student_1").teacher == Path("x/student_1")


def test_lists_become_tuples():
    assert TrainConfig(milestones=[0.3, 0.6]).milestones == (0.3, 0.6)


def test_contradicting_augmentation_options_are_an_error():
    with pytest.raises(ValueError, match="augmentation: expected auto or none with augment=False, got 'crop'"):
        TrainConfig(augment=False, augmentation="crop")
    for name in ("mixup", "cutmix"):
        with pytest.raises(ValueError, match=f"^{name}: expected none with augment=False, got 0.2$"):
            TrainConfig(augment=False, **{name: 0.2})
    for fields, reason in (({"augment": False}, "no augmentation"), ({"flip": False}, "flip=False")):
        with pytest.raises(ValueError, match=f"^alternate_flips: expected False with {reason}, got True$"):
            TrainConfig(alternate_flips=True, **fields)
    with pytest.raises(ValueError, match="pad: expected none with augmentation='resized_crop', .* got 4"):
        TrainConfig(augmentation="resized_crop", pad=4)
    assert (
        TrainConfig(augment=False).augmentation_choice == TrainConfig(augmentation="none").augmentation_choice == "none"
    )


def test_the_json_form_names_every_field_with_resolved_values():
    config = TrainConfig(data_dir=Path("somewhere"), output_dir=Path("out"), objective="one", optimizer="adam")
    values = json.loads(json.dumps(config.as_dict()))
    assert values == config.as_dict()
    assert values.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert values["data_dir"] == "somewhere" and values["milestones"] == [0.5, 0.75]
    assert (values["temperature"], values["ensemble_ce_weight"], values["learning_rate"]) == (3.0, 1.0, 0.001)


def test_the_json_form_loads_again():
    config = TrainConfig(data_dir=Path("somewhere"), milestones=(0.3,), objective="dml", learning_rate=0.2)
    loaded = TrainConfig.from_dict({**config.as_dict(), "a_field_of_a_later_version": 1})
    assert loaded.as_dict() == config.as_dict() and loaded.milestones == (0.3,)
    assert TrainConfig.from_dict({}) == TrainConfig()


def test_fields_that_do_not_change_the_training_may_differ_on_resume():
    here = TrainConfig(output_dir=Path("a"), data_dir=Path("b"), resume=True, baseline=True, progress=False,
                       track_test=True)  # fmt: skip
    assert here.training_fields() == TrainConfig().training_fields()
    for other in (TrainConfig(seed=1), TrainConfig(train_images=100), TrainConfig(temperature=3.0)):
        assert other.training_fields() != TrainConfig().training_fields()


def test_a_default_written_out_is_the_same_training():
    explicit = TrainConfig(temperature=2.0, kd_weight=0.15, learning_rate=0.1)
    assert explicit.training_fields() == TrainConfig().training_fields()


def test_the_default_run_folder_is_named_after_data_set_model_and_seed():
    assert TrainConfig(dataset="data/my pictures", model="resnet32", seed=3).run_folder == Path(
        "runs/my pictures-resnet32-seed3"
    )
    assert TrainConfig(output_dir=Path("x")).run_folder == Path("x")
