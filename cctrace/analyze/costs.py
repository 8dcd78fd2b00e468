"""What calls cost in a run when nothing holds them up, from the view ``bridge_model``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cctrace.analyze.graph import Call
    from cctrace.store.session import Session

ASYNC = "async"
STAGED = "staged"
SYNCHRONOUS = "host_synchronous"

# Where neither the run nor a published figure tells: a small command (ns).
_UNKNOWN_TOLL_NS = 1000.0
_MANY_CALLS = 20  # launches, from which on their toll tells CC on from off
_COPY_SPLIT = 0.35  # of a copy's toll, the host's part before the device has it
_SURE_NS = 4000  # a wait is told from noise by so much, ns,
_SURE_SHARE = 0.3  # and by so much of what the call takes anyway
# Functions that may wait for the device (CUDA driver API, cuMemFree); unmapping and
# unregistering take the host's time by size.
_FREES = frozenset({"cudaFree", "cudaFreeHost", "cuMemFree", "cuMemFreeHost"})
_LATE_FREE_NS = 20_000  # giving memory back takes this much longer than getting some


@dataclass(frozen=True)
class CopyCost:
    """What one kind of copy costs.

    Attributes:
        host_ns: The host's time until the copy is submitted, ns.
        latency_ns: The device's time whatever the size, ns.
        ns_per_byte: What each byte adds to the device's time, ns.
        mode: async, staged or host_synchronous, as in ``bridge_model``.
    """

    host_ns: float
    latency_ns: float
    ns_per_byte: float
    mode: str

    def device_ns(self, size_bytes: int | None) -> float:
        """Return how long the device copies, ns."""
        return self.latency_ns + self.ns_per_byte * (size_bytes or 0)


def waits_by_name(api: str) -> bool:
    """Whether a copying function is one that CUDA documents to wait for the copy."""
    return "Async" not in api and "Batch" not in api


def memory_kind(host_memory: str | None) -> str:
    """Return the kind of host memory that published figures are for."""
    if host_memory in ("pinned", "registered"):
        return "pinned"
    return "managed" if host_memory == "managed" else "pageable"


class Costs:
    """Costs of the calls of one run.

    Args:
        model: Rows of ``bridge_model`` by column name.
        published: Rows of ``_bridge_profiles`` of the run's profile, by column name.
        probe_ns: What the probes add to a call, ns.
        python_pids: Processes that run Python, whose threads share a lock.
    """

    def __init__(
        self,
        model: Iterable[dict[str, Any]],
        published: Iterable[dict[str, Any]],
        probe_ns: float,
        python_pids: Iterable[int] = (),
    ) -> None:
        self.python_pids = frozenset(python_pids)
        self.probe_ns = probe_ns
        self._model = {
            (row["class"], row["api"], row["copy_kind"], row["host_memory"]): row for row in model
        }
        self._published = {
            (row["class"], row["copy_kind"], row["host_memory"]): row for row in published
        }
        self._copies: dict[tuple[str | None, str | None, str | None], CopyCost] = {}
        self._tolls: dict[tuple[str, str | None, str | None], float] = {}

    @property
    def profile(self) -> str | None:
        """Name of the published figures that fill what the run does not show."""
        return next((str(row["profile"]) for row in self._model.values()), None)

    @property
    def is_confidential(self) -> bool:
        """Whether confidential computing is taken to be on."""
        return (self.profile or "").endswith("-cc")

    def copy(self, api: str | None, copy_kind: str | None, host_memory: str | None) -> CopyCost:
        """Return the costs of a kind of copy; ``api`` None: of one that remedies use."""
        key = api, copy_kind, host_memory
        if key not in self._copies:
            self._copies[key] = self._find_copy(*key)
        return self._copies[key]

    def _find_copy(
        self, api: str | None, copy_kind: str | None, host_memory: str | None
    ) -> CopyCost:
        is_bridge = copy_kind in ("h2d", "d2h", "unknown", None)
        known = copy_kind if copy_kind in ("d2h", "d2d", "p2p") else "h2d"
        figures = self._published.get(
            ("copy", known, memory_kind(host_memory) if is_bridge else None), {}
        )
        row = self._row("copy", api, copy_kind, host_memory)
        mode = row.get("mode") or figures.get("mode") or ASYNC
        if api is not None and is_bridge and waits_by_name(api):
            mode = SYNCHRONOUS
        elif copy_kind == "h2d" and memory_kind(host_memory) == "pageable":
            mode = STAGED  # CUDA's manual: returns once the source is read
        elif copy_kind == "h2d":
            # Small ones wait for too little to be told from slow ones: those to the host,
            # which wait for a whole step's work, tell for both.
            to_host = self._row("copy", None, "d2h", host_memory).get("mode")
            mode = to_host or figures.get("mode") or mode
        toll_ns = _number(row.get("toll_ns"), figures.get("toll_ns"), _UNKNOWN_TOLL_NS)
        host_ns = min(
            _number(figures.get("toll_ns"), None, _COPY_SPLIT * toll_ns), _COPY_SPLIT * toll_ns
        )
        latency_ns = toll_ns - host_ns
        if mode != SYNCHRONOUS:  # then the toll is the host's alone
            host_ns = toll_ns
            latency_ns = _number(figures.get("latency_ns"), row.get("latency_ns"), 0.0)
        gb_per_s = _number(figures.get("gb_per_s"), row.get("gb_per_s"), 0.0)
        if mode == SYNCHRONOUS and row.get("gb_per_s"):
            gb_per_s = float(row["gb_per_s"])
        return CopyCost(host_ns, latency_ns, 1 / gb_per_s if gb_per_s else 0.0, mode)

    def _row(
        self, cls: str, api: str | None, copy_kind: str | None, host_memory: str | None
    ) -> dict[str, Any]:
        row = self._model.get((cls, api, copy_kind, host_memory))
        if row is None and (api is None or cls != "copy" or not waits_by_name(api)):
            # Any function that does the same; what most is known of first.
            alike = [
                found
                for (of, by, kind, memory), found in self._model.items()
                if (of, kind, memory) == (cls, copy_kind, host_memory)
                and (cls != "copy" or by is None or not waits_by_name(by))
            ]
            row = max(alike, key=lambda found: found.get("n") or 0, default=None)
        return row or {}

    def toll_ns(self, cls: str, api: str | None = None, host_memory: str | None = None) -> float:
        """Return the host's time in a call of a class that does not copy, ns, probes included."""
        key = cls, api, host_memory
        if key not in self._tolls:
            memory = host_memory if cls == "alloc" else None
            row = self._row(cls, api, None, memory)
            figures = self._published.get((cls, None, memory), {})
            toll_ns = _number(row.get("toll_ns"), figures.get("toll_ns"), _UNKNOWN_TOLL_NS)
            self._tolls[key] = toll_ns + self.probe_ns
        return self._tolls[key]

    def latency_ns(self, cls: str) -> float:
        """Return the time from a launch's return until the device may start it, ns."""
        if cls not in ("launch", "graph", "memset"):
            return 0.0
        row = self._published.get((cls, None, None), {})
        return _number(row.get("latency_ns"), None, 0.0)

    def waited(self, call: Call, least_ns: float) -> bool:
        """Whether a call was held up, ``least_ns`` being what it takes if it is not."""
        return call.dur_ns > least_ns + max(_SURE_NS, _SURE_SHARE * least_ns)

    def free_waited(self, call: Call) -> bool:
        """Whether a call that frees memory was held up by the device.

        ``cuMemFree`` "may perform implicit synchronization" (CUDA driver API). What it
        takes without is published nowhere: it is told from what allocations take.
        """
        return call.api in _FREES and call.dur_ns > 2 * self.least_ns(call) + _LATE_FREE_NS

    def least_ns(self, call: Call) -> float:
        """Return how long a call that waits takes if there is nothing to wait for, ns."""
        if call.cls == "copy":
            cost = self.copy(call.api, call.copy_kind, call.host_memory)
            return cost.host_ns + cost.device_ns(call.size_bytes) + self.probe_ns
        if call.cls == "free":
            return self.toll_ns("alloc", None, "pinned" if "Host" in call.api else None)
        return self.toll_ns(call.cls, call.api)


def _number(first: Any, second: Any, otherwise: float) -> float:
    for value in (first, second):
        if value is not None:
            return float(value)
    return otherwise


def load_costs(session: Session, run_label: str) -> Costs:
    """Read the costs of a run."""
    params = {"run": run_label}
    model = _rows(session, "SELECT * FROM bridge_model WHERE run = $run", params)
    profiles = _rows(session, "SELECT * FROM _bridge_profiles", {})
    [facts] = _rows(session, "SELECT probe_ns, gpu_name FROM runs WHERE run = $run", params)
    profile = next((str(row["profile"]) for row in model), "b300")
    if facts["probe_ns"] is not None:  # else another tool's overhead is in the lengths
        profile = checked_profile(model, profiles, is_named=facts["gpu_name"] is not None)
    if any(row["profile"] != profile for row in model):
        model = [row | {"profile": profile, "mode": None} for row in model]
    published = [row for row in profiles if row["profile"] == profile]
    programs = _rows(session, "SELECT pid, exe FROM processes WHERE run = $run", params)
    python = [row["pid"] for row in programs if "python" in (row["exe"] or "").rsplit("/", 1)[-1]]
    return Costs(model, published, _number(facts["probe_ns"], None, 0.0), python)


def checked_profile(
    model: Sequence[dict[str, Any]], profiles: Sequence[dict[str, Any]], *, is_named: bool
) -> str:
    """Return the profile of a run; one told by behaviour has to fit its launches.

    Some slow copies look like copies that wait, and copies that have nothing to wait for
    look like ones that do not. Many launches do not err together.

    Args:
        model: Rows of ``bridge_model`` by column name.
        profiles: Rows of ``_bridge_profiles`` by column name.
        is_named: Whether the GPU's name is known, and with it the family.
    """
    named = next((row for row in model), None)
    if named is None:
        return "b300"
    profile = str(named["profile"])
    family = profile.removesuffix("-cc")
    launches_ns = [
        row["toll_ns"]
        for row in model
        if row["class"] in ("launch", "graph") and (row["n"] or 0) >= _MANY_CALLS
    ]
    distances = {
        row["profile"]: abs(math.log(max(min(launches_ns), 1.0) / row["toll_ns"]))
        for row in profiles
        if row["class"] == "launch" and launches_ns
        if not is_named or row["profile"].removesuffix("-cc") == family
    }
    if named.get("profile_basis") == "told" or profile not in distances:
        return profile
    nearest = min(distances.values())
    if distances[profile] == nearest:
        return profile
    return str(min(name for name, distance in distances.items() if distance == nearest))


def _rows(session: Session, query: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    result = session.sql(query, params)
    return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
