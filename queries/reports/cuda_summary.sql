-- cuda_summary: where CUDA calls spend the time of the host, by function.
-- requires: cuda_api
-- grain:    one row per run, process, layer, function and outermost or not,
--           most time first, those inside others last
-- columns:
--   run         VARCHAR  label of the run
--   pid         INTEGER  process
--   layer       VARCHAR  runtime or driver
--   class       VARCHAR  copy, launch, graph, sync, alloc, free, memset, event
--                        or collective
--   api         VARCHAR  function name without version suffix
--   outermost   BOOLEAN  made by the program; false: made inside another call,
--                        whose time has it already
--   calls       BIGINT   calls, open ones included
--   total_ns    BIGINT   sum of their lengths, ns; NULL: all are open
--   p50_ns      BIGINT   median length, ns; NULL as total_ns
--   p99_ns      BIGINT   99th percentile of the length, ns; NULL as total_ns
--   max_ns      BIGINT   longest, ns; NULL as total_ns
--   size_bytes  BIGINT   sum of their sizes; NULL: none was told
--   failed      BIGINT   calls that returned anything but success
--   open        BIGINT   calls that never returned
-- params:
--   pid    INTEGER = NULL  only this process
--   layer  VARCHAR = NULL  only this layer
--   top    BIGINT = NULL   only as many rows of each run
-- caveats:  add up rows that are outermost, or rows of one layer, never both
--           layers: a runtime call holds the driver calls it makes. Launches
--           that were counted in the kernel are in the report launches. A query
--           (cudaEventQuery) that says "not ready" counts as failed.
--           Percentiles are lengths that occurred, not interpolated.
WITH summed AS (
  SELECT
    run, pid, layer, "class", api,
    depth = 0 AS outermost,
    count(*) AS calls,
    CAST(sum(dur_ns) AS BIGINT) AS total_ns,
    quantile_disc(dur_ns, [0.5, 0.99]) AS quantiles,
    max(dur_ns) AS max_ns,
    CAST(sum(size_bytes) AS HUGEINT) AS size_bytes,
    count(*) FILTER (result <> 0) AS failed,
    count(*) FILTER (dur_ns IS NULL) AS "open"
  FROM cuda_api
  WHERE ($pid IS NULL OR pid = $pid)
    AND ($layer IS NULL OR layer = $layer)
  GROUP BY run, pid, layer, "class", api, depth = 0
),

ranked AS (
  SELECT
    run, pid, layer, "class", api, outermost, calls, total_ns, quantiles,
    max_ns, size_bytes, failed, "open",
    row_number() OVER (
      PARTITION BY run
      ORDER BY
        outermost DESC, total_ns DESC NULLS LAST, calls DESC, pid, layer, api
    ) AS place
  FROM summed
)

SELECT
  run,
  pid,
  layer,
  "class",
  api,
  outermost,
  calls,
  total_ns,
  quantiles[1] AS p50_ns,
  quantiles[2] AS p99_ns,
  max_ns,
  -- Sizes are the word of the program, and may be absurd.
  CASE
    WHEN size_bytes IS NOT NULL
      THEN CAST(least(size_bytes, 9223372036854775807) AS BIGINT)
  END AS size_bytes,
  failed,
  "open"
FROM ranked
WHERE $top IS NULL
  OR place <= $top
ORDER BY run, place;
