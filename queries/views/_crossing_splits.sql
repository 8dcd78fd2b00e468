-- _crossing_splits: what the time in copies and waits was for.
-- requires: cuda_api, bridge_model, _idle_crossings, _call_runnable,
--           _probe_costs
-- grain:    one row per copy or sync of cuda_api at depth 0
-- materialize: yes
-- columns:
--   run              VARCHAR  label of the run
--   pid              INTEGER  process
--   tid              INTEGER  thread
--   ts_ns            BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns           BIGINT   length, ns; the parts sum to it exactly. NULL: it
--                             never returned, and the parts are NULL too
--   class            VARCHAR  copy or sync
--   api              VARCHAR  function name
--   copy_kind        VARCHAR  as in cuda_api
--   host_memory      VARCHAR  as in cuda_api
--   size_bytes       BIGINT   as in cuda_api
--   stream           BIGINT   as in cuda_api
--   event            BIGINT   as in cuda_api
--   stream_was_idle  BOOLEAN  as in crossing_costs
--   toll_ns          BIGINT   as in crossing_costs
--   transfer_ns      BIGINT   as in crossing_costs
--   wait_ns          BIGINT   copy: queue_wait_ns, sync: sync_wait_ns, as in
--                             crossing_costs
--   runnable_ns      BIGINT   as in crossing_costs
--   unattributed_ns  BIGINT   as in crossing_costs
CREATE VIEW _crossing_splits AS
WITH model AS (
  SELECT
    run, "class", api, copy_kind, host_memory, blocks, ns_per_byte,
    CAST(round(toll_ns) AS BIGINT) AS toll_ns
  FROM bridge_model
  WHERE "class" IN ('copy', 'sync')
    AND api IS NOT NULL
),

calls AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.api, calls.copy_kind, calls.host_memory,
    calls.size_bytes, calls.stream, calls.event,
    EXISTS (
      SELECT 1
      FROM _idle_crossings AS idle
      WHERE idle.run = calls.run
        AND idle.pid = calls.pid
        AND idle.tid = calls.tid
        AND idle.ts_ns = calls.ts_ns
    ) AS stream_was_idle,
    CASE
      WHEN calls."class" = 'sync' THEN NOT contains(calls.api, 'Query')
      ELSE coalesce(model.blocks, FALSE)
    END AS blocks,
    coalesce(model.toll_ns, 0) AS model_toll_ns,
    CAST(
      least(
        coalesce(calls.size_bytes * model.ns_per_byte, 0), 1e15
      ) AS BIGINT
    ) AS model_transfer_ns,
    -- NULL of a call that never returned, and so is all that comes of it.
    CASE
      WHEN calls.dur_ns IS NOT NULL
        THEN least(coalesce(ready.runnable_ns, 0), calls.dur_ns)
    END AS runnable_ns,
    coalesce(probes.probe_ns, 0) AS probe_ns
  FROM cuda_api AS calls
  LEFT JOIN model
    ON calls.run = model.run
    AND calls."class" = model."class"
    AND calls.api = model.api
    AND calls.copy_kind IS NOT DISTINCT FROM model.copy_kind
    AND calls.host_memory IS NOT DISTINCT FROM model.host_memory
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
    AND calls."class" IN ('copy', 'sync')
),

net AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    size_bytes, stream, event, stream_was_idle, model_toll_ns,
    model_transfer_ns, runnable_ns,
    blocks AND ("class" = 'sync' OR NOT stream_was_idle) AS may_wait,
    CASE
      WHEN dur_ns IS NOT NULL THEN least(probe_ns, dur_ns - runnable_ns)
    END AS unattributed_ns,
    CASE
      WHEN dur_ns IS NOT NULL
        THEN greatest(dur_ns - runnable_ns - probe_ns, 0)
    END AS net_ns
  FROM calls
),

split AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    size_bytes, stream, event, stream_was_idle, runnable_ns, unattributed_ns,
    net_ns,
    CASE
      WHEN may_wait
        THEN greatest(net_ns - model_toll_ns - model_transfer_ns, 0)
      ELSE 0
    END AS wait_ns,
    CASE
      WHEN model_transfer_ns = 0 THEN 0
      WHEN net_ns >= model_toll_ns + model_transfer_ns THEN model_transfer_ns
      ELSE least(
        net_ns,
        CAST(
          net_ns * (model_transfer_ns / (model_toll_ns + model_transfer_ns))
          AS BIGINT
        )
      )
    END AS transfer_ns
  FROM net
)

SELECT
  run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
  size_bytes, stream, event, stream_was_idle,
  net_ns - transfer_ns - wait_ns AS toll_ns,
  CASE WHEN dur_ns IS NOT NULL THEN transfer_ns END AS transfer_ns,
  CASE WHEN dur_ns IS NOT NULL THEN wait_ns END AS wait_ns,
  runnable_ns, unattributed_ns
FROM split;
