"""The part of the report on runs that differ in the seed only: tables, pictures and notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from oekd_fast.common.spread import spread
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset
from oekd_fast.figures.curves import curve_figure
from oekd_fast.figures.plotting import png
from oekd_fast.figures.sizes import of_students, size_figure
from oekd_fast.paper.expected import paper_results
from oekd_fast.reporting import page
from oekd_fast.reporting.agreement import agreement, class_accuracy
from oekd_fast.reporting.calibration import BINS, calibrate
from oekd_fast.reporting.cam_figures import cam_figure
from oekd_fast.reporting.confusion import confusion, confusion_data
from oekd_fast.reporting.confusion_figures import MATRIX_CLASSES, SHOWN, confusion_figure
from oekd_fast.reporting.evidence import (
    Networks,
    check_same_images,
    data_config,
    grad_cam_panels,
    load_networks,
    one_of_each_class,
)
from oekd_fast.reporting.finished_runs import Group, Run
from oekd_fast.reporting.latency_section import latency_parts
from oekd_fast.reporting.prediction_figures import agreement_figure, class_figure, reliability_figure
from oekd_fast.reporting.predictions import Predictions, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In points. Training may have used another precision or other kernels; larger differences have another cause.
ACCURACY_TOLERANCE = 0.5


@dataclass(frozen=True)
class Section:
    """The part of the page on one group of runs.

    Args:
        group: the runs.
        load: function that loads the data set of a config.
        data_dir: folder of the data set, given by the user; None if the user gave none.
        with_data: whether the user lets the report load the data set that config.json names.
        images: number of images of the Grad-CAM panels.
        explained: class that Grad-CAM explains.
        device: device on which networks run.
        keep: function called with the name and content of each file beside the page.
        tell: function called with a line for the user if a part of the page is missing.
        model: function that builds the networks of runs whose model is one, given by the user; None if there is none.
    """

    group: Group
    load: Callable[[TrainConfig], ImageDataset]
    data_dir: Path | None
    with_data: bool
    images: int
    explained: Literal["predicted", "true"]
    device: torch.device
    keep: Callable[[str, bytes], None]
    tell: Callable[[str], None]
    model: str | None = None

    def html(self) -> str:
        """Return the section as HTML."""
        return "\n".join(self._parts())

    @property
    def _runs(self) -> tuple[Run, ...]:
        return self.group.runs

    def _parts(self) -> Iterator[str]:
        yield page.heading(2, self.group.title)
        if self.group.differences:
            yield page.paragraph("Trained with " + ", ".join(self.group.differences) + ".")
        yield from self._results()
        yield from latency_parts(self._runs, self._picture)
        yield from self._curves()
        try:
            evidence = list(self._evidence())
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            problem = f"Calibration, agreement, accuracy and confusions by class and Grad-CAM are missing: {error}"
            self.tell(problem)
            yield page.note(problem)
        else:
            yield from evidence
        for run in self._runs:
            fields = _facts(run) | run.config.as_dict()
            yield page.details(
                f"Run {run.path}: versions and configuration", page.table(("field", "value"), fields.items())
            )

    def _results(self) -> Iterator[str]:
        runs, first = self._runs, self._runs[0].summary
        summaries = [run.summary for run in runs]
        config = runs[0].config
        paper = paper_results(config.dataset, config.model, config.num_students, config.objective, config.widths)
        yield page.heading(3, "Accuracy against parameters and operations")
        seeds = ", ".join(str(run.config.seed) for run in runs)
        numbers = f"Mean ± standard deviation of {len(runs)} runs (seeds {seeds})"
        if len(runs) == 1:
            numbers = f"One run (seed {seeds})"
        yield page.paragraph(
            f"{numbers}, epochs: {config.epochs}. Accuracy is top-1, in percent, on {first['test_images']:,} test "
            "images at the epoch selected on validation images. Gain is the relative gain in accuracy of training in "
            "the family over training alone, in percent."
        )
        family, alone = of_students(summaries, "accuracy"), of_students(summaries, "baseline_accuracy")
        gains = of_students(summaries, "relative_gain")
        flipped, flipped_alone = (
            of_students(summaries, f"{name}_with_flips") for name in ("accuracy", "baseline_accuracy")
        )
        flipped_ensembles = [summary.get("ensemble_accuracy_with_flips") for summary in summaries]
        headings = ["student", "parameters", "size %", "MFLOPs", "alone %", "in the family %", "gain %"]
        rows = [
            [
                student["index"],
                f"{student['parameters']:,}",
                f"{student['relative_size']:.2f}",
                f"{student['flops'] / 1e6:,.1f}",
                alone[j] if alone else "-",
                family[j],
                gains[j] if gains else "-",
            ]
            for j, student in enumerate(first["students"])
        ]
        ensemble = spread([summary["ensemble_accuracy"] for summary in summaries])
        rows.append(["ensemble", "", "", "", "", ensemble, ""])
        if flipped and None not in flipped_ensembles:
            headings += ["with flips: alone %", "with flips: in the family %"]
            for j, row in enumerate(rows[:-1]):
                row += [flipped_alone[j] if flipped_alone else "-", flipped[j]]
            rows[-1] += ["", spread(flipped_ensembles)]
        if paper:
            headings += ["paper: alone %", "paper: in the family %"]
            for row, cells in zip(rows, _paper_cells(paper), strict=True):
                row += cells
        yield page.table(headings, rows)
        yield self._picture(
            "sizes", lambda: size_figure(summaries, paper), "Test accuracy against parameters and against FLOPs"
        )
        divisor = config.width_rule.divisor
        if paper:
            yield page.paragraph(
                "The paper's results (Walawalkar et al., ECCV 2020) are means over five runs at the best test epoch, "
                "drawn at the sizes of the networks of these runs."
                + (f" Its students' channels are not rounded to multiples of {divisor}." if divisor > 1 else "")
            )
        if flipped:
            yield page.paragraph(
                "With flips: accuracy of the mean logits of each test image and its mirror image (--test-flips)."
            )
        if not alone:
            yield page.note("Students trained alone are not shown, since not every run has baselines (--baseline).")

    def _curves(self) -> Iterator[str]:
        yield page.heading(3, "Training")
        histories = [run.histories for run in self._runs]
        selected = [run.summary["selected_epoch"] for run in self._runs]
        yield self._picture(
            "curves", lambda: curve_figure(histories, selected), "Loss and validation accuracy of each epoch"
        )

    def _evidence(self) -> Iterator[str]:
        """Yield the parts that need the networks and the test images."""
        config = data_config(self._runs[0].config, self.data_dir, self.with_data)
        networks = [load_networks(run, self.device, self.model) for run in self._runs]
        dataset = self.load(config)
        for run, loaded in zip(self._runs, networks, strict=True):
            check_same_images(dataset, run, loaded.students[0])
        yield from self._predictions(dataset, networks)
        yield from self._cams(dataset, networks[0])

    def _predictions(self, dataset: ImageDataset, networks: list[Networks]) -> Iterator[str]:
        with_baselines = all(loaded.baselines for loaded in networks)
        if not with_baselines and all(run.has_baselines for run in self._runs):
            yield page.note(
                "Students trained alone are missing below, since a run has no weights of baselines (older versions did "
                "not write the folder baselines/)."
            )
        with_gates = all(loaded.gate is not None for loaded in networks)
        runs = [
            predict(
                loaded.students,
                loaded.baselines if with_baselines else (),
                dataset.test,
                dataset.augmentation,
                self.device,
                loaded.gate if with_gates else None,
            )
            for loaded in networks
        ]
        yield from self._check(runs)
        objective = self._runs[0].config.family_objective
        if objective.alone or (objective.gated and not with_gates):
            difference = "also includes earlier networks"
            if objective.gated:
                difference = "uses the gate, which is missing (older versions did not write students/gate.safetensors)"
            yield page.note(
                "Below, the ensemble is the mean of the saved students' logits. The ensemble in the table above "
                f"{difference}."
            )
        yield from self._calibration(runs)
        family = len(networks[0].students) + 1

        yield page.heading(3, "Agreement")
        shares = torch.stack([agreement(run.predicted[:family]) for run in runs]).mean(dim=0)
        yield page.paragraph("Share of test images for which two networks predict the same class, correct or not.")
        names = runs[0].names[:family]
        yield self._picture(
            "agreement",
            lambda: agreement_figure(names, shares),
            "Agreement between students and ensemble",
            natural=True,
        )

        yield page.heading(3, "Accuracy by class")
        accuracies = torch.stack(
            [class_accuracy(run.predicted[:family], run.labels, dataset.num_classes) for run in runs]
        ).mean(dim=0)
        yield self._picture(
            "classes",
            lambda: class_figure(dataset.classes, accuracies[:-1], accuracies[-1]),
            "Accuracy of each student against the ensemble by class",
        )
        images = torch.bincount(runs[0].labels, minlength=dataset.num_classes).tolist()
        rows = [
            (name, count, *(f"{value:.2f}" if count else "-" for value in row))
            for name, count, row in zip(dataset.classes, images, accuracies.T.tolist(), strict=True)
        ]
        headings = ("class", "test images", *(f"{name} %" for name in names))
        yield page.details("All classes", page.table(headings, rows))
        yield from self._confusions(dataset, runs, names)

    def _confusions(self, dataset: ImageDataset, runs: list[Predictions], names: Sequence[str]) -> Iterator[str]:
        """Yield what the networks `names`, the first ones of each run, take each class for."""
        labels = torch.cat([run.labels for run in runs])
        confusions = {
            name: confusion(torch.cat([run.predicted[m] for run in runs]), labels, dataset.num_classes)
            for m, name in enumerate(names)
        }
        yield page.heading(3, "Confusions")
        of_runs = f", of {len(runs)} runs together" if len(runs) > 1 else ""
        if dataset.num_classes <= MATRIX_CLASSES:
            shown = f"Numbers of test images{of_runs}: rows are true classes, columns are predicted ones"
        else:
            shown = "Pairs and classes are those with the most errors of the ensemble" + of_runs
        yield page.paragraph(
            f"{shown}. The recall of a class is the share of its images that are classified correctly. confusion.json "
            "beside this page has all classes and pairs."
        )
        yield self._picture(
            "confusion",
            lambda: confusion_figure(dataset.classes, confusions),
            "Which classes each network takes for which others",
        )
        data = confusion_data(dataset.classes, confusions, len(runs))
        self.keep("confusion.json", (json.dumps(data) + "\n").encode())
        pairs = confusions[names[-1]].pairs[:SHOWN].tolist()
        rows = [
            (dataset.classes[true], dataset.classes[taken], *(each.count(true, taken) for each in confusions.values()))
            for true, taken, _ in pairs
        ]
        headings = ("true class", "predicted class", *(f"{name}, images" for name in names))
        yield page.details(f"Pairs that the {names[-1]} confuses most", page.table(headings, rows))

    def _check(self, runs: list[Predictions]) -> Iterator[str]:
        """Compare the accuracies computed here with those of summary.json."""
        differences = [
            abs(found - student["accuracy"])
            for run, predictions in zip(self._runs, runs, strict=True)
            for student, found in zip(run.summary["students"], predictions.accuracy(), strict=False)
        ]
        if max(differences) > ACCURACY_TOLERANCE:
            yield page.note(
                f"Accuracies computed here differ from summary.json by up to {max(differences):.2f} points: the images "
                "or weights are not those of the run."
            )

    def _calibration(self, runs: list[Predictions]) -> Iterator[str]:
        yield page.heading(3, "Calibration")
        yield page.paragraph(
            "ECE is the expected calibration error (Guo et al., ICML 2017): the mean of |accuracy - confidence| over "
            f"{BINS} bins of equal width of the predicted class's probability, weighted by their images. 0 is best."
        )
        names, rows, diagrams = runs[0].names, [], {}
        for m, name in enumerate(names):
            correct = [run.predicted[m] == run.labels for run in runs]
            confidence = [run.confidence[m] for run in runs]
            errors = [calibrate(*of_run).ece for of_run in zip(confidence, correct, strict=True)]
            means = [100 * values.double().mean().item() for values in confidence]
            accuracies = [run.accuracy()[m] for run in runs]
            rows.append((name, spread(errors), spread(means), spread(accuracies)))
            diagrams[name] = calibrate(torch.cat(confidence), torch.cat(correct))
        yield page.table(("network", "ECE %", "mean confidence %", "accuracy %"), rows)
        yield self._picture("calibration", lambda: reliability_figure(diagrams), "Reliability diagram of each network")
        if len(runs) > 1:
            yield page.paragraph("The diagrams show the predictions of all runs together.")

    def _cams(self, dataset: ImageDataset, networks: Networks) -> Iterator[str]:
        rows = one_of_each_class(dataset.test.labels.cpu(), self.images)
        if len(rows) == 0:
            return
        if not networks.students[0].metadata.widths:
            yield page.note("Grad-CAM needs feature maps, which the students of this family do not return.")
            return
        last = len(networks.students)
        shown = {"student 1, pseudo teacher": networks.students[0]}
        if last > 1:
            shown[f"student {last}"] = networks.students[-1]
        if networks.baselines:
            shown[f"student {last} alone"] = networks.baselines[-1]
        images, panels = grad_cam_panels(shown, dataset, rows, self.explained, self.device)
        labels = dataset.test.labels[rows].cpu()
        yield page.heading(3, "Grad-CAM")
        seed = f" of seed {self._runs[0].config.seed}" if len(self._runs) > 1 else ""
        explained = "the class predicted by each network" if self.explained == "predicted" else "the true class"
        yield page.paragraph(
            f"Grad-CAM (Selvaraju et al., ICCV 2017) of the last block{seed} for {explained}. Bright regions are "
            "evidence for the class. The images are the first of their class in the test split, from classes spread "
            "evenly over all; they were not chosen by hand. The predicted class and its probability are above each."
        )
        yield self._picture(
            "grad_cam",
            lambda: cam_figure(images, labels, dataset.classes, panels),
            "Grad-CAM of pseudo teacher, smallest student and baseline",
        )

    def _picture(self, name: str, draw: Callable[[], Figure], description: str, *, natural: bool = False) -> str:
        """Return the picture of the figure that `draw` returns, or a note if it cannot be drawn."""
        try:
            content = png(draw)
        except Exception as error:  # matplotlib documents no set of exceptions
            problem = f"The picture {name}.png could not be drawn ({str(error) or type(error).__name__})."
            self.tell(problem)
            return page.note(problem)
        self.keep(f"{name}.png", content)
        return page.picture(content, description, natural=natural)


def _paper_cells(paper: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the cells of each student, alone and in the family, then those of the ensemble."""
    pairs = [
        (f"{alone:.2f}", f"{family:.2f}") for alone, family in zip(paper["baseline"], paper["family"], strict=True)
    ]
    return [*pairs, ("", "-" if paper["ensemble"] is None else f"{paper['ensemble']:.2f}")]


def _facts(run: Run) -> dict[str, object]:
    """Return facts of the summary that are shown beside the configuration."""
    summary = run.summary
    facts = {
        "folder": run.path,
        "selected epoch": f"{summary['selected_epoch']} of {len(run.histories['ensemble'])}",
        "seconds": summary["seconds"],
        "images per second, family": summary.get("images_per_second", "-"),
        "trained on": summary.get("device", "-"),
    }
    return facts | {f"version of {name}": version for name, version in summary["versions"].items()}
