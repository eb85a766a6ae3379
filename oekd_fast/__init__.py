"""Online ensemble knowledge distillation: train a family of compressed models at once, fast.

Names are imported on first use, so that the loss needs neither the packages of the trainer nor Triton nor the compiled
extension.
"""

from importlib import import_module

__version__ = "0.2.0"

_EXPORTS = {
    "EnsembleKDOutput": "losses.reference",
    "ensemble_kd_loss": "losses.ensemble_kd",
    "ensemble_kd_value_and_grad": "losses.ensemble_kd",
    "linear_ensemble_kd_loss": "losses.linear",
    "feature_kd_loss": "losses.feature_kd",
    "feature_kd_value_and_grad": "losses.feature_kd",
    "EnsembleKDLoss": "losses.modules",
    "FeatureKDLoss": "losses.modules",
    "EnsembleOutput": "family.ensemble",
    "StudentEnsemble": "family.ensemble",
    "build_ensemble": "family.ensemble",
    "EnsembleWithLoss": "family.with_loss",
    "EnsembleLossOutput": "family.with_loss",
    "FunctionalArchitecture": "models",
    "load_standard_weights": "models",
    "register_architecture": "models",
    "student_flops": "family.flops",
    "load_student": "family.saved",
    "pick_student": "choice.pick",
    "HubStudent": "family.hub",
    "student_of_run": "reporting.hub_student",
    "TrainResult": "results.train_result",
    "TrainConfig": "config.train_config",
    "recipe_config": "config.recipes",
}

__all__ = ["__version__", "train", *_EXPORTS]


def __getattr__(name: str):
    if name == "train":  # a module that can be called; importing it sets the attribute to the module as well
        return import_module(f"{__name__}.train")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
