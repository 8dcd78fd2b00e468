-- step_parts: what the time of each step was for, on the thread that drives it.
-- requires: steps, crossing_costs, _off_cpu, _step_tracks, _step_buckets,
--           _step_unknowns
-- grain:    one row per step that has a period
-- materialize: yes
-- columns:
--   run                 VARCHAR  label of the run
--   step_id             BIGINT   as in steps
--   engine              VARCHAR  as in steps
--   pid                 INTEGER  process
--   tid                 INTEGER  thread that drives the loop
--   ts_ns               BIGINT   start, ns of CLOCK_MONOTONIC
--   period_ns           BIGINT   length: the parts sum to it exactly
--   phase               VARCHAR  as in steps; NULL: not told
--   queue_wait_ns       BIGINT   blocked in copies by earlier work, ns, >= 0
--   bridge_toll_ns      BIGINT   fixed cost of copies and waits, ns, >= 0
--   bridge_transfer_ns  BIGINT   bytes over bandwidth, ns, >= 0
--   launch_ns           BIGINT   in launches, graphs, collectives, memsets and
--                                event calls, ns, >= 0
--   alloc_ns            BIGINT   in allocations and frees, ns, >= 0
--   sync_wait_ns        BIGINT   waiting for the device in sync calls, ns, >= 0
--   lock_wait_ns        BIGINT   off the CPU and not ready, outside of CUDA
--                                calls, ns, >= 0
--   runnable_ns         BIGINT   ready and without a CPU, ns, >= 0
--   host_compute_ns     BIGINT   on a CPU outside of CUDA calls, ns, >= 0
--   unattributed_ns     BIGINT   not known, ns, >= 0: see the caveats
--   crossings           BIGINT   CUDA calls at depth 0 that start in the step
--                                and cross the bridge; without those counted
--                                in the kernel
--   is_estimate         BOOLEAN  launches counted in the kernel are in
--                                launch_ns, by their share of the window's
--                                time; or an event of the step may be lost
-- caveats:  of calls that never returned all until the step's end is
--           unattributed. So is the time outside of calls where the source
--           sched was not attached, or where so many events were lost that it
--           can be in more than 1 of 100 of the steps meanwhile, and what the
--           probes took. A call that reaches into the next step is cut there,
--           its parts taken in the order without a CPU, wait, transfer, toll,
--           probes. Losses at an unknown time are not looked at.
CREATE VIEW step_parts AS
WITH bounded AS (
  SELECT
    run, step_id, engine, pid, tid, ts_ns, period_ns, phase,
    ts_ns + period_ns AS end_ns
  FROM steps
  WHERE period_ns IS NOT NULL
),

stretches AS (
  SELECT
    tracks.track, calls.ts_ns,
    calls.ts_ns + calls.dur_ns AS end_ns,
    (calls.ts_ns - tracks.first_ns) // tracks.bucket_ns AS bucket,
    CASE
      WHEN calls."class" = 'copy' THEN 1
      WHEN calls."class" = 'sync' THEN 2
      WHEN calls."class" IN ('alloc', 'free') THEN 3
      ELSE 4
    END AS kind,
    calls."class" NOT IN ('free', 'memset', 'event', 'other') AS is_crossing,
    coalesce(calls.runnable_ns, 0) AS runnable_ns,
    coalesce(calls.queue_wait_ns + calls.sync_wait_ns, 0) AS wait_ns,
    coalesce(calls.transfer_ns, 0) AS transfer_ns,
    coalesce(calls.toll_ns + calls.launch_ns + calls.alloc_ns, 0) AS own_ns
  FROM crossing_costs AS calls
  INNER JOIN _step_tracks AS tracks
    ON calls.run = tracks.run
    AND calls.pid = tracks.pid
    AND calls.tid = tracks.tid
  WHERE calls.ts_ns < tracks.last_ns
    AND coalesce(calls.ts_ns + calls.dur_ns > tracks.first_ns, TRUE)
  UNION ALL
  SELECT
    tracks.track,
    waits.ts_ns + waits.inside_ns AS ts_ns,
    waits.ts_ns + waits.dur_ns AS end_ns,
    (waits.ts_ns + waits.inside_ns - tracks.first_ns) // tracks.bucket_ns
      AS bucket,
    5 AS kind,
    FALSE AS is_crossing,
    CASE WHEN waits.is_runnable THEN waits.dur_ns - waits.inside_ns ELSE 0 END
      AS runnable_ns,
    CASE WHEN waits.is_runnable THEN 0 ELSE waits.dur_ns - waits.inside_ns END
      AS wait_ns,
    0 AS transfer_ns,
    0 AS own_ns
  FROM _off_cpu AS waits
  INNER JOIN _step_tracks AS tracks
    ON waits.run = tracks.run
    AND waits.pid = tracks.pid
    AND waits.tid = tracks.tid
  WHERE waits.inside_ns < waits.dur_ns
    AND waits.ts_ns < tracks.last_ns
    AND waits.ts_ns + waits.dur_ns > tracks.first_ns
),

placed AS (
  SELECT
    stretches.track, stretches.ts_ns, stretches.kind, stretches.is_crossing,
    stretches.runnable_ns, stretches.wait_ns, stretches.transfer_ns,
    stretches.own_ns, buckets.step_id,
    buckets.end_ns AS step_end_ns,
    -- What never ended, to the end of its step.
    coalesce(stretches.end_ns, buckets.end_ns) AS end_ns
  FROM stretches
  LEFT JOIN _step_buckets AS buckets
    ON stretches.track = buckets.track
    AND stretches.bucket = buckets.bucket
    AND stretches.ts_ns >= buckets.ts_ns
    AND stretches.ts_ns < buckets.end_ns
),

-- Few if any: what reaches into later steps, in each of its buckets.
reaching AS (
  SELECT
    placed.track, placed.step_id, placed.ts_ns, placed.end_ns, placed.kind,
    placed.is_crossing, placed.runnable_ns, placed.wait_ns,
    placed.transfer_ns, placed.own_ns, tracks.first_ns, tracks.bucket_ns,
    unnest(
      range(
        greatest(placed.ts_ns - tracks.first_ns, 0) // tracks.bucket_ns,
        (least(placed.end_ns, tracks.last_ns) - tracks.first_ns)
        // tracks.bucket_ns + 1
      )
    ) AS bucket
  FROM placed
  INNER JOIN _step_tracks AS tracks
    ON placed.track = tracks.track
  WHERE placed.end_ns > coalesce(placed.step_end_ns, placed.ts_ns)
),

-- Once for each of its steps, with the stretch of it that is within as offsets
-- from its start.
straddling AS (
  SELECT
    early.track, early.kind, buckets.step_id,
    coalesce(early.step_id = buckets.step_id, FALSE) AND early.is_crossing
      AS is_crossing,
    greatest(buckets.ts_ns - early.ts_ns, 0) AS first,
    least(buckets.end_ns, early.end_ns) - early.ts_ns AS last,
    early.runnable_ns AS to_ready,
    early.runnable_ns + early.wait_ns AS to_wait,
    early.runnable_ns + early.wait_ns + early.transfer_ns AS to_transfer,
    early.runnable_ns + early.wait_ns + early.transfer_ns + early.own_ns
      AS to_own
  FROM reaching AS early
  INNER JOIN _step_buckets AS buckets
    ON early.track = buckets.track
    AND early.bucket = buckets.bucket
    AND early.ts_ns < buckets.end_ns
    AND early.end_ns > buckets.ts_ns
  -- Of the buckets that both are in, the first.
  WHERE early.bucket
    = (greatest(early.ts_ns, buckets.ts_ns) - early.first_ns)
    // early.bucket_ns
),

pieces AS (
  SELECT
    track, step_id, kind, is_crossing,
    end_ns - ts_ns AS covered_ns,
    runnable_ns, wait_ns, transfer_ns, own_ns
  FROM placed
  WHERE end_ns <= step_end_ns
  UNION ALL
  SELECT
    track, step_id, kind, is_crossing,
    last - first AS covered_ns,
    greatest(least(to_ready, last) - first, 0) AS runnable_ns,
    greatest(least(to_wait, last) - greatest(to_ready, first), 0) AS wait_ns,
    greatest(least(to_transfer, last) - greatest(to_wait, first), 0)
      AS transfer_ns,
    greatest(least(to_own, last) - greatest(to_transfer, first), 0) AS own_ns
  FROM straddling
),

summed AS (
  SELECT
    track, step_id,
    sum(covered_ns) AS covered_ns,
    sum(runnable_ns) AS runnable_ns,
    sum(wait_ns) FILTER (WHERE kind = 1) AS queue_wait_ns,
    sum(wait_ns) FILTER (WHERE kind = 2) AS sync_wait_ns,
    sum(wait_ns) FILTER (WHERE kind = 5) AS lock_wait_ns,
    sum(transfer_ns) AS transfer_ns,
    sum(own_ns) FILTER (WHERE kind <= 2) AS toll_ns,
    sum(own_ns) FILTER (WHERE kind = 3) AS alloc_ns,
    sum(own_ns) FILTER (WHERE kind = 4) AS launch_ns,
    count(*) FILTER (WHERE is_crossing) AS crossings
  FROM pieces
  GROUP BY track, step_id
),

facts AS (
  SELECT
    bounded.run, bounded.step_id, bounded.engine, bounded.pid, bounded.tid,
    bounded.ts_ns, bounded.period_ns, bounded.phase,
    coalesce(summed.covered_ns, 0) AS covered_ns,
    coalesce(summed.queue_wait_ns, 0) AS queue_wait_ns,
    coalesce(summed.toll_ns, 0) AS toll_ns,
    coalesce(summed.transfer_ns, 0) AS transfer_ns,
    coalesce(summed.launch_ns, 0) AS launch_ns,
    coalesce(summed.alloc_ns, 0) AS alloc_ns,
    coalesce(summed.sync_wait_ns, 0) AS sync_wait_ns,
    coalesce(summed.lock_wait_ns, 0) AS lock_wait_ns,
    coalesce(summed.runnable_ns, 0) AS runnable_ns,
    coalesce(summed.crossings, 0) AS crossings,
    unknowns.counted_ns IS NOT NULL OR unknowns.is_lossy AS is_estimate,
    coalesce(unknowns.counted_ns, 0) AS counted_ns,
    unknowns.is_known
  FROM bounded
  INNER JOIN _step_unknowns AS unknowns
    ON bounded.run = unknowns.run
    AND bounded.step_id = unknowns.step_id
  INNER JOIN _step_tracks AS tracks
    ON bounded.run = tracks.run
    AND bounded.engine = tracks.engine
    AND bounded.pid = tracks.pid
    AND bounded.tid = tracks.tid
  LEFT JOIN summed
    ON tracks.track = summed.track
    AND bounded.step_id = summed.step_id
),

-- Calls of one thread do not overlap. Should they, the parts end where the step
-- does.
fitted AS (
  SELECT
    run, step_id, engine, pid, tid, ts_ns, period_ns, phase, crossings,
    is_estimate, is_known,
    least(queue_wait_ns, period_ns) AS upto_queue,
    least(queue_wait_ns + toll_ns, period_ns) AS upto_toll,
    least(queue_wait_ns + toll_ns + transfer_ns, period_ns) AS upto_transfer,
    least(
      queue_wait_ns + toll_ns + transfer_ns + launch_ns, period_ns
    ) AS upto_launch,
    least(
      queue_wait_ns + toll_ns + transfer_ns + launch_ns + alloc_ns, period_ns
    ) AS upto_alloc,
    least(
      queue_wait_ns + toll_ns + transfer_ns + launch_ns + alloc_ns
      + sync_wait_ns,
      period_ns
    ) AS upto_sync,
    least(
      queue_wait_ns + toll_ns + transfer_ns + launch_ns + alloc_ns
      + sync_wait_ns + lock_wait_ns,
      period_ns
    ) AS upto_lock,
    least(
      queue_wait_ns + toll_ns + transfer_ns + launch_ns + alloc_ns
      + sync_wait_ns + lock_wait_ns + runnable_ns,
      period_ns
    ) AS upto_runnable,
    period_ns - least(covered_ns, period_ns) AS outside_ns,
    least(counted_ns, period_ns - least(covered_ns, period_ns)) AS counted_ns
  FROM facts
)

SELECT
  run, step_id, engine, pid, tid, ts_ns, period_ns, phase,
  CAST(upto_queue AS BIGINT) AS queue_wait_ns,
  CAST(upto_toll - upto_queue AS BIGINT) AS bridge_toll_ns,
  CAST(upto_transfer - upto_toll AS BIGINT) AS bridge_transfer_ns,
  CAST(upto_launch - upto_transfer + counted_ns AS BIGINT) AS launch_ns,
  CAST(upto_alloc - upto_launch AS BIGINT) AS alloc_ns,
  CAST(upto_sync - upto_alloc AS BIGINT) AS sync_wait_ns,
  CAST(upto_lock - upto_sync AS BIGINT) AS lock_wait_ns,
  CAST(upto_runnable - upto_lock AS BIGINT) AS runnable_ns,
  CAST(
    CASE WHEN is_known THEN outside_ns - counted_ns ELSE 0 END AS BIGINT
  ) AS host_compute_ns,
  CAST(
    period_ns - upto_runnable - counted_ns
    - CASE WHEN is_known THEN outside_ns - counted_ns ELSE 0 END AS BIGINT
  ) AS unattributed_ns,
  crossings, is_estimate
FROM fitted;
