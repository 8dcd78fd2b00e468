-- small_alloc_copy: does the program pay for small copies into memory it has
--           just allocated?
-- requires: runs, cuda_api, steps, _idle_crossings, _probe_costs
-- grain:    one row per run, function that allocates, function that copies,
--           kind of copy and host memory; one row for a run without such pairs
-- columns:
--   run             VARCHAR  label of the run
--   answer          VARCHAR  yes, no or unknown
--   evidence        VARCHAR  what decided, in a sentence
--   alloc_api       VARCHAR  function that allocates; NULL: no pairs
--   copy_api        VARCHAR  function that copies; NULL: no pairs
--   copy_kind       VARCHAR  h2d, d2d or unknown; NULL: no pairs
--   host_memory     VARCHAR  as in cuda_api; NULL: no pairs, or no host memory
--   pairs           BIGINT   allocations followed at once by a small copy
--   freed           BIGINT   of these, those followed by a free before the
--                            thread's next allocation
--   open_calls      BIGINT   pairs whose copy never returned, not in pairs
--   errors          BIGINT   pairs that failed in part, not in pairs
--   pairs_per_step  DOUBLE   pairs in steps their thread drives, over these
--                            steps; NULL: it drives none, or no pairs
--   alloc_p50_ns    BIGINT   median of the allocation, ns, less what the probes
--                            add; NULL: no pairs
--   copy_p50_ns     BIGINT   median of the copy, ns, likewise
--   pair_p50_ns     BIGINT   median of both together, ns, likewise
--   free_p50_ns     BIGINT   median of the free, ns, likewise; NULL: none was
--                            freed
--   ns_per_step     BIGINT   mean per step of the allocation, the copy and the
--                            free, ns; NULL as pairs_per_step
--   plain_copies    BIGINT   as small copies of that kind and memory on idle
--                            streams, by any function, that follow no
--                            allocation
--   plain_p50_ns    BIGINT   median of these, ns, likewise; NULL: there are
--                            none
--   open_ns         BIGINT   published for a pair without CC, ns
--   cc_ns           BIGINT   published with CC, ns
--   ratio           DOUBLE   pair_p50_ns over open_ns; NULL: no pairs
-- params:
--   small_bytes  BIGINT = 65536  a copy of up to so many bytes is small
--   min_pairs    BIGINT = 3      fewer pairs say nothing
-- caveats:  a pair is an allocation of device memory and a small copy that is
--           the next copy, memset, free or allocation of its thread; where both
--           sizes are told the copy's is no larger. Addresses are not recorded:
--           that the copy goes there is taken for granted. The border between
--           yes and no is the geometric mean of the published figures, 49.7 us:
--           some 330 us with CC, 44 times that without (arXiv 2606.23969). A
--           copy that waits for its stream has that wait in it. No pairs among
--           recorded CUDA calls is a no; without any CUDA calls the answer is
--           unknown.
WITH asked AS (
  SELECT
    run,
    $min_pairs AS least_pairs,
    330000 AS cc_ns,
    330000 / 44 AS open_ns,
    sqrt(330000.0 * 330000 / 44) AS border_ns
  FROM runs
),

calls AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", layer, api, copy_kind,
    host_memory, size_bytes,
    coalesce(result, 0) = 0 AS is_good,
    "class" = 'alloc'
    AND NOT contains(api, 'Host')
    AND NOT contains(api, 'Managed') AS allocates
  FROM cuda_api
  WHERE depth = 0
    AND "class" IN ('alloc', 'copy', 'free', 'memset')
),

next_calls AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, layer, api, allocates, is_good, "class",
    copy_kind, host_memory, size_bytes,
    size_bytes <= $small_bytes AS is_small,
    coalesce(lag(allocates) OVER of_thread, FALSE) AS follows_alloc,
    lag(ts_ns) OVER of_thread AS alloc_ts_ns,
    lag(dur_ns) OVER of_thread AS alloc_dur_ns,
    lag(layer) OVER of_thread AS alloc_layer,
    lag(api) OVER of_thread AS alloc_api,
    lag(size_bytes) OVER of_thread AS alloc_bytes,
    lag(is_good) OVER of_thread AS alloc_is_good
  FROM calls
  WINDOW of_thread AS (
    PARTITION BY run, pid, tid
    ORDER BY ts_ns, dur_ns
  )
),

copies AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns, calls.api,
    calls.copy_kind, calls.host_memory, calls.is_good, calls.follows_alloc,
    calls.alloc_ts_ns, calls.alloc_dur_ns, calls.alloc_layer,
    calls.alloc_api, calls.alloc_is_good,
    coalesce(calls.alloc_bytes >= calls.size_bytes, TRUE) AS fits,
    coalesce(probes.probe_ns, 0) AS probe_ns
  FROM next_calls AS calls
  LEFT JOIN _probe_costs AS probes
    ON calls.run = probes.run
    AND calls."class" = probes."class"
    AND calls.layer = probes.layer
  WHERE calls."class" = 'copy'
    AND calls.copy_kind IN ('h2d', 'd2d', 'unknown')
    AND calls.is_small
),

plain AS (
  SELECT
    copies.run, copies.copy_kind, copies.host_memory,
    count(*) AS plain_copies,
    quantile_disc(greatest(copies.dur_ns - copies.probe_ns, 0), 0.5)
      AS plain_p50_ns
  FROM copies
  WHERE NOT copies.follows_alloc
    AND copies.is_good
    AND copies.dur_ns IS NOT NULL
    AND EXISTS (
      SELECT 1
      FROM _idle_crossings AS idle
      WHERE idle.run = copies.run
        AND idle.pid = copies.pid
        AND idle.tid = copies.tid
        AND idle.ts_ns = copies.ts_ns
        AND idle."class" = 'copy'
    )
  GROUP BY copies.run, copies.copy_kind, copies.host_memory
),

pairs AS (
  SELECT
    copies.run, copies.pid, copies.tid, copies.alloc_ts_ns, copies.ts_ns,
    copies.alloc_api, copies.api, copies.copy_kind, copies.host_memory,
    copies.dur_ns IS NULL AS is_open,
    copies.is_good AND copies.alloc_is_good AS is_good,
    greatest(copies.alloc_dur_ns - coalesce(probes.probe_ns, 0), 0)
      AS alloc_ns,
    greatest(copies.dur_ns - copies.probe_ns, 0) AS copy_ns
  FROM copies
  LEFT JOIN _probe_costs AS probes
    ON copies.run = probes.run
    AND probes."class" = 'alloc'
    AND copies.alloc_layer = probes.layer
  WHERE copies.follows_alloc
    AND copies.fits
),

-- The first free after a copy, unless the thread allocates again before.
frees AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.allocates,
    greatest(calls.dur_ns - coalesce(probes.probe_ns, 0), 0) AS free_ns
  FROM calls
  LEFT JOIN _probe_costs AS probes
    ON calls.run = probes.run
    AND probes."class" = 'free'
    AND calls.layer = probes.layer
  WHERE calls.allocates
    OR (calls."class" = 'free' AND calls.is_good)
),

freed AS (
  SELECT
    pairs.run, pairs.pid, pairs.tid, pairs.alloc_ts_ns, pairs.alloc_api,
    pairs.api, pairs.copy_kind, pairs.host_memory, pairs.is_open,
    pairs.is_good, pairs.alloc_ns, pairs.copy_ns,
    CASE WHEN NOT frees.allocates THEN frees.free_ns END AS free_ns
  FROM pairs
  ASOF LEFT JOIN frees
    ON pairs.run = frees.run
    AND pairs.pid = frees.pid
    AND pairs.tid = frees.tid
    AND pairs.ts_ns < frees.ts_ns
),

drivers AS (
  SELECT run, pid, tid, count(*) AS steps
  FROM steps
  WHERE coalesce(period_ns, dur_ns) IS NOT NULL
  GROUP BY run, pid, tid
),

in_steps AS (
  SELECT
    freed.run, freed.pid, freed.tid, freed.alloc_api, freed.api,
    freed.copy_kind, freed.host_memory, freed.is_open, freed.is_good,
    freed.alloc_ns, freed.copy_ns, freed.free_ns,
    coalesce(
      freed.alloc_ts_ns
      < steps.ts_ns + coalesce(steps.period_ns, steps.dur_ns),
      FALSE
    ) AS is_in_step
  FROM freed
  ASOF LEFT JOIN steps
    ON freed.run = steps.run
    AND freed.pid = steps.pid
    AND freed.tid = steps.tid
    AND freed.alloc_ts_ns >= steps.ts_ns
),

kind_steps AS (
  SELECT
    run, alloc_api, api, copy_kind, host_memory, sum(steps) AS steps
  FROM (
    SELECT DISTINCT
      in_steps.run, in_steps.alloc_api, in_steps.api, in_steps.copy_kind,
      in_steps.host_memory, drivers.pid, drivers.tid, drivers.steps
    FROM in_steps
    INNER JOIN drivers
      ON in_steps.run = drivers.run
      AND in_steps.pid = drivers.pid
      AND in_steps.tid = drivers.tid
  ) AS driven
  GROUP BY run, alloc_api, api, copy_kind, host_memory
),

summed AS (
  SELECT
    run, alloc_api, api, copy_kind, host_memory,
    count(*) FILTER (is_good AND NOT is_open) AS pairs,
    count(free_ns) FILTER (is_good AND NOT is_open) AS freed,
    count(*) FILTER (is_open) AS open_calls,
    count(*) FILTER (NOT is_good AND NOT is_open) AS errors,
    count(*) FILTER (is_good AND NOT is_open AND is_in_step)
      AS pairs_in_steps,
    sum(alloc_ns + copy_ns + coalesce(free_ns, 0))
      FILTER (is_good AND NOT is_open AND is_in_step) AS ns_in_steps,
    quantile_disc(alloc_ns, 0.5) FILTER (is_good AND NOT is_open)
      AS alloc_p50_ns,
    quantile_disc(copy_ns, 0.5) FILTER (is_good AND NOT is_open)
      AS copy_p50_ns,
    quantile_disc(alloc_ns + copy_ns, 0.5)
      FILTER (is_good AND NOT is_open) AS pair_p50_ns,
    quantile_disc(free_ns, 0.5) FILTER (is_good AND NOT is_open)
      AS free_p50_ns
  FROM in_steps
  GROUP BY run, alloc_api, api, copy_kind, host_memory
),

kinds AS (
  SELECT
    summed.run, summed.alloc_api, summed.api, summed.copy_kind,
    summed.host_memory, summed.pairs, summed.freed, summed.open_calls,
    summed.errors, summed.alloc_p50_ns, summed.copy_p50_ns,
    summed.pair_p50_ns, summed.free_p50_ns,
    plain.plain_copies, plain.plain_p50_ns,
    summed.pairs_in_steps / kind_steps.steps AS pairs_per_step,
    coalesce(summed.ns_in_steps, 0) / kind_steps.steps AS ns_per_step,
    summed.pair_p50_ns / asked.open_ns AS ratio
  FROM summed
  INNER JOIN asked
    ON summed.run = asked.run
  LEFT JOIN kind_steps
    ON summed.run = kind_steps.run
    AND summed.alloc_api = kind_steps.alloc_api
    AND summed.api = kind_steps.api
    AND summed.copy_kind = kind_steps.copy_kind
    AND summed.host_memory IS NOT DISTINCT FROM kind_steps.host_memory
  LEFT JOIN plain
    ON summed.run = plain.run
    AND summed.copy_kind = plain.copy_kind
    AND summed.host_memory IS NOT DISTINCT FROM plain.host_memory
),

made AS (
  SELECT
    run,
    count(*) FILTER (
      "class" = 'alloc'
      AND NOT contains(api, 'Host')
      AND NOT contains(api, 'Managed')
    ) AS allocs
  FROM cuda_api
  WHERE depth = 0
  GROUP BY run
),

-- The pairs that take most time in all.
deciding AS (
  SELECT
    kinds.run, kinds.alloc_api, kinds.api, kinds.copy_kind, kinds.pairs,
    kinds.pair_p50_ns, kinds.ratio, kinds.plain_p50_ns, kinds.ns_per_step
  FROM kinds
  INNER JOIN asked
    ON kinds.run = asked.run
  WHERE kinds.pairs >= asked.least_pairs
  QUALIFY row_number() OVER (
    PARTITION BY kinds.run
    ORDER BY
      kinds.pairs * kinds.pair_p50_ns DESC, kinds.alloc_api, kinds.api,
      kinds.copy_kind, kinds.host_memory
  ) = 1
),

found AS (
  SELECT run, sum(pairs) AS pairs
  FROM kinds
  GROUP BY run
),

verdicts AS (
  SELECT
    asked.run,
    CASE
      WHEN made.run IS NULL THEN 'unknown'
      WHEN coalesce(found.pairs, 0) = 0 THEN 'no'
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN deciding.pair_p50_ns >= asked.border_ns THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN made.run IS NULL THEN 'no CUDA calls were recorded'
      WHEN made.allocs = 0
        THEN 'no allocation of device memory was recorded'
      WHEN coalesce(found.pairs, 0) = 0
        THEN format(
          'none of {:,} allocations of device memory was followed at once by '
          'a small copy',
          made.allocs
        )
      WHEN deciding.run IS NULL
        THEN format(
          '{:,} allocations were followed at once by a small copy, and {:,} '
          'of one kind are needed',
          CAST(found.pairs AS BIGINT), asked.least_pairs
        )
      ELSE format(
        '{:,} times a {} was followed by a small {} copy: {:,.1f} us for '
        'both in the median, {:.1f} times the {:.1f} us published without '
        'CC; with CC some {:.0f} us are published{}{}',
        deciding.pairs, deciding.alloc_api, deciding.copy_kind,
        deciding.pair_p50_ns / 1e3, deciding.ratio, asked.open_ns / 1e3,
        asked.cc_ns / 1e3,
        if(
          deciding.plain_p50_ns IS NULL, '',
          format(
            '; a copy alone takes {:,.1f} us', deciding.plain_p50_ns / 1e3
          )
        ),
        if(
          coalesce(deciding.ns_per_step, 0) = 0, '',
          format(
            '; with the free {:,.1f} us of each step',
            deciding.ns_per_step / 1e3
          )
        )
      )
    END AS evidence
  FROM asked
  LEFT JOIN made
    ON asked.run = made.run
  LEFT JOIN found
    ON asked.run = found.run
  LEFT JOIN deciding
    ON asked.run = deciding.run
)

SELECT
  v.run,
  v.answer,
  v.evidence,
  k.alloc_api,
  k.api AS copy_api,
  k.copy_kind,
  k.host_memory,
  coalesce(k.pairs, 0) AS pairs,
  coalesce(k.freed, 0) AS freed,
  coalesce(k.open_calls, 0) AS open_calls,
  coalesce(k.errors, 0) AS errors,
  k.pairs_per_step,
  k.alloc_p50_ns,
  k.copy_p50_ns,
  k.pair_p50_ns,
  k.free_p50_ns,
  CAST(round(k.ns_per_step) AS BIGINT) AS ns_per_step,
  coalesce(k.plain_copies, 0) AS plain_copies,
  k.plain_p50_ns,
  CAST(a.open_ns AS BIGINT) AS open_ns,
  CAST(a.cc_ns AS BIGINT) AS cc_ns,
  k.ratio
FROM verdicts AS v
INNER JOIN asked AS a
  ON v.run = a.run
LEFT JOIN kinds AS k
  ON v.run = k.run
ORDER BY v.run, k.pairs DESC, k.alloc_api, k.api, k.copy_kind, k.host_memory;
