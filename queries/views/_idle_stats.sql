-- _idle_stats: idle time of each device over all steps, inferred and observed.
-- requires: device_idle
-- grain:    one row per run, process and device with work in a step
-- columns:
--   run                VARCHAR  label of the run
--   pid                INTEGER  process that uses the device; NULL: unknown
--   device             INTEGER  ordinal; NULL: inferred, a process counts as
--                               one device
--   steps              BIGINT   steps with work on it
--   pinned_steps       BIGINT   those in which blocking returns leave no doubt
--   total_ns           BIGINT   length of all these steps, ns
--   bounded_steps      BIGINT   those for which bounds are inferred
--   idle_lower_ns      BIGINT   idle for at least so long in them, ns; NULL:
--                               none inferred
--   idle_upper_ns      BIGINT   idle for at most so long in them, ns; NULL: as
--                               idle_lower_ns
--   estimated_steps    BIGINT   those for which there is an estimate too
--   estimated_ns       BIGINT   length of those, ns; NULL: none
--   idle_ns            BIGINT   estimate for those, ns; NULL: none
--   observed_steps     BIGINT   steps in which the device's activity was
--                               recorded
--   observed_idle_ns   BIGINT   idle by that record in those steps, ns; NULL:
--                               none recorded
--   observed_total_ns  BIGINT   length of those steps, ns; NULL: none recorded
--   scored_steps       BIGINT   observed ones with bounds
--   within_bounds      BIGINT   of these, the ones whose observed idle time
--                               lies within the bounds
--   error_ns           BIGINT   sum of |estimate - observed| over observed
--                               steps with an estimate, ns; NULL: none
--   error_of_ns        BIGINT   length of these steps, ns; NULL: none
CREATE VIEW _idle_stats AS
SELECT
  run, pid, device,
  count(*) AS steps,
  count(*) FILTER (pinned) AS pinned_steps,
  CAST(sum(period_ns) AS BIGINT) AS total_ns,
  count(idle_upper_ns) AS bounded_steps,
  CAST(sum(idle_lower_ns) AS BIGINT) AS idle_lower_ns,
  CAST(sum(idle_upper_ns) AS BIGINT) AS idle_upper_ns,
  count(idle_ns) AS estimated_steps,
  CAST(
    sum(period_ns) FILTER (idle_ns IS NOT NULL) AS BIGINT
  ) AS estimated_ns,
  CAST(sum(idle_ns) AS BIGINT) AS idle_ns,
  count(observed_idle_ns) AS observed_steps,
  CAST(sum(observed_idle_ns) AS BIGINT) AS observed_idle_ns,
  CAST(
    sum(period_ns) FILTER (observed_idle_ns IS NOT NULL) AS BIGINT
  ) AS observed_total_ns,
  count(*) FILTER (
    observed_idle_ns IS NOT NULL AND idle_upper_ns IS NOT NULL
  ) AS scored_steps,
  count(*) FILTER (
    observed_idle_ns BETWEEN idle_lower_ns AND idle_upper_ns
  ) AS within_bounds,
  CAST(sum(abs(idle_ns - observed_idle_ns)) AS BIGINT) AS error_ns,
  CAST(
    sum(period_ns) FILTER (
      idle_ns IS NOT NULL AND observed_idle_ns IS NOT NULL
    ) AS BIGINT
  ) AS error_of_ns
FROM device_idle
GROUP BY run, pid, device;
