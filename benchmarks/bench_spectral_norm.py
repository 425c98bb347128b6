from gankernels.bench.declarations.spectral_norm import BENCHMARK as DECLARATION  # noqa: F401


def bench_spectral_norm(time_provider, group, provider):
    time_provider(group, provider)
