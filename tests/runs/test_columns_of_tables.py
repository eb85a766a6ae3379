"""A run takes the columns that its config names, and says which they are."""

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.device_data import DeviceData, dataset_of

from ..support.tables import LABELS, PNGS, write


def test_the_config_names_the_columns(tmp_path):
    write(tmp_path / "train.parquet", left=PNGS, right=PNGS, species=LABELS, weather=["rain", "sun"] * 8)
    config = TrainConfig(dataset=str(tmp_path), image_column="right", label_column="weather")
    assert dataset_of(config).classes == ("rain", "sun")
    assert TrainConfig.from_dict(config.as_dict()).label_column == "weather"


def test_the_notes_of_a_run_name_the_columns(tmp_path):
    write(tmp_path / "train.parquet", image=PNGS, label=LABELS)
    config = TrainConfig(dataset=str(tmp_path))
    data = DeviceData.of(dataset_of(config), config, torch.device("cpu"))
    expected = f"{tmp_path}: images from column 'image' (binary), 2 classes from column 'label' (int64)"
    assert data.notes[0] == expected
