-- _probe_costs: what the probes themselves add to a call's recorded length.
-- requires: runs, cuda_api
-- grain:    one row per run, class and layer of the calls at depth 0
-- materialize: yes
-- columns:
--   run       VARCHAR  label of the run
--   class     VARCHAR  class of call
--   layer     VARCHAR  runtime or driver
--   probe_ns  BIGINT   the call's own probes and, of a runtime's call, those of
--                      the driver's within, ns; 0: not measured
-- caveats:  a mean of the run's own calibration. What is within a collective is
--           not counted.
CREATE VIEW _probe_costs AS
WITH calls AS (
  SELECT
    run, "class", layer,
    count(*) FILTER (WHERE depth = 0) AS outer_calls,
    count(*) FILTER (WHERE depth = 1 AND layer = 'driver') AS inner_calls
  FROM cuda_api
  WHERE depth <= 1
  GROUP BY run, "class", layer
),

inner_calls AS (
  SELECT run, "class", sum(inner_calls) AS inner_calls
  FROM calls
  GROUP BY run, "class"
)

SELECT
  calls.run, calls."class", calls.layer,
  CAST(
    round(
      coalesce(runs.probe_ns, 0)
      + CASE
        WHEN calls.layer = 'runtime' AND calls."class" <> 'collective'
          THEN least(
            round(inner_calls.inner_calls / calls.outer_calls), 1
          ) * coalesce(runs.probe_call_ns, 0)
        ELSE 0
      END
    ) AS BIGINT
  ) AS probe_ns
FROM calls
INNER JOIN inner_calls
  ON calls.run = inner_calls.run
  AND calls."class" = inner_calls."class"
INNER JOIN runs
  ON calls.run = runs.run
WHERE calls.outer_calls > 0;
