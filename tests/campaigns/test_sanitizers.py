"""A share of the sanitizer campaign: the executor's thread pool under ThreadSanitizer."""

import pytest

from .sanitizers import Runs, ThreadPool, library


@pytest.mark.slow
def test_the_thread_pool_has_no_data_race_and_a_planted_one_is_reported(tmp_path):
    try:
        library("libtsan.so")
    except OSError as error:
        pytest.skip(str(error))
    pool = ThreadPool(Runs(tmp_path))
    result = pool.run(rounds=4, seed=1)
    assert result["reports"] == [] and result["status"] == 0, result
    assert min(result["calls"], result["tasks"], result["raised"], result["failed_starts"]) > 0
    (report, *_) = pool.run(rounds=1, seed=1, race=True)["reports"]
    assert "ThreadSanitizer: data race" in report and "host_pool_stress.cpp" in report
