"""Programs of processes, and what lay where in each of them."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import Final

from cctrace.record.symbols import maps
from cctrace.record.symbols.files import Files, MappedFile
from cctrace.record.symbols.maps import Region, RegionMap, merged, parse
from cctrace.store.manifest import start_ticks

_MAX_IMAGES: Final = 4096
_GRAIN_S: Final = 1.0  # of a process's start and of a file's time, taken together


@dataclass(frozen=True)
class PerfMapPlace:
    """Where the perf map of a process is, if it writes one.

    Attributes:
        path: Within its root; by the pid it has for itself.
        uid: Its user.
        not_before_s: Its start, seconds of CLOCK_REALTIME.
    """

    path: str
    uid: int
    not_before_s: float


@dataclass
class Image:
    """One program of one process.

    Attributes:
        ticks: Start of the process, in clock ticks; with the pid it names the process.
        vdso: Where its vDSO lies; another place tells another program.
        seen: Digest of the maps it was last seen with.
        regions: What lies where.
        root: Descriptor of its root directory; -1: none.
        perf_map: Where its perf map is; None: cannot be told.
        files: The file of each region that has one; None: there are too many.
    """

    ticks: int | None
    vdso: int | None
    seen: bytes
    regions: RegionMap
    root: int
    perf_map: PerfMapPlace | None
    files: dict[Region, MappedFile | None] = field(default_factory=dict)


class Images:
    """All images of a run, by number. Calls are for one thread at a time.

    Args:
        files: Takes the files that are mapped.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._images: list[Image] = []
        self._current: dict[int, int] = {}

    def __getitem__(self, number: int) -> Image | None:
        """The image of that number; None: there is none."""
        return self._images[number] if 0 <= number < len(self._images) else None

    def current(self, pid: int) -> int | None:
        """Number of the image that ``pid`` was last seen to run."""
        return self._current.get(pid)

    def forget(self, pid: int) -> None:
        """Take what ``pid`` runs from now on for another program."""
        self._current.pop(pid, None)

    def observe(self, pid: int) -> int | None:
        """Look at ``pid``; None where there is nothing to see and nothing was seen."""
        text = maps.read(pid)
        number = self._current.get(pid)
        if not text:
            return number
        seen = hashlib.blake2b(text).digest()
        if number is not None and self._images[number].seen == seen:
            return number
        ticks = start_ticks(pid)
        regions = parse(text)
        vdso = next((r.start for r in regions if r.path == b"[vdso]"), None)
        image = None if number is None else self._images[number]
        if image is None or image.ticks != ticks or image.vdso != vdso:
            if len(self._images) >= _MAX_IMAGES:
                return None
            root = self._files.root_of(pid)
            image = Image(ticks, vdso, b"", RegionMap([]), root, _perf_map(pid))
            number = self._current[pid] = len(self._images)
            self._images.append(image)
        image.seen = seen
        image.regions = RegionMap(merged(image.regions.regions, regions))
        for region in regions:
            if region.is_file and region not in image.files:
                image.files[region] = self._files.of(pid, region, image.root)
        if len(image.files) > len(image.regions.regions):
            image.files = {r: image.files[r] for r in image.regions.regions if r in image.files}
        return number


def _perf_map(pid: int) -> PerfMapPlace | None:
    """By proc_pid_status(5): the last of NSpid is the pid in the innermost namespace."""
    words: dict[bytes, list[bytes]] = {}
    for line in maps.read_start(f"/proc/{pid}/status", 1 << 16).split(b"\n"):
        name, _, rest = line.partition(b":")
        words[name] = rest.split()
    ticks = start_ticks(pid)
    try:
        own_pid = int((words.get(b"NSpid") or [b"%d" % pid])[-1])
        uid = int(words[b"Uid"][1])
        hertz = os.sysconf("SC_CLK_TCK")
    except (KeyError, ValueError, IndexError):
        return None
    if ticks is None:
        return None
    booted_s = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return PerfMapPlace(f"/tmp/perf-{own_pid}.map", uid, booted_s + ticks / hertz - _GRAIN_S)  # noqa: S108 - the name perf gave it
