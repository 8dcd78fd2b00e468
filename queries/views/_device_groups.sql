-- _device_groups: the device's work by the return that proved it done, and how
--           long it likely took.
-- requires: _device_sizes, _usual_work
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
--   first_ready_ns  BIGINT   when the first of it could start, had the stream
--                            been idle, ns
--   first_late_ns   BIGINT   how much earlier that may have been, ns, >= 0
--   before_ns       BIGINT   likely end of the work before it on the stream, or
--                            the latest one, ns; 0: there was none
--   start_ns        BIGINT   when the first of it could start, ns
--   last_ns         BIGINT   when the last of it could start, ns
--   end_ns          BIGINT   its likely end, ns; its latest one where nobody
--                            waited
--   work_ns         BIGINT   likely time it took the device, ns, >= 0
-- caveats:  the guess takes the work to be equal pieces, each of which started
--           when it could and was through when the wait for all of it ended.
--           Work that nobody waited for in earnest is guessed as long as the
--           same number of pieces usually is, else as half of the time it can
--           have taken.
CREATE VIEW _device_groups AS
SELECT
  sized.run, sized.pid, sized.stream, sized.done_ns, sized.queued,
  sized.has_waited, sized.first_ready_ns, sized.first_late_ns,
  sized.before_ns, sized.start_ns, sized.last_ns, sized.end_ns,
  CASE
    WHEN sized.has_waited THEN sized.work_ns
    ELSE least(
      sized.work_ns, coalesce(usual.work_ns, sized.work_ns // 2)
    )
  END AS work_ns
FROM _device_sizes AS sized
LEFT JOIN _usual_work AS usual
  ON sized.run = usual.run
  AND sized.pid = usual.pid
  AND sized.stream = usual.stream
  AND sized.queued = usual.queued;
