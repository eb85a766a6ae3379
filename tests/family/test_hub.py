"""Students on the hub, without a network: saved, loaded and uploaded through a stand-in of the hub's client."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin

from oekd_fast import HubStudent, load_student, student_of_run
from oekd_fast.family import hub
from oekd_fast.family.saved import LoadedStudent
from oekd_fast.models import registry
from oekd_fast.reporting.run_files import ReportError

from ..support.forkserver import run_code
from ..support.older_runs import RUNS, TINY
from ..support.reports import change

FACTS = {"dataset": "digits", "baseline_accuracy": 80.0, "relative_gain": 1.5625, "test_images": 359, "epochs": 3,
         "objective": "oekd", "ensemble_accuracy": 90.5}  # fmt: skip


class FakeApi:
    """The two calls of huggingface_hub's client that an upload makes; files are copied to a folder."""

    folder, calls = None, []

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private=None, exist_ok=False):
        self.calls.append(("create_repo", repo_id, private, exist_ok))
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, commit_message, **options):
        self.calls.append(("upload_folder", repo_id, commit_message))
        shutil.copytree(folder_path, self.folder)
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def api(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeApi, "folder", tmp_path / "uploaded")
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(hub_mixin, "HfApi", FakeApi)
    return FakeApi


@pytest.fixture
def student(saved):
    return HubStudent(load_student(saved), FACTS)


@pytest.fixture
def images():
    return torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_saved_student_comes_back_with_the_same_bits(student, images, tmp_path):
    student.save_pretrained(tmp_path / "folder")
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == ["README.md", "config.json", "model.json", "model.safetensors"]
    loaded = HubStudent.from_pretrained(tmp_path / "folder")
    assert isinstance(loaded, LoadedStudent) and not loaded.training
    assert loaded.metadata == student.metadata and loaded.facts == FACTS
    assert torch.equal(loaded(loaded.preprocess(images)), student(student.preprocess(images)))
    assert torch.equal(load_student(tmp_path / "folder" / "model")(loaded.preprocess(images)),
                       student(student.preprocess(images)))  # fmt: skip


def test_an_upload_has_the_files_and_a_card_that_names_the_repository(student, api, tmp_path):
    address = student.push_to_hub("somebody/small-student", commit_message="First", private=True)
    assert address == "https://huggingface.co/somebody/small-student/commit/1"
    assert api.calls == [
        ("create_repo", "somebody/small-student", True, True),
        ("upload_folder", "somebody/small-student", "First"),
    ]
    card = ModelCard.load(api.folder / "README.md")
    assert 'HubStudent.from_pretrained("somebody/small-student")' in card.text
    assert HubStudent.from_pretrained(api.folder).metadata == student.metadata


def test_the_card_states_the_run(student):
    card = student.generate_model_card()
    data = card.data.to_dict()
    assert data["library_name"] == "oekd_fast" and data["pipeline_tag"] == "image-classification"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("digits", "accuracy", 0.8125)
    for row in (
        "# resnet20, student 4 of 5",
        "| accuracy | 81.25 % of 359 test images |",
        "| accuracy of the same network trained alone | 80.00 % |",
        "| relative gain in accuracy | +1.56 % |",
        "| accuracy of the family's ensemble | 90.50 % |",
        "| data set | digits |",
        "| images | 3 x 8 x 8, uint8 |",
        "| classes | 7: a, b, c, d, e, f, g |",
        "| training | 3 epochs, objective oekd |",
    ):
        assert row in card.text


def test_the_code_of_the_card_runs(student, images, tmp_path, monkeypatch):
    student.save_pretrained(tmp_path / "USER" / "NAME")
    monkeypatch.chdir(tmp_path)
    code = student.generate_model_card().text.split("```python\n")[1].split("```")[0]
    exec(code.replace('student.export("student.onnx")', 'student.export("student.pt2")'), names := {"images": images})
    assert len(names["names"]) == 4 and set(names["names"]) <= set("abcdefg")


def test_names_in_a_card_have_no_markup(saved):
    student = HubStudent(load_student(saved), {**FACTS, "dataset": "a|b<script>\n# c"})
    text = student.generate_model_card().text
    assert "<script>" not in text and "\n# c" not in text and r"a\|b" in text


def test_a_card_without_facts(saved):
    text = HubStudent(load_student(saved)).generate_model_card().text
    assert "data set" not in text and "| accuracy | 81.25 % of the test images |" in text


def test_files_are_downloaded_from_the_hub(student, images, tmp_path, monkeypatch):
    student.save_pretrained(tmp_path / "snapshot")
    asked = []

    def download(repo_id, filename, *, revision, **options):
        asked.append((repo_id, filename, revision))
        return str(tmp_path / "snapshot" / filename)

    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda **options: download(**options))
    loaded = HubStudent.from_pretrained("somebody/student", revision="v1")
    assert asked == [("somebody/student", name, "v1") for name in ("config.json", "model.json", "model.safetensors")]
    assert torch.equal(loaded(loaded.preprocess(images)), student(student.preprocess(images)))


def test_a_damaged_download_is_refused(student, tmp_path):
    student.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="damaged, or not saved together"):
        HubStudent.from_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="model.json, which is missing"):
        HubStudent.from_pretrained(tmp_path / "folder")
    with pytest.raises(TypeError, match="from_pretrained: unexpected arguments colour"):
        HubStudent.from_pretrained(tmp_path / "folder", colour="red")


def test_a_network_of_your_own_needs_its_architecture(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", {**registry._ARCHITECTURES})
    student = student_of_run(RUNS / "finished", 2, architecture=TINY)
    student.save_pretrained(tmp_path / "folder")
    assert "architecture=architecture)" in student.generate_model_card().text
    with pytest.raises(ValueError, match="pass architecture= for a network of your own"):
        HubStudent.from_pretrained(tmp_path / "folder")
    loaded = HubStudent.from_pretrained(tmp_path / "folder", architecture=TINY)
    assert loaded.metadata.model == "tiny"
    loaded.save_pretrained(tmp_path / "again")


def test_a_student_of_a_run_knows_the_run(tmp_path):
    student = student_of_run(str(RUNS / "finished"), 2, architecture=TINY)
    summary = json.loads((RUNS / "finished" / "summary.json").read_text())
    assert student.facts["dataset"] == "digits" and student.facts["epochs"] == 3
    assert student.facts["baseline_accuracy"] == summary["students"][1]["baseline_accuracy"]
    run = shutil.copytree(RUNS / "finished", tmp_path / "run")
    change(run / "summary.json", dataset="/home/somebody/secret/cats")
    assert student_of_run(run, 1, architecture=TINY).facts["dataset"] == "cats"
    for number in (0, 3):
        with pytest.raises(ReportError, match=rf"^number: expected a student in 1..2, got {number}$"):
            student_of_run(run, number)
    shutil.rmtree(run / "students")
    with pytest.raises(ReportError, match="expected weights of 2 students, got too few"):
        student_of_run(run, 1)


def test_without_the_package_the_error_names_the_extra():
    code = """
    import sys
    sys.modules["huggingface_hub"] = None
    import oekd_fast
    try:
        oekd_fast.HubStudent
    except ImportError as error:
        print(error)
    """
    done = run_code(code)
    assert done.stdout == "students on the hub need the package huggingface_hub: pip install 'oekd_fast[hub]'\n"


def test_students_for_the_hub_can_be_copied_and_exported(student, tmp_path):
    assert student.export(tmp_path / "a.pt2").difference <= 1e-5
