-- _outstanding: how many calls' work a device has, wherever that changes.
-- requires: cuda_api, gpu_activity, _device_ops, _device_batches,
--           _device_groups
-- grain:    one row per call that gives a device work, when it does, and one
--           when that work ends
-- materialize: yes
-- columns:
--   run     VARCHAR  label of the run
--   pid     INTEGER  process
--   ts_ns   BIGINT   moment, ns of CLOCK_MONOTONIC
--   change  INTEGER  1: a call begins that gives work; -1: the work of one ends
--   depth   BIGINT   calls whose work is outstanding from then on; ends come
--                    before begins of the same ns
-- caveats:  where gpu_activity does not show the device, when work ended is the
--           best guess: see queue_depth. Work that nothing showed to end is
--           outstanding for good.
CREATE VIEW _outstanding AS
WITH seen AS (
  SELECT
    run, pid, correlation_id,
    max(ts_ns + dur_ns) AS end_ns
  FROM gpu_activity
  WHERE correlation_id IS NOT NULL
    AND dur_ns IS NOT NULL
  GROUP BY run, pid, correlation_id
),

watched AS (
  SELECT DISTINCT run, pid
  FROM seen
),

-- The driver's call inside the runtime's may be the one that is correlated.
given AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    max(seen.end_ns) AS end_ns
  FROM cuda_api AS calls
  INNER JOIN seen
    ON calls.run = seen.run
    AND calls.pid = seen.pid
    AND calls.correlation_id = seen.correlation_id
  WHERE calls.depth = 0
  GROUP BY calls.run, calls.pid, calls.tid, calls.ts_ns
),

placed AS (
  SELECT
    ops.run, ops.pid, ops.tid, ops.stream, ops.ts_ns, ops.end_ns,
    ops.guess_blocks, ops.work_ns,
    CASE WHEN ops.blocks THEN ops.ts_ns ELSE ops.end_ns END AS at_ns,
    watched.pid IS NOT NULL AS is_watched
  FROM _device_ops AS ops
  LEFT JOIN watched
    ON ops.run = watched.run
    AND ops.pid = watched.pid
),

proven AS (
  SELECT
    placed.run, placed.pid, placed.stream, placed.ts_ns, placed.end_ns,
    placed.guess_blocks, placed.work_ns, batches.done_ns,
    row_number() OVER (
      PARTITION BY placed.run, placed.pid, placed.stream, batches.done_ns,
        placed.work_ns IS NULL
      ORDER BY placed.at_ns
    ) AS place
  FROM placed
  ASOF LEFT JOIN _device_batches AS batches
    ON placed.run = batches.run
    AND placed.pid = batches.pid
    AND placed.stream = batches.stream
    AND placed.at_ns <= batches.cover_ns
  WHERE NOT placed.is_watched
),

-- Equal pieces, the last of which ends when all of them were done.
guessed AS (
  SELECT
    proven.run, proven.pid, proven.ts_ns,
    CASE
      WHEN proven.guess_blocks THEN proven.end_ns
      WHEN proven.work_ns IS NOT NULL
        THEN least(proven.end_ns + proven.work_ns, proven.done_ns)
      WHEN proven.done_ns IS NULL THEN NULL
      WHEN pieces.has_waited THEN greatest(
        proven.end_ns,
        pieces.end_ns
        - CAST(
          pieces.work_ns / pieces.queued * (pieces.queued - proven.place)
          AS BIGINT
        )
      )
      ELSE greatest(
        proven.end_ns,
        pieces.start_ns
        + CAST(pieces.work_ns / pieces.queued * proven.place AS BIGINT)
      )
    END AS end_ns
  FROM proven
  LEFT JOIN _device_groups AS pieces
    ON proven.run = pieces.run
    AND proven.pid = pieces.pid
    AND proven.stream = pieces.stream
    AND proven.done_ns = pieces.done_ns
),

-- Work that nothing showed to end is outstanding for good.
work AS (
  SELECT run, pid, ts_ns, end_ns
  FROM guessed
  UNION ALL
  SELECT placed.run, placed.pid, placed.ts_ns, given.end_ns
  FROM placed
  INNER JOIN given
    ON placed.run = given.run
    AND placed.pid = given.pid
    AND placed.tid = given.tid
    AND placed.ts_ns = given.ts_ns
  WHERE placed.is_watched
),

changes AS (
  SELECT run, pid, ts_ns AS at_ns, 1 AS change
  FROM work
  UNION ALL
  SELECT run, pid, end_ns AS at_ns, -1 AS change
  FROM work
  WHERE end_ns IS NOT NULL
)

SELECT
  run, pid, at_ns AS ts_ns, change,
  CAST(
    sum(change) OVER (
      PARTITION BY run, pid
      ORDER BY at_ns, change
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS BIGINT
  ) AS depth
FROM changes;
