"""Lightning's Trainer: automatic and manual optimisation, resuming."""

import pytest
import torch

from oekd_fast import ensemble_kd_loss

from ..support.host_examples import distance, family, loader, uneven_batch, update, whole_batch_step

pytestmark = pytest.mark.slow


@pytest.fixture
def fit(example):
    def run(module, batch_size=32, checkpoint=None, **options):
        lightning = example("lightning_module").lightning
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **{"max_epochs": 1} | options,
        )  # fmt: skip
        trainer.fit(module, loader(batch_size), ckpt_path=checkpoint)
        return trainer

    return run


@pytest.fixture
def modules(example):
    return example("lightning_module")


def test_automatic_optimisation_is_a_plain_step(fit, modules):
    module = modules.FamilyModule(family())
    trainer = fit(module)
    expected = whole_batch_step(family())
    assert distance(module.ensemble, expected) == 0
    images, labels = uneven_batch()
    ce = ensemble_kd_loss(family()(images).logits, labels).ce
    assert [float(trainer.callback_metrics[f"ce_{j}"]) for j in (1, 2, 3)] == pytest.approx(ce.tolist())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_manual_optimisation_in_parts_has_the_gradients_of_the_whole_batch(fit, modules, parts):
    module = modules.ManualFamilyModule(family(), parts=parts)
    fit(module)
    assert distance(module.ensemble, whole_batch_step(family())) < 1e-7  # gradients within 1e-6: the rate is 0.1


def test_accumulate_grad_batches_averages_the_means_of_batches(fit, modules):
    """Rows of a batch in which many are ignored weigh more than others."""
    module = modules.FamilyModule(family())
    fit(module, batch_size=8, accumulate_grad_batches=4)
    images, labels = uneven_batch()
    expected = family()
    for part, part_labels in zip(images.chunk(4), labels.chunk(4), strict=True):
        (ensemble_kd_loss(expected(part).logits, part_labels).loss / 4).backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    assert distance(module.ensemble, expected) < 1e-7
    right = update(whole_batch_step(family()), family())
    assert (update(module.ensemble, family()) - right).norm() / right.norm() == pytest.approx(0.33, abs=0.01)


def test_a_run_in_bfloat16_resumes_with_the_same_bits(fit, modules):
    whole = modules.ManualFamilyModule(family())
    fit(whole, batch_size=16, max_epochs=2, precision="bf16-mixed")
    half = modules.ManualFamilyModule(family())
    fit(half, batch_size=16, max_epochs=1, precision="bf16-mixed").save_checkpoint("half.ckpt")
    resumed = modules.ManualFamilyModule(family())
    fit(resumed, batch_size=16, max_epochs=2, precision="bf16-mixed", checkpoint="half.ckpt")
    assert distance(whole.ensemble, resumed.ensemble) == 0 < distance(half.ensemble, resumed.ensemble)
