-- crossings_per_step: how often the engine's loop crosses the bridge in a step.
-- requires: steps, crossings, _counted_launches
-- grain:    one row per run, engine, phase, class and kind of copy
-- columns:
--   run              VARCHAR  label of the run
--   engine           VARCHAR  as in the view steps
--   phase            VARCHAR  phase of the steps; NULL: not told
--   class            VARCHAR  copy, launch, graph, sync, alloc or collective;
--                             NULL: on the thread that drives the loop none
--                             was recorded, and what counts them is NULL too
--   copy_kind        VARCHAR  h2d, d2h, d2d, p2p, h2h or unknown; NULL: not a
--                             copy
--   steps            BIGINT   steps of that engine and phase, with crossings or
--                             not
--   calls            DOUBLE   crossings in all of them together
--   calls_per_step   DOUBLE   mean
--   max_calls        DOUBLE   most in one step
--   ns_per_step      BIGINT   mean of the host's time in them per step, ns,
--                             rounded
--   bytes_per_step   BIGINT   mean of their bytes per step, rounded; NULL: no
--                             size was told
--   is_estimate      BOOLEAN  launches counted in the kernel are among them,
--                             spread evenly over the steps of their window
-- params:
--   engine  VARCHAR = NULL  only this engine
--   phase   VARCHAR = NULL  only this phase
-- caveats:  counts the thread that drives the loop alone. A step reaches to the
--           start of the next one, or where that is not known to the end of its
--           own range; one that has neither is left out. A call belongs to the
--           step in which it starts, with all of its time. Of counted launches
--           those of the driver stand for all, or those of the runtime where
--           there are more of these.
WITH bounded AS (
  SELECT
    run, step_id, engine, pid, tid, phase, ts_ns,
    ts_ns + coalesce(period_ns, dur_ns) AS end_ns
  FROM steps
  WHERE coalesce(period_ns, dur_ns) IS NOT NULL
    AND ($engine IS NULL OR engine = $engine)
    AND ($phase IS NULL OR phase = $phase)
),

phases AS (
  SELECT run, engine, phase, count(*) AS steps
  FROM bounded
  GROUP BY run, engine, phase
),

drivers AS (
  SELECT DISTINCT run, engine, pid, tid
  FROM bounded
),

calls AS (
  SELECT
    crossings.run, drivers.engine, crossings.pid, crossings.tid,
    crossings.ts_ns, crossings.dur_ns, crossings."class",
    crossings.copy_kind, crossings.size_bytes
  FROM crossings
  INNER JOIN drivers
    ON crossings.run = drivers.run
    AND crossings.pid = drivers.pid
    AND crossings.tid = drivers.tid
),

recorded AS (
  SELECT
    bounded.run, bounded.step_id, bounded.engine, bounded.phase,
    calls."class", calls.copy_kind,
    count(*) AS calls,
    sum(calls.dur_ns) AS dur_ns,
    sum(calls.size_bytes) AS size_bytes,
    FALSE AS is_estimate
  FROM calls
  ASOF JOIN bounded
    ON calls.run = bounded.run
    AND calls.engine = bounded.engine
    AND calls.pid = bounded.pid
    AND calls.tid = bounded.tid
    AND calls.ts_ns >= bounded.ts_ns
  WHERE calls.ts_ns < bounded.end_ns
  GROUP BY ALL
),

layers AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns, "class", layer,
    sum(calls) AS calls,
    sum(total_ns) AS total_ns
  FROM _counted_launches
  GROUP BY ALL
),

-- A launch of the runtime is counted in the driver as well.
windows AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns, "class",
    max(calls) AS calls,
    max(total_ns) AS total_ns
  FROM layers
  GROUP BY ALL
),

shares AS (
  SELECT
    bounded.run, bounded.step_id, bounded.engine, bounded.phase,
    windows."class", windows.calls, windows.total_ns,
    (
      least(bounded.end_ns, windows.ts_ns + windows.represents_ns)
      - greatest(bounded.ts_ns, windows.ts_ns)
    ) / windows.window_ns AS share
  FROM bounded
  INNER JOIN windows
    ON bounded.run = windows.run
    AND bounded.pid = windows.pid
    AND bounded.tid = windows.tid
    AND bounded.ts_ns < windows.ts_ns + windows.represents_ns
    AND bounded.end_ns > windows.ts_ns
),

parts AS (
  SELECT
    run, step_id, engine, phase, "class", copy_kind, calls, dur_ns,
    size_bytes, is_estimate
  FROM recorded
  UNION ALL
  SELECT
    run, step_id, engine, phase, "class", NULL AS copy_kind,
    calls * share AS calls, total_ns * share AS dur_ns, NULL AS size_bytes,
    TRUE AS is_estimate
  FROM shares
),

in_step AS (
  SELECT
    run, step_id, engine, phase, "class", copy_kind,
    sum(calls) AS calls,
    sum(dur_ns) AS dur_ns,
    sum(size_bytes) AS size_bytes,
    bool_or(is_estimate) AS is_estimate
  FROM parts
  GROUP BY run, step_id, engine, phase, "class", copy_kind
),

summed AS (
  SELECT
    run, engine, phase, "class", copy_kind,
    sum(calls) AS calls,
    max(calls) AS max_calls,
    coalesce(sum(dur_ns), 0) AS dur_ns,
    sum(size_bytes) AS size_bytes,
    bool_or(is_estimate) AS is_estimate
  FROM in_step
  GROUP BY run, engine, phase, "class", copy_kind
),

averaged AS (
  SELECT
    phases.run, phases.engine, phases.phase, summed."class",
    summed.copy_kind, phases.steps,
    summed.calls,
    summed.max_calls,
    summed.dur_ns / phases.steps AS ns_per_step,
    summed.size_bytes / phases.steps AS bytes_per_step,
    coalesce(summed.is_estimate, FALSE) AS is_estimate
  FROM phases
  LEFT JOIN summed
    ON phases.run = summed.run
    AND phases.engine = summed.engine
    AND phases.phase IS NOT DISTINCT FROM summed.phase
)

SELECT
  run,
  engine,
  phase,
  "class",
  copy_kind,
  steps,
  CAST(calls AS DOUBLE) AS calls,
  CAST(calls / steps AS DOUBLE) AS calls_per_step,
  CAST(max_calls AS DOUBLE) AS max_calls,
  CAST(round(ns_per_step) AS BIGINT) AS ns_per_step,
  -- Sizes are the program's word, and may be absurd.
  CASE
    WHEN bytes_per_step < 9e18 THEN CAST(round(bytes_per_step) AS BIGINT)
  END AS bytes_per_step,
  is_estimate
FROM averaged
ORDER BY run, engine, phase NULLS LAST, calls DESC, "class", copy_kind;
