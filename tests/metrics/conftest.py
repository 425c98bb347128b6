import shutil

import pytest
import torch

from gankernels.metrics import classifier


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained_cache(tmp_path_factory):
    """A cache folder in which the classifier of digits at 32 px has been trained, and that classifier."""
    folder = tmp_path_factory.mktemp("cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANKERNELS_CACHE", str(folder))
        before = torch.get_rng_state()
        judge = classifier.train_or_load("digits", resolution=32, channels=1)
        judge.left_global_rng_alone = torch.equal(before, torch.get_rng_state())
    torch.set_num_threads(threads)
    return folder, judge


@pytest.fixture
def digits_cache(trained_cache, tmp_path, monkeypatch):
    """A copy of that cache, set as this test's cache folder."""
    folder = tmp_path / "cache"
    shutil.copytree(trained_cache[0], folder)
    monkeypatch.setenv("GANKERNELS_CACHE", str(folder))
    return folder / "metrics"


@pytest.fixture
def no_training(monkeypatch):
    """Counts trainings instead of running them."""
    calls = []
    monkeypatch.setattr(classifier, "_fit", lambda judge, dataset, *rest: calls.append(dataset.name))
    return calls
