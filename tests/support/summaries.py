"""Summaries of runs with chosen accuracies."""


def summary_of(family, alone, ensemble=80.0, epochs=450, best=None) -> dict:
    """Return the summary of a run; `best` is the advantage of the best test epoch, or None if it is unknown."""
    students = [
        {
            "index": j + 1,
            "parameters": 1000 // (j + 1),
            "relative_size": 100.0 / (j + 1),
            "accuracy": a,
            "baseline_accuracy": b,
            "last_epoch_accuracy": a - 1.0,
            "last_epoch_baseline_accuracy": b - 1.0,
            "best_test_accuracy": None if best is None else a + best,
            "best_test_baseline_accuracy": None if best is None else b + best,
        }
        for j, (a, b) in enumerate(zip(family, alone, strict=True))
    ]
    return {
        "epochs": epochs,
        "students": students,
        "ensemble_accuracy": ensemble,
        "last_epoch_ensemble_accuracy": ensemble - 1.0,
        "best_test_ensemble_accuracy": None if best is None else ensemble + best,
        "test_images": 10000,
        "device": "a device",
    }


FIVE = [
    summary_of([72.0, 70.0, 67.0, 65.0, 46.0], [70.0, 69.0, 66.0, 64.0, 40.0], 76.0, best=0.5),
    summary_of([74.0, 71.0, 68.0, 66.0, 48.0], [73.0, 69.5, 67.5, 64.5, 44.0], 78.0, best=0.5),
]
