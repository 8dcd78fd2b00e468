-- _device_ops: calls that give the device work, by stream.
-- requires: runs, cuda_api, bridge_model
-- grain:    one row per call of cuda_api at depth 0 that enqueues work
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start of the call, ns of CLOCK_MONOTONIC: the device
--                         has the work no earlier
--   end_ns       BIGINT   return of the call, ns: it has it by then; NULL: the
--                         call never returned
--   class        VARCHAR  copy, launch, graph, memset or collective
--   api          VARCHAR  function name without version suffix
--   stream       BIGINT   stream handle; 0 also where the call takes none, and
--                         less the thread's id for a per-thread default stream
--   blocks       BOOLEAN  it surely returns only when its work, and all before
--                         it on the stream, is done
--   guess_blocks BOOLEAN  as blocks, by the best guess: where that is sure,
--                         and where only the guessed profile says so
--   own_ns       BIGINT   what the call takes if its stream is idle, by the
--                         bridge model and with what the probes add, ns, >= 0
--   latency_ns   BIGINT   from the return until the work can start, by the
--                         bridge model, ns, >= 0; 0 for copies
--   work_ns      BIGINT   the device's time for a copy, by the bridge model,
--                         ns, >= 0; NULL: not a copy
-- caveats:  launches counted in the kernel are not here, nor is what a library
--           launches by calls that are not probed. Calls made while a stream is
--           captured into a graph are here, though they enqueue nothing.
CREATE VIEW _device_ops AS
WITH latencies AS (
  SELECT
    run,
    CAST(greatest(coalesce(max(latency_ns), 0), 0) AS BIGINT) AS latency_ns
  FROM bridge_model
  WHERE "class" = 'launch'
  GROUP BY run
)

SELECT
  calls.run, calls.pid, calls.tid, calls.ts_ns,
  calls.ts_ns + calls.dur_ns AS end_ns,
  calls."class", calls.api,
  CASE calls.stream
    WHEN 1 THEN 0
    WHEN 2 THEN -calls.tid
    ELSE coalesce(calls.stream, 0)
  END AS stream,
  -- Bounds rest on this: what an unknown machine is like is no proof.
  coalesce(
    model.blocks
    AND (model.mode_source <> 'profile' OR model.profile_basis = 'told')
    AND calls.dur_ns IS NOT NULL,
    FALSE
  ) AS blocks,
  coalesce(model.blocks AND calls.dur_ns IS NOT NULL, FALSE) AS guess_blocks,
  CAST(
    coalesce(model.toll_ns, 0)
    + coalesce(calls.size_bytes * model.ns_per_byte, 0)
    + coalesce(runs.probe_ns, 0) + coalesce(runs.probe_call_ns, 0) AS BIGINT
  ) AS own_ns,
  CASE
    WHEN calls."class" = 'copy' THEN 0
    ELSE coalesce(latencies.latency_ns, 0)
  END AS latency_ns,
  CASE
    WHEN calls."class" = 'copy' THEN CAST(
      greatest(coalesce(model.latency_ns, 0), 0)
      + coalesce(calls.size_bytes / nullif(model.gb_per_s, 0), 0) AS BIGINT
    )
  END AS work_ns
FROM cuda_api AS calls
INNER JOIN runs
  ON calls.run = runs.run
LEFT JOIN bridge_model AS model
  ON calls.run = model.run
  AND calls."class" = model."class"
  AND calls.api = model.api
  AND calls.copy_kind IS NOT DISTINCT FROM model.copy_kind
  AND calls.host_memory IS NOT DISTINCT FROM model.host_memory
LEFT JOIN latencies
  ON calls.run = latencies.run
WHERE calls.depth = 0
  AND (
    calls."class" IN ('launch', 'graph', 'memset')
    OR (calls."class" = 'copy' AND calls.copy_kind IS DISTINCT FROM 'h2h')
    OR (calls."class" = 'collective' AND calls.stream IS NOT NULL)
  )
  AND coalesce(calls.result, 0) = 0;
