"""The chunks of a run, worked through in the background: one on each core.

Views of a chunk follow each other, and half of their time is a sort that one thread
does. So two chunks on a core each take less time than one after the other on two.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cctrace.store.excerpt import Excerpt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from cctrace.analyze.chunks import Chunk
    from cctrace.store.excerpt import Kept
    from cctrace.store.run import Run


class Pieces:
    """Chunks at work, from the entry of the ``with`` to its end at most.

    Args:
        run: The run.
        chunks: What it was cut into.
        views: Views of which rows are wanted, each with a ``ts_ns``.
        kept: What holds for the run as a whole.
        workers: Chunks to work on at a time.
        memory_bytes: What DuckDB may use for all of them.
    """

    def __init__(
        self,
        run: Run,
        chunks: Sequence[Chunk],
        views: Sequence[str],
        kept: Kept,
        *,
        workers: int,
        memory_bytes: int,
    ) -> None:
        self._run = run
        self._left = iter(chunks)
        self._views = views
        self._kept = kept
        self._workers = workers
        self._memory_limit = f"{memory_bytes // workers}B"
        self._taking = threading.Lock()
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(workers)
        self._made: list[Future[Kept]] = []

    def rows(self, view: str) -> list[Any]:
        """Rows of a view that start in the cores, a ``pyarrow.Table`` of each worker.

        Waits for the chunks.

        Raises:
            CctraceError: A view cannot be computed.
        """
        return [future.result().tables[view] for future in self._made]

    def __enter__(self) -> Self:
        self._made = [self._pool.submit(self._work) for _ in range(self._workers)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()  # where something failed the chunks at work are the last ones
        self._pool.shutdown()

    def _take(self) -> Chunk | None:
        with self._taking:
            return None if self._over.is_set() else next(self._left, None)

    def _work(self) -> Kept:
        try:
            with Excerpt(self._run, self._memory_limit, threads=1) as excerpt:
                excerpt.adopt(self._kept)
                for name in self._views:
                    excerpt.collect(name)
                while (chunk := self._take()) is not None:
                    excerpt.focus([chunk.window], outermost=True)
                    for name in self._views:
                        excerpt.add_rows(name, chunk.core)
                return excerpt.kept()
        except BaseException:
            self._over.set()
            raise
