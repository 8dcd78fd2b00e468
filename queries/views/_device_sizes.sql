-- _device_sizes: the device's work by the return that proved it done, as its
--                own calls tell it.
-- requires: _drains, _device_batches, _device_waits
-- grain:    one row per run, process, stream and return that proved work other
--           than copies done which no return before had
-- materialize: yes
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   stream          BIGINT   stream, as in _device_ops
--   done_ns         BIGINT   the return, ns of CLOCK_MONOTONIC
--   queued          BIGINT   calls that enqueued the work, > 0
--   has_waited      BOOLEAN  a call waited for it, so that its end is known
--   end_ns          BIGINT   its likely end, ns; its latest one where nobody
--                            waited
--   first_ready_ns  BIGINT   when the first of it could start, had the stream
--                            been idle, ns
--   first_late_ns   BIGINT   how much earlier that may have been, ns, >= 0
--   before_ns       BIGINT   likely end of the work before it on the stream, or
--                            the latest one, ns; 0: there was none
--   start_ns        BIGINT   when the first of it could start, ns
--   last_ns         BIGINT   when the last of it could start, ns
--   work_ns         BIGINT   likely time it took the device, ns, >= 0; at most
--                            so long where nobody waited
-- caveats:  the guess takes the work to be equal pieces, each of which started
--           when it could and was through when the wait for all of it ended.
CREATE VIEW _device_sizes AS
WITH pieces AS (
  SELECT
    run, pid, stream, done_ns,
    CAST(sum(queued) AS BIGINT) AS queued,
    min(first_ready_ns) AS first_ready_ns,
    arg_min(first_late_ns, first_ready_ns) AS first_late_ns,
    max(last_ready_ns) AS last_ready_ns
  FROM _device_batches
  WHERE queued > 0
    AND done_ns IS NOT NULL
  GROUP BY run, pid, stream, done_ns
),

-- With nothing to wait for, the work was done when the call began, or when
-- what the call does by itself did.
proofs AS (
  SELECT
    run, pid, stream, end_ns,
    max(greatest(ts_ns, end_ns - own_ns)) AS latest_ns
  FROM _drains
  WHERE is_done
  GROUP BY run, pid, stream, end_ns
),

waited AS (
  SELECT run, pid, stream, end_ns, min(likely_ns) AS likely_ns
  FROM _device_waits
  WHERE likely_ns IS NOT NULL
  GROUP BY run, pid, stream, end_ns
),

ended AS (
  SELECT
    pieces.run, pieces.pid, pieces.stream, pieces.done_ns, pieces.queued,
    pieces.first_ready_ns, pieces.first_late_ns, pieces.last_ready_ns,
    waited.likely_ns IS NOT NULL AS has_waited,
    coalesce(waited.likely_ns, proofs.latest_ns) AS end_ns,
    lag(coalesce(waited.likely_ns, proofs.latest_ns), 1, 0) OVER (
      PARTITION BY pieces.run, pieces.pid, pieces.stream
      ORDER BY pieces.done_ns
    ) AS before_ns
  FROM pieces
  INNER JOIN proofs
    ON pieces.run = proofs.run
    AND pieces.pid = proofs.pid
    AND pieces.stream = proofs.stream
    AND pieces.done_ns = proofs.end_ns
  LEFT JOIN waited
    ON pieces.run = waited.run
    AND pieces.pid = waited.pid
    AND pieces.stream = waited.stream
    AND pieces.done_ns = waited.end_ns
),

started AS (
  SELECT
    run, pid, stream, done_ns, queued, has_waited, end_ns, first_ready_ns,
    first_late_ns, before_ns,
    greatest(first_ready_ns, before_ns) AS start_ns,
    greatest(last_ready_ns, before_ns) AS last_ns
  FROM ended
)

SELECT
  run, pid, stream, done_ns, queued, has_waited, end_ns, first_ready_ns,
  first_late_ns, before_ns, start_ns, last_ns,
  greatest(least(end_ns - start_ns, queued * (end_ns - last_ns)), 0)
    AS work_ns
FROM started;
