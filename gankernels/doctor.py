"""``gankernels doctor``: what runs on this machine and why."""


def doctor(): ...
