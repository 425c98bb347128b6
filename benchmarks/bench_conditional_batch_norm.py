from gankernels.bench.declarations.conditional_batch_norm import CONDITIONAL_BATCH_NORM as DECLARATION  # noqa: F401


def bench_conditional_batch_norm(time_provider, group, provider):
    time_provider(group, provider)
