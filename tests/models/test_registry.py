import pytest

from oekd_fast.models import architecture_names, get_architecture


def test_every_name_gives_its_architecture():
    assert {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"} <= set(architecture_names())
    assert all(get_architecture(name).name == name for name in architecture_names())


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"model: 'resnet-110' is unknown; did you mean resnet110.*one of resnet20, "):
        get_architecture("resnet-110")


def test_a_strange_name_is_answered_with_the_list():
    with pytest.raises(ValueError, match=r"model: 'qqq' is unknown; expected one of resnet20, resnet32"):
        get_architecture("qqq")
