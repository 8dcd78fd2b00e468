"""What the recorder calls: see the package's docstring."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.symbols.child import Child
from cctrace.record.symbols.files import Files
from cctrace.record.symbols.frame import Frame, decode
from cctrace.record.symbols.images import Image, Images
from cctrace.record.symbols.kernel import KERNEL, KernelSymbols
from cctrace.record.symbols.maps import Region
from cctrace.record.symbols.resolver import Address, Answer, Limits, Resolver

# Why a frame stayed an address: the keys of ``unresolved()``.
REASONS: Final = {
    "no_symbol": "address in no function of its file's symbol tables",
    "no_mapping": "address in nothing that was mapped when the process was looked at",
    "no_perf_map": "code that the process made itself and no perf map names",
    "gone_file": "file that could not be opened, or not any more",
    "changed_file": "file that was written to after it was seen",
    "bad_file": "file that is no ELF file for x86-64, or makes no sense",
    "too_long": "file whose reading took too long, or ended the process that did it",
    "too_many": "more files than are followed",
    "kernel_hidden": "kernel that does not tell addresses (kernel.kptr_restrict)",
}
_PATIENCE_S: Final = 1.0
_ANONYMOUS: Final = "[anon]"
_TRAMPOLINES: Final = (b"[uprobes]", b"[uprobes-trampoline]")

# Numpy's arrays of addresses are welcome, which are no Sequence by their type.
Addresses = Sequence[int] | npt.NDArray[np.uint64]
_Resolve = Callable[[Sequence[Address]], "list[Answer]"]


class Symbolizer:
    """Makes frames of addresses; every method may be called from any thread.

    Make it before the recorder starts its target: it starts a process of its own.

    Args:
        limits: Time that may be spent; None: the usual.
        kernel: The kernel's symbols; None: those of the running one, read when asked for.
    """

    def __init__(self, limits: Limits | None = None, kernel: KernelSymbols | None = None) -> None:
        self._looking = threading.Lock()  # at processes: never waits for the child
        self._resolving = threading.Lock()
        self._files = Files()
        self._images = Images(self._files)
        self._child = Child()
        self._resolver = Resolver(self._child, limits or Limits())
        self._kernel = kernel
        self._unresolved: Counter[str] = Counter()

    def observe(self, pid: int) -> int | None:
        """Look at what lies where in ``pid`` now.

        Costs one read of /proc/PID/maps, and a descriptor for each file not seen before.

        Returns:
            Its image; None where it is gone or may not be looked at and was not seen
            before, or there have been too many images.
        """
        with self._looking:
            return self._images.observe(pid)

    def image_of(self, pid: int) -> int | None:
        """The image that ``pid`` was last observed to run."""
        with self._looking:
            return self._images.current(pid)

    def knows(self, pid: int, address: int) -> bool:
        """Whether ``address`` lies in what ``pid`` has been observed to have mapped.

        The byte before counts as well: a return address may lie behind the last call.
        """
        with self._looking:
            number = self._images.current(pid)
            image = None if number is None else self._images[number]
        if image is None:
            return False
        return any(image.regions.find(at) is not None for at in (int(address) - 1, int(address)))

    def forget(self, pid: int) -> None:
        """Note that ``pid`` runs another program from now on; known images stay."""
        with self._looking:
            self._images.forget(pid)

    def native(
        self,
        image: int | None,
        addresses: Addresses,
        *,
        first_exact: bool = False,
        exact: bool = False,
    ) -> list[list[Frame]]:
        """Frames of user addresses.

        Args:
            image: What ``observe`` returned.
            addresses: Of a stack, innermost first, or any that are of one sort.
            first_exact: The first is that of an instruction, the rest return addresses.
            exact: All are those of instructions.

        Returns:
            For each address one frame or, with inlined functions, several, innermost first.
        """
        backs = _backs(len(addresses), first_exact, exact)
        # As plain integers: numpy's wrap around and are not JSON.
        wanted = [(int(address), back) for address, back in zip(addresses, backs, strict=True)]
        # Without the lock: what an image is may be looked up while processes are looked at.
        seen = None if image is None else self._images[image]
        with self._resolving:
            answers = self._answers(seen, wanted)
            self._unresolved.update(why for _, why in answers if why is not None)
        return [list(frames) for frames, _ in answers]

    def kernel(
        self, addresses: Addresses, *, first_exact: bool = False, exact: bool = False
    ) -> list[Frame]:
        """Frames of kernel addresses, one for each; arguments as for :meth:`native`."""
        with self._resolving:
            if self._kernel is None:
                self._kernel = KernelSymbols.read()
            frames = []
            backs = _backs(len(addresses), first_exact, exact)
            for address, back in zip(map(int, addresses), backs, strict=True):
                frame = self._kernel.frame(address, back)
                if frame is None:
                    self._unresolved["kernel_hidden" if self._kernel.hidden else "no_symbol"] += 1
                    frame = Frame(f"{address:#x}", KERNEL, None, None, "kernel")
                frames.append(frame)
        return frames

    def unresolved(self) -> dict[str, int]:
        """Frames handed out so far that stayed addresses, by reason (``REASONS``)."""
        return dict(sorted(self._unresolved.items()))

    def notes(self) -> list[str]:
        """What was left out, one sentence for each file, in the order they were seen."""
        with self._looking:
            files = list(self._files)
        with self._resolving:
            return [f"{file.shown}: {file.note}" for file in files if file.note]

    def hurry(self) -> None:
        """Ask the child nothing any more: addresses stay addresses, also those under way."""
        self._child.stop()

    def close(self) -> None:
        """End the child and let go of all files; nothing is resolved any more."""
        self._child.stop()
        with self._resolving:
            self._child.close()
            self._resolver.close()
            # A process that keeps who looks at it keeps the files open, too.
            if self._looking.acquire(timeout=_PATIENCE_S):
                try:
                    self._files.close()
                finally:
                    self._looking.release()

    def _answers(self, image: Image | None, wanted: Sequence[Address]) -> list[Answer]:
        answers: list[Answer] = [
            ([Frame(f"{address:#x}", None, None, None, "native")], "no_mapping")
            for address, _ in wanted
        ]
        groups: dict[object, tuple[_Resolve, list[int], list[Address]]] = {}
        for at, (address, back) in enumerate(wanted):
            region = None if image is None else image.regions.find(address - back)
            if image is None or region is None:
                continue
            key, base, resolve = self._way(image, region)
            _, places, addresses = groups.setdefault(key, (resolve, [], []))
            places.append(at)
            addresses.append((address - base, back))
        for resolve, places, addresses in groups.values():
            for at, answer in zip(places, resolve(addresses), strict=True):
                answers[at] = answer
        return answers

    def _way(self, image: Image, region: Region) -> tuple[object, int, _Resolve]:
        """How to resolve what lies in ``region``.

        Returns:
            What is resolved in one go has one key; what to take off an address; and
            the function for the rest of it.
        """
        in_file = region.start - region.offset
        file = image.files.get(region)
        if file is not None:
            return file.number, in_file, partial(self._resolver.in_file, file)
        module = decode(region.path)
        if region.is_file:
            return region, in_file, partial(_each, "file+", module, "too_many")
        if region.path == b"[vdso]":
            return module, region.start, self._resolver.in_vdso
        if region.path in _TRAMPOLINES:
            return module, region.start, partial(_trampoline, module)
        if region.is_special:
            return module, region.start, partial(_each, "", module, "no_symbol")
        module = module or _ANONYMOUS
        by_map = partial(self._resolver.in_perf_map, image.perf_map, image.root, module)
        return module, 0, by_map


def _each(prefix: str, module: str, why: str, addresses: Sequence[Address]) -> list[Answer]:
    """Addresses as they are."""
    return [
        ([Frame(f"{prefix}{address:#x}", module, None, None, "native")], why)
        for address, _ in addresses
    ]


def _trampoline(module: str, addresses: Sequence[Address]) -> list[Answer]:
    """What a return probe puts in place of the return address of the probed call."""
    frame = Frame("uprobe trampoline", module, None, None, "native")
    return [([frame], None) for _ in addresses]


def _backs(count: int, first_exact: bool, exact: bool) -> list[int]:  # noqa: FBT001 - private
    if exact:
        return [0] * count
    return [0 if first_exact and at == 0 else 1 for at in range(count)]
