-- queue_depth: does the device run dry while the loop is running?
-- requires: runs, steps, device_idle, _outstanding
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
WITH spans AS (
  SELECT
    run,
    min(ts_ns) AS first_ns,
    max(ts_ns + coalesce(period_ns, dur_ns, 0)) AS last_ns
  FROM steps
  GROUP BY run
),

depths AS (
  SELECT
    work.run, work.pid,
    count(*) AS enqueues,
    CAST(count_if(work.depth = 1) AS DOUBLE) / count(*) AS empty_ratio,
    CAST(avg(work.depth - 1) AS DOUBLE) AS mean_depth,
    CAST(quantile_disc(work.depth - 1, 0.5) AS BIGINT) AS p50_depth,
    CAST(max(work.depth - 1) AS BIGINT) AS max_depth
  FROM _outstanding AS work
  INNER JOIN spans
    ON work.run = spans.run
  WHERE work.change = 1
    AND work.ts_ns BETWEEN spans.first_ns AND spans.last_ns
  GROUP BY work.run, work.pid
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
