-- _step_outside: what the time of each step outside of CUDA calls was for.
-- requires: _step_wall, _step_unknowns
-- grain:    one row per step that has a period, NVTX path, part and stack
-- columns:
--   run         VARCHAR  label of the run
--   track       BIGINT   as in _step_tracks
--   pid         INTEGER  process
--   tid         INTEGER  thread that drives the loop
--   step_id     BIGINT   as in steps
--   path        VARCHAR  as in _driver_stretches
--   part        VARCHAR  lock_wait, runnable, host_compute, unattributed, as in
--                        step_parts; launch: launches counted in the kernel
--   stack_id    BIGINT   of a wait: joins stacks.stack_id; NULL: none was taken
--   dur_ns      BIGINT   time, ns, > 0
-- caveats:  launches that were counted are known by the step alone: they are
--           taken from the time on the CPU of all its paths, each by its share.
CREATE VIEW _step_outside AS
WITH on_cpu AS (
  SELECT
    wall.run, wall.track, wall.pid, wall.tid, wall.step_id, wall.path,
    wall.dur_ns, unknowns.is_known,
    CAST(sum(wall.dur_ns) OVER upto AS HUGEINT) AS upto_ns,
    CAST(sum(wall.dur_ns) OVER whole AS HUGEINT) AS whole_ns,
    CAST(
      least(coalesce(unknowns.counted_ns, 0), sum(wall.dur_ns) OVER whole)
      AS HUGEINT
    ) AS counted_ns
  FROM _step_wall AS wall
  INNER JOIN _step_unknowns AS unknowns
    ON wall.run = unknowns.run
    AND wall.step_id = unknowns.step_id
  WHERE wall.state = 'on_cpu'
  WINDOW
    whole AS (PARTITION BY wall.run, wall.step_id),
    upto AS (
      PARTITION BY wall.run, wall.step_id
      ORDER BY wall.path
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

-- Rounded down at each path's end, so that a step's launches add up.
split AS (
  SELECT
    run, track, pid, tid, step_id, path, dur_ns, is_known,
    CASE
      WHEN counted_ns > 0
        THEN
          CAST(
            upto_ns * counted_ns // whole_ns
            - (upto_ns - dur_ns) * counted_ns // whole_ns AS BIGINT
          )
      ELSE 0
    END AS launch_ns
  FROM on_cpu
)

SELECT
  run, track, pid, tid, step_id, path,
  CASE state WHEN 'off_cpu' THEN 'lock_wait' ELSE state END AS part,
  stack_id, dur_ns
FROM _step_wall
WHERE state IN ('off_cpu', 'runnable')
UNION ALL
SELECT
  run, track, pid, tid, step_id, path,
  CASE WHEN is_known THEN 'host_compute' ELSE 'unattributed' END AS part,
  NULL AS stack_id,
  dur_ns - launch_ns AS dur_ns
FROM split
WHERE dur_ns > launch_ns
UNION ALL
SELECT
  run, track, pid, tid, step_id, path,
  'launch' AS part,
  NULL AS stack_id,
  launch_ns AS dur_ns
FROM split
WHERE launch_ns > 0;
