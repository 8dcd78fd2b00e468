-- kv_restore: does bringing saved KV cache back to the device cost time while
--           serving?
-- requires: runs, steps, crossings
-- grain:    one row per run
-- columns:
--   run              VARCHAR  label of the run
--   answer           VARCHAR  yes, no or unknown
--   evidence         VARCHAR  what decided, in a sentence
--   steps            BIGINT   steps of any phase but model_load and train
--   restore_steps    BIGINT   those of phase kv_restore
--   serving_ns       BIGINT   from the start of the first of the steps to the
--                             end of the last, ns; NULL: there are none
--   bursts           BIGINT   bursts of copies to the device in that time
--   copies           BIGINT   copies in them
--   bytes            BIGINT   bytes they moved
--   covered_ns       BIGINT   time in which one of the copies was under way, ns
--   covered_ratio    DOUBLE   covered_ns over serving_ns; NULL as serving_ns
--   gb_per_s         DOUBLE   bytes over covered_ns, GB (10^9) a second; NULL:
--                             no bursts, or over 1000, which is no copy
--   max_burst_bytes  BIGINT   bytes of the largest burst; NULL: no bursts
--   max_burst_ns     BIGINT   from start to end of the longest burst, ns; NULL:
--                             no bursts
--   pinned_bytes     BIGINT   bytes from pinned or registered memory
--   pageable_bytes   BIGINT   bytes from pageable memory
--   first_ns         BIGINT   start of the first burst, ns of CLOCK_MONOTONIC;
--                             NULL: no bursts
-- params:
--   min_copy_bytes   BIGINT = 65536     smaller copies are a step's own inputs
--   min_burst_bytes  BIGINT = 16777216  less in a row is no restore
--   max_gap_ns       BIGINT = 10000000  copies further apart are two bursts
--   min_ratio        DOUBLE = 0.05      yes from this covered_ratio on
-- caveats:  told by size: a burst is copies of one process with no more than
--           max_gap_ns between them, that move min_burst_bytes together; in
--           steps of phase kv_restore every copy counts. So are weights that
--           are swapped in, adapters, or images, which nothing here tells
--           apart. A copy that returns before it is done is not covered for as
--           long as it takes, and its bandwidth is too high: such a restore
--           does not hold its thread up. Published: a restore takes 131% longer
--           under CC (Serialized Bridge, arXiv 2606.23969). The border of 5% is
--           this report's own.
WITH asked AS (
  SELECT
    run,
    $min_copy_bytes AS copy_bytes,
    $min_burst_bytes AS burst_bytes,
    $min_ratio AS ratio
  FROM runs
),

served AS (
  SELECT
    run, ts_ns, phase,
    ts_ns + coalesce(period_ns, dur_ns, 0) AS end_ns
  FROM steps
  WHERE phase IS NULL
    OR phase NOT IN ('model_load', 'train')
),

serving AS (
  SELECT
    run,
    count(*) AS steps,
    count(*) FILTER (phase = 'kv_restore') AS restore_steps,
    min(ts_ns) AS ts_ns,
    max(end_ns) AS end_ns
  FROM served
  GROUP BY run
),

copies AS (
  SELECT
    crossings.run, crossings.pid, crossings.ts_ns,
    crossings.ts_ns + crossings.dur_ns AS end_ns,
    crossings.size_bytes, crossings.host_memory
  FROM crossings
  INNER JOIN serving
    ON crossings.run = serving.run
  INNER JOIN asked
    ON crossings.run = asked.run
  WHERE crossings.copy_kind = 'h2d'
    AND crossings.dur_ns IS NOT NULL
    AND coalesce(crossings.result, 0) = 0
    AND crossings.ts_ns >= serving.ts_ns
    AND crossings.ts_ns < serving.end_ns
    AND (
      serving.restore_steps > 0
      OR crossings.size_bytes >= asked.copy_bytes
    )
),

-- The step under way on the engine, whichever process copies for it.
placed AS (
  SELECT
    copies.run, copies.pid, copies.ts_ns, copies.end_ns,
    copies.size_bytes, copies.host_memory,
    coalesce(steps.phase = 'kv_restore', FALSE) AS is_restore,
    coalesce(steps.phase IN ('model_load', 'train'), FALSE) AS is_other
  FROM copies
  ASOF JOIN steps
    ON copies.run = steps.run
    AND copies.ts_ns >= steps.ts_ns
),

bulk AS (
  SELECT
    run, pid, ts_ns, end_ns, size_bytes, host_memory, is_restore,
    max(end_ns) OVER (
      PARTITION BY run, pid
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS reached_ns
  FROM placed
  WHERE NOT is_other
    AND (is_restore OR size_bytes >= $min_copy_bytes)
),

numbered AS (
  SELECT
    run, pid, ts_ns, end_ns, size_bytes, host_memory, is_restore,
    sum(CASE WHEN ts_ns - reached_ns <= $max_gap_ns THEN 0 ELSE 1 END) OVER (
      PARTITION BY run, pid
      ORDER BY ts_ns
      ROWS UNBOUNDED PRECEDING
    ) AS burst
  FROM bulk
),

bursts AS (
  SELECT
    run, pid, burst,
    sum(size_bytes) AS bytes,
    min(ts_ns) AS ts_ns,
    max(end_ns) AS end_ns
  FROM numbered
  GROUP BY run, pid, burst
  HAVING bool_or(is_restore)
    OR sum(size_bytes) >= $min_burst_bytes
),

largest AS (
  SELECT
    run,
    count(*) AS bursts,
    max(bytes) AS max_bytes,
    max(end_ns - ts_ns) AS max_ns,
    min(ts_ns) AS first_ns
  FROM bursts
  GROUP BY run
),

restored AS (
  SELECT
    numbered.run, numbered.ts_ns, numbered.end_ns, numbered.size_bytes,
    numbered.host_memory
  FROM numbered
  INNER JOIN bursts
    ON numbered.run = bursts.run
    AND numbered.pid = bursts.pid
    AND numbered.burst = bursts.burst
),

ordered AS (
  SELECT
    run, ts_ns, end_ns,
    max(end_ns) OVER (
      PARTITION BY run
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS reached_ns
  FROM restored
),

covered AS (
  SELECT
    run,
    sum(greatest(end_ns - greatest(ts_ns, coalesce(reached_ns, ts_ns)), 0))
      AS covered_ns
  FROM ordered
  GROUP BY run
),

sums AS (
  SELECT
    run,
    count(*) AS copies,
    coalesce(sum(size_bytes), 0) AS bytes,
    sum(size_bytes) FILTER (host_memory IN ('pinned', 'registered'))
      AS pinned_bytes,
    sum(size_bytes) FILTER (host_memory = 'pageable') AS pageable_bytes
  FROM restored
  GROUP BY run
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
    coalesce(serving.steps, 0) AS steps,
    coalesce(serving.restore_steps, 0) AS restore_steps,
    serving.end_ns - serving.ts_ns AS serving_ns,
    coalesce(largest.bursts, 0) AS bursts,
    coalesce(sums.copies, 0) AS copies,
    CAST(least(coalesce(sums.bytes, 0), 9223372036854775807) AS BIGINT)
      AS bytes,
    CAST(coalesce(covered.covered_ns, 0) AS BIGINT) AS covered_ns,
    coalesce(covered.covered_ns, 0)
    / nullif(serving.end_ns - serving.ts_ns, 0) AS covered_ratio,
    -- What moves a terabyte a second is no copy, but the order for one.
    CASE
      WHEN sums.bytes <= 1000 * covered.covered_ns
        THEN sums.bytes / nullif(covered.covered_ns, 0)
    END AS gb_per_s,
    CASE
      WHEN largest.max_bytes IS NOT NULL
        THEN CAST(least(largest.max_bytes, 9223372036854775807) AS BIGINT)
    END AS max_burst_bytes,
    largest.max_ns AS max_burst_ns,
    CAST(least(coalesce(sums.pinned_bytes, 0), 9223372036854775807) AS BIGINT)
      AS pinned_bytes,
    CAST(
      least(coalesce(sums.pageable_bytes, 0), 9223372036854775807) AS BIGINT
    ) AS pageable_bytes,
    largest.first_ns,
    asked.burst_bytes,
    asked.ratio
  FROM runs
  INNER JOIN asked
    ON runs.run = asked.run
  LEFT JOIN crossed
    ON runs.run = crossed.run
  LEFT JOIN serving
    ON runs.run = serving.run
  LEFT JOIN largest
    ON runs.run = largest.run
  LEFT JOIN sums
    ON runs.run = sums.run
  LEFT JOIN covered
    ON runs.run = covered.run
)

SELECT
  run,
  CASE
    WHEN steps = 0 OR NOT has_cuda OR covered_ratio IS NULL THEN 'unknown'
    WHEN covered_ratio >= ratio THEN 'yes'
    ELSE 'no'
  END AS answer,
  CASE
    WHEN NOT has_cuda THEN 'CUDA calls were not recorded'
    WHEN steps = 0
      THEN 'no steps that serve were found, so that restores cannot be told '
        'from loading the model'
    WHEN covered_ratio IS NULL THEN 'the only step has no length'
    WHEN bursts = 0 THEN format(
      'in {:,} steps there was no burst of {:.1f} MB or more to the device',
      steps, burst_bytes / 1e6
    )
    ELSE format(
      '{:,} burst(s) moved {:.2f} GB to the device in {:.1f} ms of copies, '
      '{:.1f}% of the {:.2f} s of serving{}; the longest took {:.1f} ms',
      bursts, bytes / 1e9, covered_ns / 1e6, 100 * covered_ratio,
      serving_ns / 1e9,
      CASE
        WHEN gb_per_s IS NULL THEN ', which return before they are done'
        ELSE format(', at {:.1f} GB/s', gb_per_s)
      END,
      max_burst_ns / 1e6
    )
  END AS evidence,
  steps,
  restore_steps,
  serving_ns,
  bursts,
  copies,
  bytes,
  covered_ns,
  CAST(covered_ratio AS DOUBLE) AS covered_ratio,
  CAST(gb_per_s AS DOUBLE) AS gb_per_s,
  max_burst_bytes,
  max_burst_ns,
  pinned_bytes,
  pageable_bytes,
  first_ns
FROM figures
ORDER BY run;
