-- _usual_work: how long so many pieces of a stream's work usually take.
-- requires: _device_sizes
-- grain:    one row per run, process, stream and number of pieces that some
--           call waited for
-- materialize: yes
-- columns:
--   run      VARCHAR  label of the run
--   pid      INTEGER  process
--   stream   BIGINT   stream, as in _device_ops
--   queued   BIGINT   calls that enqueued the work, > 0
--   work_ns  BIGINT   median of the time it likely took the device, ns, >= 0
CREATE VIEW _usual_work AS
SELECT
  run, pid, stream, queued,
  CAST(median(work_ns) AS BIGINT) AS work_ns
FROM _device_sizes
WHERE has_waited
GROUP BY run, pid, stream, queued;
