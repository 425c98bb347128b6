from gankernels.bench.declarations.bias_act import BENCHMARK as DECLARATION  # noqa: F401


def bench_bias_act(time_provider, group, provider):
    time_provider(group, provider)
