-- _trace_device: what a device did and when it had nothing to do, as a trace
--                draws it.
-- requires: gpu_activity, bubbles, _trace_launches
-- grain:    one row per row of gpu_activity and per row of bubbles
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process; NULL: unknown
--   section         VARCHAR  the device: `GPU`, with its ordinal if it is known
--   track           VARCHAR  track of the device: a stream, or `bubbles`
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns          BIGINT   length, ns, >= 0; NULL: still open at the end
--   name            VARCHAR  kernel or copy; of a bubble the call that ended
--                            it; NULL: not told
--   category        VARCHAR  gpu_activity or bubbles
--   device_flow     BIGINT   as flow_id in _trace_launches; NULL: not there
--   class           VARCHAR  as in gpu_activity; NULL: a bubble
--   copy_kind       VARCHAR  as in gpu_activity
--   host_memory     VARCHAR  as in gpu_activity
--   size_bytes      BIGINT   as in gpu_activity
--   stream          BIGINT   as in gpu_activity
--   launch_tid      INTEGER  tid of gpu_activity
--   correlation_id  BIGINT   as in gpu_activity
--   before_api      VARCHAR  as in bubbles; NULL: no bubble, or none recorded
--   before_tid      INTEGER  as in bubbles
--   after_api       VARCHAR  as in bubbles
--   after_tid       INTEGER  as in bubbles
--   step_id         BIGINT   as in bubbles
--   source          VARCHAR  as in bubbles; NULL: no bubble
CREATE VIEW _trace_device AS
SELECT
  work.run, work.pid,
  'GPU' || coalesce(' ' || work.device, '') AS section,
  coalesce('stream ' || work.stream, 'stream not told') AS track,
  work.ts_ns,
  CASE WHEN work.dur_ns < 0 THEN 0 ELSE work.dur_ns END AS dur_ns,
  work.name,
  'gpu_activity' AS category,
  launches.flow_id AS device_flow,
  work."class", work.copy_kind, work.host_memory, work.size_bytes, work.stream,
  work.tid AS launch_tid,
  work.correlation_id,
  NULL AS before_api,
  CAST(NULL AS INTEGER) AS before_tid,
  NULL AS after_api,
  CAST(NULL AS INTEGER) AS after_tid,
  CAST(NULL AS BIGINT) AS step_id,
  NULL AS source
FROM gpu_activity AS work
LEFT JOIN _trace_launches AS launches
  ON work.run = launches.run
  AND work.pid = launches.pid
  AND work.correlation_id = launches.correlation_id
UNION ALL
SELECT
  run, pid,
  'GPU' || coalesce(' ' || device, '') AS section,
  'bubbles' AS track,
  ts_ns, dur_ns,
  'until ' || coalesce(after_api, 'work') AS name,
  'bubbles' AS category,
  CAST(NULL AS BIGINT) AS device_flow,
  NULL AS "class",
  NULL AS copy_kind,
  NULL AS host_memory,
  CAST(NULL AS BIGINT) AS size_bytes,
  CAST(NULL AS BIGINT) AS stream,
  CAST(NULL AS INTEGER) AS launch_tid,
  CAST(NULL AS BIGINT) AS correlation_id,
  before_api, before_tid, after_api, after_tid, step_id, source
FROM bubbles;
