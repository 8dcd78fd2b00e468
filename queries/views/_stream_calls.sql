-- _stream_calls: copies and waits, and what was known of their stream then.
-- requires: cuda_api
-- grain:    one row per copy or sync of cuda_api at depth 0 that is of a stream
-- materialize: yes
-- columns:
--   run            VARCHAR  label of the run
--   pid            INTEGER  process
--   tid            INTEGER  thread
--   ts_ns          BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns         BIGINT   length, ns; NULL: it never returned
--   class          VARCHAR  copy or sync
--   api            VARCHAR  function name
--   layer          VARCHAR  runtime or driver
--   copy_kind      VARCHAR  as in cuda_api
--   host_memory    VARCHAR  as in cuda_api
--   size_bytes     BIGINT   as in cuda_api
--   is_behind      BOOLEAN  what came last on the stream before it was work of
--                           the device other than a copy
--   next_wait_ns   BIGINT   length of the wait for the stream that comes next
--                           on it, ns; NULL: another call of these does, or
--                           none
--   work_ns        BIGINT   start of the last work enqueued on the stream
--                           before; NULL: none was
--   sure_ns        BIGINT   work started up to here is done, as a call that
--                           surely waits has shown before; NULL: none has
--   sure_h2d_ns    BIGINT   as sure_ns, shown by asynchronous copies to the
--                           device, if such copies wait
--   sure_d2h_ns    BIGINT   as sure_h2d_ns, to the host
-- caveats:  streams are told apart by handle and process. Copies that take no
--           stream are of the legacy default stream, waits for an event of the
--           stream it was last recorded on. A blocking stream also waits for
--           the legacy stream, and this for those: that is not looked at.
CREATE VIEW _stream_calls AS
WITH calls AS NOT MATERIALIZED (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, layer, copy_kind,
    host_memory, size_bytes, event,
    CASE
      WHEN stream IS NULL AND "class" IN ('copy', 'memset') THEN 0
      WHEN stream = 1 THEN 0
      -- The per-thread default stream is each thread's own.
      WHEN stream = 2 THEN -tid
      ELSE stream
    END AS stream,
    "class" = 'event' AND contains(api, 'EventRecord') AS is_record,
    dur_ns IS NOT NULL AND coalesce(result, 0) = 0 AS is_done
  FROM cuda_api
  WHERE depth = 0
    AND "class" <> 'free'
    AND "class" <> 'other'
),

streams AS MATERIALIZED (
  SELECT
    run, pid, stream,
    row_number() OVER () AS track
  FROM (
    SELECT DISTINCT run, pid, stream
    FROM calls
    WHERE stream IS NOT NULL
      -- Of a stream without any of these nothing is asked.
      AND ("class" = 'copy' OR "class" = 'sync' OR "class" = 'event')
  ) AS handles
),

recorded AS (
  SELECT calls.run, calls.pid, calls.event, calls.ts_ns, streams.track
  FROM calls
  INNER JOIN streams
    ON calls.run = streams.run
    AND calls.pid = streams.pid
    AND calls.stream = streams.stream
  WHERE calls.is_record
    AND calls.is_done
),

-- Work that nobody is asked about here, as narrow as it can be.
other_work AS (
  SELECT streams.track, calls.ts_ns
  FROM calls
  INNER JOIN streams
    ON calls.run = streams.run
    AND calls.pid = streams.pid
    AND calls.stream = streams.stream
  WHERE calls."class" <> 'copy'
    AND calls."class" <> 'sync'
    AND NOT calls.is_record
),

asked AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.api, calls.layer, calls.copy_kind,
    calls.host_memory, calls.size_bytes, calls.is_done, streams.track,
    calls.ts_ns AS covers_ns
  FROM calls
  INNER JOIN streams
    ON calls.run = streams.run
    AND calls.pid = streams.pid
    AND calls.stream = streams.stream
  WHERE calls."class" IN ('copy', 'sync')
  UNION ALL
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.api, calls.layer, calls.copy_kind,
    calls.host_memory, calls.size_bytes, calls.is_done, recorded.track,
    recorded.ts_ns AS covers_ns
  FROM calls
  ASOF INNER JOIN recorded
    ON calls.run = recorded.run
    AND calls.pid = recorded.pid
    AND calls.event = recorded.event
    AND calls.ts_ns >= recorded.ts_ns
  WHERE calls."class" = 'sync'
    AND calls.stream IS NULL
),

numbered AS MATERIALIZED (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, layer, copy_kind,
    host_memory, size_bytes, is_done, track, covers_ns,
    row_number() OVER () AS number,
    "class" = 'sync'
    OR NOT contains(api, 'Async')
    OR (copy_kind = 'd2h' AND host_memory = 'pageable') AS is_sure
  FROM asked
),

proofs AS (
  SELECT
    track,
    ts_ns + dur_ns AS at_ns,
    CASE WHEN is_sure THEN covers_ns END AS sure_ns,
    CASE WHEN NOT is_sure AND copy_kind = 'h2d' THEN covers_ns END AS h2d_ns,
    CASE WHEN NOT is_sure AND copy_kind = 'd2h' THEN covers_ns END AS d2h_ns
  FROM numbered
  WHERE is_done
    AND ("class" = 'sync' OR copy_kind IN ('h2d', 'd2h'))
  UNION ALL
  SELECT
    streams.track,
    waits.ts_ns + waits.dur_ns AS at_ns,
    waits.ts_ns AS sure_ns,
    NULL AS h2d_ns,
    NULL AS d2h_ns
  FROM calls AS waits
  INNER JOIN streams
    ON waits.run = streams.run
    AND waits.pid = streams.pid
  WHERE waits."class" = 'sync'
    AND waits.is_done
    AND (
      contains(waits.api, 'DeviceSynchronize')
      OR contains(waits.api, 'CtxSynchronize')
    )
),

-- A proof comes before a call of the same moment.
line AS (
  SELECT
    track,
    ts_ns AS at_ns,
    1 AS turn,
    number,
    ts_ns AS call_ns,
    CASE WHEN "class" = 'copy' THEN ts_ns END AS copy_ns,
    CASE WHEN "class" = 'sync' THEN dur_ns END AS wait_ns,
    CAST(NULL AS BIGINT) AS sure_ns,
    CAST(NULL AS BIGINT) AS h2d_ns,
    CAST(NULL AS BIGINT) AS d2h_ns
  FROM numbered
  UNION ALL
  SELECT
    track,
    at_ns,
    0 AS turn,
    NULL AS number,
    NULL AS call_ns,
    NULL AS copy_ns,
    NULL AS wait_ns,
    sure_ns,
    h2d_ns,
    d2h_ns
  FROM proofs
),

known AS (
  SELECT
    track, at_ns, number,
    lead(wait_ns) OVER (
      PARTITION BY track, turn
      ORDER BY at_ns, number
    ) AS next_wait_ns,
    max(call_ns) OVER before AS call_ns,
    max(copy_ns) OVER before AS copy_ns,
    max(sure_ns) OVER before AS sure_ns,
    max(h2d_ns) OVER before AS h2d_ns,
    max(d2h_ns) OVER before AS d2h_ns
  FROM line
  WINDOW
    before AS (
      PARTITION BY track
      ORDER BY at_ns, turn
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
),

behind AS (
  SELECT
    known.number, known.next_wait_ns, known.call_ns, known.copy_ns,
    known.sure_ns, known.h2d_ns, known.d2h_ns,
    other_work.ts_ns AS other_ns
  FROM known
  ASOF LEFT JOIN other_work
    ON known.track = other_work.track
    AND known.at_ns >= other_work.ts_ns
  WHERE known.number IS NOT NULL
)

SELECT
  numbered.run, numbered.pid, numbered.tid, numbered.ts_ns, numbered.dur_ns,
  numbered."class", numbered.api, numbered.layer, numbered.copy_kind,
  numbered.host_memory, numbered.size_bytes,
  coalesce(behind.other_ns >= coalesce(behind.call_ns, behind.other_ns), FALSE)
    AS is_behind,
  behind.next_wait_ns,
  greatest(behind.copy_ns, behind.other_ns) AS work_ns,
  behind.sure_ns,
  behind.h2d_ns AS sure_h2d_ns,
  behind.d2h_ns AS sure_d2h_ns
FROM numbered
INNER JOIN behind
  ON numbered.number = behind.number;
