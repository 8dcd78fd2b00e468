-- launches: kernel and graph launches, recorded and counted ones together.
-- requires: cuda_api, _counted_launches
-- grain:    one row per run, thread, layer and function, most calls first
-- columns:
--   run              VARCHAR  label of the run
--   pid              INTEGER  process
--   tid              INTEGER  thread
--   layer            VARCHAR  runtime or driver
--   api              VARCHAR  function name without version suffix
--   calls            BIGINT   calls seen: recorded one by one or counted in the
--                             kernel
--   estimated_calls  BIGINT   calls made, where they were sampled in part:
--                             those seen, each as often as its window stands
--                             for; equals calls where is_estimate is false
--   is_estimate      BOOLEAN  launches were sampled for some of the time
--   streams          BIGINT   streams launched on, among the calls seen
--   total_ns         BIGINT   sum of the lengths of the calls seen, ns; open
--                             ones have none
--   mean_ns          BIGINT   mean of those, ns, rounded; NULL: all are open
--   p50_below_ns     BIGINT   power of two that the median lies below, ns; NULL
--                             as mean_ns
--   p99_below_ns     BIGINT   power of two that the 99th percentile lies below,
--                             ns; NULL as mean_ns
--   max_ns           BIGINT   longest, ns; NULL as mean_ns
-- params:
--   pid  INTEGER = NULL  only this process
-- caveats:  a launch by the runtime is there a second time as the launch by the
--           driver inside it: do not add layers up. Percentiles are those of
--           powers of two, since counted calls have no other. An estimate takes
--           the program to have gone on as in the windows seen; how much of the
--           time was observed is in run.json, under the source cuda. Calls of
--           2^39 ns and more (9 minutes) count as below 2^40.
WITH recorded AS (
  SELECT
    run, pid, tid, layer, api, stream,
    -- The 40 buckets of the kernel's histograms; NULL: open.
    CASE
      WHEN dur_ns < 2 THEN 0
      WHEN dur_ns IS NOT NULL
        THEN CAST(least(floor(log2(dur_ns)), 39) AS BIGINT)
    END AS bucket,
    count(*) AS calls,
    count(dur_ns) AS timed,
    sum(dur_ns) AS total_ns,
    max(dur_ns) AS max_ns
  FROM cuda_api
  WHERE "class" IN ('launch', 'graph')
    AND ($pid IS NULL OR pid = $pid)
  GROUP BY ALL
),

counted AS (
  SELECT
    run, pid, tid, layer, api, stream, calls, total_ns, max_ns, histogram,
    sampled, calls * (represents_ns / window_ns) AS estimated_calls
  FROM _counted_launches
  WHERE $pid IS NULL
    OR pid = $pid
),

parts AS (
  SELECT
    run, pid, tid, layer, api, stream, calls, calls AS estimated_calls,
    FALSE AS sampled, total_ns, max_ns, timed
  FROM recorded
  UNION ALL
  SELECT
    run, pid, tid, layer, api, stream, calls, estimated_calls, sampled,
    total_ns, max_ns, calls AS timed
  FROM counted
),

summed AS (
  SELECT
    run, pid, tid, layer, api,
    CAST(sum(calls) AS BIGINT) AS calls,
    CAST(round(sum(estimated_calls)) AS BIGINT) AS estimated_calls,
    bool_or(sampled) AS is_estimate,
    count(DISTINCT stream) AS streams,
    CAST(coalesce(sum(total_ns), 0) AS BIGINT) AS total_ns,
    CAST(sum(timed) AS BIGINT) AS timed,
    max(max_ns) AS max_ns
  FROM parts
  GROUP BY run, pid, tid, layer, api
),

spread AS (
  SELECT run, pid, tid, layer, api, bucket, calls
  FROM recorded
  WHERE bucket IS NOT NULL
  UNION ALL
  SELECT
    run, pid, tid, layer, api,
    unnest(range(len(histogram))) AS bucket,
    unnest(histogram) AS calls
  FROM counted
),

buckets AS (
  SELECT run, pid, tid, layer, api, bucket, sum(calls) AS calls
  FROM spread
  GROUP BY run, pid, tid, layer, api, bucket
  HAVING sum(calls) > 0
),

climbing AS (
  SELECT
    run, pid, tid, layer, api, bucket,
    sum(calls) OVER (
      PARTITION BY run, pid, tid, layer, api
      ORDER BY bucket
    ) AS until_here,
    sum(calls) OVER (PARTITION BY run, pid, tid, layer, api) AS all_calls
  FROM buckets
),

percentiles AS (
  SELECT
    run, pid, tid, layer, api,
    min(bucket) FILTER (until_here >= 0.5 * all_calls) AS p50_bucket,
    min(bucket) FILTER (until_here >= 0.99 * all_calls) AS p99_bucket
  FROM climbing
  GROUP BY run, pid, tid, layer, api
)

SELECT
  s.run,
  s.pid,
  s.tid,
  s.layer,
  s.api,
  s.calls,
  s.estimated_calls,
  s.is_estimate,
  s.streams,
  s.total_ns,
  CAST(round(s.total_ns / nullif(s.timed, 0)) AS BIGINT) AS mean_ns,
  CAST(1 AS BIGINT) << (p.p50_bucket + 1) AS p50_below_ns,
  CAST(1 AS BIGINT) << (p.p99_bucket + 1) AS p99_below_ns,
  s.max_ns
FROM summed AS s
LEFT JOIN percentiles AS p
  ON s.run = p.run
  AND s.pid = p.pid
  AND s.tid = p.tid
  AND s.layer = p.layer
  AND s.api = p.api
ORDER BY s.run, s.estimated_calls DESC, s.pid, s.tid, s.layer, s.api;
