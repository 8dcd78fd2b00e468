-- model_load: does loading the model wait for the bridge?
-- requires: runs, steps, crossings, gpu_activity
-- grain:    one row per run
-- columns:
--   run            VARCHAR  label of the run
--   answer         VARCHAR  yes, no or unknown
--   evidence       VARCHAR  what decided, in a sentence
--   copies         BIGINT   copies to the device while the model loads
--   bytes          BIGINT   bytes they moved
--   window_ns      BIGINT   from the first of them to the end of the last, ns;
--                           NULL: there are none
--   covered_ns     BIGINT   part of it in which a copy, or a wait that follows
--                           one, was under way on any thread, ns: the device's
--                           own copies where these were recorded; NULL as
--                           window_ns
--   covered_ratio  DOUBLE   covered_ns over window_ns; NULL as window_ns
--   gb_per_s       DOUBLE   bytes over covered_ns, GB (10^9) a second: what the
--                           bridge was seen to take; NULL as window_ns, or over
--                           1000, which is no copy
--   load_gb_per_s  DOUBLE   bytes over window_ns, GB a second; NULL as
--                           window_ns
--   mean_at_once   DOUBLE   copies and waits under way at once, mean over
--                           covered_ns; NULL as window_ns
--   max_at_once    BIGINT   most of them at once; NULL as window_ns
--   processes      BIGINT   processes that copied
--   threads        BIGINT   threads that copied
--   pinned_bytes   BIGINT   bytes of them from pinned or registered memory
--   pageable_bytes BIGINT   bytes of them from pageable memory
--   first_ns       BIGINT   start of the first, ns of CLOCK_MONOTONIC; NULL as
--                           window_ns
-- params:
--   min_bytes  BIGINT = 67108864  fewer bytes are no model
--   min_ratio  DOUBLE = 0.5       yes from this covered_ratio on
-- caveats:  the model loads from the first copy of 1 MiB or more to the last
--           one before the first step that is not of phase model_load; smaller
--           copies in between count, set-up before and after does not. A copy
--           that returns before it is done shows in the wait that follows it
--           on its thread, or nowhere; where too little shows for the bytes
--           the answer is unknown. Yes means that copies, not files or the
--           processor, decide how long loading takes: several contexts at once
--           (a context pool) then help, since the copies of one context do not
--           overlap under CC. Published: 34 times slower under CC, 287 s, and
--           8.4 s with a context pool (Serialized Bridge, arXiv 2606.23969).
WITH first_steps AS (
  SELECT run, min(ts_ns) AS ts_ns
  FROM steps
  WHERE phase IS DISTINCT FROM 'model_load'
  GROUP BY run
),

calls AS (
  SELECT
    crossings.run, crossings.pid, crossings.tid, crossings.ts_ns,
    crossings.ts_ns + crossings.dur_ns AS end_ns,
    crossings."class", crossings.api, crossings.copy_kind,
    crossings.host_memory, crossings.size_bytes,
    lag(crossings.copy_kind) OVER thread AS before_kind,
    lag(crossings.ts_ns) OVER thread AS before_ns
  FROM crossings
  LEFT JOIN first_steps
    ON crossings.run = first_steps.run
  WHERE crossings."class" IN ('copy', 'sync', 'launch', 'graph')
    AND crossings.dur_ns IS NOT NULL
    AND coalesce(crossings.result, 0) = 0
    AND (
      first_steps.ts_ns IS NULL
      OR crossings.ts_ns < first_steps.ts_ns
    )
  WINDOW thread AS (
    PARTITION BY crossings.run, crossings.pid, crossings.tid
    ORDER BY crossings.ts_ns
  )
),

bulk AS (
  SELECT run, min(ts_ns) AS first_ns, max(ts_ns) AS last_ns
  FROM calls
  WHERE copy_kind = 'h2d'
    AND size_bytes >= 1048576
  GROUP BY run
),

parts AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.end_ns,
    calls.copy_kind, calls.host_memory, calls.size_bytes
  FROM calls
  INNER JOIN bulk
    ON calls.run = bulk.run
  WHERE (
    calls.copy_kind = 'h2d'
    AND calls.ts_ns BETWEEN bulk.first_ns AND bulk.last_ns
  )
  OR (
    calls."class" = 'sync'
    AND NOT contains(calls.api, 'Query')
    AND calls.before_kind = 'h2d'
    AND calls.before_ns BETWEEN bulk.first_ns AND bulk.last_ns
  )
),

-- The device's own account of its copies, where there is one.
device_copies AS (
  SELECT
    gpu.run, gpu.ts_ns,
    gpu.ts_ns + gpu.dur_ns AS end_ns
  FROM gpu_activity AS gpu
  INNER JOIN bulk
    ON gpu.run = bulk.run
  LEFT JOIN first_steps
    ON gpu.run = first_steps.run
  WHERE gpu."class" = 'copy'
    AND gpu.copy_kind = 'h2d'
    AND gpu.ts_ns >= bulk.first_ns
    AND (gpu.ts_ns <= bulk.last_ns OR gpu.size_bytes >= 1048576)
    AND (first_steps.ts_ns IS NULL OR gpu.ts_ns < first_steps.ts_ns)
),

spans AS (
  SELECT run, ts_ns, end_ns, TRUE AS is_seen
  FROM device_copies
  UNION ALL
  SELECT run, ts_ns, end_ns, FALSE AS is_seen
  FROM parts
  WHERE run NOT IN (SELECT device_copies.run FROM device_copies)
),

ordered AS (
  SELECT
    run, ts_ns, end_ns, is_seen,
    max(end_ns) OVER (
      PARTITION BY run
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS reached_ns
  FROM spans
),

covered AS (
  SELECT
    run,
    bool_or(is_seen) AS is_seen,
    sum(greatest(end_ns - greatest(ts_ns, coalesce(reached_ns, ts_ns)), 0))
      AS covered_ns,
    sum(end_ns - ts_ns) AS spans_ns,
    max(end_ns) AS end_ns
  FROM ordered
  GROUP BY run
),

turns AS (
  SELECT run, ts_ns, 1 AS more
  FROM spans
  WHERE end_ns > ts_ns
  UNION ALL
  SELECT run, end_ns AS ts_ns, -1 AS more
  FROM spans
  WHERE end_ns > ts_ns
),

-- What ends makes room before what begins at the same moment.
under_way AS (
  SELECT
    run,
    sum(more) OVER (
      PARTITION BY run
      ORDER BY ts_ns, more
      ROWS UNBOUNDED PRECEDING
    ) AS at_once
  FROM turns
),

most AS (
  SELECT run, max(at_once) AS at_once
  FROM under_way
  GROUP BY run
),

sums AS (
  SELECT
    run,
    count(*) FILTER (copy_kind = 'h2d') AS copies,
    coalesce(sum(size_bytes) FILTER (copy_kind = 'h2d'), 0) AS bytes,
    max(end_ns) AS end_ns,
    count(DISTINCT pid) AS processes,
    count(DISTINCT (pid, tid)) AS threads,
    sum(size_bytes) FILTER (
      copy_kind = 'h2d' AND host_memory IN ('pinned', 'registered')
    ) AS pinned_bytes,
    sum(size_bytes) FILTER (
      copy_kind = 'h2d' AND host_memory = 'pageable'
    ) AS pageable_bytes,
    min(ts_ns) AS first_ns
  FROM parts
  GROUP BY run
),

asked AS (
  SELECT run, $min_bytes AS least_bytes, $min_ratio AS least_ratio
  FROM runs
),

crossed AS (
  SELECT run, count(*) AS calls
  FROM crossings
  GROUP BY run
),

figures AS (
  SELECT
    runs.run,
    crossed.calls IS NOT NULL
    OR contains(',' || runs.attached || ',', ',cuda,') AS has_cuda,
    first_steps.ts_ns IS NOT NULL AS has_steps,
    coalesce(sums.copies, 0) AS copies,
    CAST(least(coalesce(sums.bytes, 0), 9223372036854775807) AS BIGINT)
      AS bytes,
    greatest(sums.end_ns, covered.end_ns) - sums.first_ns AS window_ns,
    CAST(covered.covered_ns AS BIGINT) AS covered_ns,
    -- What moves a terabyte a second is no copy, but the order for one.
    NOT covered.is_seen
    AND sums.bytes > 1000 * covered.covered_ns AS is_unseen,
    sums.bytes / nullif(covered.covered_ns, 0) AS gb_per_s,
    covered.spans_ns / nullif(covered.covered_ns, 0) AS mean_at_once,
    CAST(most.at_once AS BIGINT) AS max_at_once,
    coalesce(sums.processes, 0) AS processes,
    coalesce(sums.threads, 0) AS threads,
    CAST(least(coalesce(sums.pinned_bytes, 0), 9223372036854775807) AS BIGINT)
      AS pinned_bytes,
    CAST(
      least(coalesce(sums.pageable_bytes, 0), 9223372036854775807) AS BIGINT
    ) AS pageable_bytes,
    sums.first_ns,
    asked.least_bytes,
    asked.least_ratio
  FROM runs
  INNER JOIN asked
    ON runs.run = asked.run
  LEFT JOIN crossed
    ON runs.run = crossed.run
  LEFT JOIN first_steps
    ON runs.run = first_steps.run
  LEFT JOIN sums
    ON runs.run = sums.run
  LEFT JOIN covered
    ON runs.run = covered.run
  LEFT JOIN most
    ON runs.run = most.run
),

judged AS (
  SELECT
    run, has_cuda, has_steps, copies, bytes, window_ns, covered_ns,
    is_unseen, mean_at_once, max_at_once, processes, threads, pinned_bytes,
    pageable_bytes, first_ns, least_bytes, least_ratio,
    covered_ns / nullif(window_ns, 0) AS covered_ratio,
    CASE WHEN NOT is_unseen THEN gb_per_s END AS gb_per_s,
    bytes / nullif(window_ns, 0) AS load_gb_per_s
  FROM figures
)

SELECT
  run,
  CASE
    WHEN NOT has_steps OR bytes < least_bytes OR covered_ratio IS NULL
      THEN 'unknown'
    WHEN covered_ratio >= least_ratio THEN 'yes'
    WHEN is_unseen THEN 'unknown'
    ELSE 'no'
  END AS answer,
  CASE
    WHEN NOT has_cuda THEN 'CUDA calls were not recorded'
    WHEN NOT has_steps
      THEN 'no steps were found, so that loading cannot be told from the rest'
    WHEN copies = 0
      THEN 'no copy of 1 MiB or more to the device came before the first step'
    WHEN bytes < least_bytes OR covered_ratio IS NULL THEN format(
      '{:.1f} MB were copied to the device before the first step, and '
      '{:.1f} MB are needed',
      bytes / 1e6, least_bytes / 1e6
    )
    WHEN is_unseen AND covered_ratio < least_ratio THEN format(
      '{:.2f} GB in {:,} copies before the first step, of calls that return '
      'before they are done ({:.1f} ms in all), with no waits behind them: '
      'how long the device copied is not known',
      bytes / 1e9, copies, covered_ns / 1e6
    )
    ELSE format(
      '{:.2f} GB in {:,} copies before the first step: a copy was under way '
      'for {:.2f} s of the {:.2f} s from the first to the last ({:.0f}%), at '
      '{:.1f} GB/s, {:.1f} at once on average, from {:,} thread(s) of '
      '{:,} process(es)',
      bytes / 1e9, copies, covered_ns / 1e9, window_ns / 1e9,
      100 * covered_ratio, bytes / covered_ns, mean_at_once, threads, processes
    )
  END AS evidence,
  copies,
  bytes,
  window_ns,
  covered_ns,
  CAST(covered_ratio AS DOUBLE) AS covered_ratio,
  CAST(gb_per_s AS DOUBLE) AS gb_per_s,
  CAST(load_gb_per_s AS DOUBLE) AS load_gb_per_s,
  CAST(mean_at_once AS DOUBLE) AS mean_at_once,
  max_at_once,
  processes,
  threads,
  pinned_bytes,
  pageable_bytes,
  first_ns
FROM judged
ORDER BY run;
