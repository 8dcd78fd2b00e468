-- launch_toll: do launches cost more of the host's time than outside of
--           confidential computing?
-- requires: runs, steps, crossings, _counted_launches, thread_roles,
--           _probe_costs, _published_costs
-- grain:    one row per run, class, layer, function, role of the thread and way
--           of recording; one row for a run without launches
-- columns:
--   run          VARCHAR  label of the run
--   answer       VARCHAR  yes, no or unknown
--   evidence     VARCHAR  what decided, in a sentence
--   class        VARCHAR  launch or graph; NULL: the run has no launches
--   layer        VARCHAR  runtime or driver; NULL as class
--   api          VARCHAR  function name without version suffix; NULL as class
--   role         VARCHAR  as in thread_roles; NULL: the thread has none
--   is_estimate  BOOLEAN  counted in the kernel: percentiles are known to a
--                         power of two; NULL as class
--   calls        BIGINT   calls that returned without an error
--   open_calls   BIGINT   calls that never returned, not in the times
--   errors       BIGINT   calls that failed, not in the times
--   p50_ns       BIGINT   median of the host's time in a call, ns, less what
--                         the probes add; NULL: none returned
--   p90_ns       BIGINT   90th percentile of it; NULL as p50_ns
--   total_ns     BIGINT   sum of it, ns; NULL as p50_ns
--   open_ns      BIGINT   published for the profile without CC, ns
--   cc_ns        BIGINT   published for it with CC, ns
--   ratio        DOUBLE   p50_ns over open_ns; NULL as p50_ns
--   family       VARCHAR  GPU of the published figures: b300 or h200
-- params:
--   min_calls  BIGINT = 20  fewer calls say nothing
-- caveats:  where steps were found, launches before the first are left out:
--           those that are captured into a graph cross nothing. The answer is
--           that of the kernel launches that took most time, or without
--           min_calls of one kind that of graph launches, for which a kernel
--           launch's figures are taken. The border between yes and no is the
--           geometric mean of the two published figures: 13.9 us on B300 (7.4
--           and 26 us), 10.5 us on H200 (7.4 and 14.8 us). Published: Tinfoil,
--           2026-06-23; see _bridge_profiles. A launch that waits for room in a
--           full queue is as long as that wait: a median far beyond the figure
--           with CC may be one. What the probes add is taken off where the run
--           tells it (of a counted call, its own probe's alone). Of counted
--           calls the median is their mean, held within the power of two in
--           which the median lies, and the 90th percentile is the top of its
--           power of two; a launch counted in runtime and driver is taken once.
--           Calls inside others, uploads of graphs and host functions are not
--           here.
WITH published AS (
  SELECT run, family, "class", open_ns, cc_ns
  FROM _published_costs
  WHERE "class" IN ('launch', 'graph')
),

first_steps AS (
  SELECT run, min(ts_ns) AS first_ns
  FROM steps
  GROUP BY run
),

recorded AS (
  SELECT
    calls.run, calls."class", calls.layer, calls.api, roles."role",
    costs.probe_ns,
    count(*) FILTER (coalesce(calls.result, 0) = 0
      AND calls.dur_ns IS NOT NULL) AS calls,
    count(*) FILTER (calls.dur_ns IS NULL) AS open_calls,
    count(*) FILTER (calls.result <> 0) AS errors,
    quantile_disc(calls.dur_ns, [0.5, 0.9])
      FILTER (coalesce(calls.result, 0) = 0) AS quantiles,
    sum(calls.dur_ns) FILTER (coalesce(calls.result, 0) = 0) AS total_ns
  FROM crossings AS calls
  LEFT JOIN _probe_costs AS costs
    ON calls.run = costs.run
    AND calls."class" = costs."class"
    AND calls.layer = costs.layer
  LEFT JOIN thread_roles AS roles
    ON calls.run = roles.run
    AND calls.pid = roles.pid
    AND calls.tid = roles.tid
  LEFT JOIN first_steps
    ON calls.run = first_steps.run
  WHERE calls."class" IN ('launch', 'graph')
    AND calls.ts_ns >= coalesce(first_steps.first_ns, calls.ts_ns)
    AND NOT contains(calls.api, 'HostFunc')
    AND NOT contains(calls.api, 'Upload')
  GROUP BY ALL
),

-- A launch of the runtime is counted in the driver as well: the layer with
-- more calls has them all.
layers AS (
  SELECT
    windows.run, windows.pid, windows.tid, windows.ts_ns, windows."class",
    windows.layer,
    sum(windows.calls) AS calls
  FROM _counted_launches AS windows
  LEFT JOIN first_steps
    ON windows.run = first_steps.run
  WHERE NOT contains(windows.api, 'HostFunc')
    AND NOT contains(windows.api, 'Upload')
    AND windows.ts_ns >= coalesce(first_steps.first_ns, windows.ts_ns)
  GROUP BY ALL
),

outermost AS (
  SELECT
    run, pid, tid, ts_ns, "class",
    arg_max(layer, (calls, layer)) AS layer
  FROM layers
  GROUP BY ALL
),

counted AS (
  SELECT
    windows.run, windows."class", windows.layer, windows.api,
    roles."role", windows.calls, windows.total_ns, windows.max_ns,
    windows.histogram
  FROM _counted_launches AS windows
  INNER JOIN outermost
    ON windows.run = outermost.run
    AND windows.pid = outermost.pid
    AND windows.tid = outermost.tid
    AND windows.ts_ns = outermost.ts_ns
    AND windows."class" = outermost."class"
    AND windows.layer = outermost.layer
  LEFT JOIN thread_roles AS roles
    ON windows.run = roles.run
    AND windows.pid = roles.pid
    AND windows.tid = roles.tid
  WHERE NOT contains(windows.api, 'HostFunc')
    AND NOT contains(windows.api, 'Upload')
),

sums AS (
  SELECT
    run, "class", layer, api, "role",
    sum(calls) AS calls,
    sum(total_ns) AS total_ns,
    max(max_ns) AS max_ns
  FROM counted
  GROUP BY ALL
),

spread AS (
  SELECT
    run, "class", layer, api, "role",
    unnest(range(len(histogram))) AS bucket,
    unnest(histogram) AS calls
  FROM counted
),

buckets AS (
  SELECT
    run, "class", layer, api, "role", bucket,
    sum(calls) AS calls
  FROM spread
  GROUP BY ALL
  HAVING sum(calls) > 0
),

climbing AS (
  SELECT
    run, "class", layer, api, "role", bucket,
    sum(calls) OVER (
      PARTITION BY run, "class", layer, api, "role"
      ORDER BY bucket
    ) AS until_here,
    sum(calls) OVER (
      PARTITION BY run, "class", layer, api, "role"
    ) AS all_calls
  FROM buckets
),

percentiles AS (
  SELECT
    run, "class", layer, api, "role",
    min(bucket) FILTER (until_here >= 0.5 * all_calls) AS p50_bucket,
    min(bucket) FILTER (until_here >= 0.9 * all_calls) AS p90_bucket
  FROM climbing
  GROUP BY ALL
),

estimated AS (
  SELECT
    sums.run, sums."class", sums.layer, sums.api, sums."role",
    runs.probe_ns, sums.calls, sums.total_ns,
    least(
      greatest(sums.total_ns / sums.calls, pow(2, ranks.p50_bucket)),
      pow(2, ranks.p50_bucket + 1)
    ) AS p50_ns,
    least(sums.max_ns, pow(2, ranks.p90_bucket + 1)) AS p90_ns
  FROM sums
  INNER JOIN percentiles AS ranks
    ON sums.run = ranks.run
    AND sums."class" = ranks."class"
    AND sums.layer = ranks.layer
    AND sums.api = ranks.api
    AND sums."role" IS NOT DISTINCT FROM ranks."role"
  INNER JOIN runs
    ON sums.run = runs.run
),

kinds AS (
  SELECT
    run, "class", layer, api, "role", FALSE AS is_estimate, calls,
    open_calls, errors,
    greatest(quantiles[1] - coalesce(probe_ns, 0), 0) AS p50_ns,
    greatest(quantiles[2] - coalesce(probe_ns, 0), 0) AS p90_ns,
    greatest(total_ns - calls * coalesce(probe_ns, 0), 0) AS total_ns
  FROM recorded
  UNION ALL
  SELECT
    run, "class", layer, api, "role", TRUE AS is_estimate, calls,
    0 AS open_calls,
    0 AS errors,
    greatest(p50_ns - coalesce(probe_ns, 0), 0) AS p50_ns,
    greatest(p90_ns - coalesce(probe_ns, 0), 0) AS p90_ns,
    greatest(total_ns - calls * coalesce(probe_ns, 0), 0) AS total_ns
  FROM estimated
),

compared AS (
  SELECT
    kinds.run, kinds."class", kinds.layer, kinds.api, kinds."role",
    kinds.is_estimate, kinds.calls, kinds.open_calls, kinds.errors,
    kinds.p50_ns, kinds.p90_ns, kinds.total_ns,
    published.open_ns, published.cc_ns, published.family,
    kinds.p50_ns / published.open_ns AS ratio
  FROM kinds
  INNER JOIN published
    ON kinds.run = published.run
    AND kinds."class" = published."class"
),

-- Of kernels' launches where there are enough, else of graphs'.
deciding AS (
  SELECT run, "class", api, calls, p50_ns, open_ns, cc_ns, family, ratio
  FROM compared
  WHERE calls >= $min_calls
  QUALIFY row_number() OVER (
    PARTITION BY run
    ORDER BY "class" DESC, total_ns DESC, layer, api, "role", is_estimate
  ) = 1
),

made AS (
  SELECT run, sum(calls) AS calls
  FROM compared
  GROUP BY run
),

asked AS (
  SELECT
    run,
    probe_ns IS NULL AS is_gross,
    $min_calls AS least_calls
  FROM runs
),

verdicts AS (
  SELECT
    asked.run,
    CASE
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN deciding.p50_ns >= sqrt(deciding.open_ns * deciding.cc_ns)
        THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN made.run IS NULL THEN 'no launches were recorded'
      WHEN deciding.run IS NULL
        THEN format(
          '{:,} launches that returned were recorded, and {:,} of one kind '
          'are needed',
          CAST(made.calls AS BIGINT), asked.least_calls
        )
      ELSE format(
        'the median of {:,} {} takes the host {:.1f} us, {:.1f} times the '
        '{:.1f} us published without CC; with CC {:.1f} us are published '
        '({}{}){}',
        CAST(deciding.calls AS BIGINT), deciding.api,
        deciding.p50_ns / 1e3, deciding.ratio, deciding.open_ns / 1e3,
        deciding.cc_ns / 1e3, deciding.family,
        if(
          deciding."class" = 'graph',
          ', assumed as for a kernel''s launch', ''
        ),
        if(asked.is_gross, '; what the tracer adds is not known', '')
      )
    END AS evidence
  FROM asked
  LEFT JOIN made
    ON asked.run = made.run
  LEFT JOIN deciding
    ON asked.run = deciding.run
)

SELECT
  v.run,
  v.answer,
  v.evidence,
  f."class",
  f.layer,
  f.api,
  f."role",
  f.is_estimate,
  CAST(coalesce(f.calls, 0) AS BIGINT) AS calls,
  CAST(coalesce(f.open_calls, 0) AS BIGINT) AS open_calls,
  CAST(coalesce(f.errors, 0) AS BIGINT) AS errors,
  CAST(round(f.p50_ns) AS BIGINT) AS p50_ns,
  CAST(round(f.p90_ns) AS BIGINT) AS p90_ns,
  CAST(round(f.total_ns) AS BIGINT) AS total_ns,
  CAST(coalesce(f.open_ns, p.open_ns) AS BIGINT) AS open_ns,
  CAST(coalesce(f.cc_ns, p.cc_ns) AS BIGINT) AS cc_ns,
  CAST(f.ratio AS DOUBLE) AS ratio,
  p.family
FROM verdicts AS v
INNER JOIN published AS p
  ON v.run = p.run
  AND p."class" = 'launch'
LEFT JOIN compared AS f
  ON v.run = f.run
ORDER BY v.run, f.total_ns DESC NULLS LAST, f.layer, f.api, f."role";
