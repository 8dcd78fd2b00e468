-- _device_waits: calls that found work unfinished, and so prove a device busy.
-- requires: _drains, _device_batches, _device_ops, _counted_launches,
--           _call_runnable, sched
-- grain:    one row per row of _drains that waited for work of that stream, or
--           found it unfinished
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   stream     BIGINT   stream, as in _device_ops
--   cover_ns   BIGINT   the place in the stream, as in _drains, ns
--   ready_ns   BIGINT   from here on the device was busy for sure, ns
--   busy_ns    BIGINT   until here at least, ns; before ready_ns: never surely
--   likely_ns  BIGINT   when the work up to the place was likely done, ns;
--                       NULL: a query that found it unfinished
--   end_ns     BIGINT   return of the call, ns
-- caveats:  a call has waited if it took 20 us, and as long again as it takes
--           with nothing to wait for, longer than that, the time without a CPU
--           not counted. The work is taken to have ended up to 20 us before a
--           return that tells of it. Where the thread had no CPU in the last
--           200 us, it may have ended that much earlier again. With collectives
--           that goes for all threads of the processes that use them, in the
--           last 2.5 ms. Without sched, a wait that ended late is not noticed.
--           Where launches were counted in the kernel one may have come right
--           before the wait: the device is then busy for sure from 60 us after
--           its begin on, more than twice the longest published latency.
CREATE VIEW _device_waits AS
WITH windows AS (
  SELECT DISTINCT run, pid, ts_ns, ts_ns + represents_ns AS end_ns
  FROM _counted_launches
),

found AS (
  SELECT
    drains.run, drains.pid, drains.stream, drains.cover_ns, drains.tid,
    drains.ts_ns, drains.end_ns, drains.is_done, drains.own_ns,
    drains.work_ns, drains.hops,
    CASE
      WHEN windows.end_ns > drains.cover_ns
        THEN greatest(drains.cover_ns + 60000, batches.surely_ready_ns)
      ELSE batches.surely_ready_ns
    END AS ready_ns
  FROM _drains AS drains
  INNER JOIN _device_batches AS batches
    ON drains.run = batches.run
    AND drains.pid = batches.pid
    AND drains.stream = batches.stream
    AND drains.cover_ns = batches.cover_ns
  LEFT JOIN _call_runnable AS runnable
    ON drains.run = runnable.run
    AND drains.pid = runnable.pid
    AND drains.tid = runnable.tid
    AND drains.ts_ns = runnable.ts_ns
  ASOF LEFT JOIN windows
    ON drains.run = windows.run
    AND drains.pid = windows.pid
    AND drains.cover_ns >= windows.ts_ns
  -- What was proven done before cannot have been waited for.
  WHERE (
    batches.known_ns >= drains.end_ns
    OR windows.end_ns > drains.cover_ns
  )
    AND (
      NOT drains.is_done
      OR drains.end_ns - drains.ts_ns - drains.own_ns
      - coalesce(runnable.runnable_ns, 0) > greatest(20000, drains.own_ns)
    )
),

calls AS (
  SELECT DISTINCT run, pid, tid, ts_ns, end_ns
  FROM found
  WHERE is_done
),

-- Processes that meet in collectives wait for each other's threads.
talkers AS (
  SELECT DISTINCT run, pid
  FROM _device_ops
  WHERE "class" = 'collective'
),

ready AS (
  SELECT
    sched.run, sched.pid, sched.tid, sched.ts_ns, sched.dur_ns,
    sched.ts_ns + sched.dur_ns AS end_ns,
    talkers.pid IS NOT NULL AS talks
  FROM sched
  LEFT JOIN talkers
    ON sched.run = talkers.run
    AND sched.pid = talkers.pid
  WHERE sched.state = 'runnable'
),

-- Times without a CPU right before the return.
own_late AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    CAST(
      sum(least(ready.end_ns, calls.end_ns) - ready.ts_ns) AS BIGINT
    ) AS late_ns
  FROM ready
  ASOF INNER JOIN calls
    ON ready.run = calls.run
    AND ready.pid = calls.pid
    AND ready.tid = calls.tid
    AND ready.ts_ns >= calls.ts_ns
  WHERE ready.ts_ns < calls.end_ns
    AND ready.end_ns > calls.end_ns - 200000
  GROUP BY calls.run, calls.pid, calls.tid, calls.ts_ns
),

sums AS (
  SELECT
    run, ts_ns,
    sum(dur_ns) OVER (PARTITION BY run ORDER BY ts_ns) AS total_ns
  FROM ready
  WHERE talks
),

ended AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns,
    greatest(calls.ts_ns, calls.end_ns - 2500000) AS from_ns,
    coalesce(sums.total_ns, 0) AS total_ns
  FROM calls
  INNER JOIN talkers
    ON calls.run = talkers.run
    AND calls.pid = talkers.pid
  ASOF LEFT JOIN sums
    ON calls.run = sums.run
    AND calls.end_ns >= sums.ts_ns
),

shared_late AS (
  SELECT
    ended.run, ended.pid, ended.tid, ended.ts_ns,
    least(
      CAST(ended.total_ns - coalesce(sums.total_ns, 0) AS BIGINT), 2500000
    ) AS late_ns
  FROM ended
  ASOF LEFT JOIN sums
    ON ended.run = sums.run
    AND ended.from_ns >= sums.ts_ns
),

judged AS (
  SELECT
    found.run, found.pid, found.stream, found.cover_ns, found.ts_ns,
    found.end_ns, found.is_done, found.own_ns, found.work_ns, found.hops,
    found.ready_ns,
    greatest(coalesce(own_late.late_ns, 0), coalesce(shared_late.late_ns, 0))
      AS late_ns
  FROM found
  LEFT JOIN own_late
    ON found.run = own_late.run
    AND found.pid = own_late.pid
    AND found.tid = own_late.tid
    AND found.ts_ns = own_late.ts_ns
  LEFT JOIN shared_late
    ON found.run = shared_late.run
    AND found.pid = shared_late.pid
    AND found.tid = shared_late.tid
    AND found.ts_ns = shared_late.ts_ns
)

SELECT
  run, pid, stream, cover_ns,
  ready_ns,
  CASE
    WHEN NOT is_done THEN ts_ns
    ELSE end_ns - greatest(own_ns, 20000) - late_ns
      -- What other streams did between the event and the return.
      - CASE WHEN hops > 0 THEN 30000 ELSE 0 END
  END AS busy_ns,
  CASE
    WHEN is_done
      THEN end_ns - greatest(work_ns, own_ns // 2)
        - late_ns // 2
  END AS likely_ns,
  end_ns
FROM judged;
