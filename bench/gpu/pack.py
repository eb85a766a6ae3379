"""Packs what a machine with a GPU may lack into one folder: the checkout with its extension, and wheels.

    python -m bench.gpu.pack FOLDER [--packages NAME ...] [--most-megabytes 60]

Run it from a clean checkout, with the Python and torch of that machine; torch's build for CUDA needs no GPU here. It
builds the extension for them and downloads the wheels of the packages, and of what these need, that this environment
does not have. On the machine, without a network,

    bash FOLDER/unpack.sh DIR && cd DIR && .venv/bin/python -m bench.gpu --out RESULTS

unpacks the checkout to DIR, with a virtual environment that adds the wheels to the machine's own packages, and checks
that Python and torch are those of the extension. `contents.json` names versions and sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The tests and the trainer's command line need these; bench.gpu itself needs torch, numpy and Triton alone. datasets is
# left out, because its pyarrow and pandas exceed the size, and no part of bench.gpu reads a data set.
PACKAGES = ("pytest", "hypothesis", "tyro", "rich", "safetensors")
MOST_MEGABYTES = 60.0
UNPACK = """#!/bin/sh
# unpack.sh DIR: unpack the checkout to DIR, with a virtual environment that has the wheels.
# PYTHON names the interpreter (python3 if it is not set).
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$1"
tar -xzf "$here/checkout.tar.gz" -C "$1"
cd "$1"
"$python" -m venv --without-pip --system-site-packages .venv
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for wheel in "$here"/wheels/*.whl; do
  [ ! -e "$wheel" ] || "$python" -m zipfile -e "$wheel" "$site"
done
# A virtual environment of a virtual environment would see the packages of the system alone.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/packages_of_python.pth"
pwd > "$site/oekd_fast_checkout.pth"
.venv/bin/python -c 'import oekd_fast.kernels
from oekd_fast import native
assert native.why_no_executor() is None, native.why_no_executor()'
echo "unpacked to $1"
"""


def pack(folder: Path, packages: Sequence[str], most_megabytes: float) -> dict:
    """Fill an empty folder; return its contents as contents.json holds them.

    Raises:
        ValueError: the folder is not empty, the checkout has changes, or the folder is larger than allowed.
        subprocess.CalledProcessError: the build or the download failed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"FOLDER: expected an empty folder, {folder} has files")
    commit = committed()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        checkout = Path(temporary, "checkout")
        export(commit, checkout)
        build(checkout)
        # An installation puts the package oekd_fast.kernels, which is the folder kernels, in this place.
        (checkout / "oekd_fast" / "kernels").symlink_to("../kernels")
        with tarfile.open(folder / "checkout.tar.gz", "w:gz") as archive:
            archive.add(checkout, ".")
    wheels = missing(packages)
    if wheels:
        download(wheels, folder / "wheels")
    (folder / "unpack.sh").write_text(UNPACK)
    contents = {"commit": commit, **versions(), "wheels": wheels}
    contents["bytes"] = sizes(folder)
    check_size(contents["bytes"], most_megabytes)
    (folder / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    return contents


def committed() -> str:
    """Return the commit of the checkout.

    Raises:
        ValueError: files differ from it.
    """
    changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        raise ValueError(f"checkout: expected no changes, got {len(changed)} changed files, first {changed[0][3:]}")
    return git("rev-parse", "HEAD").strip()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def export(commit: str, folder: Path) -> None:
    """Write the tracked files of a commit to a new folder."""
    with tempfile.TemporaryFile() as file:
        subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(folder, filter="data")


def build(checkout: Path) -> None:
    """Build the extension for this torch and Python in a folder of tracked files, and remove what it leaves behind."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=checkout, check=True)
    shutil.rmtree(checkout / "build", ignore_errors=True)
    name = runpy.run_path(str(checkout / "oekd_fast" / "common" / "executor_file.py"))["executor_file"]()
    for library in (name, "_kernels.so"):
        if not (checkout / "oekd_fast" / library).is_file():
            raise ValueError(f"build: expected oekd_fast/{library}, setup.py did not write it")


def missing(packages: Sequence[str]) -> list[str]:
    """Return the packages, and what they need, that this environment lacks, as name==version."""
    if not packages:
        return []
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--only-binary", ":all:", "--report", "-"]
    done = subprocess.run([*command, *packages], check=True, stdout=subprocess.PIPE, text=True)
    found = (entry["metadata"] for entry in json.loads(done.stdout)["install"])
    return sorted(f"{metadata['name']}=={metadata['version']}" for metadata in found)


def download(wheels: Sequence[str], folder: Path) -> None:
    """Download wheels without what they need."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, *wheels], check=True)


def versions() -> dict[str, str]:
    """Return the versions that the extension and the wheels are for."""
    import torch
    import triton

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": triton.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder by its path in it, the largest first."""
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def check_size(sizes: dict[str, int], most_megabytes: float) -> None:
    """Raise ValueError if the files are together larger than allowed."""
    whole = sum(sizes.values()) / 1e6
    if whole > most_megabytes:
        largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in list(sizes.items())[:5])
        raise ValueError(f"FOLDER: expected at most {most_megabytes:g} MB, got {whole:.1f} MB: {largest}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="an empty folder, or one to be made")
    parser.add_argument("--packages", nargs="*", default=PACKAGES, metavar="NAME",
                        help=f"packages that the machine lacks (default: {' '.join(PACKAGES)})")  # fmt: skip
    parser.add_argument("--most-megabytes", type=float, default=MOST_MEGABYTES, metavar="MB",
                        help="size of the folder above which packing fails (default: %(default)g)")  # fmt: skip
    given = parser.parse_args()
    try:
        contents = pack(given.folder, given.packages, given.most_megabytes)
    except ValueError as error:
        parser.exit(2, f"bench.gpu.pack: {error}\n")
    whole = sum(contents["bytes"].values()) / 1e6
    print(f"{given.folder}: {whole:.1f} MB for Python {contents['python']} and torch {contents['torch']}")


if __name__ == "__main__":
    main()
