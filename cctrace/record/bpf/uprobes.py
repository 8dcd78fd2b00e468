"""Uprobes by the hundred: one program at the entry, one at the return of many functions.

From Linux 6.6 on one link attaches a program to all places of a file at once. Before,
each place is a perf event with a link, and closing one takes the kernel tens of
milliseconds, one after the other (perf_uprobe_destroy waits for grace periods with
event_mutex held): twelve seconds for a driver and a runtime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

from cctrace.record.bpf import frontend, syscalls

Mode = Literal["uprobe_multi", "perf_link"]
Site = tuple[int, int]  # file offset, cookie

_CLOSERS: Final = 16
_CLOSE_HERE: Final = 32  # more than these are left to another process to close


class UprobePrograms:
    """An entry and a return program, loaded for the best way of attaching there is.

    Args:
        module: Compiled programs.
        entry: Name of the program for entries.
        on_return: Name of the program for returns.
        mode: Way of attaching; None: the best this kernel has.

    Attributes:
        mode: Way of attaching in use.

    Raises:
        OSError: The kernel refuses a program.
    """

    def __init__(
        self, module: frontend.Module, entry: str, on_return: str, mode: Mode | None = None
    ) -> None:
        # Tried with the program for returns: one that calls others by a map would bind the
        # map to the attach type of the trial, and all that come later be refused.
        self.mode: Mode = mode or _best_mode(module, on_return)
        attach_type = syscalls.BPF_TRACE_UPROBE_MULTI if self.mode == "uprobe_multi" else -1
        self._entry_fd = module.load(entry, frontend.KPROBE, attach_type)
        self._return_fd = module.load(on_return, frontend.KPROBE, attach_type)

    def attach(self, path: str, sites: list[Site]) -> UprobeLink:
        """Attach both programs to the functions at ``sites`` of the file ``path``."""
        return UprobeLink(self.mode, self._entry_fd, self._return_fd, path, sites)


class UprobeLink:
    """Both programs at some functions of one file, until ``close``.

    A place that the kernel refuses is left out and listed; the others are attached.

    Args:
        mode: Way of attaching.
        entry_fd: Program for entries.
        return_fd: Program for returns.
        path: The file; every process that maps it hits the probes.
        sites: (file offset, cookie) of each function.

    Attributes:
        failed: Places refused, with the kernel's error.
    """

    def __init__(
        self, mode: Mode, entry_fd: int, return_fd: int, path: str, sites: list[Site]
    ) -> None:
        self._mode = mode
        self._path = path
        self._entry_fds: list[int] = []
        self._return_fds: list[int] = []
        self.failed: list[tuple[Site, OSError]] = []
        # Returns first: a call seen to begin must be seen to end. One that is under way
        # when its entry is not yet probed has a return without an entry, which tells.
        attached = self._attach(return_fd, sites, self._return_fds, is_return=True)
        self._attach(entry_fd, attached, self._entry_fds, is_return=False)

    def take_entries(self) -> list[int]:
        """Its entries' descriptors, which are the caller's to close."""
        fds, self._entry_fds = self._entry_fds, []
        return fds

    def take_fds(self) -> tuple[list[int], list[int]]:
        """Its descriptors, entries and returns, which are the caller's to close."""
        returns, self._return_fds = self._return_fds, []
        return self.take_entries(), returns

    def close(self) -> None:
        """Detach, and come back when that is done."""
        close_links([self])

    def _attach(
        self, program_fd: int, sites: list[Site], fds: list[int], *, is_return: bool
    ) -> list[Site]:
        if not sites:
            return []
        if self._mode == "perf_link":
            return self._attach_singly(program_fd, sites, fds, is_return=is_return)
        try:
            fds.append(
                syscalls.link_uprobe_multi(program_fd, self._path, sites, is_return=is_return)
            )
        except OSError as error:
            if len(sites) == 1:
                self.failed.append((sites[0], error))
                return []
            # The kernel takes all or nothing, and does not say which one it dislikes.
            half = len(sites) // 2
            return [
                *self._attach(program_fd, sites[:half], fds, is_return=is_return),
                *self._attach(program_fd, sites[half:], fds, is_return=is_return),
            ]
        return sites

    def _attach_singly(
        self, program_fd: int, sites: list[Site], fds: list[int], *, is_return: bool
    ) -> list[Site]:
        attached = []
        for offset, cookie in sites:
            try:
                event, link = syscalls.link_uprobe(
                    program_fd, self._path, offset, cookie, is_return=is_return
                )
            except OSError as error:
                self.failed.append(((offset, cookie), error))
                if error.errno == errno.EMFILE:
                    break
                continue
            fds += [link, event]
            attached.append((offset, cookie))
        return attached


def stop_entries(links: Iterable[UprobeLink]) -> None:
    """See no further call begin; those begun are still seen to return."""
    _close([fd for link in links for fd in link.take_entries()])


def close_links(links: Iterable[UprobeLink], *, wait: bool = True) -> None:
    """Detach several links: the entries of all, then the returns.

    Args:
        links: What to detach.
        wait: Come back when nothing is attached any more. Otherwise what takes long
            goes on by itself, even after this process.
    """
    taken = [link.take_fds() for link in links]
    entries = [fd for fds, _ in taken for fd in fds]
    returns = [fd for _, fds in taken for fd in fds]
    long = not wait and len(entries) + len(returns) > _CLOSE_HERE
    with _held_elsewhere([*entries, *returns]) if long else contextlib.nullcontext():
        _close(entries)
        _close(returns)


def _best_mode(module: frontend.Module, program: str) -> Mode:
    """Whether the kernel has uprobe_multi: it must complain of the path, not of the link."""
    try:
        fd = module.load(program, frontend.KPROBE, syscalls.BPF_TRACE_UPROBE_MULTI)
    except OSError:
        return "perf_link"
    try:
        os.close(syscalls.link_uprobe_multi(fd, "/", [(0, 0)], is_return=False))
    except OSError as error:
        if error.errno == errno.EBADF:  # "/" is no regular file
            return "uprobe_multi"
    # Loaded for the one kind of link it cannot be attached by the other.
    os.close(module.bpf.funcs.pop(program.encode()).fd)
    return "perf_link"


def _close(fds: list[int]) -> None:
    """Close links; each waits for a grace period, which some can wait for together."""
    if len(fds) > 1:
        with ThreadPoolExecutor(min(len(fds), _CLOSERS)) as pool:
            list(pool.map(_close_one, fds))
    else:
        for fd in fds:
            _close_one(fd)
    fds.clear()


def _close_one(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def _held_elsewhere(fds: list[int]) -> Iterator[None]:
    """Have another process close ``fds`` last, so that it is the one who waits.

    Where there can be none, the caller's closing takes as long.
    """
    holder = shutil.which("cat")
    if holder is None:
        yield
        return
    here, there = os.pipe()
    try:
        # A copy of a descriptor to its own number is one that exec leaves open.
        copies = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]
        with contextlib.suppress(OSError):
            os.posix_spawn(
                holder,
                [holder],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, here, 0), *copies],
                setsid=True,
            )
        yield
    finally:
        # Which ends its input, and thereby it.
        os.close(here)
        os.close(there)
