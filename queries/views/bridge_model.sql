-- bridge_model: what a crossing costs in a run when nothing else is waited for.
-- requires: cuda_api, steps, losses, _idle_crossings, _call_runnable,
--           _copy_waits, _run_profiles, _bridge_profiles, _probe_costs
-- grain:    one row per run, class, api, kind of copy and host memory of the
--           crossings in it; and one for each kind of copy to and from pinned
--           and pageable memory, launch and graph that is not in it
-- materialize: yes
-- columns:
--   run               VARCHAR  label of the run
--   class             VARCHAR  copy, launch, graph, sync, alloc or collective
--   api               VARCHAR  function name; NULL: the run has none of it
--   copy_kind         VARCHAR  as in cuda_api; NULL: not a copy
--   host_memory       VARCHAR  as in cuda_api; NULL: none, or does not matter
--   calls             BIGINT   such calls in the run
--   n                 BIGINT   of these, undisturbed ones that the figures come
--                              from; 0: they come from the profile
--   toll_ns           DOUBLE   length whatever the size, ns, without what the
--                              probes add (where the run tells that)
--   ns_per_byte       DOUBLE   what each byte adds to the call, ns; 0 where the
--                              call does not wait for the bytes; NULL: no copy
--   gb_per_s          DOUBLE   bandwidth, 1e9 bytes per second; NULL: no copy
--   residual_p50_ns   DOUBLE   median of how far calls are from the model, ns;
--                              NULL: from the profile
--   residual_p90_ns   DOUBLE   as residual_p50_ns, the 90th percentile
--   confidence        VARCHAR  high, medium or low: see the caveats
--   source            VARCHAR  where the toll comes from: run or profile
--   bandwidth_source  VARCHAR  where ns_per_byte and gb_per_s come from: run or
--                              profile; NULL: no copy
--   profile           VARCHAR  the profile of _bridge_profiles for what the run
--                              does not show
--   profile_basis     VARCHAR  why that one: told, behaviour or assumed, as in
--                              _run_profiles
--   mode              VARCHAR  async, staged or host_synchronous: the call
--                              returns once submitted, once its source is read,
--                              or once it is done; NULL: not a copy
--   mode_source       VARCHAR  where mode comes from: manual (CUDA's), run (its
--                              calls show it) or profile; NULL: not a copy
--   blocks            BOOLEAN  a copy of this kind returns only when the work
--                              before it on its stream is done; NULL: no copy
--   latency_ns        DOUBLE   from a launch's return until the device may
--                              start, and what of a copy's toll is the
--                              device's, ns; always the profile's; NULL: none
-- caveats:  copies that block and waits are taken when their stream was known
--           to be idle, launches from the first step on, and none in which the
--           thread was without a CPU. A line through the fastest tenth of
--           calls of each of 16 sizes, then least squares of relative errors
--           over the calls within 15% of the fastest tenth, twice. The
--           bandwidth is the profile's unless the standard error of the fitted
--           one is at most a tenth of it. Confidence is high from 50 calls on
--           whose median residual is at most 5% of their median length, medium
--           from 10 and 20%, else low; medium at most where CUDA calls were
--           lost.
CREATE VIEW bridge_model AS
WITH first_steps AS (
  SELECT run, min(ts_ns) AS first_ns
  FROM steps
  GROUP BY run
),

lossy AS (
  SELECT DISTINCT run
  FROM losses
  WHERE source = 'cuda'
),

occurring AS (
  SELECT
    run, "class", api, copy_kind, host_memory,
    any_value(layer) AS layer,
    count(*) AS calls,
    count(dur_ns) AS returned
  FROM cuda_api
  WHERE depth = 0
    AND "class" <> 'free'
    AND "class" <> 'memset'
    AND "class" <> 'event'
    AND "class" <> 'other'
  GROUP BY run, "class", api, copy_kind, host_memory
),

wanted AS (
  SELECT profiles.run, kinds."class", kinds.copy_kind, kinds.host_memory
  FROM _run_profiles AS profiles
  CROSS JOIN (
    VALUES
    ('copy', 'h2d', 'pinned'),
    ('copy', 'h2d', 'pageable'),
    ('copy', 'd2h', 'pinned'),
    ('copy', 'd2h', 'pageable'),
    ('launch', NULL, NULL),
    ('graph', NULL, NULL)
  ) AS kinds("class", copy_kind, host_memory)
),

kinds AS (
  SELECT
    run, "class", api, layer, copy_kind, host_memory, calls, returned
  FROM occurring
  UNION ALL
  SELECT
    run, "class", NULL AS api, NULL AS layer, copy_kind, host_memory,
    0 AS calls,
    0 AS returned
  FROM wanted
  WHERE NOT EXISTS (
    SELECT 1
    FROM occurring
    WHERE occurring.run = wanted.run
      AND occurring."class" = wanted."class"
      AND occurring.copy_kind IS NOT DISTINCT FROM wanted.copy_kind
      AND occurring.host_memory IS NOT DISTINCT FROM wanted.host_memory
  )
),

expected AS MATERIALIZED (
  SELECT
    kinds.run, kinds."class", kinds.api, kinds.copy_kind, kinds.host_memory,
    kinds.calls,
    row_number() OVER () AS kind,
    -- Enough to fit, and no more.
    CAST(1 + kinds.returned // 20000 AS UBIGINT) AS one_in,
    -- A launch that is captured into a graph crosses nothing.
    CASE
      WHEN kinds."class" IN ('launch', 'graph') THEN first_steps.first_ns
    END AS first_ns,
    profiles.profile,
    profiles.basis,
    figures.toll_ns, figures.latency_ns, figures.gb_per_s,
    coalesce(probes.probe_ns, 0) AS probe_ns,
    CASE
      WHEN kinds."class" <> 'copy' THEN NULL
      WHEN coalesce(waits.waits, figures.mode = 'host_synchronous')
        THEN 'host_synchronous'
      WHEN kinds.copy_kind = 'h2d'
        AND coalesce(kinds.host_memory, 'unknown') IN ('pageable', 'unknown')
        THEN 'staged'
      ELSE 'async'
    END AS mode,
    CASE
      WHEN kinds."class" <> 'copy' THEN NULL
      WHEN kinds.copy_kind = 'h2d' AND kinds.host_memory = 'pageable'
        THEN coalesce(waits.waits_source, 'manual')
      ELSE coalesce(waits.waits_source, 'profile')
    END AS mode_source
  FROM kinds
  INNER JOIN _run_profiles AS profiles
    ON kinds.run = profiles.run
  LEFT JOIN first_steps
    ON kinds.run = first_steps.run
  LEFT JOIN _probe_costs AS probes
    ON kinds.run = probes.run
    AND kinds."class" = probes."class"
    AND kinds.layer = probes.layer
  LEFT JOIN _copy_waits AS waits
    ON kinds."class" = 'copy'
    AND kinds.run = waits.run
    AND kinds.api = waits.api
    AND kinds.copy_kind IS NOT DISTINCT FROM waits.copy_kind
    AND kinds.host_memory IS NOT DISTINCT FROM waits.host_memory
  LEFT JOIN _bridge_profiles AS figures
    ON profiles.profile = figures.profile
    AND CASE
      WHEN contains(kinds.api, 'Query') THEN 'query'
      ELSE kinds."class"
    END = figures."class"
    AND CASE
      WHEN kinds."class" <> 'copy' THEN NULL
      WHEN kinds.copy_kind IN ('d2h', 'd2d', 'p2p') THEN kinds.copy_kind
      ELSE 'h2d'
    END IS NOT DISTINCT FROM figures.copy_kind
    AND CASE
      WHEN kinds."class" = 'alloc'
        THEN CASE WHEN kinds.host_memory = 'pinned' THEN 'pinned' END
      WHEN kinds."class" <> 'copy' THEN NULL
      WHEN kinds.copy_kind IN ('d2d', 'p2p') THEN NULL
      WHEN kinds.host_memory IN ('pinned', 'registered') THEN 'pinned'
      WHEN kinds.host_memory = 'managed' THEN 'managed'
      ELSE 'pageable'
    END IS NOT DISTINCT FROM figures.host_memory
),

-- Calls that waited for nothing but themselves.
undisturbed AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    calls.dur_ns - expected.probe_ns AS net_ns,
    calls.size_bytes, expected.kind, expected.mode, expected.gb_per_s
  FROM _idle_crossings AS calls
  INNER JOIN expected
    ON calls.run = expected.run
    AND calls."class" = expected."class"
    AND calls.api = expected.api
    AND calls.copy_kind IS NOT DISTINCT FROM expected.copy_kind
    AND calls.host_memory IS NOT DISTINCT FROM expected.host_memory
  WHERE calls.dur_ns > 0
    AND (
      expected.mode = 'host_synchronous'
      OR (calls."class" = 'sync' AND NOT contains(calls.api, 'Query'))
    )
    AND hash(calls.ts_ns) % expected.one_in = 0
  UNION ALL
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    calls.dur_ns - expected.probe_ns AS net_ns,
    calls.size_bytes, expected.kind, expected.mode, expected.gb_per_s
  FROM cuda_api AS calls
  INNER JOIN expected
    ON calls.run = expected.run
    AND calls."class" = expected."class"
    AND calls.api = expected.api
    AND calls.copy_kind IS NOT DISTINCT FROM expected.copy_kind
    AND calls.host_memory IS NOT DISTINCT FROM expected.host_memory
  WHERE calls.depth = 0
    AND calls.dur_ns > 0
    -- A query that finds work under way has no other status for it.
    AND (coalesce(calls.result, 0) = 0 OR calls."class" = 'sync')
    AND expected.mode IS DISTINCT FROM 'host_synchronous'
    AND NOT (calls."class" = 'sync' AND NOT contains(calls.api, 'Query'))
    AND (expected.first_ns IS NULL OR calls.ts_ns >= expected.first_ns)
    AND hash(calls.ts_ns) % expected.one_in = 0
),

samples AS (
  SELECT
    calls.kind,
    CAST(coalesce(calls.size_bytes, 0) AS DOUBLE) AS x,
    calls.net_ns AS y,
    CASE
      WHEN calls.mode IN ('host_synchronous', 'staged')
        THEN coalesce(1 / calls.gb_per_s, 0)
      ELSE 0
    END AS usual,
    calls.mode IN ('host_synchronous', 'staged') AS has_slope
  FROM undisturbed AS calls
  LEFT JOIN _call_runnable AS ready
    ON calls.run = ready.run
    AND calls.pid = ready.pid
    AND calls.tid = ready.tid
    AND calls.ts_ns = ready.ts_ns
  -- Time without a CPU may pass while the device is at work: it cannot be
  -- taken off.
  WHERE ready.ts_ns IS NULL
    AND calls.net_ns > 0
),

-- The fastest tenth of calls of about a size: what disturbs a call only ever
-- makes it longer.
ranked AS (
  SELECT
    kind, usual, has_slope, x, y,
    ntile(16) OVER (PARTITION BY kind ORDER BY x) AS bucket,
    count(*) OVER (PARTITION BY kind) AS n
  FROM samples
),

fastest AS (
  SELECT
    kind,
    any_value(usual) AS usual,
    bool_or(has_slope) AS has_slope,
    avg(x) AS x,
    quantile_cont(y, 0.1) AS y
  FROM ranked
  -- Of few calls fewer buckets, with 8 calls in each.
  GROUP BY kind, bucket * least(n // 8, 16) // 17
),

sums_1 AS (
  SELECT
    kind,
    any_value(usual) AS usual,
    bool_or(has_slope) AND count(*) >= 2 AS has_slope,
    sum(1 / (y * y)) AS w,
    sum(x / (y * y)) AS wx,
    sum(x * x / (y * y)) AS wxx,
    sum(1 / y) AS wy,
    sum(x / y) AS wxy
  FROM fastest
  GROUP BY kind
),

fit_1 AS (
  SELECT
    kind,
    CASE
      WHEN has_slope AND w * wxx - wx * wx > 1e-9 * w * wxx
        AND w * wxy > wx * wy
        THEN (w * wxy - wx * wy) / (w * wxx - wx * wx)
      ELSE usual
    END AS slope,
    greatest((wy - slope * wx) / w, 0) AS toll
  FROM sums_1
),

near_1 AS (
  SELECT
    samples.kind,
    quantile_cont(
      samples.y / greatest(fit_1.toll + fit_1.slope * samples.x, 1), 0.1
    ) AS fast
  FROM samples
  INNER JOIN fit_1
    ON samples.kind = fit_1.kind
  GROUP BY samples.kind
),

sums_2 AS (
  SELECT
    samples.kind,
    any_value(samples.usual) AS usual,
    bool_or(samples.has_slope) AND count(*) >= 8 AS has_slope,
    sum(1 / (samples.y * samples.y)) AS w,
    sum(samples.x / (samples.y * samples.y)) AS wx,
    sum(samples.x * samples.x / (samples.y * samples.y)) AS wxx,
    sum(1 / samples.y) AS wy,
    sum(samples.x / samples.y) AS wxy
  FROM samples
  INNER JOIN fit_1
    ON samples.kind = fit_1.kind
  INNER JOIN near_1
    ON samples.kind = near_1.kind
  WHERE samples.y / greatest(fit_1.toll + fit_1.slope * samples.x, 1)
    BETWEEN near_1.fast / 1.15 AND near_1.fast * 1.15
  GROUP BY samples.kind
),

fit_2 AS (
  SELECT
    kind,
    CASE
      WHEN has_slope AND w * wxx - wx * wx > 1e-9 * w * wxx
        AND w * wxy > wx * wy
        THEN (w * wxy - wx * wy) / (w * wxx - wx * wx)
      ELSE usual
    END AS slope,
    greatest((wy - slope * wx) / w, 0) AS toll
  FROM sums_2
),

near_2 AS (
  SELECT
    samples.kind,
    quantile_cont(
      samples.y / greatest(fit_2.toll + fit_2.slope * samples.x, 1), 0.1
    ) AS fast
  FROM samples
  INNER JOIN fit_2
    ON samples.kind = fit_2.kind
  GROUP BY samples.kind
),

kept AS (
  SELECT
    samples.kind, samples.usual, samples.has_slope, samples.x, samples.y,
    1 / pow(greatest(fit_2.toll + fit_2.slope * samples.x, 1), 2) AS weight
  FROM samples
  INNER JOIN fit_2
    ON samples.kind = fit_2.kind
  INNER JOIN near_2
    ON samples.kind = near_2.kind
  WHERE samples.y / greatest(fit_2.toll + fit_2.slope * samples.x, 1)
    BETWEEN near_2.fast / 1.15 AND near_2.fast * 1.15
),

sums_3 AS (
  SELECT
    kind,
    any_value(usual) AS usual,
    count(*) AS n,
    bool_or(has_slope) AND count(*) >= 8 AS has_slope,
    sum(weight) AS w,
    sum(weight * x) AS wx,
    sum(weight * x * x) AS wxx,
    sum(weight * y) AS wy,
    sum(weight * x * y) AS wxy,
    sum(weight * y * y) AS wyy,
    median(y) AS middle
  FROM kept
  GROUP BY kind
),

lines AS (
  SELECT
    kind, n, usual, has_slope, w, wx, wxx, wy, wxy, wyy, middle,
    w * wxx - wx * wx AS spread,
    CASE
      WHEN has_slope AND spread > 1e-9 * w * wxx
        THEN (w * wxy - wx * wy) / spread
    END AS line_slope,
    (wy - line_slope * wx) / w AS line_toll,
    greatest(wyy - line_toll * wy - line_slope * wxy, 0) / (n - 2)
      AS scatter,
    sqrt(scatter * w / spread) AS slope_error
  FROM sums_3
),

fit_3 AS (
  SELECT
    kind, n, middle,
    coalesce(
      line_slope > 0 AND line_toll >= 0 AND slope_error <= 0.1 * line_slope,
      FALSE
    ) AS has_line,
    CASE WHEN has_line THEN line_slope ELSE usual END AS slope,
    greatest((wy - slope * wx) / w, 0) AS toll
  FROM lines
),

judged AS (
  SELECT
    samples.kind,
    any_value(fit_3.n) AS n,
    any_value(fit_3.toll) AS toll,
    any_value(fit_3.slope) AS slope,
    any_value(fit_3.has_line) AS has_line,
    any_value(fit_3.middle) AS middle,
    quantile_cont(
      abs(samples.y - fit_3.toll - fit_3.slope * samples.x), 0.5
    ) AS residual_p50_ns,
    quantile_cont(
      abs(samples.y - fit_3.toll - fit_3.slope * samples.x), 0.9
    ) AS residual_p90_ns
  FROM samples
  INNER JOIN fit_3
    ON samples.kind = fit_3.kind
  WHERE fit_3.n >= 5
  GROUP BY samples.kind
)

SELECT
  expected.run, expected."class", expected.api, expected.copy_kind,
  expected.host_memory, expected.calls,
  coalesce(judged.n, 0) AS n,
  CASE
    WHEN judged.n IS NOT NULL THEN judged.toll
    WHEN expected.mode = 'host_synchronous'
      THEN expected.toll_ns + expected.latency_ns
    ELSE expected.toll_ns
  END AS toll_ns,
  CASE
    WHEN expected."class" <> 'copy' THEN NULL
    WHEN expected.mode = 'async' THEN 0
    WHEN judged.n IS NOT NULL THEN judged.slope
    ELSE 1 / expected.gb_per_s
  END AS ns_per_byte,
  CASE
    WHEN expected."class" <> 'copy' THEN NULL
    WHEN judged.has_line THEN 1 / judged.slope
    ELSE expected.gb_per_s
  END AS gb_per_s,
  judged.residual_p50_ns, judged.residual_p90_ns,
  CASE
    WHEN judged.n >= 50 AND judged.residual_p50_ns <= 0.05 * judged.middle
      AND lossy.run IS NULL
      THEN 'high'
    WHEN judged.n >= 10 AND judged.residual_p50_ns <= 0.2 * judged.middle
      THEN 'medium'
    ELSE 'low'
  END AS confidence,
  CASE WHEN judged.n IS NOT NULL THEN 'run' ELSE 'profile' END AS source,
  CASE
    WHEN expected."class" <> 'copy' THEN NULL
    WHEN judged.has_line THEN 'run'
    ELSE 'profile'
  END AS bandwidth_source,
  expected.profile,
  expected.basis AS profile_basis,
  expected.mode,
  expected.mode_source,
  CASE
    WHEN expected."class" = 'copy' THEN expected.mode = 'host_synchronous'
  END AS blocks,
  expected.latency_ns
FROM expected
LEFT JOIN judged
  ON expected.kind = judged.kind
LEFT JOIN lossy
  ON expected.run = lossy.run;
