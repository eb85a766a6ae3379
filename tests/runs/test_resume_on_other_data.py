"""Resuming a run whose data has moved, has changed, or is not recorded."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.checkpoint import CheckpointError, load_latest_checkpoint, save_checkpoint
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.forked_runs import MODEL
from ..support.small_runs import QUIET

pytestmark = pytest.mark.usefixtures("smallest_model")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smallest_model):
    """A folder with images in `data` and a finished run on them in `run`."""
    root = tmp_path_factory.mktemp("moving")
    generator = np.random.default_rng(0)
    for brightness, name in enumerate(("cat", "dog")):
        (root / "data" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (generator.integers(0, 120, (8, 8, 3)) + 100 * brightness).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{number:02d}.png")
    train(config_of(root, resume=False), QUIET)
    return root


def config_of(root, data="data", **changes):
    return TrainConfig(
        dataset=str(root / data), model=MODEL, num_students=2, epochs=1, batch_size=8, output_dir=root / "run",
        progress=False, latency="off", **{"resume": True, **changes},
    )  # fmt: skip


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_same_data_under_another_path_is_accepted(copy, monkeypatch):
    train(replace(config_of(copy), dataset=f"{copy}/data/"), QUIET)
    monkeypatch.chdir(copy)
    train(replace(config_of(copy), dataset="data"), QUIET)
    (copy / "data").rename(copy / "moved")
    (copy / "link").symlink_to(copy / "moved")
    train(config_of(copy, "moved", data_placement="stream"), QUIET)
    train(config_of(copy, "link"), QUIET)


def remove_an_image(data):
    (data / "cat" / "03.png").unlink()
    return "'cat' has "


def add_an_image(data):
    shutil.copy(data / "dog" / "03.png", data / "dog" / "99.png")
    return "'dog' has "


def rename_an_image(data):
    (data / "cat" / "00.png").rename(data / "cat" / "99.png")
    return "'cat' has other images, or the same in another order"


def change_an_image(data):
    Image.new("RGB", (8, 8)).save(data / "dog" / "05.png")
    return "'dog' has other images, or the same in another order"


def rename_a_class(data):
    (data / "dog").rename(data / "wolf")
    return "classes removed: 'dog'; classes added: 'wolf'"


def add_a_class(data):
    shutil.copytree(data / "dog", data / "wolf")
    return "classes added: 'wolf'"


def swap_the_classes(data):
    for before, after in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (data / before).rename(data / after)
    return "'cat' has other images, or the same in another order"


@pytest.mark.parametrize(
    "change",
    [remove_an_image, add_an_image, rename_an_image, change_an_image, rename_a_class, add_a_class, swap_the_classes],
)
def test_other_data_is_refused_in_one_line_that_says_what_changed(copy, change):
    what = change(copy / "data")
    with pytest.raises(RunFolderError) as raised:
        train(config_of(copy), QUIET)
    message = str(raised.value)
    assert message.startswith(
        f"dataset: '{copy}/data' differs from the data that {copy}/run/checkpoints/ensemble/step-"
    )
    assert what in message and "\n" not in message


def test_a_known_name_does_not_stand_for_a_folder(copy):
    with pytest.raises(RunFolderError, match=r"config\.json; dataset: expected '.*/data', got 'digits'"):
        train(replace(config_of(copy), dataset="digits"), QUIET)


def test_a_checkpoint_without_a_fingerprint_resumes_from_the_folder_that_it_names(copy, trained):
    for phase in (copy / "run" / "checkpoints").iterdir():
        state, path, step = load_latest_checkpoint(phase)
        del state["data"]
        path.unlink()
        save_checkpoint(phase, state, step)
    with pytest.raises(RunFolderError, match="does not record what its data holds"):
        train(config_of(copy), QUIET)
    train(replace(config_of(copy), dataset=f"{trained}/data/"), QUIET)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainConfig(output_dir="~/run", data_dir="~/data", initial_weights="~/weights.pth")
    assert config.run_folder == tmp_path / "run" and config.data_dir == tmp_path / "data"
    assert config.initial_weights == tmp_path / "weights.pth"


@pytest.mark.parametrize("missing", ["engine", "order", "config"])
def test_a_checkpoint_that_lacks_a_part_is_named_in_one_line(copy, missing):
    phase = copy / "run" / "checkpoints" / "ensemble"
    state, path, step = load_latest_checkpoint(phase)
    del state[missing]
    path.unlink()
    path = save_checkpoint(phase, state, step)
    with pytest.raises(CheckpointError) as raised:
        train(config_of(copy), QUIET)
    assert str(raised.value) == f"{path} does not hold the state of the phase ensemble (KeyError: '{missing}')"
