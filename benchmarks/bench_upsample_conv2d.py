from gankernels.bench.declarations.upsample_conv2d import BENCHMARK as DECLARATION  # noqa: F401


def bench_upsample_conv2d(time_provider, group, provider):
    time_provider(group, provider)
