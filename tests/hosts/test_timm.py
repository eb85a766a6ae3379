"""timm's training task: mixed labels, evaluation, checkpoints, and torchvision, which timm imports."""

import copy

import pytest
import torch

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss

from ..support.host_examples import distance, family, loader, uneven_batch

pytestmark = pytest.mark.slow


def test_torchvision_s_operators_load(missing_operators):
    if missing_operators is not None:
        pytest.skip(f"the other tests of timm run without them, if timm is installed: {missing_operators}")


@pytest.fixture
def timm_task(example):
    return example("timm_task")


@pytest.fixture
def task(timm_task):
    return timm_task.ClassificationTask(timm_task.TimmFamily(family()), EnsembleKDLoss(), verbose=False)


def counted_batch():
    images, labels = uneven_batch()
    return images, labels.clamp(min=0)


class Recorded:
    """A mixup that keeps the batches that it returns."""

    def __init__(self, mixup):
        self.mixup, self.batches = mixup, []

    def __call__(self, images, labels):
        self.batches.append(self.mixup(images.clone(), labels))
        return self.batches[-1]


def test_mixed_labels_are_probabilities(timm_task, task):
    images, labels = counted_batch()
    data = [(images, labels)]
    mixup = Recorded(timm_task.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10))
    before = copy.deepcopy(task.trainable_module.ensemble)
    timm_task.train(task, data, mixup)
    ((mixed, targets),) = mixup.batches
    assert targets.is_floating_point() and targets.shape == (32, 10) and (targets.max(1).values < 1).all()

    logits = before(mixed).logits
    output = ensemble_kd_loss(logits, targets)
    ce = [torch.nn.functional.cross_entropy(z, targets).item() for z in logits]
    assert output.ce.tolist() == pytest.approx(ce, rel=1e-6)
    output.loss.backward()
    torch.optim.SGD(before.parameters(), lr=0.1, momentum=0.9, nesterov=True).step()
    assert distance(task.trainable_module.ensemble, before) < 1e-7


def test_evaluation_takes_the_mean_of_the_logits(timm_task, task):
    images, labels = counted_batch()
    found = timm_task.evaluate(task, [(images, labels)])
    mean = torch.stack(family()(images).logits).mean(0)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(mean, labels).item())
    assert found["top1"] == pytest.approx(100 * (mean.argmax(1) == labels).float().mean().item())


def test_a_family_that_returns_logits_of_all_students_is_not_evaluated(timm_task):
    task = timm_task.ClassificationTask(family(), EnsembleKDLoss(), verbose=False)
    with pytest.raises(AttributeError, match="'EnsembleOutput' object has no attribute 'ndim'"):
        timm_task.evaluate(task, loader(32))


def test_a_checkpoint_of_the_task_holds_all_students(timm_task, task):
    state = task.get_checkpoint_state()["state_dict"]
    other = timm_task.TimmFamily(family())
    torch.nn.init.zeros_(other.ensemble.branches[2].classifier.weight)
    other.load_state_dict(state)
    assert distance(other, task.trainable_module) == 0
