from gankernels.bench.declarations.conv2d_downsample import BENCHMARK as DECLARATION  # noqa: F401


def bench_conv2d_downsample(time_provider, group, provider):
    time_provider(group, provider)
