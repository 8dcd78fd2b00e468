-- _part_stats: where the time of steps goes, by part.
-- requires: step_parts
-- grain:    one row per run, engine, phase and part
-- columns:
--   run          VARCHAR  label of the run
--   engine       VARCHAR  as in the view steps
--   phase        VARCHAR  phase of the steps; NULL: not told
--   rank         INTEGER  order of the parts, from 1
--   part         VARCHAR  queue_wait, bridge_toll, bridge_transfer, launch,
--                         alloc, sync_wait, lock_wait, runnable, host_compute
--                         or unattributed
--   steps        BIGINT   steps of known length, > 0
--   total_ns     BIGINT   time in the part over all of them, ns
--   mean_ns      DOUBLE   mean per step, ns
--   p50_ns       BIGINT   median over steps, ns
--   p99_ns       BIGINT   99th percentile over steps, ns
--   share        DOUBLE   total_ns over the length of all these steps, 0 to 1
--   is_estimate  BOOLEAN  launches counted in the kernel have a share in it
-- caveats:  percentiles are values that occurred, not interpolated
CREATE VIEW _part_stats AS
WITH summed AS (
  SELECT
    run, engine, phase,
    count(*) AS steps,
    sum(period_ns) AS period_ns,
    bool_or(is_estimate) AS is_estimate,
    [
      sum(queue_wait_ns), sum(bridge_toll_ns), sum(bridge_transfer_ns),
      sum(launch_ns), sum(alloc_ns), sum(sync_wait_ns), sum(lock_wait_ns),
      sum(runnable_ns), sum(host_compute_ns), sum(unattributed_ns)
    ] AS totals,
    [
      quantile_disc(queue_wait_ns, [0.5, 0.99]),
      quantile_disc(bridge_toll_ns, [0.5, 0.99]),
      quantile_disc(bridge_transfer_ns, [0.5, 0.99]),
      quantile_disc(launch_ns, [0.5, 0.99]),
      quantile_disc(alloc_ns, [0.5, 0.99]),
      quantile_disc(sync_wait_ns, [0.5, 0.99]),
      quantile_disc(lock_wait_ns, [0.5, 0.99]),
      quantile_disc(runnable_ns, [0.5, 0.99]),
      quantile_disc(host_compute_ns, [0.5, 0.99]),
      quantile_disc(unattributed_ns, [0.5, 0.99])
    ] AS quantiles
  FROM step_parts
  GROUP BY run, engine, phase
),

parts AS (
  SELECT number, part
  FROM (
    VALUES
      (1, 'queue_wait'), (2, 'bridge_toll'), (3, 'bridge_transfer'),
      (4, 'launch'), (5, 'alloc'), (6, 'sync_wait'), (7, 'lock_wait'),
      (8, 'runnable'), (9, 'host_compute'), (10, 'unattributed')
  ) AS names(number, part)
)

SELECT
  summed.run, summed.engine, summed.phase,
  parts.number AS rank,
  parts.part,
  summed.steps,
  CAST(summed.totals[parts.number] AS BIGINT) AS total_ns,
  CAST(summed.totals[parts.number] / summed.steps AS DOUBLE) AS mean_ns,
  CAST(summed.quantiles[parts.number][1] AS BIGINT) AS p50_ns,
  CAST(summed.quantiles[parts.number][2] AS BIGINT) AS p99_ns,
  CAST(
    summed.totals[parts.number] / nullif(summed.period_ns, 0) AS DOUBLE
  ) AS share,
  summed.is_estimate
FROM summed
CROSS JOIN parts;
