-- copy_toll_by_size: what do copies of each size cost the host, and is it more
--           than outside of confidential computing?
-- requires: runs, crossings, crossing_costs, bridge_model, _published_costs
-- grain:    one row per run, kind of copy, host memory and size class; one row
--           for a run without copies
-- columns:
--   run              VARCHAR  label of the run
--   answer           VARCHAR  yes, no or unknown
--   evidence         VARCHAR  what decided, in a sentence
--   copy_kind        VARCHAR  h2d, d2h, d2d, p2p, h2h or unknown; NULL: no
--                             copies
--   host_memory      VARCHAR  as in cuda_api; NULL: no copies, or no host
--                             memory
--   size_from_bytes  BIGINT   least size of the class: 0, or a power of 4;
--                             NULL: size not told
--   calls            BIGINT   copies that returned without an error
--   open_calls       BIGINT   copies that never returned, not in what follows
--   errors           BIGINT   copies that failed, not in what follows
--   size_bytes       BIGINT   sum of their sizes; NULL: size not told
--   timed            BIGINT   of calls, those that waited for no other work and
--                             follow no allocation of their thread (see
--                             small_alloc_copy)
--   p50_ns           BIGINT   median of the host's time in these, ns, less what
--                             the probes add and the time without a CPU; NULL:
--                             there are none
--   p99_ns           BIGINT   99th percentile of it, ns; NULL as p50_ns
--   gb_per_s         DOUBLE   bytes of these over their time, 1e9 bytes per
--                             second; NULL as p50_ns, or size not told
--   toll_ratio       DOUBLE   share of the fixed toll in toll and transfer of
--                             all calls, by the bridge model, 0 to 1; NULL: no
--                             time
--   queue_wait_ns    BIGINT   sum of the waits for earlier work of all calls,
--                             ns
--   open_ns          BIGINT   mean of what is published for these copies
--                             without CC, ns; NULL: nothing is, or none waited
--                             for no other work
--   cc_ns            BIGINT   likewise with CC
--   ratio            DOUBLE   p50_ns over open_ns; NULL as open_ns
--   costs_more       BOOLEAN  p50_ns lies nearer to cc_ns than to open_ns;
--                             NULL: as open_ns, fewer than min_copies, or the
--                             two hardly differ
-- params:
--   min_copies  BIGINT = 10  fewer copies of a class say nothing
-- caveats:  a copy waited for no other work where its kind does not wait for
--           its stream, or its stream was known to be idle. The answer is yes
--           where the classes that cost more have at least half of the time of
--           all classes that can be told. The border of a class is the
--           geometric mean of its published figures, which have to differ by a
--           fifth; they are those of the copy's mode: until it is submitted,
--           until its source is read, or until it is done
--           (examples/simcuda/profiles). Percentiles are lengths that occurred.
--           Copies replayed by a graph make no call and are not here.
WITH failed AS (
  SELECT run, pid, tid, ts_ns, api
  FROM crossings
  WHERE "class" = 'copy'
    AND dur_ns IS NOT NULL
    AND result <> 0
),

calls AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    size_bytes, stream_was_idle, toll_ns, transfer_ns, queue_wait_ns,
    dur_ns - runnable_ns - unattributed_ns AS net_ns,
    coalesce(
      lag("class") OVER (PARTITION BY run, pid, tid ORDER BY ts_ns, dur_ns)
      = 'alloc',
      FALSE
    ) AS follows_alloc
  FROM crossing_costs
  WHERE "class" IN ('copy', 'alloc', 'free', 'memset')
),

copies AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, api, copy_kind, host_memory, size_bytes,
    stream_was_idle, toll_ns, transfer_ns, queue_wait_ns, net_ns,
    follows_alloc,
    contains(api, 'Async') AS is_async,
    CASE
      WHEN size_bytes <= 0 THEN 0
      WHEN size_bytes IS NOT NULL
        THEN 1 << (2 * CAST(floor(log2(size_bytes) / 2) AS BIGINT))
    END AS size_from_bytes,
    EXISTS (
      SELECT 1
      FROM failed
      WHERE failed.run = calls.run
        AND failed.pid = calls.pid
        AND failed.tid = calls.tid
        AND failed.ts_ns = calls.ts_ns
        AND failed.api = calls.api
    ) AS is_error
  FROM calls
  WHERE "class" = 'copy'
),

priced AS (
  SELECT
    copies.run, copies.copy_kind, copies.host_memory, copies.size_from_bytes,
    copies.size_bytes, copies.net_ns, copies.toll_ns, copies.transfer_ns,
    copies.queue_wait_ns, copies.is_error,
    copies.dur_ns IS NULL AS is_open,
    NOT copies.is_error
    AND NOT copies.follows_alloc
    AND copies.dur_ns IS NOT NULL
    AND (copies.stream_was_idle OR NOT model.blocks) AS is_timed,
    -- What the host waits for, by the mode of the copy.
    costs.open_ns + CASE
      WHEN copies.is_async AND costs.open_mode = 'async' THEN 0
      WHEN copies.is_async AND costs.open_mode = 'staged'
        THEN copies.size_bytes / costs.open_gb_per_s
      ELSE costs.open_latency_ns + copies.size_bytes / costs.open_gb_per_s
    END AS open_ns,
    costs.cc_ns + CASE
      WHEN copies.is_async AND costs.cc_mode = 'async' THEN 0
      WHEN copies.is_async AND costs.cc_mode = 'staged'
        THEN copies.size_bytes / costs.cc_gb_per_s
      ELSE costs.cc_latency_ns + copies.size_bytes / costs.cc_gb_per_s
    END AS cc_ns
  FROM copies
  LEFT JOIN bridge_model AS model
    ON copies.run = model.run
    AND model."class" = 'copy'
    AND copies.api = model.api
    AND copies.copy_kind IS NOT DISTINCT FROM model.copy_kind
    AND copies.host_memory IS NOT DISTINCT FROM model.host_memory
  LEFT JOIN _published_costs AS costs
    ON copies.run = costs.run
    AND costs."class" = 'copy'
    AND copies.copy_kind = costs.copy_kind
    AND CASE copies.host_memory
      WHEN 'registered' THEN 'pinned'
      ELSE copies.host_memory
    END IS NOT DISTINCT FROM costs.host_memory
),

classes AS (
  SELECT
    run, copy_kind, host_memory, size_from_bytes,
    count(*) FILTER (WHERE NOT is_open AND NOT is_error) AS calls,
    count(*) FILTER (WHERE is_open) AS open_calls,
    count(*) FILTER (WHERE is_error) AS errors,
    sum(CAST(size_bytes AS HUGEINT))
      FILTER (WHERE NOT is_open AND NOT is_error) AS size_bytes,
    count(*) FILTER (WHERE is_timed) AS timed,
    quantile_disc(net_ns, 0.5) FILTER (WHERE is_timed) AS p50_ns,
    quantile_disc(net_ns, 0.99) FILTER (WHERE is_timed) AS p99_ns,
    CAST(sum(CAST(size_bytes AS HUGEINT)) FILTER (WHERE is_timed) AS DOUBLE)
    / nullif(sum(net_ns) FILTER (WHERE is_timed), 0) AS gb_per_s,
    sum(net_ns) FILTER (WHERE is_timed) AS timed_ns,
    sum(toll_ns) FILTER (WHERE NOT is_error)
    / nullif(
      sum(toll_ns + transfer_ns) FILTER (WHERE NOT is_error), 0
    ) AS toll_ratio,
    coalesce(sum(queue_wait_ns) FILTER (WHERE NOT is_error), 0)
      AS queue_wait_ns,
    avg(open_ns) FILTER (WHERE is_timed) AS open_ns,
    avg(cc_ns) FILTER (WHERE is_timed) AS cc_ns
  FROM priced
  GROUP BY run, copy_kind, host_memory, size_from_bytes
),

judged AS (
  SELECT
    run, copy_kind, host_memory, size_from_bytes, calls, open_calls, errors,
    size_bytes, timed, p50_ns, p99_ns, gb_per_s, timed_ns, toll_ratio,
    queue_wait_ns, open_ns, cc_ns,
    p50_ns / open_ns AS ratio,
    CASE
      WHEN timed >= $min_copies AND cc_ns >= 1.2 * open_ns
        THEN p50_ns >= sqrt(open_ns * cc_ns)
    END AS costs_more
  FROM classes
),

totals AS (
  SELECT
    run,
    sum(calls) AS calls,
    count(costs_more) AS told,
    count(*) FILTER (WHERE costs_more) AS dear,
    sum(timed_ns) FILTER (WHERE costs_more) AS dear_ns,
    sum(timed_ns) FILTER (WHERE costs_more IS NOT NULL) AS told_ns,
    coalesce(dear_ns, 0) >= 0.5 * told_ns AS is_dear
  FROM judged
  GROUP BY run
),

-- The class with most time on the side of the answer.
deciding AS (
  SELECT
    judged.run, judged.copy_kind, judged.host_memory,
    judged.size_from_bytes, judged.timed, judged.p50_ns, judged.open_ns,
    judged.cc_ns, judged.ratio
  FROM judged
  INNER JOIN totals
    ON judged.run = totals.run
    AND judged.costs_more = totals.is_dear
  QUALIFY row_number() OVER (
    PARTITION BY judged.run
    ORDER BY
      judged.timed_ns DESC, judged.copy_kind, judged.host_memory,
      judged.size_from_bytes
  ) = 1
),

asked AS (
  SELECT
    run,
    $min_copies AS least_copies
  FROM runs
),

verdicts AS (
  SELECT
    asked.run,
    CASE
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN totals.is_dear THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN totals.run IS NULL THEN 'no copies were recorded'
      WHEN deciding.run IS NULL
        THEN format(
          'no class of {:,} copies has {:,} that waited for no other work '
          'and published figures that differ',
          CAST(totals.calls AS BIGINT), asked.least_copies
        )
      ELSE format(
        '{:,} of {:,} classes cost more: the median of {:,} {}{} copies '
        'from {} bytes on takes the host {:,.1f} us, {:.1f} times the '
        '{:,.1f} us published without CC; with CC {:,.1f} us are published',
        totals.dear, totals.told, deciding.timed, deciding.copy_kind,
        coalesce(' (' || deciding.host_memory || ')', ''),
        deciding.size_from_bytes, deciding.p50_ns / 1e3, deciding.ratio,
        deciding.open_ns / 1e3, deciding.cc_ns / 1e3
      )
    END AS evidence
  FROM asked
  LEFT JOIN totals
    ON asked.run = totals.run
  LEFT JOIN deciding
    ON asked.run = deciding.run
)

SELECT
  v.run,
  v.answer,
  v.evidence,
  j.copy_kind,
  j.host_memory,
  CAST(j.size_from_bytes AS BIGINT) AS size_from_bytes,
  coalesce(j.calls, 0) AS calls,
  coalesce(j.open_calls, 0) AS open_calls,
  coalesce(j.errors, 0) AS errors,
  -- Sizes are the program's word, and may be absurd.
  CASE
    WHEN j.size_bytes IS NOT NULL
      THEN CAST(least(j.size_bytes, 9223372036854775807) AS BIGINT)
  END AS size_bytes,
  coalesce(j.timed, 0) AS timed,
  j.p50_ns,
  j.p99_ns,
  j.gb_per_s,
  j.toll_ratio,
  CAST(coalesce(j.queue_wait_ns, 0) AS BIGINT) AS queue_wait_ns,
  CAST(round(j.open_ns) AS BIGINT) AS open_ns,
  CAST(round(j.cc_ns) AS BIGINT) AS cc_ns,
  j.ratio,
  j.costs_more
FROM verdicts AS v
LEFT JOIN judged AS j
  ON v.run = j.run
ORDER BY v.run, j.copy_kind, j.host_memory NULLS LAST, j.size_from_bytes;
