"""Chapters on the predictions for the test images: classes, confusions, calibration and agreement."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from oekd_fast.common.spread import spread
from oekd_fast.reporting import page
from oekd_fast.reporting.agreement import agreement, class_accuracy
from oekd_fast.reporting.calibration import BINS, LEAST_IMAGES, calibrate
from oekd_fast.reporting.confusion import confusion, confusion_data
from oekd_fast.reporting.confusion_figures import MATRIX_CLASSES, SHOWN, confusion_figure
from oekd_fast.reporting.evaluation import Evaluation
from oekd_fast.reporting.image_figures import worst_figure
from oekd_fast.reporting.names import colored_name
from oekd_fast.reporting.pictures import Pictures
from oekd_fast.reporting.prediction_figures import agreement_figure, class_figure, reliability_figure
from oekd_fast.reporting.worst_images import worst_images

WORST_IMAGES = 8


def classes_chapter(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    """Yield the accuracy by class, and which classes are taken for which others."""
    yield page.heading(3, "Accuracy by class")
    yield from _by_class(evaluation, picture)
    yield page.heading(3, "Confusions")
    yield from _confusions(evaluation, picture)
    yield page.heading(3, "Worst images")
    yield from _worst(evaluation, picture)


def _by_class(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    dataset, runs, names = evaluation.dataset, evaluation.predictions, evaluation.family
    accuracies = torch.stack(
        [class_accuracy(run.predicted[: len(names)], run.labels, dataset.num_classes) for run in runs]
    ).mean(dim=0)
    yield picture(
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


def _confusions(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    dataset, runs, names = evaluation.dataset, evaluation.predictions, evaluation.family
    labels = torch.cat([run.labels for run in runs])
    confusions = {
        name: confusion(torch.cat([run.predicted[m] for run in runs]), labels, dataset.num_classes)
        for m, name in enumerate(names)
    }
    of_runs = f", of {len(runs)} runs together" if len(runs) > 1 else ""
    if dataset.num_classes <= MATRIX_CLASSES:
        shown = f"Numbers of test images{of_runs}: rows are true classes, columns are predicted ones"
    else:
        shown = "Pairs and classes are those with the most errors of the ensemble" + of_runs
    yield page.paragraph(
        f"{shown}. The recall of a class is the share of its images that are classified correctly. confusion.json "
        "beside this page has all classes and pairs."
    )
    yield picture(
        "confusion",
        lambda: confusion_figure(dataset.classes, confusions),
        "Which classes each network takes for which others",
    )
    if dataset.num_classes <= MATRIX_CLASSES and (others := names[:-2]):  # those that the picture above leaves out
        matrices = picture(
            "confusion_others",
            lambda: confusion_figure(dataset.classes, confusions, others),
            "Which classes each of the other students takes for which others",
        )
        yield page.details("The other students", matrices)
    data = confusion_data(dataset.classes, confusions, len(runs))
    picture.keep("confusion.json", (json.dumps(data) + "\n").encode())
    pairs = confusions[names[-1]].pairs[:SHOWN].tolist()
    rows = [
        (dataset.classes[true], dataset.classes[taken], *(each.count(true, taken) for each in confusions.values()))
        for true, taken, _ in pairs
    ]
    headings = ("true class", "predicted class", *names)
    yield page.details(f"Numbers of images of the pairs that the {names[-1]} confuses most", page.table(headings, rows))


def _worst(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    dataset, names = evaluation.dataset, evaluation.family[-2:]
    networks = [worst_images(evaluation.predictions[0], name, dataset, WORST_IMAGES) for name in names]
    of_run = " of the first run" if len(evaluation.predictions) > 1 else ""
    yield page.paragraph(
        f"Wrong predictions{of_run} with the highest loss, of the smallest student and of the ensemble, with the true "
        "class above and the predicted class and its probability below each image."
    )
    yield picture("worst", lambda: worst_figure(dataset.classes, networks), "The worst images of two networks")


def calibration_chapter(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    """Yield the expected calibration errors and reliability diagrams."""
    runs = evaluation.predictions
    yield page.paragraph(
        "ECE is the expected calibration error (Guo et al., ICML 2017): the mean of |accuracy - confidence| over "
        f"{BINS} bins of equal width of the predicted class's probability, weighted by their images. 0 is best."
    )
    rows, diagrams = [], {}
    for m, name in enumerate(runs[0].names):
        correct = [run.predicted[m] == run.labels for run in runs]
        confidence = [run.confidence[m] for run in runs]
        errors = [calibrate(*of_run).ece for of_run in zip(confidence, correct, strict=True)]
        means = [100 * values.double().mean().item() for values in confidence]
        accuracies = [run.accuracy()[m] for run in runs]
        rows.append((colored_name(name), spread(errors), spread(means), spread(accuracies)))
        diagrams[name] = calibrate(torch.cat(confidence), torch.cat(correct))
    yield page.table(("network", "ECE %", "mean confidence %", "accuracy %"), rows)
    yield picture("calibration", lambda: reliability_figure(diagrams), "Reliability diagram of each network")
    together = " The diagrams show the predictions of all runs together." if len(runs) > 1 else ""
    yield page.paragraph(
        f"In the diagrams, neighbouring bins are merged until they hold {LEAST_IMAGES} images.{together}", "small"
    )


def agreement_chapter(evaluation: Evaluation, picture: Pictures) -> Iterator[str]:
    """Yield how often two networks predict the same class."""
    names = evaluation.family
    shares = torch.stack([agreement(run.predicted[: len(names)]) for run in evaluation.predictions]).mean(dim=0)
    yield page.paragraph("Share of test images for which two networks predict the same class, correct or not.")
    yield picture(
        "agreement",
        lambda: agreement_figure(names, shares),
        "Agreement between students and ensemble",
    )
