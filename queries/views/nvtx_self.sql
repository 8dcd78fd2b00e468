-- nvtx_self: push/pop ranges with the time that no range inside them covers.
-- requires: nvtx
-- grain:    one row per push/pop range of nvtx
-- columns:
--   run       VARCHAR  label of the run
--   pid       INTEGER  process
--   tid       INTEGER  thread
--   ts_ns     BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns    BIGINT   length, ns; NULL while still open at the end
--   domain    VARCHAR  NVTX domain; NULL: the default domain
--   name      VARCHAR  message; NULL: it had none, or it was lost
--   category  VARCHAR  category; NULL: none
--   depth     INTEGER  nesting depth within thread and domain, 0 is outermost
--   level     INTEGER  nesting level within the thread over all domains, 0 is
--                      outermost; NULL for a range of length 0
--   self_ns   BIGINT   dur_ns less what ranges inside it on the same thread,
--                      of any domain, cover; ns, 0 to dur_ns; NULL while open,
--                      and where a range of another domain crosses it
-- caveats:  ranges of different domains may cross rather than nest: then there
--           is no inside, and self_ns of both is NULL. Not detected: a range
--           that is crossed twice, where one from before it ends inside it and
--           one from inside it outlives it (self_ns is then a guess); two that
--           start at the same ns (the longer counts as the outer one); a range
--           that was lost (its time is its parent's). Where a thread id is used
--           again, ranges of both threads are taken for one thread's. Start/end
--           ranges and marks are left out, both as rows and as cover. Sorts the
--           starts and ends of all ranges twice: 1 to 2 s and 0.4 GB per
--           million rows.
CREATE VIEW nvtx_self AS
-- A sweep over starts and ends: the running sum of +1 and -1 is the number of
-- ranges open, and the time until the next event belongs to the last range
-- that started at that level. Nothing is joined.
WITH events AS (
  SELECT
    run, pid, tid, ts_ns AS at_ns, 1 AS step,
    dur_ns, domain, name, category, depth
  FROM nvtx
  WHERE kind = 'push_pop'
    AND (dur_ns IS NULL OR dur_ns > 0)
  UNION ALL
  SELECT
    run, pid, tid, ts_ns + dur_ns AS at_ns, -1 AS step,
    NULL AS dur_ns, NULL AS domain, NULL AS name, NULL AS category,
    NULL AS depth
  FROM nvtx
  WHERE kind = 'push_pop'
    AND dur_ns > 0
),

-- At one moment ends come first, then starts, the longest range outermost.
levels AS (
  SELECT
    run, pid, tid, at_ns, step, dur_ns, domain, name, category, depth,
    CAST(sum(step) OVER moment AS INTEGER) AS level,
    lead(at_ns) OVER moment AS until_ns
  FROM events
  WINDOW moment AS (
    PARTITION BY run, pid, tid
    ORDER BY at_ns, step, dur_ns DESC NULLS FIRST, depth
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  )
),

owners AS (
  SELECT
    run, pid, tid, at_ns, step, dur_ns, domain, name, category, depth,
    level, until_ns,
    -- Not count(*) FILTER, which DuckDB 2.0 computes in quadratic time here.
    count(nullif(step, -1)) OVER (
      PARTITION BY run, pid, tid, level
      ORDER BY at_ns, step
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS owner
  FROM levels
  WHERE level > 0
),

spans AS (
  SELECT
    run, pid, tid, level,
    min(at_ns) AS ts_ns,
    max(dur_ns) AS dur_ns,
    max(domain) AS domain,
    max(name) AS name,
    max(category) AS category,
    max(depth) AS depth,
    sum(until_ns - at_ns) AS self_ns,
    max(until_ns) AS until_ns
  FROM owners
  GROUP BY run, pid, tid, level, owner
)

SELECT
  run, pid, tid, ts_ns, dur_ns, domain, name, category, depth,
  CAST(level - 1 AS INTEGER) AS level,
  -- Where ranges nest, the last moment at this level is the range's own end.
  CASE WHEN until_ns = ts_ns + dur_ns THEN CAST(self_ns AS BIGINT) END
    AS self_ns
FROM spans
UNION ALL
SELECT
  run, pid, tid, ts_ns, dur_ns, domain, name, category, depth,
  NULL AS level,
  0 AS self_ns
FROM nvtx
WHERE kind = 'push_pop'
  AND dur_ns <= 0;
