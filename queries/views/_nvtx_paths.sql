-- _nvtx_paths: the ranges that are open on a thread, wherever that changes.
-- requires: nvtx
-- grain:    one row per thread and moment at which a push/pop range of it
--           starts or ends
-- materialize: yes
-- columns:
--   run    VARCHAR  label of the run
--   pid    INTEGER  process
--   tid    INTEGER  thread
--   ts_ns  BIGINT   moment, ns of CLOCK_MONOTONIC
--   path   VARCHAR  names of the open ranges of all domains, outermost first,
--                   with `/` between; empty: none is open; NULL: not known,
--                   ranges of different domains cross here
-- caveats:  holds until the thread's next row. A `/` in a name is a `|` here,
--           a name that is missing a `?`; what torch adds after `, op_id`,
--           `, seq` or `, sizes` is left out, and counters (after `#`, `=`,
--           `:`, a space or a parenthesis, or of a step, iteration, batch or
--           epoch) are a `*`, so that one call site has one path. A name has at
--           most 120 characters, a path 16 names. Of ranges that start at the
--           same ns the longest is the outermost. Ranges of length 0, start/end
--           ranges and marks are left out. Of ranges of different domains that
--           cross, the inner one counts as ended first.
CREATE VIEW _nvtx_paths AS
WITH RECURSIVE names AS (
  SELECT DISTINCT name
  FROM nvtx
  WHERE kind = 'push_pop'
),

short_names AS (
  SELECT
    name,
    left(replace(
      regexp_replace(
        split_part(split_part(split_part(
          name, ', op_id', 1), ', seq', 1), ', sizes', 1
        ),
        '([#=: (]|context_|generation_'
        || '|\b(?:step|iter|iteration|batch|epoch)s?[-_]?)[0-9]+',
        '\1*',
        'gi'
      ),
      '/', '|'
    ), 120) AS short_name
  FROM names
),

events AS (
  SELECT
    run, pid, tid, ts_ns AS at_ns, 1 AS step, ts_ns + dur_ns AS end_ns,
    depth, domain, name
  FROM nvtx
  WHERE kind = 'push_pop'
    AND (dur_ns IS NULL OR dur_ns > 0)
  UNION ALL
  SELECT
    run, pid, tid, ts_ns + dur_ns AS at_ns, -1 AS step, NULL AS end_ns,
    NULL AS depth, NULL AS domain, NULL AS name
  FROM nvtx
  WHERE kind = 'push_pop'
    AND dur_ns > 0
),

-- A sweep, as in nvtx_self: ends first, then starts, the longest outermost.
levels AS (
  SELECT
    run, pid, tid, at_ns, step, end_ns, name,
    CAST(sum(step) OVER moment AS INTEGER) AS level,
    lead(at_ns) OVER moment AS until_ns
  FROM events
  WINDOW moment AS (
    PARTITION BY run, pid, tid
    ORDER BY at_ns, step, end_ns DESC NULLS FIRST, depth, domain, name
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  )
),

starts AS (
  SELECT run, pid, tid, at_ns, end_ns, level
  FROM levels
  WHERE step = 1
    AND level <= 16
),

-- Inside what a range starts, and what is left where one ends: the last start
-- at the level further out.
looked_up AS (
  SELECT
    run, pid, tid, at_ns, until_ns, step, level, name,
    least(level - (step + 1) // 2, 16) AS outer_level
  FROM levels
),

found AS (
  SELECT
    looked_up.run, looked_up.pid, looked_up.tid, looked_up.at_ns,
    looked_up.until_ns, looked_up.step, looked_up.level, looked_up.name,
    looked_up.outer_level, starts.at_ns AS outer_ns,
    looked_up.outer_level = 0
      OR starts.end_ns IS NULL
      OR starts.end_ns > looked_up.at_ns AS is_open
  FROM looked_up
  ASOF LEFT JOIN starts
    ON looked_up.run = starts.run
    AND looked_up.pid = starts.pid
    AND looked_up.tid = starts.tid
    AND looked_up.outer_level = starts.level
    AND looked_up.at_ns >= starts.at_ns
),

nodes AS (
  SELECT
    found.run, found.pid, found.tid, found.at_ns, found.level,
    found.outer_ns, found.is_open,
    coalesce(short_names.short_name, '?') AS name
  FROM found
  LEFT JOIN short_names
    ON found.name = short_names.name
  WHERE found.step = 1
    AND found.level <= 16
),

-- Level by level: each range is joined once.
paths AS (
  SELECT
    run, pid, tid, at_ns, level,
    CASE WHEN is_open THEN name END AS path
  FROM nodes
  WHERE level = 1
    OR NOT is_open
  UNION ALL
  SELECT
    nodes.run, nodes.pid, nodes.tid, nodes.at_ns, nodes.level,
    paths.path || '/' || nodes.name AS path
  FROM paths
  INNER JOIN nodes
    ON paths.run = nodes.run
    AND paths.pid = nodes.pid
    AND paths.tid = nodes.tid
    AND paths.level + 1 = nodes.level
    AND paths.at_ns = nodes.outer_ns
    AND nodes.is_open
)

SELECT
  found.run, found.pid, found.tid, found.at_ns AS ts_ns,
  CASE
    WHEN found.outer_level = 0 AND found.step = -1 THEN ''
    WHEN found.is_open OR found.step = 1 THEN paths.path
  END AS path
FROM found
LEFT JOIN paths
  ON found.run = paths.run
  AND found.pid = paths.pid
  AND found.tid = paths.tid
  AND CASE
    WHEN found.step = 1 AND found.level <= 16 THEN found.level
    ELSE found.outer_level
  END = paths.level
  AND CASE
    WHEN found.step = 1 AND found.level <= 16 THEN found.at_ns
    ELSE found.outer_ns
  END = paths.at_ns
WHERE found.until_ns IS NULL
  OR found.until_ns > found.at_ns;
