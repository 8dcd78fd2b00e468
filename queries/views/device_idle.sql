-- device_idle: how long a device was idle in each step, seen or inferred.
-- requires: steps, losses, _device_spans, _gpu_spans
-- grain:    one row per step with a period and process whose device had work
--           around it; more where the process was seen to use several devices
-- materialize: yes
-- columns:
--   run               VARCHAR  label of the run
--   step_id           BIGINT   step, as in steps
--   pid               INTEGER  process whose device it is, not always the one
--                              that drives the steps
--   device            INTEGER  device ordinal; NULL: not told, all streams of
--                              the process are taken to be of one device
--   ts_ns             BIGINT   start of the step, ns of CLOCK_MONOTONIC
--   period_ns         BIGINT   length of the step, ns
--   idle_lower_ns     BIGINT   idle at least, proven by what calls returned,
--                              ns, 0 to idle_upper_ns; NULL: another row has
--                              what is inferred
--   idle_ns           BIGINT   idle by the best guess, ns, between the bounds;
--                              NULL: launches were counted in the kernel, or as
--                              idle_lower_ns
--   idle_upper_ns     BIGINT   idle at most, proven by calls that waited, ns,
--                              at most period_ns; NULL as idle_lower_ns
--   pinned            BOOLEAN  the guess could be wrong for no more than 4% of
--                              the step; NULL as idle_lower_ns
--   observed_idle_ns  BIGINT   idle as gpu_activity shows, ns, 0 to period_ns;
--                              NULL: it shows nothing of this device
-- caveats:  bounds where calls were lost are 0 and the whole step. Where
--           launches were counted in the kernel the lower bound counts as busy
--           all the time they may have been made in. Bounds rest on the bridge
--           model only by twice its latency of a launch. See _device_spans for
--           the guess, and for what makes it wrong. The device is taken to work
--           for this process alone.
CREATE VIEW device_idle AS
WITH devices AS (
  SELECT DISTINCT run, pid, device
  FROM _gpu_spans
),

sole AS (
  SELECT run, pid, min(device) AS device
  FROM devices
  GROUP BY run, pid
  HAVING count(*) = 1
),

-- What is inferred belongs to the device seen, where there is one. -1 stands
-- for an unknown device, since NULL joins nothing.
spans AS (
  SELECT
    spans.run, spans.pid,
    coalesce(sole.device, -1) AS device,
    spans.kind, spans.ts_ns, spans.end_ns
  FROM _device_spans AS spans
  LEFT JOIN sole
    ON spans.run = sole.run
    AND spans.pid = sole.pid
  UNION ALL
  SELECT
    run, pid, coalesce(device, -1) AS device, 'seen' AS kind, ts_ns, end_ns
  FROM _gpu_spans
),

summed AS (
  SELECT
    run, pid, device, kind, ts_ns, end_ns,
    sum(CAST(end_ns AS HUGEINT) - ts_ns) OVER (
      PARTITION BY run, pid, device, kind
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) - (end_ns - ts_ns) AS before_ns
  FROM spans
),

active AS (
  SELECT
    run, pid, device,
    min(ts_ns) AS first_ns,
    max(end_ns) AS last_ns,
    bool_or(kind = 'may') AS is_inferred,
    bool_or(kind = 'seen') AS is_seen
  FROM spans
  WHERE kind IN ('may', 'seen')
  GROUP BY run, pid, device
),

places AS (
  SELECT
    steps.run, steps.step_id, active.pid, active.device, steps.ts_ns,
    steps.period_ns, active.is_inferred, active.is_seen
  FROM steps
  INNER JOIN active
    ON steps.run = active.run
    AND steps.ts_ns + steps.period_ns > active.first_ns
    AND steps.ts_ns < active.last_ns
  WHERE steps.period_ns IS NOT NULL
),

edges AS (
  SELECT
    places.run, places.pid, places.device, places.step_id, kinds.kind,
    places.ts_ns + places.period_ns * edge.is_end AS at_ns,
    2 * edge.is_end - 1 AS sign
  FROM places
  CROSS JOIN (
    VALUES ('may'), ('sure'), ('likely'), ('open'), ('counted'), ('seen')
  ) AS kinds(kind)
  CROSS JOIN (VALUES (0), (1)) AS edge(is_end)
),

-- Busy until the end of the step, less busy until its start.
busy AS (
  SELECT
    edges.run, edges.pid, edges.device, edges.step_id,
    sum(
      CASE
        WHEN edges.kind = 'may' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS may_ns,
    sum(
      CASE
        WHEN edges.kind = 'sure' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS sure_ns,
    sum(
      CASE
        WHEN edges.kind = 'likely' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS likely_ns,
    sum(
      CASE
        WHEN edges.kind = 'open' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS open_ns,
    sum(
      CASE
        WHEN edges.kind = 'counted' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS counted_ns,
    sum(
      CASE
        WHEN edges.kind = 'seen' THEN edges.sign * (
          summed.before_ns + least(edges.at_ns, summed.end_ns) - summed.ts_ns
        )
      END
    ) AS seen_ns
  FROM edges
  ASOF INNER JOIN summed
    ON edges.run = summed.run
    AND edges.pid = summed.pid
    AND edges.device = summed.device
    AND edges.kind = summed.kind
    AND edges.at_ns >= summed.ts_ns
  GROUP BY edges.run, edges.pid, edges.device, edges.step_id
),

-- Calls that are missing could be work, or proof of its end.
lossy AS (
  SELECT DISTINCT steps.run, steps.step_id, losses.pid
  FROM steps
  INNER JOIN losses
    ON steps.run = losses.run
    AND coalesce(losses.first_ns, steps.ts_ns) < steps.ts_ns + steps.period_ns
    AND coalesce(losses.last_ns, steps.ts_ns) >= steps.ts_ns
  WHERE losses.source = 'cuda'
    AND losses.reason NOT IN (
      'unreadable_argument', 'bad_argument', 'partial_size', 'ranges_full',
      'late_attach'
    )
),

lost AS (
  SELECT DISTINCT places.run, places.step_id, places.pid
  FROM places
  INNER JOIN lossy
    ON places.run = lossy.run
    AND places.step_id = lossy.step_id
    AND (lossy.pid IS NULL OR places.pid = lossy.pid)
),

bounded AS (
  SELECT
    places.run, places.step_id, places.pid, places.device, places.ts_ns,
    places.period_ns, places.is_inferred, places.is_seen,
    lost.pid IS NOT NULL AS is_lossy,
    coalesce(busy.counted_ns, 0) > 0 AS is_counted,
    CASE
      WHEN lost.pid IS NOT NULL THEN 0
      ELSE greatest(places.period_ns - coalesce(busy.may_ns, 0), 0)
    END AS lower_ns,
    CASE
      WHEN lost.pid IS NOT NULL THEN places.period_ns
      ELSE places.period_ns - coalesce(busy.sure_ns, 0)
    END AS upper_ns,
    places.period_ns - coalesce(busy.likely_ns, 0) AS guess_ns,
    coalesce(busy.open_ns, 0) AS open_ns,
    places.period_ns - coalesce(busy.seen_ns, 0) AS seen_idle_ns
  FROM places
  LEFT JOIN busy
    ON places.run = busy.run
    AND places.step_id = busy.step_id
    AND places.pid = busy.pid
    AND places.device = busy.device
  LEFT JOIN lost
    ON places.run = lost.run
    AND places.step_id = lost.step_id
    AND places.pid = lost.pid
)

SELECT
  run, step_id, pid,
  nullif(device, -1) AS device,
  ts_ns, period_ns,
  CASE
    WHEN is_inferred THEN CAST(least(lower_ns, upper_ns) AS BIGINT)
  END AS idle_lower_ns,
  CASE
    WHEN is_inferred AND NOT is_counted THEN CAST(
      greatest(least(guess_ns, upper_ns), least(lower_ns, upper_ns)) AS BIGINT
    )
  END AS idle_ns,
  CASE WHEN is_inferred THEN CAST(upper_ns AS BIGINT) END AS idle_upper_ns,
  CASE
    WHEN is_inferred
      THEN NOT is_lossy AND NOT is_counted AND open_ns <= 0.04 * period_ns
  END AS pinned,
  CASE WHEN is_seen THEN CAST(seen_idle_ns AS BIGINT) END AS observed_idle_ns
FROM bounded;
