-- _idle_crossings: calls made when their stream was known to be idle.
-- requires: _stream_calls, _copy_waits, _run_profiles
-- grain:    one row per call of _stream_calls whose stream had nothing left to
--           do when it was made, as calls before it have shown
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   length, ns; NULL: it never returned
--   class        VARCHAR  class of call, as in cuda_api
--   api          VARCHAR  function name
--   copy_kind    VARCHAR  as in cuda_api
--   host_memory  VARCHAR  as in cuda_api
--   size_bytes   BIGINT   as in cuda_api
-- caveats:  what the streams of other threads and processes do on the same bus
--           is not looked at. The first work of a stream is not known to be it.
--           Where the run does not show whether asynchronous copies wait, they
--           are taken to under CC, also where that is a guess.
CREATE VIEW _idle_crossings AS
WITH proving AS (
  SELECT
    profiles.run,
    coalesce(
      bool_or(waits.waits) FILTER (WHERE waits.copy_kind = 'h2d'),
      profiles.is_cc
    ) AS h2d,
    coalesce(
      bool_or(waits.waits) FILTER (WHERE waits.copy_kind = 'd2h'),
      profiles.is_cc
    ) AS d2h
  FROM _run_profiles AS profiles
  LEFT JOIN _copy_waits AS waits
    ON profiles.run = waits.run
    AND waits.is_async
    AND waits.host_memory <> 'pageable'
  GROUP BY profiles.run, profiles.is_cc
)

SELECT
  calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns, calls."class",
  calls.api, calls.copy_kind, calls.host_memory, calls.size_bytes
FROM _stream_calls AS calls
INNER JOIN proving
  ON calls.run = proving.run
WHERE calls.work_ns <= greatest(
  calls.sure_ns,
  CASE WHEN proving.h2d THEN calls.sure_h2d_ns END,
  CASE WHEN proving.d2h THEN calls.sure_d2h_ns END
);
