-- async_copies_that_block: do asynchronous copies keep their callers until
--           their streams have done what was queued?
-- requires: runs, crossings, crossing_costs, thread_roles
-- grain:    one row per run, function, kind of copy, host memory and role of
--           the thread; one row for a run without asynchronous copies
-- columns:
--   run             VARCHAR  label of the run
--   answer          VARCHAR  yes, no or unknown
--   evidence        VARCHAR  what decided, in a sentence
--   api             VARCHAR  function name; NULL: the run has no asynchronous
--                            copies between host and device
--   copy_kind       VARCHAR  h2d, d2h or unknown; NULL as api
--   host_memory     VARCHAR  pinned, pageable, registered, managed or unknown;
--                            NULL as api
--   role            VARCHAR  as in thread_roles; NULL: the thread has none
--   calls           BIGINT   copies that returned without an error
--   open_calls      BIGINT   copies that never returned
--   errors          BIGINT   copies that failed
--   queued          BIGINT   of calls, those whose stream was not known to be
--                            idle
--   blocked         BIGINT   of queued, those that waited for it: see the
--                            caveats
--   ratio           DOUBLE   blocked over queued, 0 to 1; NULL: none was queued
--   blocked_ns      BIGINT   sum of their waits for earlier work, ns
--   blocked_p50_ns  BIGINT   median of these, ns; NULL: none was blocked
--   behind_class    VARCHAR  class of call that most of them were queued
--                            behind; NULL as blocked_p50_ns
--   is_documented   BOOLEAN  CUDA documents that such copies wait, without CC
--                            too: to pageable memory; NULL as api
-- params:
--   min_queued   BIGINT = 5      fewer copies behind queued work say nothing
--   min_wait_ns  BIGINT = 30000  a shorter wait is none, ns
-- caveats:  a copy is blocked where its wait for earlier work, as
--           crossing_costs has it, is longer than min_wait_ns and than its own
--           toll and transfer. The answer is yes where at least half of the
--           copies of a kind that were queued behind other work were. Without
--           CC an asynchronous copy is published to take 3.45 us (arXiv
--           2608.26575); probes and caches that are cold can make 20 us of
--           that, hence min_wait_ns. A copy on an idle stream says nothing and
--           is not in queued; what is not known to be idle is. Under CC copies
--           wait for all that is queued on their stream (vllm#52226,
--           sglang#31447). Copies to memory that is not known may be to
--           pageable memory.
WITH asked AS (
  SELECT
    run,
    $min_queued AS least_queued,
    $min_wait_ns AS least_wait_ns
  FROM runs
),

-- Copies that failed or never returned.
unusual AS (
  SELECT
    run, pid, tid, ts_ns, api, copy_kind, host_memory, dur_ns,
    coalesce(result, 0) <> 0 AS is_error
  FROM crossings
  WHERE "class" = 'copy'
    AND contains(api, 'Async')
    AND copy_kind IN ('h2d', 'd2h', 'unknown')
    AND (dur_ns IS NULL OR result <> 0)
),

-- What came last on a copy's stream before it.
streams AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    stream_was_idle, toll_ns, transfer_ns, queue_wait_ns,
    lag("class") OVER (
      PARTITION BY run, pid, stream
      ORDER BY ts_ns, dur_ns
    ) AS behind_class
  FROM crossing_costs
  WHERE "class" IN ('copy', 'launch', 'graph', 'memset', 'collective')
    OR ("class" = 'event' AND contains(api, 'Wait'))
),

returned AS (
  SELECT
    run, pid, tid, api, copy_kind, host_memory, behind_class,
    stream_was_idle, toll_ns, transfer_ns, queue_wait_ns
  FROM streams
  WHERE "class" = 'copy'
    AND contains(api, 'Async')
    AND copy_kind IN ('h2d', 'd2h', 'unknown')
    AND dur_ns IS NOT NULL
    AND NOT EXISTS (
      SELECT 1
      FROM unusual
      WHERE unusual.run = streams.run
        AND unusual.pid = streams.pid
        AND unusual.tid = streams.tid
        AND unusual.ts_ns = streams.ts_ns
        AND unusual.api = streams.api
    )
),

copies AS (
  SELECT
    returned.run, returned.pid, returned.tid, returned.api,
    returned.copy_kind, returned.host_memory, returned.behind_class,
    returned.queue_wait_ns,
    1 AS calls,
    0 AS open_calls,
    0 AS errors,
    NOT returned.stream_was_idle AS is_queued,
    NOT returned.stream_was_idle
    AND returned.queue_wait_ns > greatest(
      asked.least_wait_ns, returned.toll_ns + returned.transfer_ns
    ) AS is_blocked
  FROM returned
  INNER JOIN asked
    ON returned.run = asked.run
  UNION ALL
  SELECT
    run, pid, tid, api, copy_kind, host_memory,
    NULL AS behind_class,
    NULL AS queue_wait_ns,
    0 AS calls,
    CAST(NOT is_error AS INTEGER) AS open_calls,
    CAST(is_error AS INTEGER) AS errors,
    FALSE AS is_queued,
    FALSE AS is_blocked
  FROM unusual
),

with_role AS (
  SELECT
    copies.run, copies.api, copies.copy_kind, copies.host_memory,
    roles."role", copies.behind_class, copies.queue_wait_ns, copies.calls,
    copies.open_calls, copies.errors, copies.is_queued, copies.is_blocked
  FROM copies
  LEFT JOIN thread_roles AS roles
    ON copies.run = roles.run
    AND copies.pid = roles.pid
    AND copies.tid = roles.tid
),

behind AS (
  SELECT
    run, api, copy_kind, host_memory, "role", behind_class
  FROM with_role
  WHERE is_blocked
  GROUP BY run, api, copy_kind, host_memory, "role", behind_class
  QUALIFY row_number() OVER (
    PARTITION BY run, api, copy_kind, host_memory, "role"
    ORDER BY count(*) DESC, behind_class
  ) = 1
),

summed AS (
  SELECT
    run, api, copy_kind, host_memory, "role",
    sum(calls) AS calls,
    sum(open_calls) AS open_calls,
    sum(errors) AS errors,
    count(*) FILTER (is_queued) AS queued,
    count(*) FILTER (is_blocked) AS blocked,
    sum(queue_wait_ns) FILTER (is_blocked) AS blocked_ns,
    quantile_disc(queue_wait_ns, 0.5) FILTER (is_blocked) AS blocked_p50_ns
  FROM with_role
  GROUP BY run, api, copy_kind, host_memory, "role"
),

kinds AS (
  SELECT
    summed.run, summed.api, summed.copy_kind, summed.host_memory,
    summed."role", summed.calls, summed.open_calls, summed.errors,
    summed.queued, summed.blocked, summed.blocked_ns,
    summed.blocked_p50_ns, behind.behind_class,
    summed.blocked / nullif(summed.queued, 0) AS ratio,
    coalesce(
      summed.copy_kind = 'd2h' AND summed.host_memory = 'pageable', FALSE
    ) AS is_documented
  FROM summed
  LEFT JOIN behind
    ON summed.run = behind.run
    AND summed.api = behind.api
    AND summed.copy_kind = behind.copy_kind
    AND summed.host_memory IS NOT DISTINCT FROM behind.host_memory
    AND summed."role" IS NOT DISTINCT FROM behind."role"
),

totals AS (
  SELECT
    run,
    sum(calls) AS calls,
    sum(queued) AS queued,
    sum(blocked) AS blocked
  FROM kinds
  GROUP BY run
),

-- The kind that blocks longest, else the one that was queued most often.
deciding AS (
  SELECT
    kinds.run, kinds.api, kinds.copy_kind, kinds.host_memory, kinds."role",
    kinds.queued, kinds.blocked, kinds.blocked_p50_ns, kinds.behind_class,
    kinds.is_documented,
    kinds.ratio >= 0.5 AS blocks
  FROM kinds
  INNER JOIN asked
    ON kinds.run = asked.run
  WHERE kinds.queued >= asked.least_queued
  QUALIFY row_number() OVER (
    PARTITION BY kinds.run
    ORDER BY
      kinds.ratio >= 0.5 DESC, kinds.blocked_ns DESC NULLS LAST,
      kinds.queued DESC, kinds.api, kinds.copy_kind, kinds.host_memory,
      kinds."role"
  ) = 1
),

verdicts AS (
  SELECT
    asked.run,
    CASE
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN deciding.blocks THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN totals.run IS NULL
        THEN 'no asynchronous copies between host and device were recorded'
      WHEN deciding.run IS NULL
        THEN format(
          '{:,} of {:,} asynchronous copies came when work was queued on '
          'their stream, and {:,} of one kind are needed',
          CAST(totals.queued AS BIGINT), CAST(totals.calls AS BIGINT),
          asked.least_queued
        )
      WHEN deciding.blocks
        THEN format(
          '{:,} of {:,} {} {} ({}) returned only after the {} before them, '
          '{:,.1f} us later in the median{}',
          deciding.blocked, deciding.queued, deciding.api,
          deciding.copy_kind, coalesce(deciding.host_memory, 'unknown'),
          coalesce(deciding.behind_class, 'work'),
          deciding.blocked_p50_ns / 1e3,
          if(
            deciding.is_documented,
            '; to pageable memory they do so without CC too', ''
          )
        )
      ELSE format(
        '{:,} of {:,} asynchronous copies that were queued behind other work '
        'waited for it',
        CAST(totals.blocked AS BIGINT), CAST(totals.queued AS BIGINT)
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
  k.api,
  k.copy_kind,
  k.host_memory,
  k."role",
  CAST(coalesce(k.calls, 0) AS BIGINT) AS calls,
  CAST(coalesce(k.open_calls, 0) AS BIGINT) AS open_calls,
  CAST(coalesce(k.errors, 0) AS BIGINT) AS errors,
  coalesce(k.queued, 0) AS queued,
  coalesce(k.blocked, 0) AS blocked,
  k.ratio,
  CAST(coalesce(k.blocked_ns, 0) AS BIGINT) AS blocked_ns,
  k.blocked_p50_ns,
  k.behind_class,
  k.is_documented
FROM verdicts AS v
LEFT JOIN kinds AS k
  ON v.run = k.run
ORDER BY v.run, k.blocked_ns DESC, k.api, k.copy_kind, k.host_memory, k."role";
