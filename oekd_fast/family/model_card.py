"""Text of the model card of a student, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oekd_fast.common.text import markdown_text
from oekd_fast.family.metadata import StudentMetadata
from oekd_fast.models import architecture_names
from oekd_fast.models.model_sources import TIMM

_SHOWN_CLASSES = 20
_PAPER = "https://arxiv.org/abs/2011.07449"


def title_of(metadata: StudentMetadata) -> str:
    """Return the title of a card, such as "resnet20, student 3 of 5"."""
    return f"{metadata.model}, student {metadata.index} of {metadata.num_students}"


def card_text(metadata: StudentMetadata, facts: Mapping[str, Any], repo_id: str) -> str:
    """Return the text of a card below its YAML header.

    Args:
        metadata: metadata of the student.
        facts: what is known of its training, by the names that `oekd_fast.student_of_run` uses; any may be missing.
        repo_id: name of the repository on the hub, for the example.
    """
    rows = [*_student_rows(metadata, facts), *_training_rows(facts)]
    table = "\n".join(f"| {name} | {markdown_text(value)} |" for name, value in rows)
    return f"""# {markdown_text(title_of(metadata))}

An image classifier: student {metadata.index} of a family of {metadata.num_students} networks, which were trained at
once by online ensemble knowledge distillation ([Walawalkar, Shen, Savvides 2020]({_PAPER})) with oekd_fast.

| | |
| --- | --- |
{table}

## Usage

```sh
pip install 'oekd_fast[hub]'
```

```python
from oekd_fast import HubStudent

student = HubStudent.from_pretrained({_arguments(metadata, repo_id)})
# images: uint8 [B, {metadata.in_channels}, {metadata.image_size}, {metadata.image_size}]
logits = student(student.preprocess(images))
names = [student.metadata.classes[i] for i in logits.argmax(dim=1).tolist()]
student.export("student.onnx")  # with preprocessing; needs oekd_fast[export]
```

`model.safetensors` holds the weights and `model.json` the metadata; loading them runs no code from the repository.
"""


def _arguments(metadata: StudentMetadata, repo_id: str) -> str:
    if metadata.model in architecture_names() or metadata.model.startswith(TIMM):
        return f'"{repo_id}"'
    return f'"{repo_id}", architecture=architecture'  # the network is the user's own


def _student_rows(metadata: StudentMetadata, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = ", ".join(metadata.classes[:_SHOWN_CLASSES]) + (", ..." if metadata.num_classes > _SHOWN_CLASSES else "")
    rows = [
        ("parameters", f"{metadata.parameters:,}"),
        ("channels of the feature maps", ", ".join(map(str, metadata.widths)) or "none"),
        ("images", f"{metadata.in_channels} x {metadata.image_size} x {metadata.image_size}, uint8"),
        ("classes", f"{metadata.num_classes}: {shown}"),
    ]
    if metadata.accuracy is not None:
        count = facts.get("test_images")
        on = "the test images" if count is None else f"{count:,} test images"
        rows.append(("accuracy", f"{metadata.accuracy:.2f} % of {on}"))
    return rows


def _training_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if facts.get("dataset") is not None:
        rows.append(("data set", str(facts["dataset"])))
    if facts.get("baseline_accuracy") is not None:
        rows.append(("accuracy of the same network trained alone", f"{facts['baseline_accuracy']:.2f} %"))
    if facts.get("relative_gain") is not None:
        rows.append(("relative gain in accuracy", f"{facts['relative_gain']:+.2f} %"))
    if facts.get("ensemble_accuracy") is not None:
        rows.append(("accuracy of the family's ensemble", f"{facts['ensemble_accuracy']:.2f} %"))
    if facts.get("epochs") is not None:
        rows.append(("training", f"{facts['epochs']} epochs, objective {facts.get('objective', 'oekd')}"))
    return rows
