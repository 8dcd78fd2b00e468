-- _step_stats: lengths of steps, and how the steps were found.
-- requires: steps
-- grain:    one row per run, engine, phase and way they were found
-- columns:
--   run       VARCHAR  label of the run
--   engine    VARCHAR  as in the view steps
--   phase     VARCHAR  phase of the steps; NULL: not told
--   found_by  VARCHAR  nvtx, annotation or pattern
--   steps     BIGINT   steps, > 0
--   periods   BIGINT   those whose length is known
--   total_ns  BIGINT   sum of the known lengths, ns
--   mean_ns   BIGINT   mean, ns, rounded; NULL: none known
--   p50_ns    BIGINT   median, ns; NULL: none known
--   p90_ns    BIGINT   90th percentile, ns; NULL: none known
--   p99_ns    BIGINT   99th percentile, ns; NULL: none known
--   max_ns    BIGINT   longest, ns; NULL: none known
-- caveats:  percentiles are lengths that occurred, not interpolated
CREATE VIEW _step_stats AS
SELECT
  run, engine, phase, found_by,
  count(*) AS steps,
  count(period_ns) AS periods,
  CAST(coalesce(sum(period_ns), 0) AS BIGINT) AS total_ns,
  CAST(round(avg(period_ns)) AS BIGINT) AS mean_ns,
  quantile_disc(period_ns, 0.5) AS p50_ns,
  quantile_disc(period_ns, 0.9) AS p90_ns,
  quantile_disc(period_ns, 0.99) AS p99_ns,
  max(period_ns) AS max_ns
FROM steps
GROUP BY run, engine, phase, found_by;
