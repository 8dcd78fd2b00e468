-- queue_depth: does the device run dry while the loop is running?
-- requires: runs, steps, cuda_api, gpu_activity, _device_ops, _device_batches,
--           _device_groups, device_idle
-- grain:    one row per run and process that gave a device work in its steps;
--           one for a run without any
-- columns:
--   run               VARCHAR  label of the run
--   answer            VARCHAR  yes: the device was idle for at least
--                              $idle_ratio of the steps; no: for less; unknown:
--                              the bounds are on both sides of that, or there
--                              is nothing to tell from
--   evidence          VARCHAR  what decided, in a sentence
--   pid               INTEGER  process; NULL: none gave a device work
--   source            VARCHAR  observed: from gpu_activity; inferred: from the
--                              host's calls; NULL as pid
--   steps             BIGINT   steps with a period that were looked at
--   idle_lower_ratio  DOUBLE   part of the steps' time the device was idle at
--                              least; NULL: no steps
--   idle_ratio        DOUBLE   the same by the best guess, or as seen; NULL: no
--                              steps, or launches were counted in the kernel
--   idle_upper_ratio  DOUBLE   the same at most; NULL: no steps
--   enqueues          BIGINT   calls that gave the device work in the steps
--   empty_ratio       DOUBLE   part of these that found nothing outstanding, by
--                              the best guess; NULL: there were none
--   mean_depth        DOUBLE   calls whose work was outstanding when they
--                              began, mean, by the best guess; NULL as
--                              empty_ratio
--   p50_depth         BIGINT   the same, median; NULL as empty_ratio
--   max_depth         BIGINT   the same, most; NULL as empty_ratio
-- params:
--   idle_ratio  DOUBLE = 0.05  part of the time idle from which on it runs dry
-- caveats:  where gpu_activity shows the device the bounds are both what it
--           shows. Else the guess of when each call's work ended takes the work
--           that one return proved done to be equal pieces: the depth is then
--           good to some calls, the bounds are not a guess. Launches counted in
--           the kernel are no enqueues here.
WITH seen AS (
  SELECT
    run, pid, correlation_id,
    max(ts_ns + dur_ns) AS end_ns
  FROM gpu_activity
  WHERE correlation_id IS NOT NULL
    AND dur_ns IS NOT NULL
  GROUP BY run, pid, correlation_id
),

watched AS (
  SELECT DISTINCT run, pid
  FROM seen
),

-- The driver's call inside the runtime's may be the one that is correlated.
given AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    max(seen.end_ns) AS end_ns
  FROM cuda_api AS calls
  INNER JOIN seen
    ON calls.run = seen.run
    AND calls.pid = seen.pid
    AND calls.correlation_id = seen.correlation_id
  WHERE calls.depth = 0
  GROUP BY calls.run, calls.pid, calls.tid, calls.ts_ns
),

placed AS (
  SELECT
    ops.run, ops.pid, ops.tid, ops.stream, ops.ts_ns, ops.end_ns, ops.blocks,
    ops.work_ns,
    CASE WHEN ops.blocks THEN ops.ts_ns ELSE ops.end_ns END AS at_ns,
    watched.pid IS NOT NULL AS is_watched
  FROM _device_ops AS ops
  LEFT JOIN watched
    ON ops.run = watched.run
    AND ops.pid = watched.pid
),

proven AS (
  SELECT
    placed.run, placed.pid, placed.stream, placed.ts_ns, placed.end_ns,
    placed.blocks, placed.work_ns, batches.done_ns,
    row_number() OVER (
      PARTITION BY placed.run, placed.pid, placed.stream, batches.done_ns,
        placed.work_ns IS NULL
      ORDER BY placed.at_ns
    ) AS place
  FROM placed
  ASOF LEFT JOIN _device_batches AS batches
    ON placed.run = batches.run
    AND placed.pid = batches.pid
    AND placed.stream = batches.stream
    AND placed.at_ns <= batches.cover_ns
  WHERE NOT placed.is_watched
),

-- Equal pieces, the last of which ends when all of them were done.
guessed AS (
  SELECT
    proven.run, proven.pid, proven.ts_ns,
    CASE
      WHEN proven.blocks THEN proven.end_ns
      WHEN proven.work_ns IS NOT NULL
        THEN least(proven.end_ns + proven.work_ns, proven.done_ns)
      WHEN proven.done_ns IS NULL THEN NULL
      WHEN pieces.has_waited THEN greatest(
        proven.end_ns,
        pieces.end_ns
        - CAST(
          pieces.work_ns / pieces.queued * (pieces.queued - proven.place)
          AS BIGINT
        )
      )
      ELSE greatest(
        proven.end_ns,
        pieces.start_ns
        + CAST(pieces.work_ns / pieces.queued * proven.place AS BIGINT)
      )
    END AS end_ns
  FROM proven
  LEFT JOIN _device_groups AS pieces
    ON proven.run = pieces.run
    AND proven.pid = pieces.pid
    AND proven.stream = pieces.stream
    AND proven.done_ns = pieces.done_ns
),

-- Work that nothing showed to end is outstanding for good.
work AS (
  SELECT run, pid, ts_ns, end_ns
  FROM guessed
  UNION ALL
  SELECT placed.run, placed.pid, placed.ts_ns, given.end_ns
  FROM placed
  INNER JOIN given
    ON placed.run = given.run
    AND placed.pid = given.pid
    AND placed.tid = given.tid
    AND placed.ts_ns = given.ts_ns
  WHERE placed.is_watched
),

changes AS (
  SELECT run, pid, ts_ns AS at_ns, 1 AS change
  FROM work
  UNION ALL
  SELECT run, pid, end_ns AS at_ns, -1 AS change
  FROM work
  WHERE end_ns IS NOT NULL
),

running AS (
  SELECT
    run, pid, at_ns, change,
    sum(change) OVER (
      PARTITION BY run, pid
      ORDER BY at_ns, change
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS depth
  FROM changes
),

spans AS (
  SELECT
    run,
    min(ts_ns) AS first_ns,
    max(ts_ns + coalesce(period_ns, dur_ns, 0)) AS last_ns
  FROM steps
  GROUP BY run
),

depths AS (
  SELECT
    running.run, running.pid,
    count(*) AS enqueues,
    CAST(count_if(running.depth = 1) AS DOUBLE) / count(*) AS empty_ratio,
    CAST(avg(running.depth - 1) AS DOUBLE) AS mean_depth,
    CAST(quantile_disc(running.depth - 1, 0.5) AS BIGINT) AS p50_depth,
    CAST(max(running.depth - 1) AS BIGINT) AS max_depth
  FROM running
  INNER JOIN spans
    ON running.run = spans.run
  WHERE running.change = 1
    AND running.at_ns BETWEEN spans.first_ns AND spans.last_ns
  GROUP BY running.run, running.pid
),

-- A process that was seen to use several devices has a row for each.
idle AS (
  SELECT
    run, pid,
    count(DISTINCT step_id) AS steps,
    CASE
      WHEN count(observed_idle_ns) > 0 THEN 'observed'
      ELSE 'inferred'
    END AS source,
    CASE
      WHEN count(observed_idle_ns) > 0
        THEN sum(observed_idle_ns)
          / sum(CASE WHEN observed_idle_ns IS NOT NULL THEN period_ns END)
      ELSE sum(idle_lower_ns) / sum(period_ns)
    END AS lower_ratio,
    CASE
      WHEN count(observed_idle_ns) > 0
        THEN sum(observed_idle_ns)
          / sum(CASE WHEN observed_idle_ns IS NOT NULL THEN period_ns END)
      ELSE sum(idle_upper_ns) / sum(period_ns)
    END AS upper_ratio,
    CASE
      WHEN count(observed_idle_ns) > 0
        THEN sum(observed_idle_ns)
          / sum(CASE WHEN observed_idle_ns IS NOT NULL THEN period_ns END)
      WHEN count(idle_ns) = count(*) THEN sum(idle_ns) / sum(period_ns)
    END AS likely_ratio
  FROM device_idle
  GROUP BY run, pid
)

SELECT
  runs.run,
  CASE
    WHEN idle.lower_ratio >= $idle_ratio THEN 'yes'
    WHEN idle.upper_ratio < $idle_ratio THEN 'no'
    ELSE 'unknown'
  END AS answer,
  CASE
    WHEN idle.pid IS NULL
      THEN 'no step with a period has calls that give a device work around it'
    WHEN idle.source = 'observed' THEN format(
      'the device was seen to be idle for {:.1f}% of {:d} steps',
      100 * idle.lower_ratio, idle.steps
    )
    ELSE format(
      'the device was idle for {:.1f} to {:.1f}% of {:d} steps',
      100 * idle.lower_ratio, 100 * idle.upper_ratio, idle.steps
    )
  END
  || CASE
    WHEN depths.pid IS NULL THEN ''
    ELSE format(
      '; {:.0f}% of {:d} enqueues found nothing outstanding, {:.1f} calls on '
      'average',
      100 * depths.empty_ratio, depths.enqueues, depths.mean_depth
    )
  END AS evidence,
  idle.pid,
  idle.source,
  coalesce(idle.steps, 0) AS steps,
  idle.lower_ratio AS idle_lower_ratio,
  idle.likely_ratio AS idle_ratio,
  idle.upper_ratio AS idle_upper_ratio,
  coalesce(depths.enqueues, 0) AS enqueues,
  depths.empty_ratio,
  depths.mean_depth,
  depths.p50_depth,
  depths.max_depth
FROM runs
LEFT JOIN idle
  ON runs.run = idle.run
LEFT JOIN depths
  ON idle.run = depths.run
  AND idle.pid = depths.pid
ORDER BY runs.run, idle.pid;
