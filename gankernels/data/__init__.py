"""Data sets: built-in ones, prepared zips, and the conversion that prepares them.

Pillow (extra ``train``) is imported only when pictures are decoded.
"""

from typing import TYPE_CHECKING, Any

from gankernels.data.dataset import ImageDataset, open_dataset

if TYPE_CHECKING:
    from gankernels.data.conversion import prepare

__all__ = ["ImageDataset", "open_dataset", "prepare"]


def __getattr__(name: str) -> Any:
    if name == "prepare":
        from gankernels.data.conversion import prepare

        return prepare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
