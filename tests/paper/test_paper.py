"""Tables of the paper: complete, plausible, and consistent with numbers in its text."""

from oekd_fast.models import architecture_names
from oekd_fast.paper import paper_tables


def test_tables_match_the_numbers_of_the_abstract():
    tables = paper_tables()
    assert "2011.07449" in tables["source"]
    # For ResNet110 on CIFAR-100 student 5 has 3.64 % of the size and gains 10.64 % (10.65 % by the table).
    result = tables["accuracy"]["cifar100"]["resnet110"]
    assert round(100 * (result["ensemble"][4] / result["baseline"][4] - 1), 2) == 10.65
    assert tables["relative_size_percent"]["resnet110"][4] == 3.64


def test_every_table_has_five_students_of_a_registered_network():
    for models in paper_tables()["accuracy"].values():
        for model, rows in models.items():
            assert model in architecture_names()
            assert set(rows) == {"baseline", "ensemble"}
            assert all(len(row) == 5 and all(30 < value < 100 for value in row) for row in rows.values())


def test_ensemble_errors_belong_to_a_data_set_and_network_with_accuracies():
    tables = paper_tables()
    columns = tables["ensemble_error_percent"]["columns"]
    assert len(tables["ensemble_error_percent"]["paper"]) == len(columns)
    for column in columns:
        dataset, model = column.split("/")
        assert model in tables["accuracy"][dataset]
