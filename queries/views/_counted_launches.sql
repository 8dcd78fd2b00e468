-- _counted_launches: launches counted in the kernel, and what they stand for.
-- requires: cuda_launches, counters
-- grain:    one row per row of cuda_launches
-- columns:
--   run            VARCHAR   label of the run
--   pid            INTEGER   process
--   tid            INTEGER   thread
--   ts_ns          BIGINT    start of the window, ns of CLOCK_MONOTONIC
--   window_ns      BIGINT    length of the window, ns, > 0
--   represents_ns  BIGINT    time from ts_ns on that the window stands for, ns;
--                            more than window_ns where launches were sampled
--   sampled        BOOLEAN   launches were sampled, and the rest is not known
--   api            VARCHAR   function name without version suffix
--   layer          VARCHAR   runtime or driver
--   class          VARCHAR   launch or graph
--   stream         BIGINT    stream handle; NULL: none
--   calls          BIGINT    calls seen
--   total_ns       BIGINT    sum of their lengths, ns
--   max_ns         BIGINT    longest of them, ns
--   histogram      BIGINT[]  calls by length: element i counts [2^i, 2^(i+1))
--                            ns
CREATE VIEW _counted_launches AS
WITH samples AS (
  SELECT run, ts_ns, max("value") AS represents_ns
  FROM counters
  WHERE name = 'cuda_launches.represents'
  GROUP BY run, ts_ns
)

SELECT
  counted.run, counted.pid, counted.tid, counted.ts_ns, counted.window_ns,
  CAST(coalesce(samples.represents_ns, counted.window_ns) AS BIGINT)
    AS represents_ns,
  samples.represents_ns IS NOT NULL AS sampled,
  counted.api,
  CASE WHEN starts_with(counted.api, 'cuda') THEN 'runtime' ELSE 'driver' END
    AS layer,
  CASE WHEN contains(counted.api, 'Graph') THEN 'graph' ELSE 'launch' END
    AS "class",
  counted.stream, counted.calls, counted.total_ns, counted.max_ns,
  counted.histogram
FROM cuda_launches AS counted
LEFT JOIN samples
  ON counted.run = samples.run
  AND counted.ts_ns = samples.ts_ns
WHERE counted.window_ns > 0;
