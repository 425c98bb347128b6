from gankernels.bench.declarations.conv_transpose2d import BENCHMARK as DECLARATION  # noqa: F401


def bench_conv_transpose2d(time_provider, group, provider):
    time_provider(group, provider)
