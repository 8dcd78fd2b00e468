-- _device_batches: the device's work between what calls tell of its streams.
-- requires: _device_ops, _drains, _counted_launches
-- grain:    one row per run, process, stream and place in it that a call of
--           _drains tells of, with the work since the place before; and one
--           for work that no call tells of
-- materialize: yes
-- columns:
--   run              VARCHAR  label of the run
--   pid              INTEGER  process
--   stream           BIGINT   stream, as in _device_ops
--   cover_ns         BIGINT   the place, as in _drains, ns; NULL: no call tells
--                             of this work
--   first_ns         BIGINT   start of the first call that enqueued some, ns;
--                             NULL: there was none since the place before
--   done_ns          BIGINT   return that proved it done, and all before it on
--                             the stream, ns; NULL: none did
--   queued           BIGINT   calls that enqueued work other than copies
--   first_ready_ns   BIGINT   when the first of these could start, ns; NULL:
--                             there are none
--   first_late_ns    BIGINT   how much earlier the device may have had the
--                             first of these, since its call took that much
--                             longer than it does by itself, ns, >= 0; NULL as
--                             first_ready_ns
--   last_ready_ns    BIGINT   when the last of these could start, ns; NULL as
--                             first_ready_ns
--   surely_ready_ns  BIGINT   when all up to here on the stream, copies that
--                             block aside, could start for sure: twice the
--                             latency after the return, ns; NULL: there is none
--   known_ns         BIGINT   return that proved the last of these done, ns, or
--                             the end of time where none did; NULL as above
-- caveats:  launches counted in the kernel make one batch of each window of
--           counting: from its start on, and done when what came after its end
--           is.
CREATE VIEW _device_batches AS
WITH points AS (
  SELECT
    run, pid, stream, cover_ns,
    min(CASE WHEN is_done THEN end_ns END) AS done_ns
  FROM _drains
  GROUP BY run, pid, stream, cover_ns
),

placed AS (
  SELECT
    run, pid, stream, ts_ns, end_ns, blocks, work_ns IS NOT NULL AS is_copy,
    latency_ns,
    greatest(end_ns - ts_ns - own_ns, 0) AS late_ns,
    -- A copy that blocks is what its own return tells of.
    CASE WHEN blocks THEN ts_ns ELSE end_ns END AS at_ns
  FROM _device_ops
  UNION ALL
  SELECT
    run, pid, coalesce(stream, 0) AS stream, ts_ns,
    ts_ns + represents_ns AS end_ns,
    FALSE AS blocks, FALSE AS is_copy, 0 AS latency_ns,
    represents_ns AS late_ns,
    ts_ns + represents_ns AS at_ns
  FROM _counted_launches
),

batches AS (
  SELECT
    placed.run, placed.pid, placed.stream, points.cover_ns,
    min(placed.ts_ns) AS first_ns,
    max(CASE WHEN placed.blocks THEN placed.end_ns END) AS copied_ns,
    count(CASE WHEN NOT placed.is_copy THEN 1 END) AS queued,
    min(
      CASE
        WHEN NOT placed.is_copy THEN placed.end_ns + placed.latency_ns
      END
    ) AS first_ready_ns,
    arg_min(placed.late_ns, placed.end_ns) FILTER (WHERE NOT placed.is_copy)
      AS first_late_ns,
    max(
      CASE
        WHEN NOT placed.is_copy THEN placed.end_ns + placed.latency_ns
      END
    ) AS last_ready_ns,
    max(
      CASE
        WHEN NOT placed.blocks THEN placed.end_ns + 2 * placed.latency_ns
      END
    ) AS surely_ready_ns
  FROM placed
  ASOF LEFT JOIN points
    ON placed.run = points.run
    AND placed.pid = points.pid
    AND placed.stream = points.stream
    AND placed.at_ns <= points.cover_ns
  GROUP BY placed.run, placed.pid, placed.stream, points.cover_ns
),

proven AS (
  SELECT
    points.run, points.pid, points.stream, points.cover_ns,
    batches.first_ns,
    greatest(
      min(points.done_ns) OVER (
        PARTITION BY points.run, points.pid, points.stream
        ORDER BY points.cover_ns
        ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
      ),
      batches.copied_ns
    ) AS done_ns,
    coalesce(batches.queued, 0) AS queued,
    batches.first_ready_ns, batches.first_late_ns, batches.last_ready_ns,
    batches.surely_ready_ns
  FROM points
  LEFT JOIN batches
    ON points.run = batches.run
    AND points.pid = batches.pid
    AND points.stream = batches.stream
    AND points.cover_ns = batches.cover_ns
)

SELECT
  run, pid, stream, cover_ns, first_ns, done_ns, queued, first_ready_ns,
  first_late_ns, last_ready_ns,
  max(surely_ready_ns) OVER so_far AS surely_ready_ns,
  max(
    CASE
      WHEN surely_ready_ns IS NOT NULL
        THEN coalesce(done_ns, 9223372036854775807)
    END
  ) OVER so_far AS known_ns
FROM proven
WINDOW so_far AS (
  PARTITION BY run, pid, stream
  ORDER BY cover_ns
  ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
)
UNION ALL
SELECT
  run, pid, stream, NULL AS cover_ns, first_ns, NULL AS done_ns, queued,
  first_ready_ns, first_late_ns, last_ready_ns, NULL AS surely_ready_ns,
  NULL AS known_ns
FROM batches
WHERE cover_ns IS NULL;
