"""The run's config: defaults of the paper, bad values, plain form."""

import dataclasses
import json
from pathlib import Path

import pytest

from oekd_fast.config.train_config import TrainConfig


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.ce_weight, config.feature_weight, config.kd_weight, config.temperature) == (0.7, 0.15, 0.15, 2.0)
    assert config.num_students == 5
    assert config.milestones == (0.5, 0.75)
    assert config.adapter_rate == 0.5
    assert config.peak_rate == 0.1
    assert TrainConfig(optimizer="adam").peak_rate == 0.001


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_students", 0, "num_students: expected an integer >= 1, got 0"),
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
        ("image_size", 0, "image_size: expected pixels >= 1, got 0"),
        ("augmentation", "flip", "augmentation: expected one of auto, none, crop, resized_crop, got 'flip'"),
        ("normalisation", "none", "normalisation: expected one of computed, published, got 'none'"),
        ("pad", -1, "pad: expected pixels >= 0, got -1"),
        ("precision", "fp8", "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        ("ce_schedule", "sigma", "ce_schedule: did you mean sigmoid\\? expected one of constant, .* got 'sigma'"),
        ("optimizer", "lion", "optimizer: expected one of sgd, adam, rmsprop, got 'lion'"),
        (
            "schedule",
            "step",
            "schedule: did you mean multistep\\? expected one of multistep, cosine, cyclic, exponential, got 'step'",
        ),
    ],
)
def test_bad_values_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_another_objective_by_replace_keeps_the_weights():
    changed = dataclasses.replace(TrainConfig(), objective="dml")
    assert (changed.temperature, changed.ce_weight) == (2.0, 0.7)
    assert (TrainConfig(objective="dml").temperature, TrainConfig(objective="dml").ce_weight) == (1.0, 1.0)


def test_augmentation_and_its_parts_do_not_contradict_each_other():
    with pytest.raises(ValueError, match="augmentation: expected auto or none with augment=False, got 'crop'"):
        TrainConfig(augment=False, augmentation="crop")
    with pytest.raises(ValueError, match="pad: expected none with augmentation='resized_crop', .* got 4"):
        TrainConfig(augmentation="resized_crop", pad=4)
    assert TrainConfig(augment=False).augmentation_wish == TrainConfig(augmentation="none").augmentation_wish == "none"


def test_plain_form_is_json_and_names_every_field():
    config = TrainConfig(data_dir=Path("somewhere"), output_dir=Path("out"))
    plain = json.loads(json.dumps(config.as_dict()))
    assert plain == config.as_dict()
    assert plain.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert plain["data_dir"] == "somewhere" and plain["milestones"] == [0.5, 0.75]


def test_where_and_how_a_run_is_shown_is_not_what_it_trains():
    here = TrainConfig(output_dir=Path("a"), data_dir=Path("b"), resume=True, baseline=True, progress=False,
                       track_test=True)  # fmt: skip
    assert here.training_fields() == TrainConfig().training_fields()
    for other in (TrainConfig(seed=1), TrainConfig(train_images=100)):
        assert other.training_fields() != TrainConfig().training_fields()


def test_run_folder_has_a_name_of_its_own():
    assert TrainConfig(dataset="data/my pictures", model="resnet32", seed=3).run_folder == Path(
        "runs/my pictures-resnet32-seed3"
    )
    assert TrainConfig(output_dir=Path("x")).run_folder == Path("x")


def test_a_student_alone_learns_from_cross_entropy_only():
    loss = TrainConfig(label_smoothing=0.1).baseline_loss()
    assert (loss.ce_weight, loss.kd_weight, loss.label_smoothing) == (1.0, 0.0, 0.1)
