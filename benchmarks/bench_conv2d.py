from gankernels.bench.declarations.conv2d import BENCHMARK as DECLARATION  # noqa: F401


def bench_conv2d(time_provider, group, provider):
    time_provider(group, provider)
