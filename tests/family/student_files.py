"""A saved student, and changes to its files."""

import hashlib
import json

from safetensors.torch import save

from oekd_fast.family.saved import Normalisation, StudentMetadata

NORMALISATION = Normalisation(mean=(0.5, 0.25, 0.4), std=(0.2, 0.5, 0.25))
CLASSES = tuple("abcdefg")


def describe(ensemble, j, **changes):
    fields = {"image_size": 8, "classes": CLASSES, "normalisation": NORMALISATION, "accuracy": 81.25}
    return StudentMetadata.of(ensemble, j, **{**fields, **changes})


def edit(path, **changes):
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def store(saved, tensors=None, content=None):
    """Replace the file of weights, with its checksum in the JSON file."""
    content = save(tensors) if content is None else content
    saved.write_bytes(content)
    edit(saved.with_suffix(".json"), weights_sha256=hashlib.sha256(content).hexdigest())


def with_header(header, data=b""):
    """Return a safetensors file with `header`, bytes or an object for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
