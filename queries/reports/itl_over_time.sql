-- itl_over_time: how the inter-token latency changes while a run goes on.
-- requires: steps
-- grain:    one row per run, engine, phase and bin, in the order of time
-- columns:
--   run           VARCHAR  label of the run
--   engine        VARCHAR  as in the view steps
--   phase         VARCHAR  phase of the steps; NULL: not told
--   bin           BIGINT   number of the bin, from 0
--   from_step_id  BIGINT   first step of the bin
--   ts_ns         BIGINT   its start, ns of CLOCK_MONOTONIC
--   until_ns      BIGINT   when the last step of the bin ends, ns
--   steps         BIGINT   steps of known length in the bin, > 0
--   min_ns        BIGINT   shortest of them, ns
--   p50_ns        BIGINT   median, ns
--   max_ns        BIGINT   longest, ns
-- params:
--   bins  BIGINT = 2000  bins at most of an engine and phase, > 0
-- caveats:  bins hold the same number of steps, but for one more or less; with
--           no more steps than bins each has its own. A step of unknown length
--           does not count. Medians are lengths that occurred.
WITH numbered AS (
  SELECT
    run, engine, phase, step_id, ts_ns, period_ns,
    row_number() OVER track - 1 AS place,
    count(*) OVER (PARTITION BY run, engine, phase) AS n
  FROM steps
  WHERE period_ns IS NOT NULL
  WINDOW track AS (PARTITION BY run, engine, phase ORDER BY ts_ns, step_id)
),

binned AS (
  SELECT
    run, engine, phase, step_id, ts_ns, period_ns,
    place * least(n, $bins) // n AS bin
  FROM numbered
)

SELECT
  run,
  engine,
  phase,
  bin,
  arg_min(step_id, (ts_ns, step_id)) AS from_step_id,
  min(ts_ns) AS ts_ns,
  max(ts_ns + period_ns) AS until_ns,
  count(*) AS steps,
  min(period_ns) AS min_ns,
  quantile_disc(period_ns, 0.5) AS p50_ns,
  max(period_ns) AS max_ns
FROM binned
GROUP BY run, engine, phase, bin
ORDER BY run, engine, phase NULLS LAST, bin;
