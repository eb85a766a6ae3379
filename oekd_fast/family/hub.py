"""Students on the Hugging Face hub. Needs the package huggingface_hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oekd_fast.common.packages import require
from oekd_fast.family.model_card import card_text, title_of
from oekd_fast.family.saved import LoadedStudent, load_student, save_student

if TYPE_CHECKING:
    import huggingface_hub
    from huggingface_hub import ModelCard

    from oekd_fast.models import Architecture
else:
    huggingface_hub = require("huggingface_hub", "students on the hub need", "hub")

_NAME = "model"  # of the two files of a student
_TASK = "image-classification"


class HubStudent(
    LoadedStudent,
    huggingface_hub.ModelHubMixin,
    library_name="oekd_fast",
    pipeline_tag=_TASK,
    tags=["knowledge-distillation", "model-compression", "safetensors"],
):
    """A student that `push_to_hub` uploads and `from_pretrained` downloads, with a model card.

    ``HubStudent.from_pretrained("USER/NAME")`` returns a student on the CPU in evaluation mode. It takes the folder of
    a repository too, and ``architecture=`` for a network that is not registered. No code from the repository is run;
    see `load_student`. `save_pretrained`, `push_to_hub` and the other arguments are those of
    ``huggingface_hub.ModelHubMixin``.

    Args:
        student: the student; its modules are shared.
        facts: what the model card says about the training, values that JSON can hold; `student_of_run` collects them.

    Attributes:
        architecture: architecture of the network, which `save_pretrained` needs if it is not registered; or None.
    """

    # Not an argument, because the mixin writes arguments that are dataclasses to config.json.
    architecture: Architecture | str | None = None

    def __init__(self, student: LoadedStudent, facts: dict[str, Any] | None = None) -> None:
        super().__init__(student.base, student.branch, student.metadata)
        self.facts = dict(facts or {})

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Upload the student with its metadata and model card, and return the address of the commit.

        Args:
            repo_id: repository, such as ``USER/NAME``; it is created if it does not exist.
            model_card_kwargs: arguments of `generate_model_card`.
            options: see ``huggingface_hub.ModelHubMixin.push_to_hub``.
        """
        card = {"repo_id": repo_id, **(model_card_kwargs or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def generate_model_card(self, *, repo_id: str = "USER/NAME") -> ModelCard:
        """Return the model card: facts of the run, and an example that loads the student from `repo_id`."""
        metadata, data = self.metadata, {}
        if metadata.accuracy is not None and self.facts.get("dataset") is not None:
            name = str(self.facts["dataset"])
            result = huggingface_hub.EvalResult(
                task_type=_TASK, dataset_type=name, dataset_name=name, metric_type="accuracy",
                metric_value=round(metadata.accuracy / 100, 6),
            )  # fmt: skip
            data = {"model_name": title_of(metadata), "eval_results": [result]}
        header = huggingface_hub.ModelCardData(**self._hub_mixin_info.model_card_data.to_dict(), **data)
        return huggingface_hub.ModelCard(f"---\n{header.to_yaml()}\n---\n\n{card_text(metadata, self.facts, repo_id)}")

    def _save_pretrained(self, save_directory: Path) -> None:
        save_student(self, save_directory / _NAME, self.metadata, self.architecture)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        architecture: Architecture | str | None = None,
        facts: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> HubStudent:
        if unknown:
            raise TypeError(f"from_pretrained: unexpected arguments {', '.join(unknown)}")
        folder = Path(model_id)
        if not folder.is_dir():
            for suffix in (".json", ".safetensors"):
                file = huggingface_hub.hf_hub_download(
                    model_id, _NAME + suffix, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token,
                )  # fmt: skip
            folder = Path(file).parent
        student = cls(load_student(folder / _NAME, architecture), facts)
        student.architecture = architecture
        return student
