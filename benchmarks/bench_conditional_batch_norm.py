from gankernels.bench.declarations.conditional_batch_norm import BENCHMARK as DECLARATION  # noqa: F401


def bench_conditional_batch_norm(time_provider, group, provider):
    time_provider(group, provider)
