"""The folder for a machine with a GPU: what it holds, its size, and that it unpacks without a network."""

import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from bench.gpu import pack as gpu_pack

NATIVE = "def why_no_executor():\n    return {!r}\n"


@pytest.fixture
def small_checkout(monkeypatch):
    """Pack a tiny checkout, whose extension is not built, and one wheel; set the reason against its executor."""
    reason = [None]

    def export(commit, folder):
        package = folder / "oekd_fast"
        package.mkdir(parents=True)
        (folder / "kernels").mkdir()
        for name in ("oekd_fast", "kernels"):
            (folder / name / "__init__.py").write_text("")
        (package / "native.py").write_text(NATIVE.format(reason[0]))

    def download(wheels, folder):
        folder.mkdir()
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny.py", "from oekd_fast import native\nvalue = 7\n")

    monkeypatch.setattr(gpu_pack, "committed", lambda: "c0ffee")
    monkeypatch.setattr(gpu_pack, "export", export)
    monkeypatch.setattr(gpu_pack, "build", lambda checkout: (checkout / "oekd_fast" / "_kernels.so").touch())
    monkeypatch.setattr(gpu_pack, "missing", lambda packages: [f"{name}==1.0" for name in packages])
    monkeypatch.setattr(gpu_pack, "download", download)
    return reason


@pytest.mark.skipif(sys.platform != "linux", reason="the script is for Linux")
def test_a_folder_unpacks_without_a_network(tmp_path, small_checkout):
    contents = gpu_pack.pack(tmp_path / "packed", ["tiny"], 1.0)
    assert contents["commit"] == "c0ffee" and contents["wheels"] == ["tiny==1.0"]
    assert json.loads((tmp_path / "packed" / "contents.json").read_text()) == contents
    assert set(contents["bytes"]) == {"checkout.tar.gz", "unpack.sh", "wheels/tiny-1.0-py3-none-any.whl"}
    there = tmp_path / "there"
    unpack = ["sh", str(tmp_path / "packed" / "unpack.sh"), str(there)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    subprocess.run(unpack, check=True, env=environment)
    command = [str(there / ".venv" / "bin" / "python"), "-c", "import tiny, oekd_fast; print(oekd_fast.__file__)"]
    done = subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.stdout.strip() == str(there / "oekd_fast" / "__init__.py")
    assert (there / "oekd_fast" / "_kernels.so").is_file()
    with pytest.raises(ValueError, match="FOLDER: expected an empty folder, .*packed has files"):
        gpu_pack.pack(tmp_path / "packed", [], 1.0)

    small_checkout[0] = "built for another torch"
    gpu_pack.pack(tmp_path / "wrong", [], 1.0)
    unpack = ["sh", str(tmp_path / "wrong" / "unpack.sh"), str(tmp_path / "elsewhere")]
    failed = subprocess.run(unpack, env=environment, stderr=subprocess.PIPE, text=True)
    assert failed.returncode != 0 and "built for another torch" in failed.stderr


def test_a_folder_that_is_too_large_is_an_error(tmp_path, small_checkout):
    with pytest.raises(ValueError, match=r"FOLDER: expected at most 0.0001 MB, got 0.0 MB: .*unpack.sh 0.0"):
        gpu_pack.pack(tmp_path / "packed", ["tiny"], 0.0001)


def test_a_changed_checkout_is_not_packed(monkeypatch):
    answers = {"status": " M bench/x.py\n", "rev-parse": "c0ffee\n"}
    monkeypatch.setattr(gpu_pack, "git", lambda command, *others: answers[command])
    with pytest.raises(ValueError, match="expected no changes, got 1 changed files, first bench/x.py"):
        gpu_pack.committed()
    answers["status"] = ""
    assert gpu_pack.committed() == "c0ffee"


def test_tracked_files_are_exported(tmp_path, monkeypatch):
    def archive(command, stdout, **options):
        monkeypatch.undo()
        git = ["git", "archive", "HEAD", "bench/gpu", "setup.py"]
        subprocess.run(git, cwd=gpu_pack.ROOT, check=True, stdout=stdout)

    monkeypatch.setattr(gpu_pack.subprocess, "run", archive)
    gpu_pack.export("HEAD", tmp_path / "checkout")
    assert (tmp_path / "checkout" / "setup.py").is_file() and (tmp_path / "checkout" / "bench" / "gpu").is_dir()


def test_what_the_environment_has_is_not_downloaded(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        found = [{"metadata": {"name": name, "version": "2.0"}} for name in ("tyro", "docstring_parser")]
        return SimpleNamespace(stdout=json.dumps({"install": found}))

    monkeypatch.setattr(gpu_pack.subprocess, "run", run)
    assert gpu_pack.missing(["tyro"]) == ["docstring_parser==2.0", "tyro==2.0"] and gpu_pack.missing([]) == []
    gpu_pack.download(["tyro==2.0"], tmp_path)
    dry, download = commands
    assert "--dry-run" in dry and dry[-1] == "tyro" and "--no-deps" in download and download[-1] == "tyro==2.0"


def test_an_extension_that_was_not_built_is_an_error(tmp_path, monkeypatch):
    common = tmp_path / "oekd_fast" / "common"
    common.mkdir(parents=True)
    (common / "executor_file.py").write_text("def executor_file():\n    return '_executor.x.so'\n")
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(gpu_pack.subprocess, "run", lambda *arguments, **options: None)
    with pytest.raises(ValueError, match="build: expected oekd_fast/_executor.x.so, setup.py did not write it"):
        gpu_pack.build(tmp_path)
    for name in ("_executor.x.so", "_kernels.so"):
        (tmp_path / "oekd_fast" / name).touch()
    gpu_pack.build(tmp_path)
    assert not (tmp_path / "build").exists()


def test_the_command_line(monkeypatch, tmp_path, capsys):
    contents = {"bytes": {"a": 2_000_000}, "python": "3.12.1", "torch": "2.11.0+cu130"}
    monkeypatch.setattr(gpu_pack, "pack", lambda folder, packages, most: contents)
    monkeypatch.setattr(sys, "argv", ["pack", str(tmp_path)])
    gpu_pack.main()
    assert "2.0 MB for Python 3.12.1 and torch 2.11.0+cu130" in capsys.readouterr().out

    def refuse(*arguments):
        raise ValueError("FOLDER: expected an empty folder")

    monkeypatch.setattr(gpu_pack, "pack", refuse)
    with pytest.raises(SystemExit, match="2"):
        gpu_pack.main()
    assert "bench.gpu.pack: FOLDER: expected an empty folder" in capsys.readouterr().err
