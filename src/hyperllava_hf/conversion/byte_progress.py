"""A progress bar of bytes on stderr."""

import sys
from types import TracebackType

from tqdm import tqdm


class ByteProgress:
    """A bar that counts bytes, or nothing at all.

    Args:
        label: what is done.
        total: bytes in all.
        is_shown: whether to show it.
    """

    def __init__(self, label: str, total: int, is_shown: bool) -> None:
        self._bar = tqdm(
            total=total,
            desc=label,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            disable=not is_shown,
            leave=False,
        )

    def advance(self, count: int) -> None:
        """Count bytes.

        Args:
            count: how many more are done.
        """
        self._bar.update(count)

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
