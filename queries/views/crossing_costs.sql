-- crossing_costs: what the time in each CUDA call was for.
-- requires: cuda_api, _crossing_splits, _call_runnable, _probe_costs
-- grain:    one row per call of cuda_api at depth 0, of all classes
-- columns:
--   run              VARCHAR  label of the run
--   pid              INTEGER  process
--   tid              INTEGER  thread
--   ts_ns            BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns           BIGINT   length, ns; the parts sum to it exactly. NULL: it
--                             never returned, and the parts are NULL too
--   class            VARCHAR  class of call, as in cuda_api
--   api              VARCHAR  function name
--   copy_kind        VARCHAR  as in cuda_api
--   host_memory      VARCHAR  as in cuda_api
--   size_bytes       BIGINT   as in cuda_api
--   stream           BIGINT   as in cuda_api
--   event            BIGINT   as in cuda_api
--   stream_was_idle  BOOLEAN  copy or sync: its stream was known to be idle;
--                             FALSE: it was not, or that is not known; NULL: of
--                             another class
--   toll_ns          BIGINT   copy or sync: cost whatever the size, ns, >= 0
--   transfer_ns      BIGINT   copy: bytes over bandwidth, ns, >= 0
--   queue_wait_ns    BIGINT   copy that blocks: wait for earlier work, ns, >= 0
--   sync_wait_ns     BIGINT   sync: wait for the device, ns, >= 0
--   launch_ns        BIGINT   in a launch, graph, collective, memset or event
--                             call, ns, >= 0
--   alloc_ns         BIGINT   alloc or free: in the call, ns, >= 0
--   runnable_ns      BIGINT   ready and without a CPU within the call, ns, >= 0
--   unattributed_ns  BIGINT   what the probes themselves took, where the run
--                             tells that, and calls of another class, ns, >= 0
-- caveats:  toll and transfer are the bridge model's, shrunk in proportion
--           where the call was shorter. What a copy took beyond them is a wait
--           for earlier work where its kind blocks and its stream was not known
--           to be idle, else it is toll.
CREATE VIEW crossing_costs AS
WITH others AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.api, calls.copy_kind, calls.host_memory,
    calls.size_bytes, calls.stream, calls.event,
    -- NULL of a call that never returned.
    CASE WHEN calls.dur_ns IS NOT NULL THEN 0 END AS no_ns,
    CASE
      WHEN calls.dur_ns IS NOT NULL
        THEN least(coalesce(ready.runnable_ns, 0), calls.dur_ns)
    END AS runnable_ns,
    CASE
      WHEN calls."class" = 'other' THEN calls.dur_ns
      ELSE coalesce(probes.probe_ns, 0)
    END AS probe_ns
  FROM cuda_api AS calls
  LEFT JOIN _probe_costs AS probes
    ON calls.run = probes.run
    AND calls."class" = probes."class"
    AND calls.layer = probes.layer
  LEFT JOIN _call_runnable AS ready
    ON calls.run = ready.run
    AND calls.pid = ready.pid
    AND calls.tid = ready.tid
    AND calls.ts_ns = ready.ts_ns
  WHERE calls.depth = 0
    AND calls."class" <> 'copy'
    AND calls."class" <> 'sync'
),

net AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    size_bytes, stream, event, no_ns, runnable_ns,
    CASE
      WHEN dur_ns IS NOT NULL THEN least(probe_ns, dur_ns - runnable_ns)
    END AS unattributed_ns,
    CASE
      WHEN dur_ns IS NOT NULL
        THEN greatest(dur_ns - runnable_ns - probe_ns, 0)
    END AS net_ns
  FROM others
)

SELECT
  run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
  size_bytes, stream, event, stream_was_idle, toll_ns, transfer_ns,
  CASE WHEN dur_ns IS NULL OR "class" = 'copy' THEN wait_ns ELSE 0 END
    AS queue_wait_ns,
  CASE WHEN dur_ns IS NULL OR "class" = 'sync' THEN wait_ns ELSE 0 END
    AS sync_wait_ns,
  CASE WHEN dur_ns IS NOT NULL THEN 0 END AS launch_ns,
  CASE WHEN dur_ns IS NOT NULL THEN 0 END AS alloc_ns,
  runnable_ns, unattributed_ns
FROM _crossing_splits
UNION ALL
SELECT
  run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
  size_bytes, stream, event,
  NULL AS stream_was_idle,
  no_ns AS toll_ns,
  no_ns AS transfer_ns,
  no_ns AS queue_wait_ns,
  no_ns AS sync_wait_ns,
  CASE
    WHEN "class" IN ('launch', 'graph', 'collective', 'memset', 'event')
      THEN net_ns
    ELSE no_ns
  END AS launch_ns,
  CASE WHEN "class" IN ('alloc', 'free') THEN net_ns ELSE no_ns END AS alloc_ns,
  runnable_ns, unattributed_ns
FROM net;
