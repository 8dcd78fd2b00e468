"""Some steps event by event: what each thread and device did, and the critical path.

Events are columns, and their words numbers into one list of words for all steps: a name
is there once, however often it was used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cctrace.store.session import Session

    Json = dict[str, Any]

EVENTS: Final = 1_500  # of a step, the longest; the page says how many there are beyond
_WORD_LENGTH: Final = 300  # characters of a name that are kept
_NO_WORD: Final = 0
_TOUCHING_NS: Final = 1  # replayed times are not whole
_STRIDE: Final = 7_919  # prime: of pieces of one length those that are kept are spread out
_TRACK: Final = ("kind", "pid", "tid", "device", "stream")
_PARTS: Final = (
    "queue_wait",
    "bridge_toll",
    "bridge_transfer",
    "launch",
    "alloc",
    "sync_wait",
    "lock_wait",
    "runnable",
    "host_compute",
    "unattributed",
)


class _Words:
    """Words by number; 0 is none."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.all: list[str | None] = [None]

    def number(self, word: str | None) -> int:
        """Return the number of a word, cut to what a page can show."""
        if word is None:
            return _NO_WORD
        if len(word) > _WORD_LENGTH:
            word = f"{word[: _WORD_LENGTH - 1]}…"
        if word not in self._numbers:
            self._numbers[word] = len(self.all)
            self.all.append(word)
        return self._numbers[word]


def step_timelines(
    session: Session, chosen: Sequence[Mapping[str, Any]], paths: Mapping[int, Mapping[str, Any]]
) -> Json:
    """What the page shows of the chosen steps.

    Args:
        session: The run, opened; its tables may be cut to the chosen steps.
        chosen: The steps, as :func:`cctrace.exporters.html_page.data.chosen_steps` has them.
        paths: By ``step_id``: ``pieces`` and ``device``, each a list of pieces with the
            fields of ``cctrace.analyze.critical_path.Piece``; ``replayed_ns``; ``is_hidden``.

    Returns:
        ``words``, and ``steps``: each as chosen, with ``parts`` (ns by part), ``tracks``,
        ``events`` (columns), ``path`` (columns), ``device`` (columns), ``left_out``.
        Times are ns from the start of the step.
    """
    if not chosen:
        return {"words": [None], "steps": []}
    words = _Words()
    steps = {
        step["step_id"]: {
            **step,
            "ts_ns": step["ts_ns"] - session.manifest.start.monotonic_ns,
            "parts": None,
            "tracks": [],
            "events": _columns(),
            "left_out": 0,
            **_path(paths.get(step["step_id"]), words),
        }
        for step in chosen
    }
    starts = {step["step_id"]: step["ts_ns"] for step in chosen}
    asked = ",".join(str(step_id) for step_id in steps)
    _add_parts(session, steps)
    rows = session.report("step_timeline", {"steps": asked, "most": EVENTS})
    _add_events(rows, steps, starts, words)
    for step in steps.values():
        work_left_out = step.pop("work_left_out")
        if all(track["kind"] != "device" for track in step["tracks"]):  # else it is not drawn
            step["left_out"] += work_left_out
    _name_threads(session, steps)
    return {"words": words.all, "steps": list(steps.values())}


def _columns() -> Json:
    names = ("track", "kind", "ts_ns", "dur_ns", "depth", "name", "class", "copy", "size_bytes")
    return {name: [] for name in names}


def _add_parts(session: Session, steps: Mapping[int, Json]) -> None:
    names = ", ".join(f"{part}_ns" for part in _PARTS)
    wanted = ", ".join(str(step_id) for step_id in steps)
    rows = session.sql(
        f"SELECT step_id, {names} FROM step_parts WHERE step_id IN ({wanted})"  # noqa: S608 - numbers
    ).fetchall()
    for step_id, *values in rows:
        steps[step_id]["parts"] = dict(zip(_PARTS, values, strict=True))


def _add_events(
    rows: Any, steps: Mapping[int, Json], starts: Mapping[int, int], words: _Words
) -> None:
    tracks: dict[tuple[Any, ...], int] = {}
    for row in rows.fetchall():
        event = dict(zip(rows.columns, row, strict=True))
        step = steps[event["of_step"]]
        key = _track(event)
        place = (event["of_step"], *key)
        number = tracks.get(place)
        if number is None:
            number = tracks[place] = len(step["tracks"])
            step["tracks"].append(dict(zip(_TRACK, key, strict=True)))
        step["left_out"] = event["left_out"]
        columns = step["events"]
        columns["track"].append(number)
        columns["kind"].append(words.number(event["kind"]))
        columns["ts_ns"].append(event["ts_ns"] - starts[event["of_step"]])
        columns["dur_ns"].append(event["dur_ns"])
        columns["depth"].append(event["depth"])
        columns["name"].append(words.number(event["name"]))
        columns["class"].append(words.number(event["class"]))
        columns["copy"].append(words.number(event["copy_kind"]))
        columns["size_bytes"].append(event["size_bytes"])


def _track(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the event is drawn on: a thread, or a stream of a device."""
    if event["kind"] == "device":
        return "device", event["pid"], None, event["device"], event["stream"]
    return "thread", event["pid"], event["tid"], None, None


def _name_threads(session: Session, steps: Mapping[int, Json]) -> None:
    names = {(pid, tid): name for pid, tid, name in _rows(session, "_thread_names", "thread")}
    roles = {(pid, tid): role for pid, tid, role in _rows(session, "thread_roles", "role")}
    for step in steps.values():
        for track in step["tracks"]:
            key = track["pid"], track["tid"]
            track["name"] = names.get(key)
            track["role"] = roles.get(key)


def _rows(session: Session, view: str, column: str) -> list[tuple[Any, ...]]:
    query = f"SELECT pid, tid, {column} FROM {view} ORDER BY ALL"  # noqa: S608 - constants
    return session.sql(query).fetchall()


def _path(path: Mapping[str, Any] | None, words: _Words) -> Json:
    if path is None:
        nothing = dict.fromkeys(("path", "device", "replayed_ns", "is_hidden"))
        return {**nothing, "work_left_out": 0}
    work, left_out = _work(path["device"])
    return {
        "path": _pieces(_coarse(path["pieces"]), words),
        "device": _pieces(work, words),
        "replayed_ns": round(path["replayed_ns"]),
        "is_hidden": path["is_hidden"],
        "work_left_out": left_out,
    }


def _longest(pieces: Sequence[Mapping[str, Any]], most: int) -> set[int]:
    """Places of the longest pieces."""
    count = len(pieces)
    order = sorted(
        range(count), key=lambda at: (-round(pieces[at]["dur_ns"]), at * _STRIDE % count)
    )
    return set(order[:most])


def _work(pieces: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], int]:
    """Work of devices, and how many pieces of it are left out.

    Where there is too much, short pieces that follow each other on a stream are joined; if
    that is not enough, the longest are kept.
    """
    if len(pieces) <= EVENTS:
        return pieces, 0
    kept = _longest(pieces, EVENTS // 2)
    found: list[dict[str, Any]] = []
    open_at: dict[tuple[Any, Any], dict[str, Any] | None] = {}  # by stream: what may go on
    for at, piece in enumerate(pieces):
        stream = piece["pid"], piece["stream"]
        last = open_at.get(stream)
        if at in kept or last is None or piece["start_ns"] > _end_ns(last) + _TOUCHING_NS:
            found.append(dict(piece))
            open_at[stream] = None if at in kept else found[-1]
        else:
            last["dur_ns"] = max(_end_ns(last), _end_ns(piece)) - last["start_ns"]
            last["count"] += piece["count"]
            last["call"] = None
    longest = _longest(found, EVENTS)
    left_out = sum(piece["count"] for at, piece in enumerate(found) if at not in longest)
    return [found[at] for at in sorted(longest)], left_out


def _end_ns(piece: Mapping[str, Any]) -> float:
    end_ns: float = piece["start_ns"] + piece["dur_ns"]
    return end_ns


def _coarse(pieces: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The pieces, the short ones between the longest joined where there are too many.

    They still lie end to end. What is joined is of kind ``mixed``.
    """
    if len(pieces) <= EVENTS:
        return pieces
    kept = _longest(pieces, EVENTS // 2)
    found: list[dict[str, Any]] = []
    for at, piece in enumerate(pieces):
        if at in kept:
            found.append(dict(piece))
        elif found and found[-1]["kind"] == "mixed":
            last = found[-1]
            last["dur_ns"] = _end_ns(piece) - last["start_ns"]
            last["count"] += piece["count"]
        else:
            found.append({**piece, "kind": "mixed", "stream": None, "call": None})
    return found


def _pieces(pieces: Sequence[Mapping[str, Any]], words: _Words) -> Json:
    names = ("kind", "ts_ns", "dur_ns", "pid", "tid", "stream", "name", "class", "copy")
    columns: Json = {name: [] for name in (*names, "size_bytes", "count")}
    for piece in pieces:
        call = piece["call"] or {}
        start_ns = round(piece["start_ns"])
        columns["kind"].append(words.number(piece["kind"]))
        columns["ts_ns"].append(start_ns)
        # Rounded so that pieces still lie end to end.
        columns["dur_ns"].append(round(piece["start_ns"] + piece["dur_ns"]) - start_ns)
        columns["pid"].append(piece["pid"])
        columns["tid"].append(piece["tid"])
        columns["stream"].append(piece["stream"])
        columns["name"].append(words.number(call.get("api")))
        columns["class"].append(words.number(call.get("cls")))
        columns["copy"].append(words.number(call.get("copy_kind")))
        columns["size_bytes"].append(call.get("size_bytes"))
        columns["count"].append(piece["count"])
    return columns
