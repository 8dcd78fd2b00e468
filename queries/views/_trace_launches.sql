-- _trace_launches: calls whose work the device was seen to do.
-- requires: cuda_api, gpu_activity
-- grain:    one row per process and correlation id that both have
-- materialize: yes
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   correlation_id  BIGINT   the id
--   tid             INTEGER  thread of the call; of several of one id, of the
--                            outermost, then the first
--   ts_ns           BIGINT   its start, ns of CLOCK_MONOTONIC
--   depth           INTEGER  its depth
--   flow_id         BIGINT   number of the pair, an even one
CREATE VIEW _trace_launches AS
WITH seen AS (
  SELECT DISTINCT run, pid, correlation_id
  FROM gpu_activity
  WHERE correlation_id IS NOT NULL
    AND pid IS NOT NULL
),

calls AS (
  SELECT
    calls.run, calls.pid, calls.correlation_id,
    arg_min(calls.tid, (calls.depth, calls.ts_ns, calls.tid)) AS tid,
    arg_min(calls.ts_ns, (calls.depth, calls.ts_ns, calls.tid)) AS ts_ns,
    min(calls.depth) AS depth
  FROM cuda_api AS calls
  INNER JOIN seen
    ON calls.run = seen.run
    AND calls.pid = seen.pid
    AND calls.correlation_id = seen.correlation_id
  GROUP BY calls.run, calls.pid, calls.correlation_id
)

SELECT
  run, pid, correlation_id, tid, ts_ns, depth,
  2 * row_number() OVER (ORDER BY run, pid, correlation_id) AS flow_id
FROM calls;
