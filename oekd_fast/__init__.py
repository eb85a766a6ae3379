"""Online ensemble knowledge distillation: train a family of compressed models at once, fast.

Names are loaded at first use, so that the loss can be imported without the trainer's packages,
Triton or the compiled extension.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "EnsembleKDOutput": "reference",
    "ensemble_kd_loss": "ops",
    "ensemble_kd_value_and_grad": "ops",
    "feature_kd_loss": "feature_ops",
    "feature_kd_value_and_grad": "feature_ops",
    "EnsembleKDLoss": "losses",
    "FeatureKDLoss": "losses",
    "EnsembleOutput": "ensemble",
    "StudentEnsemble": "ensemble",
    "build_ensemble": "ensemble",
    "FunctionalArchitecture": "models",
    "load_standard_weights": "models",
    "register_architecture": "models",
    "student_flops": "flops",
    "load_student": "students",
    "TrainConfig": "config",
    "recipe_config": "recipes",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
