from __future__ import annotations

from operator import attrgetter

from made_up_rows import group

from gankernels.bench.iteration import iterations

WGAN_GP = {"position": "wgan-gp-64", "shape": "16x3x64x64", "mode": "step"}


def test_steps_are_weighted_as_the_recipe_takes_them():
    d = group({"eager": 30.0, "compile": 20.0, "gankernels-auto": 10.0}, op="d_step_wgan_gp", **WGAN_GP)
    g = group({"eager": 40.0, "compile": 60.0, "gankernels-auto": 30.0}, op="g_step", **WGAN_GP)
    (iteration,) = iterations([*d, *g])
    assert iteration.n_dis == 5
    assert iteration.milliseconds(attrgetter("eager")) == 5 * 30 + 40
    assert iteration.milliseconds(attrgetter("peer")) == 5 * 20 + 40, "each step has its own best peer"
    assert iteration.milliseconds(attrgetter("best")) == 5 * 10 + 30
    assert iteration.images_per_second(attrgetter("best")) == 1e3 * 5 * 16 / 80
    line = (
        "wgan-gp-64, float32, 5 discriminator steps and one of the generator: 1000 images/s, best peers 571.4 (1.75x)"
    )
    assert iteration.describe() == line


def test_a_step_without_a_time_leaves_none():
    d = group({"eager": "wrong: off by 2", "gankernels-auto": 10.0}, op="d_step_wgan_gp", **WGAN_GP)
    g = group({"eager": 40.0, "gankernels-auto": 30.0}, op="g_step", **WGAN_GP)
    (iteration,) = iterations([*d, *g])
    assert iteration.milliseconds(attrgetter("peer")) is None
    assert iteration.images_per_second(attrgetter("eager")) is None
    assert iteration.milliseconds(attrgetter("best")) == 80


def test_other_penalties_batches_and_dtypes_are_no_pair():
    g = group(op="g_step", **WGAN_GP)
    for differs in ({"op": "d_step"}, {"shape": "8x3x64x64"}, {"dtype": "bfloat16"}, {"position": "block 3"}):
        d = group(**({"op": "d_step_wgan_gp"} | WGAN_GP | differs))
        assert iterations([*d, *g]) == []
