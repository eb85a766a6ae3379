import pytest

from oekd_fast.models import architecture_names, get_architecture


def test_every_name_has_its_architecture():
    assert {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"} <= set(architecture_names())
    assert all(get_architecture(name).name == name for name in architecture_names())


def test_the_error_for_a_misspelt_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"model: 'resnet-110' is unknown; did you mean resnet110.*one of resnet20, "):
        get_architecture("resnet-110")


def test_the_error_for_an_unknown_name_lists_all_names():
    with pytest.raises(ValueError, match=r"model: 'qqq' is unknown; expected one of resnet20, resnet32"):
        get_architecture("qqq")
