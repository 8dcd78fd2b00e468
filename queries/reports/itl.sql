-- itl: inter-token latency: the distribution of the periods of steps.
-- requires: steps
-- grain:    one row per run, engine and phase
-- columns:
--   run      VARCHAR  label of the run
--   engine   VARCHAR  as in the view steps
--   phase    VARCHAR  phase of the step the period starts with; NULL: not told
--   n        BIGINT   periods, > 0
--   mean_ns  BIGINT   mean, ns, rounded
--   p50_ns   BIGINT   median, ns
--   p90_ns   BIGINT   90th percentile, ns
--   p99_ns   BIGINT   99th percentile, ns
--   max_ns   BIGINT   longest, ns
-- params:
--   engine  VARCHAR = NULL  only this engine
--   phase   VARCHAR = NULL  only this phase
-- caveats:  a step whose period is not known (the last one, or one before a
--           pause) does not count. Percentiles are periods that occurred, not
--           interpolated. Of worker processes each has periods of its own.
WITH summed AS (
  SELECT
    run,
    engine,
    phase,
    count(*) AS n,
    avg(period_ns) AS mean_ns,
    quantile_disc(period_ns, [0.5, 0.9, 0.99]) AS quantiles,
    max(period_ns) AS max_ns
  FROM steps
  WHERE period_ns IS NOT NULL
    AND ($engine IS NULL OR engine = $engine)
    AND ($phase IS NULL OR phase = $phase)
  GROUP BY run, engine, phase
)

SELECT
  run,
  engine,
  phase,
  n,
  CAST(round(mean_ns) AS BIGINT) AS mean_ns,
  quantiles[1] AS p50_ns,
  quantiles[2] AS p90_ns,
  quantiles[3] AS p99_ns,
  max_ns
FROM summed
ORDER BY run, engine, phase NULLS LAST;
