-- _trace_calls: ranges, marks and CUDA calls of threads, as a trace draws them.
-- requires: nvtx, cuda_api, crossing_costs, _trace_lost_ends, _trace_waits,
--           _trace_launches
-- grain:    one row per push/pop range and mark of nvtx and row of cuda_api
-- columns:
--   run              VARCHAR  label of the run
--   pid              INTEGER  process
--   tid              INTEGER  thread
--   track            VARCHAR  track, as in _trace_slices, or one of slices
--                             without an end; NULL: a mark, on the thread's own
--   is_lane          BOOLEAN  slices of this track may cross
--   ts_ns            BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns           BIGINT   length, ns, >= 0; NULL: still open at the end
--   depth            INTEGER  depth, as in nvtx or cuda_api
--   is_instant       BOOLEAN  a mark
--   name             VARCHAR  name; NULL: it has none
--   category         VARCHAR  nvtx or cuda_api
--   stack_id         BIGINT   as in cuda_api
--   wait_flow        BIGINT   as flow_id in _trace_waits; NULL: not there
--   device_flow      BIGINT   as flow_id in _trace_launches; NULL: not there
--   domain           VARCHAR  as in nvtx; NULL: a call
--   nvtx_category    VARCHAR  category of nvtx
--   payload          BIGINT   as in nvtx
--   payload_double   DOUBLE   as in nvtx
--   layer            VARCHAR  as in cuda_api; NULL: a range or mark
--   class            VARCHAR  as in cuda_api
--   copy_kind        VARCHAR  as in cuda_api
--   size_bytes       BIGINT   as in cuda_api
--   stream           BIGINT   as in cuda_api
--   event            BIGINT   as in cuda_api
--   host_memory      VARCHAR  as in cuda_api
--   result           INTEGER  as in cuda_api
--   correlation_id   BIGINT   as in cuda_api
--   toll_ns          BIGINT   as in crossing_costs, ns; NULL: none, or neither
--                             copy nor sync, or inside another call
--   transfer_ns      BIGINT   as toll_ns
--   queue_wait_ns    BIGINT   as toll_ns
--   sync_wait_ns     BIGINT   as toll_ns
--   runnable_ns      BIGINT   as toll_ns
--   unattributed_ns  BIGINT   as toll_ns
CREATE VIEW _trace_calls AS
-- Grouped, so that calls that begin at the same ns stay as many as they are.
WITH costs AS (
  SELECT
    run, pid, tid, ts_ns,
    nullif(min(toll_ns), 0) AS toll_ns,
    nullif(min(transfer_ns), 0) AS transfer_ns,
    nullif(min(queue_wait_ns), 0) AS queue_wait_ns,
    nullif(min(sync_wait_ns), 0) AS sync_wait_ns,
    nullif(min(runnable_ns), 0) AS runnable_ns,
    nullif(min(unattributed_ns), 0) AS unattributed_ns
  FROM crossing_costs
  WHERE "class" IN ('copy', 'sync')
  GROUP BY run, pid, tid, ts_ns
),

ranges AS (
  SELECT
    run, pid, tid, ts_ns,
    CASE WHEN kind = 'mark' OR dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
    depth,
    kind = 'mark' AS is_instant,
    CASE
      WHEN kind = 'push_pop' THEN 'NVTX' || coalesce(' ' || domain, '')
    END AS track,
    name, domain, category, payload, payload_double
  FROM nvtx
  WHERE kind <> 'start_end'
)

SELECT
  ranges.run, ranges.pid, ranges.tid,
  ranges.track
  || CASE WHEN lost.pid IS NULL THEN '' ELSE ' without an end' END AS track,
  lost.pid IS NOT NULL AS is_lane,
  ranges.ts_ns, ranges.dur_ns, ranges.depth, ranges.is_instant, ranges.name,
  'nvtx' AS category,
  CAST(NULL AS BIGINT) AS stack_id,
  CAST(NULL AS BIGINT) AS wait_flow,
  CAST(NULL AS BIGINT) AS device_flow,
  ranges.domain,
  ranges.category AS nvtx_category,
  ranges.payload, ranges.payload_double,
  NULL AS layer,
  NULL AS "class",
  NULL AS copy_kind,
  CAST(NULL AS BIGINT) AS size_bytes,
  CAST(NULL AS BIGINT) AS stream,
  CAST(NULL AS BIGINT) AS event,
  NULL AS host_memory,
  CAST(NULL AS INTEGER) AS result,
  CAST(NULL AS BIGINT) AS correlation_id,
  CAST(NULL AS BIGINT) AS toll_ns,
  CAST(NULL AS BIGINT) AS transfer_ns,
  CAST(NULL AS BIGINT) AS queue_wait_ns,
  CAST(NULL AS BIGINT) AS sync_wait_ns,
  CAST(NULL AS BIGINT) AS runnable_ns,
  CAST(NULL AS BIGINT) AS unattributed_ns
FROM ranges
LEFT JOIN _trace_lost_ends AS lost
  ON ranges.run = lost.run
  AND ranges.pid = lost.pid
  AND ranges.tid = lost.tid
  AND ranges.track = lost.track
  AND ranges.ts_ns = lost.ts_ns
  AND ranges.depth = lost.depth
  AND ranges.dur_ns IS NULL
UNION ALL
SELECT
  calls.run, calls.pid, calls.tid,
  'CUDA'
  || CASE WHEN lost.pid IS NULL THEN '' ELSE ' without an end' END AS track,
  lost.pid IS NOT NULL AS is_lane,
  calls.ts_ns,
  CASE WHEN calls.dur_ns < 0 THEN 0 ELSE calls.dur_ns END AS dur_ns,
  calls.depth,
  FALSE AS is_instant,
  calls.api AS name,
  'cuda_api' AS category,
  calls.stack_id,
  waits.flow_id AS wait_flow,
  launches.flow_id AS device_flow,
  NULL AS domain,
  NULL AS nvtx_category,
  CAST(NULL AS BIGINT) AS payload,
  CAST(NULL AS DOUBLE) AS payload_double,
  calls.layer, calls."class", calls.copy_kind, calls.size_bytes, calls.stream,
  calls.event, calls.host_memory, calls.result, calls.correlation_id,
  costs.toll_ns, costs.transfer_ns, costs.queue_wait_ns, costs.sync_wait_ns,
  costs.runnable_ns, costs.unattributed_ns
FROM cuda_api AS calls
LEFT JOIN _trace_lost_ends AS lost
  ON calls.run = lost.run
  AND calls.pid = lost.pid
  AND calls.tid = lost.tid
  AND lost.track = 'CUDA'
  AND calls.ts_ns = lost.ts_ns
  AND calls.depth = lost.depth
  AND calls.dur_ns IS NULL
LEFT JOIN costs
  ON calls.run = costs.run
  AND calls.pid = costs.pid
  AND calls.tid = costs.tid
  AND calls.ts_ns = costs.ts_ns
  AND calls.depth = 0
LEFT JOIN _trace_waits AS waits
  ON calls.run = waits.run
  AND calls.pid = waits.pid
  AND calls.tid = waits.tid
  AND calls.ts_ns = waits.ts_ns
  AND calls.depth = 0
LEFT JOIN _trace_launches AS launches
  ON calls.run = launches.run
  AND calls.pid = launches.pid
  AND calls.tid = launches.tid
  AND calls.correlation_id = launches.correlation_id
  AND calls.ts_ns = launches.ts_ns
  AND calls.depth = launches.depth;
