"""What the analysis says about a run: typed, frozen, every unit in its name.

Nothing here computes; how a notebook shows it is in notebook.py. ``cctrace report
--format json`` is these fields under these names, and docs/report.schema.json is made
from their types and their documentation, so an ``Attributes`` section below is read by
users.

Times are ns, shares are ratios in [0, 1], and None always means that it is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

REPORT_VERSION: Final = 1  # of the JSON; changes where a field changes its meaning


@dataclass(frozen=True)
class SourceFact:
    """One source of events of the run.

    Attributes:
        name: Its name, as in run.json: nvtx, cuda, sched, ...
        state: attached or refused.
        reason: Why it was refused; null where it was attached.
        hint: What would mend that; null where there is nothing to name.
    """

    name: str
    state: str
    reason: str | None
    hint: str | None


@dataclass(frozen=True)
class RunFacts:
    """What ran, on what, and how it was recorded.

    Attributes:
        path: The run directory.
        command: The target's arguments; empty for an imported run.
        started: Start in UTC, YYYY-MM-DD HH:MM:SS; null: out of range.
        length_ns: Length of the recording, ns; null: not over, or the recorder was killed.
        ended: How it ended, as in run.json: clean, target_signal, recorder_killed, ...
        exit_code: The target's status, 128 + n for signal n; null: not known.
        imported_from: The tool whose trace it is; null: recorded by cctrace.
        cctrace_version: Version of cctrace that wrote it.
        kernel: Release of the kernel; null: not recorded.
        cpu: Model of the processor; null: not recorded.
        tee: none, tdx, sev-snp or unknown; null: not recorded.
        gpu_cc: Confidential computing of the GPU: off, on, devtools or unknown; null: not
            recorded.
        gpu: The first GPU's name; null: not known.
        gpu_driver: Version of the GPU's driver; null: not known.
        processes: Processes seen.
        events: Events recorded.
        cuda_calls: CUDA calls recorded, those counted in the kernel left out.
        launches_counted: Launches that were counted in the kernel.
        lost: Events lost.
        size_bytes: Bytes on disk.
        sources: Sources asked for.
    """

    path: str
    command: tuple[str, ...]
    started: str | None
    length_ns: int | None
    ended: str
    exit_code: int | None
    imported_from: str | None
    cctrace_version: str
    kernel: str | None
    cpu: str | None
    tee: str | None
    gpu_cc: str | None
    gpu: str | None
    gpu_driver: str | None
    processes: int
    events: int
    cuda_calls: int
    launches_counted: int
    lost: int
    size_bytes: int
    sources: tuple[SourceFact, ...]


@dataclass(frozen=True)
class StepStats:
    """The steps of one engine in one phase, over all threads that drive its loop.

    Attributes:
        engine: The engine, as in the view steps.
        phase: prefill, decode, ...; null: not told.
        found_by: nvtx, annotation or pattern: how its steps were told.
        steps: Steps.
        periods: Those whose length is known: not the last one before a pause.
        total_ns: Sum of the known lengths, ns.
        mean_ns: Mean length of a step, which is the inter-token latency, ns; null: none known.
        p50_ns: Median length, ns.
        p90_ns: 90th percentile, ns.
        p99_ns: 99th percentile, ns.
        max_ns: The longest, ns.
    """

    engine: str
    phase: str | None
    found_by: str
    steps: int
    periods: int
    total_ns: int
    mean_ns: int | None
    p50_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    max_ns: int | None


@dataclass(frozen=True)
class PartStats:
    """Where the time of steps goes: one part of those of one engine and phase.

    Attributes:
        engine: The engine.
        phase: The phase; null: not told.
        part: queue_wait, bridge_toll, bridge_transfer, launch, alloc, sync_wait, lock_wait,
            runnable, host_compute or unattributed; docs/attribution.md says what each is.
        steps: Steps of known length.
        total_ns: Time in it over all of them, ns.
        mean_ns: Mean per step, ns.
        p50_ns: Median over steps, ns.
        p99_ns: 99th percentile over steps, ns.
        share: total_ns over the length of all these steps, 0 to 1.
        is_estimate: Launches counted in the kernel have a share in it.
    """

    engine: str
    phase: str | None
    part: str
    steps: int
    total_ns: int
    mean_ns: float
    p50_ns: int
    p99_ns: int
    share: float
    is_estimate: bool


@dataclass(frozen=True)
class BridgeCost:
    """What one kind of crossing costs: a row of the bridge model.

    Attributes:
        cls: copy, launch, graph, sync, alloc or collective.
        api: The call; null: no call of this run, the row serves a remedy.
        copy_kind: h2d, d2h, d2d, ...; null: not a copy.
        host_memory: pinned, pageable, ...; null: no memory of the host.
        calls: Such calls in the run, or in the sample that the figures are from.
        samples: Undisturbed ones of them, which the figures are from; 0: none.
        toll_ns: Fixed cost of a call on the calling thread, ns; null: not known.
        ns_per_byte: What each byte adds to the call, ns; null: no copy, or not known.
        gb_per_s: Bandwidth, 1e9 bytes a second; null: no copy, or not known.
        latency_ns: From a launch's return until the device may start, ns; null: not known.
        residual_p50_ns: Median of |recorded - modelled|, ns; null: not fitted.
        residual_p90_ns: 90th percentile of that, ns; null: not fitted.
        blocks: An asynchronous copy of this kind returns only when its stream has done its
            earlier work; null: not known.
        mode: async, staged or host_synchronous: the call returns once submitted, once its
            source is read, or once it is done; null: not a copy.
        confidence: high, medium or low.
        source: Where the toll is from: run (fitted from its calls) or profile (published).
        bandwidth_source: Where the bandwidth is from: run or profile; null: no copy.
        profile: Published figures for what the run does not show; null: none.
        profile_basis: Why those: told, behaviour or assumed; null: none.
    """

    cls: str
    api: str | None
    copy_kind: str | None
    host_memory: str | None
    calls: int
    samples: int
    toll_ns: float | None
    ns_per_byte: float | None
    gb_per_s: float | None
    latency_ns: float | None
    residual_p50_ns: float | None
    residual_p90_ns: float | None
    blocks: bool | None
    mode: str | None
    confidence: str
    source: str
    bandwidth_source: str | None
    profile: str | None
    profile_basis: str | None


@dataclass(frozen=True)
class DeviceIdle:
    """Time in steps in which a device had no work.

    From host calls alone this has a lower and an upper bound and an estimate between;
    where the device's own activity was recorded, it is also observed.

    Attributes:
        pid: Process that uses the device; null: not known.
        device: Ordinal of the device; null: not told, a process counts as one device.
        steps: Steps with work on it.
        pinned_steps: Those in which blocking returns leave no doubt when it was idle.
        total_ns: Length of all these steps, ns.
        bounded_steps: Those for which bounds are inferred.
        idle_lower_ns: In them it was idle for at least so long, ns; null: none inferred.
        idle_upper_ns: For at most so long, ns; null: none inferred.
        estimated_steps: Those for which there is an estimate too.
        estimated_ns: Length of those, ns; null: none.
        idle_ns: Estimate for those, ns; null: none.
        idle_share: idle_ns over estimated_ns, 0 to 1; null: none.
        observed_steps: Steps in which the device's own activity was recorded.
        observed_idle_ns: Idle time by that record, in those steps, ns; null: none recorded.
        observed_total_ns: Length of those steps, ns; null: none recorded.
        observed_share: observed_idle_ns over observed_total_ns, 0 to 1; null: none recorded.
        within_bounds: Share of observed steps with bounds whose observed idle time lies
            within them, 0 to 1; null: none.
        error_ratio: Mean of |estimate - observed| over the mean length of the steps that
            have both; null: none.
    """

    pid: int | None
    device: int | None
    steps: int
    pinned_steps: int
    total_ns: int
    bounded_steps: int
    idle_lower_ns: int | None
    idle_upper_ns: int | None
    estimated_steps: int
    estimated_ns: int | None
    idle_ns: int | None
    idle_share: float | None
    observed_steps: int
    observed_idle_ns: int | None
    observed_total_ns: int | None
    observed_share: float | None
    within_bounds: float | None
    error_ratio: float | None


@dataclass(frozen=True)
class Remedy:
    """A change that may give time back, and what a replay with it says.

    Attributes:
        code: Its name for programs.
        title: What to do, in some words.
        switch: Settings that do it; empty: none are known.
        evidence: Why it is thought of here.
        recoverable_ns: What a step would get shorter by, ns; an estimate.
        low_ns: Low end of its range, ns.
        high_ns: High end, ns.
        expected_itl_ns: Median inter-token latency with it, ns; an estimate.
    """

    code: str
    title: str
    switch: str
    evidence: str
    recoverable_ns: int
    low_ns: int
    high_ns: int
    expected_itl_ns: int


@dataclass(frozen=True)
class Point:
    """A serialization point: a call site that holds the loop up.

    Attributes:
        rank: 1 for the one with the most to recover.
        sentence: It in one sentence.
        role: What its thread does: driver, readback, submitter, uploader, collective, host.
        pid: Process of the example.
        tid: Thread of the example.
        path: Names of the NVTX ranges it is in, outermost first, with / between; empty: none.
        api: The call.
        cls: copy, sync, launch, graph, alloc or collective.
        copy_kind: h2d, d2h, ...; null: not a copy.
        size_class: Class of its sizes, as `<=64 B`; null: no size.
        size_bytes: Size of the example, bytes; null: no size.
        stack_id: Joins stacks.stack_id, the stack with most of the time in these calls; null:
            no stack taken.
        stack_share: That stack's share of their time, 0 to 1; null: no stack taken.
        called_from: Who makes these calls by that stack: up to three frames, innermost first,
            as `function (folder/file.py:12)`, Python ones if there are any; empty: not known.
        count_per_step: Calls in a step of each thread that makes them, mean.
        held_ns_per_step: Time of a step in these calls, ns.
        blocked_ns_per_step: Of that, time they waited, ns.
        bubble_ns_per_step: Time of a step in which the device was idle after they returned,
            ns, by replay.
        next_launch_delay_ns: From such a call's start until the thread's next launch, ns;
            null: no launch follows.
        recoverable_ns: What a step would get shorter by with the best remedy, ns, by replay;
            0: no remedy is known to help.
        recoverable_low_ns: Low end of its range, ns.
        recoverable_high_ns: High end, ns.
        recoverable_bound_ns: The same if these calls took no time at all, ns.
        expected_itl_ns: Median inter-token latency with the best remedy, ns; null: none.
        remedy: The best remedy; null: none is known to help.
        alternatives: Other remedies, best first.
        confidence: high, medium or low.
        confidence_reason: Why not higher; empty for high.
        example_step_id: A step in which it happened; null: between steps.
        example_ts_ns: When, ns of CLOCK_MONOTONIC.
        example_dur_ns: How long it took there, ns.
    """

    rank: int
    sentence: str
    role: str
    pid: int
    tid: int
    path: str
    api: str
    cls: str
    copy_kind: str | None
    size_class: str | None
    size_bytes: int | None
    stack_id: int | None
    stack_share: float | None
    called_from: tuple[str, ...]
    count_per_step: float
    held_ns_per_step: int
    blocked_ns_per_step: int
    bubble_ns_per_step: int
    next_launch_delay_ns: int | None
    recoverable_ns: int
    recoverable_low_ns: int
    recoverable_high_ns: int
    recoverable_bound_ns: int
    expected_itl_ns: int | None
    remedy: Remedy | None
    alternatives: tuple[Remedy, ...]
    confidence: str
    confidence_reason: str
    example_step_id: int | None
    example_ts_ns: int
    example_dur_ns: int


@dataclass(frozen=True)
class ReplayFacts:
    """How well the replay that the estimates come from gives the recorded steps again.

    Attributes:
        steps: Steps replayed that count.
        phase: Their phase; null: all of them.
        recorded_itl_ns: Median length of a step as recorded, ns; null: none.
        recorded_mean_ns: Mean length, ns; null: none.
        replayed_itl_ns: Median length replayed with nothing changed, ns; null: none.
        error_ratio: Mean length replayed over recorded, less 1; null: none.
        sampled: A part of the run was replayed, not all.
        stuck: Waits in the replay that nothing in the run would have ended.
    """

    steps: int
    phase: str | None
    recorded_itl_ns: int | None
    recorded_mean_ns: int | None
    replayed_itl_ns: int | None
    error_ratio: float | None
    sampled: bool
    stuck: int


@dataclass(frozen=True)
class LossFact:
    """One reason for lost or incomplete events.

    Attributes:
        reason: Its name, as in the table losses.
        count: How often.
        loses_event: Each is an event missing; else the event is there, less than whole.
        meaning: What it means, and what helps.
    """

    reason: str
    count: int
    loses_event: bool
    meaning: str


@dataclass(frozen=True)
class Unknown:
    """Something this run cannot tell.

    Attributes:
        code: Its name for programs.
        sentence: What cannot be said, why, and what would help.
    """

    code: str
    sentence: str


@dataclass(frozen=True)
class Attribution:
    """Where the time of a run's steps goes, and what of it can be had back.

    Attributes:
        run: What ran, and how it was recorded.
        steps: Its steps, by engine and phase, most time first.
        parts: Where their time goes, by engine and phase, in a fixed order of parts.
        bridge: What crossings cost in this run.
        device_idle: Idle time of the devices.
        points: Serialization points, the most recoverable first.
        replay: How far the estimates of the points can be trusted; null: no replay.
        losses: What was lost, most first.
        cannot_say: What this run cannot tell.
        bridge_sampled: The costs of crossings are from a sample of the run.
        chunks: Pieces the run was worked through in.
    """

    run: RunFacts
    steps: tuple[StepStats, ...]
    parts: tuple[PartStats, ...]
    bridge: tuple[BridgeCost, ...]
    device_idle: tuple[DeviceIdle, ...]
    points: tuple[Point, ...]
    replay: ReplayFacts | None
    losses: tuple[LossFact, ...]
    cannot_say: tuple[Unknown, ...]
    bridge_sampled: bool
    chunks: int

    def figure(self) -> Any:
        """Draw the parts of a step, a bar for each engine and phase.

        Returns:
            ``plotly.graph_objects.Figure``, which a notebook shows.
        """
        from cctrace.analyze import notebook  # noqa: PLC0415 - only a notebook asks

        return notebook.figure(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The verdict, and in HTML all it rests on, for a notebook."""
        from cctrace.analyze import notebook  # noqa: PLC0415 - as above

        del include, exclude  # IPython filters by itself
        return {
            "text/plain": notebook.attribution_text(self),
            "text/html": notebook.attribution_html(self),
        }
