-- _step_unknowns: what the recorded calls and waits of a step do not show.
-- requires: steps, _step_tracks, _step_buckets, _event_losses, runs,
--           _counted_once
-- grain:    one row per step that has a period
-- materialize: yes
-- columns:
--   run         VARCHAR  label of the run
--   step_id     BIGINT   as in steps
--   counted_ns  BIGINT   launches counted in the kernel, by their share of the
--                        time of their windows, ns, >= 0; NULL: no window
--                        reaches into the step
--   is_lossy    BOOLEAN  an event of the step may be lost
--   is_known    BOOLEAN  time outside of calls is known to be computing where
--                        the thread was not off the CPU
-- caveats:  is_known is false where the source sched was not attached, and
--           where so many events were lost that it can be in more than 1 of 100
--           of the steps meanwhile. Losses at an unknown time are not looked
--           at.
CREATE VIEW _step_unknowns AS
WITH tracked AS (
  SELECT
    tracks.track, steps.run, steps.step_id, steps.ts_ns,
    steps.ts_ns + steps.period_ns AS end_ns,
    row_number() OVER (PARTITION BY tracks.track ORDER BY steps.ts_ns)
      AS place
  FROM steps
  INNER JOIN _step_tracks AS tracks
    ON steps.run = tracks.run
    AND steps.engine = tracks.engine
    AND steps.pid = tracks.pid
    AND steps.tid = tracks.tid
  WHERE steps.period_ns IS NOT NULL
),

counted AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns,
    sum(total_ns) AS total_ns
  FROM _counted_once
  GROUP BY run, pid, tid, ts_ns, window_ns, represents_ns
),

windows AS (
  SELECT
    tracks.track, counted.ts_ns, tracks.first_ns, tracks.bucket_ns,
    counted.ts_ns + counted.represents_ns AS end_ns,
    counted.total_ns / counted.window_ns AS launching,
    unnest(
      range(
        greatest(counted.ts_ns - tracks.first_ns, 0) // tracks.bucket_ns,
        (
          least(counted.ts_ns + counted.represents_ns, tracks.last_ns)
          - tracks.first_ns
        ) // tracks.bucket_ns + 1
      )
    ) AS bucket
  FROM counted
  INNER JOIN _step_tracks AS tracks
    ON counted.run = tracks.run
    AND counted.pid = tracks.pid
    AND counted.tid = tracks.tid
    AND counted.ts_ns < tracks.last_ns
    AND counted.ts_ns + counted.represents_ns > tracks.first_ns
),

shares AS (
  SELECT
    windows.track, buckets.step_id,
    sum(
      windows.launching
      * (
        least(buckets.end_ns, windows.end_ns)
        - greatest(buckets.ts_ns, windows.ts_ns)
      )
    ) AS launch_ns
  FROM windows
  INNER JOIN _step_buckets AS buckets
    ON windows.track = buckets.track
    AND windows.bucket = buckets.bucket
    AND windows.ts_ns < buckets.end_ns
    AND windows.end_ns > buckets.ts_ns
  WHERE windows.bucket
    = (greatest(windows.ts_ns, buckets.ts_ns) - windows.first_ns)
    // windows.bucket_ns
  GROUP BY windows.track, buckets.step_id
),

lost AS (
  SELECT
    tracks.track, losses."count", losses.first_ns,
    greatest(losses.last_ns, losses.first_ns) AS last_ns
  FROM _event_losses AS losses
  INNER JOIN _step_tracks AS tracks
    ON losses.run = tracks.run
    AND coalesce(losses.pid, tracks.pid) = tracks.pid
    AND coalesce(losses.tid, tracks.tid) = tracks.tid
    AND losses.first_ns < tracks.last_ns
    AND losses.last_ns >= tracks.first_ns
),

-- From each loss on, how far those that began before reach: all of them, and
-- those that can be in more than 1 of 100 of the steps they were among.
reach AS (
  SELECT
    lost.track, lost.first_ns,
    max(lost.last_ns) OVER upto AS any_ns,
    max(
      CASE
        WHEN lost."count" * 100
          > coalesce(final.place, 0) - coalesce(initial.place, 1) + 1
          THEN lost.last_ns
      END
    ) OVER upto AS many_ns
  FROM lost
  ASOF LEFT JOIN tracked AS initial
    ON lost.track = initial.track
    AND lost.first_ns >= initial.ts_ns
  ASOF LEFT JOIN tracked AS final
    ON lost.track = final.track
    AND lost.last_ns >= final.ts_ns
  WINDOW
    upto AS (
      PARTITION BY lost.track
      ORDER BY lost.first_ns
    )
),

lossy AS (
  SELECT
    tracked.track, tracked.step_id,
    coalesce(reach.any_ns >= tracked.ts_ns, FALSE) AS is_lossy,
    coalesce(reach.many_ns >= tracked.ts_ns, FALSE) AS is_very_lossy
  FROM tracked
  ASOF INNER JOIN reach
    ON tracked.track = reach.track
    AND tracked.end_ns > reach.first_ns
)

SELECT
  tracked.run, tracked.step_id,
  CAST(
    CASE
      WHEN shares.launch_ns IS NOT NULL
        THEN least(round(shares.launch_ns), 1e18)
    END AS BIGINT
  ) AS counted_ns,
  coalesce(lossy.is_lossy, FALSE) AS is_lossy,
  NOT coalesce(lossy.is_very_lossy, FALSE)
  AND list_contains(string_split(coalesce(runs.attached, ''), ','), 'sched')
    AS is_known
FROM tracked
INNER JOIN runs
  ON tracked.run = runs.run
LEFT JOIN shares
  ON tracked.track = shares.track
  AND tracked.step_id = shares.step_id
LEFT JOIN lossy
  ON tracked.track = lossy.track
  AND tracked.step_id = lossy.step_id;
