-- itl_histogram: how many steps are how long.
-- requires: steps
-- grain:    one row per run, engine, phase and bin that has steps, by length
-- columns:
--   run       VARCHAR  label of the run
--   engine    VARCHAR  as in the view steps
--   phase     VARCHAR  phase of the steps; NULL: not told
--   from_ns   BIGINT   least length of the bin, ns
--   until_ns  BIGINT   the least that is too long for it, ns; NULL: none is
--   steps     BIGINT   steps of such a length, > 0
-- params:
--   bins  BIGINT = 80    bins of equal width, > 0; one more has what is longer
--   most  DOUBLE = 0.98  share of the steps that they reach up to, 0 to 1
-- caveats:  bins begin at the shortest step of the engine and phase. A step of
--           unknown length does not count.
WITH reached AS (
  SELECT
    run, engine, phase,
    min(period_ns) AS least_ns,
    quantile_disc(period_ns, $most) AS most_ns
  FROM steps
  WHERE period_ns IS NOT NULL
  GROUP BY run, engine, phase
),

measured AS (
  SELECT
    run, engine, phase, least_ns,
    (most_ns - least_ns) // $bins + 1 AS width_ns
  FROM reached
),

placed AS (
  SELECT
    steps.run, steps.engine, steps.phase,
    measured.least_ns, measured.width_ns,
    (steps.period_ns - measured.least_ns) // measured.width_ns AS place
  FROM steps
  INNER JOIN measured
    ON steps.run = measured.run
    AND steps.engine = measured.engine
    AND steps.phase IS NOT DISTINCT FROM measured.phase
  WHERE steps.period_ns IS NOT NULL
),

binned AS (
  SELECT run, engine, phase, least_ns, width_ns, least(place, $bins) AS bin
  FROM placed
)

SELECT
  run,
  engine,
  phase,
  least_ns + bin * width_ns AS from_ns,
  CASE WHEN bin < $bins THEN least_ns + (bin + 1) * width_ns END AS until_ns,
  count(*) AS steps
FROM binned
GROUP BY run, engine, phase, bin, least_ns, width_ns
ORDER BY run, engine, phase NULLS LAST, from_ns;
