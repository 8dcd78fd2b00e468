-- step_timeline: all that went on while some steps ran.
-- requires: steps, nvtx, cuda_api, sched, gpu_activity
-- grain:    one row per step named and event that reaches into it
-- columns:
--   run          VARCHAR  label of the run
--   of_step      BIGINT   the step named
--   kind         VARCHAR  range: an NVTX range; call: a CUDA call of the
--                         program itself; off_cpu: its thread had no CPU;
--                         device: work of a device
--   pid          INTEGER  process; NULL: not known
--   tid          INTEGER  thread; of a device's work the one that launched it;
--                         NULL: not known
--   device       INTEGER  device; NULL: no device's work, or not told
--   stream       BIGINT   stream; NULL: none, or not told
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   length, ns; NULL: still open at the end of the run
--   depth        INTEGER  ranges: nesting depth in their thread and domain,
--                         from 0; else 0
--   name         VARCHAR  name of the range, function, state off the CPU, or
--                         kernel; NULL: it has none
--   class        VARCHAR  calls and device: as in cuda_api; else NULL
--   copy_kind    VARCHAR  h2d, d2h, ...; NULL: not a copy
--   host_memory  VARCHAR  pinned, pageable, ...; NULL: not told
--   size_bytes   BIGINT   bytes; NULL: not told
--   left_out     BIGINT   events of the step that are not here
-- params:
--   steps  VARCHAR = NULL  numbers of steps, with commas between
--   most   BIGINT = 2000   events shown of a step: the longest
-- caveats:  a thread has rows only if it made a range or a call in the step.
--           Calls inside other calls and marks are left out.
WITH named AS (
  SELECT run, step_id AS of_step, ts_ns AS from_ns, ts_ns + period_ns AS end_ns
  FROM steps
  WHERE period_ns IS NOT NULL
    AND step_id IN (
      SELECT try_cast(trim(listed.word) AS BIGINT)
      FROM (SELECT unnest(string_split($steps, ',')) AS word) AS listed
    )
),

own AS (
  SELECT
    named.run, named.of_step, 'range' AS kind, nvtx.pid, nvtx.tid,
    NULL AS device, NULL AS stream, nvtx.ts_ns, nvtx.dur_ns, nvtx.depth,
    nvtx.name, NULL AS "class", NULL AS copy_kind, NULL AS host_memory,
    NULL AS size_bytes
  FROM named
  INNER JOIN nvtx
    ON named.run = nvtx.run
    AND named.end_ns > nvtx.ts_ns
    AND named.from_ns < coalesce(nvtx.ts_ns + nvtx.dur_ns, named.end_ns)
  WHERE nvtx.kind = 'push_pop'
  UNION ALL
  SELECT
    named.run, named.of_step, 'call' AS kind, calls.pid, calls.tid,
    NULL AS device, calls.stream, calls.ts_ns, calls.dur_ns, 0 AS depth,
    calls.api AS name, calls."class", calls.copy_kind, calls.host_memory,
    calls.size_bytes
  FROM named
  INNER JOIN cuda_api AS calls
    ON named.run = calls.run
    AND named.end_ns > calls.ts_ns
    AND named.from_ns < coalesce(calls.ts_ns + calls.dur_ns, named.end_ns)
  WHERE calls.depth = 0
),

active AS (
  SELECT DISTINCT run, of_step, pid, tid
  FROM own
),

found AS (
  SELECT
    run, of_step, kind, pid, tid, device, stream, ts_ns, dur_ns, depth, name,
    "class", copy_kind, host_memory, size_bytes
  FROM own
  UNION ALL
  SELECT
    named.run, named.of_step, 'off_cpu' AS kind, sched.pid, sched.tid,
    NULL AS device, NULL AS stream, sched.ts_ns, sched.dur_ns, 0 AS depth,
    sched.state AS name, NULL AS "class", NULL AS copy_kind,
    NULL AS host_memory, NULL AS size_bytes
  FROM named
  INNER JOIN sched
    ON named.run = sched.run
    AND named.end_ns > sched.ts_ns
    AND named.from_ns < coalesce(sched.ts_ns + sched.dur_ns, named.end_ns)
  INNER JOIN active
    ON named.run = active.run
    AND named.of_step = active.of_step
    AND sched.pid = active.pid
    AND sched.tid = active.tid
  UNION ALL
  SELECT
    named.run, named.of_step, 'device' AS kind, work.pid, work.tid,
    work.device, work.stream, work.ts_ns, work.dur_ns, 0 AS depth, work.name,
    work."class", work.copy_kind, work.host_memory, work.size_bytes
  FROM named
  INNER JOIN gpu_activity AS work
    ON named.run = work.run
    AND named.end_ns > work.ts_ns
    AND named.from_ns < coalesce(work.ts_ns + work.dur_ns, named.end_ns)
),

ranked AS (
  SELECT
    run, of_step, kind, pid, tid, device, stream, ts_ns, dur_ns, depth, name,
    "class", copy_kind, host_memory, size_bytes,
    count(*) OVER (PARTITION BY run, of_step) AS events,
    row_number() OVER (
      PARTITION BY run, of_step
      ORDER BY
        dur_ns DESC NULLS FIRST, ts_ns, kind, pid, tid, depth, stream, name
    ) AS place
  FROM found
)

SELECT
  run,
  of_step,
  kind,
  pid,
  tid,
  device,
  stream,
  ts_ns,
  dur_ns,
  depth,
  name,
  "class",
  copy_kind,
  host_memory,
  size_bytes,
  greatest(events - $most, 0) AS left_out
FROM ranked
WHERE place <= $most
ORDER BY
  run, of_step, ts_ns, dur_ns DESC NULLS FIRST, kind, pid, tid, depth, stream,
  name;
