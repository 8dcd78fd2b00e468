-- _drains: what calls on the host prove about how far a stream has come.
-- requires: runs, cuda_api, bridge_model, _device_ops
-- grain:    one row per call and stream that it tells about
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   stream     BIGINT   stream handle
--   cover_ns   BIGINT   ns: told of is the work of this stream whose calls had
--                       returned by then
--   tid        INTEGER  thread of the call that tells
--   ts_ns      BIGINT   its start, ns of CLOCK_MONOTONIC
--   end_ns     BIGINT   its return, ns
--   class      VARCHAR  its class: sync or copy
--   api        VARCHAR  its function
--   is_done    BOOLEAN  the work was done at the return; else a query found
--                       that it was not done yet
--   is_copy    BOOLEAN  a blocking copy on this very stream, and so itself part
--                       of the work that was done
--   own_ns     BIGINT   what the call takes with nothing to wait for, by the
--                       bridge model and with what the probes add, ns
--   work_ns    BIGINT   part of own_ns that is the device's work, ns
--   hops       INTEGER  0: the call waited for this stream; n: the stream was
--                       waited for by another one, through n events
-- caveats:  a wait for an event whose handle was not recorded proves nothing
--           here. A wait for the legacy default stream is taken to prove that
--           stream alone, not the others that block with it.
CREATE VIEW _drains AS
WITH syncs AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls."class", calls.api,
    calls.ts_ns + calls.dur_ns AS end_ns,
    CASE calls.stream
      WHEN 1 THEN 0
      WHEN 2 THEN -calls.tid
      ELSE coalesce(calls.stream, 0)
    END AS stream,
    calls.event,
    -- cudaErrorNotReady, of queries alone
    coalesce(calls.result, 0) = 0 AS is_done,
    CAST(
      coalesce(model.toll_ns, 0)
      + coalesce(runs.probe_ns, 0) + coalesce(runs.probe_call_ns, 0) AS BIGINT
    ) AS own_ns
  FROM cuda_api AS calls
  INNER JOIN runs
    ON calls.run = runs.run
  LEFT JOIN bridge_model AS model
    ON calls.run = model.run
    AND calls."class" = model."class"
    AND calls.api = model.api
  WHERE calls.depth = 0
    AND calls."class" = 'sync'
    AND calls.dur_ns IS NOT NULL
    AND (
      coalesce(calls.result, 0) = 0
      OR (calls.result = 600 AND contains(calls.api, 'Query'))
    )
    -- A query's answer is its result.
    AND NOT (calls.result IS NULL AND contains(calls.api, 'Query'))
),

streams AS (
  SELECT DISTINCT run, pid, stream
  FROM _device_ops
),

-- Where each event stood when it was recorded last.
records AS (
  SELECT
    run, pid, event, ts_ns, ts_ns + dur_ns AS end_ns,
    CASE stream
      WHEN 1 THEN 0
      WHEN 2 THEN -tid
      ELSE coalesce(stream, 0)
    END AS stream
  FROM cuda_api
  WHERE depth = 0
    AND "class" = 'event'
    AND contains(api, 'EventRecord')
    AND event IS NOT NULL
    AND dur_ns IS NOT NULL
    AND coalesce(result, 0) = 0
),

direct AS (
  SELECT
    run, pid, stream, ts_ns AS cover_ns, tid, ts_ns, end_ns, "class", api,
    is_done, FALSE AS is_copy,
    own_ns, CAST(0 AS BIGINT) AS work_ns
  FROM syncs
  WHERE contains(api, 'StreamSynchronize')
    OR contains(api, 'StreamQuery')
  UNION ALL
  SELECT
    syncs.run, syncs.pid, streams.stream, syncs.ts_ns AS cover_ns, syncs.tid,
    syncs.ts_ns, syncs.end_ns, syncs."class", syncs.api, syncs.is_done,
    FALSE AS is_copy, syncs.own_ns, 0 AS work_ns
  FROM syncs
  INNER JOIN streams
    ON syncs.run = streams.run
    AND syncs.pid = streams.pid
  WHERE contains(syncs.api, 'DeviceSynchronize')
    OR contains(syncs.api, 'CtxSynchronize')
  UNION ALL
  SELECT
    syncs.run, syncs.pid, records.stream, records.ts_ns AS cover_ns,
    syncs.tid, syncs.ts_ns, syncs.end_ns, syncs."class", syncs.api,
    syncs.is_done, FALSE AS is_copy, syncs.own_ns, 0 AS work_ns
  FROM syncs
  ASOF INNER JOIN records
    ON syncs.run = records.run
    AND syncs.pid = records.pid
    AND syncs.event = records.event
    AND syncs.ts_ns >= records.end_ns
  UNION ALL
  SELECT
    run, pid, stream, ts_ns AS cover_ns, tid, ts_ns, end_ns, "class", api,
    TRUE AS is_done, TRUE AS is_copy, own_ns, work_ns
  FROM _device_ops
  WHERE blocks
),

waits AS (
  SELECT
    run, pid, event, ts_ns, ts_ns + dur_ns AS end_ns,
    CASE stream
      WHEN 1 THEN 0
      WHEN 2 THEN -tid
      ELSE coalesce(stream, 0)
    END AS stream
  FROM cuda_api
  WHERE depth = 0
    AND "class" = 'event'
    AND contains(api, 'StreamWaitEvent')
    AND event IS NOT NULL
    AND dur_ns IS NOT NULL
    AND coalesce(result, 0) = 0
),

-- A stream that waits for an event of another one cannot be past that point
-- before the other one is.
links AS (
  SELECT
    waits.run, waits.pid, waits.stream, waits.end_ns,
    records.stream AS behind_stream,
    records.ts_ns AS behind_ns
  FROM waits
  ASOF INNER JOIN records
    ON waits.run = records.run
    AND waits.pid = records.pid
    AND waits.event = records.event
    AND waits.ts_ns >= records.end_ns
  WHERE waits.stream <> records.stream
),

proving AS (
  SELECT
    run, pid, stream, cover_ns, tid, ts_ns, end_ns, "class", api, own_ns,
    work_ns
  FROM direct
  WHERE is_done
),

linked AS (
  SELECT
    links.run, links.pid, links.behind_stream AS stream,
    links.behind_ns AS cover_ns, proving.tid, proving.ts_ns, proving.end_ns,
    proving."class", proving.api, TRUE AS is_done, FALSE AS is_copy,
    proving.own_ns, proving.work_ns
  FROM links
  ASOF INNER JOIN proving
    ON links.run = proving.run
    AND links.pid = proving.pid
    AND links.stream = proving.stream
    AND links.end_ns <= proving.cover_ns
),

linked_twice AS (
  SELECT
    links.run, links.pid, links.behind_stream AS stream,
    links.behind_ns AS cover_ns, linked.tid, linked.ts_ns, linked.end_ns,
    linked."class", linked.api, linked.is_done, FALSE AS is_copy,
    linked.own_ns, linked.work_ns
  FROM links
  ASOF INNER JOIN linked
    ON links.run = linked.run
    AND links.pid = linked.pid
    AND links.stream = linked.stream
    AND links.end_ns <= linked.cover_ns
)

SELECT
  run, pid, stream, cover_ns, tid, ts_ns, end_ns, "class", api, is_done,
  is_copy, own_ns, work_ns, 0 AS hops
FROM direct
UNION ALL
SELECT
  run, pid, stream, cover_ns, tid, ts_ns, end_ns, "class", api, is_done,
  is_copy, own_ns, work_ns, 1 AS hops
FROM linked
UNION ALL
SELECT
  run, pid, stream, cover_ns, tid, ts_ns, end_ns, "class", api, is_done,
  is_copy, own_ns, work_ns, 2 AS hops
FROM linked_twice;
